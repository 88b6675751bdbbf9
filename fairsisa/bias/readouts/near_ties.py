"""Scores in low precision, corrected where they are too close to tell which of an item's options wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fairsisa.lineage import derive_seed

NUM_CLOSEST, NUM_SAMPLED = 12, 4
SAFETY = 2.0

Exact = Callable[[Sequence[int]], Sequence[np.ndarray]]
"""From the numbers of items, the exact values of the options of each."""


@dataclass(frozen=True, eq=False)
class Screened:
    """Values of items' options: exact for the items numbered in `rescored`, those of low precision for the others.

    `largest_error` is the largest one met in a difference of two options' values, `threshold` the difference below
    which items were scored again.
    """

    values: tuple[np.ndarray, ...]
    rescored: tuple[int, ...]
    largest_error: float
    threshold: float


def rescore_near_ties(coarse: Sequence[np.ndarray], exact: Exact, *, seed: int, safety: float = SAFETY) -> Screened:
    """Return coarse values with those of near-ties replaced by exact ones, so that no preference changes.

    The `NUM_CLOSEST` closest ties and a seeded sample of `NUM_SAMPLED` items are scored exactly. What low precision
    then changed most in the difference of two options, times `safety`, is the threshold: items with two options closer
    than this are scored exactly, which may show a larger change, and so on until none is left. Values must be on a
    scale where errors are alike everywhere, such as logarithms. An item with fewer than two options prefers nothing,
    and is not scored again.
    """
    gaps = np.array([_smallest_gap(values) for values in coarse])
    values, rescored, largest, threshold = list(coarse), dict[int, None](), 0.0, 0.0
    chosen = _first(gaps, seed)
    while len(chosen):
        for number, found in zip(chosen, exact(chosen), strict=True):
            largest = max(largest, _error(coarse[number], found))
            values[number] = found
            rescored[number] = None
        threshold = safety * largest
        chosen = [int(number) for number in np.flatnonzero(gaps <= threshold) if number not in rescored]
    return Screened(tuple(values), tuple(rescored), largest, threshold)


def _first(gaps: np.ndarray, seed: int) -> list[int]:
    """Return the numbers of the items that are scored exactly whatever the errors: the closest, and some at random."""
    ordered = np.argsort(gaps, kind="stable")[: np.isfinite(gaps).sum()]
    closest, others = np.split(ordered, [NUM_CLOSEST])
    sampled = np.random.default_rng(derive_seed(seed, "near ties")).permutation(others)[:NUM_SAMPLED]
    return sorted(int(each) for each in (*closest, *sampled))


def _smallest_gap(values: np.ndarray) -> float:
    """Return the smallest difference of two values; infinite where there are not two."""
    return float(np.diff(np.sort(values)).min()) if len(values) > 1 else float("inf")


def _error(coarse: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest change in a difference of two values."""
    return float(np.ptp(coarse - exact))
