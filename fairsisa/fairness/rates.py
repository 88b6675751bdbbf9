"""Confusion counts and rates by group, for any number of weightings of the examples at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

RATES = ("true_positive_rate", "false_positive_rate", "selection_rate", "accuracy")
DIFFERENCES = (
    "equalized_odds_difference",
    "equalized_odds_difference_mean",
    "equal_opportunity_difference",
    "predictive_equality_difference",
    "demographic_parity_difference",
)
EVERYONE = ""


@dataclass(frozen=True)
class Grouping:
    """Which groups each example belongs to, over all sensitive features.

    Groups are numbered through, feature by feature, names in alphabetical order; number 0 is everyone, the one
    group of the feature `EVERYONE`. `codes` holds group numbers, int64, shape (num_examples, 1 + num_features),
    and -1 where the sensitive value is unknown. `groups[i]` is the pair (sensitive feature, group name).
    """

    features: tuple[str, ...]
    groups: tuple[tuple[str, str], ...]
    codes: np.ndarray

    def members(self, feature: str) -> slice:
        """Return the range of group numbers that belong to one sensitive feature."""
        numbers = [number for number, (owner, _) in enumerate(self.groups) if owner == feature]
        return slice(numbers[0], numbers[-1] + 1) if numbers else slice(0, 0)


def group_examples(sensitive_features: Mapping[str, np.ndarray], num_examples: int) -> Grouping:
    """Number the groups of every sensitive feature (arrays of str, or None where unknown)."""
    groups = [(EVERYONE, EVERYONE)]
    columns = [np.zeros(num_examples, dtype=np.int64)]
    for feature, values in sensitive_features.items():
        names = sorted({value for value in values if value is not None})
        number = {name: len(groups) + place for place, name in enumerate(names)}
        columns.append(np.array([number.get(value, -1) for value in values], dtype=np.int64))
        groups += [(feature, name) for name in names]
    return Grouping((EVERYONE, *sensitive_features), tuple(groups), np.stack(columns, axis=1))


def indicator(cells: np.ndarray, num_cells: int, values: np.ndarray | None = None) -> csr_array:
    """Return the sparse matrix that sums example weights (times `values`, if given) into cells.

    `cells` holds cell numbers, int64, shape (num_examples, any); -1 belongs to no cell. The result has shape
    (num_cells, num_examples).
    """
    examples, _ = np.nonzero(cells >= 0)
    entries = np.ones(len(examples)) if values is None else values[examples]
    return csr_array((entries, (cells[cells >= 0], examples)), shape=(num_cells, len(cells)))


def confusion_indicator(grouping: Grouping, labels: np.ndarray, decisions: np.ndarray, num_classes: int) -> csr_array:
    """Return the matrix that takes example weights to confusion counts; see `confusion_counts`."""
    outcome = (labels * num_classes + decisions)[:, None]
    cells = np.where(grouping.codes >= 0, grouping.codes * num_classes**2 + outcome, -1)
    return indicator(cells, len(grouping.groups) * num_classes**2)


def confusion_counts(matrix: csr_array, weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Return weighted counts, shape (num_groups, label, decision, num_columns).

    `matrix` comes from `confusion_indicator`; `weights` has shape (num_examples, num_columns).
    """
    return np.asarray(matrix @ weights).reshape(-1, num_classes, num_classes, weights.shape[1])


def judged_classes(num_classes: int) -> list[int]:
    """Return the classes that rates are taken of: the positive one of two, or each of many against the rest."""
    return [1] if num_classes == 2 else list(range(num_classes))


def group_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the `RATES` of each group and judged class, each of shape (num_groups, num_judged, num_columns).

    `counts` comes from `confusion_counts`. Per class c: P(decision c | label c), P(decision c | another label),
    P(decision c); the accuracy is the group's, over all classes, and so the same for each c. NaN where the
    condition has no weight.
    """
    judged = judged_classes(counts.shape[1])
    total = counts.sum(axis=(1, 2))[:, None]
    hits = np.stack([counts[:, c, c] for c in judged], axis=1)
    positives = np.stack([counts[:, c].sum(axis=1) for c in judged], axis=1)
    selected = np.stack([counts[:, :, c].sum(axis=1) for c in judged], axis=1)
    right = np.einsum("gccr->gr", counts)[:, None]
    return {
        "true_positive_rate": ratio(hits, positives),
        "false_positive_rate": ratio(selected - hits, total - positives),
        "selection_rate": ratio(selected, total),
        "accuracy": np.repeat(ratio(right, total), len(judged), axis=1),
    }


def rate_differences(rates: Mapping[str, np.ndarray], members: slice) -> dict[str, np.ndarray]:
    """Return the `DIFFERENCES` over one feature's groups, each of shape (num_columns,).

    `rates` comes from `group_rates`. A difference is the largest minus the smallest rate over the groups:
    equal opportunity of true positive rates, predictive equality of false positive rates, demographic parity of
    selection rates. Equalized odds takes the larger of the first two (fairlearn: `agg="worst_case"`) or their
    mean (`agg="mean"`; for two groups the size of the average absolute odds difference). With more than two
    classes each is the largest over the classes. NaN where a group's rate is undefined or there is no second
    group: no difference can be told.

    A largest-minus-smallest is never negative and grows with sampling noise, most with many or small groups: a
    perfectly equal predictor shows a positive difference, its replicates are lifted once more, and a percentile
    interval stays above zero or even above the difference itself. Read it with its standard error, against a
    baseline (`evaluation.paired_differences`) and beside the rates.
    """
    opportunity = _spread(rates["true_positive_rate"][members])
    equality = _spread(rates["false_positive_rate"][members])
    parity = _spread(rates["selection_rate"][members])
    by_class = (np.maximum(opportunity, equality), (opportunity + equality) / 2, opportunity, equality, parity)
    return {name: values.max(axis=0) for name, values in zip(DIFFERENCES, by_class, strict=True)}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, broadcasting; NaN where the denominator is zero."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    empty = np.full(shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=empty, where=denominator > 0))


def _spread(rates: np.ndarray) -> np.ndarray:
    """Return largest minus smallest over the groups, shape (num_judged, num_columns); NaN without a second group."""
    if len(rates) < 2:
        return np.full(rates.shape[1:], np.nan)
    return np.asarray(rates.max(axis=0) - rates.min(axis=0))
