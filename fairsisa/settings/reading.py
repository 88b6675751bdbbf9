"""From plain nested values to settings, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from fairsisa.errors import ConfigError
from fairsisa.settings.bias import BiasSettings, ComparisonSettings, JudgeSettings, ScoringSettings
from fairsisa.settings.checks import refuse_unknown
from fairsisa.settings.compression import CalibrationSettings, CompressionSettings, DistillationSettings
from fairsisa.settings.deletion import RequestSettings, SimulationSettings, StudySettings, UnlearningSettings
from fairsisa.settings.fairness import FrontierSettings, PostprocessSettings
from fairsisa.settings.language import PerplexitySettings, PretrainingSettings
from fairsisa.settings.places import ExecutionSettings, PathSettings, StorageSettings
from fairsisa.settings.training import (
    EvaluationSettings,
    ModelSettings,
    PartitionSettings,
    RunSettings,
    TrainerSettings,
)

Settings = TypeVar("Settings")
GROUPS: Mapping[str, type] = types.MappingProxyType(
    {
        "model": ModelSettings,
        "partition": PartitionSettings,
        "trainer": TrainerSettings,
        "evaluation": EvaluationSettings,
        "execution": ExecutionSettings,
        "paths": PathSettings,
        "store": StorageSettings,
        "request": RequestSettings,
        "unlearning": UnlearningSettings,
        "simulate": SimulationSettings,
        "study": StudySettings,
        "calibration": CalibrationSettings,
        "scoring": ScoringSettings,
        "judge": JudgeSettings,
    }
)
ROOTS: Mapping[str, type] = types.MappingProxyType(
    {
        "postprocess": PostprocessSettings,
        "frontier": FrontierSettings,
        "compress": CompressionSettings,
        "distil": DistillationSettings,
        "pretrain": PretrainingSettings,
        "perplexity": PerplexitySettings,
        "bias": BiasSettings,
        "compare": ComparisonSettings,
    }
)
"""Settings that stand at the top of a verb's config, with no group before their names."""


def run_settings(config: Mapping[str, Any]) -> RunSettings:
    """Return the settings in a plain nested mapping with the keys seed, data, model, partition, trainer, evaluation.

    Raises:
        ConfigError: naming the key, what came, and the nearest valid one.
    """
    known = {f.name for f in fields(RunSettings)}
    refuse_unknown("", config, known)
    groups = known & set(GROUPS)
    parts: dict[str, Any] = {name: settings_from(GROUPS[name], config.get(name, {}), name) for name in groups}
    return RunSettings(
        seed=_convert(config.get("seed", 0), int, "seed"),
        data=_convert(config.get("data"), Mapping[str, Any], "data"),
        **parts,
    )


def settings_from(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Return `kind` made of `values`, each converted to its annotated type; an absent one keeps its default."""
    hints = typing.get_type_hints(kind)
    refuse_unknown(where, values, hints)
    prefix = f"{where}." if where else ""
    return kind(**{key: _convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()})


def plain(settings: Any) -> dict[str, Any]:
    """Return settings as nested plain values that JSON and YAML can hold."""
    return {key: _plain(value) for key, value in dataclasses.asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _convert(value: Any, hint: Any, name: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"Expected {name} to have a value, got null.")
    target = next(option for option in options if option is not type(None))
    origin = typing.get_origin(target) or target
    if origin is tuple:
        return _convert_list(value, typing.get_args(target)[0], name)
    if origin not in (bool, int, float, str):
        if not isinstance(value, Mapping):
            raise ConfigError(f"Expected {name} to be a mapping, got {value!r}.")
        return _plain(value)
    return _convert_scalar(value, origin, name)


def _convert_list(value: Any, item: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"Expected {name} to be a list, got {value!r}; write [{value}].")
    if item is Any:
        return tuple(_plain(entry) for entry in value)
    return tuple(_convert_scalar(entry, item, name) for entry in value)


def _convert_scalar(value: Any, kind: type, name: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and (whole or isinstance(value, float)):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if (kind is int and whole) or (kind in (bool, str) and isinstance(value, kind)):
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise ConfigError(f"Expected {name} to be {words[kind]}, got {value!r}.")
