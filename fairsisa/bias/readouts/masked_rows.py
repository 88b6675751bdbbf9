"""Rows with one position to be read, put to a masked language model in batches without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fairsisa.models.masked_network import MaskedNetwork

HEAD_ROWS = 128


class Sight(NamedTuple):
    """What a model sees at once: token ids, with masks in them, and the position that is read."""

    ids: tuple[int, ...]
    position: int


class MaskedRow(NamedTuple):
    """A sight, and the token whose probability at its position is wanted."""

    sight: Sight
    target: int


def log_probabilities(
    rows: Sequence[MaskedRow], network: MaskedNetwork, *, max_tokens: int, device: torch.device
) -> np.ndarray:
    """Return ln P(target | sight) of each row, float64 of shape (num_rows,), at most 0.

    The same sight is put to the model once, however many rows have it. A batch holds sights of one length, at most
    `max_tokens` tokens (and at least one sight); so nothing is padded, and the order of rows does not matter.
    """
    wanted: dict[Sight, list[int]] = {}
    for number, row in enumerate(rows):
        wanted.setdefault(row.sight, []).append(number)
    values = np.full(len(rows), np.nan)
    for sights, logits in _logits_of([*wanted], network, max_tokens, device):
        numbers = [number for sight in sights for number in wanted[sight]]
        lines = torch.tensor([line for line, sight in enumerate(sights) for _ in wanted[sight]], device=device)
        targets = torch.tensor([rows[number].target for number in numbers], device=device)
        # A log-softmax of what is needed alone.
        logs = logits[lines, targets] - logits.logsumexp(dim=1)[lines]
        values[numbers] = logs.double().cpu().numpy()
    return values


def likeliest(
    sights: Sequence[Sight], network: MaskedNetwork, *, top_k: int, max_tokens: int, device: torch.device
) -> list[list[tuple[int, float]]]:
    """Return, for each sight, its `top_k` likeliest tokens and their log-probabilities, the likeliest first."""
    found: dict[Sight, list[tuple[int, float]]] = {}
    for some, logits in _logits_of([*dict.fromkeys(sights)], network, max_tokens, device):
        best = logits.log_softmax(dim=1).topk(min(top_k, logits.shape[1]))
        for sight, values, tokens in zip(some, best.values.tolist(), best.indices.tolist(), strict=True):
            found[sight] = [*zip(tokens, values, strict=True)]
    return [found[sight] for sight in sights]


def batches_of(sights: Sequence[Sight], max_tokens: int) -> Iterator[list[Sight]]:
    """Yield sights in batches of one length and at most `max_tokens` tokens, the longest first."""
    by_length: dict[int, list[Sight]] = {}
    for sight in sights:
        by_length.setdefault(len(sight.ids), []).append(sight)
    for length in sorted(by_length, reverse=True):
        size = max(1, max_tokens // length)
        same = sorted(by_length[length])
        for start in range(0, len(same), size):
            yield same[start : start + size]


def num_positions(network: Any) -> int | None:
    """Return how many tokens a model reads, special ones included; None where its positions have no end.

    RoBERTa's table of positions begins after its padding id (Liu et al. 2019, as implemented), which takes from it.
    """
    limit = getattr(network.config, "max_position_embeddings", None)
    if limit is None or limit < 1:
        return None
    tables = (each for name, each in network.base_model.named_modules() if name.endswith("position_embeddings"))
    table = next((each for each in tables if isinstance(each, nn.Embedding)), None)
    before = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
    return int(limit) - before


@torch.inference_mode()
def _logits_of(
    sights: Sequence[Sight], network: MaskedNetwork, max_tokens: int, device: torch.device
) -> Iterator[tuple[list[Sight], torch.Tensor]]:
    """Yield sights and their fp32 logits, shape (num_sights, vocabulary), `HEAD_ROWS` at most at a time.

    The head has batches of its own: its weights are as large as an encoder's, so that few rows at a time cost as much
    as many.
    """
    batches = [*batches_of(sights, max_tokens)]
    ordered = [sight for batch in batches for sight in batch]
    hidden = [_hidden_of(batch, network, device) for batch in batches]
    for start, rows in enumerate(torch.split(torch.cat(hidden), HEAD_ROWS) if hidden else ()):
        yield ordered[start * HEAD_ROWS : start * HEAD_ROWS + len(rows)], network.head(rows).float()


def _hidden_of(batch: Sequence[Sight], network: MaskedNetwork, device: torch.device) -> torch.Tensor:
    ids = torch.tensor([sight.ids for sight in batch], device=device)
    return network.encode(ids, torch.tensor([sight.position for sight in batch], device=device))
