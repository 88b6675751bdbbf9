"""One function per verb: composed settings in, a call to the Python API, a few lines on the terminal."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from fairsisa.cli.composing import instantiate_loggers
from fairsisa.cli.printing import print_rows, say
from fairsisa.data.corpora import list_corpora, load_corpus
from fairsisa.data.summary import describe_examples
from fairsisa.execution import Report
from fairsisa.report.content import RunReport
from fairsisa.report.findings import headline
from fairsisa.report.progress import training_progress
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.logging import log_result, logged, metrics_handler
from fairsisa.runs.training import data_root, source_digest, train_run
from fairsisa.settings import (
    EvaluationSettings,
    ExecutionSettings,
    PathSettings,
    RunSettings,
    StorageSettings,
    plain,
    run_settings,
    settings_from,
)
from fairsisa.tables import write_examples

RUN_KEYS = ("seed", "data", "model", "partition", "trainer", "evaluation")
Config = Mapping[str, Any]


def train(config: Config, overrides: Sequence[str]) -> None:
    """Train, evaluate and report a run."""
    settings = run_settings({key: config[key] for key in RUN_KEYS})
    paths = settings_from(PathSettings, config["paths"], "paths")
    execution = settings_from(ExecutionSettings, config["execution"], "execution")
    run = Run(run_directory(config, overrides))
    say(f"run: {run.directory}")
    loggers = instantiate_loggers(config.get("logger", {}), run.directory)
    command = " ".join(["fairsisa", "train", *overrides])
    with logged(loggers, settings), progress(settings) as show:
        log = metrics_handler(loggers)

        def on_event(event: Any) -> None:
            show(event)
            log(event)

        train_run(
            settings,
            run,
            paths=paths,
            execution=execution,
            on_event=on_event,
            storage=_storage(config, overrides),
            command=command,
        )
        report = evaluate_run(run, execution=execution, on_event=on_event)
        log_result(loggers, run.ensemble, report)
    show_descendants(run)
    show_report(report, run)


def evaluate(config: Config, overrides: Sequence[str]) -> None:
    """Measure and report a trained run again."""
    run = Run(config["run"])
    asked = {key: value for key, value in config["evaluation"].items() if value is not None}
    own = run.settings.evaluation
    kept = [name for name in own.baselines if f"baseline-{name}" in run.ensemble.baselines]  # deletions take them away
    settings = settings_from(EvaluationSettings, plain(own) | {"baselines": kept} | asked, "evaluation")
    execution = settings_from(ExecutionSettings, config["execution"], "execution")
    with progress(run.settings, run.num_slices) as show:
        report = evaluate_run(run, settings=settings, execution=execution, on_event=show)
    show_report(report, run)


def data_list(config: Config, overrides: Sequence[str]) -> None:
    """Print the corpora."""
    print_rows(list_corpora())


def data_prepare(config: Config, overrides: Sequence[str]) -> None:
    """Load and check a corpus, write its examples table and print its counts."""
    paths = settings_from(PathSettings, config["paths"], "paths")
    examples = load_corpus(config["data"], root=data_root(paths), cache=Path(paths.cache).expanduser())
    out = Path(str(config["out"] or Path(paths.root) / "data" / f"{examples.name}.parquet")).expanduser()
    write_examples(examples, out)
    print_rows(describe_examples(examples))
    say(f"examples table: {out}")


def run_directory(config: Config, overrides: Sequence[str]) -> Path:
    """Return `run` if given; else a folder named after the experiment and a digest of all that decides its results.

    So the same command goes on where it stopped, and another one starts another run.
    """
    if config["run"]:
        return Path(str(config["run"])).expanduser()
    decided = json.dumps({key: config[key] for key in RUN_KEYS}, sort_keys=True)
    digest = hashlib.sha256(f"{decided}{source_digest(config['data'])}".encode()).hexdigest()[:8]
    words = [override.lstrip("+").partition("=") for override in overrides]
    chosen = [value for key, _, value in words if key == "experiment"]
    name = chosen[-1] if chosen else str(config["data"]["name"])
    return Path(str(config["paths"]["root"])).expanduser() / f"{re.sub(r'[^a-zA-Z0-9_-]', '-', name)}-{digest}"


def show_report(report: RunReport, run: Run) -> None:
    """Print the findings of a report, and where it lies."""
    for sentence in headline(report):
        say(sentence)
    say(f"report: {run.path('report.html')}")


def show_descendants(run: Run) -> None:
    """Print what a run serves beside its constituents, and what it had to take out of service, with the reason."""
    for name, entry in run.pointer.postprocessors.items():
        if entry["artefact"] is None:
            say(f"post-processor {name} is out of service, {entry['reason']}")
        else:
            say(f"post-processor {name} is fitted on the votes that are served")
    for name, made in run.pointer.descendants.items():
        kind = "student" if made.verb == "distil" else "compressed copy"
        if made.models:
            say(f"{kind} {name} is in step with what is served")
        else:
            say(f"{kind} {name} is out of service, {made.reason}")


def progress(settings: RunSettings, num_slices: int | None = None) -> AbstractContextManager[Report]:
    """Return the display of a run's slices; `num_slices` counts those added later too."""
    count = num_slices or settings.partition.num_slices
    slices = {f"shard-{index}": count for index in range(settings.partition.num_shards)}
    return training_progress(slices | {f"baseline-{name}": 1 for name in settings.evaluation.baselines}, Console())


def _storage(config: Config, overrides: Sequence[str]) -> StorageSettings | None:
    """Return the retention policy if one was asked for; None leaves that of a run that exists as it is."""
    asked = settings_from(StorageSettings, config["store"], "store")
    named = any(override.lstrip("+~").startswith("store") for override in overrides)
    return asked if named or asked != StorageSettings() else None
