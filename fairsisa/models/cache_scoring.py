"""Probabilities of continuations by a causal language model that reads the prompt from its quantised cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fairsisa.errors import ConfigError
from fairsisa.models.kv_cache import CacheLayout, new_cache, pad_rows, read_tokens, require_readable

Rows = Sequence[Sequence[int]]


@torch.inference_mode()
def score_through_cache(
    model: nn.Module,
    prompts: Rows,
    continuations: Rows,
    *,
    cache_bits: int | None = None,
    layout: CacheLayout | None = None,
    batch_size: int = 16,
) -> list[Tensor]:
    """Return log P(token | prompt, tokens before it) of each continuation's tokens, natural logarithm, fp32 on the CPU.

    A first pass fills the cache with all of the prompt but its last token, quantised to `cache_bits` by what
    `generating.generate` uses; a second reads the last token and the continuation against it. One pass cannot show what
    a quantised cache does to the first token, or to any score: transformers attends to the exact keys and values of
    whatever it reads at once. What the second pass reads stays exact itself, so only the prompt is quantised, and
    `layout.residual_length` has no part in it. With None or 16 bits the result is that of one ordinary pass, up to
    rounding. A prompt of one token has nothing in its cache. No token is put before a prompt. This measures answers;
    it is slower than one pass.

    Raises:
        ConfigError: when the model has no cache or is training, prompts and continuations differ in number, or tokens
            do not fit the model.
    """
    if len(prompts) != len(continuations):
        raise ConfigError(f"Expected a continuation for each prompt, got {len(continuations)} for {len(prompts)}.")
    require_readable(model, [row for row in continuations if len(row)], [])
    scores = []
    for batch in _batches(prompts, continuations, batch_size):
        logits = _second_pass(model, *batch, cache_bits=cache_bits, layout=layout)
        for row, continuation in zip(logits, batch[1], strict=True):
            tokens = torch.as_tensor(continuation, dtype=torch.int64, device=row.device)
            of_tokens = row[: len(tokens)].log_softmax(dim=-1)
            scores.append(of_tokens.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).cpu())
    return scores


@torch.inference_mode()
def first_token_log_probabilities(
    model: nn.Module,
    prompts: Rows,
    *,
    cache_bits: int | None = None,
    layout: CacheLayout | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Return the log-probabilities of all tokens to follow each prompt, fp32 on the CPU, (num_prompts, vocabulary).

    Read as `score_through_cache` reads, so a quantised cache shows in them, as it does not in a first generated token.

    Raises:
        ConfigError: as `score_through_cache`, or when there is no prompt.
    """
    if len(prompts) == 0:
        raise ConfigError("Expected at least one prompt, got none.")
    nothing: Rows = [()] * len(prompts)
    parts = [
        _second_pass(model, *batch, cache_bits=cache_bits, layout=layout)[:, 0].log_softmax(dim=-1).cpu()
        for batch in _batches(prompts, nothing, batch_size)
    ]
    return torch.cat(parts)


def _second_pass(
    model: nn.Module, prompts: Rows, continuations: Rows, *, cache_bits: int | None, layout: CacheLayout | None
) -> Tensor:
    """Return the logits of each row's continuation from its first token on, (num_rows, longest or 1, vocabulary)."""
    require_readable(model, prompts, [len(p) + len(c) - 1 for p, c in zip(prompts, continuations, strict=True)])
    device = next(model.parameters()).device
    cache = new_cache(model, cache_bits, layout)
    held, held_mask = pad_rows([prompt[:-1] for prompt in prompts], "left", device)
    if held.shape[1]:
        read_tokens(model, held, held_mask, cache)
    rest = [[prompt[-1], *row[:-1]] for prompt, row in zip(prompts, continuations, strict=True)]
    tokens, mask = pad_rows(rest, "right", device)
    return read_tokens(model, tokens, torch.cat([held_mask, mask], dim=-1), cache, keep=tokens.shape[1])


def _batches(prompts: Rows, continuations: Rows, batch_size: int) -> Iterator[tuple[Rows, Rows]]:
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: use 1 or more.")
    for start in range(0, len(prompts), batch_size):
        yield prompts[start : start + batch_size], continuations[start : start + batch_size]
