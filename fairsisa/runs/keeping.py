"""Which of a run's checkpoints stay on disk."""

from __future__ import annotations

import numpy as np

from fairsisa.runs.directory import Run
from fairsisa.settings import StorageSettings
from fairsisa.sisa.budget import slice_epochs
from fairsisa.sisa.retention import checkpoints_within, choose_checkpoints
from fairsisa.store import Removal


def retain(run: Run, storage: StorageSettings | None = None) -> Removal:
    """Drop the checkpoints that a retention policy, by default the run's own, does not keep; return what was dropped.

    Only weights go: what is on record about a checkpoint stays, so that its descendants know all examples behind them.
    Checkpoints that another run claims stay too.

    Raises:
        ConfigError: when `max_bytes` cannot hold what the policy keeps; nothing was dropped.
    """
    storage, store = storage or run.storage, run.store
    if storage.retention == "all" and storage.max_bytes is None:
        return Removal((), 0)
    names = [steps for _, steps in sorted(run.ensemble.checkpoints.items(), key=lambda item: _number(item[0]))]
    sizes = slice_sizes(run)
    weights = [store.manifest(name).num_bytes for steps in names for name in steps]
    room = checkpoints_within(storage.max_bytes, bytes_per_checkpoint=max(weights), sizes=sizes)
    kept = choose_checkpoints(
        sizes,
        planned_epochs(run),
        policy=storage.retention,
        max_checkpoints=room,
        keep_last=storage.keep_last,
    )
    others = store.claimed_by_others(run.directory)
    going = {names[shard][place] for shard, place in np.argwhere(~kept)}
    return store.drop(sorted(going - others))


def slice_sizes(run: Run) -> np.ndarray:
    """Return how many examples each slice holds, int64, shape (num_shards, num_slices)."""
    num_shards, num_slices = run.settings.partition.num_shards, run.num_slices
    table = run.read_table("partition", ["shard", "slice"])
    cells = table["shard"].to_numpy() * num_slices + table["slice"].to_numpy()
    return np.bincount(cells, minlength=num_shards * num_slices).reshape(num_shards, num_slices)


def planned_epochs(run: Run) -> tuple[float, ...]:
    """Return e_1..e_R of the run's slices, those added later included."""
    settings = run.settings
    planned = settings.partition.num_slices
    return slice_epochs(settings.trainer, planned, run.num_slices - planned)


def _number(constituent: str) -> int:
    return int(constituent.removeprefix("shard-"))
