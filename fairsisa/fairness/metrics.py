"""Quality of decisions and of scores, for any number of weightings of the examples at once."""

from __future__ import annotations

import numpy as np

from fairsisa.fairness.rates import indicator, judged_classes, ratio

QUALITIES = ("accuracy", "macro_f1", "auroc", "expected_calibration_error")
NUM_BINS = 15


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the share of right decisions, shape (num_columns,).

    `confusion` holds weighted counts, shape (label, decision, num_columns).
    """
    return ratio(np.einsum("ccr->r", confusion), confusion.sum(axis=(0, 1)))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Return the mean over classes of F1 = 2 TP / (2 TP + FP + FN), shape (num_columns,).

    `confusion` holds weighted counts, shape (label, decision, num_columns). NaN where a class has neither a label
    nor a decision.
    """
    hits = np.einsum("ccr->cr", confusion)
    return np.asarray(ratio(2 * hits, confusion.sum(axis=0) + confusion.sum(axis=1)).mean(axis=0))


def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve, shape (num_columns,).

    Two classes: of the positive class's score. More: the mean over classes of each against the rest.
    `scores` has shape (num_examples, num_classes), `weights` (num_examples, num_columns). NaN where a class has
    all the weight, or none.
    """
    areas = [_area(labels == c, scores[:, c], weights) for c in judged_classes(scores.shape[1])]
    return np.asarray(np.mean(areas, axis=0))


def expected_calibration_error(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the expected calibration error of the top-scored class, shape (num_columns,), in [0, 1].

    sum over bins of (bin's weight / total) * |accuracy in bin - mean confidence in bin|, with `NUM_BINS`
    equal-width bins ((m-1)/M, m/M] of the confidence max_c score_c (Guo et al., ICML 2017, equation 3). It is
    never negative, so noise lifts it as it lifts every sum of absolute values.
    """
    confidence, right, bins = top_label(labels, scores)
    gaps = indicator(bins[:, None], NUM_BINS, right - confidence) @ weights
    return ratio(np.abs(np.asarray(gaps)).sum(axis=0), weights.sum(axis=0))


def top_label(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the top score, whether its class is right (1.0 or 0.0) and its bin, each of shape (num_examples,)."""
    confidence = scores.max(axis=1).astype(np.float64)
    right = (scores.argmax(axis=1) == labels).astype(np.float64)
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    return confidence, right, bins


def _area(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted Mann-Whitney statistic, ties counted half, for each column of weights.

    P(score of a positive > score of a negative) + P(equal) / 2 (Hanley and McNeil, Radiology 1982): the negatives'
    weights are summed once along their order, and each positive looks up what lies below it and at it.
    """
    negative_order = np.argsort(score[~positive], kind="stable")
    positive_order = np.argsort(score[positive], kind="stable")
    below = np.zeros((len(negative_order) + 1, weights.shape[1]))
    np.cumsum(weights[~positive][negative_order], axis=0, out=below[1:])
    edges, wanted = score[~positive][negative_order], score[positive][positive_order]
    won = below[np.searchsorted(edges, wanted, side="left")]
    won += below[np.searchsorted(edges, wanted, side="right")]
    mass = weights[positive][positive_order]
    return ratio(np.einsum("nr,nr->r", mass, won) / 2, mass.sum(axis=0) * below[-1])
