"""The verb `plan`: what a deletion would touch and cost, with nothing touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.runs.directory import Ensemble, Run
from fairsisa.runs.evaluating import report_files
from fairsisa.runs.keeping import planned_epochs, slice_sizes
from fairsisa.runs.tracing import Doomed, doomed
from fairsisa.sisa.cost import removed_counts, retraining_cost, stage_presentations


@dataclass(frozen=True)
class ConstituentPlan:
    """What a deletion does to one constituent; slices are counted from 0.

    Checkpoints from `first_slice` on are replaced; training restarts at `resume_slice`, which comes earlier when a
    retention policy dropped the checkpoints between. `presentations` counts the examples it will be shown,
    `full_presentations` those of retraining all its slices. `old` are the checkpoints to be replaced.
    """

    constituent: str
    first_slice: int
    resume_slice: int
    num_removed: int
    presentations: int
    full_presentations: int
    old: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a deletion will cost, in example-epochs: one example shown once is one.

    `num_examples` counts what it removes, by split. `full_presentations` is the cost of retraining the whole ensemble
    on what stays; `scores` counts (example, constituent) pairs to be scored again. `examples_per_second` is the speed
    this run was trained at, per core; None when it has no record. `stale` names the reports to be made again, and
    `baselines` those that held the examples.
    """

    num_examples: Mapping[str, int]
    constituents: tuple[ConstituentPlan, ...]
    full_presentations: int
    scores: int
    examples_per_second: float | None
    doomed: Doomed
    stale: tuple[str, ...]
    baselines: tuple[str, ...]

    @property
    def presentations(self) -> int:
        """The exact retraining cost."""
        return sum(part.presentations for part in self.constituents)

    @property
    def core_seconds(self) -> float | None:
        """Seconds of training on one core, start-up and scoring left out."""
        return None if self.examples_per_second is None else self.presentations / self.examples_per_second

    def wall_seconds(self, num_workers: int) -> float | None:
        """Return seconds of training when shards are trained `num_workers` at a time, longest first."""
        if self.examples_per_second is None:
            return None
        loads = [0] * num_workers
        for cost in sorted((part.presentations for part in self.constituents), reverse=True):
            loads[loads.index(min(loads))] += cost
        return max(loads) / self.examples_per_second

    def plain(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {**asdict(self), "presentations": self.presentations, "core_seconds": self.core_seconds}

    def evidence(self) -> dict[str, Any]:
        """Return what the ledger keeps of the plan: counts, costs and names of checkpoints, no ids of examples."""
        return {
            "num_examples": dict(self.num_examples),
            "constituents": {part.constituent: asdict(part) for part in self.constituents},
            "presentations": self.presentations,
            "full_presentations": self.full_presentations,
            "core_seconds": self.core_seconds,
            "baselines": list(self.baselines),
        }


def plan_deletion(run: Run, forget_ids: Collection[str]) -> Plan:
    """Return what removing the given examples would touch and cost; ids that the run does not hold are passed over.

    Raises:
        RunError: when the run is not trained.
    """
    ensemble = run.ensemble
    table = run.read_table("examples", ["example_id", "split"]).to_pandas()
    hit = table[table["example_id"].isin(set(forget_ids))]
    left = table["split"].value_counts() - hit["split"].value_counts().reindex(table["split"].unique(), fill_value=0)
    constituents, full, emptied = _constituents(run, ensemble, forget_ids)
    return Plan(
        num_examples=hit["split"].value_counts().to_dict(),
        constituents=constituents,
        full_presentations=full,
        scores=_scores(ensemble, constituents, hit["split"].unique(), left, emptied),
        examples_per_second=measured_speed(run),
        doomed=doomed(run, frozenset(hit["example_id"])),
        stale=report_files(run),
        baselines=affected_baselines(ensemble, hit, constituents),
    )


def affected_baselines(
    ensemble: Ensemble, hit: pd.DataFrame, constituents: Collection[ConstituentPlan]
) -> tuple[str, ...]:
    """Return the baselines that were trained on any of the examples hit."""
    trains = {
        "baseline-whole": bool((hit["split"] == "train").any()),
        "baseline-fraction": any(part.constituent == "shard-0" for part in constituents),
    }
    return tuple(name for name in ensemble.baselines if trains[name])


def _constituents(
    run: Run, ensemble: Ensemble, forget_ids: Collection[str]
) -> tuple[tuple[ConstituentPlan, ...], int, frozenset[str]]:
    """Return the affected constituents, the cost of retraining all, and the constituents left without an example."""
    sizes, epochs = slice_sizes(run), planned_epochs(run)
    num_shards, num_slices = sizes.shape
    names = [f"shard-{shard}" for shard in range(num_shards)]
    table = run.read_table("partition", ["example_id", "shard", "slice"])
    removed = removed_counts(table, forget_ids, num_shards=num_shards, num_slices=num_slices)
    store = run.store
    kept = np.zeros(removed.shape, dtype=bool)
    for shard, name in enumerate(names):
        steps = ensemble.checkpoints[name]
        kept[shard, : len(steps)] = np.array([store.has(step) for step in steps], dtype=bool)
    costs = retraining_cost(sizes, removed, epochs=epochs, kept=kept)
    parts = tuple(
        ConstituentPlan(
            constituent=names[cost.shard],
            first_slice=cost.first_slice,
            resume_slice=cost.resume_slice,
            num_removed=cost.num_removed,
            presentations=cost.presentations,
            full_presentations=cost.full_presentations,
            old=ensemble.checkpoints[names[cost.shard]][cost.first_slice :],
        )
        for cost in costs
    )
    emptied = frozenset(names[shard] for shard in np.flatnonzero((sizes - removed).sum(axis=1) == 0))
    return parts, int(stage_presentations(epochs, sizes - removed).sum()), emptied


def _scores(
    ensemble: Ensemble,
    constituents: Collection[ConstituentPlan],
    splits_hit: Collection[str],
    left: pd.Series,
    emptied: Collection[str],
) -> int:
    """Return how many scores must be made: all columns of a split that loses rows, else the affected columns."""
    affected = {part.constituent for part in constituents}
    pairs = 0
    for split, made in ensemble.predictions.items():
        columns = [name for name in made if name not in emptied and name in ensemble.checkpoints]
        changed = columns if split in set(splits_hit) else [name for name in columns if name in affected]
        pairs += len(changed) * int(left.get(split, 0))
    return pairs


def measured_speed(run: Run) -> float | None:
    """Return how many examples a second one core was shown in the run's training; None when there is no record."""
    path = run.path("training.csv")
    if not path.is_file():
        return None
    rows = pd.read_csv(path)
    rows = rows[rows["shard"].str.startswith("shard-") & (rows["seconds"] > 0)]
    shown = float((rows["examples_per_second"] * rows["seconds"]).sum())
    return shown / float(rows["seconds"].sum()) if shown else None
