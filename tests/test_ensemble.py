from __future__ import annotations

import string
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from chains import LOGISTIC, TINY_TEXT, assembled, digests_of, run_of, sampled, trained
from fairsisa.errors import ConfigError
from fairsisa.execution import Event
from fairsisa.settings import AGGREGATIONS, PartitionSettings
from fairsisa.sisa import ensemble, training
from fairsisa.sisa.chain import plan_stages
from fairsisa.sisa.ensemble import PredictTask, aggregate, predict_constituent, read_predictions
from fairsisa.store import Store
from fairsisa.tables import Predictions

HEAD, LORA = replace(TINY_TEXT, trains="head"), replace(TINY_TEXT, trains="lora", lora_rank=2)


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(2, 4)))
    levels = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3)))
    raw = (levels + 1.0).astype(np.float32)
    scores = raw / raw.sum(axis=2, keepdims=True)
    ids = draw(st.lists(st.text(string.printable, min_size=1), min_size=shape[0], max_size=shape[0], unique=True))
    return Predictions(tuple(ids), tuple(f"shard-{k}" for k in range(shape[1])), scores)


def by_hand(votes: list[int]) -> int:
    """Return the most frequent vote; of several, the lowest."""
    counts = Counter(votes)
    return min(label for label, count in counts.items() if count == max(counts.values()))


@given(predictions())
def test_majority_vote_is_the_mode_of_the_votes(made):
    scores = aggregate(made, "majority_vote", weights=())
    votes = [[int(np.argmax(row)) for row in rows] for rows in made.scores]
    assert scores.argmax(axis=1).tolist() == [by_hand(row) for row in votes]
    assert scores.argmax(axis=1).tolist() == stats.mode(np.asarray(votes), axis=1).mode.tolist()
    counted = [[row.count(label) / len(row) for label in range(made.scores.shape[2])] for row in votes]
    np.testing.assert_allclose(scores, counted)


@given(predictions(), st.data())
def test_scores_are_averaged_as_said(made, data):
    num_members = len(made.constituents)
    weights = data.draw(st.lists(st.integers(1, 50), min_size=num_members, max_size=num_members))
    mean = aggregate(made, "mean_score", weights=weights)
    weighted = aggregate(made, "weighted_score", weights=weights)
    for row, rows in enumerate(made.scores.astype(np.float64)):
        np.testing.assert_allclose(mean[row], sum(rows) / num_members)
        expected = sum(weight * scores for weight, scores in zip(weights, rows, strict=True)) / sum(weights)
        np.testing.assert_allclose(weighted[row], expected)
    equal = aggregate(made, "weighted_score", weights=[3.0] * num_members)
    np.testing.assert_allclose(equal, mean)


@given(predictions(), st.sampled_from(AGGREGATIONS))
def test_every_aggregation_gives_probabilities(made, name):
    scores = aggregate(made, name, weights=[1.0] * len(made.constituents), seed=3)
    assert scores.dtype == np.float64
    assert scores.shape == (len(made.example_ids), made.scores.shape[2])
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, rtol=1e-6)


@given(predictions(), st.integers(0, 2**62), st.randoms(use_true_random=False))
def test_a_random_member_stays_the_same_for_the_same_example(made, seed, random):
    scores = dict(zip(made.example_ids, aggregate(made, "random_member", weights=(), seed=seed), strict=True))
    rows = list(range(len(made.example_ids)))
    random.shuffle(rows)
    for batch in ([row] for row in rows):
        check_members(made, batch, scores, seed)
    check_members(made, rows, scores, seed)


def check_members(made: Predictions, rows: list[int], expected: dict[str, np.ndarray], seed: int) -> None:
    ids = tuple(made.example_ids[row] for row in rows)
    part = Predictions(ids, made.constituents, made.scores[rows])
    for example, row, scores in zip(ids, rows, aggregate(part, "random_member", weights=(), seed=seed), strict=True):
        assert scores.tolist() == expected[example].tolist()
        assert scores.tolist() in made.scores[row].astype(np.float64).tolist()


def test_random_members_are_drawn_alike_and_anew_for_another_seed():
    num_examples, num_members = 6000, 3
    one_hot = np.broadcast_to(np.eye(num_members, dtype=np.float32), (num_examples, num_members, num_members))
    ids = tuple(f"example-{row}" for row in range(num_examples))
    made = Predictions(ids, tuple("abc"), one_hot)
    drawn = [aggregate(made, "random_member", weights=(), seed=seed).argmax(axis=1) for seed in (0, 1)]
    for members in drawn:
        assert stats.chisquare(np.bincount(members, minlength=num_members)).pvalue > 1e-4
    table = np.zeros((num_members, num_members))
    np.add.at(table, (drawn[0], drawn[1]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_a_tie_goes_to_the_class_of_lower_index():
    scores = np.asarray([[[0.2, 0.8], [0.9, 0.1]], [[0.5, 0.5], [0.5, 0.5]]], dtype=np.float32)
    made = Predictions(("a", "b"), ("one", "two"), scores)
    assert aggregate(made, "majority_vote", weights=()).argmax(axis=1).tolist() == [0, 0]
    assert aggregate(made, "majority_vote", weights=()).tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_an_unknown_aggregation_names_the_nearest():
    made = Predictions(("a",), ("one",), np.asarray([[[0.5, 0.5]]], dtype=np.float32))
    with pytest.raises(ConfigError, match=r"got 'majority_votes'\. Did you mean 'majority_vote'\?"):
        aggregate(made, "majority_votes", weights=())


@pytest.mark.parametrize("model", [LOGISTIC, HEAD, TINY_TEXT, LORA], ids=["logistic", "head", "full", "lora"])
def test_predictions_are_made_once_and_are_those_of_the_last_checkpoint(model, tmp_path, monkeypatch):
    settings = run_of(model, partition=PartitionSettings(num_shards=1, num_slices=2))
    assembly = assembled(settings, tmp_path)
    trained(assembly)
    _, task = assembly.predict_tasks()[0]
    events: list[Event] = []
    name = predict_constituent(task, events.append)
    assert name is not None
    assert [(event.kind, event.values["examples"]) for event in events] == [("predicted", len(task.inputs))]
    artefact = Store(tmp_path).get(name)
    checkpoint = plan_stages(task.chain)[-1].lineage.name
    assert artefact.lineage.parents == (checkpoint,)
    assert artefact.lineage.examples == task.inputs.example_ids
    scores = artefact.tensors["scores"]
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(scores)))
    before = digests_of(tmp_path, None)
    monkeypatch.setattr(ensemble, "run_batched", lambda *args, **kwargs: pytest.fail("predicted again"))
    monkeypatch.setattr(training, "run_batched", lambda *args, **kwargs: pytest.fail("features made again"))
    assert predict_constituent(task, events.append) == name
    assert len(events) == 1
    assert digests_of(tmp_path, None) == before


def test_a_logistic_constituent_predicts_by_its_own_weights(tmp_path):
    settings = run_of(LOGISTIC, partition=PartitionSettings(num_shards=1, num_slices=2))
    assembly = assembled(settings, tmp_path)
    checkpoint = trained(assembly)[-1].checkpoint
    _, task = assembly.predict_tasks()[0]
    name = predict_constituent(task, lambda event: None)
    assert name is not None
    kept = {key: value.double().numpy() for key, value in Store(tmp_path).get(checkpoint).tensors.items()}
    features = (np.asarray(task.inputs.features, dtype=np.float64) - kept["0.mean"]) / kept["0.scale"]
    logits = features @ kept["1.weight"].T + kept["1.bias"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(Store(tmp_path).get(name).tensors["scores"], expected, rtol=1e-4, atol=1e-6)


def test_an_emptied_slice_predicts_by_the_weights_before_it(tmp_path):
    settings = run_of(LOGISTIC)
    last = sampled(settings)[1].slice_ids(0, 2)
    full, emptied = assembled(settings, tmp_path), assembled(settings, tmp_path, gone=last)
    results = trained(emptied)
    _, task = emptied.predict_tasks()[0]
    assert task.chain.constituent == "shard-1" or not task.chain.slices[-1]
    task = next(task for _, task in emptied.predict_tasks() if task.chain.constituent == "shard-0")
    name = predict_constituent(task, lambda event: None)
    assert name is not None
    empty = next(result for result in results if result.status == "empty")
    assert Store(tmp_path).manifest(name).lineage.parents == (empty.checkpoint,)
    shorter = replace(task.chain, blocks=task.chain.blocks[:-1])
    assert [s.lineage.examples for s in plan_stages(shorter)] == [s.lineage.examples for s in plan_stages(task.chain)][
        :-1
    ]
    assert full.constituents[0].blocks[:-1] == task.chain.blocks[:-1]


@pytest.mark.parametrize("model", [LOGISTIC, HEAD, TINY_TEXT], ids=["logistic", "head", "full"])
def test_an_emptied_shard_leaves_the_vote(model, tmp_path):
    settings = run_of(model)
    partition = sampled(settings)[1]
    gone = [example for place in range(3) for example in partition.slice_ids(0, place)]
    assembly = assembled(settings, tmp_path, gone=gone)
    trained(assembly)
    tasks = [task for split, task in assembly.predict_tasks() if split == "test"]
    names = {task.chain.constituent: predict_constituent(task, lambda event: None) for task in tasks}
    assert names.pop("shard-0") is None
    kept = read_predictions(Store(tmp_path), {member: str(name) for member, name in names.items()})
    assert kept.constituents == ("shard-1",)
    assert kept.example_ids == assembly.held_out["test"]


def test_predictions_are_read_in_the_order_asked_and_row_by_row(tmp_path):
    assembly = assembled(run_of(LOGISTIC), tmp_path)
    trained(assembly)
    tasks = {task.chain.constituent: task for split, task in assembly.predict_tasks() if split == "test"}
    names = {member: str(predict_constituent(task, lambda event: None)) for member, task in tasks.items()}
    for order in (("shard-0", "shard-1"), ("shard-1", "shard-0")):
        table = read_predictions(Store(tmp_path), {member: names[member] for member in order})
        assert table.constituents == order
        for place, member in enumerate(order):
            scores = Store(tmp_path).get(names[member]).tensors["scores"].numpy()
            np.testing.assert_array_equal(table.scores[:, place], scores)
    task = tasks["shard-0"]
    backwards = PredictTask(task.chain, task.inputs.take(range(len(task.inputs))[::-1]))
    name = str(predict_constituent(backwards, lambda event: None))
    assert name != names["shard-0"]
    other = read_predictions(Store(tmp_path), {"shard-0": name})
    assert other.example_ids == task.inputs.example_ids[::-1]
    forwards = Store(tmp_path).get(names["shard-0"]).tensors["scores"].numpy()
    np.testing.assert_allclose(other.scores[::-1, 0], forwards, rtol=1e-5)
