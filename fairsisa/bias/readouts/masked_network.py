"""A masked language model as two parts, so that its vocabulary head runs on masked positions alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

NUM_PROBE = 4
AGREES = 1e-3
"""The two parts must give the whole's logits to within this: rounding errors are smaller, another head's are not."""

Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class MaskedNetwork:
    """A masked language model in two parts.

    `encode` takes token ids, shape (num_rows, length), without padding, and a position of each, shape (num_rows,), to
    hidden states there, shape (num_rows, width); `head` takes those to logits, shape (num_rows, vocabulary).
    """

    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    head: Head


def masked_network(network: Any) -> MaskedNetwork:
    """Return a Hugging Face masked language model as its encoder and its head.

    Where the two do not give what the whole gives, or cannot be told apart, the "encoder" is the whole network and its
    "head" does nothing: right for any architecture, though slower.
    """
    if network.base_model_prefix in dict(network.named_children()):
        parts = MaskedNetwork(lambda ids, at: _rows(network.base_model(input_ids=ids)[0], at), vocabulary_head(network))
        if _agrees(network, parts):
            return parts
    return MaskedNetwork(lambda ids, at: _rows(network(input_ids=ids).logits, at), lambda logits: logits)


def _rows(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), positions]


def vocabulary_head(network: Any) -> Head:
    """Return what a masked language model does with its encoder's hidden states, as a function of them.

    The network's own `forward` runs, with what it was given standing in for its encoder: so no architecture need be
    known, and a head whose layers were compressed runs as it is. Takes shape (num_rows, width).
    """
    given = _Given(network.base_model)
    whole = copy.copy(network)
    whole._modules = {**network._modules, network.base_model_prefix: given}

    def head(hidden: torch.Tensor) -> torch.Tensor:
        given.hidden = hidden.unsqueeze(1)
        logits: torch.Tensor = whole(inputs_embeds=given.hidden).logits
        return logits.squeeze(1)

    return head


class _Given(nn.Module):
    """Stands in for an encoder: it gives the hidden states that it was handed, and has the encoder's attributes."""

    hidden: torch.Tensor

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.__dict__["encoder"] = encoder  # not as a child: its weights are not this module's

    def forward(self, *_: Any, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["encoder"], name)


@torch.inference_mode()
def _agrees(network: Any, parts: MaskedNetwork) -> bool:
    device = next(network.parameters()).device
    ids = torch.arange(1, NUM_PROBE + 1, device=device).unsqueeze(0)
    last = torch.tensor([NUM_PROBE - 1], device=device)
    expected = _rows(network(input_ids=ids).logits, last)
    found = parts.head(parts.encode(ids, last))
    return found.shape == expected.shape and torch.allclose(found, expected, atol=AGREES, rtol=AGREES)
