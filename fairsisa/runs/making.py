"""From an assembly to what it lacks: the work that training, unlearning and adding data share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fairsisa.execution import Report, run_tasks
from fairsisa.runs.assembly import HELD_OUT, Assembly
from fairsisa.runs.directory import Ensemble, Run
from fairsisa.runs.tables import training_tables
from fairsisa.settings import ExecutionSettings, RunSettings
from fairsisa.sisa.chain import Chain, features_lineage, plan_stages
from fairsisa.sisa.ensemble import predict_constituent
from fairsisa.sisa.training import FeaturesTask, ShardTask, SliceResult, first_to_train, make_features, train_shard
from fairsisa.store import Store

Task = TypeVar("Task")
Result = TypeVar("Result")

JOBS = "jobs"
"""The folder of a run for what travels to other machines."""


@dataclass(frozen=True)
class Workplace:
    """Where a run's tasks are executed, and who hears of their progress."""

    run: Run
    settings: RunSettings
    execution: ExecutionSettings
    on_event: Report

    def do(self, function: Callable[[Task, Report], Result], tasks: Sequence[Task]) -> list[Result]:
        """Return `function(task, report)` of every task."""
        if not tasks:
            return []
        trainer = self.settings.trainer
        return run_tasks(
            function,
            tasks,
            execution=self.execution,
            threads=trainer.threads,
            accelerator=trainer.accelerator,
            scratch=self.run.path(JOBS),
            on_event=self.on_event,
        )


def train_missing(assembly: Assembly, place: Workplace) -> list[SliceResult]:
    """Train the checkpoints that the store lacks, and nothing else; return a row for every slice of every chain."""
    store = Store(assembly.store)
    tasks = assembly.shard_tasks()
    lacking = [task for task in tasks if _lacks(task, store)]
    wanted = {id(task.chain) for task in lacking}
    blocks = [task for task in assembly.features_tasks() if not store.has(_features_name(task))]
    place.do(make_features, blocks)
    results = [row for rows in place.do(train_shard, lacking) for row in rows]
    for task in tasks:
        if id(task.chain) not in wanted:
            results += train_shard(task, place.on_event)
    order = {chain.constituent: index for index, chain in enumerate(assembly.constituents + assembly.baselines)}
    return sorted(results, key=lambda row: (order[row.constituent], row.slice))


def publishable(assembly: Assembly, place: Workplace) -> Ensemble:
    """Return the names of all checkpoints, and of all predictions, which are made where the store lacks them."""
    tasks = assembly.predict_tasks()
    names = place.do(predict_constituent, [task for _, task in tasks])
    predictions: dict[str, dict[str, str]] = {split: {} for split in HELD_OUT}
    for (split, task), name in zip(tasks, names, strict=True):
        if name is not None:
            predictions[split][task.chain.constituent] = name
    return Ensemble(checkpoints(assembly.constituents), checkpoints(assembly.baselines), predictions)


def checkpoints(chains: Sequence[Chain]) -> dict[str, tuple[str, ...]]:
    """Return the names of the checkpoints of each chain, in slice order."""
    return {chain.constituent: tuple(stage.lineage.name for stage in plan_stages(chain)) for chain in chains}


def settle(place: Workplace, assembly: Assembly, results: Sequence[SliceResult]) -> None:
    """Bring up to date what hangs on a published ensemble: the claim, and the training tables."""
    run = place.run
    run.store.claim(run.directory, assembly.names | run.pointer.names)
    training, curves = training_tables(results)
    run.write("training.csv", training.to_csv(index=False))
    run.write("curves.csv", curves.to_csv(index=False))


def _lacks(task: ShardTask, store: Store) -> bool:
    stages = plan_stages(task.chain)
    return first_to_train(store, stages) < len(stages)


def _features_name(task: FeaturesTask) -> str:
    return features_lineage(task.chain, task.inputs.example_ids, task.inputs.contents).name
