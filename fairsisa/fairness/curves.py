"""The curves behind the numbers: ROC by group and reliability, as tables to draw."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fairsisa.errors import DataError
from fairsisa.fairness.metrics import NUM_BINS, top_label
from fairsisa.fairness.predictors import HeldOut, Predictor, check_predictors
from fairsisa.fairness.rates import group_examples, indicator, judged_classes, ratio
from fairsisa.intervals import BOOTSTRAP, Bootstrap, summarise, weight_chunks

CORNER_COLUMNS = ("threshold", "false_positive_rate", "true_positive_rate")
ROC_COLUMNS = ("predictor", "sensitive_feature", "group", "class", *CORNER_COLUMNS)


def roc_by_group(held_out: HeldOut, predictor: Predictor) -> pd.DataFrame:
    """Return the ROC curve of each group and judged class, one row a corner, from (0, 0) to (1, 1).

    Columns are `ROC_COLUMNS`; the rates are those of deciding for the class where its score is at least
    `threshold` (infinity at the first corner). A `sensitive_feature` of "" means all examples. A group with one
    label only has no curve and no rows.

    Raises:
        DataError: when the predictor has no scores or does not speak of the held-out examples.
    """
    scores = _scores(held_out, predictor)
    grouping = group_examples(held_out.sensitive_features, len(held_out))
    tables = []
    for number, (feature, group) in enumerate(grouping.groups):
        inside = (grouping.codes == number).any(axis=1)
        for c in judged_classes(len(held_out.classes)):
            corners = _corners(held_out.labels[inside] == c, scores[inside, c])
            names = dict(zip(ROC_COLUMNS, (predictor.name, feature, group, held_out.classes[c]), strict=False))
            tables.append(pd.DataFrame(corners, columns=list(CORNER_COLUMNS)).assign(**names))
    return pd.concat(tables, ignore_index=True)[list(ROC_COLUMNS)]


def reliability(held_out: HeldOut, predictor: Predictor, *, bootstrap: Bootstrap = BOOTSTRAP) -> pd.DataFrame:
    """Return accuracy against confidence in equal-width bins of the top score, empty bins left out.

    Columns: predictor, bin_low, bin_high (the bin is (bin_low, bin_high]), num_examples, confidence (mean top
    score), then `INTERVAL_COLUMNS` of the accuracy, the share of examples whose top-scored class is right. The bins
    are those of `metrics.expected_calibration_error`.

    Raises:
        DataError: when the predictor has no scores or does not speak of the held-out examples.
    """
    confidence, right, bins = top_label(held_out.labels, _scores(held_out, predictor))
    everyone, hits = indicator(bins[:, None], NUM_BINS), indicator(bins[:, None], NUM_BINS, right)
    drawn = [ratio(hits @ weights, everyone @ weights) for weights in weight_chunks(held_out.subjects, bootstrap)]
    sizes = np.bincount(bins, minlength=NUM_BINS)
    edges = np.arange(NUM_BINS + 1) / NUM_BINS
    columns = {
        "predictor": predictor.name,
        "bin_low": edges[:-1],
        "bin_high": edges[1:],
        "num_examples": sizes,
        "confidence": ratio(np.bincount(bins, confidence, minlength=NUM_BINS), sizes),
        **summarise(np.concatenate(drawn, axis=1), bootstrap.level),
    }
    return pd.DataFrame(columns)[sizes > 0].reset_index(drop=True)


def _scores(held_out: HeldOut, predictor: Predictor) -> np.ndarray:
    check_predictors(held_out, [predictor])
    if predictor.scores is None:
        raise DataError(f"Predictor {predictor.name!r} has no scores to draw a curve from; choose one that has.")
    return predictor.scores


def _corners(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return (threshold, false positive rate, true positive rate) at the curve's corners, shape (num_corners, 3).

    Points on a straight vertical or horizontal stretch are left out: they change neither curve nor area.
    """
    num_positives = int(positive.sum())
    if num_positives in (0, len(positive)):
        return np.empty((0, 3))
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(positive[order])[last]
    misses = last + 1 - hits
    points = np.column_stack([score[order][last], misses / (len(positive) - num_positives), hits / num_positives])
    points = np.vstack([[np.inf, 0.0, 0.0], points])
    steps = np.diff(points[:, 1:], axis=0) > 0
    turns = (steps[1:] != steps[:-1]).any(axis=1) | steps[1:].all(axis=1)
    kept = np.concatenate([[True], turns, [True]])
    return np.asarray(points[kept])
