"""A trained constituent as one network that reads raw inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from fairsisa.errors import ModelError
from fairsisa.models.base import Base, is_bidirectional
from fairsisa.models.classifier import initial_state, load_trained
from fairsisa.models.network import build_encoder, build_network
from fairsisa.settings import ModelSettings


@dataclass(frozen=True)
class NetworkSpec:
    """How a constituent's network is built; `num_features` counts what it trains on, 0 where it reads tokens.

    `base` is None for a tabular model.
    """

    model: ModelSettings
    base: Base | None
    num_features: int
    num_classes: int
    seed: int


class EncoderWithHead(nn.Module):
    """A frozen encoder's pooled output with the head that was trained on it, as one network over tokens."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    @property
    def config(self) -> Any:
        """The encoder's Hugging Face config."""
        return self.encoder.config

    @property
    def base_model(self) -> nn.Module:
        """The encoder, under the name that Hugging Face gives to a model without its head."""
        return self.encoder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> SequenceClassifierOutput:
        """Return `logits`, shape (num_examples, num_classes), of texts padded on the right.

        `options`, such as output_hidden_states=True, go to the encoder, and what they ask for is returned too.
        """
        told = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **options)
        pooled = _pooled(told.last_hidden_state, attention_mask, everywhere=is_bidirectional(self.encoder))
        # Dynamic int8 leaves no parameter behind, and reads fp32.
        dtype = next((weights.dtype for weights in self.head.parameters()), torch.float32)
        logits = self.head(pooled.to(dtype))
        return SequenceClassifierOutput(
            logits=logits, hidden_states=told.get("hidden_states"), attentions=told.get("attentions")
        )


def whole_network(spec: NetworkSpec, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a trained constituent in fp32 and evaluation mode, reading what the corpus holds: tokens or features.

    `state` is what training keeps (`Classifier.trained_state`); an optimizer's moments in it are left out. Full
    fine-tuning gives the Hugging Face classifier; "lora" the same with its adapters merged; "head" an
    `EncoderWithHead`; a tabular model its layers. `models.network.logits_of` reads each.

    Raises:
        ModelError: when `state` lacks something that trained, or holds what this network has not.
    """
    network: Any = build_network(
        spec.model, spec.base, num_features=spec.num_features, num_classes=spec.num_classes, seed=spec.seed
    )
    load_all(network, state)
    if spec.base is not None and spec.model.trains == "head":
        network = EncoderWithHead(build_encoder(spec.model, spec.base), network)
    elif spec.base is not None and spec.model.trains == "lora":
        network = network.merge_and_unload()
    whole: nn.Module = network.eval()
    return whole


def load_all(network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy a trained state into a network, as `load_trained` does.

    Raises:
        ModelError: when `state` lacks something that trained, or holds what this network has not.
    """
    lacking = sorted(initial_state(network).keys() - state.keys())
    if lacking:
        raise ModelError(f"Expected the state of a trained network, but {len(lacking)} parts lack, {lacking[0]} first.")
    try:
        load_trained(network, state)
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"The state is that of another network, by its names or shapes: {error}") from error


def _pooled(hidden: torch.Tensor, mask: torch.Tensor | None, *, everywhere: bool) -> torch.Tensor:
    """Pool as `pooled_features` does, but over each text's own tokens where lengths differ."""
    hidden = hidden.float()
    if mask is None:
        return hidden.mean(dim=1) if everywhere else hidden[:, -1]
    lengths = mask.sum(dim=1, keepdim=True)
    if everywhere:
        return (hidden * mask[..., None]).sum(dim=1) / lengths
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths[:, 0] - 1]
