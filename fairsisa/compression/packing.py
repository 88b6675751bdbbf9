"""A compressed model as plain tensors with a plain layout."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from fairsisa.compression.dropping import drop_layers, num_layers_of
from fairsisa.errors import ModelError


class Format(Protocol):
    """What the module of a format of layers offers: to find such layers, take them apart, and put them in place."""

    def find(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the layers of this format by dotted name; none where its library is not installed."""

    def take(self, layer: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a layer holds as plain tensors, and a description in plain JSON."""

    def give(self, model: nn.Module, name: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
        """Put a layer, made of what `take` returned, in the place of the layer `name`."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A model without its code: tensors by name, dense and each stored once, and in plain JSON how they belong."""

    layout: dict[str, Any]
    tensors: dict[str, Tensor]


FORMATS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "int8_dynamic": ("fairsisa.compression.int8_format", "torch"),
        "torchao": ("fairsisa.compression.torchao_format", "torchao"),
        "bitsandbytes": ("fairsisa.compression.bitsandbytes_format", "bitsandbytes"),
    }
)
"""By format, the module that knows it and the library that makes its layers; both are imported when needed."""


def format_named(name: str) -> Format:
    """Return the module of a format.

    Raises:
        ModelError: when it is unknown.
    """
    if name not in FORMATS:
        raise ModelError(f"Expected a format of layers among {', '.join(FORMATS)}, got {name!r}: a newer fairsisa's?")
    return cast("Format", importlib.import_module(FORMATS[name][0]))


def format_layers(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return the layers of `model` that hold weights in a format, by dotted name: the format's name and the layer."""
    # Before its library is imported no layer of a format can exist: models without any need not wait for it.
    names = [name for name, (_, library) in FORMATS.items() if library in sys.modules]
    return {layer: (name, module) for name in names for layer, module in format_named(name).find(model).items()}


def pack(model: nn.Module) -> Packed:
    """Return a model as plain tensors and layout; tensors share memory with the model where they can.

    A format's layers are taken apart by their format; weights that several places share are stored at the first one,
    and the layout names the others. `unpack` gives back a model whose outputs are equal bit for bit.

    Raises:
        ModelError: when part of the model's state is no tensor, so that it would be lost.
    """
    found = format_layers(model)
    state = _state(model, found)
    holders: dict[tuple[object, ...], str] = {}
    tied = {name: holders.setdefault(_memory(value), name) for name, value in state.items()}
    tied = {name: holder for name, holder in tied.items() if holder != name}
    tensors = {name: _plain(value) for name, value in state.items() if name not in tied}
    layers: dict[str, Any] = {}
    for name, (kind, layer) in found.items():
        parts, description = format_named(kind).take(layer)
        layers[name] = {"format": kind, "description": description}
        for part, value in parts.items():  # A bias that another place holds, too, is the layer's own from here on.
            own = value.clone() if _memory(value) in holders else value
            tensors[f"{name}.{part}"] = _plain(own)
    return Packed({"layers": layers, "tied": tied, "num_layers": num_layers_of(model)}, tensors)


def unpack(model: nn.Module, packed: Packed) -> nn.Module:
    """Put what `pack` packed into `model`, which is changed and returned in evaluation mode.

    `model` has the architecture from before compression, on the CPU, with any weights; layers that were dropped are
    dropped from it. Its tensors are then those of `packed`, not copies.

    Raises:
        ModelError: when `packed` is damaged, or of another architecture; the message names what lacks or does not fit.
    """
    tensors = dict(packed.tensors)
    try:
        layers, num_layers = dict(packed.layout["layers"]), packed.layout["num_layers"]
        if num_layers is not None and num_layers != num_layers_of(model):
            drop_layers(model, num_layers, "first")
        parts = {name: _popped(tensors, name) for name in layers}
        tensors |= {name: tensors[holder] for name, holder in packed.layout["tied"].items()}
        _assign(model, tensors, layers)
        for name, layer in layers.items():
            format_named(layer["format"]).give(model, name, parts[name], layer["description"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"What was packed is damaged or another model's: {type(error).__name__}: {error}") from error
    return model.eval()


def _state(model: nn.Module, found: Collection[str]) -> dict[str, Tensor]:
    """Return parameters and buffers outside a format's layers, shared ones under each name."""
    inside = tuple(f"{name}." for name in found)
    state: dict[str, Any] = {**model.state_dict(keep_vars=True), **_rounded_buffers(model)}
    outside = {name: value for name, value in state.items() if not name.startswith(inside)}
    lost = [name for name, value in outside.items() if not isinstance(value, Tensor)]
    if lost:
        raise ModelError(f"Expected a model whose state is tensors, got others under {lost}: its format is unknown.")
    return outside


def _rounded_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return buffers that a 16-bit model rounded, though its state leaves them to the architecture to make in fp32."""
    buffers = dict(model.named_buffers())
    return {name: value for name, value in buffers.items() if value.dtype in (torch.float16, torch.bfloat16)}


def _memory(value: Tensor) -> tuple[object, ...]:
    """Return what is equal for two views of the very same numbers; an empty tensor has no memory to share."""
    if value.numel() == 0:
        return (id(value),)
    return value.data_ptr(), value.dtype, tuple(value.shape), value.stride()


def _plain(value: Tensor) -> Tensor:
    """Return dense numbers on the CPU with no more memory behind them than they fill."""
    dense = value.detach().cpu().contiguous()
    whole = dense.untyped_storage().nbytes() == dense.numel() * dense.element_size()
    return dense if whole else dense.clone()


def _popped(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(f"{layer}.")]
    return {name.removeprefix(f"{layer}."): tensors.pop(name) for name in names}


def _assign(model: nn.Module, tensors: Mapping[str, Tensor], replaced: Collection[str]) -> None:
    own = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers())
    made: dict[int, nn.Parameter] = {}
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in own:  # One parameter for all that share a tensor: what was tied stays tied.
            state[name] = made.setdefault(id(value), nn.Parameter(value, requires_grad=own[name].requires_grad))
        else:
            state[name] = value
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(f"What was packed does not fit the model: {error}") from error
    inside = tuple(f"{name}." for name in replaced)
    lacking = [name for name in missing if not name.startswith(inside)]
    foreign = [name for name in unexpected if name not in buffers]
    if lacking or foreign:
        raise ModelError(
            f"What was packed is another model's: it lacks {_some(lacking)}, and has {_some(foreign)} more."
        )
    for name in unexpected:
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = state[name]


def _some(names: list[str]) -> str:
    return f"{len(names)} tensors, {names[0]} first" if names else "nothing"
