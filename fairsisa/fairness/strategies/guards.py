"""What is checked before a program is solved, and said after it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fairsisa.errors import ConfigError
from fairsisa.fairness.derived.criteria import (
    DEMOGRAPHIC_PARITY,
    EQUAL_OPPORTUNITY,
    PREDICTIVE_EQUALITY,
    Criterion,
)
from fairsisa.fairness.derived.solution import WHOLE

CONSTANT = "The cheapest rule that meets the criteria decides"
"""How the note of a constant rule begins."""


class SmallCellWarning(UserWarning):
    """A criterion rests on few examples of a group (and label): its rate may be far off on new data."""


class ConstantRuleWarning(UserWarning):
    """The optimum decides the same for everyone."""


class EqualRowsWarning(UserWarning):
    """Decisions were left to chance without example ids: rows that are equal are decided alike."""


def criteria_of(criterion: Any, tolerance: Any = 0.0, form: str = "max") -> tuple[Criterion, ...]:
    """Return criteria from a name, a Criterion or a sequence of either; Criterion values keep their own settings.

    `tolerance` is a number for all (or a sequence of one), or a sequence of one for each.

    Raises:
        ConfigError: naming what is unknown, out of range or of unequal length.
    """
    given = [criterion] if isinstance(criterion, str | Criterion) else list(criterion)
    shared = isinstance(tolerance, numbers.Real)
    tolerances = [tolerance] * len(given) if shared else list(tolerance)
    tolerances = tolerances * len(given) if len(tolerances) == 1 else tolerances
    if not given or len(tolerances) != len(given):
        raise ConfigError(f"Expected a criterion or more and a tolerance for each, got {len(given)} and {tolerance!r}.")
    if any(not isinstance(each, numbers.Real) for each in tolerances):
        raise ConfigError(f"Expected tolerances to be numbers, 0 or more; got {tolerance!r}.")
    return tuple(
        each if isinstance(each, Criterion) else Criterion(each, float(level), form)
        for each, level in zip(given, tolerances, strict=True)
    )


def small_cells(
    criteria: Sequence[Criterion],
    row_counts: np.ndarray,
    least: int,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
) -> list[str]:
    """Return one line for each cell of fewer than `least` rows that a criterion needs; rows by group and label (G, C).

    A criterion that tolerates everything needs none.
    """
    needed = [_cells(criterion, row_counts) for criterion in criteria if not math.isinf(criterion.tolerance)]
    found = dict.fromkeys(cell for cells in needed for cell in cells if cell[2] < least)
    return [
        f"Group {groups[group]!r} has {count} rows{'' if label is None else f' with label {classes[label]!r}'}, fewer "
        f"than min_cell_count={least}: its rates may be far off on new data. Join it to another group, get more rows, "
        "or lower min_cell_count."
        for group, label, count in found
    ]


def constant_rule(confusion_rows: np.ndarray, label_counts: np.ndarray, classes: Sequence[str]) -> str | None:
    """Return what to say when one decision is made for everyone, or None; shapes (G, C, C) and (G, C)."""
    if len(classes) < 2:
        return None
    always = np.nanmin(confusion_rows, axis=(0, 1))
    decision = int(np.argmax(always))
    if always[decision] < 1.0 - WHOLE:
        return None
    rates = label_counts.sum(axis=0) / label_counts.sum()
    listed = ", ".join(f"{name!r} {rate:.3g}" for name, rate in zip(classes, rates, strict=True))
    return (
        f"{CONSTANT} {classes[decision]!r} for everyone (labels: {listed}). "
        "Other costs cure it: raise false_negative_cost where positives are rare, false_positive_cost where they are "
        "common, or raise a tolerance."
    )


def _cells(criterion: Criterion, row_counts: np.ndarray) -> Iterator[tuple[int, int | None, int]]:
    """Yield (group, label or None for all, rows) that the criterion's rates are taken over."""
    num_classes = row_counts.shape[1]
    labels = list(range(num_classes))
    if num_classes == 2:
        labels = {EQUAL_OPPORTUNITY: [1], PREDICTIVE_EQUALITY: [0]}.get(criterion.name, labels)
    whole = criterion.bounds_levels or criterion.name == DEMOGRAPHIC_PARITY
    for group, counts in enumerate(row_counts):
        if whole:
            yield group, None, int(counts.sum())
            continue
        for label in labels:
            yield group, label, int(counts[label])
