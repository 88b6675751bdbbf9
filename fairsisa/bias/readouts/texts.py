"""Texts that a causal model writes on after a prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.masked_rows import num_positions
from fairsisa.errors import ConfigError
from fairsisa.lineage import derive_seed
from fairsisa.models.generating import Sampling, generate
from fairsisa.settings import ScoringSettings
from fairsisa.settings.checks import refuse_unknown

SETTINGS = ("max_new_tokens", "system", "stop")
MAX_NEW_TOKENS = 150


def ask_texts(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Return `scoring.num_continuations` texts that follow each item's context, `option` their number from 0.

    `settings` may hold `max_new_tokens` (150 by default; that of `scoring` goes before), `system` (`prompt_tokens`) and
    `stop`, a list of texts, before the first of which what was written is cut off. A text ends at the model's or the
    tokenizer's end token; special tokens are not part of it. `num_tokens` counts what was written up to its end token,
    and `value` is 0.0.

    What is drawn for an item depends on `scoring.seed` and the item's id alone, not on the other items nor on the
    model. With "fast" as with "fp32" precision a model writes in fp32. Where prompt and text do not fit into the
    model's positions, or a prompt holds no token, there is one answer: no text, and the reason.

    Raises:
        ConfigError: when several texts are asked for at temperature 0, which are all alike; a setting is unknown; or
            the model cannot write, or lacks the chat template that is asked for.
    """
    refuse_unknown("texts", settings, SETTINGS)
    _require_draws(scoring)
    wanted = settings.get("max_new_tokens", MAX_NEW_TOKENS)
    length = wanted if scoring.max_new_tokens is None else scoring.max_new_tokens
    system, stop = settings.get("system", ""), tuple(settings.get("stop", ()))
    prompts = [prompt_tokens(candidate, item.context, chat=scoring.chat_template, system=system) for item in items]
    limit = num_positions(candidate.network)
    reasons = [_why_not(prompt, length, limit) for prompt in prompts]
    fit = sorted((row for row, reason in enumerate(reasons) if not reason), key=lambda row: -len(prompts[row]))
    written = _written(candidate, {items[row].item_id: prompts[row] for row in fit}, scoring, length)
    answers = list[Answer]()
    for item, prompt, reason in zip(items, prompts, reasons, strict=True):
        if reason:
            answers.append(Answer(item.item_id, 0, math.nan, reason=reason))
        for number, tokens in enumerate(written.get(item.item_id, ())):
            text = _cut(continuation(candidate.tokenizer, prompt, tokens), stop)
            answers.append(Answer(item.item_id, number, 0.0, len(tokens), text))
    return answers_of(answers)


def prompt_tokens(candidate: Candidate, text: str, *, chat: bool, system: str = "") -> list[int]:
    """Return a prompt as token ids, in which the token that begins a text is there at most once.

    Raw, the tokenizer puts its special tokens around `text`, with `system` and a blank line before it, unless that
    begins with the first token's own text already; an end token that it puts behind a text is taken away, as the text
    goes on. Where it puts none around nothing, the prompt is the token that begins, else ends, a text.

    With `chat`, `text` is a user's turn of the tokenizer's chat template and `system` the system's; a template without
    one gets `system` and a blank line before the user's text. The template alone puts special tokens.

    Raises:
        ConfigError: when the tokenizer has no chat template, or one that cannot be filled in.
    """
    if chat:
        return _chat_tokens(candidate, text, system)
    tokenizer, text = candidate.tokenizer, _after(system, text)
    begin, end = tokenizer.bos_token, tokenizer.eos_token_id
    begun = bool(begin) and text.startswith(begin)
    tokens = list(tokenizer(text, add_special_tokens=not begun)["input_ids"])
    if end is not None and len(tokens) > 1 and tokens[-1] == end and not text.endswith(tokenizer.eos_token):
        del tokens[-1]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    return tokens if tokens or first is None else [first]


def continuation(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Return the text of tokens that follow a prompt, with the space that parts them where there is one.

    Some tokenizers drop the space before a first word, so that what is written is decoded with the prompt before it.
    """
    head, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *tokens]))
    if whole.startswith(head):
        return str(whole[len(head) :])
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def end_tokens(network: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end a text: the tokenizer's, then those of the model's generation settings."""
    ends = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    listed = ends if isinstance(ends, list | tuple) else [ends]
    return tuple(dict.fromkeys(int(end) for end in (tokenizer.eos_token_id, *listed) if end is not None))


def _written(
    candidate: Candidate, prompts: Mapping[str, Sequence[int]], scoring: ScoringSettings, length: int
) -> dict[str, list[list[int]]]:
    """Return the tokens of each item's continuations, without end tokens; prompts come longest first."""
    network = candidate.in_bf16 if scoring.precision == "bf16" else candidate.network
    ends = end_tokens(network, candidate.tokenizer)
    found = dict[str, list[list[int]]]()
    for ids, size in _batches(prompts, scoring, length):
        tokens = generate(
            network,
            [prompts[item_id] for item_id in ids],
            max_new_tokens=length,
            cache_bits=scoring.cache_bits,
            sampling=_sampling(scoring, ids),
            end_ids=ends,
            batch_size=size,
        )
        for item_id, rows in zip(ids, tokens.tolist(), strict=True):
            found[item_id] = [_until(row, ends) for row in rows]
    return found


def _batches(
    prompts: Mapping[str, Sequence[int]], scoring: ScoringSettings, length: int
) -> Iterator[tuple[list[str], int]]:
    """Yield ids of prompts, and how many continuations are written at once: at most `scoring.max_tokens` tokens."""
    ids, start = [*prompts], 0
    while start < len(ids):
        size = max(1, scoring.max_tokens // (len(prompts[ids[start]]) + length))
        batch = ids[start : start + max(1, size // scoring.num_continuations)]
        yield batch, size
        start += len(batch)


def _sampling(scoring: ScoringSettings, item_ids: Sequence[str]) -> Sampling | None:
    if scoring.temperature == 0:
        return None
    return Sampling(
        seed=scoring.seed,
        num_continuations=scoring.num_continuations,
        temperature=scoring.temperature,
        top_p=scoring.top_p,
        prompt_seeds=tuple(derive_seed(scoring.seed, "text", item_id) for item_id in item_ids),
    )


def _require_draws(scoring: ScoringSettings) -> None:
    if scoring.temperature == 0 and scoring.num_continuations > 1:
        raise ConfigError(
            f"At temperature 0 all of num_continuations={scoring.num_continuations} texts would be the same: set "
            "temperature=1.0 to draw them, or num_continuations=1."
        )


def _why_not(prompt: Sequence[int], length: int, limit: int | None) -> str:
    if not prompt:
        return "the prompt holds no token"
    # The last token that is written is never read.
    if limit is not None and len(prompt) + length - 1 > limit:
        return f"the prompt's {len(prompt)} tokens and {length} new ones exceed the model's {limit} positions"
    return ""


def _chat_tokens(candidate: Candidate, text: str, system: str) -> list[int]:
    tokenizer = candidate.tokenizer
    if not tokenizer.chat_template:
        named = f" ({tokenizer.name_or_path})" if tokenizer.name_or_path else ""
        raise ConfigError(
            f"The tokenizer of {candidate.name}{named} has no chat template: set chat_template=false, or add one."
        )
    turns = [{"role": "system", "content": system}] if system else []
    try:
        return _filled_in(tokenizer, [*turns, {"role": "user", "content": text}])
    except jinja2.TemplateError as error:
        if not system:
            raise ConfigError(f"The chat template of {candidate.name} cannot be filled in: {error}") from error
    return _chat_tokens(candidate, _after(system, text), "")


def _filled_in(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False))


def _after(system: str, text: str) -> str:
    return f"{system}\n\n{text}" if system else text


def _until(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens before the first end."""
    place = next((number for number, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:place])


def _cut(text: str, stop: Sequence[str]) -> str:
    places = [place for place in (text.find(each) for each in stop) if place >= 0]
    return text[: min(places)] if places else text
