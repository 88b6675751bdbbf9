"""The model under evaluation, of whatever kind, as readouts see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fairsisa.errors import ConfigError
from fairsisa.models.low_precision import with_bf16_products
from fairsisa.models.masked_network import MaskedNetwork, masked_network

MASKED, CAUSAL, CLASSIFIER, ENCODER = "masked", "causal", "classifier", "encoder"
KINDS = (MASKED, CAUSAL, CLASSIFIER, ENCODER)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that is asked.

    `name` is how tables call it; `digest` (64 hex digits) names its weights, tokenizer and whatever else its answers
    depend on; `kind` is one of `KINDS`. `network` is a transformers model in evaluation mode, fp32 unless its layers
    are compressed, with its `tokenizer`; both are None for what only classifies, such as a shard ensemble. `classify`
    gives class probabilities, float64 of shape (num_texts, num_classes), in the order of `classes`; it is there for
    classifiers alone. `parents` are names of the artefacts of a store that it is made of, so that what it says is
    purged with them. `facts` are shown beside its results (parameters, bytes on disk, the run it is from).
    """

    name: str
    digest: str
    kind: str
    network: Any = None
    tokenizer: Any = None
    classify: Callable[[Sequence[str]], np.ndarray] | None = None
    classes: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Expected a kind of {', '.join(KINDS)}, got {self.kind!r}.")

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @cached_property
    def in_bf16(self) -> Any:
        """The network with its matrix products in bf16 (`models.low_precision`).

        Raises:
            ConfigError: when its layers are in a low-bit format, which has no bf16 form.
            ModelError: when it has no linear layer.
        """
        low = [name for name, each in self.network.named_parameters() if not each.is_floating_point()]
        if low:
            raise ConfigError(f"{self.name} holds {low[0]} in a low-bit format: use precision=fp32.")
        return with_bf16_products(self.network)

    @cached_property
    def parts(self) -> MaskedNetwork:
        """The network, a masked language model, as its encoder and its head."""
        return masked_network(self.network)

    @cached_property
    def parts_in_bf16(self) -> MaskedNetwork:
        """The encoder and the head of `in_bf16`; raises what that does."""
        return masked_network(self.in_bf16)
