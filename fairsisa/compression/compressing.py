"""A model made smaller, step by step."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from torch import nn

from fairsisa.compression.calibration import feature_norms
from fairsisa.compression.card import Card, bytes_in_memory, count_layers, count_parameters
from fairsisa.compression.dropping import drop_layers
from fairsisa.compression.layers import LayerWeight, weight_layers
from fairsisa.compression.packing import FORMATS
from fairsisa.compression.pruning import global_magnitude_masks, magnitude_mask, random_mask, wanda_mask
from fairsisa.compression.quantising import FULL_BITS, quantise_dynamic_int8, round_to_nearest
from fairsisa.compression.sparsegpt import input_products, sparsegpt
from fairsisa.errors import ConfigError
from fairsisa.models.network import Batch
from fairsisa.settings.steps import ALL_WEIGHTS, CALIBRATED, Step, plain_steps, read_steps

Method = Callable[[nn.Module, Step, Sequence[Batch]], nn.Module]

PRODUCT_BYTES = 2**28
"""How much memory the products of several layers' inputs may take; beyond it, calibration takes another pass."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """A model with the record of how it was made."""

    model: nn.Module
    card: Card


def compress(
    model: nn.Module,
    steps: Sequence[Step],
    calibration: Sequence[Batch] = (),
    *,
    parents: tuple[str, ...] = (),
    calibration_digest: str | None = None,
) -> Compressed:
    """Take `model` through the steps, in evaluation mode; where they can, they change it in place: give a copy to keep.

    `calibration` holds batches of texts (`tokens`, with a `mask` if padded) or of `features`; steps that do not need
    them never look at them. The same model, steps and calibration give the same bits. `parents` and
    `calibration_digest` are for the card; of calibration nothing is recorded unless a step reads it.

    Raises:
        ConfigError: when a step cannot come where it stands, lacks calibration, or does not fit the model's layers;
            the message names them.
        ValueError: when weights are not finite; the message names the layer.
    """
    chain = read_steps(plain_steps(steps))
    reads = [step for step in chain if step.method in CALIBRATED]
    if reads and not calibration:
        raise ConfigError(f"{reads[0].label} is calibrated on examples: give one batch of calibration or more.")
    bytes_before = bytes_in_memory(model.eval())
    touched: Collection[str] = ()
    rounded: dict[str, int] = {}
    for step in chain:
        model = METHODS[step.method](model, step, calibration)
        if step.method not in FORMATS:
            touched = _touched(model, chain)
            rounded |= _rounded(model, step)
    card = Card(
        steps=chain,
        parents=parents,
        calibration_digest=calibration_digest if reads else None,
        num_calibration_texts=sum(_num_texts(batch) for batch in calibration) if reads else 0,
        layers=count_layers(model, touched, rounded),
        num_parameters=count_parameters(model),
        bytes_before=bytes_before,
        bytes_after=bytes_in_memory(model),
    )
    return Compressed(model.eval(), card)


def _magnitude(model: nn.Module, step: Step, _calibration: Sequence[Batch]) -> nn.Module:
    matrices = {name: layer.matrix() for name, layer in _layers(model, step).items()}
    sparsity = cast("float", step.sparsity)
    if step.pool == ALL_WEIGHTS:
        masks = global_magnitude_masks(matrices, sparsity)
        return _pruned(model, step, lambda layer: masks[layer.name])
    return _pruned(model, step, lambda layer: magnitude_mask(layer.matrix(), sparsity))


def _wanda(model: nn.Module, step: Step, calibration: Sequence[Batch]) -> nn.Module:
    norms = feature_norms(model, calibration, _layers(model, step))

    def mask_of(layer: LayerWeight) -> torch.Tensor:
        # A Conv1D's matrix is a view across its memory; ranking rows that lie together is four times faster.
        return wanda_mask(layer.matrix().contiguous(), norms[layer.name], step.sparsity, step.num_kept_of)

    return _pruned(model, step, mask_of)


def _random(model: nn.Module, step: Step, _calibration: Sequence[Batch]) -> nn.Module:
    sparsity, seed = cast("float", step.sparsity), cast("int", step.seed)
    return _pruned(
        model, step, lambda layer: random_mask(tuple(layer.matrix().shape), sparsity, _seed_of(seed, layer.name))
    )


def _sparsegpt(model: nn.Module, step: Step, calibration: Sequence[Batch]) -> nn.Module:
    for group in _groups(_layers(model, step)):
        products = input_products(model, calibration, group)
        for name, layer in group.items():
            matrix = layer.matrix().contiguous()
            with _naming(name):
                kept = sparsegpt(matrix, products.pop(name), sparsity=step.sparsity, pattern=step.num_kept_of)
            layer.write(kept)
    return model


def _drop_layers(model: nn.Module, step: Step, _calibration: Sequence[Batch]) -> nn.Module:
    return drop_layers(model, cast("int", step.num_layers), cast("str", step.keep))


def _round_to_nearest(model: nn.Module, step: Step, _calibration: Sequence[Batch]) -> nn.Module:
    for name, layer in _layers(model, step).items():
        with _naming(name):
            matrix = round_to_nearest(
                layer.matrix(), cast("int", step.bits), group_size=step.group_size, symmetric=bool(step.symmetric)
            )
        layer.write(matrix)
    return model


def _int8_dynamic(model: nn.Module, step: Step, _calibration: Sequence[Batch]) -> nn.Module:
    return quantise_dynamic_int8(model, include_head=bool(step.include_head))


def _by_format(model: nn.Module, step: Step, _calibration: Sequence[Batch]) -> nn.Module:
    quantised: nn.Module = importlib.import_module(FORMATS[step.method][0]).quantise(model, step)
    return quantised


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "magnitude": _magnitude,
        "wanda": _wanda,
        "sparsegpt": _sparsegpt,
        "random": _random,
        "drop_layers": _drop_layers,
        "round_to_nearest": _round_to_nearest,
        "int8_dynamic": _int8_dynamic,
        "torchao": _by_format,
        "bitsandbytes": _by_format,
    }
)
"""What each method does to a model."""


def _layers(model: nn.Module, step: Step) -> dict[str, LayerWeight]:
    return weight_layers(model, include_head=bool(step.include_head))


def _pruned(model: nn.Module, step: Step, mask_of: Callable[[LayerWeight], torch.Tensor]) -> nn.Module:
    """Set to zero, layer by layer, what a layer's mask does not keep."""
    for name, layer in _layers(model, step).items():
        with _naming(name):
            kept = mask_of(layer)
        layer.matrix().masked_fill_(~kept.to(layer.matrix().device), 0.0)
    return model


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Let an error about one matrix begin with its layer."""
    try:
        yield
    except (ConfigError, ValueError) as error:
        raise type(error)(f"Layer {layer}: {error}") from error


def _seed_of(seed: int, layer: str) -> int:
    """Return a seed for each layer: with one for all, layers of one shape would lose the same places."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{layer}".encode()).digest()[:7])


def _groups(layers: Mapping[str, LayerWeight]) -> Iterator[dict[str, LayerWeight]]:
    """Cut layers into runs whose products of inputs take at most `PRODUCT_BYTES`, or one layer's."""
    group: dict[str, LayerWeight] = {}
    size = 0
    for name, layer in layers.items():
        more = 4 * layer.matrix().shape[1] ** 2
        if group and size + more > PRODUCT_BYTES:
            yield group
            group, size = {}, 0
        group[name] = layer
        size += more
    yield group


def _touched(model: nn.Module, chain: Sequence[Step]) -> Collection[str]:
    """Return the layers that the steps so far have changed, or may have: the head only if one of them takes it."""
    head = any(step.include_head for step in chain if step.method not in FORMATS)
    return weight_layers(model, include_head=head).keys()


def _rounded(model: nn.Module, step: Step) -> dict[str, int]:
    """Return to how many bits a step has rounded which layers."""
    if step.method != "round_to_nearest" or cast("int", step.bits) >= FULL_BITS:
        return {}
    return dict.fromkeys(_layers(model, step), cast("int", step.bits))


def _num_texts(batch: Batch) -> int:
    return len(batch["features"] if "features" in batch else batch["tokens"])
