"""The verbs that change what a run was trained on: unlearn, flush, add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairsisa.cli.printing import say
from fairsisa.cli.reading import execution_of, flag, paths_of, request_of, unlearning_of
from fairsisa.cli.verbs import progress, show_descendants, show_report
from fairsisa.runs.adding import add_examples, load_more
from fairsisa.runs.directory import Run
from fairsisa.runs.requests import keys_folder
from fairsisa.runs.training import data_root
from fairsisa.runs.unlearning import Outcome, queue_request
from fairsisa.runs.unlearning import flush as flush_requests
from fairsisa.runs.unlearning import unlearn as unlearn_request

Config = Mapping[str, Any]


def unlearn(config: Config, overrides: Sequence[str]) -> None:
    """Receive a request, and execute it unless it is to wait."""
    run, keys = Run(config["run"]), keys_folder(paths_of(config))
    if flag(config, "queue"):
        for request_id in queue_request(run, request_of(config), keys=keys):
            say(f"received {request_id}; it waits for `fairsisa unlearn flush run={run.directory}`")
        return
    settings = unlearning_of(config)
    run.require_trained()
    with progress(run.settings, run.num_slices) as show:
        outcome = unlearn_request(
            run, request_of(config), keys=keys, settings=settings, execution=execution_of(config), on_event=show
        )
    _show_outcome(outcome, run)


def flush(config: Config, overrides: Sequence[str]) -> None:
    """Execute all requests that wait."""
    run, keys = Run(config["run"]), keys_folder(paths_of(config))
    settings = unlearning_of(config)
    run.require_trained()
    with progress(run.settings, run.num_slices) as show:
        outcome = flush_requests(run, keys=keys, settings=settings, execution=execution_of(config), on_event=show)
    _show_outcome(outcome, run)


def add(config: Config, overrides: Sequence[str]) -> None:
    """Train on new examples too."""
    run, paths = Run(config["run"]), paths_of(config)
    run.require_trained()
    new = load_more(run, config["data"], root=data_root(paths), cache=Path(paths.cache).expanduser())
    with progress(run.settings, run.num_slices + 1) as show:
        report = add_examples(
            run,
            new,
            keys=keys_folder(paths),
            execution=execution_of(config),
            on_event=show,
            evaluate=flag(config, "evaluate"),
        )
    say(f"{len(new):,} new examples; the run has {run.num_slices} slices in every shard.")
    show_descendants(run)
    if report is not None:
        show_report(report, run)


def _show_outcome(outcome: Outcome, run: Run) -> None:
    if not outcome.certificates:
        say("Nothing to do: these requests were attested before." if outcome.request_ids else "No request waits.")
    for path in outcome.certificates:
        say(f"certificate: {path.with_suffix('.html')}")
    if outcome.certificates:
        show_descendants(run)
    if outcome.report is not None:
        show_report(outcome.report, run)
