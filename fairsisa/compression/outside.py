"""What quantising with the layers of another package takes, whichever the package."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from fairsisa.compression.layers import weight_layers
from fairsisa.errors import ConfigError


def linear_layers(model: nn.Module, *, include_head: bool, tool: str) -> dict[str, nn.Linear]:
    """Return the layers that `tool` is to quantise, by dotted name; a head tied to the embeddings is none of them.

    Raises:
        ConfigError: when the model has layers of weights that are no plain nn.Linear, which the tool would leave
            alone (GPT-2's Conv1D), or none at all; the message names them.
    """
    found = {name: layer.module for name, layer in weight_layers(model, include_head=include_head).items()}
    plain = {
        name: module
        for name, module in found.items()
        if type(module) is nn.Linear and type(module.weight) is nn.Parameter and module is not model
    }
    left = [name or "the model itself" for name in found if name not in plain]
    if left:
        kinds = sorted({f"{type(found[name]).__name__}" for name in found if name not in plain})
        raise ConfigError(
            f"{tool} quantises plain nn.Linear layers inside a model, so it would silently leave alone "
            f"{', '.join(left)}, of type {', '.join(kinds)} (or quantised already). Use round_to_nearest, which knows "
            "Conv1D, and quantise once."
        )
    return plain


def load_tool(name: str) -> Any:
    """Return a module of an optional package.

    Raises:
        ConfigError: when it is not installed, or does not import here; the message names the cure.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"This needs {package}, which cannot be imported ({error}): pip install 'fairsisa[low-bit]'."
        ) from error
