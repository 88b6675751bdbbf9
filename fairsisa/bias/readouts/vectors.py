"""Vectors of sentences: a model's last hidden states, pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.masked_rows import num_positions
from fairsisa.data.batches import inference_batches
from fairsisa.errors import ConfigError
from fairsisa.settings import ScoringSettings
from fairsisa.settings.checks import one_of, refuse_unknown

POOLINGS = ("mean", "cls", "last")


def ask_vectors(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Return the vector of each option of each item, of length one (L2), in `vectors`; `value` is 0.0.

    `settings` may hold `pooling`: "mean" over all tokens, special ones included (SEAT as implemented by Meade et al.,
    ACL 2022, bias-bench: sentences are encoded as the tokenizer gives them, so GPT-2 reads no first token), "cls", the
    first token, or "last". Hidden states are those after the last layer, before any head. A sentence is read once,
    however often it occurs, without padding.

    A sentence that is empty, or longer than the model reads, has a vector and a value of NaN, and a reason.

    Raises:
        ConfigError: when the candidate has no network, or a setting is unknown.
    """
    refuse_unknown("vectors", settings, ("pooling",))
    pooling = settings.get("pooling", "mean")
    one_of("pooling", pooling, POOLINGS)
    if candidate.network is None:
        raise ConfigError(f"{candidate.name} has no network of its own whose hidden states could be read.")
    network = candidate.in_bf16 if scoring.precision == "bf16" else candidate.network
    texts = [*dict.fromkeys(option for item in items for option in item.options)]
    tokens = candidate.tokenizer(texts)["input_ids"] if texts else []
    limit = num_positions(network)
    reasons = [_why_not(text, read, limit) for text, read in zip(texts, tokens, strict=True)]
    vectors = sentence_vectors(
        network,
        [[] if reason else read for read, reason in zip(tokens, reasons, strict=True)],
        pooling=pooling,
        max_tokens=scoring.max_tokens,
    )
    places = {text: place for place, text in enumerate(texts)}
    asked = [(item, number, places[option]) for item in items for number, option in enumerate(item.options)]
    rows = (
        Answer(item.item_id, number, math.nan if reasons[place] else 0.0, len(tokens[place]), reason=reasons[place])
        for item, number, place in asked
    )
    return answers_of(rows, vectors[[place for *_, place in asked]])


@torch.inference_mode()
def sentence_vectors(
    network: nn.Module, sentences: Sequence[Sequence[int]], *, pooling: str, max_tokens: int
) -> np.ndarray:
    """Return pooled last hidden states of length one, float32 of shape (num_sentences, width); NaN for no tokens.

    A batch holds sentences of one length, at most `max_tokens` tokens (and at least one sentence).
    """
    body: Any = network.base_model
    device = next(network.parameters()).device
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    (there,) = np.nonzero(lengths)
    vectors = np.full((len(sentences), _width(network)), np.nan, dtype=np.float32)
    for batch in inference_batches(lengths[there], max_tokens=max_tokens):
        rows = there[batch]
        ids = torch.tensor([list(sentences[row]) for row in rows], device=device)
        pooled = _pooled(body(input_ids=ids).last_hidden_state.float(), pooling)
        vectors[rows] = nn.functional.normalize(pooled, dim=-1).cpu().numpy()
    return vectors


def _pooled(hidden: Tensor, pooling: str) -> Tensor:
    """Return one vector a row of `hidden`, shape (num_rows, length, width)."""
    if pooling == "mean":
        return hidden.mean(dim=1)
    return hidden[:, 0 if pooling == "cls" else -1]


def _why_not(text: str, tokens: Sequence[int], limit: int | None) -> str:
    if not text.strip() or not tokens:
        return "the text is empty"
    if limit is not None and len(tokens) > limit:
        return f"the text's {len(tokens)} tokens exceed the model's {limit} positions"
    return ""


def _width(network: Any) -> int:
    return int(network.config.hidden_size)
