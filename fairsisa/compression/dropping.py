"""Whole layers taken out of a network's stack."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fairsisa.compression.students import STACKS, kept_layers
from fairsisa.errors import ConfigError


def drop_layers(model: nn.Module, num_layers: int, keep: str | tuple[int, ...] = "alternate") -> nn.Module:
    """Take all but `num_layers` layers out of the model's stack, in place; return the model.

    Which ones stay is `students.kept_layers`. `model` is a Hugging Face model with or without a head, or holds one as
    `base_model`. The weights that stay are not touched and share memory with what was given; config and the layers'
    places in a cache of keys and values are those of the shallower model.

    Raises:
        ConfigError: when there is no stack that we know, it has not as many layers, or a moved layer would compute
            something else (GPT-2 with scale_attn_by_inverse_layer_idx).
    """
    stack = _stack_of(model)
    if stack is None:
        raise ConfigError(
            f"Expected a Hugging Face model of type {', '.join(STACKS)}, whose layers we know, to drop layers of, "
            f"got {type(model).__name__}: merge adapters first, or leave this step out."
        )
    numbers = kept_layers(len(stack), num_layers, keep)
    config = _body_of(model).config
    _refuse_scaling_by_number(config, numbers)
    for number in sorted({*range(len(stack))} - {*numbers}, reverse=True):
        del stack[number]
    for number, layer in enumerate(stack):
        parts: list[Any] = [*layer.modules()]
        for part in parts:
            if hasattr(part, "layer_idx"):  # its place in the cache of keys and values
                part.layer_idx = number
    for each in (config, getattr(model, "config", config)):
        each.num_hidden_layers = num_layers
    return model


def num_layers_of(model: nn.Module) -> int | None:
    """Return how many layers `drop_layers` finds in a model, or None where it finds no stack."""
    stack = _stack_of(model)
    return None if stack is None else len(stack)


def _body_of(model: nn.Module) -> Any:
    return getattr(model, "base_model", model)


def _stack_of(model: nn.Module) -> nn.ModuleList | None:
    body = _body_of(model)
    if not isinstance(body, PreTrainedModel) or body.config.model_type not in STACKS:
        return None
    stack = body.get_submodule(STACKS[body.config.model_type])
    return stack if isinstance(stack, nn.ModuleList) else None


def _refuse_scaling_by_number(config: Any, numbers: tuple[int, ...]) -> None:
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and numbers != tuple(range(len(numbers))):
        raise ConfigError(
            "The model scales attention by its layer's number (scale_attn_by_inverse_layer_idx), so that layers "
            f'{numbers} would change by moving: set keep="first".'
        )
