"""What causal language models are asked: the likelihood of options, of whole texts and of next words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.causal_questions import Question, Values, score_questions
from fairsisa.bias.readouts.masked_rows import num_positions
from fairsisa.bias.readouts.prefixes import Continuation
from fairsisa.bias.readouts.texts import prompt_tokens
from fairsisa.errors import ConfigError
from fairsisa.settings import ScoringSettings
from fairsisa.settings.checks import refuse_unknown

LIKELIEST = "likeliest"
OUTSIDE = -1
"""The option whose value is the log of the mass that no option covers."""
EMPTY = "the option has no token of its own"
NOT_ONE = "the option is not one token of the vocabulary"
NOT_FINITE = "the model gives it no finite log-likelihood"

Tokens = tuple[int, ...]


def ask_continuations(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer each option with its log-likelihood after the context, in nats, summed over its tokens.

    The tokens are those of lm-evaluation-harness 0.4.13 (`_encode_pair`, `loglikelihood`): spaces at the end of the
    context go to the option; the option's tokens are those of both together beyond the number that the context has
    alone; after an empty context they follow the token that begins, or else ends, a text. `text` is "likeliest" where
    every token is the model's own first choice. Unlike there, what the model cannot read whole is not cut: it has no
    value, and the reason begins with "too long".

    With a chat template the context is a user's turn, and an option begins the answer, without spaces before it.

    Raises:
        ConfigError: when the model is no causal language model, or lacks the chat template or first token it needs.
    """
    refuse_unknown("continuations", settings, ())
    return _summed(candidate, items, questions_of(candidate, items, chat=scoring.chat_template), scoring)


def ask_sentences(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer each option, a whole text, with its log-likelihood in nats, that of its first token included.

    As `ask_continuations` after an empty context; where an item has a context, the text follows it.

    Raises:
        ConfigError: as `ask_continuations` does.
    """
    return ask_continuations(candidate, items, scoring, settings)


def ask_joint(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer each option, a whole text, with its joint log-probability in nats, as bias-bench defines it.

    (Meade et al., ACL 2022; `_joint_log_probability`.) The first token's probability is that after the token which
    begins a text, the others' are those without it. The context is not read.

    Raises:
        ConfigError: when the model is no causal language model, or its tokenizer has no token that begins a text.
    """
    refuse_unknown("joint", settings, ())
    begin, limit = _first_token(candidate), num_positions(candidate.network)
    questions = []
    for place, option, text in _options(items):
        tokens = _encode(candidate.tokenizer, text, special=False)
        parts = [Continuation((begin,), tokens[:1])] if tokens else []
        parts += [Continuation(tokens[:1], tokens[1:])] if len(tokens) > 1 else []
        questions.append(_question(place, option, parts, limit))
    return _summed(candidate, items, questions, scoring)


def ask_next_tokens(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer each option, a single word, with the log-probability that its token comes next after the context.

    The token is the word as it stands, no space before it. After an item's options comes the option -1, the log of the
    probability that neither of their tokens comes next.

    Raises:
        ConfigError: when the model is no causal language model, or lacks the chat template it needs.
    """
    refuse_unknown("next_tokens", settings, ())
    limit, questions = num_positions(candidate.network), []
    for place, item in enumerate(items):
        prompt = tuple(prompt_tokens(candidate, item.context, chat=scoring.chat_template))
        for option, word in enumerate(item.options):
            token = bare_token(candidate.tokenizer, word)
            parts = [] if token is None else [Continuation(prompt, (token,), group=place)]
            questions.append(_question(place, option, parts, limit, without=NOT_ONE))
    values = score_questions(candidate, questions, scoring, outside=True)
    answers = []
    for place, group in groupby(range(len(questions)), key=lambda number: questions[number].item):
        numbers = list(group)
        answers += [_answer(items[place], questions[number], values, number) for number in numbers]
        answers.append(_outside(items[place], questions, values, numbers))
    return answers_of(answers)


def questions_of(candidate: Candidate, items: Sequence[Item], *, chat: bool) -> list[Question]:
    """Return what is asked of each item's options after its context (`ask_continuations`)."""
    limit, questions = num_positions(candidate.network), []
    for place, item in enumerate(items):
        prompt = tuple(prompt_tokens(candidate, item.context, chat=True)) if chat and item.context else None
        for option, text in enumerate(item.options):
            if prompt is None:
                prefix, tokens = encode_pair(candidate, item.context, text)
            else:
                prefix, tokens = prompt, _encode(candidate.tokenizer, text.lstrip(" "), special=False)
            parts = [Continuation(prefix, tokens)] if tokens else []
            questions.append(_question(place, option, parts, limit))
    return questions


def encode_pair(candidate: Candidate, context: str, option: str) -> tuple[Tokens, Tokens]:
    """Return the tokens of a context and those of an option that follows it, as lm-evaluation-harness tells them apart.

    A context of spaces alone counts as empty, which there is an error.

    Raises:
        ConfigError: when the context is empty and the tokenizer has no token that begins or ends a text.
    """
    tokenizer, read = candidate.tokenizer, context.rstrip()
    option = context[len(read) :] + option
    special = not (tokenizer.bos_token and read.startswith(tokenizer.bos_token))
    prefix = _encode(tokenizer, read, special=special) if read else ()
    if prefix:
        return prefix, _encode(tokenizer, read + option, special=special)[len(prefix) :]
    begin, tokens = _first_token(candidate), _encode(tokenizer, option, special=False)
    return (tokens[:1], tokens[1:]) if tokens[:1] == (begin,) else ((begin,), tokens)


def bare_token(tokenizer: Any, word: str) -> int | None:
    """Return the id of the token that is the word itself, None where it takes several.

    SentencePiece puts a space before a text, but keeps words without one in its vocabulary. Letters beyond ASCII are
    not looked up there: a byte-level vocabulary writes bytes as such letters.
    """
    known = tokenizer.get_vocab() if word.isascii() else {}
    if word in known:
        return int(known[word])
    tokens = _encode(tokenizer, word, special=False)
    return tokens[0] if len(tokens) == 1 else None


def _summed(
    candidate: Candidate, items: Sequence[Item], questions: Sequence[Question], scoring: ScoringSettings
) -> Answers:
    values = score_questions(candidate, questions, scoring)
    return answers_of(_answer(items[each.item], each, values, number) for number, each in enumerate(questions))


def _answer(item: Item, question: Question, values: Values, number: int) -> Answer:
    value, reason = float(values.totals[number]), question.reason
    if not (reason or math.isfinite(value)):
        value, reason = math.nan, NOT_FINITE
    text = LIKELIEST if values.likeliest[number] and not reason else ""
    return Answer(item.item_id, question.option, value, question.num_tokens, text, reason)


def _outside(item: Item, questions: Sequence[Question], values: Values, numbers: Sequence[int]) -> Answer:
    """Return the answer that tells what an item's options, some of the questions, leave."""
    known = [number for number in numbers if questions[number].parts]
    if not known:
        return Answer(item.item_id, OUTSIDE, math.nan, reason=questions[numbers[0]].reason)
    value = float(values.outside[known[0]])
    return Answer(item.item_id, OUTSIDE, value, 1, reason="" if math.isfinite(value) else NOT_FINITE)


def _question(
    item: int, option: int, parts: Sequence[Continuation], limit: int | None, without: str = EMPTY
) -> Question:
    longest = max((len(part.read) for part in parts), default=0)
    if limit is not None and longest > limit:
        return Question(item, option, reason=f"too long: {longest} tokens, of which the model reads {limit}")
    return Question(item, option, tuple(parts), "" if parts else without)


def _options(items: Sequence[Item]) -> Iterator[tuple[int, int, str]]:
    for place, item in enumerate(items):
        for option, text in enumerate(item.options):
            yield place, option, text


def _encode(tokenizer: Any, text: str, *, special: bool) -> Tokens:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])


def _first_token(candidate: Candidate) -> int:
    """Return the id of the token that begins a text, or else of the one that ends it."""
    tokenizer = candidate.tokenizer
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if found is None:
        raise ConfigError(
            f"The tokenizer of {candidate.name} has no token that begins or ends a text, which the first word of a "
            "text follows: add one, or ask with a context."
        )
    return int(found)
