"""Linear layers whose weights are torchao's int8 and int4 tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairsisa.compression.outside import linear_layers, load_tool
from fairsisa.errors import ConfigError, ModelError
from fairsisa.settings.steps import Step

INT4_GROUPS = (128, 64, 32)
"""The group sizes torchao's int4 kernel for the CPU knows."""
INT4_OUTPUTS = 16
"""Its outputs come in multiples of this."""


def quantise(model: nn.Module, step: Step) -> nn.Module:
    """Return `model` itself, in evaluation mode, its nn.Linear weights replaced by torchao's tensors.

    By the step's scheme. "int8_weight_only": one scale a row, or for every `group_size` inputs. "int8_dynamic": one
    scale a row, inputs quantised token by token. "int4_weight_only": one scale and zero point for every `group_size`
    inputs, by default the largest of 128, 64 and 32 that divides every layer's inputs; on the CPU alone. Weights are
    rounded to nearest; biases stay. With `include_head` an untied head is quantised too; a head tied to the
    embeddings keeps their weights.

    Raises:
        ConfigError: when torchao is missing, the model has layers it would leave alone (Conv1D) or is not able to
            quantise by this scheme; the message names them, and the cure.
    """
    layers = linear_layers(model, include_head=bool(step.include_head), tool="torchao")
    scheme = str(step.scheme)
    group_size = _group_size(scheme, step.group_size, layers)
    _quantise(model, set(layers), scheme, group_size)
    left = sorted(set(layers) - set(find(model)))
    if left:
        raise ConfigError(f"torchao left alone {', '.join(left)}: it does not know layers of their shape.")
    return model.eval()


def find(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of this format by dotted name."""
    # A model with such layers has imported torchao; one without should not wait for it.
    utils = sys.modules.get("torchao.utils")
    if utils is None:
        return {}
    kind = utils.TorchAOBaseTensor
    return {
        name: module for name, module in model.named_modules() if isinstance(module._parameters.get("weight"), kind)
    }


def take(layer: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a layer of this format as plain tensors and plain JSON, from which `give` makes an equal one."""
    weight: Any = layer.get_parameter("weight")
    names, _ = weight.__tensor_flatten__()
    tensors = {name: getattr(weight, name).detach() for name in names}
    if layer._parameters.get("bias") is not None:
        tensors["bias"] = layer.get_parameter("bias").detach()
    num_outputs, num_inputs = weight.shape
    scheme, size = _scheme_of(weight), int(weight.block_size[-1])
    whole_row = size == num_inputs and scheme != "int4_weight_only"
    description = {
        "scheme": scheme,
        "group_size": None if whole_row else size,
        "num_outputs": int(num_outputs),
        "num_inputs": int(num_inputs),
        "dtype": str(weight.dtype).removeprefix("torch."),
    }
    return tensors, description


def give(model: nn.Module, name: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Put the layer that `take` gave in place of the nn.Linear called `name`; it answers bit for bit as before.

    Raises:
        ModelError: when that is no nn.Linear of the same shape.
        ConfigError: when torchao is missing.
    """
    layer = model.get_submodule(name)
    shape = (description["num_outputs"], description["num_inputs"])
    if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != shape:
        raise ModelError(f"Expected {name} to be an nn.Linear of shape {shape}, found {layer}: another architecture?")
    kind, attributes = _template(shape, description)
    inner = {part: tensor for part, tensor in tensors.items() if part != "bias"}
    weight: Tensor = kind.__tensor_unflatten__(inner, attributes, None, None)
    layer.weight = _fixed(weight)
    layer.register_parameter("bias", _fixed(tensors["bias"]) if "bias" in tensors else None)


def weights(layer: nn.Module) -> Tensor:
    """Return a layer's weights as it computes with them, in its dtype, shape (num_outputs, num_inputs)."""
    weight: Any = layer.get_parameter("weight")
    if _scheme_of(weight) != "int4_weight_only":
        dense: Tensor = weight.dequantize()
        return dense
    # torchao does not unpack int4 of the CPU; the layer itself does, of each input alone.
    return nn.functional.linear(torch.eye(weight.shape[1], dtype=weight.dtype), weight).t()


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _quantise(model: nn.Module, names: set[str], scheme: str, group_size: int | None) -> None:
    quantisation = load_tool("torchao.quantization")
    if scheme == "int4_weight_only":
        made = load_tool("torchao.prototype.quantization.int4").PrototypeInt4WeightOnlyConfig
        config = made(group_size=group_size, set_inductor_config=False)
    elif scheme == "int8_dynamic":
        config = quantisation.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    else:
        granularity = quantisation.PerRow() if group_size is None else quantisation.PerGroup(group_size)
        config = quantisation.Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)
    quantisation.quantize_(model, config, filter_fn=lambda _module, name: name in names)


def _group_size(scheme: str, asked: int | None, layers: dict[str, nn.Linear]) -> int | None:
    if scheme == "int8_dynamic" and asked is not None:
        raise ConfigError(f"int8_dynamic has one scale a row: leave out group_size={asked}, or use int8_weight_only.")
    if scheme == "int4_weight_only":
        _refuse_for_int4(layers, asked)
        fitting = [size for size in INT4_GROUPS if all(layer.in_features % size == 0 for layer in layers.values())]
        asked = asked or (fitting[0] if fitting else INT4_GROUPS[-1])
    if asked is not None:
        unfit = [f"{name} ({layer.in_features} inputs)" for name, layer in layers.items() if layer.in_features % asked]
        if unfit:
            raise ConfigError(
                f"Expected group_size to divide the inputs of every layer, got {asked} for {', '.join(unfit)}: use "
                "another group_size, or round_to_nearest, whose last group may be shorter."
            )
    return asked


def _refuse_for_int4(layers: dict[str, nn.Linear], asked: int | None) -> None:
    if asked is not None and asked not in INT4_GROUPS:
        raise ConfigError(f"Expected group_size of int4_weight_only to be 32, 64 or 128, got {asked}.")
    places = sorted({layer.weight.device.type for layer in layers.values()} - {"cpu"})
    if places:
        raise ConfigError(
            f"torchao's int4_weight_only is for models on the CPU here, this one is on {', '.join(places)}: move it "
            "there, or use bitsandbytes with 4 bits."
        )
    odd = {name: layer.out_features for name, layer in layers.items() if layer.out_features % INT4_OUTPUTS}
    if odd:
        unfit = [f"{name} ({num_outputs} outputs)" for name, num_outputs in odd.items()]
        raise ConfigError(
            f"torchao's int4 kernel needs a multiple of {INT4_OUTPUTS} outputs, unlike {', '.join(unfit)}: with "
            "include_head=false a head stays as it is; for other layers use bitsandbytes or round_to_nearest."
        )


def _scheme_of(weight: Any) -> str:
    if not hasattr(weight, "act_quant_kwargs"):
        return "int4_weight_only"
    return "int8_weight_only" if weight.act_quant_kwargs is None else "int8_dynamic"


def _template(shape: tuple[int, int], description: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the tensor class and the plain attributes of a layer like the one described, from quantising zeros.

    So nothing of torchao's own objects needs to be written to disk, or read from there.
    """
    blank = nn.Linear(shape[1], shape[0], bias=False, device="meta", dtype=getattr(torch, description["dtype"]))
    blank = blank.to_empty(device="cpu").requires_grad_(False)
    nn.init.zeros_(blank.weight)
    _quantise(nn.ModuleDict({"blank": blank}), {"blank"}, description["scheme"], description["group_size"])
    weight: Any = blank.weight
    return type(weight), weight.__tensor_flatten__()[1]
