"""The verb `unlearn`: from a request to an ensemble that never saw what it names, and the evidence."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fairsisa.errors import FairsisaError
from fairsisa.execution import Report
from fairsisa.execution.scratch import clear_leftovers
from fairsisa.report.content import RunReport
from fairsisa.runs.assembly import Assembly, assemble
from fairsisa.runs.attesting import attest
from fairsisa.runs.completing import completed
from fairsisa.runs.descendants import without_doomed
from fairsisa.runs.directory import DEGRADED, Ensemble, Run
from fairsisa.runs.evaluating import DERIVED, can_be_measured, evaluate_run, forget_reports
from fairsisa.runs.fitting import suspended
from fairsisa.runs.keeping import retain
from fairsisa.runs.making import JOBS, Workplace, settle, train_missing
from fairsisa.runs.membership import attack, members_of
from fairsisa.runs.planning import Plan, plan_deletion
from fairsisa.runs.requests import begin_ledger, receive_request
from fairsisa.runs.tracing import Doomed, doomed, forgotten_ids, recognised, settle_leftovers, shares
from fairsisa.runs.verifying import LOGS
from fairsisa.settings import ExecutionSettings, RequestSettings, UnlearningSettings
from fairsisa.sisa.chain import plan_stages
from fairsisa.sisa.ledger import OPEN, Ledger, UnlearningRequest
from fairsisa.sisa.training import SliceResult
from fairsisa.store.durable import explained
from fairsisa.tables import TEST

UNDER_WAY = ("planned", "retraining", "published", "purged")
STEPS: Mapping[str, int] = MappingProxyType({state: step for step, state in enumerate(("failed", *UNDER_WAY))})


@dataclass(frozen=True)
class Outcome:
    """What became of some requests: where their certificates lie, and the new report, if the run can be measured."""

    request_ids: tuple[str, ...]
    certificates: tuple[Path, ...]
    report: RunReport | None


@dataclass(frozen=True)
class Work:
    """What the steps of one batch of requests share."""

    place: Workplace
    ledger: Ledger
    settings: UnlearningSettings
    request_ids: tuple[str, ...]

    @property
    def run(self) -> Run:
        """The run that is to forget."""
        return self.place.run

    def note(self, state: str, detail: Mapping[str, Any]) -> None:
        """Write into the ledger that the batch has come to a state."""
        self.ledger.advance(self.request_ids, state, detail)


def unlearn(
    run: Run,
    request: RequestSettings,
    *,
    keys: Path,
    settings: UnlearningSettings,
    execution: ExecutionSettings,
    on_event: Report,
) -> Outcome:
    """Forget what the request names; return when nothing made from it is left.

    The request is durable before anything else happens. Stopped in the middle, the same call goes on and ends with the
    same ensemble; made again after its end, it changes nothing. `keys` is the folder of ledger keys.

    Raises:
        RequestError: when the request names nothing, or what the run does not hold; nothing was received.
        RunError: when another command is at work on the run; the request waits in the ledger.
        VerificationError: when something made from the examples was found afterwards.
        FairsisaError: of the kind that fits, when a step fails; the request stays open.
    """
    chosen = queue_request(run, request, keys=keys)
    return _execute(Workplace(run, run.settings, execution, on_event), begin_ledger(run, keys), chosen, settings)


def queue_request(run: Run, request: RequestSettings, *, keys: Path) -> tuple[str, ...]:
    """Receive a request, to be executed by the next `flush`; return its id, or those of earlier ones of the same.

    Raises:
        RunError: when the run is not trained: it has nothing to forget.
        RequestError: when the request names nothing, or what the run does not hold.
    """
    run.require_trained()
    return receive_request(run, begin_ledger(run, keys), request)


def flush(
    run: Run, *, keys: Path, settings: UnlearningSettings, execution: ExecutionSettings, on_event: Report
) -> Outcome:
    """Execute all requests that wait, at once; errors are those of `unlearn`."""
    run.require_trained()
    ledger = begin_ledger(run, keys)
    waiting = tuple(request.request_id for request in ledger.requests(*OPEN))
    return _execute(Workplace(run, run.settings, execution, on_event), ledger, waiting, settings)


def _execute(place: Workplace, ledger: Ledger, chosen: Collection[str], settings: UnlearningSettings) -> Outcome:
    run = place.run
    later = f"run `fairsisa unlearn flush run={run.directory}` later: the request is in the ledger"
    with run.locked(later):
        clear_leftovers(run.path(JOBS))  # jobs of a killed command might yet put what the examples made
        run.mend()
        waiting = ledger.requests(*OPEN)
        interrupted = [request for request in waiting if request.state in UNDER_WAY]
        fresh = [request for request in waiting if request.state not in UNDER_WAY and request.request_id in chosen]
        pages = [page for batch in (interrupted, fresh) if batch for page in _carry_out(place, ledger, settings, batch)]
        if pages:
            retain(run)
        elif not waiting:
            _tidy(run, ledger)
    report = None
    if settings.evaluate and (pages or not run.path(DERIVED).is_file()) and can_be_measured(run):
        report = evaluate_run(run, execution=place.execution, on_event=place.on_event)
    return Outcome(tuple(chosen), tuple(pages), report)


def _carry_out(
    place: Workplace, ledger: Ledger, settings: UnlearningSettings, batch: Sequence[UnlearningRequest]
) -> tuple[Path, ...]:
    """Bring requests through the steps they still have before them; those of a batch stand at the same one."""
    work = Work(place, ledger, settings, tuple(request.request_id for request in batch))
    step = min(STEPS.get(request.state, 0) for request in batch)
    try:
        if step < STEPS["published"]:
            _replace(work, batch, begin=step < STEPS["planned"])
        if step < STEPS["purged"]:
            _purge(place.run, doomed(place.run, forgotten_ids(place.run, ledger)))
            work.note("purged", {})
        work.run.prune()  # of an attempt that was killed while it wrote certificates
        return attest(place, ledger, work.request_ids, settings.verify)
    except FairsisaError as error:
        work.note("failed", {"error": type(error).__name__})  # the message may name an example
        raise


def _replace(work: Work, batch: Sequence[UnlearningRequest], *, begin: bool) -> None:
    """Train what the deletion changes, and switch to it."""
    run, forget = work.run, recognised(work.run, work.ledger, batch)
    served, plan = run.ensemble, plan_deletion(run, forget)
    before = _assembled(run, (), served.baselines) if work.settings.membership and plan.constituents else None
    members = {} if before is None else members_of(before, forget)
    if begin:
        seen = None if before is None else attack(run, before, before, members, served.predictions[TEST])
        work.note("planned", plan.evidence() | {"requests": shares(run, work.ledger, batch), "membership": seen})
    kept = [name for name in served.baselines if name not in plan.baselines]
    degraded = work.settings.degraded and bool(forget)
    if degraded:
        _serve_degraded(run, plan, forget)
        going = doomed(run, forgotten_ids(run, work.ledger))
        work.note("retraining", {"serving": DEGRADED, "doomed": asdict(going)})
        _purge(run, going)
        forget = frozenset()
    elif begin:
        work.note("retraining", {"serving": served.status})
    after = _assembled(run, forget, kept)
    run.store.claim(run.directory, after.names | run.ensemble.names)
    results = train_missing(after, work.place)
    examples, partition = _retained(run, forget)
    ensemble = completed(after, work.place, examples)
    seen = None if before is None else attack(run, after, before, members, ensemble.predictions[TEST])
    made = {"constituents": _made(run, after, results), "postprocessors": _replaced(served, ensemble)}
    made["descendants"] = _descendants(served, ensemble)
    work.note("retraining", made | {"membership": seen})
    run.publish(ensemble, *((examples, partition) if forget else (None, None)))
    settle(work.place, after, results)
    work.note("published", {"doomed": asdict(doomed(run, forgotten_ids(run, work.ledger)))})


def _serve_degraded(run: Run, plan: Plan, forget: frozenset[str]) -> None:
    """Switch to the ensemble less the affected constituents; scores of a split that lost rows are made again later."""
    served = run.ensemble
    gone = {part.constituent for part in plan.constituents} | set(plan.baselines)
    predictions = {
        split: {name: made for name, made in columns.items() if name not in gone and not plan.num_examples.get(split)}
        for split, columns in served.predictions.items()
    }
    left = {name: steps for name, steps in served.baselines.items() if name not in gone}
    first = {part.constituent: part.first_slice for part in plan.constituents}
    steps = {name: made[: first.get(name)] for name, made in served.checkpoints.items()}
    ensemble = replace(served, checkpoints=steps, baselines=left, predictions=predictions, status=DEGRADED)
    ensemble = without_doomed(suspended(ensemble, served), run.store.find(forget))
    run.publish(ensemble, *_retained(run, forget))


def _retained(run: Run, forget: frozenset[str]) -> tuple[Any, Any]:
    """Return the run's examples and partition less some."""
    examples = run.examples
    return examples.keep(~examples.frame["example_id"].isin(forget).to_numpy()), run.partition.without(forget)


def _assembled(run: Run, forget: Collection[str], baselines: Collection[str]) -> Assembly:
    examples, partition = _retained(run, frozenset(forget))
    names = [name.removeprefix("baseline-") for name in baselines]
    return assemble(run.settings, examples, partition, run.store.location, baselines=names)


def _made(run: Run, assembly: Assembly, results: Sequence[SliceResult]) -> dict[str, Any]:
    """Return what was trained, by constituent: the checkpoints, and the examples shown and seconds taken for them.

    Checkpoints that are in the store though no longer served before count as made by an interrupted attempt.
    """
    served = run.ensemble.names
    status = {result.checkpoint: result for result in results}
    made: dict[str, Any] = {}
    for chain in assembly.constituents:
        stages = plan_stages(chain)
        rows = [status[stage.lineage.name] for stage in stages]
        new = [row for row in rows if row.status == "trained" or row.checkpoint not in served]
        if new:
            made[chain.constituent] = {
                "checkpoints": [row.checkpoint for row in new],
                "presentations": sum(row.num_presentations for row in new),
                "core_seconds": sum(row.seconds for row in new),
            }
    return made


def _replaced(before: Ensemble, after: Ensemble) -> dict[str, dict[str, str | None]]:
    """Return the post-processors that were fitted anew, or withdrawn: the artefact's name before, and now."""
    pairs = {
        name: (before.postprocessors[name]["artefact"], made["artefact"]) for name, made in after.postprocessors.items()
    }
    return {name: {"old": old, "new": new} for name, (old, new) in pairs.items() if old != new}


def _descendants(before: Ensemble, after: Ensemble) -> dict[str, dict[str, Any]]:
    """Return the students and copies that changed: their models before, and now; None when they left the run."""
    found = {}
    for name, made in before.descendants.items():
        now = after.descendants.get(name)
        if now is None or (now.models, now.reason) != (made.models, made.reason):
            new = None if now is None else dict(now.models)
            found[name] = {"old": dict(made.models), "new": new, "reason": None if now is None else now.reason}
    return found


def _tidy(run: Run, ledger: Ledger) -> None:
    """Delete what a killed command left, and what was made from forgotten examples after they were purged."""
    run.prune()
    going = doomed(run, forgotten_ids(run, ledger))
    if going.names:
        _purge(run, going)


def _purge(run: Run, going: Doomed) -> None:
    """Delete all that was made from forgotten examples: artefacts, unfinished files, old tables, reports and logs."""
    spared = frozenset[str]().union(*map(frozenset, going.held_by_others.values()))
    run.store.purge(going.names, spare=spared)
    settle_leftovers(run)
    run.prune()
    forget_reports(run)
    with explained(f"delete logs of {run.directory}"):
        for name in LOGS:
            if run.path(name).exists():
                shutil.rmtree(run.path(name))
