from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from fairsisa.errors import MissingArtefactError
from fairsisa.lineage import Lineage
from fairsisa.store import Store
from store_cases import lineage

IDS = st.sampled_from("uvwxyz")


class AgainstAModel(RuleBasedStateMachine):
    """The store behaves as a dict from name to lineage."""

    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(self.folder.name)
        self.model: dict[str, Lineage] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    def below(self, name: str) -> set[str]:
        children = {child for child, made in self.model.items() if name in made.parents}
        return children.union(*map(self.below, children)) if children else set()

    def behind(self, name: str) -> set[str]:
        made = self.model[name]
        return set(made.examples).union(*(self.behind(parent) for parent in made.parents))

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
        return one.name

    @rule(name=made)
    def get(self, name: str) -> None:
        if name not in self.model:
            with pytest.raises(MissingArtefactError, match=name):
                self.store.get(name)
            return
        artefact = self.store.get(name)
        assert artefact.lineage == self.model[name]
        assert "abcd"[artefact.metadata["label"]] == artefact.lineage.kind
        assert artefact.tensors["x"].item() == artefact.metadata["label"]
        assert self.store.example_ids(name) == self.behind(name)

    @rule(names=st.lists(made, max_size=2))
    def descendants(self, names: list[str]) -> None:
        expected = set().union(*map(self.below, names)) - set(names)
        assert set(self.store.descendants(names)) == expected

    @rule(ids=st.sets(IDS))
    def find(self, ids: set[str]) -> None:
        assert set(self.store.find(ids)) == {name for name in self.model if self.behind(name) & ids}

    @rule(names=st.lists(made, max_size=2))
    def purge(self, names: list[str]) -> None:
        gone = {name for name in set(names).union(*map(self.below, names)) if name in self.model}
        assert set(self.store.purge(names).names) == gone
        for name in gone:
            del self.model[name]

    @rule()
    def reopen(self) -> None:
        self.store = Store(self.folder.name)

    @invariant()
    def holds_the_same_names(self) -> None:
        assert self.store.names() == tuple(sorted(self.model))
        assert self.store.leftovers(older_than=0.0) == ()


AgainstAModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAgainstAModel = AgainstAModel.TestCase
