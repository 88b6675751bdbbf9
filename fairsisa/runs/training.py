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
from fairsisa.execution import Report
from fairsisa.models.device import numeric_environment
from fairsisa.runs.assembly import assemble, resolve
from fairsisa.runs.completing import completed
from fairsisa.runs.directory import ENSEMBLE, LEDGER, Run
from fairsisa.runs.keeping import retain
from fairsisa.runs.making import Workplace, settle, train_missing
from fairsisa.settings import ExecutionSettings, PathSettings, RunSettings, StorageSettings, plain
from fairsisa.sisa.partition import Partition, partition_examples
from fairsisa.sisa.training import SliceResult
from fairsisa.store import Store
from fairsisa.tables import Examples, require_trainable


def train_run(
    settings: RunSettings,
    run: Run,
    *,
    paths: PathSettings,
    execution: ExecutionSettings,
    on_event: Report,
    storage: StorageSettings | None = None,
    command: str | None = None,
) -> list[SliceResult]:
    """Train what the run lacks, predict its held-out splits and publish the ensemble; return the training table's rows.

    `storage` says which checkpoints to keep; None means as the run was last asked. `command` is what a person typed,
    for the report. Begun anew, stopped in the middle or finished already: the same
    call ends with the same checkpoints.

    Raises:
        RunError: when the directory holds a run of other settings, or another command is at work on it.
        FairsisaError: of the kind that fits, when data, settings, models or training fail; what was finished is kept.
    """
    settings = resolve(settings)
    with run.locked():
        _refuse_lost(run)
        if run.exists:
            _require_same(run, settings)
            run.mend()
            examples, partition = run.examples, run.partition
        else:
            examples = load_corpus(settings.data, root=data_root(paths), cache=Path(paths.cache).expanduser())
            require_trainable(examples)
            _require_sensitive(settings, examples)
            partition = deal(settings, examples)
            environment = machine(settings) | {"commands": [] if command is None else [command]}
            run.begin(
                settings,
                examples,
                partition,
                source=source_digest(settings.data),
                store=store_of(paths).location,
                environment=environment,
            )
        assembly = assemble(settings, examples, partition, run.store.location)
        place = Workplace(run, settings, execution, on_event)
        run.store.claim(run.directory, assembly.names | run.pointer.names)
        results = train_missing(assembly, place)
        run.publish(completed(assembly, place, examples))
        settle(place, assembly, results)
        retain(run, storage)
        if storage is not None:
            run.keep(storage)
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


def store_of(paths: PathSettings) -> Store:
    """Return the store that the settings name, a folder or a URL."""
    return Store(paths.store if "://" in paths.store else Path(paths.store).expanduser())


def data_root(paths: PathSettings) -> Path | None:
    """Return the folder of local data sets: `paths.data`, else FAIRSISA_DATA; None means downloads."""
    named = paths.data or os.environ.get("FAIRSISA_DATA")
    if not named:
        return None
    root = Path(named).expanduser()
    if not root.is_dir():
        raise RunError(f"Expected a folder of data sets at {root} (paths.data or FAIRSISA_DATA); there is none.")
    return root


def _refuse_lost(run: Run) -> None:
    """Raise RunError when a run with a ledger lost its pointer: begun anew, who was forgotten would be back."""
    if run.path(LEDGER).exists() and not run.exists:
        raise RunError(
            f"{run.directory} has a ledger of requests but no {ENSEMBLE}: restore that from a backup. Training anew "
            "would bring back who was forgotten; choose another run= if you mean to."
        )


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
