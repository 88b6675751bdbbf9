"""The verb `postprocess`: a fair rule over a run's votes, fitted, served and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fairsisa.errors import RunError
from fairsisa.execution import Report
from fairsisa.report.content import RunReport
from fairsisa.report.postprocessing import PostprocessingReport
from fairsisa.runs.directory import DEGRADED, Run
from fairsisa.runs.evaluating import can_be_measured, forget_reports, measure_run, with_predictions
from fairsisa.runs.fitting import KIND, check_settings, entry_of, register
from fairsisa.settings import ExecutionSettings, PostprocessSettings


@dataclass(frozen=True, eq=False)
class Postprocessed:
    """A post-processor's name, what its page tells, and the run's new report; both None where nothing was measured."""

    name: str
    content: PostprocessingReport | None
    report: RunReport | None


def postprocess_run(
    run: Run,
    settings: PostprocessSettings,
    *,
    execution: ExecutionSettings,
    on_event: Report,
    evaluate: bool = True,
) -> Postprocessed:
    """Fit a post-processor on the run's calibration votes, serve it under its name, and measure it on the test split.

    One rename puts it into service, in place of an earlier one of the same name. From then on `train`, `add` and
    `unlearn` fit it anew when the votes change. Stopped in the middle, the same call ends the same.

    Raises:
        ConfigError: for a strategy, criterion or sensitive feature that the run does not have, naming the nearest.
        DataError: when the calibration examples do not allow it, naming the cell.
        RunError: when the run is not trained, is served without some constituents, or another command is at work.
    """
    name = settings.chosen_name
    with run.locked():
        run.require_trained()
        require_whole(run)
        examples = run.examples
        check_settings(settings, examples)
        run.mend()
        ensemble = with_predictions(run, execution, on_event)
        entry = register(run, ensemble, examples, settings)
        run.publish(replace(ensemble, postprocessors={**ensemble.postprocessors, name: entry}))
        _retire(run)
    if not (evaluate and can_be_measured(run)):
        return Postprocessed(name, None, None)
    measured = measure_run(run, execution=execution, on_event=on_event)
    return Postprocessed(name, measured.fair[name], measured.report)


def remove_postprocessor(run: Run, name: str | None) -> None:
    """Take a post-processor out of a run, with the reports that speak of it.

    Raises:
        ConfigError: when the run has none of that name, naming the nearest.
        RunError: when the run is not trained, or another command is at work on it.
    """
    with run.locked():
        ensemble = run.ensemble
        entry_of(run, ensemble, str(name))
        left = {known: entry for known, entry in ensemble.postprocessors.items() if known != name}
        forget_reports(run)
        run.publish(replace(ensemble, postprocessors=left))
        _retire(run)


def require_whole(run: Run) -> None:
    """Raise RunError while a run is served without the constituents that a deletion touched."""
    if run.ensemble.status == DEGRADED:
        raise RunError(
            f"{run.directory} is served without some constituents: run `fairsisa unlearn flush run={run.directory}` "
            "first."
        )


def _retire(run: Run) -> None:
    """Give up the claim on post-processors that were replaced, and delete those that no other run needs."""
    store, served = run.store, run.pointer.names
    claimed = store.claims().get(str(run.directory.resolve()), frozenset())
    replaced = {entry.name for entry in store.records(KIND)} & claimed - served
    if replaced:
        store.claim(run.directory, claimed - replaced)
        store.purge(replaced, spare=store.claimed_by_others(run.directory))
