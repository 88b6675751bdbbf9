"""The verbs that make a run's decisions fair: postprocess, frontier."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress as ProgressBar

from fairsisa.cli.composing import instantiate_loggers
from fairsisa.cli.printing import say
from fairsisa.cli.reading import execution_of
from fairsisa.cli.verbs import progress
from fairsisa.report.frontier import findings as frontier_findings
from fairsisa.report.postprocessing import findings, prices
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import FAIR
from fairsisa.runs.frontier import Progress, frontier_run
from fairsisa.runs.logging import log_result, logged
from fairsisa.runs.postprocessing import postprocess_run, remove_postprocessor
from fairsisa.settings import ROOTS, FrontierSettings, PostprocessSettings, plain, settings_from

LISTS = ("criterion", "tolerance", "tolerances", "sensitive_feature", "strategies")
"""Settings that take one value or a list."""
LOGS = ("logs", "postprocess")
Config = Mapping[str, Any]


def postprocess(config: Config, overrides: Sequence[str]) -> None:
    """Fit a post-processor, serve it and measure it."""
    run, settings = Run(config["run"]), postprocess_settings(config)
    run.require_trained()
    if config["remove"]:
        remove_postprocessor(run, settings.name)
        say(f"{settings.name} is out of {run.directory}; its reports are made again by `fairsisa evaluate`.")
        return
    folder = run.path(*LOGS, settings.chosen_name)
    if (folder / "logs").exists():  # a logger would warn of the last time's
        shutil.rmtree(folder / "logs")
    loggers = instantiate_loggers(config.get("logger") or {}, folder)
    with logged(loggers, run.settings), progress(run.settings, run.num_slices) as show:
        made = postprocess_run(run, settings, execution=execution_of(config), on_event=show)
        if made.report is not None:
            log_result(loggers, run.ensemble, made.report)
    if made.content is None:
        say(f"{made.name} is in service; without a test example, or a constituent that votes, nothing is measured.")
        return
    for sentence in (*findings(made.content), *prices(made.content)):
        say(sentence)
    say(f"post-processor: {made.name}")
    say(f"page: {run.path(FAIR + made.name + '.html')}")


def frontier(config: Config, overrides: Sequence[str]) -> None:
    """Sweep the tolerance over all strategies, and draw what fairness costs."""
    run, settings = Run(config["run"]), frontier_settings(config)
    run.require_trained()
    with counting("strategies", Console()) as tell:
        content = frontier_run(
            run, settings, execution=execution_of(config), on_event=lambda event: None, on_progress=tell
        )
    for sentence in frontier_findings(content):
        say(sentence)
    for warning in content.warnings:
        say(warning)
    say(f"page: {run.path('frontier.html')}")


@contextmanager
def counting(what: str, console: Console) -> Iterator[Progress]:
    """Give a callback that shows how far something has come; nothing is shown where no one watches."""
    with ProgressBar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what)
        yield lambda name, done, total: bar.update(task, description=name or what, completed=done, total=total)


def frontier_settings(config: Config) -> FrontierSettings:
    """Return which tolerances are to be swept."""
    return settings_from(FrontierSettings, _own(config, "frontier"), "")


def postprocess_settings(config: Config) -> PostprocessSettings:
    """Return how decisions are to be made fair."""
    return settings_from(PostprocessSettings, _own(config, "postprocess"), "")


def _own(config: Config, root: str) -> dict[str, Any]:
    """Return the settings that stand at the top of a config; where a list is wanted, one value will do."""
    values = {key: config[key] for key in plain(ROOTS[root]())}
    return {key: _listed(value) if key in LISTS else value for key, value in values.items()}


def _listed(value: Any) -> Any:
    return [] if value is None else value if isinstance(value, list) else [value]
