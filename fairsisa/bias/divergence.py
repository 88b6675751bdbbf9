"""How far two models' probabilities are apart, over the vocabulary or over an item's options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairsisa.bias.readouts.reading import Reader, reader_of
from fairsisa.data.corpus_blocks import NO_TARGET, Blocks, Masking
from fairsisa.errors import ConfigError
from fairsisa.models.base import is_bidirectional
from fairsisa.models.language import collate_blocks, require_fit
from fairsisa.models.network import Batch

CACHED_NUMBERS = 1 << 19
"""How many logits of each model are compared at a time: few enough to stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class BlockDivergences:
    """What two models' predictions of each block's targets differ by, summed over them; arrays of shape (num_blocks,).

    `forward` is the Kullback-Leibler divergence KL(base || other) over the whole vocabulary and `backward` that of
    (other || base), in nats, float64, 0 or more; `same_top` the number of targets at which both models hold the same
    token likeliest; `difference` the log-probability of the true token under the other model less that under the base,
    in nats. `num_targets` is what to divide by.
    """

    num_targets: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    same_top: np.ndarray
    difference: np.ndarray


@torch.inference_mode()
def block_divergences(
    base: Any, other: Any, blocks: Blocks, batch_size: int, *, masking: Masking | None = None
) -> BlockDivergences:
    """Return what two causal models of one vocabulary, or two masked ones, predict differently in blocks of text.

    Causal models predict all tokens of a block but its first, from that block alone; masked ones the tokens that
    `masking` hides in epoch 0. Probabilities are fp32, so that less than about 1e-6 nats a token is rounding, sums over
    tokens float64. A model differs from itself by 0. Logits are computed for a few tokens at a time: no batch of them
    is held, except by models that do more after their head.

    Raises:
        ConfigError: when vocabularies or kinds differ, a model is training, blocks or masking do not fit, or nothing is
            to be predicted.
    """
    _require_comparable(base, other, blocks, masking)
    readers = reader_of(base), reader_of(other)
    sums, counts = np.zeros((4, len(blocks))), np.zeros(len(blocks), dtype=np.int64)
    for start in range(0, len(blocks), batch_size):
        rows = np.arange(start, min(start + batch_size, len(blocks)))
        batch = collate_blocks(blocks, rows, masking=masking)
        places = batch["targets"].flatten() != NO_TARGET
        targets = batch["targets"].flatten()[places]
        owners = np.repeat(rows, (batch["targets"] != NO_TARGET).sum(dim=1).numpy())
        np.add.at(counts, owners, 1)
        states = [_states(*each, batch)[places] for each in zip((base, other), readers, strict=True)]
        for part, values in _differences(readers, states, targets):
            for total, value in zip(sums, values, strict=True):
                np.add.at(total, owners[part], value)
    if not counts.any():
        raise ConfigError("Expected blocks with something to predict, got single or special tokens only.")
    forward, backward, same_top, difference = sums
    return BlockDivergences(counts, forward, backward, same_top.astype(np.int64), difference)


def option_divergence(base: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return KL(base || other) and KL(other || base) in nats between two models' choices of each item's options.

    Both arguments hold log-likelihoods in nats, shape (num_items, num_options), which a softmax over an item's options
    makes probabilities (Dutta et al., NeurIPS 2024, read at the level of options); what no option covers is no part of
    it. NaN is no option. An item without any, or whose options differ between the two, has NaN.

    Raises:
        ValueError: when the shapes differ.
    """
    if base.shape != other.shape or base.ndim != 2:
        raise ValueError(f"Expected two tables of items and options, got shapes {base.shape} and {other.shape}.")
    missing = np.isnan(base), np.isnan(other)
    unlike = (missing[0] != missing[1]).any(axis=1) | missing[0].all(axis=1)
    logs = _log_shares(base), _log_shares(other)
    forward, backward = (np.where(unlike, np.nan, _divergence(*pair)) for pair in (logs, logs[::-1]))
    return forward, backward


def _log_shares(values: np.ndarray) -> np.ndarray:
    """Return the log of each option's share of its row; minus infinity for what is no option."""
    known = np.where(np.isnan(values), -np.inf, values)
    top = known.max(axis=1, keepdims=True, initial=-np.inf)
    centred = known - np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return centred - np.where(np.isfinite(total), total, 0.0)


def _divergence(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return KL(one || other) of each row of log-probabilities; infinite where `other` excludes what `one` allows."""
    possible = np.isfinite(one)
    gaps = np.subtract(one, other, out=np.zeros_like(one), where=possible)
    sums: np.ndarray = (np.exp(one) * gaps).sum(axis=1)
    return sums.clip(min=0.0)


def _states(network: Any, reader: Reader, batch: Batch) -> Tensor:
    """Return the reader's states at all positions of a batch, shape (num_positions, width)."""
    device = next(network.parameters()).device
    options = {} if is_bidirectional(network) else {"use_cache": False}
    mask = batch["mask"].to(device) if "mask" in batch else None
    return reader.body(input_ids=batch["tokens"].to(device), attention_mask=mask, **options).flatten(0, 1)


def _differences(
    readers: tuple[Reader, Reader], states: list[Tensor], targets: Tensor
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield some of the states, and of each what is summed: forward, backward, same top, difference, as four rows."""
    chunks = (reader.logits(of_model) for reader, of_model in zip(readers, states, strict=True))
    step = max(1, CACHED_NUMBERS // readers[0].num_words)
    for (part, ours), (_, theirs) in zip(*chunks, strict=True):
        cuts = [slice(start, start + step) for start in range(0, len(ours), step)]
        yield part, np.concatenate([_of_logits(ours[cut], theirs[cut], targets[part][cut]) for cut in cuts], axis=1)


def _of_logits(ours: Tensor, theirs: Tensor, targets: Tensor) -> np.ndarray:
    theirs, targets = theirs.to(ours.device), targets.to(ours.device)
    top = ours.argmax(dim=-1, keepdim=True)
    same_top = (theirs.gather(-1, top) == theirs.amax(dim=-1, keepdim=True)).squeeze(-1)
    ours, theirs = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
    gaps = ours - theirs
    difference = -gaps.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    # PyTorch sums fp32 in pairs of pairs, which is nearly as exact as float64 and takes a thirtieth of the time.
    forward, backward = ours.exp_().mul_(gaps).sum(dim=-1), -theirs.exp_().mul_(gaps).sum(dim=-1)
    values = [forward.clamp(min=0), backward.clamp(min=0), same_top, difference]
    return torch.stack([each.double() for each in values]).cpu().numpy()


def _require_comparable(base: Any, other: Any, blocks: Blocks, masking: Masking | None) -> None:
    sizes = [int(network.config.vocab_size) for network in (base, other)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"Expected two models of one vocabulary, got {sizes[0]} and {sizes[1]} tokens: their probabilities cannot "
            "be compared token by token."
        )
    for network in (base, other):
        require_fit(network, blocks, masking)
        if network.training:
            raise ConfigError("Expected models in evaluation mode, got one that drops out at random: call eval().")
