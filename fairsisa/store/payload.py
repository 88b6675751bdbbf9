"""Tensors as safetensors bytes, and back."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch

RESERVED = "__metadata__"


def to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the one safetensors text of `tensors`, whatever their order; values on any device are copied as they are.

    Each tensor is written out in full, also where two share memory.

    Raises:
        ValueError: naming the key, when a value is no dense tensor, or its data type is none that safetensors has.
    """
    kept: dict[str, torch.Tensor] = {}
    memories = set()
    for key, tensor in tensors.items():
        if not isinstance(key, str) or key == RESERVED:
            raise ValueError(f"Expected the names of tensors to be str other than {RESERVED!r}, got {key!r}.")
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"Expected {key!r} to be a dense tensor with values, got {type(tensor).__name__}.")
        memory = tensor.untyped_storage().data_ptr()
        values = tensor.detach().cpu().contiguous()
        kept[key] = values.clone() if memory in memories else values
        memories.add(memory)
    try:
        return safetensors.torch.save(kept)
    except KeyError as error:
        raise ValueError(f"Expected data types that safetensors can hold, got {error}: convert the tensor.") from error
