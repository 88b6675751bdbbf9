"""From a composed config to settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairsisa.errors import ConfigError
from fairsisa.settings import ExecutionSettings, PathSettings, RequestSettings, UnlearningSettings, settings_from

Config = Mapping[str, Any]


def paths_of(config: Config) -> PathSettings:
    """Return where things are kept."""
    return settings_from(PathSettings, config["paths"], "paths")


def execution_of(config: Config) -> ExecutionSettings:
    """Return where tasks run."""
    return settings_from(ExecutionSettings, config["execution"], "execution")


def request_of(config: Config) -> RequestSettings:
    """Return whom a request names."""
    return settings_from(RequestSettings, config["request"], "request")


def unlearning_of(config: Config) -> UnlearningSettings:
    """Return how requests are executed."""
    return settings_from(UnlearningSettings, config["unlearning"], "unlearning")


def flag(config: Config, key: str) -> bool:
    """Return a truth value; words such as "no", which any language would take for true, are an error."""
    value = config[key]
    if not isinstance(value, bool):
        raise ConfigError(f"Expected {key} to be true or false, got {value!r}.")
    return value
