"""How large each input of a layer is over a set of calibration examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from fairsisa.compression.layers import LayerWeight
from fairsisa.errors import ConfigError
from fairsisa.models.network import Batch

Totals = dict[str, tuple[torch.Tensor, int]]
"""By layer, the sum of its squared inputs in fp64, shape (in_features,), over how many tokens."""


def feature_norms(
    model: nn.Module, batches: Iterable[Batch], layers: Mapping[str, LayerWeight]
) -> dict[str, torch.Tensor]:
    """Return, for each layer, the root mean square of each of its inputs, fp32, shape (in_features,).

    Over the tokens of all `batches` (`tokens` with a `mask` if padded, or `features`), padding left out; a layer that
    sees one vector a text, such as a pooler, counts texts. It is ||X_j||_2 of Sun et al. (2024), equation 1, over
    the root of the number of tokens, which moves no mask. One pass through the model as it is, in evaluation mode:
    the authors' code prunes layer by layer instead, each calibrated on the pruned ones below; to have that, call
    this again with the next layers after pruning the ones before. Nothing of the activations is kept, nor a cache of
    keys and values, and no language model's head is run unless it is among the layers.

    Raises:
        ConfigError: when the batches are none, a layer is never run on them, or it sees other rows than tokens or
            texts (routed experts do) in a padded batch.
    """
    totals: Totals = {}
    body = smallest_body(model, layers)
    device = next(model.parameters()).device
    with torch.no_grad(), measured(model):
        for batch in batches:
            placed = {key: value.to(device) for key, value in batch.items()}
            with _watched(layers, totals, placed.get("mask")):
                run_body(body, placed)
    refuse_unseen(totals, layers)
    return {name: (totals[name][0] / totals[name][1]).sqrt().float() for name in layers}


@contextmanager
def measured(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the cache of keys and values off, and afterwards back to what they were."""
    training = [module for module in model.modules() if module.training]
    config: Any = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    model.eval()
    if use_cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if use_cache is not None:
            config.use_cache = use_cache
        for module in training:
            module.training = True


@contextmanager
def _watched(layers: Mapping[str, LayerWeight], totals: Totals, mask: torch.Tensor | None) -> Iterator[None]:
    with ExitStack() as hooks:
        for layer in layers.values():
            handle = layer.module.register_forward_pre_hook(partial(_add, totals, layer.name, mask))
            hooks.callback(handle.remove)
        yield


def _add(
    totals: Totals, name: str, mask: torch.Tensor | None, _module: nn.Module, arguments: tuple[torch.Tensor, ...]
) -> None:
    rows = counted_rows(name, arguments[0], mask)
    squares = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float32).double().square()
    before, count = totals.get(name, (torch.zeros_like(squares), 0))
    totals[name] = (before + squares, count + len(rows))


def counted_rows(name: str, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the inputs as (num_tokens, in_features), padding left out, or as (num_texts, in_features)."""
    rows = inputs.flatten(0, -2)
    if mask is None or len(rows) == len(mask) != mask.numel():
        return rows
    if len(rows) != mask.numel():
        raise ConfigError(
            f"Expected {name} to see the {mask.numel()} tokens of a batch or its {len(mask)} texts, got {len(rows)} "
            "rows, of which padding cannot be told: calibrate on batches of equally long texts, without a mask."
        )
    return rows[mask.flatten().to(rows.device, torch.bool)]


def smallest_body(model: nn.Module, layers: Mapping[str, LayerWeight]) -> nn.Module:
    """Return the model without its head when all layers stand below it: a vocabulary of logits is most of a batch."""
    body = getattr(model, "base_model", model)
    inside = set(body.modules())
    return body if all(layer.module in inside for layer in layers.values()) else model


def run_body(body: nn.Module, batch: Batch) -> None:
    """Run a network, with or without its head, on a batch."""
    if "features" in batch:
        body(batch["features"])
    else:
        body(input_ids=batch["tokens"], attention_mask=batch.get("mask"))


def refuse_unseen(totals: Mapping[str, tuple[torch.Tensor, int]], layers: Mapping[str, LayerWeight]) -> None:
    """Raise ConfigError, naming them, when layers were never run on the calibration batches."""
    unseen = [name for name in layers if name not in totals or totals[name][1] == 0]
    if unseen:
        raise ConfigError(
            f"Expected calibration batches that run every layer, but nothing reached {unseen}: "
            "give one batch or more, and leave out layers that this model does not call."
        )
