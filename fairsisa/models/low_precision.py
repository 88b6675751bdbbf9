"""A network whose matrix products are in bf16, everything between them in fp32."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fairsisa.errors import ModelError


def with_bf16_products(network: nn.Module) -> Any:
    """Return a network that shares all with `network` but its linear layers, whose weights are bf16 copies.

    Such a layer takes fp32 and gives fp32. Sums along the residual stream, norms, softmax and activations stay in
    fp32: a smaller error than that of a network wholly in bf16, at its speed, as products are most of the work
    (`docs/performance.md`, section 13). Layers other than `nn.Linear` and transformers' `Conv1D` are as they were.

    Raises:
        ModelError: when the network has no such layer.
    """
    shared: dict[int, Any] = {id(each): each for each in chain(network.parameters(), network.buffers())}
    copied = copy.deepcopy(network, shared)
    layers = [module for module in copied.modules() if type(module) in (nn.Linear, Conv1D)]
    if not layers:
        raise ModelError(f"{type(network).__name__} has no linear layer to compute in bf16: use precision=fp32.")
    for layer in layers:
        for name, values in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(values.detach().to(torch.bfloat16), requires_grad=False))
        layer.register_forward_pre_hook(_to_bf16)
        layer.register_forward_hook(_to_fp32)
    return copied


def _to_bf16(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(each.to(torch.bfloat16) for each in inputs)


def _to_fp32(_: nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.float()
