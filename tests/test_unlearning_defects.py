"""What other implementations of SISA get wrong, one test a defect, so that it is not got wrong here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chains import LOGISTIC, PERCEPTRON
from fairsisa.execution import Event
from fairsisa.models.base import load_classifier, load_tokenizer
from fairsisa.models.classifier import Classifier, load_trained
from fairsisa.runs import evaluating
from fairsisa.runs.assembly import assemble
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.training import train_run
from fairsisa.runs.unlearning import queue_request, unlearn
from fairsisa.settings import PartitionSettings, PathSettings, RequestSettings
from fairsisa.sisa.ensemble import aggregate, read_predictions
from fairsisa.store import Store
from fairsisa.tables import TEST, Predictions
from golden import (
    HERE,
    NUM_TRAIN,
    QUIETLY,
    World,
    begin,
    differences,
    forget,
    forget_together,
    hurried,
    made_up,
    oracle,
    published,
    quiet,
    settings_for,
    small_tokenizer,
    tiny,
)


@pytest.fixture(scope="module", autouse=True)
def _hurried() -> Iterator[None]:
    with hurried():
        yield


@pytest.fixture
def world(tmp_path: Path) -> World:
    return trained(tmp_path)


def trained(folder: Path, **changes: Any) -> World:
    """Train a logistic regression, two shards of three slices, or what `changes` say."""
    folder.mkdir(exist_ok=True)
    values = {"partition": PartitionSettings(2, 3), **changes}
    model = values.pop("model", LOGISTIC)
    frame = values.pop("frame", None)
    frame = made_up("tabular") if frame is None else frame
    return begin(settings_for(frame, folder / "own.parquet", model, **values), folder, run=values.pop("run", "run"))


def checkpoints(world: World) -> dict[str, tuple[str, ...]]:
    return dict(world.run.ensemble.checkpoints)


def ids_behind(world: World) -> set[str]:
    store = world.run.store
    names = {name for steps in checkpoints(world).values() for name in steps}
    return {example for name in names for example in store.manifest(name).lineage.examples}


# cleverhans-lab/machine-unlearning, 1: the last slice's hash leaves out the remainder, whose deletion does nothing
def test_deleting_the_remainder_replaces_the_checkpoint_that_saw_it(world):
    before = checkpoints(world)
    last = world.cells(1)[-1][-1]
    assert last == world.run.partition.example_ids[-1]
    after = forget(world, ids=(last,))
    assert checkpoints(after)["shard-1"][-1] != before["shard-1"][-1]
    assert last not in ids_behind(after)
    assert world.run.store.find([last]) == ()


# cleverhans-lab/machine-unlearning, 2: the key ignores hyper-parameters, seed, number of slices, contents and order
def test_no_checkpoint_is_shared_by_runs_that_differ_in_what_training_reads(tmp_path):
    frame = made_up("tabular")
    shifted = frame.assign(**{name: frame[name] + 1e-3 for name in frame.columns if name.startswith("feature:")})
    settings = settings_for(frame, tmp_path / "own.parquet", LOGISTIC, partition=PartitionSettings(2, 3))
    others = {
        "learning rate": replace(settings, trainer=replace(settings.trainer, learning_rate=2e-2)),
        "weight decay": replace(settings, trainer=replace(settings.trainer, weight_decay=0.1)),
        "batch size": replace(settings, trainer=replace(settings.trainer, batch_size=16)),
        "epochs": replace(settings, trainer=replace(settings.trainer, max_epochs=3.0)),
        "seed": replace(settings, seed=1),
        "model": replace(settings, model=PERCEPTRON),
        "slices": replace(settings, partition=PartitionSettings(2, 4)),
        "contents": settings_for(shifted, tmp_path / "shifted.parquet", LOGISTIC, partition=PartitionSettings(2, 3)),
    }
    seen = names_of(begin(settings, tmp_path))
    for number, (what, other) in enumerate(others.items()):
        names = names_of(begin(other, tmp_path, run=f"run-{number}"))
        assert not names & seen, what
        seen |= names


def names_of(world: World) -> set[str]:
    return {name for steps in checkpoints(world).values() for name in steps}


# cleverhans-lab/machine-unlearning, 3 and 4; torchunlearn, e: optimizer and RNG unsaved, recovery repeats an epoch
@pytest.mark.parametrize("optimizer_state", ["fresh", "carried"])
def test_a_run_stopped_in_the_middle_of_a_slice_ends_as_if_it_had_not_been(optimizer_state, tmp_path):
    frame = made_up("tabular")
    settings = settings_for(frame, tmp_path / "own.parquet", PERCEPTRON, partition=PartitionSettings(1, 3))
    trainer = replace(settings.trainer, optimizer_state=optimizer_state, log_every_n_steps=1)
    settings = replace(settings, trainer=replace(trainer, max_epochs=40.0))

    def stop(event: Event) -> None:
        if event.kind == "metrics" and event.slice == 1:
            raise KeyboardInterrupt

    run, paths = Run(tmp_path / "run"), PathSettings(store=str(tmp_path / "store"))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_run(settings, run, paths=paths, execution=HERE, on_event=stop)
    assert len(Store(tmp_path / "store").names("checkpoint")) == 1
    (tmp_path / "again").mkdir()
    world = begin(settings, tmp_path)
    assert differences(published(world), published(begin(settings, tmp_path / "again"))) == []


# cleverhans-lab/machine-unlearning, 4: a torn recovery file is taken for a checkpoint
def test_a_torn_checkpoint_is_trained_again(world):
    before = published(world)
    name = checkpoints(world)["shard-0"][1]
    payload = next(world.folder.rglob(f"{name}.safetensors"))
    payload.write_bytes(payload.read_bytes()[:-3])
    assert not world.run.store.has(name)
    settings = world.run.settings
    assert differences(published(begin(settings, world.folder)), before) == []


# cleverhans-lab/machine-unlearning, 4: checkpoints that contain deleted points are never purged
def test_no_file_keeps_an_old_checkpoint_its_name_or_the_id(world):
    gone = world.cell(0, 0)[0]
    old = checkpoints(world)["shard-0"]
    forget(world, ids=(gone,))
    files = [path for path in world.folder.rglob("*") if path.is_file() and path != world.folder / "own.parquet"]
    assert len(files) > 10
    assert not [path for path in files for name in old if name in path.name]
    assert not [path.name for path in files if gone.encode() in path.read_bytes()]


# cleverhans-lab/machine-unlearning, 5: the same command a second time fails on what the first one left
def test_training_and_unlearning_again_change_nothing(world):
    gone = world.cell(0, 1)[0]
    after = published(forget(world, ids=(gone,)))
    options: dict[str, Any] = {"keys": world.keys, "settings": QUIETLY, "execution": HERE, "on_event": quiet}
    again = unlearn(world.run, RequestSettings(ids=(gone,)), **options)
    assert again.certificates == ()
    assert published(world) == after
    begin(world.run.settings, world.folder)
    assert published(world) == after


# cleverhans-lab/machine-unlearning, 6: shards of unequal size fail, and so does every request
@pytest.mark.parametrize("num_shards", [2, 3, 5])
def test_shards_of_unequal_size_train_and_unlearn(num_shards, tmp_path):
    world = trained(tmp_path, partition=PartitionSettings(num_shards, 2))
    sizes = [sum(map(len, world.cells(shard))) for shard in range(num_shards)]
    assert NUM_TRAIN % num_shards
    assert len(set(sizes)) > 1
    world = forget(world, ids=(world.cells(num_shards - 1)[0][0],))
    assert differences(published(world), oracle(world, tmp_path / "empty")) == []


# cleverhans-lab/machine-unlearning, 7: a request replaces the one before it
def test_requests_add_up(world):
    first, second = world.cell(0, 0)[0], world.cell(1, 0)[0]
    queue_request(world.run, RequestSettings(ids=(first,)), keys=world.keys)
    world = forget_together(world, {"ids": (first,)}, {"ids": (second,)})
    assert not {first, second} & (ids_behind(world) | set(world.run.examples.example_ids))
    assert differences(published(world), oracle(world, world.folder / "empty")) == []


# cleverhans-lab/machine-unlearning, 8: no model.eval(), so that dropout is active when the ensemble predicts
def test_predictions_are_made_without_dropout(tmp_path):
    model = replace(tiny("full", small_tokenizer(tmp_path / "tokenizer")), dropout=0.5)
    world = trained(tmp_path, model=model, frame=made_up("text"), partition=PartitionSettings(1, 1))
    run, store = world.run, world.run.store
    made = read_predictions(store, {"shard-0": run.ensemble.predictions[TEST]["shard-0"]})
    chain = assemble(run.settings, run.examples, run.partition, store.location).constituents[0]
    assert chain.base is not None
    network = load_classifier(chain.base, model, 2, chain.init_seed).eval()
    load_trained(network, store.get(checkpoints(world)["shard-0"][0]).tensors)
    tokenizer = load_tokenizer(chain.base)
    for row, text in enumerate(run.examples.split(TEST)["text"]):
        tokens = tokenizer([text], truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            logits = network(**{key: tokens[key] for key in ("input_ids", "attention_mask")}).logits
        np.testing.assert_allclose(made.scores[row, 0], logits.softmax(dim=1)[0], rtol=1e-5)


# cleverhans-lab/machine-unlearning, 11: proportional weights are the sizes before the deletion
def test_shards_weigh_what_they_hold_after_the_deletion(world, monkeypatch):
    heard: list[list[float]] = []

    def listening(predictions: Predictions, name: str, *, weights: Any, seed: int) -> np.ndarray:
        heard.append(list(weights))
        return aggregate(predictions, name, weights=weights, seed=seed)

    world = forget(world, ids=tuple(world.cell(0, 0) + world.cell(0, 1)))
    monkeypatch.setattr(evaluating, "aggregate", listening)
    evaluate_run(world.run, execution=HERE, on_event=quiet)
    assert heard[0] == [sum(map(len, world.cells(shard))) for shard in range(2)]


# cleverhans-lab/machine-unlearning, 11: a tie goes to a class by accident of its index; here by a stated rule
def test_a_tied_vote_goes_to_the_negative_class():
    scores = np.array([[[0.1, 0.9], [0.9, 0.1]]], dtype=np.float32)
    tied = aggregate(Predictions(("a",), ("shard-0", "shard-1"), scores), "majority_vote", weights=[1, 1])
    assert tied.tolist() == [[0.5, 0.5]]
    assert tied.argmax(axis=1).tolist() == [0]


# privacy-adhering-machine-unlearning-nlp: filenames.pop(-1) takes the last shard out of every vote
def test_the_last_shard_votes(tmp_path):
    world = trained(tmp_path, partition=PartitionSettings(3, 2))
    names = world.run.ensemble.predictions[TEST]
    assert set(names) == {"shard-0", "shard-1", "shard-2"}
    evaluate_run(world.run, execution=HERE, on_event=quiet)
    votes = read_predictions(world.run.store, names).votes
    assert votes.shape[1] == 3
    last = Predictions(("a",), ("shard-0", "shard-1", "shard-2"), np.eye(2, dtype=np.float32)[[[0, 1, 1]]])
    assert aggregate(last, "majority_vote", weights=[1, 1, 1]).argmax(axis=1).tolist() == [1]


# torchunlearn, a: resurrection; unlearning 5 and then 40 trains on 5 again
def test_what_was_forgotten_first_is_not_trained_on_when_another_is_forgotten(world, monkeypatch):
    first, second = world.cell(0, 1)[0], world.cell(0, 1)[-1]
    row = world.rows.set_index("example_id").filter(like="feature:").loc[first].to_numpy(np.float32)
    shown: list[np.ndarray] = []
    step = Classifier._step

    def watching(self: Classifier, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        shown.append(batch["features"].numpy().copy())
        return step(self, batch)

    world = forget(world, ids=(first,))
    monkeypatch.setattr(Classifier, "_step", watching)
    world = forget(world, ids=(second,))
    assert shown
    assert not (np.concatenate(shown) == row).all(axis=1).any()
    assert differences(published(world), oracle(world, world.folder / "empty")) == []


# torchunlearn, b: slice boundaries are counted anew after a deletion, and points move into earlier checkpoints
def test_no_example_moves_when_others_are_forgotten(world):
    gone = world.cell(0, 0)[1:]
    behind = {(shard, place): world.cell(shard, place) for shard in range(2) for place in range(3)}
    world = forget(world, ids=tuple(gone))
    world = forget(world, ids=(world.cell(0, 1)[0],))
    for shard in range(2):
        for place, name in enumerate(checkpoints(world)[f"shard-{shard}"]):
            kept = [example for example in behind[shard, place] if example not in world.gone]
            assert sorted(world.run.store.manifest(name).lineage.examples) == kept


# torchunlearn, c: N mod S and shard mod R points are never trained
@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (5, 4)])
def test_every_training_example_is_behind_a_checkpoint(shape, tmp_path):
    world = trained(tmp_path, partition=PartitionSettings(*shape))
    assert len(ids_behind(world)) == NUM_TRAIN
    assert ids_behind(world) == set(world.run.examples.split("train")["example_id"])


# torchunlearn, d: retraining starts one slice too early
def test_the_slices_before_the_deletion_are_not_trained_again(world):
    before, told = checkpoints(world), list[tuple[str | None, int | None]]()

    def listen(event: Event) -> None:
        if event.kind == "slice_started":
            told.append((event.constituent, event.slice))

    request = RequestSettings(ids=(world.cell(0, 1)[0],))
    unlearn(world.run, request, keys=world.keys, settings=QUIETLY, execution=HERE, on_event=listen)
    assert told == [("shard-0", 1), ("shard-0", 2)]
    after = checkpoints(world)
    assert [a == b for a, b in zip(before["shard-0"], after["shard-0"], strict=True)] == [True, False, False]


# lethe-ml: the retain set is dealt anew, and all shards are trained again
def test_other_shards_keep_their_checkpoints_and_predictions(world):
    before = published(world)
    after = published(forget(world, ids=(world.cell(0, 0)[0],)))
    own = {where for where in before if where[0] == "shard-1"}
    assert len(own) == 5
    assert set(differences(before, after)) == set(before) - own
