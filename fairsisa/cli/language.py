"""The verbs about language models: pretrain, perplexity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fairsisa.cli.fairness import counting
from fairsisa.cli.printing import say
from fairsisa.cli.reading import paths_of
from fairsisa.models.fitting import Tell
from fairsisa.report.perplexity import PerplexityReport, findings
from fairsisa.runs import perplexities, pretraining
from fairsisa.runs.pretrained import Pretrained
from fairsisa.settings import PerplexitySettings, PretrainingSettings, TrainerSettings, plain, settings_from

Config = Mapping[str, Any]
Settings = TypeVar("Settings")
LISTS = ("corpora", "held_out", "models", "checkpoint_steps")
"""Settings that take one value or a list."""


def pretrain(config: Config, overrides: Sequence[str]) -> None:
    """Train a language model on a text, keep checkpoints on the way, and measure them."""
    settings = _own(config, PretrainingSettings)
    trainer = settings_from(TrainerSettings, config["trainer"], "trainer")
    directory = Path(str(config["run"])).expanduser()
    say(f"run: {directory}")
    with _steps(settings.num_steps, Console()) as tell:
        report = pretraining.pretrain(
            settings,
            trainer,
            directory,
            paths=paths_of(config),
            tell=tell,
            command=" ".join(["fairsisa", "pretrain", *overrides]),
        )
    _show(report, directory / f"{pretraining.REPORT}.html")


def perplexity(config: Config, overrides: Sequence[str]) -> None:
    """Measure language models on texts, side by side."""
    settings = _own(config, PerplexitySettings)
    directory = Path(str(config["run"])).expanduser()
    if not settings.models and Pretrained(directory).exists:
        settings = replace(settings, models=(str(directory),))
    with counting("models", Console()) as tell:
        report = perplexities.perplexity_run(
            directory,
            settings,
            paths=paths_of(config),
            on_progress=tell,
            command=" ".join(["fairsisa", "perplexity", *overrides]),
        )
    _show(report, directory / "perplexity.html")


def _own(config: Config, kind: type[Settings]) -> Settings:
    """Return the settings that stand at the top of a config; where a list is wanted, one value will do."""
    values = {key: config[key] for key in plain(kind())}
    values = {key: [value] if key in LISTS and not isinstance(value, list) else value for key, value in values.items()}
    return settings_from(kind, values, "")


def _show(report: PerplexityReport, page: Path) -> None:
    for sentence in findings(report):
        say(sentence)
    say(f"page: {page}")


@contextmanager
def _steps(num_steps: int, console: Console) -> Iterator[Tell]:
    """Give a callback that shows how far training has come, and a line for each loss where no one watches."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=num_steps)

        def tell(step: int, metrics: Mapping[str, float]) -> None:
            line = f"loss {metrics['train_loss']:.4f}"
            bar.update(task, completed=step, description=line)
            if not console.is_terminal:
                say(f"[{step}/{num_steps}] {line}")

        yield tell
