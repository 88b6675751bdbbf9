"""The verbs that make models smaller: distil, compress, prune, quantise, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from fairsisa.cli.printing import say
from fairsisa.cli.reading import execution_of, flag, paths_of
from fairsisa.errors import ConfigError
from fairsisa.report.compression import findings
from fairsisa.report.progress import training_progress
from fairsisa.runs.compressing import descend_run, export_descendant, remove_descendant
from fairsisa.runs.descendants import Recipe
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import COMPRESSION
from fairsisa.runs.folders import Places, compress_folder
from fairsisa.runs.training import data_root
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    one_of,
    plain,
    settings_from,
)
from fairsisa.settings.steps import PRUNING, QUANTISING, Step

Config = Mapping[str, Any]
STEP = tuple(each.name for each in fields(Step))


def distil(config: Config, overrides: Sequence[str]) -> None:
    """Train a student of a run's ensemble, and measure it beside the ensemble."""
    values = {key: config[key] for key in plain(DistillationSettings())}
    for group in ("model", "trainer"):
        values[group] = {key: value for key, value in config[group].items() if value is not None}
    settings = settings_from(DistillationSettings, values, "")
    _descend(config, Recipe(distil=settings))


def compress(config: Config, overrides: Sequence[str]) -> None:
    """Take a run's models, or a model folder, through a chain of steps."""
    _compress(config, config["compression"])


def prune(config: Config, overrides: Sequence[str]) -> None:
    """Compress by one step of pruning."""
    one_of("method", config["method"], PRUNING)
    _compress(config, [_step(config)])


def quantise(config: Config, overrides: Sequence[str]) -> None:
    """Compress by one step of quantisation."""
    one_of("method", config["method"], QUANTISING)
    _compress(config, [_step(config)])


def export(config: Config, overrides: Sequence[str]) -> None:
    """Save a student or compressed copies as model folders."""
    run = Run(config["run"])
    run.require_trained()
    for folder in export_descendant(run, str(config["name"]), _path(config["out"]), execution=execution_of(config)):
        say(f"model folder: {folder}")
    say("Later deletions do not reach a folder: export again after `fairsisa unlearn`, and withdraw the old one.")


def _compress(config: Config, steps: Sequence[Any]) -> None:
    calibration = settings_from(CalibrationSettings, config["calibration"], "calibration")
    if (config["run"] is None) == (config["folder"] is None):
        raise ConfigError("Set run=... to compress a run's models, or folder=... and out=... for a model folder.")
    own = {key: config[key] for key in ("source", "name", "when_outdated")}
    settings = settings_from(CompressionSettings, {**own, "compression": steps}, "")
    if config["folder"] is not None:
        _compress_folder(config, settings.steps, calibration)
        return
    if not steps and not (flag(config, "remove") and config["name"] is not None):
        raise ConfigError(
            "Set compression=[...] to one step or more, such as [wanda_2to4,int8_dynamic]; with remove=true, name=... "
            "will do."
        )
    _descend(config, Recipe(compress=(settings, calibration)))


def _compress_folder(config: Config, steps: tuple[Step, ...], calibration: CalibrationSettings) -> None:
    if config["out"] is None:
        raise ConfigError("Set out=... to the folder that the compressed model goes to.")
    if flag(config, "remove"):
        raise ConfigError("remove=true takes copies out of a run: set run=... and name=..., not folder=....")
    paths, out = paths_of(config), _path(config["out"])
    places = Places(data_root(paths), _path(paths.cache))
    card = compress_folder(
        str(config["folder"]), out, steps, calibration=calibration, places=places, revision=config["revision"]
    )
    say(f"{', '.join(step.label for step in card.steps)}: {card.sparsity:.1%} of the compressed weights are zero.")
    say(f"In memory {card.bytes_after:,} bytes, {card.bytes_before:,} before.")
    say(f"model folder: {out}")


def _descend(config: Config, recipe: Recipe) -> None:
    run, remove = Run(config["run"]), flag(config, "remove")
    run.require_trained()
    if remove:
        remove_descendant(run, recipe.name)
        say(f"{recipe.name} is out of {run.directory}; its reports are made again by `fairsisa evaluate`.")
        return
    with training_progress({}, Console()) as show:
        made = descend_run(run, recipe, execution=execution_of(config), on_event=show)
    if made.content is None:
        say(f"{made.name} is in the run; without a test example, or a constituent that votes, nothing is measured.")
        return
    for sentence in findings(made.content):
        say(sentence)
    say(f"name: {made.name}")
    say(f"page: {run.path(COMPRESSION + '.html')}")


def _step(config: Config) -> dict[str, Any]:
    return {key: config[key] for key in STEP if config.get(key) is not None}


def _path(value: Any) -> Path:
    return Path(str(value)).expanduser()
