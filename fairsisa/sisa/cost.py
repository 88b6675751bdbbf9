"""What given unlearning requests cost on a given partition, in example-epochs: one example shown once is one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fairsisa.errors import PartitionError

COLUMNS = ("example_id", "shard", "slice")
ROWS_AT_ONCE = 1 << 19
CELLS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class ShardCost:
    """What one shard's retraining costs.

    `first_slice` is the first slice that loses an example, so the first whose fingerprint changes. Training restarts
    at `resume_slice`, after the last checkpoint on disk before it; from the initial weights where there is none.
    `presentations` counts the examples that slices from there on are shown, `full_presentations` those of training
    the shard from scratch on the retained examples.
    """

    shard: int
    first_slice: int
    resume_slice: int
    presentations: int
    full_presentations: int
    num_removed: int


@dataclass(frozen=True, eq=False)
class RequestPlan:
    """What some requests cost, one by one or together.

    `request_presentations`, int64, shape (num_requests,), holds what each would cost if it alone were executed on the
    partition as it stands; `request_removed`, of the same shape, how many training examples it names. `batch` is the
    cost of executing all of them together. `sizes` and `removed`, int64, shape (S, R), are the slices before, and
    what they lose to the batch.
    """

    request_presentations: np.ndarray
    request_removed: np.ndarray
    batch: tuple[ShardCost, ...]
    sizes: np.ndarray
    removed: np.ndarray

    @property
    def batch_presentations(self) -> int:
        """What executing all requests together costs."""
        return sum(cost.presentations for cost in self.batch)


def removed_counts(
    table: pa.Table | pd.DataFrame, forget_ids: Collection[str], *, num_shards: int, num_slices: int
) -> np.ndarray:
    """Return how many of the ids stand in each slice, int64, shape (num_shards, num_slices).

    `table` has the columns example_id, shard, slice, one row an example, as `Partition.frame` makes it. Ids that it
    does not hold are passed over.

    Raises:
        PartitionError: when a column is missing, or a shard or slice is out of range.
    """
    counts = np.zeros(num_shards * num_slices, dtype=np.int64)
    wanted = pa.array(list(forget_ids), type=pa.large_string())
    for ids, cells in _batches(_arrow_batches(table), num_shards, num_slices):
        hit = pc.is_in(ids, value_set=wanted).to_numpy(zero_copy_only=False)
        counts += np.bincount(cells[hit], minlength=len(counts))
    return counts.reshape(num_shards, num_slices)


def retraining_cost(
    sizes: np.ndarray, removed: np.ndarray, *, epochs: Sequence[float], kept: np.ndarray
) -> tuple[ShardCost, ...]:
    """Return the exact cost of each affected shard, in order of shards.

    `sizes` (before) and `removed`, whole numbers of shape (S, R); `epochs`, e_1..e_R as `budget.slice_epochs` gives
    them; `kept`, bool, shape (S, R), tells which slices' checkpoints are on disk. A slice left without examples is
    shown none.

    Raises:
        ValueError: when shapes differ, or a slice would lose more examples than it has.
    """
    sizes, removed = np.asarray(sizes, dtype=np.int64), np.asarray(removed, dtype=np.int64)
    _check_shapes(sizes, removed, epochs, kept)
    shards = np.flatnonzero(removed.any(axis=1))
    first = (removed[shards] > 0).argmax(axis=1)
    resume = resume_slices(kept, sizes)[shards, first]
    shown = stage_presentations(epochs, (sizes - removed)[shards])
    columns = (shards, first, resume, sums_from(shown, resume), shown.sum(axis=1), removed[shards].sum(axis=1))
    return tuple(ShardCost(*map(int, row)) for row in zip(*columns, strict=True))


def plan_requests(
    partition_file: Path, requests: Sequence[Collection[str]], *, epochs: Sequence[float], kept: np.ndarray
) -> RequestPlan:
    """Return the cost of each request alone, and of all together, on the partition in a Parquet file.

    `epochs` and `kept` are those of `retraining_cost`; the shape of `kept` tells the number of shards and slices. The
    file is read once, in parts, and only the columns needed. Ids it does not hold cost nothing.

    Raises:
        PartitionError: when a column is missing, or a shard or slice is out of range.
        ValueError: when shapes differ.
    """
    num_shards, num_slices = kept.shape
    owners, codes, wanted = _wanted_ids(requests)
    counts = np.zeros(kept.size, dtype=np.int64)
    places = np.full(len(wanted), -1, dtype=np.int64)
    for ids, cells in _batches(_parquet_batches(partition_file), num_shards, num_slices):
        counts += np.bincount(cells, minlength=kept.size)
        found = pc.index_in(ids, value_set=wanted)
        hit = found.is_valid().to_numpy(zero_copy_only=False)
        places[found.drop_null().to_numpy(zero_copy_only=False)] = cells[hit]
    removed = np.bincount(places[places >= 0], minlength=kept.size).reshape(kept.shape)
    sizes = counts.reshape(kept.shape)
    batch = retraining_cost(sizes, removed, epochs=epochs, kept=kept)
    known = places[codes] >= 0
    owners, cells = owners[known], places[codes[known]]
    costs = _costs_alone(owners, cells, sizes, epochs=epochs, kept=kept, num_requests=len(requests))
    return RequestPlan(costs, np.bincount(owners, minlength=len(requests)), batch, sizes, removed)


def stage_presentations(epochs: Sequence[float], sizes: np.ndarray) -> np.ndarray:
    """Return `budget.presentations` of many shards at once.

    `sizes` are whole numbers, shape (..., R); so is the int64 result. The same float operations run in the same
    order, so the counts are equal, not only close.
    """
    wanted = np.where(sizes > 0, np.asarray(epochs, dtype=np.float64) * np.cumsum(sizes, axis=-1), 0.0)
    return np.asarray(np.diff(np.rint(np.cumsum(wanted, axis=-1)).astype(np.int64), axis=-1, prepend=0))


def resume_slices(kept: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return, for each slice that may change first, the slice at which training restarts: int64, shape (S, R).

    `kept`, bool, and `sizes` have shape (S, R). Training restarts after the last checkpoint on disk of a slice with
    examples; an empty slice's holds no weights, and is passed over, as `training.first_to_train` does.
    """
    num_shards, num_slices = sizes.shape
    after = np.maximum.accumulate(np.where(kept & (sizes > 0), np.arange(1, num_slices + 1), 0), axis=1)
    after = np.concatenate([np.zeros((num_shards, 1), dtype=np.int64), after[:, :-1]], axis=1)
    filled = np.where(sizes > 0, np.arange(num_slices), num_slices)
    following = np.minimum.accumulate(filled[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(np.minimum(np.take_along_axis(following, after, axis=1), np.arange(num_slices)))


def sums_from(shown: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the sum of each row of `shown`, shape (n, R), from the column in `start`, shape (n,), on."""
    return np.asarray(np.where(np.arange(shown.shape[1]) >= start[:, None], shown, 0).sum(axis=1))


def _costs_alone(
    owners: np.ndarray,
    cells: np.ndarray,
    sizes: np.ndarray,
    *,
    epochs: Sequence[float],
    kept: np.ndarray,
    num_requests: int,
) -> np.ndarray:
    """Return each request's own cost; `owners` and `cells` give the request and the cell of each id, owners ascending.

    Works through the (request, shard) pairs in parts, so that memory stays bounded.
    """
    num_shards, num_slices = sizes.shape
    pairs, pair_of = np.unique(owners * num_shards + cells // num_slices, return_inverse=True)
    order = np.argsort(pair_of, kind="stable")
    pair_of, slices = pair_of[order], (cells % num_slices)[order]
    resume_of = resume_slices(kept, sizes)
    costs = np.zeros(num_requests, dtype=np.int64)
    step = max(1, CELLS_AT_ONCE // num_slices)
    for start in range(0, len(pairs), step):
        part = pairs[start : start + step]
        low, high = np.searchsorted(pair_of, (start, start + len(part)))
        flat = (pair_of[low:high] - start) * num_slices + slices[low:high]
        gone = np.bincount(flat, minlength=len(part) * num_slices).reshape(-1, num_slices)
        shards = part % num_shards
        resume = resume_of[shards, (gone > 0).argmax(axis=1)]
        np.add.at(costs, part // num_shards, sums_from(stage_presentations(epochs, sizes[shards] - gone), resume))
    return costs


def _wanted_ids(requests: Sequence[Collection[str]]) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Return (request, code) of each id named, each pair once, by request; and the distinct ids in order of codes."""
    owners = np.repeat(np.arange(len(requests)), [len(ids) for ids in requests])
    encoded = pa.array(chain.from_iterable(requests), type=pa.large_string()).dictionary_encode()
    count = max(1, len(encoded.dictionary))
    once = np.unique(owners * count + encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))
    return once // count, once % count, encoded.dictionary


def _arrow_batches(table: pa.Table | pd.DataFrame) -> Iterator[pa.RecordBatch]:
    _check_columns(table.columns if isinstance(table, pd.DataFrame) else table.column_names)
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table[list(COLUMNS)], preserve_index=False)
    yield from table.select(COLUMNS).to_batches(max_chunksize=ROWS_AT_ONCE)


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        _check_columns(file.schema_arrow.names)
        yield from file.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(COLUMNS))


def _batches(
    batches: Iterable[pa.RecordBatch], num_shards: int, num_slices: int
) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """Yield the ids and the cells, shard * num_slices + slice, of each batch."""
    for batch in batches:
        places = []
        for name, count in (("shard", num_shards), ("slice", num_slices)):
            values = batch.column(name).to_numpy(zero_copy_only=False)
            if len(values) and not (values.min() >= 0 and values.max() < count):
                raise PartitionError(f"Expected every {name} to be 0..{count - 1}, got {values.min()}..{values.max()}.")
            places.append(values.astype(np.int64, copy=False))
        yield batch.column("example_id").cast(pa.large_string()), places[0] * num_slices + places[1]


def _check_columns(names: Iterable[str]) -> None:
    missing = set(COLUMNS) - set(names)
    if missing:
        raise PartitionError(f"Expected the columns {', '.join(COLUMNS)}; {', '.join(sorted(missing))} not found.")


def _check_shapes(sizes: np.ndarray, removed: np.ndarray, epochs: Sequence[float], kept: np.ndarray) -> None:
    if sizes.ndim != 2 or removed.shape != sizes.shape or np.shape(kept) != sizes.shape:
        raise ValueError(
            "Expected sizes, removed and kept of one shape (num_shards, num_slices), "
            f"got {sizes.shape}, {removed.shape} and {np.shape(kept)}."
        )
    if len(epochs) != sizes.shape[1]:
        raise ValueError(f"Expected epochs for each of {sizes.shape[1]} slices, got {len(epochs)}.")
    if (removed < 0).any() or (removed > sizes).any():
        raise ValueError("Expected each slice to lose between none and all of its examples; check what was counted.")
