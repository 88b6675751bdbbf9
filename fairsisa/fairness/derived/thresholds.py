"""Thresholds on one score: what they allow in each group, and the mixture of thresholds that meets a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from fairsisa.fairness.derived.hulls import ON_CHAIN, Chain

MOST_CHORDS = 256
ONE = np.uint32(1)


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


def levels_of(scores: np.ndarray) -> np.ndarray:
    """Return scores as thresholds see them: float32, so that rows can be sorted by whole words."""
    return scores.astype(np.float32, copy=False)


def score_chains(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, num_groups: int, weights: np.ndarray | None = None
) -> list[ScoreChain]:
    """Return each group's chain; scores in [0, 1], labels 0 or 1 and group numbers have shape (num_rows,).

    Scores count as `levels_of` them; compare thresholds with those. O(n log n).
    """
    bits = (levels_of(scores) + np.float32(0.0)).view(np.uint32)  # the order of the bits is that of numbers >= 0
    keys = (bits << ONE) | labels.astype(np.uint32)  # whole words: sorting them is far faster than ranking rows
    chains = []
    for group in range(num_groups):
        mine = groups == group
        amounts = None if weights is None else weights[mine]
        chains.append(_score_chain(*_corners(*_levels(keys[mine], amounts))))
    return chains


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


def _levels(keys: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a group's distinct levels, falling, and the weight of negatives and of positives at or above each.

    The lowest bit of a key is the label, those above it are the level's.
    """
    if weights is None:
        keys = np.sort(keys)[::-1]
        positives = np.cumsum(keys & ONE, dtype=np.float64)
        negatives = np.arange(1.0, len(keys) + 1.0) - positives
    else:
        order = np.argsort(keys, kind="stable")[::-1]
        order = order[weights[order] > 0]
        keys, amounts = keys[order], weights[order]
        positive = (keys & ONE).astype(bool)
        positives, negatives = np.cumsum(amounts * positive), np.cumsum(amounts * ~positive)
    bits = keys >> ONE
    last = np.append(np.flatnonzero(bits[1:] != bits[:-1]), len(bits) - 1)
    return bits[last].view(np.float32), negatives[last], positives[last]


def _corners(
    levels: np.ndarray, negatives: np.ndarray, positives: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leave out levels that cannot be corners of the hull: those without positives, or with none but them after."""
    gains = np.empty(len(levels), dtype=bool)
    gains[0], gains[1:] = positives[0] > 0, positives[1:] > positives[:-1]
    kept = np.append(gains[:-1] & (negatives[1:] > negatives[:-1]), True)
    return levels[kept], negatives[kept], positives[kept]


def _score_chain(levels: np.ndarray, negatives: np.ndarray, positives: np.ndarray) -> ScoreChain:
    """Return the hull of a ROC curve: its blocks are those of the isotonic regression of label on score."""
    gained = np.diff(positives, prepend=0.0)
    rows = gained + np.diff(negatives, prepend=0.0)
    fit = isotonic_regression(gained / rows, weights=rows, increasing=False)
    corners = fit.blocks[1:] - 1
    totals = np.array([negatives[-1], positives[-1]])
    points = np.zeros((len(corners) + 1, 2))
    points[1:] = np.stack([negatives[corners], positives[corners]], axis=1) / np.where(totals > 0, totals, 1.0)
    return ScoreChain(Chain(points), np.concatenate([[np.inf], levels[corners]]), totals)
