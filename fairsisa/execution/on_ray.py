"""Run tasks on a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fairsisa.errors import ConfigError, TrainingError
from fairsisa.execution.events import Event, Report
from fairsisa.execution.outcome import Outcome, outcome_of
from fairsisa.settings import ExecutionSettings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported and when it starts
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Task = TypeVar("Task")
Result = TypeVar("Result")
POLL = 0.2
"""Seconds between two looks at the tasks and at what they told."""
STOPPED = (NodeDiedError, ObjectLostError, OutOfMemoryError, RaySystemError, WorkerCrashedError)


def run_on_ray(
    function: Callable[[Task, Report], Result],
    tasks: Sequence[Task],
    *,
    execution: ExecutionSettings,
    workers: int,
    threads: int,
    accelerator: str,
    on_event: Report,
) -> list[Result]:
    """Return `function(task, report)` of every task, in order, on the Ray cluster at `execution.address`.

    Without an address, a cluster of `workers` times `threads` cores is started here, and stopped in the end. Every
    node needs the package, and the store at the same place. A task whose process or node died begins again, on any
    node, up to `execution.max_retries` times. Ctrl-C and errors cancel all tasks; so does the death of this process.

    Raises:
        ConfigError: when there is no such cluster, or none of its nodes is large enough for a task.
        TrainingError: when a task was stopped too often.
    """
    needs = {"CPU": float(threads), "GPU": float(accelerator == "cuda")}
    memory = None if execution.memory_gb is None else int(execution.memory_gb * 2**30)
    with _connected(execution.address, workers * threads):
        _require_room(needs | {"memory": float(memory or 0)})
        remote = ray.remote(_execute).options(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], memory=memory, max_retries=0, name="fairsisa"
        )
        with _mailbox() as mailbox:
            return _collect(
                lambda task: remote.remote(function, task, threads, mailbox),
                tasks,
                at_once=execution.num_workers or len(tasks),
                max_retries=execution.max_retries,
                hear=lambda: _pass_on(mailbox, on_event),
            )


def _execute(function: Callable[[Any, Report], Any], task: Any, threads: int, mailbox: Any) -> Outcome:
    return outcome_of(function, task, lambda event: mailbox.put(event.to_json()), threads)


def _collect(
    start: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    at_once: int,
    max_retries: int,
    hear: Callable[[], None],
) -> list[Any]:
    waiting, stopped = deque(range(len(tasks))), Counter[int]()
    results: dict[int, Any] = {}
    with _cancelling() as running:
        while waiting or running:
            while waiting and len(running) < at_once:
                place = waiting.popleft()
                running[start(tasks[place])] = place
            over, _ = ray.wait(list(running), num_returns=1, timeout=POLL)
            hear()
            for reference in over:
                place = running.pop(reference)
                outcome = _outcome(reference)
                if isinstance(outcome, Outcome):
                    results[place] = outcome.value()
                else:
                    stopped[place] += 1
                    _require_patience(place, stopped[place], max_retries, outcome)
                    waiting.append(place)
    return [results[place] for place in range(len(tasks))]


def _pass_on(mailbox: Any, on_event: Report) -> None:
    for line in mailbox.get_nowait_batch(mailbox.qsize()):
        on_event(Event.from_json(line))


def _outcome(reference: Any) -> Outcome | Exception:
    """Return how a task that is over ended, or what stopped it."""
    try:
        outcome: Outcome = ray.get(reference)
    except STOPPED as error:
        stopped: Exception = error
        return stopped
    except RayTaskError as error:
        raise TrainingError(
            f"A task failed on its way to or from a node of the Ray cluster; is fairsisa installed there? {error}"
        ) from error
    return outcome


def _require_patience(place: int, stopped: int, max_retries: int, error: Exception) -> None:
    if stopped > max_retries:
        raise TrainingError(
            f"Task {place} was stopped in attempt {stopped}, the last (execution.max_retries={max_retries}): "
            f"{str(error).splitlines()[0]} Every finished slice is kept: run the same command again to go on, with a "
            "larger execution.memory_gb if memory was short."
        ) from error


@contextmanager
def _cancelling() -> Iterator[dict[Any, int]]:
    """Give a dictionary of running tasks; in the end, cancel those that are left in it."""
    running: dict[Any, int] = {}
    try:
        yield running
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


@contextmanager
def _mailbox() -> Iterator[Any]:
    """Give a queue of lines that lives beside this process, so that no lost node takes events with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    try:
        yield mailbox
    finally:
        mailbox.shutdown(force=True)


@contextmanager
def _connected(address: str | None, num_cpus: int) -> Iterator[None]:
    """Be connected to the cluster at `address`, or to a new one; a connection that was there before is left alone."""
    if ray.is_initialized():
        yield
        return
    on_term = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    options["namespace"] = "fairsisa"
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"execution.address={address}: no Ray cluster answers there ({error}).") from error
    try:
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, on_term)


def _require_room(needs: dict[str, float]) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= need for name, need in needs.items()) for node in nodes):
        asked = ", ".join(f"{name}: {need:g}" for name, need in needs.items() if need)
        raise ConfigError(
            f"A task needs {asked} (trainer.threads, trainer.accelerator, execution.memory_gb), and no node of the Ray "
            "cluster has as much."
        )
