"""GPTQ and AWQ checkpoints made by other tools, unpacked to dense layers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig

from fairsisa.compression.layers import LayerWeight, weight_layers
from fairsisa.errors import ModelError
from fairsisa.models.base import WEIGHTS, named, quiet, read_config

Parts = dict[str, Tensor]
"""A packed layer: qweight, qzeros (int32), scales (floating point) and, with GPTQ, mostly g_idx."""
FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
PARTS = frozenset({"qweight", "qzeros", "scales", "g_idx"})
GPTQ_BITS = (2, 3, 4, 8)
AWQ_BITS = 4
AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where in a word of AWQ each of eight neighbouring outputs stands: even ones first, then odd ones."""


@dataclass(frozen=True)
class Packing:
    """How a checkpoint's layers are packed: `method` "gptq" or "awq" in its `form`, inputs a group (-1: all)."""

    method: str
    form: str
    group_size: int


def load_foreign(folder: Path) -> nn.Module:
    """Return the model of a GPTQ or AWQ checkpoint folder, its layers dense, in fp32 and evaluation mode.

    The architecture is that of config.json; weights come from safetensors alone and are what the packed ones stand
    for, scale * (level - zero point), so that the model is evaluated, pruned and counted like any other. Read are
    GPTQ of 2, 3, 4 and 8 bits, which may differ by layer, in the formats "gptq" (AutoGPTQ, zero points less one) and
    "gptq_v2", in any order of activations; and AWQ of 4 bits in the packing "gemm". What was not quantised is taken
    as it is. `quantization_config` in config.json tells, or quantize_config.json in old folders of AutoGPTQ.

    Raises:
        ModelError: naming what is unsupported, lacking or does not fit.
    """
    config = read_config(folder)
    with quiet(), named(f"{folder} does not tell how its weights were quantised"):
        packing = _packing_of(folder, config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    kind = _class_of(folder, config)
    with torch.device("meta"), quiet(), named(f"{folder} cannot be built as {kind.__name__}"):
        skeleton = kind(config)
    state = _dense_state(folder, packing, skeleton)
    with quiet(), named(f"{folder} cannot be loaded as {kind.__name__}"):
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise ModelError(f"{folder} lacks {len(lacking)} weights of a {kind.__name__}, {lacking[0]} first.")
    dense: nn.Module = model.eval()
    return dense


def unpack_gptq(parts: Parts, num_inputs: int, packing: Packing) -> Tensor:
    """Return the weights of a layer packed by GPTQ, fp32, shape (num_outputs, num_inputs).

    qweight holds levels along the inputs, shape (num_inputs * bits / 32, num_outputs); qzeros holds zero points along
    the outputs, shape (num_groups, num_outputs * bits / 32); scales are (num_groups, num_outputs), and g_idx names
    each input's group: without it, inputs are grouped in their order. The bits are told by the shape of qweight. The
    form "gptq" stores zero points less one.

    Raises:
        ValueError: when shapes, bits or groups do not fit.
    """
    qweight, scales = parts["qweight"], parts["scales"]
    bits, rest = divmod(32 * qweight.shape[0], num_inputs)
    if rest or bits not in GPTQ_BITS:
        raise ValueError(f"expected {num_inputs} inputs of 2, 3, 4 or 8 bits, got a qweight of {tuple(qweight.shape)}")
    levels = _unpacked(qweight.t(), bits)
    zeros = _unpacked_zeros(parts["qzeros"], bits, less_one=packing.form == "gptq")
    groups = parts["g_idx"].long() if "g_idx" in parts else _groups_in_order(num_inputs, packing.group_size)
    return _dense(levels, zeros, scales, groups)


def unpack_awq(parts: Parts, num_inputs: int, packing: Packing) -> Tensor:
    """Return the weights of a layer packed by AWQ for its GEMM kernel, fp32, shape (num_outputs, num_inputs).

    qweight holds levels along the outputs, shape (num_inputs, num_outputs / 8), and qzeros zero points, shape
    (num_groups, num_outputs / 8); of eight neighbouring outputs a word holds the even ones first, from its lowest
    four bits on. scales are (num_groups, num_outputs).

    Raises:
        ValueError: when shapes or groups do not fit.
    """
    levels, zeros = (_in_order(_unpacked(parts[name], AWQ_BITS)) for name in ("qweight", "qzeros"))
    return _dense(levels.t(), zeros, parts["scales"], _groups_in_order(num_inputs, packing.group_size))


def _in_order(numbers: Tensor) -> Tensor:
    words: Tensor = numbers.reshape(len(numbers), -1, len(AWQ_PLACES))
    return words[..., AWQ_PLACES].flatten(1)


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Return the numbers of `bits` bits that fill 32-bit words along the last axis, from the lowest bit on, as uint8.

    With 3 bits, numbers run on from one word into the next.
    """
    bare = words.long() & 0xFFFFFFFF
    starts = torch.arange(32 * words.shape[-1] // bits) * bits
    first, shift = starts // 32, starts % 32
    following = bare[..., (first + 1).clamp(max=words.shape[-1] - 1)]
    numbers: Tensor = ((bare[..., first] | following << 32) >> shift) & (2**bits - 1)
    return numbers.to(torch.uint8)


def _unpacked_zeros(words: Tensor, bits: int, *, less_one: bool) -> Tensor:
    if not less_one:
        return _unpacked(words, bits)
    if bits == 3:
        return (_unpacked(words, bits) + 1) & 7
    # GPTQModel takes one from all numbers of a word at once, which borrows from the next where one is zero; adding
    # to the whole word gives it back.
    return _unpacked(words.long() + sum(1 << place for place in range(0, 32, bits)), bits)


def _groups_in_order(num_inputs: int, group_size: int) -> Tensor:
    return torch.arange(num_inputs) // (num_inputs if group_size == -1 else group_size)


def _dense(levels: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    """Return scale * (level - zero point), shape (num_outputs, num_inputs), the groups' values spread over inputs."""
    num_groups, num_outputs = scales.shape
    num_inputs = len(groups)
    if levels.shape != (num_outputs, num_inputs) or zeros.shape != scales.shape:
        raise ValueError(
            f"expected levels of {num_outputs} outputs by {num_inputs} inputs with zero points "
            f"{tuple(scales.shape)}, got {tuple(levels.shape)} with {tuple(zeros.shape)}"
        )
    if not 0 <= int(groups.min()) <= int(groups.max()) < num_groups:
        raise ValueError(f"expected inputs in {num_groups} groups, got {int(groups.min())} to {int(groups.max())}")
    weights: Tensor = scales.float().t()[:, groups] * (levels.float() - zeros.float().t()[:, groups])
    return weights


def _packing_of(folder: Path, config: Any) -> Packing:
    stored = getattr(config, "quantization_config", None)
    old = folder / "quantize_config.json"
    if stored is None and old.is_file():
        stored = {"quant_method": "gptq"} | json.loads(old.read_text(encoding="utf-8"))
    method = None if stored is None else stored.get("quant_method")
    if stored is None or method not in FORMATS:
        raise ModelError(f"Expected {folder} to hold a model quantised by {' or '.join(FORMATS)}, got {method!r}.")
    read = AutoQuantizationConfig.from_dict(stored)
    form = str(getattr(read.format, "value", read.format))
    if form not in FORMATS[method]:
        raise ModelError(
            f"Expected {method} weights packed as {' or '.join(FORMATS[method])}, got {form!r} in {folder}: convert "
            "them with the tool that made them."
        )
    if method == "awq" and read.bits != AWQ_BITS:
        raise ModelError(f"Expected AWQ weights of {AWQ_BITS} bits, got {read.bits} in {folder}.")
    return Packing(method, form, int(read.group_size))


def _class_of(folder: Path, config: Any) -> Any:
    names = list(getattr(config, "architectures", None) or [])
    found = getattr(transformers, names[0], None) if names else None
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        raise ModelError(f"Expected config.json of {folder} to name an architecture of transformers, got {names}.")
    return found


def _dense_state(folder: Path, packing: Packing, skeleton: nn.Module) -> dict[str, Tensor]:
    """Return the checkpoint's tensors by name, those of packed layers as one dense weight."""
    state, packed = _read(folder)
    layers = weight_layers(skeleton, include_tied=True)
    for name, parts in packed.items():
        with named(f"Layer {name} of {folder} cannot be unpacked"):
            state[f"{name}.weight"] = _dense_weight(parts, layers.get(name), packing)
        _drop_empty_bias(state, name, layers[name].module)
    return state


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Parts]]:
    """Return the plain tensors by name, and the parts of packed layers by layer."""
    files = sorted(folder.glob("*" + WEIGHTS))
    if not files:
        raise ModelError(f"{folder} holds no {WEIGHTS} file: fairsisa loads no pickled weights; convert them first.")
    state: dict[str, Tensor] = {}
    packed: dict[str, Parts] = {}
    for file in files:
        with named(f"{file} cannot be read"):
            tensors = load_file(file)
        for name, tensor in tensors.items():
            layer, _, part = name.rpartition(".")
            if part in PARTS:
                packed.setdefault(layer, {})[part] = tensor
            else:
                state[name] = tensor
    if not packed:
        raise ModelError(f"Expected packed layers (qweight, qzeros, scales) in {folder}, found none.")
    return state, packed


def _dense_weight(parts: Parts, layer: LayerWeight | None, packing: Packing) -> Tensor:
    """Return a layer's weights as its module holds them: Conv1D has inputs first."""
    if layer is None:
        raise ValueError("the architecture has no nn.Linear or Conv1D of this name")
    lacking = sorted(PARTS - {"g_idx"} - set(parts))
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    unpack = unpack_gptq if packing.method == "gptq" else unpack_awq
    matrix = layer.matrix()
    dense = unpack(parts, matrix.shape[1], packing)
    if dense.shape != matrix.shape:
        raise ValueError(f"the architecture has {tuple(matrix.shape)} there, the checkpoint {tuple(dense.shape)}")
    return dense.contiguous() if isinstance(layer.module, nn.Linear) else dense.t().contiguous()


def _drop_empty_bias(state: dict[str, Tensor], name: str, module: nn.Module) -> None:
    """Leave out the bias of zeros that AutoGPTQ gave layers without one."""
    bias = state.get(f"{name}.bias")
    if bias is None or module._parameters.get("bias") is not None:
        return
    if bool(bias.any()):
        raise ModelError(f"Layer {name} has a bias in the checkpoint, which the architecture lacks.")
    del state[f"{name}.bias"]
