"""Try out, before anyone asks, what unlearning requests would cost on a partition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.special import betaincinv

from fairsisa.errors import ConfigError
from fairsisa.settings import TrainerSettings, in_range, one_of
from fairsisa.sisa import formulas
from fairsisa.sisa.budget import slice_epochs
from fairsisa.sisa.cost import resume_slices, stage_presentations, sums_from
from fairsisa.sisa.partition import risk_shards

NUMBERS_AT_ONCE = 1 << 22
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STRATEGIES = ("uniform", "risk_aware")


@dataclass(frozen=True, eq=False)
class World:
    """Examples dealt to slices, and how likely each is to be asked for.

    `sizes`, int64, shape (S, R). `risks`, float64, shape (num_examples,), holds each example's share of the next
    request, in any unit, by shard and slice; None means that all are equally likely.
    """

    sizes: np.ndarray
    risks: np.ndarray | None = None

    @property
    def slice_risks(self) -> np.ndarray:
        """The share of the next request that falls on each slice, in the same unit, shape (S, R)."""
        if self.risks is None:
            return np.asarray(self.sizes, dtype=np.float64)
        return np.bincount(self.cells, weights=self.risks, minlength=self.sizes.size).reshape(self.sizes.shape)

    @property
    def cells(self) -> np.ndarray:
        """The cell of each example, shard * num_slices + slice."""
        return np.repeat(np.arange(self.sizes.size), self.sizes.ravel())


@dataclass(frozen=True, eq=False)
class Simulation:
    """What `num_requests` requests cost in each trial, executed `window` at a time; shape (num_trials,) each.

    `per_request` is the mean over a trial's requests, in example-epochs; `full_per_request` is what it would be if
    every execution trained all shards from scratch; `worst` is a trial's costliest execution.
    """

    num_requests: int
    window: int
    per_request: np.ndarray
    full_per_request: np.ndarray
    worst: np.ndarray

    def summary(self, quantiles: Sequence[float] = QUANTILES) -> pd.DataFrame:
        """Return mean, standard error and quantiles over trials of `per_request` and `speed_up`, a row each.

        The mean speed-up is the ratio of the mean costs, which `formulas` gives as expected, with the standard error
        of a ratio (delta method); its quantiles are those of the trials' own ratios, infinite where nothing was left
        to train.
        """
        ratio = float(self.full_per_request.mean() / self.per_request.mean())
        rest = (self.full_per_request - ratio * self.per_request) / self.per_request.mean()
        with np.errstate(divide="ignore"):
            speed_ups = self.full_per_request / self.per_request
        rows = (
            ("per_request", float(self.per_request.mean()), self.per_request, self.per_request),
            ("speed_up", ratio, rest, speed_ups),
        )
        return pd.DataFrame(
            {
                "quantity": name,
                "mean": mean,
                "standard_error": float(spread.std(ddof=1)) / math.sqrt(len(spread)),
                **{f"q{100 * q:g}": float(np.quantile(values, q, method="lower")) for q in quantiles},
            }
            for name, mean, spread, values in rows
        )


def group_risks(num_examples: int, *, share: float, weight: float) -> np.ndarray:
    """Return risks with which a group of that share of the examples, the last ones, makes that share of requests.

    Both lie strictly between 0 and 1. The largest risk is 1.
    """
    in_range("share", share, above=0.0, high=1 - 1 / num_examples)
    in_range("weight", weight, above=0.0, high=math.nextafter(1.0, 0.0))
    size = min(max(1, round(share * num_examples)), num_examples - 1)
    risks = np.full(num_examples, (1 - weight) / (num_examples - size))
    risks[num_examples - size :] = weight / size
    return np.asarray(risks / risks.max())


def pareto_risks(num_examples: int, *, index: float) -> np.ndarray:
    """Return risks that follow a Pareto distribution of that tail index: its quantiles, in descending order.

    The share q of the examples with the largest risks makes about q^(1 - 1/index) of the requests where index > 1. The
    largest risk is 1.
    """
    in_range("index", index, above=0.0)
    places = (np.arange(num_examples) + 0.5) / num_examples
    return np.asarray((places / places[0]) ** (-1 / index))


def beta_risks(num_examples: int, *, shape: Sequence[float]) -> np.ndarray:
    """Return risks that follow a beta distribution of these two shapes: its quantiles, in ascending order."""
    first, second = shape
    places = (np.arange(num_examples) + 0.5) / num_examples
    return np.asarray(betaincinv(first, second, places))


def deal_examples(
    num_examples: int,
    *,
    num_shards: int,
    num_slices: int,
    risks: np.ndarray | None = None,
    strategy: str = "uniform",
    seed: int = 0,
) -> World:
    """Return a world of examples dealt as the partition strategies deal subjects of one example each.

    "uniform": by chance, to slices of equal size; "risk_aware": shards by `partition.risk_shards`, slices by
    ascending risk. `risks`, shape (num_examples,), lie in [0, 1]; None means that all are equal.

    Raises:
        ConfigError: when there are fewer examples than slices.
        PartitionError: when the risks allow no such number of shards.
    """
    one_of("strategy", strategy, STRATEGIES)
    if num_shards * num_slices > num_examples:
        raise ConfigError(
            f"Expected at least one example a slice, got {num_examples} examples for {num_shards} x {num_slices} "
            "slices: ask for fewer."
        )
    if risks is None or strategy == "uniform":
        cells = np.arange(num_examples) * (num_shards * num_slices) // num_examples
        order = None if risks is None else np.random.default_rng(seed).permutation(num_examples)
    else:
        order = np.argsort(risks, kind="stable")
        shard = risk_shards(risks[order], num_shards)
        counts = np.bincount(shard, minlength=num_shards)
        ranks = np.arange(num_examples) - np.repeat(np.cumsum(counts) - counts, counts)
        cells = shard * num_slices + ranks * num_slices // np.repeat(counts, counts)
    sizes = np.bincount(cells, minlength=num_shards * num_slices).reshape(num_shards, num_slices)
    return World(sizes, None if risks is None or order is None else np.asarray(risks, dtype=np.float64)[order])


def simulate_requests(
    world: World,
    epochs: Sequence[float],
    *,
    num_requests: int,
    window: int = 1,
    kept: np.ndarray | None = None,
    num_trials: int = 10_000,
    seed: int = 0,
) -> Simulation:
    """Draw requests for one example each, execute them `window` at a time, and count what is trained again.

    Each request takes one of the examples still there, with probability proportional to its risk; shards shrink as
    requests are executed. Counts of presentations are exact, rounding included. `epochs` are e_1..e_R as
    `budget.slice_epochs` gives them; `kept`, bool, shape (S, R), tells which checkpoints are on disk after every
    execution (None: all).

    Raises:
        ConfigError: when there are more requests than examples that can be asked for.
    """
    askable = world.sizes.sum() if world.risks is None else np.count_nonzero(world.risks)
    in_range("num_requests", num_requests, low=1, high=int(askable))
    in_range("window", window, low=1)
    in_range("num_trials", num_trials, low=2)
    kept = np.ones(world.sizes.shape, dtype=bool) if kept is None else kept
    rng = np.random.default_rng(seed)
    parts = [
        _execute(world.sizes, epochs, falls, window=window, kept=kept)
        for falls in _falls(world, num_requests, num_trials, rng)
    ]
    cost, full, worst = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Simulation(num_requests, window, cost / num_requests, full / num_requests, worst)


def compare_batches(
    num_examples: int,
    *,
    num_shards: int,
    num_slices: int,
    batch_sizes: Sequence[int],
    max_epochs: float = 3.0,
    num_trials: int = 2_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return `compare_batches_in` of a world of equal slices and equal risks, every checkpoint kept."""
    world = deal_examples(num_examples, num_shards=num_shards, num_slices=num_slices)
    return compare_batches_in(world, batch_sizes=batch_sizes, max_epochs=max_epochs, num_trials=num_trials, seed=seed)


def compare_batches_in(
    world: World,
    *,
    batch_sizes: Sequence[int],
    max_epochs: float = 3.0,
    kept: np.ndarray | None = None,
    num_trials: int = 2_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the speed-ups and costs of executing requests, in closed form beside Monte Carlo, a row a batch size.

    Columns: num_requests; best, expected, worst from `formulas.speed_ups`; the columns of the simulated speed-up in
    `Simulation.summary`: mean, standard_error, and quantiles; then, in example-epochs for all requests of the row, the
    closed forms of `expected_costs`, and the simulated cost of the requests together: simulated_cost,
    simulated_error. Closed forms hold for equal slices, equal risks and every checkpoint kept; the trials for the
    world and `kept` as they are.
    """
    num_shards, num_slices = world.sizes.shape
    num_examples = int(world.sizes.sum())
    epochs = slice_epochs(TrainerSettings(max_epochs=max_epochs), num_slices)
    rows: list[dict[str, float]] = []
    for size in sorted(set(batch_sizes)):
        closed = formulas.speed_ups(num_shards=num_shards, num_slices=num_slices, num_requests=size)
        found = simulate_requests(
            world, epochs, num_requests=size, window=size, kept=kept, num_trials=num_trials, seed=seed
        ).summary()
        cost, speed_up = (found.drop(columns="quantity").iloc[place] for place in (0, 1))
        costs = expected_costs(
            num_examples, num_shards=num_shards, num_slices=num_slices, num_requests=size, max_epochs=max_epochs
        )
        simulated = {"simulated_cost": size * cost["mean"], "simulated_error": size * cost["standard_error"]}
        rows.append({"num_requests": size, **asdict(closed), **_by_name(speed_up), **costs, **simulated})
    return pd.DataFrame(rows)


def expected_costs(
    num_examples: int, *, num_shards: int, num_slices: int, num_requests: int, max_epochs: float = 3.0
) -> dict[str, float]:
    """Return what requests are expected to cost in closed form, by how they are executed, in example-epochs.

    "sequential": one by one, on shards without slices; "batch": together, without slices; "slicing": one by one, on
    shards with slices; "combined": together, with slices. See `formulas` for each.
    """
    whole = {"num_shards": num_shards, "num_requests": num_requests}
    request = formulas.slicing_request(
        shard_size=num_examples / num_shards, num_slices=num_slices, max_epochs=max_epochs
    )
    return {
        "sequential": formulas.sequential_sharding(num_examples=num_examples, max_epochs=max_epochs, **whole),
        "batch": formulas.batch_sharding(num_examples=num_examples, max_epochs=max_epochs, **whole),
        "slicing": num_requests * request,
        "combined": formulas.combined_batch(
            num_examples=num_examples, num_slices=num_slices, max_epochs=max_epochs, **whole
        ),
    }


def _by_name(numbers: pd.Series) -> dict[str, float]:
    return dict(zip(numbers.index, numbers, strict=True))


def _execute(
    sizes: np.ndarray, epochs: Sequence[float], falls: np.ndarray, *, window: int, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Execute each trial's requests; `falls` holds the cell of each, shape (num_trials, num_requests).

    Returns, shape (num_trials,) each: the total cost, that of training all shards from scratch at every execution,
    and the costliest execution's. A row is one shard of one trial.
    """
    num_shards, num_slices = sizes.shape
    count = len(falls)
    there = np.tile(sizes, (count, 1))
    whole = np.tile(stage_presentations(epochs, sizes).sum(axis=1), count)
    cost, full, worst = np.zeros((3, count))
    for start in range(0, falls.shape[1], window):
        now = falls[:, start : start + window]
        rows = np.arange(count)[:, None] * num_shards + now // num_slices
        hit, place = np.unique(rows, return_inverse=True)
        flat = place.reshape(-1) * num_slices + (now % num_slices).reshape(-1)
        gone = np.bincount(flat, minlength=len(hit) * num_slices).reshape(-1, num_slices)
        first = (gone > 0).argmax(axis=1)
        resume = first if kept.all() else resume_slices(kept[hit % num_shards], there[hit])[np.arange(len(hit)), first]
        there[hit] -= gone
        shown = stage_presentations(epochs, there[hit])
        whole[hit] = shown.sum(axis=1)
        spent = np.bincount(hit // num_shards, weights=sums_from(shown, resume), minlength=count)
        cost, worst = cost + spent, np.maximum(worst, spent)
        full += whole.reshape(count, num_shards).sum(axis=1)
    return cost, full, worst


def _falls(world: World, num_requests: int, num_trials: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the cells on which each trial's requests fall, some trials at a time.

    An example already asked for is drawn again where that is cheap. Where few examples bear most of the risk, every
    example gets an exponential waiting time of that rate instead, and the first ones are taken: the same law.
    """
    cells = world.cells
    risks = np.ones(len(cells)) if world.risks is None else world.risks
    redraw = np.partition(risks, -num_requests)[-num_requests:].sum() <= risks.sum() / 2
    width = max(num_requests if redraw else len(cells), world.sizes.size)
    ends = np.cumsum(risks)
    step = max(1, NUMBERS_AT_ONCE // width)
    for start in range(0, num_trials, step):
        count = min(step, num_trials - start)
        if redraw:
            yield cells[_distinct(ends, (count, num_requests), rng)]
        else:
            with np.errstate(divide="ignore"):
                waits = rng.standard_exponential((count, len(cells))) / risks
            yield cells[np.argsort(waits, axis=1)[:, :num_requests]]


def _distinct(ends: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw rows of distinct places, each with probability proportional to its step in `ends`.

    A place that stands earlier in its row is drawn again until none does. Its earliest holder can only move forward
    in the row, so what is drawn is what drawing one by one, without replacement, would give.
    """
    places = np.searchsorted(ends, rng.random(shape) * ends[-1], side="right")
    while True:
        order = np.argsort(places, axis=1, kind="stable")
        ordered = np.take_along_axis(places, order, axis=1)
        again = np.zeros(shape, dtype=bool)
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        if not again.any():
            return np.asarray(places)
        places[again] = np.searchsorted(ends, rng.random(int(again.sum())) * ends[-1], side="right")
