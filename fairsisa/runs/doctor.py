"""The verb `doctor`: what is wrong with a run, and what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from fairsisa.errors import FairsisaError, VerificationError
from fairsisa.models.device import numeric_environment
from fairsisa.runs.descendants import REBUILDING
from fairsisa.runs.directory import DEGRADED, LEDGER, UNTRAINED, WHOLE, Run
from fairsisa.runs.fitting import find_trouble
from fairsisa.runs.making import Workplace
from fairsisa.runs.unlearning import UNDER_WAY
from fairsisa.runs.verifying import CERTIFICATES, TRAINING, verify_run
from fairsisa.runs.weighing import command_of
from fairsisa.settings import ExecutionSettings
from fairsisa.sisa.certificate import decode
from fairsisa.sisa.ledger import OPEN, Head, Ledger

AGAIN = "run the same train command again: it makes what is missing or damaged, with the same bytes"
RESTORE = "restore it from a backup"


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong, or worth knowing (`is_problem` false), and what helps."""

    check: str
    what: str
    cure: str = ""
    is_problem: bool = True


def examine(run: Run, *, keys: Path) -> tuple[Complaint, ...]:
    """Return all complaints about a run; each check stands on its own, and one that fails is a complaint too."""
    found: list[Complaint] = []
    for name, check in CHECKS.items():
        try:
            found += check(run, keys)
        except (FairsisaError, OSError, ValueError, KeyError, TypeError) as error:
            if str(error) not in {complaint.what for complaint in found}:
                found.append(Complaint(name, str(error), "mend what it names, then run doctor again"))
    return tuple(found)


def _files(run: Run, keys: Path) -> Iterator[Complaint]:
    """Read each file that the other checks go by, and every verb."""
    for name in ("pointer", "settings", "environment", "examples", "partition"):
        try:
            getattr(run, name)
        except FairsisaError as error:
            yield Complaint("files", str(error), RESTORE)


def _serving(run: Run, keys: Path) -> Iterator[Complaint]:
    status = run.pointer.status
    if status == UNTRAINED:
        yield Complaint("training", "The run was begun, but not trained to its end.", AGAIN)
    if status == DEGRADED:
        yield Complaint("serving", "The ensemble is served without some constituents.", _flush(run))
    examples, partition = run.examples, run.partition
    train = set(examples.frame.loc[examples.frame["split"] == "train", "example_id"])
    if train != set(partition.example_ids):
        odd = len(train ^ set(partition.example_ids))
        yield Complaint("tables", f"{odd} examples are in one of the two tables only.", RESTORE)


def _artefacts(run: Run, keys: Path) -> Iterator[Complaint]:
    store, ensemble = run.store, run.pointer
    records = {entry.name: entry for entry in store.records()}
    lost = ensemble.names - records.keys()
    if lost:
        yield Complaint("artefacts", f"{len(lost)} artefacts that are served are not in the store.", AGAIN)
    for name, problem in store.verify().items():
        if name in ensemble.names:
            yield Complaint("artefacts", problem, AGAIN)
    last = [steps[-1] for steps in ensemble.chains.values() if steps]
    dropped = [name for name in last if name in records and not records[name].kept]
    if dropped and ensemble.status == WHOLE:
        yield Complaint("artefacts", f"{len(dropped)} constituents lack the weights they serve.", AGAIN)
    if str(run.directory.resolve()) not in store.claims() and ensemble.status != UNTRAINED:
        yield Complaint("claim", "The run has no claim on its artefacts: `store gc` would delete them.", AGAIN)


def _postprocessors(run: Run, keys: Path) -> Iterator[Complaint]:
    ensemble = run.pointer
    for name in ensemble.postprocessors:
        trouble = find_trouble(run, ensemble, name)
        if trouble is not None:
            yield Complaint("post-processors", f"{trouble.what}.", trouble.cure)


def _descendants(run: Run, keys: Path) -> Iterator[Complaint]:
    for name, made in run.pointer.descendants.items():
        if not made.models:
            flush = _flush(run) if made.reason == REBUILDING else f"run `{command_of(str(run.directory), made)}`"
            yield Complaint("students and copies", f"{name!r} is out of service, {made.reason}.", flush)


def _requests(run: Run, keys: Path) -> Iterator[Complaint]:
    if not run.path(LEDGER).is_file():
        yield Complaint("ledger", "No request was ever received.", is_problem=False)
        return
    ledger = Ledger.open(run.path(LEDGER), keys)
    yield from _certificates(run, ledger)
    states = [request.state for request in ledger.requests(*OPEN)]
    under_way, failed = sum(state in UNDER_WAY for state in states), states.count("failed")
    if under_way:
        yield Complaint("requests", f"{under_way} requests were interrupted.", _flush(run))
    if failed:
        yield Complaint("requests", f"{failed} requests failed.", _flush(run))
    if states.count("received"):
        yield Complaint("requests", f"{states.count('received')} requests wait.", _flush(run), is_problem=False)


def _leftovers(run: Run, keys: Path) -> Iterator[Complaint]:
    if not run.path(LEDGER).is_file():
        return
    lock = filelock.FileLock(run.path(".lock"), timeout=0)
    try:
        with lock:
            pass
    except filelock.Timeout:
        yield Complaint("lock", "Another command is at work on the run.", "wait for it", is_problem=False)
        return
    place = Workplace(run, run.settings, ExecutionSettings(num_workers=1), lambda event: None)
    verification = verify_run(place, Ledger.open(run.path(LEDGER), keys), level="disk")
    for finding in verification.findings:
        yield Complaint("forgotten data", finding, _cure(run, finding))
    for note in verification.notes:
        yield Complaint("forgotten data", note, is_problem=False)


def _environment(run: Run, keys: Path) -> Iterator[Complaint]:
    trainer = run.settings.trainer
    now = numeric_environment(trainer.accelerator, trainer.precision, trainer.threads)
    then = run.environment["numeric"]
    differing = [f"{name}: {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]
    if differing:
        yield Complaint(
            "environment",
            f"This machine computes otherwise than the run's: {'; '.join(differing)}.",
            "retrained slices will not be bit for bit those of a run on the first machine; unlearn there, or know it",
            is_problem=False,
        )


def _certificates(run: Run, ledger: Ledger) -> Iterator[Complaint]:
    """Check every certificate's signature, and that the ledger still holds the head it quotes."""
    heads = []
    for path in sorted(run.path(CERTIFICATES).glob("*.json")):
        try:
            certificate = decode(path.read_bytes(), ledger.key)
            heads.append(Head(certificate.ledger_seq, certificate.ledger_digest))
        except VerificationError as error:
            yield Complaint("certificates", f"{path.name}: {error}", "restore it, or the ledger and key it quotes")
    ledger.check(heads)


def _cure(run: Run, finding: str) -> str:
    if ": run " in finding:
        return "do what it says"
    return AGAIN if finding.startswith(("What the run serves", TRAINING)) else _flush(run)


def _flush(run: Run) -> str:
    return f"run `fairsisa unlearn flush run={run.directory}`"


CHECKS: dict[str, Callable[[Run, Path], Iterator[Complaint]]] = {
    "files": _files,
    "serving": _serving,
    "artefacts": _artefacts,
    "post-processors": _postprocessors,
    "students and copies": _descendants,
    "ledger": _requests,
    "forgotten data": _leftovers,
    "environment": _environment,
}
