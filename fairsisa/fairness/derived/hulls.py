"""Attainable regions: which (false positive rate, true positive rate) a group's states allow, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fairsisa.fairness.derived.joint import Joint

MOST_PAIRS = 1 << 20
ON_CHAIN = 1e-12


@dataclass(frozen=True, eq=False)
class Chain:
    """The upper boundary of one group's attainable region (Hardt et al. 2016, section 4).

    States in order of falling likelihood ratio P(state | Y=1) / P(state | Y=0), equal ones merged, are its edges; by
    the Neyman-Pearson lemma nothing above it is attainable. `points` are (false positive rate, true positive rate),
    float64, shape (m + 1, 2), from (0, 0) to (1, 1), concave; where a label has no weight, its rate stays 0. The region
    is what lies between the chain and its point reflection, the lower chain.
    """

    points: np.ndarray

    @property
    def end(self) -> np.ndarray:
        """The last point, which a rule reaches that always decides 1, shape (2,)."""
        return np.asarray(self.points[-1])

    @cached_property
    def steps(self) -> np.ndarray:
        """The edges as vectors, shape (m, 2)."""
        return np.diff(self.points, axis=0)

    @cached_property
    def normals(self) -> np.ndarray:
        """The edges' outer normals of length 1, shape (m, 2); zero for an edge too short for its ends to differ."""
        sizes = np.hypot(self.steps[:, 0], self.steps[:, 1])
        turned = np.stack([-self.steps[:, 1], self.steps[:, 0]], axis=1)
        return np.asarray(np.divide(turned, sizes[:, None], out=np.zeros_like(turned), where=sizes[:, None] > 0))

    @cached_property
    def reaches(self) -> np.ndarray:
        """How far the edges lie out along their normals, shape (m,): inside, normals @ point is at most this."""
        return np.asarray((self.normals * self.points[:-1]).sum(axis=1))

    @property
    def lower(self) -> np.ndarray:
        """The points of the lower chain, from (0, 0) to (1, 1)."""
        return np.asarray(self.end - self.points[::-1])

    def upper_at(self, false_positive_rates: np.ndarray) -> np.ndarray:
        """Return the largest attainable true positive rate at given false positive rates."""
        first = int(np.searchsorted(self.points[:, 0], self.points[0, 0], side="right")) - 1
        heights: np.ndarray = np.interp(false_positive_rates, self.points[first:, 0], self.points[first:, 1])
        return heights

    def along(self, lengths: np.ndarray) -> np.ndarray:
        """Return the points at given lengths along the chain, shape (..., 2); see `lengths`."""
        return np.stack([np.interp(lengths, self.lengths, self.points[:, axis]) for axis in (0, 1)], axis=-1)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Where the points lie along the chain, measured as the sum of both rates, shape (m + 1,)."""
        return np.asarray(self.points.sum(axis=1))


@dataclass(frozen=True, eq=False)
class Regions:
    """The attainable region of every group of a joint with two labels, and which edge each cell belongs to.

    `edges` holds the index of each cell's edge in its group's chain, int64, shape (n,).
    """

    chains: tuple[Chain, ...]
    edges: np.ndarray


def regions_of(joint: Joint) -> Regions:
    """Return the attainable regions of a joint with two labels, in O(n), and O(m log m) for m different ratios."""
    counts = joint.counts
    kinds, place = _distinct(joint)
    negatives = np.bincount(place, counts[:, 0], minlength=len(kinds))
    positives = np.bincount(place, counts[:, 1], minlength=len(kinds))
    chance = positives / (negatives + positives)  # rises with the likelihood ratio
    order = np.lexsort((-chance, kinds))
    groups, ratios = kinds[order], chance[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (groups[1:] != groups[:-1]) | (ratios[1:] != ratios[:-1])
    number = np.cumsum(new) - 1
    owner = groups[new]
    starts = np.searchsorted(owner, np.arange(joint.num_groups + 1))
    edge_of_kind = np.empty(len(order), dtype=np.int64)
    edge_of_kind[order] = number - starts[groups]
    scale = np.where(joint.label_counts > 0, joint.label_counts, 1.0)
    steps = np.stack(
        [np.bincount(number, side[order], minlength=len(owner)) for side in (negatives, positives)], axis=1
    )
    chains = [
        _chain(steps[starts[g] : starts[g + 1]] / scale[g], joint.label_counts[g] > 0) for g in range(joint.num_groups)
    ]
    return Regions(tuple(chains), edge_of_kind[place])


def realise(joint: Joint, regions: Regions, targets: np.ndarray) -> np.ndarray:
    """Return P(D=1 | cell) that gives each group its target (rates as in `Chain`), shape (n,).

    Decides 1 on one interval of the states in order of falling likelihood ratio, so that at most two cells of a group
    are left to chance, one if the target lies on the boundary. `targets` has shape (G, 2) and lies in the regions.
    """
    mixing = np.empty(len(joint))
    for group, chain in enumerate(regions.chains):
        start, end = joint.starts[group], joint.starts[group + 1]
        low, high = _interval(chain, targets[group])
        mixing[start:end] = _overlap(chain, regions.edges[start:end], joint, (group, start, end), (low, high))
    return mixing


def _distinct(joint: Joint) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each distinct (group, counts), and the place among these of each cell.

    Whole counts that are small are found by a table, others by sorting likelihood ratios.
    """
    counts = joint.counts
    most = counts.max(axis=0, initial=0.0) + 1.0
    size = joint.num_groups * most[0] * most[1]
    if size <= MOST_PAIRS:
        whole = counts.astype(np.int64)
        if np.array_equal(whole, counts):
            spans = most.astype(np.int64)
            code = (joint.groups * spans[0] + whole[:, 0]) * spans[1] + whole[:, 1]
            seen = np.zeros(int(size), dtype=bool)
            seen[code] = True
            found = np.flatnonzero(seen)
            number = np.empty(int(size), dtype=np.int64)
            number[found] = np.arange(len(found))
            return np.asarray(found // (spans[0] * spans[1])), number[code]
    return joint.groups, np.arange(len(joint))


def _chain(steps: np.ndarray, present: np.ndarray) -> Chain:
    points = np.zeros((len(steps) + 1, 2))
    np.cumsum(steps, axis=0, out=points[1:])
    points[-1] = present  # what rounding took from 1
    return Chain(np.minimum(points, points[-1]))


def _interval(chain: Chain, target: np.ndarray) -> tuple[float, float]:
    """Return the interval of lengths along the chain whose states, decided 1, give the target.

    An interval of length f + t that starts at a has true positive rate T(a + f + t) - T(a), which falls with a because
    the chain is concave, piecewise linearly.
    """
    span = float(np.clip(target.sum(), 0.0, chain.lengths[-1]))
    if target[1] >= float(np.interp(span, chain.lengths, chain.points[:, 1])) - ON_CHAIN:
        return 0.0, span
    last = chain.lengths[-1] - span
    knots = np.concatenate([chain.lengths, chain.lengths - span])
    knots = np.unique(np.clip(knots, 0.0, last))
    heights = chain.along(knots + span)[:, 1] - chain.along(knots)[:, 1]
    start = float(np.interp(-target[1], -heights, knots))
    return start, start + span


def _overlap(
    chain: Chain, edges: np.ndarray, joint: Joint, part: tuple[int, int, int], interval: tuple[float, float]
) -> np.ndarray:
    """Return which share of each cell lies in the interval; the cells of one edge follow each other along it."""
    low, high = interval
    begins, ends = chain.lengths[:-1], chain.lengths[1:]
    inside, sizes = np.minimum(high, ends) - np.maximum(low, begins), ends - begins
    share = np.clip(np.divide(inside, sizes, out=(inside >= 0).astype(float), where=sizes > 0), 0.0, 1.0)
    mixing: np.ndarray = share[edges]
    group, start, end = part
    scale = np.where(joint.label_counts[group] > 0, joint.label_counts[group], 1.0)
    for edge in np.flatnonzero((share > 0.0) & (share < 1.0)):
        cells = np.flatnonzero(edges == edge)
        if len(cells) > 1:
            reach = begins[edge] + np.cumsum((joint.counts[start:end][cells] / scale).sum(axis=1))
            sizes = np.diff(reach, prepend=begins[edge])
            inside = np.minimum(high, reach) - np.maximum(low, reach - sizes)
            mixing[cells] = np.clip(inside / sizes, 0.0, 1.0)
    return mixing
