"""Fairness criteria as small values: which rates of the groups must agree, or stay under a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from fairsisa.errors import ConfigError, DataError

EQUALIZED_ODDS = "equalized_odds"
EQUAL_OPPORTUNITY = "equal_opportunity"
PREDICTIVE_EQUALITY = "predictive_equality"
DEMOGRAPHIC_PARITY = "demographic_parity"
BOUNDED_GROUP_LOSS = "bounded_group_loss"
CRITERIA = (EQUALIZED_ODDS, EQUAL_OPPORTUNITY, PREDICTIVE_EQUALITY, DEMOGRAPHIC_PARITY, BOUNDED_GROUP_LOSS)
FORMS = ("max", "mean")


@dataclass(frozen=True)
class Criterion:
    """A fairness definition, and how far it may be missed.

    With two classes, over groups a and the decision D:

    - "equalized_odds" (Hardt et al. 2016): P(D=1 | Y=y, a) agree for y = 0 and 1;
    - "equal_opportunity" (Hardt et al. 2016): they agree for y = 1;
    - "predictive_equality" (Chouldechova 2017): they agree for y = 0;
    - "demographic_parity": P(D=1 | a) agree;
    - "bounded_group_loss" (Agarwal et al. 2019): every group's mean cost is at most `tolerance`.

    With more classes: equalized odds asks that the confusion rows P(D=d | Y=y, a) agree for all y and d, equal
    opportunity P(D=c | Y=c, a) for every class c, predictive equality P(D=c | Y≠c, a), demographic parity P(D=c | a).

    `tolerance`, 0 or more, bounds the largest difference between two groups: of every rate by itself (`form` "max"),
    or averaged over the criterion's rates ("mean"). Infinity asks for nothing.

    Raises:
        ConfigError: naming the field.
    """

    name: str
    tolerance: float = 0.0
    form: str = "max"

    def __post_init__(self) -> None:
        if self.name not in CRITERIA:
            raise ConfigError(f"Expected a criterion of {', '.join(CRITERIA)}; got {self.name!r}.")
        if self.form not in FORMS:
            raise ConfigError(f"Expected the form of {self.name} to be max or mean, got {self.form!r}.")
        if not (_is_number(self.tolerance) and self.tolerance >= 0.0):
            raise ConfigError(f"Expected the tolerance of {self.name} to be 0 or more, got {self.tolerance!r}.")
        if self.name == BOUNDED_GROUP_LOSS and self.form == "mean":
            raise ConfigError("bounded_group_loss bounds every group by itself: it has no mean form.")

    @property
    def bounds_levels(self) -> bool:
        """Whether the rates themselves are bounded, rather than their differences over groups."""
        return self.name == BOUNDED_GROUP_LOSS


@dataclass(frozen=True, eq=False)
class GroupRate:
    """A rate of every group that is linear in the group's confusion rows M[g, y, d] = P(D=d | Y=y, g).

    The rate of group g is the sum over y and d of `coefficients[g, y, d] * M[g, y, d]`; shape (G, C, C).
    """

    name: str
    coefficients: np.ndarray

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Return the rate of each group, shape (G,); `rows` are confusion rows, shape (G, C, C)."""
        return np.asarray(np.einsum("gyd,gyd->g", self.coefficients, np.nan_to_num(rows)))


def group_rates_of(
    criterion: Criterion, label_counts: np.ndarray, *, costs: np.ndarray, classes: Sequence[str], groups: Sequence[str]
) -> tuple[GroupRate, ...]:
    """Return the rates that a criterion compares; `label_counts` are weights by group and label, shape (G, C).

    `costs` are costs by label and decision, shape (C, C); `classes` and `groups` are names for messages.

    Raises:
        DataError: when a rate is undefined, naming the group, the label and the group's number of rows.
    """
    num_classes = label_counts.shape[1]
    _require_rows(label_counts, groups)
    shares = label_counts / label_counts.sum(axis=1, keepdims=True)
    units = np.eye(num_classes)
    positive = [1] if num_classes == 2 else list(range(num_classes))
    if criterion.name == EQUALIZED_ODDS:
        _require_cells(criterion, label_counts, range(num_classes), classes, groups)
        pairs = [(y, d) for y in range(num_classes) for d in positive]
        return tuple(
            _rate(f"P({classes[d]} | {classes[y]})", np.outer(units[y], units[d]), label_counts) for y, d in pairs
        )
    if criterion.name == EQUAL_OPPORTUNITY:
        _require_cells(criterion, label_counts, positive, classes, groups)
        return tuple(
            _rate(f"P({classes[c]} | {classes[c]})", np.outer(units[c], units[c]), label_counts) for c in positive
        )
    if criterion.name == PREDICTIVE_EQUALITY:
        return tuple(_false_positive_rate(c, label_counts, classes, groups) for c in positive)
    if criterion.name == DEMOGRAPHIC_PARITY:
        return tuple(GroupRate(f"P({classes[c]})", shares[:, :, None] * units[c][None, None, :]) for c in positive)
    return (GroupRate("mean cost", shares[:, :, None] * costs[None]),)


def criterion_value(criterion: Criterion, rates: Sequence[np.ndarray]) -> float:
    """Return what the tolerance bounds: the largest (or mean) difference over groups, or the largest group loss.

    `rates` holds one array of shape (G,) per rate, as `GroupRate.values` returns it.
    """
    if criterion.bounds_levels:
        return float(max(values.max() for values in rates))
    spreads = [float(values.max() - values.min()) for values in rates]
    return max(spreads) if criterion.form == "max" else float(np.mean(spreads))


def cost_matrix(num_classes: int, *, false_positive_cost: float = 1.0, false_negative_cost: float = 1.0) -> np.ndarray:
    """Return costs by label and decision, shape (C, C): zero on the diagonal; with two classes, the two given costs.

    Raises:
        ConfigError: when a cost is negative or not finite, both are zero, or unequal costs meet more than two classes.
    """
    for name, cost in (("false_positive_cost", false_positive_cost), ("false_negative_cost", false_negative_cost)):
        if not (_is_number(cost) and math.isfinite(cost) and cost >= 0.0):
            raise ConfigError(f"Expected {name} to be finite, 0 or more; got {cost!r}.")
    if false_positive_cost == false_negative_cost == 0.0:
        raise ConfigError("Expected false_positive_cost or false_negative_cost to be above 0; both are 0.")
    if num_classes != 2 and false_positive_cost != false_negative_cost:
        raise ConfigError(f"False positives and negatives are of two classes; there are {num_classes}.")
    if num_classes != 2:
        return (1.0 - np.eye(num_classes)) * false_positive_cost
    return np.array([[0.0, false_positive_cost], [false_negative_cost, 0.0]])


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _rate(name: str, coefficients: np.ndarray, label_counts: np.ndarray) -> GroupRate:
    return GroupRate(name, np.broadcast_to(coefficients, (len(label_counts), *coefficients.shape)))


def _false_positive_rate(c: int, label_counts: np.ndarray, classes: Sequence[str], groups: Sequence[str]) -> GroupRate:
    """Return P(D=c | Y≠c, g): a mean of the other labels' confusion rows, weighted by the group's own label shares."""
    others = label_counts.astype(np.float64).copy()
    others[:, c] = 0.0
    total = others.sum(axis=1, keepdims=True)
    if (total == 0).any():
        group = int(np.argmin(total[:, 0]))
        raise DataError(
            f"Group {groups[group]!r}: no row with a label other than {classes[c]!r} in "
            f"{label_counts[group].sum():g}; its rate of false {classes[c]!r} decisions is undefined. "
            "Leave the group out, join it to another, or choose another criterion."
        )
    coefficients = (others / total)[:, :, None] * np.eye(label_counts.shape[1])[c][None, None, :]
    return GroupRate(f"P({classes[c]} | not {classes[c]})", coefficients)


def _require_rows(label_counts: np.ndarray, groups: Sequence[str]) -> None:
    empty = np.flatnonzero(label_counts.sum(axis=1) == 0)
    if len(empty):
        raise DataError(f"Group {groups[int(empty[0])]!r} has no rows (or no weight): nothing can be said of it.")


def _require_cells(
    criterion: Criterion, label_counts: np.ndarray, labels: Sequence[int], classes: Sequence[str], groups: Sequence[str]
) -> None:
    for label in labels:
        empty = np.flatnonzero(label_counts[:, label] == 0)
        if len(empty):
            group = int(empty[0])
            raise DataError(
                f"Group {groups[group]!r}: no label {classes[label]!r} in {label_counts[group].sum():g} rows; "
                f"{criterion.name} compares rates among them. Leave the group out, join it to another, or choose "
                "a criterion that does not."
            )
