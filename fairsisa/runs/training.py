"""The verb `train`: from settings to a published shard ensemble."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairsisa.data.corpora import load_corpus
from fairsisa.errors import RunError
from fairsisa.execution import Report, default_workers, run_tasks
from fairsisa.models.device import numeric_environment
from fairsisa.runs.assembly import HELD_OUT, Assembly, assemble, resolve
from fairsisa.runs.directory import Ensemble, Run
from fairsisa.runs.tables import training_tables
from fairsisa.settings import ExecutionSettings, PathSettings, RunSettings, plain
from fairsisa.sisa.chain import plan_stages
from fairsisa.sisa.ensemble import predict_constituent
from fairsisa.sisa.partition import Partition, partition_examples
from fairsisa.sisa.training import SliceResult, make_features, train_shard
from fairsisa.tables import Examples


def train_run(
    settings: RunSettings,
    run: Run,
    *,
    paths: PathSettings,
    execution: ExecutionSettings,
    on_event: Report,
    command: str | None = None,
) -> list[SliceResult]:
    """Train what the run lacks, predict its held-out splits and publish the ensemble; return the training table's rows.

    `command` is what a person typed, for the report. Begun anew, stopped in the middle or finished already: the same
    call ends with the same checkpoints.

    Raises:
        RunError: when the directory holds a run of other settings, or another command is at work on it.
        FairsisaError: of the kind that fits, when data, settings, models or training fail; what was finished is kept.
    """
    settings = resolve(settings)
    with run.locked():
        store = Path(paths.store).expanduser().resolve()
        if run.exists:
            _require_same(run, settings)
            examples, partition = run.examples, run.partition
        else:
            examples = load_corpus(settings.data, root=data_root(paths), cache=Path(paths.cache).expanduser())
            _require_sensitive(settings, examples)
            partition = deal(settings, examples)
            environment = machine(settings) | {"commands": [] if command is None else [command]}
            source = source_digest(settings.data)
            run.begin(settings, examples, partition, source=source, store=store, environment=environment)
        assembly = assemble(settings, examples, partition, run.store.root)
        results = _train(assembly, settings, execution, on_event)
        run.publish(publishable(assembly, settings, execution, on_event))
        training, curves = training_tables(results)
        run.write("training.csv", training.to_csv(index=False))
        run.write("curves.csv", curves.to_csv(index=False))
    return results


def deal(settings: RunSettings, examples: Examples) -> Partition:
    """Return the partition of the training examples that the settings ask for."""
    asked = settings.partition
    return partition_examples(
        examples,
        num_shards=asked.num_shards,
        num_slices=asked.num_slices,
        strategy=asked.strategy,
        seed=settings.seed,
        sensitive_feature=asked.sensitive_feature,
    )


def source_digest(data: Mapping[str, Any]) -> str | None:
    """Return the SHA-256 of the user's own file that `data.path` names, or None where there is none to read."""
    path = Path(str(data.get("path") or "")).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def machine(settings: RunSettings) -> dict[str, Any]:
    """Return what the run's numbers were made with: numeric environment, versions, processor."""
    trainer = settings.trainer
    packages = ("torch", "transformers", "pytorch-lightning", "peft", "numpy", "pandas", "scikit-learn")
    return {
        "numeric": numeric_environment(trainer.accelerator, trainer.precision, trainer.threads),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def data_root(paths: PathSettings) -> Path | None:
    """Return the folder of local data sets: `paths.data`, else FAIRSISA_DATA; None means downloads."""
    named = paths.data or os.environ.get("FAIRSISA_DATA")
    if not named:
        return None
    root = Path(named).expanduser()
    if not root.is_dir():
        raise RunError(f"Expected a folder of data sets at {root} (paths.data or FAIRSISA_DATA); there is none.")
    return root


def publishable(assembly: Assembly, settings: RunSettings, execution: ExecutionSettings, on_event: Report) -> Ensemble:
    """Return the names of all checkpoints, and of all predictions, which are made where the store lacks them."""
    tasks = assembly.predict_tasks()
    names = run_tasks(
        predict_constituent, [task for _, task in tasks], **_where(settings, execution), on_event=on_event
    )
    predictions: dict[str, dict[str, str]] = {split: {} for split in HELD_OUT}
    for (split, task), name in zip(tasks, names, strict=True):
        if name is not None:
            predictions[split][task.chain.constituent] = name

    def checkpoints(chains: Any) -> dict[str, tuple[str, ...]]:
        return {chain.constituent: tuple(stage.lineage.name for stage in plan_stages(chain)) for chain in chains}

    return Ensemble(checkpoints(assembly.constituents), checkpoints(assembly.baselines), predictions)


def _train(
    assembly: Assembly, settings: RunSettings, execution: ExecutionSettings, on_event: Report
) -> list[SliceResult]:
    where = _where(settings, execution)
    if features := assembly.features_tasks():
        run_tasks(make_features, features, **where, on_event=on_event)
    trained = run_tasks(train_shard, assembly.shard_tasks(), **where, on_event=on_event)
    order = {chain.constituent: place for place, chain in enumerate(assembly.constituents + assembly.baselines)}
    return sorted(
        (result for results in trained for result in results), key=lambda row: (order[row.constituent], row.slice)
    )


def _where(settings: RunSettings, execution: ExecutionSettings) -> dict[str, int]:
    threads = settings.trainer.threads
    workers = execution.num_workers or default_workers(settings.trainer.accelerator, threads)
    return {"num_workers": workers, "threads": threads}


def _require_same(run: Run, settings: RunSettings) -> None:
    before, now = plain(run.settings), plain(settings)
    if before == now:
        source = source_digest(settings.data)
        if source not in (None, run.source):
            raise RunError(
                f"{settings.data['path']} has changed since {run.directory} was begun with it: choose another run=."
            )
        return
    group = next(name for name in now if before[name] != now[name])
    asked, kept = now[group], before[group]
    if isinstance(asked, dict):
        key = next(key for key in {**asked, **kept} if asked.get(key) != kept.get(key))
        group, asked, kept = f"{group}.{key}", asked.get(key), kept.get(key)
    raise RunError(
        f"{run.directory} is a run with {group}={kept}, but {group}={asked} was asked for: "
        "choose another run=, or ask for the same."
    )


def _require_sensitive(settings: RunSettings, examples: Examples) -> None:
    asked = (*settings.evaluation.sensitive_features, *settings.evaluation.headline_features)
    for name in (*asked, settings.partition.sensitive_feature):
        if name is not None:
            examples.sensitive(name)
