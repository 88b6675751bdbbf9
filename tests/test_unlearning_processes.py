from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deadly import alive, ends, family
from fairsisa.errors import RunError
from fairsisa.runs.directory import LEDGER
from fairsisa.sisa.ledger import Ledger
from faults import KILLED, Fault, Zygote, zygote
from scenes import Scene, begin, end_of, problems_of

TRAIN = [
    "train",
    "data=synthetic_tabular",
    "data.options.num_examples=1200",
    "model=logistic",
    "trainer.batch_size=8",
    "trainer.budget=listed",
    "trainer.slice_epochs=[1,60]",
    "partition.num_shards=2",
    "partition.num_slices=2",
    "evaluation.num_replicates=100",
    "evaluation.baselines=[]",
    "run=run",
    "paths.store=store",
    "execution.num_workers=1",
]
QUIET = ["unlearning.membership=false", "unlearning.evaluate=false"]
FLUSH = ["unlearn", "flush", "run=run", "execution.num_workers=1", *QUIET]
SLOW = pytest.mark.slow


def asking(ids: Sequence[str], *, workers: int = 1) -> list[str]:
    return ["unlearn", "run=run", f"execution.num_workers={workers}", *QUIET, f"request.ids=[{','.join(ids)}]"]


@pytest.fixture(scope="module")
def actors() -> Iterator[Zygote]:
    with zygote(FAIRSISA_KEYS="keys") as made:
        yield made


@pytest.fixture(scope="module")
def scene(actors, tmp_path_factory) -> Scene:
    return begin(tmp_path_factory.mktemp("processes"), actors, TRAIN)


@pytest.fixture
def fresh(scene) -> Scene:
    scene.restore()
    return scene


@pytest.fixture(scope="module")
def ids(scene) -> tuple[str, ...]:
    """Return one example of the first slice of each shard."""
    scene.restore()
    frame = scene.run.partition.frame()
    return tuple(frame[frame["slice"] == 0].groupby("shard")["example_id"].first())


@pytest.fixture(scope="module")
def undisturbed(scene, ids) -> dict[str, Any]:
    scene.restore()
    done = scene.act(asking(ids))
    assert done.code == 0, done.said
    assert problems_of(scene, ids) == []
    return end_of(scene)


@dataclass(frozen=True)
class Command:
    """A command in a process of its own, whose workers are training."""

    process: subprocess.Popen[str]
    workers: tuple[int, ...]
    errors: Path


@contextmanager
def unlearning(scene: Scene, words: Sequence[str]) -> Iterator[Command]:
    """Run a command in a process of its own; give it once two long slices are being trained."""
    errors = scene.root.parent / "errors"
    command = [sys.executable, "-c", "from fairsisa.cli import main; main()", *words]
    with errors.open("w") as stream:
        process = subprocess.Popen(
            command,
            cwd=scene.root,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
            env={**os.environ, "FAIRSISA_KEYS": "keys"},
        )
    try:
        assert process.stdout is not None
        seen = 0
        while seen < 2:
            line = process.stdout.readline()
            assert line, errors.read_text()
            seen += "slice 0: trained" in line
        workers = [pid for server in family(process.pid)[1:] for pid in family(server)[1:]]
        assert len(workers) == 2
        assert all(map(alive, workers))
        yield Command(process, tuple(workers), errors)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ends_well(scene: Scene, words: Sequence[str], expected: dict[str, Any], gone: Sequence[str]) -> None:
    done = scene.act(words)
    assert done.code == 0, done.said
    now = end_of(scene)
    assert [name for name in expected if now[name] != expected[name]] == []
    assert problems_of(scene, gone) == []


# Deaths in the family


@SLOW
def test_a_worker_that_is_killed_in_the_middle_of_a_slice_is_told_of(fresh, ids, undisturbed):
    with unlearning(fresh, asking(ids, workers=2)) as command:
        os.kill(command.workers[0], signal.SIGKILL)
        assert command.process.wait(120.0) == 1
        said = " ".join(command.errors.read_text().split())
        assert "A worker process was killed" in said
        assert "run the same command again to go on" in said
        assert "Traceback" not in said
        assert all(map(ends, command.workers))
    assert [request.state for request in fresh.ledger.requests()] == ["failed"]
    ends_well(fresh, asking(ids), undisturbed, ids)


@SLOW
def test_a_coordinator_that_is_killed_takes_its_workers_along(fresh, ids, undisturbed):
    with unlearning(fresh, asking(ids, workers=2)) as command:
        command.process.kill()
        assert command.process.wait(120.0) == KILLED
        assert all(map(ends, command.workers))
    assert [request.state for request in fresh.ledger.requests()] == ["retraining"]
    assert fresh.run.ensemble.generation == 0
    ends_well(fresh, asking(ids), undisturbed, ids)


# Two at once


@SLOW
def test_of_two_commands_at_once_the_second_waits_in_the_ledger(fresh, ids, undisturbed):
    first, second = ids[:1], ids[1:]
    with unlearning(fresh, asking(ids, workers=2)) as command:
        served = end_of(fresh)["ensemble"]
        other = [example for example in fresh.run.partition.example_ids if example not in ids][:1]
        refused = fresh.act(asking(other))
        assert refused.code == 1
        said = " ".join(refused.said.split())
        assert "Another command is at work on run" in said
        assert "run `fairsisa unlearn flush run=run` later: the request is in the ledger" in said
        assert "Traceback" not in said
        assert [request.state for request in fresh.ledger.requests()] == ["retraining", "received"]
        assert end_of(fresh)["ensemble"] == served
        for words in (["evaluate", "run=run"], FLUSH):
            held = fresh.act(words)
            assert held.code == 1
            assert "Another command is at work on run" in " ".join(held.said.split())
        command.process.communicate(timeout=120.0)
        assert command.process.returncode == 0, command.errors.read_text()
    assert end_of(fresh)["artefacts"] == undisturbed["artefacts"]
    assert [request.state for request in fresh.ledger.requests()] == ["attested", "received"]
    flushed = fresh.act(FLUSH)
    assert flushed.code == 0, flushed.said
    assert [request.state for request in fresh.ledger.requests()] == ["attested", "attested"]
    assert problems_of(fresh, (*first, *second, *other)) == []


@SLOW
def test_requests_that_waited_end_as_one_that_named_all(fresh, ids, undisturbed):
    for example in ids:
        queued = fresh.act([*asking([example]), "queue=true"])
        assert queued.code == 0, queued.said
    assert fresh.run.ensemble.generation == 0
    killed = fresh.act(FLUSH, Fault("signal", step=40))
    assert killed.code == KILLED
    ends_well(fresh, FLUSH, undisturbed | {"states": ["attested", "attested"]}, ids)


def test_a_run_that_is_held_by_another_process_is_left_alone(fresh, ids):
    with fresh.run.locked():
        refused = fresh.act(asking(ids))
        with pytest.raises(RunError, match="Another command is at work"), fresh.run.locked():
            pass
    assert refused.code == 1
    ledger = Ledger.open(fresh.run.path(LEDGER), fresh.root / "keys")
    assert [request.state for request in ledger.requests()] == ["received"]
