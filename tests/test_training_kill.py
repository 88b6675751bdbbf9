from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from chains import TINY_TEXT, digests_of
from fairsisa.store import Store

PATIENCE = 300.0
SMALL = [
    "train",
    "trainer.batch_size=8",
    "trainer.optimizer_state=carried",
    "partition.num_shards=2",
    "partition.num_slices=2",
    "evaluation.num_replicates=100",
    "run=run",
    "paths.store=store",
]
TABULAR = [*SMALL, "data=synthetic_tabular", "data.options.num_examples=150", "model=logistic", "trainer.max_epochs=2"]
TEXT = [
    *SMALL,
    "data=synthetic_text",
    "data.options.num_examples=60",
    "model=minilm",
    "trainer.max_epochs=2",
    f"model.base={TINY_TEXT.base}",
    "model.architecture=bert",
    *(f"+model.shape.{key}={value}" for key, value in TINY_TEXT.shape.items()),
    "model.max_length=40",
    "evaluation.baselines=[]",
]
LONG = [
    *SMALL,
    "data=synthetic_tabular",
    "data.options.num_examples=1500",
    "model=logistic",
    "trainer.budget=listed",
    "trainer.slice_epochs=[1,120]",
    "evaluation.baselines=[]",
]
DRIVER = """
import json, os, signal, sys
from pathlib import Path
import fairsisa.cli.verbs, fairsisa.store.local
from fairsisa.cli.main import run_command
from fairsisa.models.classifier import Classifier
from fairsisa.store import Store

def deadly(function, count, number, matters):
    left = [count]
    def call(*args, **options):
        if matters(args):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), number)
        return function(*args, **options)
    return call

def install(fault):
    number = getattr(signal, fault.get("signal", "SIGKILL"))
    if "step" in fault:
        Classifier._step = deadly(Classifier._step, fault["step"], number, lambda args: True)
    if "manifest" in fault:
        module, only = fairsisa.store.local, lambda args: args[1].suffix == ".json" and "objects" in args[1].parts
        module.publish = deadly(module.publish, fault["manifest"], number, only)
    if "operation" in fault:
        left = [fault["operation"]]
        for name in ("fsync", "replace", "unlink", "mkdir"):
            setattr(os, name, counted(getattr(os, name), left))

def counted(function, left):
    def call(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

def attempt(root, words, fault, place):
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    os.chdir(root)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}-{place}", os.O_WRONLY | os.O_CREAT), descriptor)
    code = 99
    try:
        if fault is not None:
            install(fault)
        code = run_command(words)
        sys.stdout.flush()
    except SystemExit as error:
        code = 98
    finally:
        os._exit(code)

def scenario(root, words, faults):
    root.mkdir(parents=True)
    for place, fault in enumerate([*faults, None]):
        code = attempt(root, words, fault, place)
        yield {"code": code, "checkpoints": Store(root / "store").names("checkpoint")}

told = json.loads(sys.argv[1])
print(json.dumps({name: list(scenario(Path(root), words, faults)) for name, (root, words, faults) in told.items()}))
"""
KILLED = -signal.SIGKILL
FAULTS: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "uninterrupted": (TABULAR, []),
    "first step": (TABULAR, [{"step": 0}]),
    "middle of a slice": (TABULAR, [{"step": 26}]),
    "middle of a later slice": (TABULAR, [{"step": 36}]),
    "first manifest": (TABULAR, [{"manifest": 0}]),
    "manifest of a later slice": (TABULAR, [{"manifest": 2}]),
    "manifest of predictions": (TABULAR, [{"manifest": 7}]),
    "again and again": (TABULAR, [{"operation": count} for count in range(20, 141, 20)]),
    "Ctrl-C": (TABULAR, [{"step": 30, "signal": "SIGINT"}]),
    "SIGTERM": (TABULAR, [{"step": 30, "signal": "SIGTERM"}]),
    "text uninterrupted": (TEXT, []),
    "text middle of a slice": (TEXT, [{"step": 9}]),
    "long uninterrupted": (LONG, []),
}


@dataclass(frozen=True)
class Outcome:
    """What a scenario left: exit codes (negative for a signal), the checkpoints after each attempt, its folder."""

    root: Path
    codes: list[int]
    checkpoints: list[list[str]]

    def said(self, place: int) -> str:
        return (self.root / f"out-{place}").read_text() + (self.root / f"err-{place}").read_text()

    def told(self, place: int) -> list[str]:
        return re.findall(r"slice \d+: (\w+)", (self.root / f"out-{place}").read_text())

    def steps_done(self) -> list[int]:
        """Return the steps of the whole command after each slice, in the order of training."""
        steps = re.findall(r"slice \d+: trained \((\d+) steps\)", (self.root / "out-0").read_text())
        return list(accumulate(map(int, steps)))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("killed")
    roots = {name: folder / name.replace(" ", "-") for name in FAULTS}
    told = {
        name: (str(roots[name]), [*words, "execution.num_workers=1"], faults)
        for name, (words, faults) in FAULTS.items()
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {
        name: Outcome(roots[name], [a["code"] for a in attempts], [a["checkpoints"] for a in attempts])
        for name, attempts in found.items()
    }


def same_end(outcome: Outcome, reference: Outcome) -> None:
    store = Store(outcome.root / "store")
    assert store.verify() == {}
    assert digests_of(store.root, None) == digests_of(reference.root / "store", None)
    for name in ("ensemble.json", "predictions.parquet", "tables/partition-0.parquet", "tables/examples-0.parquet"):
        assert (outcome.root / "run" / name).read_bytes() == (reference.root / "run" / name).read_bytes()
    for name in ("report.html", "report.md", "metrics.json", "training.csv", "curves.csv"):
        assert (outcome.root / "run" / name).stat().st_size > 0
    ours, theirs = (json.loads((o.root / "run" / "metrics.json").read_text()) for o in (outcome, reference))
    assert ours["metrics"] == theirs["metrics"]


@pytest.mark.slow
def test_the_same_command_uninterrupted(outcomes):
    for name in ("uninterrupted", "text uninterrupted", "long uninterrupted"):
        assert outcomes[name].codes == [0], outcomes[name].said(0)
        assert set(outcomes[name].told(0)) == {"trained"}
    assert len(outcomes["uninterrupted"].checkpoints[0]) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("first step", KILLED),
        ("middle of a slice", KILLED),
        ("middle of a later slice", KILLED),
        ("first manifest", KILLED),
        ("manifest of a later slice", KILLED),
        ("manifest of predictions", KILLED),
        ("Ctrl-C", 130),
        ("SIGTERM", 130),
        ("text middle of a slice", KILLED),
    ],
)
def test_a_stopped_command_run_again_ends_where_an_uninterrupted_one_does(name, code, outcomes):
    reference, outcome = outcomes["text uninterrupted" if name.startswith("text") else "uninterrupted"], outcomes[name]
    assert outcome.codes == [code, 0], outcome.said(0) + outcome.said(1)
    kept, end = outcome.checkpoints
    assert len(kept) == num_kept(FAULTS[name][1][0], reference.steps_done())
    assert outcome.told(1).count("reused") == len(kept)
    assert outcome.told(1).count("trained") == len(end) - len(kept)
    same_end(outcome, reference)


def num_kept(fault: dict[str, Any], steps_done: list[int]) -> int:
    if "manifest" in fault:
        return min(fault["manifest"], len(steps_done))
    step = fault["step"]
    assert step == 0 or step not in steps_done  # the signal came within a slice
    assert step < steps_done[-1]
    return sum(done <= step for done in steps_done)


@pytest.mark.slow
def test_a_payload_without_its_manifest_does_not_exist(outcomes):
    outcome = outcomes["first manifest"]
    store = Store(outcome.root / "store")
    assert outcome.codes[0] == KILLED
    assert outcome.checkpoints[0] == []
    (left,) = store.leftovers(older_than=0.0)  # the manifest that was not yet moved to its name
    assert left.rpartition("/")[2][1:65] in store.names("checkpoint")
    before = digests_of(store.root, None)
    assert store.sweep(older_than=0.0).names == (left,)
    assert digests_of(store.root, None) == before


@pytest.mark.slow
def test_killed_again_and_again_it_ends_all_the_same(outcomes):
    outcome = outcomes["again and again"]
    killed = [code == KILLED for code in outcome.codes]
    assert sum(killed) >= 3
    assert set(outcome.codes) == {KILLED, 0}
    assert killed == sorted(killed, reverse=True)
    kept = [len(names) for names in outcome.checkpoints]
    assert kept == sorted(kept)
    same_end(outcome, outcomes["uninterrupted"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Ctrl-C", "SIGTERM"])
def test_a_person_who_stops_training_is_told_how_to_go_on(name, outcomes):
    assert "every finished slice is kept, run the same command to go on" in outcomes[name].said(0)
    assert "Traceback" not in outcomes[name].said(0)


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"Expected that {what} within {PATIENCE} s."
        time.sleep(0.02)


@contextmanager
def training_in_workers(root: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run the long command with two workers; give it, and the workers' pids, once slices of some length are running."""
    command = [sys.executable, "-c", "from fairsisa.cli import main; main()", *LONG, "execution.num_workers=2"]
    with (root / "err").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    try:
        assert process.stdout is not None
        seen = 0
        while seen < 2:
            line = process.stdout.readline()
            assert line, (root / "err").read_text()
            seen += "slice 0: " in line
        workers = [pid for server in children(process.pid) for pid in children(server)]
        assert len(workers) == 2
        assert all(alive(pid) for pid in workers)
        yield process, workers
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_a_death_in_the_family_is_survived(outcomes, tmp_path):
    reference = outcomes["long uninterrupted"]
    store = Store(tmp_path / "store")
    with training_in_workers(tmp_path) as (coordinator, workers):
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: not alive(workers[0]), "the killed worker is gone")
        assert coordinator.wait(PATIENCE) == 1
        said = (tmp_path / "err").read_text()
        assert "A worker process was killed" in said
        assert "run the same command again to go on" in " ".join(said.split())
        assert "Traceback" not in said
        wait_until(lambda: not any(map(alive, workers)), "the other worker ends too")
    kept = set(store.names("checkpoint"))
    assert len(kept) == 2
    with training_in_workers(tmp_path) as (coordinator, workers):
        coordinator.kill()
        assert coordinator.wait(PATIENCE) == KILLED
        wait_until(lambda: not any(map(alive, workers)), "the workers end by themselves")
    assert set(store.names("checkpoint")) == kept
    with training_in_workers(tmp_path) as (coordinator, workers):
        os.killpg(coordinator.pid, signal.SIGINT)
        assert coordinator.wait(PATIENCE) == 130
        wait_until(lambda: not any(map(alive, workers)), "the workers end with it")
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert set(store.names("checkpoint")) == kept
    command = [sys.executable, "-c", "from fairsisa.cli import main; main()", *LONG, "execution.num_workers=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(f"slice {place}: reused") for place in range(2)] == [2, 0]
    same_end(Outcome(tmp_path, [0], []), reference)
