from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from fairsisa.errors import MissingArtefactError, StoreError
from fairsisa.lineage import Lineage
from fairsisa.store import Store
from store_cases import lineage, location

IDS = st.sampled_from("uvwxyz")
OWNERS = st.sampled_from(["run-1", "run-2"])


class AgainstAModel(RuleBasedStateMachine):
    """The store behaves as a dict from name to lineage, with a set of dropped names and a dict of claims."""

    place = "local"
    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        for owner in ("run-1", "run-2"):
            (Path(self.folder.name) / owner).mkdir()
        self.store = Store(location(self.place, Path(self.folder.name)))
        self.model: dict[str, Lineage] = {}
        self.dropped: set[str] = set()
        self.claimed: dict[str, set[str]] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    def owner(self, name: str) -> str:
        return str((Path(self.folder.name) / name).resolve())

    def below(self, name: str) -> set[str]:
        children = {child for child, made in self.model.items() if name in made.parents}
        return children.union(*map(self.below, children)) if children else set()

    def above(self, name: str) -> set[str]:
        parents = self.model[name].parents if name in self.model else ()
        return {name}.union(*map(self.above, parents))

    def needed(self, *but: str) -> set[str]:
        names = {name for owner, claim in self.claimed.items() if owner not in but for name in claim}
        return set().union(*map(self.above, names))

    def behind(self, name: str) -> set[str]:
        made = self.model[name]
        return set(made.examples).union(*(self.behind(parent) for parent in made.parents))

    def forget(self, gone: set[str]) -> None:
        self.model = {name: made for name, made in self.model.items() if name not in gone}
        self.dropped -= gone

    @initialize(target=made)
    def name_what_was_never_made(self) -> str:
        return lineage("never").name

    @rule(
        target=made,
        parents=st.lists(made, max_size=2, unique=True),
        label=st.integers(0, 3),
        ids=st.sets(IDS, max_size=2),
    )
    def put(self, parents: list[str], label: int, ids: set[str]) -> Any:
        one = lineage(str(label), tuple(parents), tuple(sorted(ids)), kind="abcd"[label])
        if not set(parents) <= self.model.keys():
            with pytest.raises(MissingArtefactError, match="Expected parent"):
                self.store.put(one, {"x": torch.tensor([label])})
            return multiple()
        self.model[self.store.put(one, {"x": torch.tensor([label])}, {"label": label})] = one
        self.dropped.discard(one.name)
        return one.name

    @rule(name=made)
    def get(self, name: str) -> None:
        assert self.store.has(name) == (name in self.model and name not in self.dropped)
        if not self.store.has(name):
            with pytest.raises(MissingArtefactError, match="dropped: train" if name in self.dropped else "found none"):
                self.store.get(name)
            return
        artefact = self.store.get(name)
        assert artefact.lineage == self.model[name]
        assert "abcd"[artefact.metadata["label"]] == artefact.lineage.kind
        assert artefact.tensors["x"].item() == artefact.metadata["label"]

    @rule(names=st.lists(made, max_size=2))
    def ask_below(self, names: list[str]) -> None:
        expected = set().union(*map(self.below, names)) - set(names)
        assert set(self.store.descendants(names)) == expected
        for name in names:
            if name in self.model:
                assert self.store.example_ids(name) == self.behind(name)

    @rule(ids=st.sets(IDS))
    def find(self, ids: set[str]) -> None:
        assert set(self.store.find(ids)) == {name for name in self.model if self.behind(name) & ids}
        assert self.store.known_ids() == {one for made in self.model.values() for one in made.examples}

    @rule(names=st.lists(made, max_size=2))
    def drop(self, names: list[str]) -> None:
        changed = (set(names) & self.model.keys()) - self.dropped
        assert self.store.drop(names).names == tuple(sorted(changed))
        self.dropped |= changed

    @rule(names=st.lists(made, max_size=2))
    def purge(self, names: list[str]) -> None:
        gone = {name for name in set(names).union(*map(self.below, names)) if name in self.model}
        assert set(self.store.purge(names).names) == gone
        self.forget(gone)

    @rule(names=st.lists(made, max_size=3), owner=OWNERS)
    def purge_own(self, names: list[str], owner: str) -> None:
        spare = self.needed(owner)
        assert self.store.claimed_by_others(self.owner(owner)) == spare
        gone = (set(names).union(*map(self.below, names)) & self.model.keys()) - spare
        assert set(self.store.purge(names, spare=spare).names) == gone
        self.forget(gone)

    @rule(names=st.sets(made, max_size=3), owner=OWNERS)
    def claim(self, names: set[str], owner: str) -> None:
        self.store.claim(self.owner(owner), names)
        self.claimed[owner] = names

    @rule(owner=OWNERS)
    def unclaim(self, owner: str) -> None:
        self.store.unclaim(self.owner(owner))
        self.claimed.pop(owner, None)

    @rule()
    def collect(self) -> None:
        if self.model and not self.claimed:
            with pytest.raises(StoreError, match="found none that stands"):
                self.store.collect(older_than=0.0)
            return
        gone = self.model.keys() - self.needed()
        would = self.store.collect(older_than=0.0, dry_run=True)
        assert self.store.collect(older_than=0.0) == would
        assert set(would.purged.names) == gone
        self.forget(set(gone))

    @rule()
    def reopen(self) -> None:
        self.store = Store(self.store.location)

    @invariant()
    def holds_the_same_names(self) -> None:
        assert [entry.name for entry in self.store.records()] == sorted(self.model)
        assert self.store.names() == tuple(sorted(self.model.keys() - self.dropped))
        assert self.store.claims() == {self.owner(owner): names for owner, names in self.claimed.items()}
        assert self.store.leftovers(older_than=0.0) == ()
        assert self.store.verify() == {}


class RemoteModel(AgainstAModel):
    place = "file"


class MemoryModel(AgainstAModel):
    place = "memory"


AgainstAModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
for machine in (RemoteModel, MemoryModel):
    machine.TestCase.settings = settings(AgainstAModel.TestCase.settings, max_examples=12)
TestAgainstAModel = AgainstAModel.TestCase
TestRemoteModel = RemoteModel.TestCase
TestMemoryModel = MemoryModel.TestCase
