from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairsisa.errors import DataError
from fairsisa.fairness.predictors import HeldOut, Predictor, check_predictors, constituent_predictors, held_out
from fairsisa.tables import Examples, Predictions


def make_held_out(**changes):
    columns = {
        "example_ids": ("a", "b", "c"),
        "subject_ids": np.array(["p", "q", "p"], dtype=object),
        "labels": np.array([0, 1, 1]),
        "classes": ("no", "yes"),
        "sensitive_features": {"who": np.array(["x", None, "y"], dtype=object)},
    }
    return HeldOut(**(columns | changes))


def test_one_split_of_an_examples_table_is_held_out():
    frame = pd.DataFrame(
        {
            "example_id": list("abcdef"),
            "subject_id": list("pqrstu"),
            "label": [0, 1, 1, 0, 1, 0],
            "split": ["train", "train", "test", "calibration", "test", "test"],
            "text": ["some words"] * 6,
            "sensitive:who": ["x", "y", None, "x", "y", "x"],
        }
    )
    examples = Examples("toy", frame, ("no", "yes"))
    found = held_out(examples)
    assert found.example_ids == ("c", "e", "f")
    assert found.subject_ids.tolist() == ["r", "t", "u"]
    assert found.labels.tolist() == [1, 1, 0]
    assert found.sensitive_features["who"].tolist() == [None, "y", "x"]
    assert held_out(examples, split="train").example_ids == ("a", "b")
    with pytest.raises(DataError, match="Expected held-out examples to judge predictors on, got none"):
        held_out(Examples("toy", frame[frame["split"] != "calibration"], ("no", "yes")), split="calibration")


def test_subjects_are_numbered():
    held = make_held_out()
    assert held.subjects.tolist() == [0, 1, 0]
    assert len(held) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, 1])}, r"Expected 3 values of labels, one an example, got shape \(2,\)"),
        ({"subject_ids": np.array(["p"])}, "Expected 3 values of subject_ids"),
        ({"sensitive_features": {"who": np.array(["x"])}}, "Expected 3 values of sensitive feature 'who'"),
        ({"labels": np.array([0, 2, 1])}, r"integer labels in 0\.\.1; look at example 'b'"),
        ({"labels": np.array([0, 1, -1])}, r"integer labels in 0\.\.1; look at example 'c'"),
        ({"labels": np.array([0.0, 1.0, 1.0])}, "Expected integer labels"),
        ({"subject_ids": np.array(["p", "p", "p"])}, "at least two subjects, got one"),
        ({"sensitive_features": {"": np.array(["x", "y", "z"])}}, "to have a name, got an empty one"),
        (
            {"sensitive_features": {"who": np.array(["x", 3, "y"], dtype=object)}},
            "'who' to hold text, or None where unknown; 1 rows do not, first example 'b' with 3",
        ),
        (
            {"sensitive_features": {"who": np.array(["x", np.nan, "y"], dtype=object)}},
            "first example 'b' with nan",
        ),
    ],
)
def test_broken_held_out_examples_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make_held_out(**changes)


@pytest.mark.parametrize(
    ("decisions", "scores", "message"),
    [
        (np.array([0.0, 1.0]), None, r"'vote': expected decisions as a vector of class indices, got float64"),
        (np.array([[0], [1]]), None, r"of shape \(2, 1\)"),
        (np.array([0, 1]), np.ones((3, 2)) / 2, r"'vote': expected scores of shape \(2, classes\), got \(3, 2\)"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [0.5, 0.6]]), r"sum to 1; row 1 holds \[0.5, 0.6\]"),
        (np.array([0, 1]), np.array([[1.5, -0.5], [0.5, 0.5]]), r"sum to 1; row 0 holds \[1.5, -0.5\]"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 1.0]]), r"row 1 holds \[nan, 1.0\]"),
    ],
)
def test_broken_predictors_are_refused(decisions, scores, message):
    with pytest.raises(DataError, match=message):
        Predictor("vote", decisions, scores)


@pytest.mark.parametrize(
    ("predictors", "message"),
    [
        ([], "at least one predictor to evaluate, got none"),
        ([Predictor("vote", np.array([0, 1, 1]))] * 2, "'vote' comes more than once"),
        ([Predictor("vote", np.array([0, 1]))], "'vote': expected 3 decisions, one a held-out example, got 2"),
        ([Predictor("vote", np.array([0, 2, 1]))], r"'vote': expected decisions in 0\.\.1"),
        ([Predictor("vote", np.array([0, -1, 1]))], r"'vote': expected decisions in 0\.\.1"),
        ([Predictor("vote", np.array([0, 1, 1]), np.ones((3, 4)) / 4)], "expected scores of 2 classes, got 4"),
    ],
)
def test_predictors_of_other_examples_or_classes_are_refused(predictors, message):
    with pytest.raises(DataError, match=message):
        check_predictors(make_held_out(), predictors)


def test_a_constituent_decides_for_its_top_score():
    scores = np.array([[[0.2, 0.8], [0.6, 0.4]], [[0.5, 0.5], [0.1, 0.9]]], dtype=np.float32)
    found = constituent_predictors(Predictions(("a", "b"), ("shard-0", "shard-1"), scores))
    assert [predictor.name for predictor in found] == ["constituent shard-0", "constituent shard-1"]
    assert [predictor.decisions.tolist() for predictor in found] == [[1, 0], [0, 1]]
    assert np.array_equal(found[1].scores, scores[:, 1])
