"""Weights with few bits: rounded in place, or as int8 layers of torch."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import quantized

from fairsisa.compression.layers import weight_layers
from fairsisa.errors import ConfigError, ModelError

FULL_BITS = 16
"""From this width on a weight is kept as it is."""


def round_to_nearest(weights: Tensor, bits: int, *, group_size: int | None = None, symmetric: bool = True) -> Tensor:
    """Return `weights`, shape (num_outputs, num_inputs), each rounded to the nearest of at most 2**bits levels.

    Each output row has levels of its own, or each run of `group_size` inputs of a row (the last may be shorter). Zero
    is always a level, so pruned weights stay pruned. Symmetric levels are the multiples of scale = max|w| /
    (2**(bits - 1) - 1); asymmetric ones span the smallest to the largest weight (or zero), scale = range /
    (2**bits - 1). So |w - rounded| <= scale / 2, up to the rounding of the weights' own number format, which is kept.
    Symmetric rounding is idempotent bit for bit, asymmetric rounding up to that format. With 16 bits or more the
    weights come back unchanged, as a copy. Known as RTN, the baseline of Frantar et al. 2023 (GPTQ).

    Raises:
        ConfigError: when `bits` is below 2 or `group_size` below 1.
        ValueError: when `weights` is no matrix of finite floating-point numbers.
    """
    _check_levels(bits, group_size)
    if weights.ndim != 2 or not weights.is_floating_point() or not bool(torch.isfinite(weights).all()):
        shape = tuple(weights.shape)
        raise ValueError(f"Expected a matrix of finite numbers to round, got {weights.dtype} of shape {shape}, or NaN.")
    if bits >= FULL_BITS or weights.numel() == 0:
        return weights.detach().clone()
    num_inputs = weights.shape[1]
    size = num_inputs if group_size is None else min(group_size, num_inputs)
    # Zeros that fill up the last group move no scale: zero lies inside every range. In fp64 no rounding of ours shows.
    filled = nn.functional.pad(weights.detach().double(), (0, -num_inputs % size))
    groups = filled.reshape(len(filled), -1, size)
    rounded = _symmetric(groups, bits) if symmetric else _asymmetric(groups, bits)
    return rounded.flatten(1)[:, :num_inputs].to(weights.dtype)


def quantise_weights(
    model: nn.Module,
    bits: int,
    *,
    group_size: int | None = None,
    symmetric: bool = True,
    include_head: bool = True,
    include_embeddings: bool = False,
) -> nn.Module:
    """Return a copy of `model` whose Linear and Conv1D weights are rounded by `round_to_nearest`; the rest is equal.

    A head tied to the embeddings is the embeddings: both keep their weights unless `include_embeddings`, which rounds
    every embedding table (one scale a row), the tied head with it. Numbers are stored as before: this is the reference
    for what few bits do to answers, and saves no memory.

    Raises:
        ConfigError: as `round_to_nearest`, or when the model has no such layer.
        ValueError: when a layer's weights are not finite; the message names it.
    """
    _check_levels(bits, group_size)
    rounded = copy.deepcopy(model)
    for name, layer in weight_layers(rounded, include_head=include_head).items():
        try:
            layer.write(round_to_nearest(layer.matrix(), bits, group_size=group_size, symmetric=symmetric))
        except ValueError as error:
            raise ValueError(f"Layer {name}: {error}") from error
    if include_embeddings:
        for table in [module for module in rounded.modules() if isinstance(module, nn.Embedding)]:
            with torch.no_grad():
                table.weight.copy_(round_to_nearest(table.weight, bits, group_size=group_size, symmetric=symmetric))
    return rounded


def quantise_dynamic_int8(model: nn.Module, *, include_head: bool = True) -> nn.Module:
    """Return a copy of `model`, in evaluation mode, whose nn.Linear layers are torch's dynamic int8 layers.

    Exactly `torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)`: int8 weights with one scale
    a layer, inputs quantised by the batch's own range, so an answer may depend on its neighbours in the batch. With
    `include_head` a language model's head is quantised too, and unties from the embeddings, which stay (Gonçalves and
    Strubell 2023 did so); without it the head keeps its weights.

    Raises:
        ConfigError: when torch would leave layers with weights as they are (GPT-2's Conv1D), or is not able to
            quantise them (not fp32, not on the CPU), or finds none; the message names them.
    """
    _refuse_left_alone(model)
    wanted = {nn.Linear} if include_head else set(weight_layers(model, include_head=False, include_tied=True))
    # Untyped in torch; looked up at the call, as torch may take it away.
    quantise: Any = torch.ao.quantization.quantize_dynamic
    with quiet_about_deprecation():
        quantised: nn.Module = quantise(model, wanted, dtype=torch.qint8)
    return quantised


def num_bytes(model: nn.Module) -> int:
    """Return the bytes that the model's numbers take in memory, a shared one counted once.

    Counted are parameters, buffers, and the packed weights and biases of torch's quantised linear layers, which are
    neither; not their scales (a few bytes a layer).
    """
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, quantized.Linear):
            tensors += [part for part in _packed(module) if part is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def num_bytes_saved(path: Path) -> int:
    """Return the bytes on disk of a saved model: a file, or all files below a directory.

    Raises:
        ModelError: when there is no file.
    """
    files = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    if not files:
        raise ModelError(f"Expected a saved model at {path}, found no file there: save the model first.")
    return sum(file.stat().st_size for file in files)


def _check_levels(bits: int, group_size: int | None) -> None:
    if bits < 2:
        raise ConfigError(f"bits={bits}, but zero and a sign need at least 2 bits: use 2 to 15, or 16 to keep weights.")
    if group_size is not None and group_size < 1:
        raise ConfigError(f"group_size={group_size}: use 1 or more inputs a group, or null for one group an output.")


def _symmetric(groups: Tensor, bits: int) -> Tensor:
    """Round to m * k / K with m = max|w| and integer |k| <= K: exact at m, so a second rounding finds the same m."""
    highest = 2 ** (bits - 1) - 1
    largest = _or_one(groups.abs().amax(dim=-1, keepdim=True))
    rounded: Tensor = largest * ((groups / largest * highest).round() / highest)
    return rounded


def _asymmetric(groups: Tensor, bits: int) -> Tensor:
    """Round to multiples of range / K. Halves go up: rounding then commutes with shifts, and no level is missing."""
    highest = 2**bits - 1
    low = groups.amin(dim=-1, keepdim=True).clamp(max=0)
    width = _or_one(groups.amax(dim=-1, keepdim=True).clamp(min=0) - low)
    lowest = (low * highest / width + 0.5).floor()
    steps = (groups * highest / width + 0.5).floor()
    rounded: Tensor = torch.minimum(steps, lowest + highest) * width / highest
    return rounded


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _refuse_left_alone(model: nn.Module) -> None:
    layers = {name: layer.module for name, layer in weight_layers(model, include_tied=True).items()}
    # Torch asks for the exact type, and swaps what stands inside a model, never the model itself.
    left = [name for name, module in layers.items() if type(module) is not nn.Linear or module is model]
    if left:
        kinds = sorted({type(layers[name]).__name__ for name in left})
        raise ConfigError(
            f"Dynamic int8 swaps each nn.Linear inside a model, nothing else: it would silently leave alone "
            f"{_listed(left)}, of type {', '.join(kinds)}. Round to nearest instead, which knows these layers."
        )
    unfit = {name: _why_not(module) for name, module in layers.items() if _why_not(module)}
    if unfit:
        found = ", ".join(sorted(set(unfit.values())))
        raise ConfigError(f"Dynamic int8 needs fp32 weights on the CPU, got {found} in {_listed(list(unfit))}.")


def _why_not(layer: nn.Module) -> str:
    weight = layer.get_parameter("weight")
    fits = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return "" if fits else f"{weight.dtype} on {weight.device}"


def _listed(names: list[str]) -> str:
    """Return the names, those that differ in a layer's number alone as one."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", name) or "the model itself"
        counts[pattern] = counts.get(pattern, 0) + 1
    return ", ".join(f"{pattern} (x{count})" for pattern, count in counts.items())


@contextmanager
def quiet_about_deprecation() -> Iterator[None]:
    """Silence the two notices of torch that eager-mode quantisation will go; whatever else it says is heard."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"torch\.ao\.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, torch\.quantize_per_channel", UserWarning)
        yield


def _packed(module: quantized.Linear) -> tuple[Tensor, Tensor | None]:
    with quiet_about_deprecation():
        packed: Any = module
        return packed.weight(), packed.bias()
