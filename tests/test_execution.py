from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from chains import LOGISTIC, assembled, digests_of, run_of, trained
from fairsisa.errors import DataError, MissingArtefactError, TrainingError
from fairsisa.execution import Event, Report, default_workers, run_tasks
from fairsisa.settings import ExecutionSettings


@dataclass(frozen=True)
class Job:
    """What a worker is to do."""

    number: int
    seconds: float = 0.0
    act: str = ""


def work(job: Job, report: Report) -> tuple[int, int, int]:
    report(Event("slice_started", f"shard-{job.number}", slice=job.number))
    time.sleep(job.seconds)
    if job.act == "wrong":
        raise DataError(f"job {job.number} found bad data")
    if job.act == "missing":
        raise MissingArtefactError("no such artefact")
    if job.act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    for step in range(5000 if job.act == "chat" else 3):
        report(Event("metrics", f"shard-{job.number}", job.number, step, {"train_loss": 0.5 * step}))
    return job.number, torch.get_num_threads(), os.getpid()


def run_here(jobs: list[Job], num_workers: int, on_event: Report) -> list[tuple[int, int, int]]:
    execution = ExecutionSettings(num_workers=num_workers)
    scratch = Path("nowhere/jobs")
    return run_tasks(work, jobs, execution=execution, threads=1, accelerator="cpu", scratch=scratch, on_event=on_event)


def run(jobs: list[Job], num_workers: int) -> tuple[list[tuple[int, int, int]], list[Event]]:
    events: list[Event] = []
    return run_here(jobs, num_workers, events.append), events


def told(number: int) -> list[Event]:
    name = f"shard-{number}"
    metrics = [Event("metrics", name, number, step, {"train_loss": 0.5 * step}) for step in range(3)]
    return [Event("slice_started", name, number), *metrics]


def test_one_worker_works_here_in_order_and_leaves_the_threads_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results, events = run([Job(number) for number in range(3)], num_workers=1)
        assert torch.get_num_threads() == 2
        with pytest.raises(DataError, match="job 0 found bad data"):
            run([Job(0, act="wrong")], num_workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert results == [(number, 1, os.getpid()) for number in range(3)]
    assert events == [event for number in range(3) for event in told(number)]


def test_one_task_needs_no_process():
    results, _ = run([Job(4)], num_workers=3)
    assert results == [(4, 1, os.getpid())]


def test_workers_are_processes_with_results_in_task_order():
    jobs = [Job(0, seconds=0.5), Job(1), Job(2, seconds=0.2), Job(3), Job(4)]
    results, events = run(jobs, num_workers=2)
    assert [(number, threads) for number, threads, _ in results] == [(job.number, 1) for job in jobs]
    pids = {pid for _, _, pid in results}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    for job in jobs:
        assert [event for event in events if event.slice == job.number] == told(job.number)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [("wrong", DataError, "job 1 found bad data"), ("missing", MissingArtefactError, "no such artefact")],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_keeps_its_type_and_words(act, kind, message, num_workers):
    with pytest.raises(kind, match=message) as caught:
        run([Job(0), Job(1, act=act), Job(2)], num_workers)
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_after_an_error_what_has_not_begun_does_not_begin():
    events: list[Event] = []
    jobs = [Job(0, act="wrong"), *(Job(number, seconds=0.3) for number in range(1, 12))]
    with pytest.raises(DataError, match="job 0"):
        run_here(jobs, num_workers=2, on_event=events.append)
    assert len({event.constituent for event in events}) < len(jobs)


def test_a_killed_worker_is_an_error_that_says_how_to_go_on():
    with pytest.raises(TrainingError, match=r"worker process was killed .* run the same command again"):
        run([Job(0, seconds=0.2), Job(1, act="die"), Job(2)], num_workers=2)


def test_an_error_of_the_listener_is_not_swallowed():
    def refuse(event: Event) -> None:
        raise ValueError(f"cannot log {event.kind}")

    with pytest.raises(ValueError, match="cannot log slice_started"):
        run_here([Job(0), Job(1)], num_workers=1, on_event=refuse)
    with pytest.raises(ValueError, match="cannot log slice_started"):
        run_here([Job(0), Job(1)], num_workers=2, on_event=refuse)


def test_workers_that_nobody_hears_do_not_wait_for_ever():
    def refuse(event: Event) -> None:
        raise ValueError("the disk of the log is full")

    jobs = [Job(number, act="chat") for number in range(3)]  # each sends more than a pipe holds
    with pytest.raises(ValueError, match="the disk of the log is full"):
        run_here(jobs, num_workers=2, on_event=refuse)


def test_ctrl_c_ends_the_workers_at_once():
    pids: list[int] = []
    pressed: list[float] = []

    def press(event: Event) -> None:
        if not pids:
            pids.extend(child.pid for child in multiprocessing.active_children() if child.pid is not None)
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_here([Job(number, seconds=90.0) for number in range(4)], num_workers=2, on_event=press)
    assert time.monotonic() - pressed[0] < 80.0
    assert pids
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_training_ends_the_same_with_any_number_of_workers(tmp_path):
    digests = {}
    for num_workers in (1, 2):
        events: list[Event] = []
        results = trained(
            assembled(run_of(LOGISTIC), tmp_path / str(num_workers)), num_workers=num_workers, events=events
        )
        digests[num_workers] = digests_of(tmp_path / str(num_workers))
        assert [result.status for result in results] == ["trained"] * 6
        assert sum(event.kind == "slice_done" for event in events) == 6
    assert digests[1] == digests[2]


def test_default_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert [default_workers("cpu", threads) for threads in (1, 2, 4, 6, 12)] == [6, 3, 1, 1, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert default_workers("cuda", 4) == 3


def test_no_worker_stays_behind():
    _, events = run([Job(0), Job(1)], num_workers=2)
    pids = {pid for _, _, pid in run([Job(0), Job(1)], num_workers=2)[0]}
    assert len(events) == 8
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
