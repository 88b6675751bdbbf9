from __future__ import annotations

import hashlib
import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.association import associations, effect_size, permutation_p_value
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import seat
from fairsisa.bias.catalogue import find_benchmark
from fairsisa.bias.evaluation import limited
from fairsisa.bias.items import Item
from fairsisa.data.sources import SourceFile
from fairsisa.errors import DataError

METRICS = {metric.name: metric for metric in seat.BENCHMARKS[0].metrics}


def _cosine(one: list[float], two: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, two, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in two))


def _plain_weat(sets: dict[str, list[list[float]]]) -> tuple[dict[str, list[float]], float]:
    """WEAT in plain loops, after Caliskan et al. 2017: s of the targets, and the effect size."""
    values = {
        side: [
            sum(_cosine(w, a) for a in sets["A"]) / len(sets["A"])
            - sum(_cosine(w, b) for b in sets["B"]) / len(sets["B"])
            for w in sets[side]
        ]
        for side in "XY"
    }
    both = values["X"] + values["Y"]
    mean = sum(both) / len(both)
    spread = math.sqrt(sum((v - mean) ** 2 for v in both) / (len(both) - 1))
    difference = sum(values["X"]) / len(values["X"]) - sum(values["Y"]) / len(values["Y"])
    return values, difference / spread


def _items(sizes: dict[str, int], test: str = "made") -> list[Item]:
    return [
        Item(
            f"{test}/{role}/{place}",
            "",
            (f"{role}{place}",),
            f"{role}{place}",
            {"test": test, "role": role, "domain": "other"},
        )
        for role, size in sizes.items()
        for place in range(size)
    ]


def _answers(items: list[Item], vectors: np.ndarray) -> Answers:
    return answers_of((Answer(item.item_id, 0, 0.0) for item in items), vectors.astype(np.float32))


def _value(name: str, columns: dict[str, np.ndarray], weights: np.ndarray | None = None) -> np.ndarray:
    weights = np.ones((len(columns["value"]), 1)) if weights is None else weights
    return METRICS[name].value(columns, weights)


def _columns(items: list[Item], vectors: np.ndarray) -> dict[str, np.ndarray]:
    scores = seat.judge(items, _answers(items, vectors))
    return {name: scores[name].to_numpy() for name in scores.columns}


sizes = st.fixed_dictionaries({role: st.integers(2, 5) for role in "XYAB"})


@given(sizes, st.integers(0, 999))
def test_values_and_effect_size_are_those_of_plain_loops(sizes: dict[str, int], seed: int) -> None:
    items = _items(sizes)
    vectors = np.random.default_rng(seed).normal(size=(len(items), 6)).astype(np.float32)
    rows = {role: [place for place, item in enumerate(items) if item.labels["role"] == role] for role in "XYAB"}
    values, effect = _plain_weat({role: vectors[places].astype(float).tolist() for role, places in rows.items()})
    columns = _columns(items, vectors)
    np.testing.assert_allclose(columns["value"][rows["X"] + rows["Y"]], values["X"] + values["Y"], atol=1e-12)
    assert np.isnan(columns["value"][rows["A"] + rows["B"]]).all()
    np.testing.assert_allclose(_value("effect_size", columns), effect, atol=1e-9)
    np.testing.assert_allclose(_value("mean_absolute_effect_size", columns), abs(effect), atol=1e-9)


@settings(max_examples=50)
@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 99), st.booleans())
def test_exact_p_value_counts_every_way_and_ties(first: int, second: int, seed: int, coarse: bool) -> None:
    values = np.random.default_rng(seed).normal(size=first + second)
    values = np.round(values) if coarse else values
    in_first = np.arange(first + second) < first
    observed = sum(values[:first])
    ways = [sum(values[list(chosen)]) for chosen in combinations(range(first + second), first)]
    expected = sum(way >= observed - 1e-9 for way in ways) / len(ways)
    assert permutation_p_value(values, in_first, seed=seed) == pytest.approx(expected)
    by_scipy = stats.permutation_test(
        (values[:first], values[first:]),
        lambda x, y: np.sum(x),
        permutation_type="independent",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert by_scipy.pvalue == pytest.approx(expected)


def test_drawn_p_value_agrees_with_scipy_and_with_the_exact_one() -> None:
    values = np.random.default_rng(3).normal(size=16)
    in_first = np.arange(16) % 2 == 0
    exact = permutation_p_value(values, in_first, seed=0)
    drawn = permutation_p_value(values, in_first, seed=0, num_permutations=12_000)
    assert drawn != exact
    error = 4 * math.sqrt(exact * (1 - exact) / 12_000)
    assert abs(drawn - exact) < error
    by_scipy = stats.permutation_test(
        (values[in_first], values[~in_first]),
        lambda x, y, axis: np.sum(x, axis=axis),
        vectorized=True,
        alternative="greater",
        n_resamples=12_000,
        rng=np.random.default_rng(0),
    )
    assert abs(by_scipy.pvalue - exact) < error
    assert drawn == permutation_p_value(values, in_first, seed=0, num_permutations=12_000)
    assert drawn != permutation_p_value(values, in_first, seed=1, num_permutations=12_000)


def test_least_drawn_p_value_is_the_observed_choice_alone() -> None:
    values = np.where(np.arange(40) < 20, 1.0, 0.0)
    assert permutation_p_value(values, np.arange(40) < 20, seed=0, num_permutations=500) == 1 / 500
    assert permutation_p_value(np.zeros(40), np.arange(40) < 20, seed=0, num_permutations=500) == 1.0


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(2, 5), st.integers(2, 5))
def test_weights_are_repetitions(seed: int, first: int, second: int) -> None:
    rng = np.random.default_rng(seed)
    values, in_first = rng.normal(size=first + second), np.arange(first + second) < first
    weights = rng.integers(0, 3, size=(first + second, 4)).astype(float)
    for column, found in zip(weights.T.astype(int), effect_size(values, in_first, weights), strict=True):
        repeated, side = np.repeat(values, column), np.repeat(in_first, column)
        if side.all() or not side.any() or np.ptp(repeated) == 0:
            assert np.isnan(found)
            continue
        expected = (repeated[side].mean() - repeated[~side].mean()) / repeated.std(ddof=1)
        assert found == pytest.approx(expected)


def test_length_of_a_vector_does_not_count() -> None:
    rng = np.random.default_rng(0)
    w, a, b = rng.normal(size=(3, 4, 5))
    np.testing.assert_allclose(associations(w, a, b), associations(w * 7, a * 0.1, b * np.array([[1], [2], [3], [4]])))


def test_tests_do_not_depend_on_each_other_and_have_no_common_effect() -> None:
    rng = np.random.default_rng(1)
    sizes = {"X": 12, "Y": 12, "A": 3, "B": 3}
    one, two = _items(sizes, "one"), _items(sizes, "two")
    vectors = rng.normal(size=(60, 5))
    both = _columns([*one, *two], vectors)
    alone = _columns(one, vectors[:30])
    here = {name: column[:30] for name, column in both.items()}
    weights = np.column_stack([np.ones(30), rng.integers(0, 3, 30)]).astype(float)
    for name in ("effect_size", "p_value"):
        np.testing.assert_array_equal(_value(name, here, weights), _value(name, alone, weights))
        assert np.isnan(_value(name, both)).all()
    p_values = _value("p_value", here, weights)
    assert 0 < p_values[0] <= 1
    assert np.isnan(p_values[1])
    effects = [
        abs(_value("effect_size", {n: c[rows] for n, c in both.items()})[0]) for rows in (slice(30), slice(30, 60))
    ]
    np.testing.assert_allclose(_value("mean_absolute_effect_size", both), np.mean(effects))
    assert _value("share_significant", both)[0] in (0.0, 50.0, 100.0)


def test_sentence_without_a_vector_is_not_scored_and_left_out_of_its_set() -> None:
    items = _items({"X": 2, "Y": 2, "A": 3, "B": 2})
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    whole = [place for place in range(9) if place not in (1, 4)]
    gone = [
        Answer(item.item_id, 0, 0.0, reason="" if place in whole else "too long") for place, item in enumerate(items)
    ]
    vectors[[1, 4]] = np.nan
    scores = seat.judge(items, answers_of(gone, vectors))
    assert scores["state"].tolist() == ["scored" if place in whole else "not_scored" for place in range(9)]
    rest = seat.judge([items[place] for place in whole], _answers([items[place] for place in whole], vectors[whole]))
    np.testing.assert_array_equal(scores["value"][whole], rest["value"])


def test_answers_without_vectors_or_of_other_items_are_errors() -> None:
    items = _items(dict.fromkeys("XYAB", 2))
    with pytest.raises(DataError, match="Expected answers with vectors"):
        seat.judge(items, answers_of(Answer(item.item_id, 0, 0.0) for item in items))
    with pytest.raises(DataError, match="Expected one vector for each of 7 items, got 8"):
        seat.judge(items[1:], _answers(items, np.ones((8, 2))))


def test_sentence_twice_in_a_role_is_malformed(tmp_path: Path) -> None:
    examples = {part: {"category": part, "examples": ["It rains.", "It snows."]} for part in seat.ROLES}
    examples["attr1"]["examples"] = ["It rains.", "It rains."]
    text = json.dumps(examples)
    (tmp_path / "made.jsonl").write_text(text)
    source = SourceFile("made.jsonl", "https://example.org/made.jsonl", f"sha256:{_digest(text)}")
    table = seat.load_tests(Files(tmp_path, tmp_path), {"made": source})
    assert len(table.items) == 7
    assert [(bad.item_id, bad.reason) for bad in table.malformed] == [
        ("made/A/1", "'It rains.' occurs twice as A of made")
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.real_data
@pytest.mark.real_data
def test_a_part_of_the_tests_has_whole_tests(data_root: Path, tmp_path: Path) -> None:
    benchmark = find_benchmark("seat")[0]
    whole = benchmark.load(Files(data_root, tmp_path))
    part = limited(whole, 300, 0, benchmark.whole)
    tests = {item.labels["test"] for item in part.items}
    assert 300 <= len(part.items) < 1500
    assert part.items == tuple(item for item in whole.items if item.labels["test"] in tests)


@pytest.mark.real_data
def test_sentences_about_one_word_are_one_cluster(data_root: Path, tmp_path: Path) -> None:
    """Clusters are found out by comparing sets; the words that the sentences were made from are in the word tests."""
    files = Files(data_root, tmp_path)
    tables = {name: find_benchmark(name)[0].load(files) for name in ("seat", "weat")}
    clusters: dict[str, dict[tuple[str, str], set[str]]] = {"seat": {}, "weat": {}}
    for name, table in tables.items():
        for item in table.items:
            key = str(item.labels["test"]).removeprefix("sent-"), str(item.labels["role"])
            clusters[name].setdefault(key, set()).add(item.cluster)
    pairs = [(test, role) for test, role in clusters["weat"] if role in "XY" and (test, role) in clusters["seat"]]
    assert len(pairs) > 20
    for pair in pairs:
        words, sentences = clusters["weat"][pair], clusters["seat"][pair]
        assert abs(len(words) - len(sentences)) <= 1, pair
        assert len(words & sentences) >= 0.6 * len(words), pair
    names = {item.options[0]: item.cluster for item in tables["seat"].items if item.labels["test"] == "sent-weat6"}
    assert {names[text] for text in ("This is John.", "John is a person.", "Here is John.")} == {"john"}


def test_reported_tests_have_the_known_numbers_of_sentences(data_root: Path, tmp_path: Path) -> None:
    files = Files(data_root, tmp_path)
    sentences, words = (benchmark.load(files) for benchmark in seat.BENCHMARKS)
    assert (
        len({item.labels["test"] for item in sentences.items}),
        len({item.labels["test"] for item in words.items}),
    ) == (31, 19)
    assert not sentences.malformed
    assert not words.malformed
    # Counted in the 17 tests that bias-bench reports: 7,758 encodes of 3,116 sentences.
    reported = [item for item in sentences.items if item.labels["domain"] != seat.ELSEWHERE]
    assert len({item.labels["test"] for item in reported}) == 17
    assert (len(reported), len({item.options for item in reported})) == (7758, 3116)
    for test, sizes in (("sent-weat6", [64, 64, 101, 112]), ("sent-weat3", [256, 256, 215, 249])):
        roles = [item.labels["role"] for item in reported if item.labels["test"] == test]
        assert sorted(roles.count(role) for role in "XYAB") == sorted(sizes)
