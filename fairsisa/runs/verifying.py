"""The verb `verify`: whether anything that was made from forgotten examples is left."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fairsisa.errors import CorruptArtefactError, LedgerError, MissingArtefactError
from fairsisa.runs.assembly import Assembly, assemble
from fairsisa.runs.directory import CONFIG, ENSEMBLE, ENVIRONMENT, LEDGER, REPLAY, TABLES, Run
from fairsisa.runs.evaluating import DERIVED, derived
from fairsisa.runs.making import JOBS, Workplace, train_missing
from fairsisa.runs.tracing import Doomed, doomed, forgotten_ids, grace
from fairsisa.settings import LEVELS, one_of
from fairsisa.sisa.chain import Chain, plan_stages
from fairsisa.sisa.ledger import Ledger
from fairsisa.store import Store

CERTIFICATES, TRAINING, CURVES = "certificates", "training.csv", "curves.csv"
LOGS = ("logs", "wandb", "tensorboard", "lightning_logs")
"""What loggers leave in a run: losses, step by step; a purge deletes them whole."""
SCOPES = ("affected", "all")
OWN = {CONFIG, ENVIRONMENT, ENSEMBLE, DERIVED, TRAINING, CURVES, ".lock"}
OWN |= {LEDGER + suffix for suffix in ("", "-wal", "-shm", "-journal")}


@dataclass(frozen=True)
class Verification:
    """What was checked: what is wrong (`findings`), and what a reader should know (`notes`).

    A replay compares `num_compared` checkpoints; those of another numeric environment are not comparable, and never
    called equal.
    """

    level: str
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    num_compared: int = 0
    num_not_comparable: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def verify_run(place: Workplace, ledger: Ledger, *, level: str, scope: str = "affected") -> Verification:
    """Check that a run holds nothing that was made from the examples its ledger's requests name.

    "lineage": no artefact of the store has them in its lineage, no table of the run holds them, and the ledger is
    whole. "disk": moreover, every file of the run and the store is one that is accounted for, with the bytes on record.
    "replay": moreover, the affected slices (or, with `scope` "all", all slices from scratch) are trained again
    elsewhere and give the same bytes. Requests that only wait are not looked for.
    """
    one_of("level", level, LEVELS)
    one_of("scope", scope, SCOPES)
    left = doomed(place.run, forgotten_ids(place.run, ledger))
    found, notes = list(_lineage(place.run, ledger, left)), list(_held_notes(left))
    compared = not_comparable = 0
    if level in ("disk", "replay"):
        found += _disk(place.run)
        notes += [f"{name} was not made by fairsisa and was not looked into." for name in _strangers(place.run)]
    if level == "replay":
        compared, not_comparable, differing = _replay(place, ledger, scope)
        found += differing
        if not_comparable:
            notes.append(f"{not_comparable} checkpoints come from another numeric environment: not comparable here.")
    return Verification(level, tuple(found), tuple(notes), compared, not_comparable)


def _lineage(run: Run, ledger: Ledger, left: Doomed) -> Iterator[str]:
    try:
        ledger.check()
    except LedgerError as error:
        yield f"The ledger is damaged: {error}"
    if left.names:
        kinds = ", ".join(f"{len(names)} {kind}" for kind, names in left.kinds.items())
        yield f"The store holds {kinds} made from forgotten examples, first {left.names[0]}: run unlearn flush."
    done = ledger.hashes("published", "purged", "attested")
    for name in ("examples", "partition"):
        ids = run.read_table(name, ["example_id"])["example_id"].to_pylist()
        back = sum(hidden in done for hidden in ledger.key.hide_all("example", ids)) if done else 0
        if back:
            yield f"The table {run.table(name).name} holds {back} examples that were forgotten."


def _held_notes(left: Doomed) -> Iterator[str]:
    for owner, names in left.held_by_others.items():
        yield (
            f"{len(names)} artefacts made from forgotten examples belong to another run, {owner}: "
            f"unlearn them there too, `fairsisa unlearn run={owner} ...`."
        )


def _disk(run: Run) -> Iterator[str]:
    store = run.store
    for name in sorted(run.ensemble.names):
        try:
            store.check(name)
        except (CorruptArtefactError, MissingArtefactError) as error:
            yield f"What the run serves is damaged: {error}"
    for left in store.leftovers(older_than=grace(run)):
        yield f"The store holds a file of unfinished work, {left}: run `fairsisa store gc run={run.directory}`."
    current = {run.table(name) for name in ("examples", "partition")}
    for path in sorted(run.path(TABLES).glob("*")):
        if path not in current:
            yield f"The run holds a table of a former generation, {path.name}: run unlearn flush."
    for path in sorted(run.directory.rglob("*.partial")):
        yield f"The run holds a file of unfinished work, {path.relative_to(run.directory)}."
    if run.path(JOBS).exists():
        yield f"The run holds jobs of an interrupted command in {JOBS}/."
    yield from _stale(run)


def _stale(run: Run) -> Iterator[str]:
    now, path = derived(run), run.path(DERIVED)
    try:
        same = json.loads(path.read_text()) == now if path.is_file() else not now["files"]
    except ValueError:
        same = False
    if not same:
        yield f"Reports are not those of the ensemble that is served: run `fairsisa evaluate run={run.directory}`."
    if run.path(TRAINING).is_file():
        unknown = set(pd.read_csv(run.path(TRAINING))["checkpoint"]) - run.ensemble.names
        if unknown:
            yield f"{TRAINING} tells of {len(unknown)} checkpoints that are not served."


def _strangers(run: Run) -> list[str]:
    known = {run.path(name) for name in OWN | set(derived(run)["files"])}
    folders = [run.path(name) for name in (TABLES, CERTIFICATES, JOBS, *LOGS)]
    found = []
    for path in sorted(run.directory.rglob("*")):
        if path.is_file() and path not in known and not any(folder in path.parents for folder in folders):
            found.append(str(path.relative_to(run.directory)))
    own_store = Path(run.store.location)
    return [name for name in found if own_store not in (run.path(name).resolve()).parents]


def _replay(place: Workplace, ledger: Ledger, scope: str) -> tuple[int, int, list[str]]:
    """Train again elsewhere; return how many checkpoints were compared, how many could not be, and what differs."""
    run, store = place.run, place.run.store
    first = affected_slices(ledger) if scope == "affected" else None
    baselines = [] if first is not None else [name.removeprefix("baseline-") for name in run.ensemble.baselines]
    run.prune()  # of a replay that was killed
    with tempfile.TemporaryDirectory(prefix=REPLAY, dir=run.directory.resolve()) as folder:
        elsewhere = Store(folder)
        assembly = assemble(place.settings, run.examples, run.partition, elsewhere.location, baselines=baselines)
        chosen = [chain for chain in assembly.constituents if first is None or chain.constituent in first]
        names = {chain.constituent for chain in (*chosen, *assembly.baselines)}
        assembly = _only(assembly, names)
        start = {chain.constituent: 0 for chain in assembly.chains}
        for chain in chosen:
            start[chain.constituent] = _copied(store, elsewhere, chain, (first or {}).get(chain.constituent, 0))
        train_missing(assembly, place)
        return _compared(store, elsewhere, assembly.chains, start)


def affected_slices(ledger: Ledger) -> dict[str, int]:
    """Return the constituents that any request touched, each with the first slice that changed."""
    first: dict[str, int] = {}
    for event in ledger.history():
        if event.state == "planned":
            for name, part in event.detail["constituents"].items():
                first[name] = min(first.get(name, part["first_slice"]), part["first_slice"])
    return first


def _only(assembly: Assembly, names: Collection[str]) -> Assembly:
    keep = tuple(chain for chain in assembly.constituents if chain.constituent in names)
    return replace(assembly, constituents=keep, held_out={})


def _copied(store: Store, elsewhere: Store, chain: Chain, first: int) -> int:
    """Copy the checkpoints before slice `first` with what they are made from; return the slice training starts at.

    That is 0, from scratch, where a retention policy dropped one of them.
    """
    wanted = [stage.lineage.name for stage in plan_stages(chain)[:first]]
    needed = _with_parents(store, wanted)
    if not wanted or not all(map(store.has, needed)):
        return 0
    for name in needed:
        artefact = store.get(name)
        elsewhere.put(
            artefact.lineage, artefact.tensors, artefact.metadata, environment=store.manifest(name).environment
        )
    return first


def _with_parents(store: Store, names: Iterable[str]) -> list[str]:
    """Return the names and all their ancestors, parents first."""
    ordered: dict[str, None] = {}
    for name in names:
        parents = store.manifest(name).lineage.parents
        ordered |= dict.fromkeys([*(p for p in _with_parents(store, parents) if p not in ordered), name])
    return list(ordered)


def _compared(
    store: Store, elsewhere: Store, chains: Iterable[Chain], start: dict[str, int]
) -> tuple[int, int, list[str]]:
    compared, not_comparable, differing = 0, 0, []
    for chain in chains:
        for stage in plan_stages(chain)[start[chain.constituent] :]:
            kept, made = (place.manifest(stage.lineage.name) for place in (store, elsewhere))
            if dict(kept.environment) != dict(made.environment):
                not_comparable += 1
                continue
            compared += 1
            if kept.sha256 != made.sha256:
                differing.append(
                    f"{chain.constituent}, slice {stage.index}: training again gives {made.sha256}, "
                    f"the checkpoint that is served has {kept.sha256}."
                )
    return compared, not_comparable, differing
