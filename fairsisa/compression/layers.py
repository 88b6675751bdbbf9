"""The layers of a network that hold a weight matrix, whatever their type."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fairsisa.errors import ConfigError

HEAD_NAMES = frozenset({"classifier", "score", "head"})


@dataclass(frozen=True)
class LayerWeight:
    """One `nn.Linear` or transformers `Conv1D` by its dotted name, its weights seen as (out_features, in_features)."""

    name: str
    module: nn.Module

    def matrix(self) -> torch.Tensor:
        """Return the weights without gradient, shape (out_features, in_features), sharing memory with the layer."""
        weight = _weight(self.module).detach()
        return weight.t() if isinstance(self.module, Conv1D) else weight

    def write(self, matrix: torch.Tensor) -> None:
        """Replace the weights by `matrix`, shape (out_features, in_features), in the layer's own dtype and device.

        Whatever shares the weights (a tied embedding) changes with them.

        Raises:
            ValueError: when the shape differs.
        """
        target = self.matrix()
        if matrix.shape != target.shape:
            raise ValueError(f"Expected a matrix of shape {tuple(target.shape)} for {self.name}, got {matrix.shape}.")
        target.copy_(matrix.detach())


def weight_layers(model: nn.Module, *, include_head: bool = True, include_tied: bool = False) -> dict[str, LayerWeight]:
    """Return every `nn.Linear` and transformers `Conv1D` of `model` by dotted name, in the model's order.

    The head is what `get_output_embeddings` returns and what stands under the name "classifier", "score" or "head".
    A head whose weights are the input embedding's (see `tied_layers`) is left out unless `include_tied`: to change it
    is to change the embedding.

    Raises:
        ConfigError: when no such layer is left (the message names the layer types found, and what was left out), or
            a layer's weights are integers, as a quantised layer's are.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    _refuse_integers(found)
    left_out = set() if include_tied else set(tied_layers(model))
    if not include_head:
        left_out |= _head_names(model, found)
    kept = {name: LayerWeight(name, module) for name, module in found.items() if name not in left_out}
    if not kept:
        raise ConfigError(
            f"Expected nn.Linear or Conv1D layers to compress in {type(model).__name__}, found none: left out "
            f"{sorted(left_out) or 'none'}, and its layer types are {_layer_types(model)}."
        )
    return kept


def tied_layers(model: nn.Module) -> dict[str, str]:
    """Return, for each layer whose weights another module holds already, the name of that module.

    An embedding comes before any layer; of layers that share weights, the model's first one holds them.
    """
    modules = [(name, module) for name, module in model.named_modules() if "weight" in module._parameters]
    modules.sort(key=lambda found: not isinstance(found[1], nn.Embedding))
    holders: dict[int, str] = {}
    tied = {}
    for name, module in modules:
        holder = holders.setdefault(id(module._parameters["weight"]), name)
        if holder != name and isinstance(module, nn.Linear | Conv1D):
            tied[name] = holder
    return tied


def _weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")


def _refuse_integers(layers: dict[str, nn.Module]) -> None:
    integer = [name for name, module in layers.items() if not _weight(module).is_floating_point()]
    if integer:
        raise ConfigError(f"Expected weights in floating point, got integers in {integer}: quantise last.")


def _head_names(model: nn.Module, layers: dict[str, nn.Module]) -> set[str]:
    getter = getattr(model, "get_output_embeddings", None)
    head = None if getter is None else getter()
    return {name for name, module in layers.items() if module is head or HEAD_NAMES & set(name.split("."))}


def _layer_types(model: nn.Module) -> list[str]:
    """Return the full types of what holds weights or has nothing below it: a quantised layer is called Linear too."""
    types = {type(module) for module in model.modules() if module._parameters or not module._modules}
    return sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in types)
