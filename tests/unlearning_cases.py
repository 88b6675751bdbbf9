from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from chains import LOGISTIC, QUICK, run_of
from fairsisa.execution import Event
from fairsisa.lineage import Lineage, slice_digest
from fairsisa.runs.directory import Run, file_digest
from fairsisa.runs.making import Workplace
from fairsisa.runs.requests import begin_ledger
from fairsisa.runs.training import train_run
from fairsisa.runs.unlearning import Outcome, unlearn
from fairsisa.runs.verifying import Verification, verify_run
from fairsisa.settings import (
    EvaluationSettings,
    ExecutionSettings,
    PathSettings,
    RequestSettings,
    RunSettings,
    StorageSettings,
    UnlearningSettings,
)
from fairsisa.sisa.ledger import Ledger
from fairsisa.sisa.training import SliceResult
from fairsisa.store import Store

HERE = ExecutionSettings(num_workers=1)
PLAIN = UnlearningSettings(evaluate=False, membership=False)
TABULAR = run_of(
    LOGISTIC,
    replace(QUICK, batch_size=16, max_epochs=1.0),
    data={"name": "synthetic_tabular", "options": {"num_examples": 120, "repeat_share": 0.3}},
)
WITH_BASELINES = replace(TABULAR, evaluation=EvaluationSettings(baselines=("whole", "fraction"), num_replicates=100))


def silent(event: Event) -> None:
    """Hear an event and do nothing."""


def trained_in(
    folder: Path,
    settings: RunSettings = TABULAR,
    *,
    name: str = "run",
    store: Path | None = None,
    storage: StorageSettings | None = None,
) -> Run:
    """Train a run in `folder`/`name`, its store beside it."""
    run = Run(folder / name)
    train_again(run, settings, store=store or folder / "store", storage=storage)
    return run


def train_again(
    run: Run,
    settings: RunSettings = TABULAR,
    *,
    store: Path | None = None,
    storage: StorageSettings | None = None,
) -> list[SliceResult]:
    """Give the command `train` for a run."""
    paths = PathSettings(store=str(store or run.directory.parent / "store"))
    return train_run(settings, run, paths=paths, execution=HERE, on_event=silent, storage=storage)


def copied(source: Run, folder: Path) -> Run:
    """Copy a run and its store into `folder`, as if it had been trained there."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source.directory, folder / "run")
    shutil.copytree(source.store.root, folder / "store", ignore=shutil.ignore_patterns("claims"))
    run = Run(folder / "run")
    config = yaml.safe_load(run.path("config.yaml").read_text())
    config["store"] = str((folder / "store").resolve())
    run.path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run.store.claim(run.directory, run.pointer.names)
    return run


def keys_of(run: Run) -> Path:
    return run.directory.parent / "keys"


def ledger_of(run: Run) -> Ledger:
    return begin_ledger(run, keys_of(run))


def request(*ids: str, **fields: Any) -> RequestSettings:
    return RequestSettings(ids=ids, **fields)


def forget(run: Run, *ids: str, settings: UnlearningSettings = PLAIN, on_event: Any = silent, **fields: Any) -> Outcome:
    """Give the command `unlearn` for a run."""
    return unlearn(
        run, request(*ids, **fields), keys=keys_of(run), settings=settings, execution=HERE, on_event=on_event
    )


def verified(run: Run, level: str = "disk", scope: str = "affected") -> Verification:
    return verify_run(Workplace(run, run.settings, HERE, silent), ledger_of(run), level=level, scope=scope)


def in_slice(run: Run, shard: int, place: int, count: int = 1) -> tuple[str, ...]:
    return run.partition.slice_ids(shard, place)[:count]


def held_out(run: Run, split: str, count: int = 1) -> tuple[str, ...]:
    return tuple(run.examples.split(split)["example_id"].tolist()[:count])


def served_digests(run: Run) -> dict[str, list[str]]:
    """Return the SHA-256 of every checkpoint that a run serves, by constituent, dropped ones included."""
    store = run.store
    return {name: [store.manifest(step).sha256 for step in steps] for name, steps in run.ensemble.chains.items()}


def tree_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Return the digest and time of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def holders_of(folder: Path, words: Sequence[str]) -> set[str]:
    """Return the files under a folder that hold any of the words, in their bytes or in a cell of a table."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(word in text for text in _texts(path) for word in words)
    }


def _texts(path: Path) -> Iterator[str]:
    yield path.read_bytes().decode("latin-1")
    if path.suffix == ".parquet":
        for _, column in pd.read_parquet(path).items():
            yield "\n".join(map(str, column.tolist()))


def vouched(run: Run) -> None:
    """Let the pointer vouch for the run's tables as they lie there now."""
    digests = {name: file_digest(run.table(name)) for name in ("examples", "partition")}
    run.write("ensemble.json", json.dumps(asdict(replace(run.pointer, tables=digests))))


def planted(store: Store, parents: Iterable[str], *, kind: str = "student", examples: tuple[str, ...] = ()) -> str:
    """Put an artefact that stands on others, or on examples, into a store; return its name."""
    lineage = Lineage(
        kind=kind,
        parents=tuple(parents),
        examples=examples,
        contents=slice_digest(examples, ["0" * 64] * len(examples)),
        inputs=(),
        settings={},
    )
    return store.put(lineage, {"weights": torch.ones(3)})
