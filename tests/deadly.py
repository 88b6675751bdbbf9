"""Tasks for other processes: they train a shard, and die, wait or fail on the way when told so."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chains import LOGISTIC, QUICK, assembled, run_of
from fairsisa.errors import DataError
from fairsisa.execution import Event, Report
from fairsisa.runs.assembly import Assembly
from fairsisa.sisa.training import ShardTask, train_shard


@dataclass(frozen=True)
class Deadly:
    """A shard to train; in its slice 1, after the second bundle of steps, `act` happens, unless `marker` is there.

    With `node`, only on that node of a Ray cluster.
    """

    task: ShardTask
    marker: Path
    act: str = ""
    node: str | None = None


def talkative(store: Path) -> Assembly:
    """Return a tiny ensemble of two shards of three slices that tells of every step."""
    return assembled(run_of(LOGISTIC, replace(QUICK, max_epochs=40.0, log_every_n_steps=1)), store, num_examples=240)


def train_or_die(job: Deadly, report: Report) -> tuple[Any, int]:
    steps = []

    def deadly(event: Event) -> None:
        if event.kind == "metrics" and event.slice == 1:
            steps.append(event.step)
        now = len(steps) == 2 and bool(job.act) and not job.marker.exists() and job.node in (None, node_here(job))
        if now:
            job.marker.write_text(f"{os.getpid()} {event.slice} {event.step}")
        report(event)
        if now:
            act(job)

    return train_shard(job.task, deadly), torch.get_num_threads()


def node_here(job: Deadly) -> str | None:
    if job.node is None:
        return None
    import ray

    return str(ray.get_runtime_context().get_node_id())


def act(job: Deadly) -> None:
    if job.act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.act == "preempt":
        os.kill(os.getpid(), signal.SIGUSR2)
    if job.act == "wait":
        time.sleep(300.0)
    if job.act == "fail":
        raise DataError("these examples are bad")


def always_die(job: int, report: Report) -> None:
    report(Event("slice_started", f"shard-{job}", 2))
    os.kill(os.getpid(), signal.SIGKILL)


def wait_long(job: Path, report: Report) -> None:
    job.write_text(str(os.getpid()))
    report(Event("slice_started", "shard-0"))
    time.sleep(300.0)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def family(pid: int) -> list[int]:
    """Return the ids of a process and of all that it started."""
    try:
        born = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(each for child in born.split() for each in family(int(child)))]
