"""Questions to a causal language model: options made of continuations, scored at the precision that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from fairsisa.bias.candidate import Candidate
from fairsisa.bias.readouts.near_ties import rescore_near_ties
from fairsisa.bias.readouts.prefixes import Continuation, score_continuations, score_through_few_bits
from fairsisa.settings import ScoringSettings


@dataclass(frozen=True)
class Question:
    """An option of an item, by its place among the items: the continuations whose log-likelihoods make up its value.

    Without any, `reason` says why.
    """

    item: int
    option: int
    parts: tuple[Continuation, ...] = ()
    reason: str = ""

    @property
    def num_tokens(self) -> int:
        """How many tokens the value sums over."""
        return sum(len(part.tokens) for part in self.parts)


@dataclass(frozen=True, eq=False)
class Values:
    """What a model says to questions, NaN to those without parts; arrays of shape (num_questions,).

    `totals` are sums over the parts, in nats; `likeliest` says whether every token was the first choice; `outside` is
    as in `prefixes.Likelihoods`, that of the first part. `num_run` counts the positions that the model computed.
    """

    totals: np.ndarray
    likeliest: np.ndarray
    outside: np.ndarray
    num_run: int


def score_questions(
    candidate: Candidate, questions: Sequence[Question], scoring: ScoringSettings, *, outside: bool = False
) -> Values:
    """Return what the model says to questions, at the precision of `scoring`.

    With "fast" that is bf16, and fp32 for items with two options that are as close as the change of precision may tell
    apart, in their sums or in their means a token (`near_ties`).

    Raises:
        ConfigError: as `prefixes.score_continuations` does.
    """
    if scoring.precision == "fp32":
        return _score(candidate.network, questions, scoring, outside=outside)
    coarse = _score(candidate.in_bf16, questions, scoring, outside=outside)
    if scoring.precision == "bf16":
        return coarse
    return _without_near_ties(candidate, questions, scoring, coarse, outside=outside)


def _without_near_ties(
    candidate: Candidate, questions: Sequence[Question], scoring: ScoringSettings, coarse: Values, *, outside: bool
) -> Values:
    """Return `coarse` with the values of items that are near-ties replaced by exact ones."""
    values = Values(coarse.totals.copy(), coarse.likeliest.copy(), coarse.outside.copy(), coarse.num_run)
    finite = [number for number, total in enumerate(coarse.totals) if np.isfinite(total)]
    of_items = [list(group) for _, group in groupby(finite, key=lambda number: questions[number].item)]
    num_run = [coarse.num_run]
    known = set[int]()

    def exact(weights: np.ndarray, places: Sequence[int]) -> list[np.ndarray]:
        fresh = [number for place in places if place not in known for number in of_items[place]]
        known.update(places)
        found = _score(candidate.network, [questions[number] for number in fresh], scoring, outside=outside)
        values.totals[fresh], values.likeliest[fresh] = found.totals, found.likeliest
        values.outside[fresh] = found.outside
        num_run.append(found.num_run)
        return [values.totals[of_items[place]] * weights[of_items[place]] for place in places]

    for weights in (np.ones(len(questions)), 1 / np.array([max(1, each.num_tokens) for each in questions])):
        rows = [coarse.totals[numbers] * weights[numbers] for numbers in of_items]
        rescore_near_ties(rows, partial(exact, weights), seed=scoring.seed)
    return Values(values.totals, values.likeliest, values.outside, sum(num_run))


def _score(network: Any, questions: Sequence[Question], scoring: ScoringSettings, *, outside: bool) -> Values:
    owners = np.array([number for number, each in enumerate(questions) for _ in each.parts], dtype=np.int64)
    asked = [part for each in questions for part in each.parts]
    has_parts = np.isin(np.arange(len(questions)), owners)
    totals, misses = np.where(has_parts, 0.0, np.nan), np.zeros(len(questions), dtype=np.int64)
    rest = np.full(len(questions), np.nan)
    if not asked:
        return Values(totals, has_parts, rest, 0)
    if scoring.cache_bits is None:
        found = score_continuations(network, asked, max_tokens=scoring.max_tokens, outside=outside)
    else:
        bits = scoring.cache_bits
        found = score_through_few_bits(network, asked, cache_bits=bits, max_tokens=scoring.max_tokens, outside=outside)
    np.add.at(totals, owners, found.totals)
    np.add.at(misses, owners, ~found.likeliest)
    rest[owners[::-1]] = found.outside[::-1]
    return Values(totals, has_parts & (misses == 0), rest, found.num_run)
