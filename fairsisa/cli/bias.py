"""The verbs about bias and behaviour: bias, bias list, compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from fairsisa.bias.catalogue import benchmarks
from fairsisa.cli.composing import instantiate_loggers
from fairsisa.cli.fairness import counting
from fairsisa.cli.printing import print_rows, say
from fairsisa.cli.reading import paths_of
from fairsisa.report.bias import BiasReport, findings
from fairsisa.runs import bias as asking
from fairsisa.runs import comparing
from fairsisa.settings import BiasSettings, ComparisonSettings, JudgeSettings, ScoringSettings, plain, settings_from

Config = Mapping[str, Any]
Settings = TypeVar("Settings", bound=BiasSettings)
LISTS = ("models", "other", "benchmarks", "corpora", "positive_classes")
"""Settings that take one value or a list."""


def bias(config: Config, overrides: Sequence[str]) -> None:
    """Ask models benchmarks of bias, toxicity and behaviour."""
    _measure("bias", _own(config, BiasSettings), asking.bias_run, config, overrides)


def compare(config: Config, overrides: Sequence[str]) -> None:
    """Compare models with one, item by item."""
    _measure("compare", _own(config, ComparisonSettings), comparing.compare_run, config, overrides)


def bias_list(config: Config, overrides: Sequence[str]) -> None:
    """List the benchmarks, what models they ask and how, and under which licence their data is."""
    rows = []
    for name, each in sorted(benchmarks().items()):
        readouts = {kind: [one.name for one in each.readouts if one.kind == kind] for kind in each.kinds}
        told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in readouts.items())
        rows.append({"benchmark": name, "models and readouts": told, "licence of the data": each.licence})
    print_rows(rows)


def _measure(
    verb: str, settings: Settings, act: Callable[..., BiasReport], config: Config, overrides: Sequence[str]
) -> None:
    """Run a verb on its settings, show how far it has come, and say what it found."""
    scoring, judge = _scoring(config), _judge(config)
    directory = _directory(config, verb, settings, scoring, judge)
    say(f"out: {directory}")
    with counting("items", Console()) as tell:
        report = act(
            directory,
            settings,
            scoring,
            paths=paths_of(config),
            judge=judge,
            loggers=instantiate_loggers(config.get("logger") or {}, directory),
            on_progress=tell,
            command=" ".join(["fairsisa", verb, *overrides]),
        )
    _show(report, directory / f"{verb}.html")


def _own(config: Config, kind: type[Settings]) -> Settings:
    """Return the settings that stand at the top of a config; where a list is wanted, one value will do."""
    values = {key: config[key] for key in plain(kind())}
    values = {key: [value] if key in LISTS and not isinstance(value, list) else value for key, value in values.items()}
    return settings_from(kind, values, "")


def _scoring(config: Config) -> ScoringSettings:
    return settings_from(ScoringSettings, config["scoring"], "scoring")


def _judge(config: Config) -> JudgeSettings:
    return settings_from(JudgeSettings, config["judge"], "judge")


def _directory(config: Config, verb: str, *settings: Any) -> Path:
    if config["out"] not in (None, ""):
        return Path(str(config["out"])).expanduser()
    return asking.directory_of(*settings, root=paths_of(config).root, verb=verb)


def _show(report: BiasReport, page: Path) -> None:
    for sentence in findings(report):
        say(sentence)
    say(f"page: {page}")
