"""The joint of group, label and state: all that the programs see of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

DENSE = 4
"""Cells of a dense table, per row, up to which counting into it beats sorting the rows."""
SMALL_TABLE = 1 << 16
FLOAT32_BITS, FLOAT64_BITS = 24, 52
BLOCK = 1 << 13


@dataclass(frozen=True, eq=False)
class Joint:
    """The weight of every label in every (group, state) that was observed, ordered by group, then state.

    `groups` and `states` hold group numbers 0..num_groups-1 and state codes, int64, shape (n,); `counts` weights by
    label, float64, shape (n, C). A cell has weight in some label.
    """

    groups: np.ndarray
    states: np.ndarray
    counts: np.ndarray
    num_groups: int

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def num_classes(self) -> int:
        """The number of labels, which is that of decisions."""
        return int(self.counts.shape[1])

    @cached_property
    def label_counts(self) -> np.ndarray:
        """Weights by group and label, float64, shape (G, C)."""
        return np.stack(
            [np.bincount(self.groups, self.counts[:, y], minlength=self.num_groups) for y in range(self.num_classes)],
            axis=1,
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each group's cells begin, with the end of the last: shape (G + 1,)."""
        return np.searchsorted(self.groups, np.arange(self.num_groups + 1))

    def confusion_rows(self, mixing: np.ndarray) -> np.ndarray:
        """Return P(D=d | Y=y, g), shape (G, C, C), NaN where a label has no weight in a group.

        `mixing` holds P(D=d | cell), shape (n, C).
        """
        num_classes = self.num_classes
        hits = np.empty((self.num_groups, num_classes, num_classes))
        for y in range(num_classes):
            for d in range(num_classes):
                hits[:, y, d] = np.bincount(self.groups, self.counts[:, y] * mixing[:, d], minlength=self.num_groups)
        totals = self.label_counts[:, :, None]
        return np.asarray(np.divide(hits, totals, out=np.full_like(hits, np.nan), where=totals > 0))

    def mean_cost(self, mixing: np.ndarray, costs: np.ndarray) -> float:
        """Return the mean of `costs[label, decision]` under the mixing, weighted as the rows are."""
        return float(((self.counts.T @ mixing) * costs).sum() / self.counts.sum())


def count_joint(
    groups: np.ndarray,
    labels: np.ndarray,
    states: np.ndarray,
    *,
    num_groups: int,
    num_classes: int,
    weights: np.ndarray | None = None,
) -> Joint:
    """Count rows into the joint; all arrays have shape (num_rows,), integers from 0, weights 0 or more.

    State codes may be any non-negative int64 below 2**62 / (num_groups * num_classes). Where a dense table would be
    small, rows are counted into it; otherwise they are sorted by code. Rows of weight zero leave no cell.
    """
    span = int(states.max()) + 1 if len(states) else 1
    size = num_groups * span * num_classes
    small = size <= max(SMALL_TABLE, DENSE * len(states))
    dtype = np.int32 if small and size < 2**31 else np.int64
    codes = _codes((groups, states, labels), (span, num_classes), dtype)
    if small:
        table = np.bincount(codes, weights, minlength=size)
        cells = table.reshape(-1, num_classes)
        kept = np.flatnonzero(cells.any(axis=1))
        counts = cells[kept].astype(np.float64)
    else:
        kept, counts = _sorted_counts(codes, weights, num_classes)
    return Joint(kept // span, kept % span, counts, num_groups)


def pack_votes(votes: np.ndarray, num_classes: int) -> np.ndarray:
    """Return one non-negative int64 per row that tells its pattern of votes; equal patterns have equal codes.

    `votes` holds class indices, shape (num_rows, num_constituents). The code is the number whose digits, in base
    `num_classes`, are the votes, first vote lowest; it must fit (see `fits_code`), so that floats hold it exactly.
    """
    num_rows, num_votes = votes.shape
    kind = np.float32 if num_votes * np.log2(num_classes) <= FLOAT32_BITS else np.float64
    powers = (float(num_classes) ** np.arange(num_votes)).astype(kind)
    codes = np.empty(num_rows, dtype=np.int64)
    for start in range(0, num_rows, BLOCK):  # a block's digits stay in the cache between conversion and product
        codes[start : start + BLOCK] = np.dot(votes[start : start + BLOCK].astype(kind), powers)
    return codes


def fits_code(num_constituents: int, num_classes: int) -> bool:
    """Whether every pattern of so many votes has a code of its own; see `pack_votes`."""
    return num_constituents * float(np.log2(num_classes)) <= FLOAT64_BITS


def refine(joint: Joint, of_cell: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> tuple[Joint, np.ndarray]:
    """Return the joint over coarser states, and the place in it of each of the given joint's cells, shape (n,).

    `of_cell(groups, states)` gives the coarser state of each cell.
    """
    coarse = of_cell(joint.groups, joint.states)
    span = int(coarse.max()) + 1 if len(coarse) else 1
    keys, place = np.unique(joint.groups * span + coarse, return_inverse=True)
    counts = np.stack(
        [np.bincount(place, joint.counts[:, y], minlength=len(keys)) for y in range(joint.num_classes)], axis=1
    )
    return Joint(keys // span, keys % span, counts, joint.num_groups), place


def _codes(parts: Sequence[np.ndarray], spans: Sequence[int], dtype: type) -> np.ndarray:
    """Return one number a row, its digits the `parts`, the last lowest; `spans` are the bases of all but the first."""
    codes: np.ndarray = parts[0].astype(dtype)
    for part, span in zip(parts[1:], spans, strict=True):
        codes *= span
        codes += part.astype(dtype, copy=False)
    return codes


def _sorted_counts(codes: np.ndarray, weights: np.ndarray | None, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (cell codes, weights by label) of codes that are too far apart for a table."""
    if weights is None:
        found, amounts = np.unique(codes, return_counts=True)
    else:
        found, place = np.unique(codes, return_inverse=True)
        amounts = np.bincount(place, weights, minlength=len(found))
        found, amounts = found[amounts > 0], amounts[amounts > 0]
    cells, labels = found // num_classes, found % num_classes
    first = np.concatenate([[True], cells[1:] != cells[:-1]]) if len(cells) else np.zeros(0, dtype=bool)
    number = np.cumsum(first) - 1
    counts = np.zeros((int(first.sum()), num_classes))
    counts[number, labels] = amounts
    return cells[first], counts
