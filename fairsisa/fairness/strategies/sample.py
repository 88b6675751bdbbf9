"""The rows that a rule is fitted on: labels, weights and groups beside the inputs, checked and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from fairsisa.errors import DataError
from fairsisa.fairness.derived.joint import Joint, count_joint
from fairsisa.fairness.strategies.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Given:
    """Rows as a post-processor's `fit` takes them: X, labels, groups by name, and weights or None."""

    X: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    weights: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows that a rule is fitted on: those whose group is known.

    `labels` are class indices, `groups` group numbers, int64, shape (N,); `weights` float64 of that shape, or None.
    """

    inputs: Inputs
    labels: np.ndarray
    groups: np.ndarray
    weights: np.ndarray | None
    num_groups: int

    def take(self, rows: np.ndarray) -> Sample:
        """Return the given rows (indices or a mask)."""
        weights = None if self.weights is None else self.weights[rows]
        inputs = self.inputs.take(rows)
        return replace(self, inputs=inputs, labels=self.labels[rows], groups=self.groups[rows], weights=weights)

    def as_given(self, classes: np.ndarray, groups: Sequence[str]) -> Given:
        """Return the rows as `fit` takes them, an estimator's scores computed already; `classes` are the labels."""
        X = self.inputs.values if self.inputs.has_scores else classes[self.inputs.votes]  # noqa: N806
        if not self.inputs.has_scores and X.dtype.kind == "f":
            X = X.astype(object)  # noqa: N806 - floats would be taken for scores
        return Given(X, classes[self.labels], np.array(groups, dtype=object)[self.groups], self.weights)

    def count(self, states: np.ndarray) -> Joint:
        """Return the joint of group, label and state; `states` are codes of shape (N,), 0 or more."""
        return count_joint(
            self.groups,
            self.labels,
            states,
            num_groups=self.num_groups,
            num_classes=self.inputs.num_classes,
            weights=self.weights,
        )

    @property
    def label_counts(self) -> np.ndarray:
        """The weight of each group and label, float64, shape (G, C)."""
        return self._counts(self.weights)

    @property
    def row_counts(self) -> np.ndarray:
        """The number of rows with weight, by group and label, int64, shape (G, C)."""
        return self._counts(None if self.weights is None else self.weights > 0).astype(np.int64)

    def confusion_rows(self, probabilities: np.ndarray) -> np.ndarray:
        """Return P(D=d | Y=y, g) on these rows, shape (G, C, C), NaN where undefined; `probabilities` (N, C)."""
        weights = np.ones(len(self.labels)) if self.weights is None else self.weights
        rows = np.stack([self._counts(weights * chances) for chances in probabilities.T], axis=2)
        totals = self.label_counts[:, :, None]
        return np.asarray(np.divide(rows, totals, out=np.full_like(rows, np.nan), where=totals > 0))

    def _counts(self, weights: np.ndarray | None) -> np.ndarray:
        num_classes = self.inputs.num_classes
        codes = self.groups * num_classes + self.labels
        counts = np.bincount(codes, weights, minlength=self.num_groups * num_classes)
        return counts.astype(np.float64).reshape(self.num_groups, num_classes)


def read_labels(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted labels that occur, and each row's place among them, int64.

    Raises:
        DataError: when a label is missing, or fewer than two occur.
    """
    values = column_or_1d(y, warn=True)
    if values.dtype.kind in "fcO":
        missing = pd.isna(values) | (np.isinf(values) if values.dtype.kind == "f" else False)
        if missing.any():
            row = int(np.argmax(missing))
            raise DataError(f"Expected a label in every row, row {row} has {values[row]!r}.")
        check_classification_targets(values)
    codes, found = pd.factorize(values, sort=True)
    classes = np.asarray(found, dtype=values.dtype)
    if len(classes) < 2:
        raise DataError(f"Expected labels of two classes or more, got {len(classes)} class: {classes.tolist()}.")
    return classes, codes.astype(np.int64, copy=False)


def read_weights(sample_weight: Any, num_rows: int) -> np.ndarray | None:
    """Return weights as float64, shape (num_rows,), or None for all alike.

    Raises:
        DataError: when one is negative or not finite (naming the row), or all are 0.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (num_rows,):
        raise DataError(f"Expected sample_weight of shape ({num_rows},), got {weights.shape}.")
    wrong = ~(np.isfinite(weights) & (weights >= 0.0))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"Expected weights to be finite, 0 or more; row {row} has {weights[row]}.")
    if not weights.any():
        raise DataError("Expected a sample_weight above 0 in some row, got zero everywhere.")
    return weights


def require_rows(num_rows: int, lengths: Mapping[str, int]) -> None:
    """Raise DataError unless every named length is `num_rows`."""
    for name, length in lengths.items():
        if length != num_rows:
            raise DataError(f"Expected {name} for each of the {num_rows} rows of X, got {length}.")
