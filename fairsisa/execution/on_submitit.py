"""Run tasks as jobs of a cluster, through submitit."""

from __future__ import annotations

import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from fairsisa.errors import ConfigError, TrainingError
from fairsisa.execution.events import Report
from fairsisa.execution.journal import ending_with, read_from, write_to
from fairsisa.execution.outcome import Outcome, outcome_of
from fairsisa.execution.scratch import private_folder
from fairsisa.settings import ExecutionSettings

Task = TypeVar("Task")
Result = TypeVar("Result")
POLL = 0.2
"""Seconds between two looks at the jobs and at what they told."""
PATIENCE = 10.0
"""Seconds that cancelled jobs get to end before their folder is deleted."""
ANY_SIZE = 1e6
"""GiB that a pickled task may take: submitit refuses more than one unless told otherwise."""


@dataclass(frozen=True)
class TaskJob:
    """What one job does; begun again, it does the same, and the task finds what it has finished."""

    function: Callable[[Any, Report], Any]
    task: Any
    threads: int
    journal: Path

    def __call__(self) -> Outcome:
        """Execute the task in this process, telling its events to the journal."""
        try:
            with ending_with(self.journal):
                outcome = outcome_of(self.function, self.task, write_to(self.journal), self.threads)
        except KeyboardInterrupt as stop:
            if isinstance(stop.__cause__, SystemExit):  # submitit's handler has requeued the job: let it end its way
                raise stop.__cause__ from None
            raise
        if isinstance(outcome.error, UncompletedJobError):  # submitit's own word, from its handler: out of time
            raise outcome.error
        return outcome

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what a preempted or timed-out job is to do when it comes back: the same."""
        return submitit.helpers.DelayedSubmission(self)


def run_on_submitit(
    function: Callable[[Task, Report], Result],
    tasks: Sequence[Task],
    *,
    execution: ExecutionSettings,
    workers: int,
    threads: int,
    accelerator: str,
    scratch: Path,
    on_event: Report,
) -> list[Result]:
    """Return `function(task, report)` of every task, in order, each executed as a job.

    `workers` is how many jobs run at once where no scheduler decides. A job that ends without a word (killed, its
    node lost) is submitted again up to `execution.max_retries` times. Ctrl-C and errors cancel all jobs. When this
    process is killed, its jobs go on until the next command on the run clears `scratch`.

    Raises:
        ConfigError: when the cluster is not there.
        TrainingError: when a job was stopped too often, naming its log, `<scratch>.log`.
    """
    with private_folder(scratch.absolute()) as folder:
        executor = _executor(folder, execution, threads, accelerator)
        jobs = [TaskJob(function, task, threads, folder / f"{place}.events") for place, task in enumerate(tasks)]
        for job in jobs:
            job.journal.touch(mode=0o600)
        at_once = len(jobs) if executor.cluster == "slurm" else workers
        return _collect(executor, jobs, at_once=at_once, max_retries=execution.max_retries, on_event=on_event)


def _executor(folder: Path, execution: ExecutionSettings, threads: int, accelerator: str) -> submitit.AutoExecutor:
    cluster = None if execution.cluster == "auto" else execution.cluster
    retries = {f"{name}_max_num_timeout": execution.max_retries for name in ("slurm", "local")}
    sizes = {f"{name}_max_pickle_size_gb": ANY_SIZE for name in ("slurm", "local")}
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, **retries, **sizes)
    except RuntimeError as error:
        raise ConfigError(f"execution.cluster={execution.cluster}: {error} Use execution.cluster=local.") from error
    executor.update_parameters(
        name="fairsisa",
        nodes=1,
        tasks_per_node=1,
        cpus_per_task=threads,
        gpus_per_node=1 if accelerator == "cuda" else None,
        mem_gb=execution.memory_gb,
        timeout_min=execution.timeout_minutes,
        slurm_partition=execution.partition,
        slurm_account=execution.account,
        slurm_array_parallelism=execution.num_workers,
    )
    return executor


def _collect(
    executor: submitit.AutoExecutor, jobs: Sequence[TaskJob], *, at_once: int, max_retries: int, on_event: Report
) -> list[Any]:
    waiting, stopped, heard = deque(range(len(jobs))), Counter[int](), Counter[int]()
    results: dict[int, Any] = {}
    with _cancelling(jobs) as running:
        while waiting or running:
            places = [waiting.popleft() for _ in range(min(len(waiting), at_once - len(running)))]
            running.update(zip(places, _submit(executor, [jobs[place] for place in places]), strict=True))
            for place, job in list(running.items()):
                done = job.done()  # asked before its journal is read, so that nothing it told is missed
                heard[place] = _pass_on(jobs[place].journal, heard[place], on_event)
                if not done:
                    continue
                outcome = _outcome(job)
                del running[place]
                if outcome is None:
                    stopped[place] += 1
                    _require_patience(job, jobs[place], stopped[place], max_retries)
                    waiting.append(place)
                else:
                    results[place] = outcome.value()
            time.sleep(POLL)
    return [results[place] for place in range(len(jobs))]


def _submit(executor: submitit.AutoExecutor, jobs: Sequence[TaskJob]) -> Sequence[submitit.Job[Outcome]]:
    if not jobs:
        return ()
    try:
        return executor.submit_array(jobs)
    except (FailedJobError, FailedSubmissionError) as error:
        raise TrainingError(f"The cluster refused the jobs; what was finished is kept. It said: {error}") from error


@contextmanager
def _cancelling(jobs: Sequence[TaskJob]) -> Iterator[dict[int, submitit.Job[Outcome]]]:
    """Give a dictionary of running jobs by place; in the end, cancel those that are left in it."""
    running: dict[int, submitit.Job[Outcome]] = {}
    try:
        yield running
    finally:
        for place, job in running.items():
            job.cancel(check=False)
            jobs[place].journal.unlink()
        end = time.monotonic() + PATIENCE
        while not all(job.done() for job in running.values()) and time.monotonic() < end:
            time.sleep(POLL)


def _pass_on(journal: Path, offset: int, on_event: Report) -> int:
    events, offset = read_from(journal, offset)
    for event in events:
        on_event(event)
    return offset


def _outcome(job: submitit.Job[Outcome]) -> Outcome | None:
    """Return how a job that is over ended; None when it was stopped, by a signal or with its node."""
    on_this_machine = isinstance(job, submitit.LocalJob)
    if on_this_machine and not job.paths.result_pickle.exists():
        return None  # on a shared disk the result may yet appear: submitit waits for it
    try:
        return job.result()
    except FailedJobError as error:
        raise TrainingError(
            f"Job {job.job_id} failed outside of its task, or was out of time too often (execution.timeout_minutes); "
            f"every finished slice is kept. {_kept_log(job)}"
        ) from error
    except UncompletedJobError:
        return None


def _require_patience(job: submitit.Job[Outcome], task: TaskJob, stopped: int, max_retries: int) -> None:
    if stopped <= max_retries:
        return
    told, _ = read_from(task.journal, 0)
    name = f"{told[-1].constituent}, slice {told[-1].slice}" if told else "before it began"
    raise TrainingError(
        f"The job of task {task.journal.stem} ({name}) was stopped in attempt {stopped}, the last "
        f"(execution.max_retries={max_retries}): killed, out of memory, or its node was lost. Every finished slice is "
        "kept: run the same command again to go on, with a larger execution.memory_gb if memory was short. "
        f"{_kept_log(job)}"
    )


def _kept_log(job: submitit.Job[Outcome]) -> str:
    """Copy a job's log out of the scratch folder, which is about to be deleted; say where it is."""
    folder = job.paths.folder
    kept = folder.with_name(f"{folder.name}.log")
    if not job.paths.stderr.exists():
        return "It left no log."
    shutil.copyfile(job.paths.stderr, kept)
    return f"Its log: {kept}."
