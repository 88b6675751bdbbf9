"""Readouts of masked language models: what they think of words in their context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.masked_questions import (
    WITHIN_WORD,
    Question,
    blank_questions,
    lowers_case,
    modified_questions,
    slot_sight,
    unmodified_questions,
    whole_questions,
)
from fairsisa.bias.readouts.masked_rows import MaskedRow, Sight, likeliest, log_probabilities, num_positions
from fairsisa.bias.readouts.near_ties import Screened, rescore_near_ties
from fairsisa.errors import ModelError
from fairsisa.models.masked_network import MaskedNetwork
from fairsisa.settings import ScoringSettings
from fairsisa.settings.checks import in_range, one_of, refuse_unknown

TOP_K = 20
LOWER_CASE = ("auto", "yes", "no")
Summary = Callable[[np.ndarray], float]
"""From the log-probabilities of an option's tokens to its value, on a logarithmic scale."""


def ask_modified(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer with the mean log-probability, in nats, of the tokens in which an item's two sentences differ.

    Each such token is masked alone, the others stay: CrowS-Pairs as bias-bench measures it (Meade et al. 2022), but
    not rounded. An item in which no token differs on one side has no value.

    Raises:
        ConfigError: for an unknown setting, or a low-bit model that is to be scored in bf16.
        ModelError: when the tokenizer has no mask.
        ValueError: when an item has not two options.
    """
    refuse_unknown("settings", settings, ())
    questions = modified_questions(items, _masking(candidate))
    return _answered(candidate, questions, scoring, np.mean)


def ask_unmodified(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer with the summed log-probability, in nats, of the tokens that an item's two sentences share.

    Each is masked alone, the first and the last one left out (Nangia et al. 2020, their code). `settings`:
    `lower_case` "yes", "no" or, by default, "auto": as the tokenizer does. Raises what `ask_modified` does.
    """
    refuse_unknown("settings", settings, ("lower_case",))
    lower_case = str(settings.get("lower_case", "auto"))
    one_of("lower_case", lower_case, LOWER_CASE)
    tokenizer = _masking(candidate)
    lower = lowers_case(tokenizer) if lower_case == "auto" else lower_case == "yes"
    return _answered(candidate, unmodified_questions(items, tokenizer, lower_case=lower), scoring, np.sum)


def ask_blank(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer with the mean probability of the subwords of each word that may stand where the context says BLANK.

    Subwords are read left to right: those before are there, those after are not (StereoSet, intrasentence, as
    bias-bench measures it: a mean of probabilities, not of their logarithms). An item whose context has not just one
    BLANK, or with a word of punctuation alone, has no values. Raises what `ask_modified` does.
    """
    refuse_unknown("settings", settings, ())
    questions = blank_questions(items, _masking(candidate))
    answers = _answered(candidate, questions, scoring, _log_mean_probability)
    return replace(answers, frame=answers.frame.assign(value=np.exp(answers.frame["value"])))


def ask_pseudo_likelihood(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer with each option's pseudo-log-likelihood after the context, in nats: the sum over its tokens.

    The text is the context and the option as they are, nothing between. `settings`: `within_word` is "left_to_right"
    (the default; Kauf and Ivanova 2023), where a token does not see what follows it in its own word, or "plain", where
    it does (Salazar et al. 2020). Raises what `ask_modified` does, and ModelError for a slow tokenizer.
    """
    refuse_unknown("settings", settings, ("within_word",))
    within_word = str(settings.get("within_word", WITHIN_WORD[0]))
    one_of("within_word", within_word, WITHIN_WORD)
    questions = whole_questions(items, _masking(candidate), left_to_right=within_word == WITHIN_WORD[0])
    return _answered(candidate, questions, scoring, np.sum)


def ask_fill(
    candidate: Candidate, items: Sequence[Item], scoring: ScoringSettings, settings: Mapping[str, Any]
) -> Answers:
    """Answer with the likeliest tokens where the context says [M]: `option` is the rank, `value` a log-probability.

    `settings`: `top_k`, 20 by default. Precision "fast" counts as fp32, for ranks are full of near-ties. An item
    whose context has not just one [M], or is too long, has one answer without a value. Raises what `ask_modified` does.
    """
    refuse_unknown("settings", settings, ("top_k",))
    top_k = int(settings.get("top_k", TOP_K))
    in_range("top_k", top_k, low=1)
    tokenizer, limit = _masking(candidate), num_positions(candidate.network)
    seen = [slot_sight(item, tokenizer) for item in items]
    seen = [_too_long([each], limit) or each if isinstance(each, Sight) else each for each in seen]
    sights, network = [each for each in seen if isinstance(each, Sight)], _network(candidate, scoring)
    found = iter(likeliest(sights, network, top_k=top_k, max_tokens=scoring.max_tokens, device=candidate.device))
    rows: list[Answer] = []
    for item, each in zip(items, seen, strict=True):
        if isinstance(each, str):
            rows.append(Answer(item.item_id, 0, float("nan"), reason=each))
            continue
        for rank, (token, value) in enumerate(next(found)):
            rows.append(Answer(item.item_id, rank, value, 1, tokenizer.decode([token]).strip()))
    return answers_of(rows)


def screen(candidate: Candidate, questions: Sequence[Question], scoring: ScoringSettings, summary: Summary) -> Screened:
    """Return the values of questions scored in bf16, near-ties in fp32: what precision "fast" does, with its counts."""

    def exact(numbers: Sequence[int]) -> list[np.ndarray]:
        return _values(candidate.parts, candidate, [questions[number] for number in numbers], scoring, summary)

    coarse = _values(candidate.parts_in_bf16, candidate, questions, scoring, summary)
    return rescore_near_ties(coarse, exact, seed=scoring.seed)


def _answered(
    candidate: Candidate, questions: Sequence[Question], scoring: ScoringSettings, summary: Summary
) -> Answers:
    limit = num_positions(candidate.network)
    checked = [each if each.reason else replace(each, reason=_too_long([*each.sights], limit)) for each in questions]
    sound = [each for each in checked if not each.reason]
    if scoring.precision == "fast":
        values = iter(screen(candidate, sound, scoring, summary).values)
    else:
        values = iter(_values(_network(candidate, scoring), candidate, sound, scoring, summary))
    rows: list[Answer] = []
    for each in checked:
        found = np.full(len(each.item.options), np.nan) if each.reason else next(values)
        counts = [0] * len(found) if each.reason else [len(tokens) for tokens in each.options]
        rows += [
            Answer(each.item.item_id, option, float(value), count, reason=each.reason)
            for option, (value, count) in enumerate(zip(found, counts, strict=True))
        ]
    return answers_of(rows)


def _values(
    network: MaskedNetwork,
    candidate: Candidate,
    questions: Sequence[Question],
    scoring: ScoringSettings,
    summary: Summary,
) -> list[np.ndarray]:
    """Return the values of the options of each question, float64."""
    rows: list[MaskedRow] = [row for each in questions for option in each.options for row in option]
    logs = log_probabilities(rows, network, max_tokens=scoring.max_tokens, device=candidate.device)
    place, values = 0, []
    for each in questions:
        found = []
        for option in each.options:
            found.append(float(summary(logs[place : place + len(option)])))
            place += len(option)
        values.append(np.array(found))
    return values


def _network(candidate: Candidate, scoring: ScoringSettings) -> MaskedNetwork:
    return candidate.parts_in_bf16 if scoring.precision == "bf16" else candidate.parts


def _masking(candidate: Candidate) -> Any:
    """Return the candidate's tokenizer once it is known to have a mask."""
    if candidate.tokenizer.mask_token_id is None:
        raise ModelError(f"The tokenizer of {candidate.name} has no mask token: a masked language model needs one.")
    return candidate.tokenizer


def _too_long(sights: Sequence[Sight], limit: int | None) -> str:
    longest = max((len(sight.ids) for sight in sights), default=0)
    if limit is None or longest <= limit:
        return ""
    return f"too long: {longest} tokens, the model reads {limit}"


def _log_mean_probability(logs: np.ndarray) -> float:
    return float(np.logaddexp.reduce(logs) - np.log(len(logs)))
