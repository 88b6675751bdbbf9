"""What in a store stands on given examples."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairsisa.runs.directory import Run
from fairsisa.sisa.ledger import STATES, Ledger, UnlearningRequest

GRACE = 60.0
"""Seconds; longer than one artefact takes to be written."""
STEP = 0.5


@dataclass(frozen=True)
class Doomed:
    """What stands on examples to be forgotten: names and bytes by kind, and what other runs need of it.

    What other runs claim is not in `kinds`, but in `held_by_others`, by run.
    """

    kinds: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int]
    held_by_others: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(name for names in self.kinds.values() for name in names)

    @property
    def num_bytes(self) -> int:
        """All bytes."""
        return sum(self.sizes.values())


def doomed(run: Run, forget_ids: Collection[str]) -> Doomed:
    """Return what in the run's store stands on any of the examples, whatever made it."""
    store = run.store
    holding = store.find(forget_ids) if forget_ids else ()
    spared = store.claimed_by_others(run.directory) if holding else frozenset()
    going = set(holding) - spared
    entries = [entry for entry in store.records() if entry.name in going] if going else []
    kinds, sizes = defaultdict[str, list[str]](list), defaultdict[str, int](int)
    for entry in entries:
        kinds[entry.kind].append(entry.name)
        sizes[entry.kind] += entry.num_bytes if entry.kept else 0
    return Doomed(
        kinds={kind: tuple(names) for kind, names in sorted(kinds.items())},
        sizes=dict(sorted(sizes.items())),
        held_by_others=_holders(run, [name for name in holding if name in spared]),
    )


def forgotten_ids(run: Run, ledger: Ledger) -> frozenset[str]:
    """Return the ids in the store's manifests that requests under way or done named, less those the run still holds.

    The ledger knows ids as keyed hashes only; so every id in the store is hashed and looked up.
    """
    hashes = ledger.hashes(*(state for state in STATES if state != "received"))
    known = sorted(run.store.known_ids() - set(run.examples.example_ids)) if hashes else []
    hidden = ledger.key.hide_all("example", known)
    return frozenset(example for example, name in zip(known, hidden, strict=True) if name in hashes)


def recognised(run: Run, ledger: Ledger, requests: Iterable[UnlearningRequest]) -> frozenset[str]:
    """Return the ids in the run's tables that any of the requests names; none once the tables were switched."""
    wanted = frozenset[str]().union(*(request.example_hashes for request in requests))
    present = run.examples.example_ids
    hidden = ledger.key.hide_all("example", present)
    return frozenset(example for example, name in zip(present, hidden, strict=True) if name in wanted)


def shares(run: Run, ledger: Ledger, requests: Iterable[UnlearningRequest]) -> dict[str, dict[str, Any]]:
    """Return, for each request, how many examples of each split it names, and which constituents learnt from them."""
    frame = run.examples.frame[["example_id", "split"]]
    places = run.partition.frame().set_index("example_id")["shard"]
    frame = frame.assign(hidden=ledger.key.hide_all("example", frame["example_id"].tolist()))
    frame = frame.assign(shard=frame["example_id"].map(places)).set_index("hidden")
    found = {}
    for request in requests:
        rows = frame.loc[frame.index.intersection(list(request.example_hashes))]
        found[request.request_id] = {
            "num_examples": rows["split"].value_counts().to_dict(),
            "constituents": [f"shard-{int(shard)}" for shard in sorted(rows["shard"].dropna().unique())],
        }
    return found


def grace(run: Run) -> float:
    """Return how many seconds old a file of unfinished work must be, lest it be another run's at work."""
    others = set(run.store.claims()) - {str(run.directory.resolve())}
    return GRACE if others else 0.0


def settle_leftovers(run: Run) -> None:
    """Delete files of unfinished work; in a store that others use, wait until those there now are done or stale."""
    store, wait = run.store, grace(run)
    young = set(store.leftovers(older_than=0.0)) - set(store.leftovers(older_than=wait)) if wait else set()
    deadline = time.monotonic() + wait
    while young and time.monotonic() < deadline:
        time.sleep(STEP)
        young &= set(store.leftovers(older_than=0.0)) - set(store.leftovers(older_than=wait))
    store.sweep(older_than=wait)


def _holders(run: Run, held: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return which other runs need which of the names, for themselves or for what is made from them."""
    store, own, found = run.store, str(run.directory.resolve()), dict[str, tuple[str, ...]]()
    needs = {name: {name, *store.descendants([name])} for name in held}
    for owner, claimed in sorted(store.claims().items()):
        names = tuple(sorted(name for name, below in needs.items() if not below.isdisjoint(claimed)))
        if names and owner != own:
            found[owner] = names
    return found
