from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from fairsisa.fairness.metrics import accuracy, auroc, expected_calibration_error, macro_f1, top_label
from fairsisa.fairness.rates import confusion_counts, confusion_indicator, group_examples


@st.composite
def judged(draw, *, max_classes=4):
    """Labels, decisions, scores full of ties, and integer weights under which every class keeps some."""
    num_classes = draw(st.integers(2, max_classes))
    num_examples = draw(st.integers(2 * num_classes, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=num_examples - num_classes)])
    decisions = rng.integers(num_classes, size=num_examples)
    raw = rng.integers(1, draw(st.integers(2, 30)), size=(num_examples, num_classes)).astype(float)
    weights = rng.integers(0, 4, size=(num_examples, 3)).astype(float)
    weights[:num_classes] += 1.0
    return labels, decisions, raw / raw.sum(axis=1, keepdims=True), weights


def confusion(labels, decisions, num_classes, weights):
    grouping = group_examples({}, len(labels))
    return confusion_counts(confusion_indicator(grouping, labels, decisions, num_classes), weights, num_classes)[0]


@settings(deadline=None)
@given(judged())
def test_accuracy_and_macro_f1_equal_sklearn_under_weights(case):
    labels, decisions, scores, weights = case
    counts = confusion(labels, decisions, scores.shape[1], weights)
    for column, weight in enumerate(weights.T):
        expected = accuracy_score(labels, decisions, sample_weight=weight)
        assert accuracy(counts)[column] == pytest.approx(expected, abs=1e-12)
        expected = f1_score(labels, decisions, sample_weight=weight, average="macro", zero_division=0.0)
        assert macro_f1(counts)[column] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(judged())
def test_auroc_equals_sklearn_under_weights(case):
    labels, _, scores, weights = case
    binary = scores.shape[1] == 2
    for column, weight in enumerate(weights.T):
        if binary:
            expected = roc_auc_score(labels, scores[:, 1], sample_weight=weight)
        else:
            areas = [roc_auc_score(labels == c, scores[:, c], sample_weight=weight) for c in range(scores.shape[1])]
            expected = np.mean(areas)
        assert auroc(labels, scores, weights)[column] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(judged(max_classes=2))
def test_auroc_counts_pairs(case):
    labels, _, scores, weights = case
    won = total = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            pair = weights[i, 0] * weights[j, 0]
            won += pair * ((scores[i, 1] > scores[j, 1]) + (scores[i, 1] == scores[j, 1]) / 2)
            total += pair
    assert auroc(labels, scores, weights)[0] == pytest.approx(won / total, abs=1e-12)


@settings(deadline=None)
@given(judged())
def test_calibration_error_equals_the_formula_read_aloud(case):
    labels, _, scores, weights = case
    for column, weight in enumerate(weights.T):
        error = 0.0
        for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
            inside = [i for i, row in enumerate(scores) if low < max(row) <= high]
            mass = sum(weight[i] for i in inside)
            if mass:
                right = sum(weight[i] for i in inside if np.argmax(scores[i]) == labels[i]) / mass
                confidence = sum(weight[i] * max(scores[i]) for i in inside) / mass
                error += mass / weight.sum() * abs(right - confidence)
        assert expected_calibration_error(labels, scores, weights)[column] == pytest.approx(error, abs=1e-9)


def test_calibration_error_of_a_known_table():
    labels = np.array([1, 1, 0, 0])
    scores = np.array([[0.1, 0.9], [0.1, 0.9], [0.1, 0.9], [0.7, 0.3]])
    expected = 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * abs(1.0 - 0.7)
    assert expected_calibration_error(labels, scores, np.ones((4, 1))) == pytest.approx([expected])


def test_certain_scores_fall_into_the_last_bin_and_single_precision_does_not_matter():
    scores = np.array([[0.0, 1.0], [0.5, 0.5]], dtype=np.float32)
    confidence, right, bins = top_label(np.array([1, 1]), scores)
    assert confidence.dtype == np.float64
    assert right.tolist() == [1.0, 0.0]
    assert bins.tolist() == [14, 7]


def test_undefined_quantities_are_nan_and_not_zero():
    labels = np.array([0, 0, 0])
    scores = np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]])
    weights = np.ones((3, 1))
    assert np.isnan(auroc(labels, scores, weights)).all()
    assert np.isnan(macro_f1(confusion(labels, labels, 2, weights))).all()
    assert np.isnan(accuracy(confusion(labels, labels, 2, np.zeros((3, 1))))).all()


@settings(deadline=None)
@given(judged(max_classes=2), st.integers(2, 5))
def test_a_weight_is_a_number_of_copies(case, copies):
    labels, _, scores, weights = case
    repeated = np.repeat(np.arange(len(labels)), copies)
    alike = auroc(labels[repeated], scores[repeated], np.repeat(weights, copies, axis=0))
    assert alike == pytest.approx(auroc(labels, scores, weights * copies), abs=1e-12)
