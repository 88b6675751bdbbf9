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
BERT_LAYER = {"attention", "intermediate", "output"}

Head = Callable[[torch.Tensor], torch.Tensor]
Encode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class MaskedNetwork:
    """A masked language model in two parts.

    `encode` takes token ids, shape (num_rows, length), without padding, and a position of each, shape (num_rows,), to
    hidden states there, shape (num_rows, width); `head` takes those to logits, shape (num_rows, vocabulary).
    """

    encode: Encode
    head: Head


def masked_network(network: Any) -> MaskedNetwork:
    """Return a Hugging Face masked language model as its encoder and its head.

    Of the ways to take it apart, the one that saves most among those that give on a few tokens what the whole network
    gives. If none does, the "encoder" is the whole network and its "head" does nothing: right for any architecture,
    though slower.
    """
    whole = MaskedNetwork(lambda ids, at: _rows(network(input_ids=ids).logits, at), lambda logits: logits)
    if network.base_model_prefix not in dict(network.named_children()):
        return whole
    head = vocabulary_head(network)
    trimmed = trimmed_encoder(network.base_model)
    parts = MaskedNetwork(lambda ids, at: _rows(network.base_model(input_ids=ids)[0], at), head)
    ways = ([] if trimmed is None else [MaskedNetwork(trimmed, head)]) + [parts]
    return next((way for way in ways if _agrees(way, whole, network)), whole)


def trimmed_encoder(encoder: Any) -> Encode | None:
    """Return an encoder whose last layer, once its positions have seen each other, computes at the one that is read.

    None where the layers are not built as BERT's are: attention, then intermediate and output on what it gives.
    """
    for name, layers in encoder.named_modules():
        if isinstance(layers, nn.ModuleList) and {*dict(layers[-1].named_children())} >= BERT_LAYER:
            attention = layers[-1].get_submodule("attention")
            projects = "output" in dict(attention.named_children())  # all but MPNet's
            read = _ReadBefore(attention.get_submodule("output")) if projects else _ReadAfter(attention)
            path = [*name.split("."), str(len(layers) - 1), "attention", *(["output"] if projects else [])]
            trimmed = _replaced(encoder, path, read)

            def encode(ids: torch.Tensor, at: torch.Tensor, read: _Read = read, trimmed: Any = trimmed) -> torch.Tensor:
                read.at = at
                hidden: torch.Tensor = trimmed(input_ids=ids)[0]
                return hidden[:, 0]

            return encode
    return None


def vocabulary_head(network: Any) -> Head:
    """Return what a masked language model does with its encoder's hidden states, as a function of them.

    The network's own `forward` runs, with what it was given standing in for its encoder: so no architecture need be
    known, and a head whose layers were compressed runs as it is. Takes shape (num_rows, width).
    """
    given = _Given(network.base_model)
    whole = _replaced(network, [network.base_model_prefix], given)

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


class _Read(nn.Module):
    """Stands in for a module, so that what comes after it computes at the positions `at` alone."""

    at: torch.Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class _ReadBefore(_Read):
    """Runs the module on the states at `at`, of all that it is given: shape (num_rows, 1, width)."""

    def forward(self, *states: torch.Tensor, **named: torch.Tensor) -> Any:
        return self.module(*map(self._read, states), **{name: self._read(each) for name, each in named.items()})

    def _read(self, states: torch.Tensor) -> torch.Tensor:
        return _rows(states, self.at).unsqueeze(1)


class _ReadAfter(_Read):
    """Of the states that the module gives, alone or before others, gives those at `at`: shape (num_rows, 1, width)."""

    def forward(self, *inputs: Any, **others: Any) -> Any:
        found = self.module(*inputs, **others)
        if isinstance(found, torch.Tensor):
            return _rows(found, self.at).unsqueeze(1)
        return (_rows(found[0], self.at).unsqueeze(1), *found[1:])


def _replaced(module: nn.Module, path: list[str], new: nn.Module) -> Any:
    """Return a module with another one at a path; it shares all else, weights included, and leaves it as it was."""
    name, *rest = path
    copied = copy.copy(module)
    child = module.get_submodule(name)
    copied._modules = {**module._modules, name: _replaced(child, rest, new) if rest else new}
    return copied


def _rows(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(len(states), device=states.device), positions]


@torch.inference_mode()
def _agrees(way: MaskedNetwork, whole: MaskedNetwork, network: Any) -> bool:
    device = next(network.parameters()).device
    ids = torch.arange(1, NUM_PROBE + 1, device=device).repeat(2, 1)
    at = torch.tensor([1, NUM_PROBE - 2], device=device)
    expected, found = (each.head(each.encode(ids, at)).float() for each in (whole, way))
    if found.shape != expected.shape:
        return False
    # Rounding changes logits by a few units in the last place, another network by as much as they vary.
    unit = max(torch.finfo(each.dtype).eps for each in network.parameters() if each.is_floating_point())
    change = (found - expected).norm() / expected.std(dim=1, keepdim=True).norm()
    return bool(change <= expected.shape[1] ** 0.5 * unit**0.5)
