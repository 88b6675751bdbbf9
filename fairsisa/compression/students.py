"""Smaller networks that begin as a part of their teacher, or in its proportions."""

from __future__ import annotations

import copy
from math import gcd
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fairsisa.errors import ConfigError
from fairsisa.settings import in_range, one_of

# Where the stack of layers stands, seen from the model without its head.
STACKS = {"bert": "encoder.layer", "roberta": "encoder.layer", "gpt2": "h", "llama": "layers", "gpt_neox": "layers"}
KEEPS = ("alternate", "first")


def kept_layers(num_teacher_layers: int, num_layers: int, keep: str | tuple[int, ...] = "alternate") -> tuple[int, ...]:
    """Return the numbers of the teacher's layers that a student of `num_layers` layers keeps, ascending from 0.

    "alternate" spreads them evenly from the first to the last, halves rounded up: of 12 it keeps 0, 2, 4, 7, 9, 11,
    as DistilBERT and DistilGPT2 did (Sanh et al. 2019, extraction script); one layer is the first. "first" keeps the
    lowest. A tuple names them.

    Raises:
        ConfigError: when the teacher has not as many layers, or `keep` does not name `num_layers` of them in order.
    """
    in_range("num_layers", num_layers, low=1, high=num_teacher_layers)
    if isinstance(keep, str):
        one_of("keep", keep, KEEPS)
        if keep == "first" or num_layers == 1:
            return tuple(range(num_layers))
        steps, span = num_layers - 1, num_teacher_layers - 1
        return tuple((2 * step * span + steps) // (2 * steps) for step in range(num_layers))
    ordered = tuple(sorted({*keep} & {*range(num_teacher_layers)}))
    if ordered != tuple(keep) or len(ordered) != num_layers:
        raise ConfigError(
            f"Expected keep to hold {num_layers} ascending numbers from 0 to {num_teacher_layers - 1}, got {keep}."
        )
    return ordered


def truncated_config(config: Any, num_layers: int) -> Any:
    """Return a copy of a Hugging Face config with `num_layers` layers; all else is the teacher's.

    Raises:
        ConfigError: when the architecture is none we know, or has not as many layers.
    """
    _stack_of(config)
    in_range("num_layers", num_layers, low=1, high=config.num_hidden_layers)
    smaller = copy.deepcopy(config)
    smaller.num_hidden_layers = num_layers
    return smaller


def truncated_student(teacher: Any, num_layers: int, keep: str | tuple[int, ...] = "alternate") -> Any:
    """Return a student of the teacher's class: its weights copied, but for the layers that `kept_layers` leaves out.

    All that stands outside the stack (embeddings, final norm, pooler, head) is copied too, tied weights stay tied, and
    number format, device and mode (training or not) are the teacher's. Every weight of the student trains, also where
    the teacher is frozen; the two share no memory, and the teacher is left as it was. Nothing is drawn at random.

    Raises:
        ConfigError: when the architecture is none we know, or as `kept_layers` does; or when a moved layer would
            compute something else (GPT-2 with scale_attn_by_inverse_layer_idx).
    """
    if not isinstance(teacher, PreTrainedModel):
        raise ConfigError(
            f"Expected a Hugging Face model to truncate, got {type(teacher).__name__}: give the model it wraps "
            "(merge adapters first), or build the student by config."
        )
    stack = teacher.base_model.get_submodule(_stack_of(teacher.config, type(teacher).__name__))
    numbers = kept_layers(len(stack), num_layers, keep)
    _refuse_scaling_by_number(teacher.config, numbers)
    # One memo for all copies: weights tied across them stay tied, and layers left out are never copied.
    memo: dict[int, Any] = {id(teacher.config): truncated_config(teacher.config, num_layers)}
    memo[id(stack)] = nn.ModuleList(copy.deepcopy(stack[number], memo) for number in numbers)
    student = copy.deepcopy(teacher, memo)
    for number, layer in enumerate(memo[id(stack)]):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):  # its place in the cache of keys and values
                part.layer_idx = number
    return student.requires_grad_(True)


def narrowed_config(config: Any, hidden_size: int) -> Any:
    """Return a copy of a Hugging Face config of width `hidden_size`: heads keep their size, so fewer remain.

    Key-value heads and the feed-forward width shrink in proportion. A model made from it has fresh weights: the axes
    of a trained network have no order, so cutting its matrices keeps nothing that was learnt. Combine with
    `truncated_config` for fewer layers.

    Raises:
        ConfigError: when the architecture is none we know, or heads do not come out whole; it names a width.
    """
    _stack_of(config)
    in_range("hidden_size", hidden_size, low=1, high=config.hidden_size)
    counts = [
        name for name in ("num_attention_heads", "num_key_value_heads") if getattr(config, name, None) is not None
    ]
    unit = config.hidden_size // gcd(config.hidden_size, *(getattr(config, name) for name in counts))
    if hidden_size % unit:
        nearest = max(unit, unit * round(hidden_size / unit))
        raise ConfigError(
            f"Expected hidden_size to be a multiple of {unit}, which keeps whole heads, got {hidden_size}; "
            f"the nearest is {nearest}."
        )
    narrow = copy.deepcopy(config)
    for name in (*counts, "intermediate_size", "n_inner"):
        if getattr(config, name, None) is not None:  # GPT-2's n_inner of None follows the width
            setattr(narrow, name, _in_proportion(getattr(config, name), hidden_size, config.hidden_size))
    narrow.hidden_size = hidden_size
    return narrow


def _stack_of(config: Any, model_name: str = "") -> str:
    kind = getattr(config, "model_type", None)
    if kind not in STACKS:
        named = f" ({model_name})" if model_name else ""
        raise ConfigError(
            f"Expected a model of type {', '.join(STACKS)}, whose layers we know, got {kind!r}{named}: "
            "build the student by config, or name a smaller model as the student."
        )
    return STACKS[kind]


def _refuse_scaling_by_number(config: Any, numbers: tuple[int, ...]) -> None:
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and numbers != tuple(range(len(numbers))):
        raise ConfigError(
            "The teacher scales attention by its layer's number (scale_attn_by_inverse_layer_idx), so that layers "
            f'{numbers} would change by moving: set keep="first", or build the student by config.'
        )


def _in_proportion(count: int, new: int, old: int) -> int:
    return (2 * count * new + old) // (2 * old)
