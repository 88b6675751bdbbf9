"""Linear layers of bitsandbytes, with weights of 8 or 4 bits."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fairsisa.compression.outside import linear_layers, load_tool
from fairsisa.errors import ConfigError, ModelError
from fairsisa.settings.steps import Step

OUTLIERS = 6.0
"""Inputs beyond this are multiplied in 16 bits (Dettmers et al. 2022, LLM.int8(), section 3.2)."""


def quantise(model: nn.Module, step: Step) -> nn.Module:
    """Return `model` itself, in evaluation mode, its nn.Linear layers replaced by those of bitsandbytes.

    With 8 bits LLM.int8(): one scale a row, inputs quantised token by token, outlying ones kept in 16 bits. With 4
    bits NF4 with doubly quantised scales (Dettmers et al. 2023, QLoRA), in blocks of 64 weights. Biases stay. Runs on
    the CPU and on a GPU, wherever the layer is. With `include_head` an untied head is quantised too; a head tied to
    the embeddings keeps their weights.

    Raises:
        ConfigError: when bitsandbytes is missing, the model has layers it would leave alone (Conv1D), or it computes
            a layer's 4 bits wrongly on the CPU (release 0.50.2 does for many numbers of inputs that are no multiple
            of 64); the message names them.
    """
    layers = linear_layers(model, include_head=bool(step.include_head), tool="bitsandbytes")
    for name, layer in layers.items():
        made = _int8_layer(layer) if step.bits == 8 else _nf4_layer(layer)
        if step.bits == 4 and layer.weight.device.type == "cpu":
            _require_right(name, made)
        model.set_submodule(name, made)
    return model.eval()


def find(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of this format by dotted name."""
    # A model with such layers has imported bitsandbytes; one without should not wait for it.
    tool = sys.modules.get("bitsandbytes")
    if tool is None:
        return {}
    kinds = (tool.nn.Linear8bitLt, tool.nn.Linear4bit)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def take(layer: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a layer of this format as plain tensors and plain JSON, from which `give` makes an equal one."""
    quantised: Any = layer
    weight = quantised.weight
    tensors = {"weight": weight.data}
    description: dict[str, Any] = {"num_outputs": layer.out_features, "num_inputs": layer.in_features}
    if layer._parameters.get("bias") is not None:
        tensors["bias"] = layer.get_parameter("bias").detach()
    if isinstance(layer, load_tool("bitsandbytes").nn.Linear8bitLt):
        tensors["scales"] = _row_scales(quantised)
        return tensors, description | {"bits": 8, "threshold": quantised.state.threshold}
    state = weight.quant_state.as_dict(packed=False)
    tensors |= {name: value for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    dtype = str(quantised.compute_dtype).removeprefix("torch.")
    return tensors, description | {"bits": 4, "compute_dtype": dtype, "state": plain | {"shape": list(plain["shape"])}}


def give(model: nn.Module, name: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Put the layer that `take` gave in place of the nn.Linear called `name`; it answers bit for bit as before.

    It is where its tensors are.

    Raises:
        ModelError: when that is no nn.Linear of the same shape.
        ConfigError: when bitsandbytes is missing.
    """
    layer = model.get_submodule(name)
    shape = (description["num_outputs"], description["num_inputs"])
    if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != shape:
        raise ModelError(f"Expected {name} to be an nn.Linear of shape {shape}, found {layer}: another architecture?")
    tool = load_tool("bitsandbytes")
    bias = tensors.get("bias")
    if description["bits"] == 8:
        made = _int8_shell(shape, bias, description["threshold"])
        made.weight = tool.nn.Int8Params(
            tensors["weight"], requires_grad=False, CB=tensors["weight"], SCB=tensors["scales"]
        )
    else:
        made = _nf4_shell(shape, bias, getattr(torch, description["compute_dtype"]))
        parts = {part: value for part, value in tensors.items() if part not in ("weight", "bias")}
        made.weight = tool.nn.Params4bit.from_prequantized(
            tensors["weight"], parts | description["state"], device=tensors["weight"].device, module=made
        )
    model.set_submodule(name, made.train(layer.training))


def weights(layer: nn.Module) -> Tensor:
    """Return a layer's weights as it computes with them, shape (num_outputs, num_inputs); fp32 where of 8 bits."""
    tool, quantised = load_tool("bitsandbytes"), cast("Any", layer)
    if isinstance(layer, tool.nn.Linear8bitLt):
        dense: Tensor = tool.functional.int8_vectorwise_dequant(quantised.weight.data, _row_scales(quantised))
    else:
        dense = tool.functional.dequantize_4bit(quantised.weight.data, quantised.weight.quant_state)
    return dense


def _row_scales(layer: Any) -> Tensor:
    """Return the largest absolute weight of each row; the first batch moves them from the weight to the layer."""
    scales: Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return scales


def _int8_layer(layer: nn.Linear) -> nn.Module:
    made: nn.Module = _int8_shell((layer.out_features, layer.in_features), layer.bias, OUTLIERS)
    # Only weights that come from the CPU are quantised on their way to the device.
    weight = layer.weight.detach().cpu()
    made.weight = load_tool("bitsandbytes").nn.Int8Params(weight, requires_grad=False).to(layer.weight.device)
    return made


def _nf4_layer(layer: nn.Linear) -> nn.Module:
    made: nn.Module = _nf4_shell((layer.out_features, layer.in_features), layer.bias, layer.weight.dtype)
    made.weight = (
        load_tool("bitsandbytes")
        .nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4", module=made)
        .to(layer.weight.device)
    )
    return made


def _require_right(name: str, layer: nn.Module) -> None:
    """Compare what the layer will compute with, which its kernel unpacks by rows, with the same blocks as one row."""
    weight = cast("Any", layer).weight
    dense = weights(layer)
    state = copy.copy(weight.quant_state)
    state.shape = torch.Size((1, dense.numel()))
    right = load_tool("bitsandbytes").functional.dequantize_4bit(weight.data, state).reshape(dense.shape)
    if not torch.allclose(dense, right, rtol=1e-2, atol=0):
        raise ConfigError(
            f"bitsandbytes reads back other 4-bit weights than it wrote on this CPU, in {name} of {dense.shape[1]} "
            "inputs: it wants a multiple of 64. Quantise on a GPU, or use torchao's int4_weight_only, round_to_nearest "
            "or 8 bits."
        )


def _int8_shell(shape: tuple[int, int], bias: Tensor | None, threshold: float) -> Any:
    kind = load_tool("bitsandbytes").nn.Linear8bitLt
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_news)
    made = kind(shape[1], shape[0], bias=bias is not None, has_fp16_weights=False, threshold=threshold, device="meta")
    return _with_bias(made, bias)


def _nf4_shell(shape: tuple[int, int], bias: Tensor | None, dtype: torch.dtype) -> Any:
    kind = load_tool("bitsandbytes").nn.Linear4bit
    made = kind(shape[1], shape[0], bias=bias is not None, compute_dtype=dtype, quant_type="nf4", device="meta")
    # Where the processor has AVX512-BF16, the first batch would repack the weights, round their scales to bf16 for
    # good, and fail unless outputs are a multiple of 32. Without, a layer answers alike everywhere, saved or not.
    made.support_avx512bf16_for_cpu = False
    return _with_bias(made, bias)


def _with_bias(made: Any, bias: Tensor | None) -> Any:
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def _says_news(record: logging.LogRecord) -> bool:
    """Keep out what every layer says of every batch: that inputs become fp16, as LLM.int8() has it."""
    return "inputs will be cast from" not in str(record.msg)
