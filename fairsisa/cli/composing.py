"""From the words of a command to a checked config: the only module that sees Hydra, with `sweeping`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairsisa.errors import ConfigError
from fairsisa.settings import (
    GROUPS,
    ROOTS,
    EvaluationSettings,
    ModelSettings,
    StorageSettings,
    TrainerSettings,
    nearest,
    plain,
    refuse_unknown,
)

ALLOWED_TARGETS = frozenset(
    {
        "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.loggers.WandbLogger",
        "pytorch_lightning.loggers.TensorBoardLogger",
    }
)
"""The only classes a config may name: what is instantiated decides what code runs."""
FREE_TEXT = ("request.where", "request.reason", "id", "base", "toxicity", "regard")
ID_LISTS = ("request.ids", "request.subjects", "models", "other", "benchmarks")
"""Settings whose values need no quotes of Hydra's own; an id such as 007 or 1e5 is text."""
ONE_OF_MANY: Mapping[str, tuple[str, str]] = {"bias": ("model", "models")}
"""By root, a word for a single value of a list: Hydra would take it for the config group of that name."""


def compose(root: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the config of a verb under the given overrides, as plain values.

    Raises:
        ConfigError: when an override is misspelt, naming the nearest key or option, or a value that a person must
            give is missing.
    """
    register_defaults()
    overrides = [_quoted(listed(root, override)) for override in overrides]
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"Expected settings written key=value, got {override!r}; see fairsisa --help.")
        if override.startswith("~") and "." not in override and not override.startswith("~logger"):
            raise ConfigError(f"{override} takes away what must be given; of the groups, only ~logger can be left out.")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        try:
            config = plain_config(hydra.compose(config_name=root, overrides=list(overrides)))
            if any(override.startswith("+") for override in overrides):
                refuse_unknown("", config, map(str, hydra.compose(config_name=root)))
            return config
        except ConfigError:
            raise
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            known = plain_config(hydra.compose(config_name=root), missing_is_error=False)
            chosen = _choices(overrides, known)
            known = plain_config(hydra.compose(config_name=root, overrides=chosen), missing_is_error=False)
            raise ConfigError(_explained(error, overrides, known)) from error


def listed(root: str, override: str, *, several: bool = False) -> str:
    """Return an override of a list's single value as one of the list; of `several` between commas, as lists of one."""
    one, many = ONE_OF_MANY.get(root, ("", ""))
    key, sign, value = override.partition("=")
    if not sign or key != one:
        return override
    values = value.split(",") if several and value[:1] != "[" else [value]
    return f"{many}={','.join(each if each[:1] == '[' else f'[{each}]' for each in values)}"


def _quoted(override: str) -> str:
    """Return an override whose value is a person's own words as Hydra reads it, whatever characters they hold."""
    key, _, value = override.partition("=")
    if key in ID_LISTS and value[:1] == "[" and value[-1:] == "]" and not set(value) & set("'\"\\"):
        return f"{key}=[{','.join(_in_quotes(item.strip()) for item in value[1:-1].split(',') if item.strip())}]"
    wrapped = len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and value[0] not in value[1:-1]
    if key not in FREE_TEXT or value == "null" or wrapped:
        return override
    return f"{key}={_in_quotes(value)}"


def _in_quotes(text: str) -> str:
    """Return text between quotes, so that neither Hydra nor OmegaConf sees more in it than text."""
    text = re.sub(r"(\\*)(\$\{)", lambda found: 2 * found[1] + "\\" + found[2], text)
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), text)
    return f'"{escaped}"'


def defaults_of(root: str) -> dict[str, Any]:
    """Return a verb's config as it stands, with "???" where a person must give a value."""
    register_defaults()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
        return plain_config(hydra.compose(config_name=root), missing_is_error=False)


def plain_config(config: DictConfig, *, missing_is_error: bool = True) -> dict[str, Any]:
    """Return a config as plain values, interpolations resolved.

    Raises:
        ConfigError: naming the keys, when values that a person must give are missing.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing and missing_is_error:
        raise ConfigError(f"Set {', '.join(f'{key}=...' for key in missing)}: only you can know.")
    values = OmegaConf.to_container(config, resolve=True)
    if not isinstance(values, dict):
        raise ConfigError(f"Expected the config to be a mapping, got {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}


def config_folder() -> Path:
    """Return the folder of configs: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    found = [folder for folder in (package / "conf", package.parent / "conf") if (folder / "train.yaml").is_file()]
    if not found:
        raise ConfigError(f"The configs of fairsisa are in neither {package / 'conf'} nor beside it: reinstall it.")
    return found[0]


def options() -> dict[str, list[str]]:
    """Return the choices of each config group, by name."""
    folders = [folder for folder in config_folder().iterdir() if folder.is_dir()]
    named = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
    return named | {group: [*named.get(group, []), "base"] for group in GROUPS}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every setting."""
    if not isinstance(node, dict) or not node:
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def register_defaults() -> None:
    """Give Hydra the defaults that the settings' dataclasses hold, as the option `base` of each group."""
    store = ConfigStore.instance()
    for group, kind in GROUPS.items():
        store.store(group=group, name="base", node=plain(kind()))
    for root, kind in ROOTS.items():
        store.store(group=f"{root}_settings", name="base", node=plain(kind()), package="_global_")
    for group, kind in (("evaluation", EvaluationSettings), ("model", ModelSettings), ("trainer", TrainerSettings)):
        store.store(group=group, name="as_trained", node=dict.fromkeys(plain(kind())))
    store.store(group="store", name="as_asked", node=dict.fromkeys(plain(StorageSettings())))


def instantiate_loggers(nodes: Mapping[str, Any], run: Path) -> list[Any]:
    """Return the Lightning loggers that a config names, saving into `run`.

    Raises:
        ConfigError: when a `_target_` is not one of `ALLOWED_TARGETS`, or stands anywhere but on top; when the folder
            cannot be made.
    """
    for name, node in nodes.items():
        _require_allowed(name, node)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {run} cannot be made ({error.strerror}): name another one.") from error
    return [_made_logger(name, dict(node), run) for name, node in nodes.items()]


def _require_allowed(name: str, node: Any) -> None:
    if not isinstance(node, Mapping):
        raise ConfigError(f"Expected logger.{name} to be a mapping with a _target_, got {node!r}.")
    target = str(node.get("_target_"))
    if target not in ALLOWED_TARGETS:
        raise ConfigError(f"logger.{name}._target_={target} is not allowed.{nearest(target, ALLOWED_TARGETS)}")
    nested = [key for key, _ in leaves(dict(node)) if "_target_" in key and key != "_target_"]
    if nested:
        raise ConfigError(f"logger.{name}.{nested[0]} is not allowed: a logger's settings are plain values.")


def _made_logger(name: str, values: dict[str, Any], run: Path) -> Any:
    module, _, kind = values.pop("_target_").rpartition(".")
    folder = str(run.absolute())  # W&B's own process reads a relative path from where it was first started
    try:
        return getattr(importlib.import_module(module), kind)(**{**values, "save_dir": folder})
    except TypeError as error:
        raise ConfigError(f"logger.{name} does not take these settings: {error}") from error


def _choices(overrides: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """Return the overrides that choose an option of a group: they decide which keys there are."""
    groups = options()
    words = [override.partition("=") for override in overrides]
    return ["".join(word) for word in words if word[0] in known and word[2] in groups.get(word[0], ())]


def _explained(error: Exception, overrides: Sequence[str], known: Mapping[str, Any]) -> str:
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        return f"Cannot read {error.override}: quote its value, \"{key}='{value}'\"."
    groups, keys = options(), set(_inner_keys(known))
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        nothing = value == "null" and key == "experiment"
        group, _, rest = key.partition(".")
        if rest and group in groups and known.get(group, "") is None:
            return f"{key} acts on what {group}=... chooses: give {group}={' or '.join(groups[group])} too."
        if key in groups and value and not value.startswith(("[", "{")) and not nothing and value not in groups[key]:
            return f"Unknown {key} {value!r}.{nearest(value, groups[key])}"
        if key not in keys and key not in groups and not override.startswith("+"):
            return f"Unknown setting {key!r}.{nearest(key, {*keys, 'experiment'})}"
    return str(error).split("\n\n", maxsplit=1)[0].replace("\n", " ")


def _inner_keys(config: Mapping[str, Any]) -> Iterator[str]:
    for key, _ in leaves(dict(config)):
        parts = key.split(".")
        yield from (".".join(parts[: count + 1]) for count in range(len(parts)))
