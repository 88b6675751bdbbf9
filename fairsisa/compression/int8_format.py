"""Torch's dynamic int8 layers as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import dynamic

from fairsisa.compression.quantising import quiet_about_deprecation
from fairsisa.errors import ModelError


def find(model: nn.Module) -> dict[str, nn.Module]:
    """Return the model's dynamic int8 layers by dotted name, in its order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, dynamic.Linear)}


def take(layer: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what a layer holds, and no description: its tensors say all.

    `values` is int8, shape (out_features, in_features), one byte a weight; `scale` is float64 and `zero_point` int64,
    both of no dimension, so that weights are scale * (values - zero_point); `bias` is there if the layer has one.

    Raises:
        ModelError: when the layer's weights are none of int8 with one scale.
    """
    weight = _weight(layer)
    tensors = {
        "values": weight.int_repr(),
        "scale": torch.tensor(weight.q_scale(), dtype=torch.float64),
        "zero_point": torch.tensor(weight.q_zero_point(), dtype=torch.int64),
    }
    bias = _untyped(layer).bias()
    return tensors if bias is None else {**tensors, "bias": bias.detach()}, {}


def give(model: nn.Module, name: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Put the dynamic int8 layer that `take` took apart in the place of layer `name`; it computes the same bits.

    Raises:
        KeyError: when a tensor lacks.
    """
    values, bias = tensors["values"], tensors.get("bias")
    # Both are untyped in torch.
    make: Any = torch._make_per_tensor_quantized_tensor
    kind: Any = dynamic.Linear
    with quiet_about_deprecation():
        weight = make(values, tensors["scale"].item(), int(tensors["zero_point"].item()))
        layer = kind(values.shape[1], values.shape[0], bias_=bias is not None, dtype=torch.qint8)
        layer.set_weight_bias(weight, bias)
    model.set_submodule(name, layer.eval())


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = _untyped(layer).weight()
    if weight.dtype != torch.qint8 or weight.qscheme() != torch.per_tensor_affine:
        raise ModelError(f"Expected int8 weights with one scale a layer, got {weight.dtype}: quantise by int8_dynamic.")
    return weight


def _untyped(layer: nn.Module) -> Any:
    return layer
