"""Attainable regions: which (false positive rate, true positive rate) a group's states allow, and by which rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import isotonic_regression

from fairsisa.fairness.derived.joint import Joint

MOST_PAIRS = 1 << 20
MOST_CHORDS = 256
ONE = np.uint64(1)
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
        return np.divide(turned, sizes[:, None], out=np.zeros_like(turned), where=sizes[:, None] > 0)

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


@dataclass(frozen=True, eq=False)
class ScoreChain:
    """What thresholds on a score allow in one group: a chain, and the threshold that leads to each of its points.

    Only rules that decide 1 at and above a threshold, and mixtures of them, count: the chain is the concave hull of the
    ROC curve. `thresholds[i]`, falling from infinity, is the lowest score decided 1 at point i; `weights` are those of
    the group's two labels, shape (2,).
    """

    chain: Chain
    thresholds: np.ndarray
    weights: np.ndarray


def score_chains(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, num_groups: int, weights: np.ndarray | None = None
) -> list[ScoreChain]:
    """Return each group's chain; scores, 0 or more, labels 0 or 1 and group numbers have shape (num_rows,).

    Thresholds are rounded down to even mantissas: scores that differ in the last bit alone count as equal. O(n log n).
    """
    found = []
    for group in range(num_groups):
        rows = np.flatnonzero(groups == group)
        amounts = None if weights is None else weights[rows]
        found.append(_score_chain(*_levels(scores[rows], labels[rows], amounts)))
    return found


def threshold_mixture(source: ScoreChain, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return thresholds, falling, and their weights, shape (k,) with k <= 3, whose mixture gives the target.

    A rule decides 1 at and above one of the thresholds, drawn with its weight; so the chance of a 1 rises with the
    score. The target, rates as in `Chain`, lies between chain and diagonal. Of the mixtures of a corner with a point on
    an edge, one is taken that leaves the fewest rows to chance.
    """
    points, steps = source.chain.points, source.chain.steps
    place = int(np.clip(np.searchsorted(source.chain.lengths, target.sum(), side="right") - 1, 0, len(steps) - 1))
    if _cross(steps[place], target - points[place]) >= -ON_CHAIN:
        share = float(np.clip((target.sum() - source.chain.lengths[place]) / steps[place].sum(), 0.0, 1.0))
        return _mixture(source.thresholds, {place: 1.0 - share, place + 1: share})
    starts = np.unique(np.linspace(0, place, min(place + 1, MOST_CHORDS)).astype(np.int64))
    toward = target - points[starts]
    beyond = _cross(toward[:, None], points[None, place:-1] - points[starts][:, None]) >= -ON_CHAIN
    ends = place + beyond.shape[1] - 1 - np.argmax(beyond[:, ::-1], axis=1)
    bend = _cross(toward, steps[ends])
    share = np.divide(_cross(points[ends] - points[starts], toward), bend, out=np.zeros(len(ends)), where=bend != 0)
    meets = (_cross(toward, points[-1] - points[starts]) <= ON_CHAIN) & (ends > starts)
    masses = points @ source.weights
    best = int(np.argmin(np.where(meets, masses[ends + 1] - masses[starts], np.inf)))
    start, end, share = int(starts[best]), int(ends[best]), float(np.clip(share[best], 0.0, 1.0))
    reached = points[end] + share * steps[end]
    far = float((target - points[start]).sum() / (reached - points[start]).sum())
    shares = Counter({start: 1.0 - far})
    shares.update({end: far * (1.0 - share)})
    shares.update({end + 1: far * share})
    return _mixture(source.thresholds, shares)


def _cross(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0])


def _mixture(thresholds: np.ndarray, shares: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    kept = [place for place, share in sorted(shares.items()) if share > 0.0]
    found = np.array([shares[place] for place in kept])
    return thresholds[kept], found / found.sum()


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


def _levels(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores, falling, and the weight of negatives and of positives at or above each."""
    bits = (scores.astype(np.float64) + 0.0).view(np.uint64)  # the order of the bits is that of numbers >= 0
    if weights is None:
        keys = np.sort((bits & ~ONE) | labels.astype(np.uint64))[::-1]  # sorting whole words is far faster than ranks
        positives = np.cumsum(keys & ONE).astype(np.float64)
        negatives = np.arange(1.0, len(keys) + 1.0) - positives
    else:
        order = np.argsort(bits, kind="stable")[::-1]
        keys, amounts, positive = bits[order], weights[order], labels[order] == 1
        positives, negatives = np.cumsum(amounts * positive), np.cumsum(amounts * ~positive)
    levels = keys & ~ONE
    last = np.append(np.flatnonzero(levels[1:] != levels[:-1]), len(levels) - 1)
    return levels[last].view(np.float64), negatives[last], positives[last]


def _score_chain(levels: np.ndarray, negatives: np.ndarray, positives: np.ndarray) -> ScoreChain:
    """Return the hull of a ROC curve: its blocks are those of the isotonic regression of label on score."""
    amounts = np.diff(np.stack([negatives, positives]), axis=1, prepend=0.0)
    rows = amounts.sum(axis=0)
    weighted = np.flatnonzero(rows > 0)
    fit = isotonic_regression(amounts[1, weighted] / rows[weighted], weights=rows[weighted], increasing=False)
    corners = weighted[fit.blocks[1:] - 1]
    totals = np.array([negatives[-1], positives[-1]])
    points = np.zeros((len(corners) + 1, 2))
    points[1:] = np.stack([negatives[corners], positives[corners]], axis=1) / np.where(totals > 0, totals, 1.0)
    return ScoreChain(Chain(points), np.concatenate([[np.inf], levels[corners]]), totals)


def spread(chains: Sequence[Chain], points: np.ndarray) -> float:
    """Return how far points lie outside the regions, at most (0 inside); `points` has shape (G, 2)."""
    outside = 0.0
    for chain, point in zip(chains, points, strict=True):
        above = float(point[1] - chain.upper_at(point[0]))
        mirrored = chain.end - point
        below = float(mirrored[1] - chain.upper_at(mirrored[0]))
        outside = max(outside, above, below)
    return outside
