"""Run tasks on this machine, here or in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Lock
from typing import TypeVar

import torch

from fairsisa.errors import TrainingError
from fairsisa.execution.events import Event, Report
from fairsisa.hushing import hush_imports

Task = TypeVar("Task")
Result = TypeVar("Result")


_channel: tuple[Connection, Lock] | None = None


def run_locally(
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
        with computing_threads(threads):
            return [function(task, on_event) for task in tasks]
    return _run_in_processes(function, tasks, min(num_workers, len(tasks)), threads, on_event)


@contextmanager
def computing_threads(threads: int) -> Iterator[None]:
    """Let torch compute with so many threads in the body; afterwards, with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    held, leash = context.Pipe(duplex=False)
    stop, refused = threading.Event(), list[Exception]()
    listener = threading.Thread(target=_listen, args=(reader, stop, on_event, refused), daemon=True)
    listener.start()
    try:
        start = (threads, writer, context.Lock(), held, context.Value("i", 0))
        with ProcessPoolExecutor(num_workers, context, _start_worker, start) as pool:
            try:
                results = _collect(pool, [pool.submit(_call, function, task) for task in tasks], refused)
            except KeyboardInterrupt:
                leash.close()  # the workers end at once
                raise
    except BrokenProcessPool as error:
        raise TrainingError(
            "A worker process was killed (out of memory, or by hand). Every finished slice is kept: run the same "
            "command again to go on, with a lower execution.num_workers if memory was short."
        ) from error
    finally:
        stop.set()
        listener.join(timeout=5.0)
    if refused:
        raise refused[0]
    return results


def _collect(
    pool: ProcessPoolExecutor, futures: Sequence[Future[Result]], refused: Sequence[Exception]
) -> list[Result]:
    """Return the results in order; after a failure begin nothing more, and raise it when what runs has ended."""
    for future in as_completed(futures):
        if refused or future.exception() is not None:
            pool.shutdown(wait=True, cancel_futures=True)
            if refused:
                raise refused[0]
        future.result()
    return [future.result() for future in futures]


def _start_worker(
    threads: int, writer: Connection, lock: Lock, held: Connection, num_started: Synchronized[int]
) -> None:
    global _channel  # noqa: PLW0603 - a worker has one channel for its whole life
    _channel = (writer, lock)
    torch.set_num_threads(threads)
    hush_imports()
    _take_own_gpu(num_started)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends its workers
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # Lightning would go on waiting for the next task
    threading.Thread(target=_end_with_parent, args=(held,), daemon=True).start()


def _take_own_gpu(num_started: Synchronized[int]) -> None:
    """Let each worker see one GPU, in turn; without a GPU this changes nothing."""
    with num_started.get_lock():
        number, num_started.value = num_started.value, num_started.value + 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]


def _end_with_parent(held: Connection) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel, held])
        os._exit(1)


def _call(function: Callable[[Task, Report], Result], task: Task) -> Result:
    return function(task, _send)


def _send(event: Event) -> None:
    if _channel is not None:
        writer, lock = _channel
        with lock:
            writer.send(event)


def _listen(reader: Connection, stop: threading.Event, on_event: Report, refused: list[Exception]) -> None:
    while not stop.is_set() or reader.poll():
        if reader.poll(0.1):
            event = reader.recv()  # also when none is wanted any more, lest workers wait for a full pipe
            if not refused:
                try:
                    on_event(event)
                except Exception as error:
                    refused.append(error)
