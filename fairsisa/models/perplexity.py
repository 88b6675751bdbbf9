"""How well a language model predicts blocks of text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fairsisa.data.corpus_blocks import NO_TARGET, Blocks, Masking
from fairsisa.errors import ConfigError
from fairsisa.models.language import collate_blocks, require_fit, token_losses

LARGEST_EXPONENT = math.log(float(np.finfo(np.float64).max))


@dataclass(frozen=True, eq=False)
class BlockLosses:
    """The summed negative log-likelihood (nats) of each block's targets, and their number; shape (num_blocks,)."""

    totals: np.ndarray
    num_targets: np.ndarray

    @property
    def mean(self) -> float:
        """Nats a target, every one weighing the same."""
        return float(self.totals.sum() / self.num_targets.sum())

    @property
    def standard_error(self) -> float:
        """The standard error of `mean` over blocks, as a ratio of sums (Cochran 1977, 6.4); NaN for one block."""
        count = len(self.totals)
        if count < 2:
            return math.nan
        residuals = self.totals - self.mean * self.num_targets
        return float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / self.num_targets.sum())


@torch.inference_mode()
def block_losses(model: nn.Module, blocks: Blocks, batch_size: int, *, masking: Masking | None = None) -> BlockLosses:
    """Return how well the model predicts each block; one batch of logits is held at a time.

    A causal model predicts all tokens of a block but its first, from that block alone; a masked model the tokens that
    `masking` hides in epoch 0.

    Raises:
        ConfigError: when blocks or masking do not fit the model, or nothing is to be predicted.
    """
    require_fit(model, blocks, masking)
    device = next(model.parameters()).device
    totals, counts = np.zeros(len(blocks)), np.zeros(len(blocks), dtype=np.int64)
    with _evaluating(model):
        for start in range(0, len(blocks), batch_size):
            rows = np.arange(start, min(start + batch_size, len(blocks)))
            batch = collate_blocks(blocks, rows, masking=masking)
            losses = token_losses(model, {key: value.to(device) for key, value in batch.items()})
            totals[rows] = losses.sum(dim=1, dtype=torch.float64).cpu().numpy()
            counts[rows] = (batch["targets"] != NO_TARGET).sum(dim=1).numpy()
    if not counts.any():
        raise ConfigError("Expected blocks with something to predict, got single or special tokens only.")
    return BlockLosses(totals, counts)


def perplexity(model: nn.Module, blocks: Blocks, batch_size: int, *, masking: Masking | None = None) -> float:
    """Return exp of the mean negative log-likelihood (nats) over all targets that `block_losses` tells of.

    That of a masked model is a pseudo-perplexity, not comparable with a causal model's. Infinite when the mean exceeds
    what a float's exponent holds.

    Raises:
        ConfigError: as `block_losses` does.
    """
    return exponential(block_losses(model, blocks, batch_size, masking=masking).mean)


def exponential(mean: float) -> float:
    """Return exp of a mean loss, infinite where no float holds it."""
    return math.inf if mean > LARGEST_EXPONENT else math.exp(mean)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
