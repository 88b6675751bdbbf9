"""Which numbers of shards and slices, and which batching of requests, suit a deployment's needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import pandas as pd

from fairsisa.errors import ConfigError
from fairsisa.settings import TrainerSettings, in_range
from fairsisa.sisa import formulas
from fairsisa.sisa.budget import slice_epochs
from fairsisa.sisa.cost import stage_presentations
from fairsisa.sisa.retention import choose_checkpoints
from fairsisa.sisa.simulation import World, deal_examples, simulate_requests

SECONDS_PER_DAY = 86_400
SMALL_SHARE = 0.01


@dataclass(frozen=True)
class Needs:
    """What a deployment asks of its partition.

    `examples_per_second` is what one core trains; `max_bytes` bounds the checkpoints, None not at all; a request may
    wait `max_delay_days` from its receipt to the end of its execution. Epochs are compute-matched.
    """

    num_examples: int
    requests_per_day: float
    examples_per_second: float
    bytes_per_checkpoint: int
    max_delay_days: float
    max_bytes: int | None = None
    max_epochs: float = 3.0
    num_cores: int = 1

    def __post_init__(self) -> None:
        for name in ("num_examples", "bytes_per_checkpoint", "num_cores"):
            in_range(name, getattr(self, name), low=1)
        for name in ("requests_per_day", "examples_per_second", "max_delay_days", "max_epochs"):
            in_range(name, getattr(self, name), above=0.0)


@dataclass(frozen=True, eq=False)
class Advice:
    """The candidates, best first, as `advise` describes them; the first is recommended if it is feasible."""

    table: pd.DataFrame

    @property
    def recommended(self) -> pd.DataFrame:
        """The recommended candidate's row; no row when none is feasible."""
        return self.table[self.table["feasible"]].head(1)


def advise(
    needs: Needs,
    *,
    shards: Sequence[int],
    slices: Sequence[int],
    windows: Sequence[int],
    risks: np.ndarray | None = None,
    strategy: str = "uniform",
    num_trials: int = 2_000,
    seed: int = 0,
) -> Advice:
    """Return what each candidate (S, R, window) costs in the long run, the feasible and cheapest first.

    A row's cost is that of executing one window on the full partition: `formulas.combined_batch` where that holds
    (equal risks, every checkpoint kept, at most a hundredth of the examples in a window), a Monte Carlo mean
    elsewhere. Where `max_bytes` has no room for every checkpoint, `retention` chooses which to keep; at least the last
    of each shard. `delay_days` is how long the first request of a window is expected to wait until the window is full,
    and then for the slowest execution. `worst_core_seconds` is the costliest execution: every request in another
    shard's first slice. Accuracy is not considered: it falls with the number of shards, so offer only candidates whose
    accuracy will do.

    Candidates whose slices would hold fewer than two examples, or whose window takes more than half of those that can
    be asked for, are left out.

    Raises:
        ConfigError: when no candidate is left.
        PartitionError: when the risks allow no such number of shards.
    """
    rows = []
    askable = needs.num_examples if risks is None else int(np.count_nonzero(risks))
    cells = [cell for cell in product(sorted(set(shards)), sorted(set(slices))) if 2 * prod(cell) <= needs.num_examples]
    windows = [window for window in sorted(set(windows)) if 2 * window <= askable]
    if not (cells and windows):
        raise ConfigError(
            f"Expected a candidate with two examples a slice and windows of at most half of the {askable:,} examples "
            "that can be asked for, got none: name fewer shards or slices, or smaller windows."
        )
    for num_shards, num_slices in cells:
        world = deal_examples(
            needs.num_examples, num_shards=num_shards, num_slices=num_slices, risks=risks, strategy=strategy, seed=seed
        )
        kept = kept_within(world, needs)
        for window in windows:
            cost, method = _window_cost(world, needs, kept, window, (num_trials, seed))
            rows.append(_candidate(world, needs, kept, window, cost) | {"method": method})
    table = pd.DataFrame(rows)
    keys = ["core_seconds_per_day", "storage_bytes", "delay_days", "num_shards", "num_slices", "window"]
    order = table.sort_values(["feasible", *keys], ascending=[False, *[True] * len(keys)], ignore_index=True)
    return Advice(order)


def limits(needs: Needs) -> tuple[tuple[str, float, str], ...]:
    """Return (column of the candidates, the most that is allowed, its unit) of each limit that there is."""
    cores = float(SECONDS_PER_DAY * needs.num_cores)
    bounds = (
        ("delay_days", needs.max_delay_days, "days of delay"),
        ("core_seconds_per_day", cores, "core-seconds a day"),
    )
    if needs.max_bytes is None:
        return bounds
    return (("storage_bytes", float(needs.max_bytes), "bytes of checkpoints"), *bounds)


def amount(value: float) -> str:
    """Return a number as people read it: whole from a thousand on, else with six digits."""
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.6g}"


def _epochs(needs: Needs, num_slices: int) -> tuple[float, ...]:
    return slice_epochs(TrainerSettings(max_epochs=needs.max_epochs), num_slices)


def kept_within(world: World, needs: Needs) -> np.ndarray:
    """Return which checkpoints to keep, bool, shape (S, R): those that fit, but never fewer than one a shard."""
    num_shards, num_slices = world.sizes.shape
    room = world.sizes.size if needs.max_bytes is None else needs.max_bytes // needs.bytes_per_checkpoint
    if room >= world.sizes.size:
        return np.ones(world.sizes.shape, dtype=bool)
    risks, room = world.slice_risks, max(room, num_shards)
    return choose_checkpoints(
        world.sizes, _epochs(needs, num_slices), policy="optimal", max_checkpoints=room, risks=risks
    )


def _window_cost(
    world: World, needs: Needs, kept: np.ndarray, window: int, draws: tuple[int, int]
) -> tuple[float, str]:
    """Return the expected cost of executing one window, in example-epochs, and how it was found."""
    num_shards, num_slices = world.sizes.shape
    if world.risks is None and kept.all() and window <= needs.num_examples * SMALL_SHARE:
        cost = formulas.combined_batch(
            num_examples=needs.num_examples,
            num_shards=num_shards,
            num_slices=num_slices,
            num_requests=window,
            max_epochs=needs.max_epochs,
        )
        return cost, "closed form"
    found = simulate_requests(
        world,
        _epochs(needs, num_slices),
        num_requests=window,
        window=window,
        kept=kept,
        num_trials=draws[0],
        seed=draws[1],
    )
    return float(found.per_request.mean() * window), "Monte Carlo"


def _candidate(world: World, needs: Needs, kept: np.ndarray, window: int, cost: float) -> dict[str, object]:
    num_shards, num_slices = world.sizes.shape
    shard_seconds = np.sort(stage_presentations(_epochs(needs, num_slices), world.sizes).sum(axis=1))[::-1]
    shard_seconds = shard_seconds / needs.examples_per_second
    worst = shard_seconds[:window]
    rounds = worst[:: needs.num_cores]  # the longest first, as many at once as there are cores
    found: dict[str, object] = {
        "num_shards": num_shards,
        "num_slices": num_slices,
        "window": window,
        "num_checkpoints": int(kept.sum()),
        "storage_bytes": int(kept.sum()) * needs.bytes_per_checkpoint,
        "example_epochs_per_request": cost / window,
        "core_seconds_per_day": cost / window * needs.requests_per_day / needs.examples_per_second,
        "delay_days": (window - 1) / needs.requests_per_day + float(rounds.sum()) / SECONDS_PER_DAY,
        "worst_core_seconds": float(worst.sum()),
    }
    reasons = "; ".join(_obstacles(needs, found))
    return found | {"feasible": not reasons, "reason": reasons}


def _obstacles(needs: Needs, found: dict[str, object]) -> Iterator[str]:
    for name, most, unit in limits(needs):
        value = found[name]
        if isinstance(value, int | float) and value > most:
            yield f"needs {amount(value)} {unit}, at most {amount(most)} allowed"
