"""Sweeps: the same verb under many settings, by Hydra's own runner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fairsisa.cli.composing import config_folder, plain_config, register_defaults

FLAGS = ("-m", "--multirun", "--cfg", "-c", "--info", "-i")


def sweep(verb: str, root: str, words: Sequence[str], act: Callable[[dict[str, Any], Sequence[str]], None]) -> None:
    """Run `act` once for every combination of settings; `words` hold Hydra's flags and the overrides."""
    register_defaults()

    def job(config: DictConfig) -> None:
        act(plain_config(config), list(HydraConfig.get().overrides.task))

    sys.argv = [f"fairsisa {verb}", *words]
    hydra.main(config_path=str(config_folder()), config_name=root, version_base="1.3")(job)()
