from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.errors import ConfigError, DataError
from fairsisa.fairness.strategies.aggregate import AggregateThenPostprocess
from fairsisa.fairness.strategies.crossfit import (
    assign_folds,
    cross_derive,
    cross_fit,
    fold_rows,
    label_codes,
    subject_codes,
    take_rows,
)
from fairsisa.fairness.strategies.ensemble import EnsemblePostprocess
from fairsisa.tables import Predictions


def make_rows(seed, num_rows=300, num_constituents=3):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(2, size=num_rows), rng.choice(["a", "b"], size=num_rows)
    chances = np.where(labels, 0.8, 0.3 + 0.2 * (groups == "b"))
    return (rng.random((num_rows, num_constituents)) < chances[:, None]).astype(int), labels, groups


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 4))
def test_subjects_stay_whole_and_folds_are_even(seed, num_folds, most_rows):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most_rows + 1, size=80)
    subjects = np.repeat(np.arange(80), sizes)
    cells = rng.integers(4, size=len(subjects))
    folds = assign_folds(subjects, cells, num_folds=num_folds, seed=0)
    whole = pd.Series(folds).groupby(subjects).nunique()
    assert (whole == 1).all()
    per_fold = np.bincount(pd.Series(folds).groupby(subjects).first(), minlength=num_folds)
    assert per_fold.max() - per_fold.min() <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_every_cell_of_single_rows_is_spread_evenly(seed, num_folds):
    rng = np.random.default_rng(seed)
    cells = rng.integers(5, size=100)
    folds = assign_folds(np.arange(100), cells, num_folds=num_folds, seed=seed)
    for cell in range(5):
        per_fold = np.bincount(folds[cells == cell], minlength=num_folds)
        assert per_fold.max() - per_fold.min() <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_folds_follow_the_subject_whatever_the_order_of_rows(seed):
    rng = np.random.default_rng(seed)
    names = np.array([f"person {number}" for number in rng.integers(60, size=150)])
    _, labels, groups = make_rows(seed, 150)
    shuffle = rng.permutation(150)
    before = {
        name: test for test, (_, rows) in enumerate(fold_rows(labels, groups, names, 3, 1)) for name in names[rows]
    }
    moved = fold_rows(labels[shuffle], groups[shuffle], names[shuffle], 3, 1)
    assert before == {name: test for test, (_, rows) in enumerate(moved) for name in names[shuffle][rows]}


def test_another_seed_deals_otherwise():
    cells = np.zeros(50, dtype=int)
    one, other = (assign_folds(np.arange(50), cells, num_folds=5, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("num_folds", [1, 6])
def test_too_few_or_too_many_folds_are_refused(num_folds):
    with pytest.raises(ConfigError, match=f"got {num_folds} for 5"):
        assign_folds(np.arange(5), np.zeros(5, dtype=int), num_folds=num_folds, seed=0)


def test_probabilities_are_those_of_fits_on_the_other_folds():
    votes, labels, groups = make_rows(1)
    estimator = AggregateThenPostprocess(tolerance=0.05)
    found = cross_fit(estimator, votes, labels, sensitive_features=groups, num_folds=3, seed=4)
    seen = np.zeros(len(labels), dtype=int)
    for train, test in fold_rows(labels, groups, None, 3, 4):
        own = AggregateThenPostprocess(tolerance=0.05, small_cells="ignore").fit(
            votes[train], labels[train], sensitive_features=groups[train]
        )
        assert np.array_equal(found[test], own.predict_proba(votes[test], sensitive_features=groups[test]))
        seen[test] += 1
    assert (seen == 1).all()
    assert not hasattr(estimator, "classes_")


def test_a_rows_own_label_does_not_touch_its_decision():
    votes, labels, groups = make_rows(2)
    pattern = EnsemblePostprocess(states="pattern")
    subjects = np.arange(len(labels)) // 2
    given = {"sensitive_features": groups, "subject_ids": subjects, "num_folds": 4}
    found = cross_derive(pattern, votes, labels, **given)
    fold = next(rows for _, rows in fold_rows(labels, groups, subjects, 4, 0))
    swapped = labels.copy()
    pair = [np.flatnonzero((labels == y) & (groups == "a") & np.isin(np.arange(len(labels)), fold))[0] for y in (0, 1)]
    swapped[pair] = labels[pair[::-1]]
    again = [rows for _, rows in fold_rows(swapped, groups, subjects, 4, 0)]
    if any(np.array_equal(fold, rows) for rows in again):
        after = cross_derive(pattern, votes, swapped, **given)
        assert np.array_equal(found.probabilities[fold], after.probabilities[fold])
    assert found.original.shape == found.backed_off.shape == (len(labels),)


def test_a_cell_that_one_subject_has_alone_names_group_and_label_but_no_person():
    votes, labels, groups = make_rows(3)
    subjects = np.array([f"person {number}" for number in range(len(labels))])
    subjects[(labels == 1) & (groups == "b")] = "a secret name"
    with pytest.raises(DataError, match="Group 'b': every row with label 1 falls into fold") as caught:
        cross_fit(AggregateThenPostprocess(), votes, labels, sensitive_features=groups, subject_ids=subjects)
    assert "secret" not in str(caught.value)


def test_rows_are_taken_of_every_kind_of_table():
    rows = np.array([2, 0])
    predictions = Predictions(("x", "y", "z"), ("k",), np.array([[[0.5, 0.5]], [[0.1, 0.9]], [[1.0, 0.0]]]))
    taken = take_rows(predictions, rows)
    assert taken.example_ids == ("z", "x")
    assert taken.scores[:, 0, 0].tolist() == [1.0, 0.5]
    frame = pd.DataFrame({"sex": ["f", "m", "f"], "age": [1, 2, 3]}, index=[7, 8, 9])
    assert take_rows(frame, rows)["age"].tolist() == [3, 1]
    assert take_rows({"sex": frame["sex"], "age": [1, 2, 3]}, rows)["age"].tolist() == [3, 1]
    assert take_rows(["a", "b", "c"], rows).tolist() == ["c", "a"]


def test_predictions_and_frames_of_features_are_cross_fitted_too():
    votes, labels, groups = make_rows(5)
    positive = votes * 0.8 + 0.1
    scores = np.stack([1 - positive, positive], axis=2).astype(np.float32)
    table = Predictions(tuple(f"id {row}" for row in range(len(labels))), ("p", "q", "r"), scores)
    found = cross_fit(AggregateThenPostprocess(), table, labels, sensitive_features=pd.DataFrame({"race": groups}))
    assert np.array_equal(found, cross_fit(AggregateThenPostprocess(), votes, labels, sensitive_features=groups))


def test_subjects_and_labels_become_numbers_or_are_refused():
    assert subject_codes(None, 3).tolist() == [0, 1, 2]
    assert subject_codes(["b", "a", "b"], 3).tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="Expected 3 subject ids, one a row, got 2"):
        subject_codes(["b", "a"], 3)
    assert label_codes(["no", "yes", "no"], np.array(["no", "yes"])).tolist() == [0, 1, 0]
    with pytest.raises(DataError, match="row 1 has maybe"):
        label_codes(["no", "maybe"], np.array(["no", "yes"]))
