"""Word embedding association tests: effect size and permutation test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, islice

import numpy as np

from fairsisa.bias.metrics import ratio

NUM_PERMUTATIONS = 100_000
BLOCK_CELLS = 4_000_000
TIE = 1e-12


def associations(targets: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return s(w, A, B) = mean_a cos(w, a) - mean_b cos(w, b) of each target (Caliskan et al. 2017).

    Rows are vectors of any length, shapes (num, width); the result, float64, has shape (num_targets,).
    """
    direction: np.ndarray = _unit(first).mean(axis=0) - _unit(second).mean(axis=0)
    return np.asarray(_unit(targets) @ direction)


def effect_size(values: np.ndarray, in_first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return d = (mean_X s - mean_Y s) / std(s over X and Y) under each column of weights.

    `values` holds s of the targets, `in_first` says which are in X, `weights`, shape (num_targets, num_replicates),
    how often each counts. The standard deviation has n - 1 below (as in WEAT's code), n the sum of the weights. NaN
    where X or Y is empty or all values are equal.
    """
    means = [ratio(values[side] @ weights[side], weights[side].sum(axis=0)) for side in (in_first, ~in_first)]
    total = weights.sum(axis=0)
    mean = ratio(values @ weights, total)
    squares = np.einsum("ij,ij->j", (values[:, None] - mean) ** 2, weights)
    spread = np.sqrt(ratio(squares, np.maximum(total - 1.0, 0.0)))
    return ratio(means[0] - means[1], np.where(spread > TIE * np.abs(values).max(initial=0.0), spread, 0.0))


def permutation_p_value(
    values: np.ndarray, in_first: np.ndarray, *, seed: int, num_permutations: int = NUM_PERMUTATIONS
) -> float:
    """Return the one-sided p-value of the sum of s over X, among all ways of choosing as many targets.

    Where there are no more than `num_permutations` ways, all are counted; else the observed one and
    `num_permutations` - 1 drawn ones are, so that the least value is 1 / `num_permutations` (bias-bench). Ties count;
    sums that differ by rounding alone are ties. The seed is the test's own, so that p does not depend on which tests
    ran before, as it does in bias-bench.
    """
    size = int(in_first.sum())
    least = float(values[in_first].sum()) - TIE * float(np.abs(values).sum())
    if math.comb(len(values), size) <= num_permutations:
        blocks, count, total = _all_sums(values, size), 0, 0
    else:
        blocks, count, total = _drawn_sums(values, size, num_permutations - 1, seed), 1, 1
    for sums in blocks:
        count += int((sums >= least).sum())
        total += len(sums)
    return count / total


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = np.asarray(vectors, dtype=np.float64)
    unit: np.ndarray = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def _all_sums(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    chosen = combinations(range(len(values)), size)
    while block := list(islice(chosen, max(1, BLOCK_CELLS // max(1, size)))):
        yield values[np.array(block, dtype=np.int64).reshape(len(block), size)].sum(axis=1)


def _drawn_sums(values: np.ndarray, size: int, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield sums over random subsets of `size` values: those of the smallest random keys, as 0/1 masks times values.

    All subsets are equally likely; no two of 53 random bits are equal in practice.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK_CELLS // len(values))
    for start in range(0, num_draws, rows):
        keys = rng.random((min(rows, num_draws - start), len(values)))
        last = np.partition(keys, size - 1, axis=1)[:, size - 1, None]
        yield (keys <= last).astype(np.float64) @ values
