"""A trained run to which faults can be done, again and again, from the same start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fairsisa.runs.directory import LEDGER, Run
from fairsisa.runs.making import Workplace
from fairsisa.runs.verifying import CERTIFICATES, verify_run
from fairsisa.settings import ExecutionSettings
from fairsisa.sisa.certificate import decode
from fairsisa.sisa.ledger import Head, Ledger
from fairsisa.store import Store
from faults import Attempt, Boundary, Fault, Zygote

TRAIN = [
    "train",
    "trainer.batch_size=8",
    "trainer.max_epochs=2",
    "partition.num_shards=2",
    "partition.num_slices=2",
    "evaluation.num_replicates=100",
    "evaluation.baselines=[]",
    "run=run",
    "paths.store=store",
]
TABULAR = [*TRAIN, "data=synthetic_tabular", "data.options.num_examples=100", "model=logistic"]
ALONE = "execution.num_workers=1"
UNLEARN = ["unlearn", "run=run", ALONE, "unlearning.membership=false"]


@dataclass(frozen=True)
class Scene:
    """A folder with a trained run, its store and its keys; `copy` holds them as they were at first."""

    root: Path
    copy: Path
    actors: Zygote

    @property
    def run(self) -> Run:
        """The run."""
        return Run(self.root / "run")

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return Ledger.open(self.run.path(LEDGER), self.root / "keys")

    def restore(self) -> None:
        """Put everything back: at the same paths, which settings and claims quote."""
        shutil.rmtree(self.root)
        shutil.copytree(self.copy, self.root)

    def act(self, words: Sequence[str], fault: Fault | None = None) -> Attempt:
        """Run a command."""
        return self.actors.run(self.root, words, fault)


def begin(folder: Path, actors: Zygote, words: Sequence[str]) -> Scene:
    """Train a run in an empty folder, and keep a copy."""
    root, copy = folder / "now", folder / "before"
    root.mkdir(parents=True, exist_ok=True)
    done = actors.run(root, words)
    assert done.code == 0, done.said
    shutil.copytree(root, copy)
    return Scene(root, copy, actors)


def end_of(scene: Scene) -> dict[str, Any]:
    """Return all that must not depend on what happened on the way; without reports where there are none."""
    run, store = scene.run, Store(scene.root / "store")
    served, path = run.ensemble, run.path
    metrics = json.loads(path("metrics.json").read_text())["metrics"] if path("metrics.json").is_file() else None
    return {
        "artefacts": {name: store.manifest(name).sha256 for name in store.names()},
        "ensemble": (dict(served.checkpoints), dict(served.baselines), dict(served.predictions), served.status),
        "examples": run.examples.frame.to_csv(index=False),
        "partition": run.partition.frame().to_csv(index=False),
        "predictions": path("predictions.parquet").read_bytes() if path("predictions.parquet").is_file() else None,
        "metrics": metrics,
        "states": [request.state for request in scene.ledger.requests()],
    }


def problems_of(scene: Scene, gone: Collection[str] = ()) -> list[str]:
    """Return what is wrong with a run after its requests are done: `gone` are words that no file may hold."""
    run, ledger = scene.run, scene.ledger
    ledger.check()
    place = Workplace(run, run.settings, ExecutionSettings(num_workers=1), lambda event: None)
    verified = verify_run(place, ledger, level="disk")
    files = [path for path in sorted(scene.root.rglob("*")) if path.is_file()]
    found = [*verified.findings, *verified.notes]
    found += [f"{path} was left" for path in files if "partial" in path.name and path.parent.name != "keys"]
    words = [word.encode() for word in gone]
    found += [f"{path} tells of the forgotten" for path in files if any(word in _text(path) for word in words)]
    certificates = {path.stem for path in run.path(CERTIFICATES).glob("*.json")}
    for request in ledger.requests("attested"):
        if request.request_id not in certificates:
            found.append(f"{request.request_id} is attested without a certificate")
    for path in run.path(CERTIFICATES).glob("*.json"):
        certificate = decode(path.read_bytes(), ledger.key)
        ledger.check([Head(certificate.ledger_seq, certificate.ledger_digest)])
    return found


def _text(path: Path) -> bytes:
    return pq.read_table(path).to_pandas().to_csv().encode() if path.suffix == ".parquet" else path.read_bytes()


@dataclass(frozen=True)
class Case:
    """A scene, two examples to forget there, the command that does it, and how it ends undisturbed."""

    scene: Scene
    gone: tuple[str, ...]
    words: tuple[str, ...]
    end: dict[str, Any]
    boundaries: tuple[Boundary, ...]

    def suffer(self, fault: Fault) -> tuple[Attempt, Attempt]:
        """Run the command with a fault from a fresh start, then again without."""
        self.scene.restore()
        return self.scene.act(self.words, fault), self.scene.act(self.words)

    def complaints(self) -> list[str]:
        """Return where the run is not as after an undisturbed command."""
        now = end_of(self.scene)
        differing = [f"{name} differ" for name in self.end if now[name] != self.end[name]]
        return differing + problems_of(self.scene, self.gone)


def first_of(scene: Scene, shard: int, count: int) -> tuple[str, ...]:
    """Return the first examples of a shard, as it was at first."""
    frame = Run(scene.copy / "run").partition.frame()
    return tuple(frame.loc[frame["shard"] == shard, "example_id"][:count])


def asking(ids: Sequence[str], *words: str) -> tuple[str, ...]:
    return (*UNLEARN, f"request.ids=[{','.join(ids)}]", *words)


def prepared(scene: Scene, ids: Sequence[str], *words: str) -> Case:
    command = asking(ids, *words)
    scene.restore()
    done = scene.act(command)
    assert done.code == 0, done.said
    assert problems_of(scene, ids) == []
    end = end_of(scene)
    assert end["states"] == ["attested"]
    return Case(scene, tuple(ids), command, end, done.boundaries)
