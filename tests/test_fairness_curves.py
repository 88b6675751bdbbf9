from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from fairsisa.errors import DataError
from fairsisa.fairness.curves import ROC_COLUMNS, reliability, roc_by_group
from fairsisa.fairness.metrics import expected_calibration_error
from fairsisa.fairness.predictors import HeldOut, Predictor
from fairsisa.intervals import Bootstrap, weight_chunks


def make_case(seed, num_classes):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.tile(np.arange(num_classes), 2), rng.integers(num_classes, size=40)])
    groups = np.array(["a"] * num_classes + ["b"] * num_classes + list(rng.choice(["a", "b"], 40)), dtype=object)
    raw = rng.integers(1, 8, size=(len(labels), num_classes)).astype(float)
    scores = raw / raw.sum(axis=1, keepdims=True)
    ids = tuple(str(number) for number in range(len(labels)))
    held = HeldOut(ids, np.array(ids), labels, tuple("xyzw"[:num_classes]), {"who": groups})
    return held, Predictor("mean_score", scores.argmax(axis=1), scores)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_roc_curves_equal_sklearn(seed, num_classes):
    held, predictor = make_case(seed, num_classes)
    table = roc_by_group(held, predictor)
    assert list(table.columns) == list(ROC_COLUMNS)
    groups = {"": np.full(len(held), True)} | {name: held.sensitive_features["who"] == name for name in "ab"}
    seen = 0
    for (group, name), curve in table.groupby(["group", "class"]):
        c, inside = held.classes.index(name), groups[group]
        false, true, _ = roc_curve(held.labels[inside] == c, predictor.scores[inside, c], drop_intermediate=False)
        found = curve[["false_positive_rate", "true_positive_rate"]].to_numpy()
        kept = {tuple(point) for point in np.round(found, 9)}
        assert kept <= {tuple(point) for point in np.round(np.column_stack([false, true]), 9)}
        assert np.trapezoid(found[:, 1], found[:, 0]) == pytest.approx(np.trapezoid(true, false))
        for row in curve.iloc[1:].itertuples():
            chosen = predictor.scores[inside, c] >= row.threshold
            assert row.true_positive_rate == pytest.approx(chosen[held.labels[inside] == c].mean())
        seen += 1
    assert seen == 3 * (1 if num_classes == 2 else num_classes)


def test_straight_stretches_are_left_out_and_a_group_with_one_label_has_no_curve():
    labels = np.array([1, 1, 1, 0, 0, 0, 1])
    positive = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    ids = tuple("abcdefg")
    groups = np.array([None, None, None, "zeros", "zeros", "zeros", "ones"], dtype=object)
    held = HeldOut(ids, np.array(ids), labels, ("no", "yes"), {"who": groups})
    predictor = Predictor("mean_score", (positive > 0.5).astype(int), np.column_stack([1 - positive, positive]))
    table = roc_by_group(held, predictor)
    assert table["group"].unique().tolist() == [""]
    corners = table[["threshold", "false_positive_rate", "true_positive_rate"]].to_numpy()
    assert corners == pytest.approx(np.array([[np.inf, 0, 0], [0.7, 0, 0.75], [0.4, 1, 0.75], [0.3, 1, 1]]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_reliability_equals_sklearn_and_adds_up_to_the_calibration_error(seed):
    held, predictor = make_case(seed, 2)
    table = reliability(held, predictor)
    top, right = predictor.scores.max(axis=1), predictor.scores.argmax(axis=1) == held.labels
    truth, mean = calibration_curve(right, top, n_bins=15)
    assert table["value"].to_numpy() == pytest.approx(truth)
    assert table["confidence"].to_numpy() == pytest.approx(mean)
    assert table["num_examples"].sum() == len(held)
    assert ((table["bin_low"] < table["confidence"]) & (table["confidence"] <= table["bin_high"])).all()
    gaps = table["num_examples"] / len(held) * (table["value"] - table["confidence"]).abs()
    expected = expected_calibration_error(held.labels, predictor.scores, np.ones((len(held), 1)))
    assert gaps.sum() == pytest.approx(expected[0])


def test_reliability_intervals_equal_a_naive_loop():
    held, predictor = make_case(1, 2)
    bootstrap = Bootstrap(num_replicates=40, seed=2)
    table = reliability(held, predictor, bootstrap=bootstrap)
    weights = np.concatenate(list(weight_chunks(held.subjects, bootstrap)), axis=1)[:, 1:]
    top, right = predictor.scores.max(axis=1), predictor.scores.argmax(axis=1) == held.labels
    for row in table.itertuples():
        inside = (row.bin_low < top) & (top <= row.bin_high)
        copies = [np.repeat(right[inside], weight.astype(int)) for weight in weights[inside].T]
        drawn = [values.mean() for values in copies if len(values)]
        assert row.num_undefined == 40 - len(drawn)
        assert [row.low, row.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())


def test_a_predictor_without_scores_has_no_curve():
    held, predictor = make_case(0, 2)
    with pytest.raises(DataError, match="'vote' has no scores to draw a curve from"):
        roc_by_group(held, Predictor("vote", predictor.decisions))
    with pytest.raises(DataError, match="'vote' has no scores to draw a curve from"):
        reliability(held, Predictor("vote", predictor.decisions))
