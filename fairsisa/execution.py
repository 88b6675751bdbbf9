"""Run independent tasks, here or in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Lock
from typing import TypeVar

import torch

from fairsisa.errors import TrainingError

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Event:
    """Something a task tells while it runs: `kind` is "slice_started", "metrics", "slice_done" or "predicted"."""

    kind: str
    constituent: str
    slice: int = 0
    step: int = 0
    values: Mapping[str, float | int | str] = field(default_factory=dict)


Report = Callable[[Event], None]
_channel: tuple[Connection, Lock] | None = None


def run_tasks(
    function: Callable[[Task, Report], Result],
    tasks: Sequence[Task],
    *,
    num_workers: int,
    threads: int,
    on_event: Report,
) -> list[Result]:
    """Return `function(task, report)` of every task, in order; with one worker, in this process.

    Every worker computes with `threads` threads, whatever their number, so that results do not depend on it. A
    worker ends when this process ends, however that comes about.

    Raises:
        TrainingError: when a worker died; every finished slice is in the store, so the same command goes on from there.
    """
    if num_workers == 1 or len(tasks) == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return [function(task, on_event) for task in tasks]
        finally:
            torch.set_num_threads(before)
    return _run_in_processes(function, tasks, min(num_workers, len(tasks)), threads, on_event)


def default_workers(accelerator: str, threads: int) -> int:
    """Return how many tasks run at once by default: cores divided by threads, or one per GPU."""
    if accelerator == "cuda":
        return torch.cuda.device_count()
    return max(1, len(os.sched_getaffinity(0)) // threads)


def _run_in_processes(
    function: Callable[[Task, Report], Result], tasks: Sequence[Task], num_workers: int, threads: int, on_event: Report
) -> list[Result]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fairsisa.sisa.training", "fairsisa.sisa.ensemble"])
    reader, writer = context.Pipe(duplex=False)
    stop = threading.Event()
    listener = threading.Thread(target=_listen, args=(reader, stop, on_event), daemon=True)
    listener.start()
    try:
        start = (threads, writer, context.Lock(), context.Value("i", 0))
        with ProcessPoolExecutor(num_workers, context, _start_worker, start) as pool:
            futures = [pool.submit(_call, function, task) for task in tasks]
            for future in as_completed(futures):
                if future.exception() is not None:
                    pool.shutdown(wait=True, cancel_futures=True)
                future.result()
            return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise TrainingError(
            "A worker process was killed (out of memory, or by hand). Every finished slice is kept: run the same "
            "command again to go on, with a lower execution.num_workers if memory was short."
        ) from error
    finally:
        stop.set()
        listener.join(timeout=5.0)


def _start_worker(threads: int, writer: Connection, lock: Lock, num_started: Synchronized[int]) -> None:
    global _channel  # noqa: PLW0603 - a worker has one channel for its whole life
    _channel = (writer, lock)
    torch.set_num_threads(threads)
    _take_own_gpu(num_started)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _take_own_gpu(num_started: Synchronized[int]) -> None:
    """Let each worker see one GPU, in turn; without a GPU this changes nothing."""
    with num_started.get_lock():
        number, num_started.value = num_started.value, num_started.value + 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _call(function: Callable[[Task, Report], Result], task: Task) -> Result:
    return function(task, _send)


def _send(event: Event) -> None:
    if _channel is not None:
        writer, lock = _channel
        with lock:
            writer.send(event)


def _listen(reader: Connection, stop: threading.Event, on_event: Report) -> None:
    while not stop.is_set() or reader.poll():
        if reader.poll(0.1):
            on_event(reader.recv())
