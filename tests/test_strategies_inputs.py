from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fairsisa.errors import DataError
from fairsisa.fairness.strategies.inputs import (
    BLOCK,
    Inputs,
    blocks,
    count_positive,
    count_votes,
    majority,
    read_groups,
    read_inputs,
)
from fairsisa.tables import Predictions

votes_of_two = hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 70)), elements=st.integers(0, 1))
votes_of_many = hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 12)), elements=st.integers(0, 4))


@given(votes_of_two)
def test_counts_and_majority_of_two_classes(votes: np.ndarray) -> None:
    expected = [sum(int(vote) for vote in row) for row in votes]
    assert count_positive(votes).tolist() == expected
    assert majority(votes, 2).tolist() == [int(2 * count > votes.shape[1]) for count in expected]


@given(votes_of_many)
def test_counts_and_majority_of_many_classes(votes: np.ndarray) -> None:
    expected = [[list(row).count(c) for c in range(5)] for row in votes]
    assert count_votes(votes, 5).tolist() == expected
    assert majority(votes, 5).tolist() == [counts.index(max(counts)) for counts in expected]


@given(hnp.arrays(np.float64, (6, 3), elements=st.floats(0, 1)))
def test_positive_scores_are_scores_of_two_classes(scores: np.ndarray) -> None:
    positive, both = read_inputs(scores), read_inputs(np.stack([1.0 - scores, scores], axis=2))
    assert (positive.votes == (scores > 0.5)).all()
    np.testing.assert_allclose(positive.mean_scores, both.mean_scores, atol=1e-12)
    np.testing.assert_allclose(positive.mean_positive, scores.mean(axis=1), atol=1e-12)
    assert positive.scores is not None
    assert positive.scores.shape == (6, 3, 2)


def test_a_tie_goes_to_the_lower_class() -> None:
    assert read_inputs(np.array([[0.5]])).votes.tolist() == [[0]]
    assert read_inputs(np.array([[[0.5, 0.5]]])).votes.tolist() == [[0]]
    assert read_inputs(np.array([[[0.2, 0.4, 0.4]]])).votes.tolist() == [[1]]


@pytest.mark.parametrize(
    ("votes", "classes"),
    [
        (np.array([[0, 1], [1, 1]], dtype=np.int64), np.array([0, 1])),
        (np.array([[0, 1], [1, 1]], dtype=np.int8), np.array([0, 1])),
        (np.array([[-1, 1], [1, 1]]), np.array([-1, 1])),
        (np.array([[3, 4], [4, 4]], dtype=np.int16), np.array([3, 4])),
        (np.array([[10, 1000], [1000, 1000]]), np.array([10, 1000])),
        (np.array([["a", "b"], ["b", "b"]]), np.array(["a", "b"])),
        (np.array([["a", "b"], ["b", "b"]], dtype=object), np.array(["a", "b"])),
        (np.array([[False, True], [True, True]]), np.array([False, True])),
        ([[0, 1], [1, 1]], None),
        (pd.DataFrame({"x": [0, 1], "y": [1, 1]}), np.array([0, 1])),
    ],
)
def test_votes_are_labels(votes: Any, classes: np.ndarray | None) -> None:
    read = read_inputs(votes, classes=classes)
    assert read.votes.tolist() == [[0, 1], [1, 1]]
    assert read.votes.dtype == np.uint8
    assert read.scores is None
    assert not read.has_scores


def test_a_vector_is_one_constituent() -> None:
    assert read_inputs([0, 1, 1]).votes.tolist() == [[0], [1], [1]]
    assert read_inputs(pd.Series([0.1, 0.9])).votes.tolist() == [[0], [1]]
    assert read_inputs(np.array([0.1, 0.9], dtype=np.float16)).votes.tolist() == [[0], [1]]


def test_many_classes_take_wider_indices() -> None:
    classes = np.arange(300)
    assert read_inputs(np.array([[299]]), classes=classes).votes.dtype == np.uint16


def test_a_predictions_table_brings_its_ids() -> None:
    table = Predictions(("p", "q"), ("0", "1"), np.full((2, 2, 2), 0.5, dtype=np.float32))
    read = read_inputs(table)
    assert list(read.example_ids) == ["p", "q"]
    assert list(read.take(np.array([1])).example_ids) == ["q"]
    assert read.num_constituents == 2


class _Scores:
    def predict_scores(self, rows: np.ndarray) -> np.ndarray:
        positive = np.stack([rows[:, 0], rows[:, 1]], axis=1)
        return np.stack([1.0 - positive, positive], axis=2)


class _Silent:
    pass


class _OfOtherClasses(_Scores):
    classes_ = ("no", "yes")


def test_an_estimator_turns_raw_inputs_into_scores() -> None:
    raw = np.array([[0.2, 0.9], [0.8, 0.7]])
    read = read_inputs(raw, _Scores(), classes=np.array([0, 1]))
    assert read.votes.tolist() == [[0, 1], [1, 1]]
    assert read.content is not None
    assert read.take(slice(1, 2)).content.tolist() == [[0.8, 0.7]]
    table = Predictions(("p",), ("0",), np.full((1, 1, 2), 0.5, dtype=np.float32))
    wrapped = type("Wrapped", (), {"predict_scores": lambda self, given: given.scores})()
    assert list(read_inputs(table, wrapped).example_ids) == ["p"]


@pytest.mark.parametrize(
    ("given", "estimator", "classes", "match"),
    [
        (np.array([[0.1, np.nan]]), None, None, "first in row 0"),
        (np.array([[[0.5, np.inf]]]), None, None, "first in row 0"),
        (np.array([[0.1], [1.1]]), None, None, "row 1 holds"),
        (np.array([[-0.1]]), None, None, r"in \[0, 1\]"),
        (np.array([[[0.5, 0.1]]]), None, None, "sum to 1, row 0"),
        (np.array([[[1.5, -0.5]]]), None, None, "sum to 1, row 0"),
        (np.array([[[1, 0]]]), None, None, "float scores of shape"),
        (np.array([[0.4]]), None, np.arange(3), "say nothing of 3 classes"),
        (np.full((1, 1, 3), 1 / 3), None, np.arange(2), "scores of 2 classes.*got 3"),
        (np.array([[0, 2]]), None, np.array([0, 1]), "got .*2.* in row 0, constituent 1"),
        (np.array([[7, 10]]), None, np.array([1, 10]), "got .*7.* in row 0, constituent 0"),
        (np.array([["a", None]], dtype=object), None, np.array(["a", "b"]), "got None in row 0"),
        (np.zeros((3, 0)), None, None, "at least one constituent"),
        (np.float64(0.3), None, None, "1 to 3 dimensions, got 0"),
        (scipy.sparse.csr_array(np.eye(2)), None, None, "sparse"),
        (np.zeros((1, 2)), _Silent(), None, "predict_scores or predict_proba, got _Silent"),
        (np.zeros((1, 2)), _OfOtherClasses(), np.array([0, 1]), "estimator's classes"),
    ],
)
def test_what_is_no_vote_and_no_score_is_refused(given: Any, estimator: Any, classes: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_inputs(given, estimator, classes=classes)


def test_mean_scores_need_scores() -> None:
    with pytest.raises(DataError, match="Expected scores, got votes"):
        _ = Inputs(np.zeros((2, 2), dtype=np.uint8), 2).mean_scores


names = st.one_of(st.none(), st.text(max_size=3), st.integers(-3, 3), st.booleans())


@given(st.lists(names, min_size=1, max_size=30))
def test_groups_of_any_values_are_named_by_text(values: list[Any]) -> None:
    codes, found = read_groups(np.array(values, dtype=object))
    assert found == sorted(set(found))
    expected = [None if value is None else str(value) for value in values]
    numeric = {1: "1", 0: "0"}
    named = [None if code < 0 else found[code] for code in codes]
    for value, name, text in zip(values, named, expected, strict=True):  # True and 1 are one value to a hash table
        assert name == text or (isinstance(value, bool | int) and name in (numeric.get(value), str(bool(value))))


@given(st.lists(st.text(alphabet="abé\u4e2d ", max_size=4), min_size=1, max_size=40))
def test_every_container_of_text_gives_the_same_groups(values: list[str]) -> None:
    expected_codes, expected_names = read_groups(np.array(values, dtype=object))
    assert [expected_names[code] for code in expected_codes] == values
    for form in (np.array(values), pd.Series(values), pd.Categorical(values), values, pd.Index(values)):
        codes, found = read_groups(form)
        assert found == expected_names
        assert codes.tolist() == expected_codes.tolist()


def test_texts_whose_hashes_agree_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairsisa.fairness.strategies.inputs.MULTIPLIER", np.uint64(0))
    codes, found = read_groups(np.array(["ab", "bb", "ab", "cc", "cb"]))
    assert [found[code] for code in codes] == ["ab", "bb", "ab", "cc", "cb"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1.0, 2.0, np.nan]), ["1", "2", None]),
        (np.array([1, 2, 2]), ["1", "2", "2"]),
        (np.array([0.5, 1.5, 0.5]), ["0.5", "1.5", "0.5"]),
        (np.array([True, False, True]), ["True", "False", "True"]),
        (pd.Series([1, None, 2], dtype="Int64"), ["1", None, "2"]),
        (pd.Series(["x", None, pd.NA], dtype=object), ["x", None, None]),
        ([None, "nan", "None"], [None, "nan", "None"]),
        ([float("nan"), "x", "x"], [None, "x", "x"]),
        (np.array([1.0, np.inf, 1.0]), ["1", "inf", "1"]),
    ],
)
def test_unknown_values_belong_to_no_group(values: Any, expected: list[str | None]) -> None:
    codes, found = read_groups(values)
    assert [None if code < 0 else found[code] for code in codes] == expected


@pytest.mark.parametrize("form", ["frame", "mapping", "array"])
def test_several_features_make_groups_of_the_combinations_that_occur(form: str) -> None:
    columns = {"sex": ["m", "f", "f", None, "m"], "race": ["w", "b", "w", "w", None]}
    given = {
        "frame": pd.DataFrame(columns),
        "mapping": columns,
        "array": np.array(list(columns.values()), dtype=object).T,
    }[form]
    codes, found = read_groups(given)
    assert found == ["f & b", "f & w", "m & w"]
    assert codes.tolist() == [2, 0, 1, -1, -1]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "at least one sensitive feature"),
        ({"a": ["x"], "b": ["x", "y"]}, "equal length, got 1 and 2"),
        ({"a": ["x & y", "x"], "b": ["z", "y & z"]}, "have one name"),
        ({"a": [["x"], ["y"]]}, "as a vector"),
        (np.zeros((2, 2, 2)), "as a vector"),
    ],
)
def test_groups_that_cannot_be_read_are_refused(given: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_groups(given)


def test_no_groups_at_all_is_a_plain_value_error() -> None:
    with pytest.raises(ValueError, match="set_fit_request"):
        read_groups(None)


def test_blocks_cover_all_rows_once() -> None:
    parts = list(blocks(2 * BLOCK + 3))
    assert [part.stop - part.start for part in parts] == [BLOCK, BLOCK, 3]
    assert list(blocks(0)) == []
