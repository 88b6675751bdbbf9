"""The verb that studies deletions before anyone asks for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fairsisa.cli.printing import say
from fairsisa.cli.verbs import RUN_KEYS, run_directory
from fairsisa.execution import Event
from fairsisa.report.study import findings
from fairsisa.runs.studying import Progress, simulate_deletions
from fairsisa.settings import (
    ExecutionSettings,
    PathSettings,
    StudySettings,
    run_settings,
    settings_from,
)

Config = Mapping[str, Any]


def simulate(config: Config, overrides: Sequence[str]) -> None:
    """Delete step by step, measure every step, and write the study's page."""
    settings = run_settings({key: config[key] for key in RUN_KEYS})
    asked = settings_from(StudySettings, config["study"], "study")
    directory = study_directory(config, overrides)
    say(f"study: {directory}")
    with _display(Console()) as display:
        report = simulate_deletions(
            settings,
            asked,
            directory,
            paths=settings_from(PathSettings, config["paths"], "paths"),
            execution=settings_from(ExecutionSettings, config["execution"], "execution"),
            on_event=display.hear,
            on_step=display.step,
            command=" ".join(["fairsisa", "simulate", *overrides]),
        )
    for sentence in findings(report):
        say(sentence)
    say(f"page: {directory / 'study.html'}")


def study_directory(config: Config, overrides: Sequence[str]) -> Path:
    """Return `run` if given; else a folder named after the experiment and digests of the settings and the study."""
    run = run_directory(config, overrides)
    if config["run"]:
        return run
    study = json.dumps(config["study"], sort_keys=True)
    return run.with_name(f"{run.name}-{hashlib.sha256(study.encode()).hexdigest()[:8]}")


class _Display:
    """A bar of the study's steps, and a line for each that is done; a handle on the terminal."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.task = bar.add_task("training the start", total=None)

    def hear(self, event: Event) -> None:
        """Show what is being made."""
        self.bar.update(self.task, description=f"{event.kind.replace('_', ' ')} {event.constituent}".strip())

    def step(self, step: Progress) -> None:
        """Show that a step is done."""
        self.bar.update(self.task, completed=step.num_done, total=step.num_steps)
        self.bar.console.print(
            f"[{step.num_done}/{step.num_steps}] {step.curve}: {step.deletions:,} deleted, "
            f"accuracy {step.accuracy:.3f}",
            highlight=False,
            markup=False,
        )


@contextmanager
def _display(console: Console) -> Iterator[_Display]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        yield _Display(bar)
