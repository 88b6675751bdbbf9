"""Sweeps: the same verb under many settings, by Hydra's own runner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fairsisa.cli.composing import config_folder, listed, plain_config, register_defaults

VALUED = ("--cfg", "-c", "--info", "-i")
FLAGS = ("-m", "--multirun", *VALUED)


def sweep(verb: str, root: str, words: Sequence[str], act: Callable[[dict[str, Any], Sequence[str]], None]) -> None:
    """Run `act` once for every combination of settings; `words` hold Hydra's flags and the overrides."""
    register_defaults()

    def job(config: DictConfig) -> None:
        act(plain_config(config), list(HydraConfig.get().overrides.task))

    sys.argv = [f"fairsisa {verb}", *flags_first(root, words)]
    hydra.main(config_path=str(config_folder()), config_name=root, version_base="1.3")(job)()


def flags_first(root: str, words: Sequence[str]) -> list[str]:
    """Return Hydra's flags with their values, then the overrides: it knows them in this order alone.

    Each value of a word that stands for a list's single one (`model=a,b`) becomes a list of one.
    """
    flags, overrides = list[str](), list[str]()
    for before, word in pairwise(["", *words]):
        is_value = before in VALUED and "=" not in word
        (flags if word.startswith("-") or is_value else overrides).append(word)
    return [*flags, *(listed(root, each, several=True) for each in overrides)]
