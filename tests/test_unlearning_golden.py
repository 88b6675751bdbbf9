"""Unlearning is training without the ids, bit for bit, for every way of training and of dealing examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chains import LOGISTIC, PERCEPTRON
from fairsisa import lineage
from fairsisa.data.batches import training_batches
from fairsisa.models.classifier import Classifier
from fairsisa.runs import unlearning
from fairsisa.runs.unlearning import unlearn
from fairsisa.settings import ModelSettings, PartitionSettings, RequestSettings, RunSettings
from fairsisa.sisa import training
from fairsisa.store import Store
from fairsisa.tables import CALIBRATION, TEST, TRAIN
from golden import (
    HERE,
    NUM_TRAIN,
    QUIETLY,
    World,
    begin,
    differences,
    forget,
    forget_together,
    grow,
    hurried,
    made_up,
    oracle,
    published,
    quiet,
    settings_for,
    small_tokenizer,
    tiny,
)

SHAPES = ((1, 1), (3, 2), (5, 4))
STRATEGIES = ("uniform", "stratified", "risk_aware")
Step = Callable[[World], World]


@dataclass(frozen=True)
class Cell:
    """One cell of the golden table."""

    trains: str
    optimizer_state: str
    num_shards: int
    num_slices: int
    strategy: str

    def __str__(self) -> str:
        return f"{self.trains}-{self.optimizer_state}-{self.num_shards}x{self.num_slices}-{self.strategy}"


TABLE = [
    Cell(trains, state, *shape, strategy)
    for trains in ("full", "head", "lora")
    for state in ("fresh", "carried")
    for shape in SHAPES
    for strategy in STRATEGIES
]
TABULAR = [
    Cell(trains, state, 3, 2, strategy)
    for trains, state, strategy in (
        ("mlp", "fresh", "uniform"),
        ("mlp", "carried", "risk_aware"),
        ("logistic", "fresh", "stratified"),
        ("logistic", "carried", "uniform"),
    )
]


@pytest.fixture(scope="module", autouse=True)
def _hurried() -> Iterator[None]:
    with hurried():
        yield


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def settings_of(cell: Cell, folder: Path, tokenizer: str) -> RunSettings:
    tabular: dict[str, ModelSettings] = {"mlp": PERCEPTRON, "logistic": LOGISTIC}
    model = tabular.get(cell.trains) or tiny(cell.trains, tokenizer)
    frame = made_up("tabular" if cell.trains in tabular else "text")
    feature = "region" if cell.strategy == "stratified" else None
    dealt = PartitionSettings(cell.num_shards, cell.num_slices, cell.strategy, feature)
    settings = settings_for(frame, folder / "own.parquet", model, partition=dealt)
    return replace(settings, trainer=replace(settings.trainer, optimizer_state=cell.optimizer_state))


def one_id(world: World) -> World:
    return forget(world, ids=(largest(world)[0],))


def another_of_its_slice(world: World) -> World:
    return forget(world, ids=(largest(world)[-1],))


def the_remainder(world: World) -> World:
    """Forget what an implementation by position never hashes, or never trains: the ends of the list and the shards."""
    num_cells = world.run.settings.partition.num_shards * world.run.settings.partition.num_slices
    ordered = [example for ids in world.cells() for example in ids]
    rest = ordered[len(ordered) - NUM_TRAIN % num_cells :]
    ends = [
        world.cells(shard)[-1][-1] for shard in range(world.run.settings.partition.num_shards) if world.cells(shard)
    ]
    return forget(world, ids=tuple({*rest, *ends}))


def a_batch(world: World) -> World:
    cells = world.cells()
    held_out = (world.held_out(CALIBRATION)[0], world.held_out(TEST)[-1])
    subject = world.left.loc[world.left["example_id"] == cells[-1][0], "subject_id"].item()
    return forget_together(world, {"ids": (cells[0][0], held_out[0])}, {"subjects": (subject,)}, {"ids": held_out[1:]})


def more_data(world: World) -> World:
    """Add rows, two of them of the subject that has most examples."""
    more = made_up(kind_of(world), num_train=9, num_held_out=1, batch=1 + world.added)
    more.loc[:1, "subject_id"] = busiest(world)
    return grow(world, more)


def a_subject_of_old_and_new_slices(world: World) -> World:
    subject = busiest(world)
    own = world.left[world.left["subject_id"] == subject]
    assert own["slice"].nunique() == 2
    assert own["shard"].nunique() == 1
    return forget(world, subjects=(subject,))


def a_slice(world: World) -> World:
    return forget(world, ids=tuple(largest(world)))


def a_shard(world: World) -> World:
    ids = tuple(example for ids in world.cells(0) for example in ids)
    after = forget(world, ids=ids)
    assert not any("shard-0" in made for made in after.run.ensemble.predictions.values())
    return after


STEPS: tuple[Step, ...] = (
    one_id,
    another_of_its_slice,
    the_remainder,
    a_batch,
    more_data,
    a_subject_of_old_and_new_slices,
    a_slice,
    a_shard,
)


def largest(world: World) -> list[str]:
    return max(world.cells(), key=len)


def busiest(world: World) -> str:
    left = world.left
    return str(left[left["split"] == TRAIN].groupby("subject_id").size().idxmax())


def kind_of(world: World) -> str:
    return "text" if world.run.examples.is_text else "tabular"


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=[pytest.mark.slow] if cell.num_shards == 5 else []) for cell in (*TABLE, *TABULAR)],
    ids=str,
)
def test_unlearning_is_training_without_the_ids(cell, tmp_path, tokenizer):
    assert all(NUM_TRAIN % count for count in (3, 5, 6, 20))
    world = begin(settings_of(cell, tmp_path, tokenizer), tmp_path)
    assert len(world.run.partition.example_ids) == NUM_TRAIN
    elsewhere = tmp_path / "elsewhere"
    assert differences(published(world), oracle(world, elsewhere)) == []
    for step in STEPS:
        if step is a_shard:  # before it, all that was never retrained is held against training in an empty store
            assert differences(published(world), oracle(world, tmp_path / "empty")) == []
        world = step(world)
        assert differences(published(world), oracle(world, elsewhere)) == [], step.__name__
    assert world.run.store.verify() == {}


def watched(folder: Path) -> World:
    """Train the run that broken trainers are tried on: a perceptron, two shards of three slices."""
    frame = made_up("tabular")
    dealt = PartitionSettings(num_shards=2, num_slices=3)
    return begin(settings_for(frame, folder / "own.parquet", PERCEPTRON, partition=dealt), folder)


def forget_unwatched(world: World, *gone: str) -> World:
    """Unlearn, with no look at plan and certificate: those of a broken trainer need not be right."""
    unlearn(
        world.run,
        RequestSettings(ids=gone),
        keys=world.keys,
        settings=QUIETLY,
        execution=HERE,
        on_event=quiet,
    )
    return replace(world, gone=world.gone | set(gone))


def seed_by_size(patch: pytest.MonkeyPatch) -> None:
    fit = training._fit

    def fitted(workshop: Any, stage: Any, *rest: Any, **options: Any) -> Any:
        return fit(workshop, replace(stage, seed=stage.seed + len(workshop.inputs)), *rest, **options)

    patch.setattr(training, "_fit", fitted)


def leaking_moments(patch: pytest.MonkeyPatch) -> None:
    configure, state_of = Classifier.configure_optimizers, Classifier.trained_state
    left: dict[str, dict[str, torch.Tensor]] = {}

    def configured(self: Classifier) -> torch.optim.Optimizer:
        adamw = configure(self)
        for name, master in self._masters.items():
            if name in left:
                adamw.state[master] = {key: value.clone() for key, value in left[name].items()}
        return adamw

    def remembered(self: Classifier) -> dict[str, torch.Tensor]:
        left.update({name: dict(self._adamw.state[master]) for name, master in self._masters.items()})
        return state_of(self)

    patch.setattr(Classifier, "configure_optimizers", configured)
    patch.setattr(Classifier, "trained_state", remembered)


def names_without_ids(patch: pytest.MonkeyPatch) -> None:
    _names_of_first(patch, lambda count: 0)


def names_without_the_remainder(patch: pytest.MonkeyPatch) -> None:
    _names_of_first(patch, lambda count: (count - 1) // 3 * 3)


def scaler_of_all_slices(patch: pytest.MonkeyPatch) -> None:
    open_workshop, fit = training._open_workshop, training.standardizer_state
    every: list[Any] = []

    def opened(*args: Any) -> Any:
        workshop = open_workshop(*args)
        every[:] = [workshop.inputs]
        return workshop

    patch.setattr(training, "_open_workshop", opened)
    patch.setattr(training, "standardizer_state", lambda network, inputs: fit(network, every[0]))


def weights_of_the_old_slice(patch: pytest.MonkeyPatch) -> None:
    weights_of = training.trained_weights

    def found(store: Store, stages: Any, index: int) -> Any:
        wanted = stages[index + 1].lineage
        for name in store.names("checkpoint"):
            settings = store.manifest(name).lineage.settings
            same = all(settings[key] == wanted.settings[key] for key in ("constituent", "slice"))
            if same and name != wanted.name:
                return store.get(name).tensors
        return weights_of(store, stages, index)

    patch.setattr(training, "trained_weights", found)


def _names_of_first(patch: pytest.MonkeyPatch, number_of: Callable[[int], int]) -> None:
    """Let names cover only some ids of a slice, and no count; leave out purge and proof, which would find that out."""
    fingerprint = lineage.fingerprint

    def blind(kind: str, parents: Any, inputs: Any, settings: Any, *, examples: Any = (), contents: str = "") -> str:
        if kind == "checkpoint":
            examples, contents = examples[: number_of(len(examples))], ""
            settings = {**settings, "presentations": 0}
        return fingerprint(kind, parents, inputs, settings, examples=examples, contents=contents)

    patch.setattr(lineage, "fingerprint", blind)
    patch.setattr(unlearning, "_purge", lambda *args: None)
    patch.setattr(unlearning, "attest", lambda *args: ())


def test_the_comparison_passes_what_is_exact(tmp_path):
    world = watched(tmp_path)
    world = forget_unwatched(world, world.cell(0, 1)[-1])
    assert differences(published(world), oracle(world, tmp_path / "empty")) == []


@pytest.mark.parametrize(
    ("broken", "place", "seen_at"),
    [
        (seed_by_size, 2, 0),
        (leaking_moments, 1, 1),
        (names_without_ids, 1, 1),
        (names_without_the_remainder, 1, 1),
        (scaler_of_all_slices, 2, 0),
        (weights_of_the_old_slice, 1, 1),
    ],
)
def test_the_comparison_fails_a_broken_trainer_that_unlearns_as_it_trains(
    broken, place, seen_at, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        broken(patch)
        world = watched(tmp_path)
        world = forget_unwatched(world, world.cell(0, place)[-1])
    with monkeypatch.context() as patch:  # anew, as in another process: what leaked is not there
        broken(patch)
        found = differences(published(world), oracle(world, tmp_path / "empty"))
    assert ("shard-0", seen_at) in found
    assert ("shard-0", TEST) in found


def test_the_comparison_fails_a_trainer_that_drops_the_last_batch(tmp_path, monkeypatch):
    def few(*args: Any, **options: Any) -> list[Any]:
        batches = training_batches(*args, **options)
        return batches[:-1] or batches

    with monkeypatch.context() as patch:
        patch.setattr(training, "training_batches", few)
        world = watched(tmp_path)
    assert ("shard-0", 2) in differences(published(world), oracle(world, tmp_path / "empty"))


def test_the_comparison_sees_what_is_missing_or_too_much():
    here, more = {("shard-0", 0): ("a", "b")}, {("shard-0", 0): ("a", "b"), ("shard-1", "test"): ("c", "d")}
    assert differences(here, dict(here)) == []
    assert differences(here, more) == differences(more, here) == [("shard-1", "test")]
    assert differences({("shard-0", 0): ("a", None)}, here) == [("shard-0", 0)]
