"""Continuations of prompts by a causal language model, greedy or sampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fairsisa.errors import ConfigError
from fairsisa.models.kv_cache import CacheLayout, new_cache, pad_rows, read_tokens, require_readable

Choose = Callable[[Tensor, int], Tensor]
"""From the logits of the next token, shape (num_rows, vocabulary), and its number, the ids chosen, (num_rows,)."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: by `temperature`, then among the `top_k` likeliest, then the likeliest of mass `top_p`.

    With `prompt_seeds`, one a prompt, what is drawn for a prompt comes from its own seed, wherever it stands; else all
    comes from `seed`.

    Raises:
        ConfigError: when a value is out of range.
    """

    seed: int
    num_continuations: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    prompt_seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_continuations", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Expected {name} to be 1 or more, got {value}.")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature={self.temperature}: use a number above 0; to be greedy, do not sample.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: use a share above 0, up to 1.")


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    cache_bits: int | None = None,
    layout: CacheLayout | None = None,
    sampling: Sampling | None = None,
    end_ids: Sequence[int] = (),
    batch_size: int = 16,
) -> Tensor:
    """Return continuations as int64 token ids on the CPU, shape (num_prompts, num_continuations, max_new_tokens).

    A prompt is read as it stands: no token is put before it, so one that starts a text is there once if the caller's
    tokenizer put it there. Without `sampling` the likeliest token follows, one continuation a prompt. A continuation
    stops after the first of the `end_ids`; the rest of its row is `end_ids[0]`. The model's own generation settings
    are not read.

    With `cache_bits` 2, 4 or 8, keys and values are kept quantised, as `layout` says (`kv_cache.new_cache`). The first
    new token cannot differ from that of an exact cache, as a prompt is read before it is quantised
    (`cache_scoring` is for that); nothing is promised about speed.

    Equal arguments give equal bits on one machine. Numbers drawn at random depend on the seed, the place of the prompt
    (unless it has a seed of its own), the number of continuations and `max_new_tokens`, never on the model, the bits or
    `batch_size`: two models that answer the same prompts are compared on the same draws.

    Raises:
        ConfigError: when the model has no cache or is training, a value is out of range, the tokens do not fit, or
            prompts and their seeds differ in number.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ConfigError(f"Expected max_new_tokens and batch_size of 1 or more, got {max_new_tokens}, {batch_size}.")
    require_readable(model, prompts, [len(prompt) + max_new_tokens - 1 for prompt in prompts])
    num_continuations = 1 if sampling is None else sampling.num_continuations
    rows = [prompt for prompt in prompts for _ in range(num_continuations)]
    draws = _draws(len(prompts), num_continuations, max_new_tokens, sampling)
    written = torch.full((len(rows), max_new_tokens), end_ids[0] if end_ids else 0)
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        cache = new_cache(model, cache_bits, layout)
        written[part] = _continued(
            model, rows[part], cache, written[part], choose=_choosing(sampling, draws[part]), end_ids=end_ids
        )
    return written.view(len(prompts), num_continuations, max_new_tokens)


def _continued(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    cache: Any,
    blank: Tensor,
    *,
    choose: Choose,
    end_ids: Sequence[int],
) -> Tensor:
    """Return `blank`, shape (num_rows, max_new_tokens), filled in until each row has one of the `end_ids`."""
    device = next(model.parameters()).device
    tokens, mask = pad_rows(rows, "left", device)
    written, ends, ended = blank.clone(), torch.tensor(end_ids, dtype=torch.int64), torch.zeros(len(rows)).bool()
    for number in range(blank.shape[1]):
        chosen = choose(read_tokens(model, tokens, mask, cache)[:, -1], number)
        written[:, number] = torch.where(ended, written[:, number], chosen)
        ended |= torch.isin(chosen, ends)
        if ended.all():
            break
        tokens = written[:, number : number + 1].to(device)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=-1)
    return written


def _choosing(sampling: Sampling | None, draws: Tensor) -> Choose:
    if sampling is None:
        return lambda logits, number: logits.argmax(dim=-1).cpu()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return lambda logits, number: _drawn(warpers(None, logits), draws[:, number])


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """Return for each row the first token at which the cumulative probability passes its draw."""
    # In fp64 and on the CPU: a sum of 100,000 fp32 numbers drifts, and on a GPU it is not repeatable.
    cumulative = logits.cpu().double().softmax(dim=-1).cumsum(dim=-1)
    places = torch.searchsorted(cumulative, draws.unsqueeze(-1) * cumulative[:, -1:], right=True)
    return places.squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _draws(num_prompts: int, num_continuations: int, num_tokens: int, sampling: Sampling | None) -> Tensor:
    """Return numbers in [0, 1), one a row and token, so that a row's do not depend on how many rows follow."""
    num_rows = num_prompts * num_continuations
    if sampling is None or not num_rows:
        return torch.zeros((num_rows, num_tokens))
    generators = [torch.Generator().manual_seed(seed) for seed in sampling.prompt_seeds or [sampling.seed]]
    if not sampling.prompt_seeds:
        generators *= num_prompts
    if len(generators) != num_prompts:
        raise ConfigError(f"Expected a seed for each of {num_prompts} prompts, got {len(generators)}.")
    rows = [
        torch.rand(num_tokens, dtype=torch.float64, generator=g) for g in generators for _ in range(num_continuations)
    ]
    return torch.stack(rows)
