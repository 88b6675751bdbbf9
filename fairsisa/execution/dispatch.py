"""Run independent tasks where the settings say."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fairsisa.errors import ConfigError
from fairsisa.execution.events import Report
from fairsisa.execution.local import default_workers, run_locally
from fairsisa.execution.scratch import clear_leftovers
from fairsisa.settings import ExecutionSettings

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Task, Report], Result],
    tasks: Sequence[Task],
    *,
    execution: ExecutionSettings,
    threads: int,
    accelerator: str,
    scratch: Path,
    on_event: Report,
) -> list[Result]:
    """Return `function(task, report)` of every task, in order, wherever `execution` has them run.

    Every task computes with `threads` threads, and on one GPU where `accelerator` is "cuda", so that results do not
    depend on where it runs. `scratch` is a folder for what travels between machines, `<run>/jobs`: what an
    interrupted command left in it is deleted first, and it is deleted at the end. A task may be begun more than
    once, after a machine died: `function` must find what it has finished.

    Raises:
        ConfigError: when `execution` asks for a package that is not installed.
        TrainingError: when a worker died; every finished slice is in the store, so the same command goes on from there.
        Exception: of a task, or of `on_event`, with its own type; what has not begun is then not begun.
    """
    workers = execution.num_workers or default_workers(accelerator, threads)
    if execution.kind == "submitit":
        _require("submitit", "slurm")
        from fairsisa.execution.on_submitit import run_on_submitit  # noqa: PLC0415 - an extra

        return run_on_submitit(
            function,
            tasks,
            execution=execution,
            workers=workers,
            threads=threads,
            accelerator=accelerator,
            scratch=scratch,
            on_event=on_event,
        )
    clear_leftovers(scratch)
    if execution.kind == "ray":
        _require("ray", "ray")
        from fairsisa.execution.on_ray import run_on_ray  # noqa: PLC0415 - an extra

        return run_on_ray(
            function,
            tasks,
            execution=execution,
            workers=workers,
            threads=threads,
            accelerator=accelerator,
            on_event=on_event,
        )
    return run_locally(function, tasks, num_workers=workers, threads=threads, on_event=on_event)


def _require(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"execution.kind={package} needs the package {package}: pip install 'fairsisa[{extra}]'.")
