"""Which checkpoints of each shard to keep when there is not room for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairsisa.errors import ConfigError
from fairsisa.settings import one_of
from fairsisa.sisa.cost import resume_slices, stage_presentations

POLICIES = ("all", "last", "optimal")


def checkpoints_within(max_bytes: int | None, *, bytes_per_checkpoint: int, sizes: np.ndarray) -> int | None:
    """Return how many checkpoints fit into `max_bytes`; None, no bound, when that is None.

    `sizes`, shape (S, R), are the numbers of examples of each slice.

    Raises:
        ConfigError: when not even the last checkpoint of every shard fits, which the ensemble needs to serve.
    """
    if max_bytes is None:
        return None
    fewest = int((sizes > 0).any(axis=1).sum()) * bytes_per_checkpoint
    if max_bytes < fewest:
        raise ConfigError(
            f"Expected store.max_bytes to hold the last checkpoint of every shard, got {max_bytes}; "
            f"the smallest valid value is {fewest}."
        )
    return max_bytes // bytes_per_checkpoint


def choose_checkpoints(
    sizes: np.ndarray,
    epochs: Sequence[float],
    *,
    policy: str = "all",
    max_checkpoints: int | None = None,
    keep_last: int = 1,
    risks: np.ndarray | None = None,
) -> np.ndarray:
    """Return which slices keep their checkpoint: bool, shape (S, R).

    "all"; "last": those of the `keep_last` last slices with examples of each shard; "optimal": the subset of at most
    `max_checkpoints` of lowest `expected_cost`, and of these the smallest. The last slice with examples of every
    shard is always kept, since the ensemble serves it. Slices without examples count for nothing, hold no weights,
    and are always kept. `epochs` are e_1..e_R as `budget.slice_epochs` gives them; `risks` are those of
    `expected_cost`, and only "optimal" reads them.

    Raises:
        ConfigError: when the policy is unknown, or keeps more than `max_checkpoints`.
    """
    one_of("store.retention", policy, POLICIES)
    sizes = np.asarray(sizes, dtype=np.int64)
    filled = sizes > 0
    fewest = int(filled.any(axis=1).sum())
    if max_checkpoints is not None and max_checkpoints < fewest:
        raise ConfigError(
            f"Expected store.max_bytes to hold the last checkpoint of every shard, got room for {max_checkpoints}; "
            f"the smallest valid value is {fewest} times the bytes of a checkpoint."
        )
    if policy == "optimal":
        return _optimal(sizes, _costs_from(epochs, sizes), _chances(sizes, risks), max_checkpoints)
    most = sizes.shape[1] if policy == "all" else keep_last
    kept = np.cumsum(filled[:, ::-1], axis=1)[:, ::-1] <= most
    needed = int((kept & filled).sum())
    if max_checkpoints is not None and needed > max_checkpoints:
        raise ConfigError(
            f"Expected store.max_bytes to hold the {needed} checkpoints that store.retention={policy} keeps, got room "
            f"for {max_checkpoints}; the smallest valid value is {needed} times the bytes of a checkpoint, or set "
            "store.retention=optimal."
        )
    return np.asarray(kept | ~filled)


def expected_cost(
    sizes: np.ndarray, epochs: Sequence[float], kept: np.ndarray, *, risks: np.ndarray | None = None
) -> float:
    """Return the expected cost of the next request in example-epochs, given the checkpoints on disk.

    The request falls on a slice with probability proportional to `risks`, at least 0, shape (S, R), or to the
    slice's size when that is None. `kept` is bool, shape (S, R). The one example that goes is not yet counted out.

    Raises:
        ValueError: when risks are negative, not finite, all zero, or on a slice without examples.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    costs = np.take_along_axis(_costs_from(epochs, sizes), resume_slices(kept, sizes), axis=1)
    return float((_chances(sizes, risks) * costs).sum())


def _costs_from(epochs: Sequence[float], sizes: np.ndarray) -> np.ndarray:
    """Return what training each shard from each slice on costs, int64, shape (S, R)."""
    return np.asarray(np.cumsum(stage_presentations(epochs, sizes)[:, ::-1], axis=1)[:, ::-1])


def _chances(sizes: np.ndarray, risks: np.ndarray | None) -> np.ndarray:
    if risks is None:
        return np.asarray(sizes / max(1, sizes.sum()))
    risks = np.asarray(risks, dtype=np.float64)
    if risks.shape != sizes.shape:
        raise ValueError(f"Expected risks of shape {sizes.shape}, one a slice, got {risks.shape}.")
    if not (np.isfinite(risks).all() and (risks >= 0).all() and risks[sizes > 0].any() and not risks[sizes == 0].any()):
        raise ValueError("Expected finite risks of at least 0, not all 0, and 0 for slices without examples.")
    return np.asarray(risks / risks.sum())


def _optimal(sizes: np.ndarray, costs: np.ndarray, chances: np.ndarray, max_checkpoints: int | None) -> np.ndarray:
    """Share the checkpoints out over shards: shard after shard, the best total for each number spent so far."""
    filled = [np.flatnonzero(row > 0) for row in sizes]
    room = sum(map(len, filled)) if max_checkpoints is None else min(max_checkpoints, sum(map(len, filled)))
    tables = [_best_starts(costs[shard, places], chances[shard, places]) for shard, places in enumerate(filled)]
    total, spent = np.zeros(room + 1), np.zeros((len(sizes), room + 1), dtype=np.int64)
    for shard, (best, _) in enumerate(tables):
        options = np.full((len(best), room + 1), np.inf)
        for number, cost in enumerate(best[: room + 1]):
            options[number, number:] = total[: room + 1 - number] + cost
        spent[shard] = options.argmin(axis=0)
        total = options.min(axis=0)
    kept, left = sizes == 0, int(np.flatnonzero(total <= total.min())[0])
    for shard in reversed(range(len(sizes))):
        number = int(spent[shard, left])
        kept[shard, filled[shard][_ends(tables[shard][1], number)]] = True
        left -= number
    return np.asarray(kept)


def _best_starts(costs: np.ndarray, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest expected cost of one shard for each number of checkpoints, and how to reach it.

    m checkpoints, the last one included, cut the n slices into m runs; a request restarts its run. So
    best[m, end] = min over start of best[m - 1, start] + P(start..end - 1) * cost from start, for the slices before
    `end`. Returns best[:, n], shape (n + 1,), and the minimising starts, shape (n + 1, n + 1).
    """
    count = len(costs)
    sums = np.concatenate([[0.0], np.cumsum(chances)])
    run = (sums[None, :] - sums[:-1, None]) * costs[:, None]
    run[np.arange(count)[:, None] >= np.arange(count + 1)] = np.inf
    best = np.full((count + 1, count + 1), np.inf)
    starts = np.zeros((count + 1, count + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for number in range(1, count + 1):
        options = best[number - 1, :count, None] + run
        starts[number], best[number] = options.argmin(axis=0), options.min(axis=0)
    return best[:, count], starts


def _ends(starts: np.ndarray, number: int) -> list[int]:
    """Return the last slice of each of `number` runs: the slices whose checkpoints are kept."""
    ends, end = [], starts.shape[1] - 1
    for left in range(number, 0, -1):
        ends.append(end - 1)
        end = int(starts[left, end])
    return ends
