"""One contract for every benchmark and readout: made answers to its items, and what each check demands of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.benchmark import (
    CAPABILITY,
    LABEL,
    NOT_SCORED,
    SCORED,
    SCORES,
    Benchmark,
    Columns,
    Files,
    Metric,
    Readout,
)
from fairsisa.bias.comparing import compare
from fairsisa.bias.items import Item, ItemTable, items_digest
from fairsisa.bias.measuring import columns_of, ordered
from fairsisa.bias.rating import RATING
from fairsisa.data.sources import SourceFile
from fairsisa.intervals import Bootstrap

PLAIN = (str, int, float, bool, type(None))
NUMBERS = ("outcome", "correct", "value", "margin")
YEAR = re.compile(r"\b(19|20)\d\d\b")
NUM_UNANSWERED, NUM_DIGESTED = 6, 200
NOT_GIVEN = "made: nothing was given"
EXPLAINED = 4
"""So many words say what a higher value means, where a capability has no chance to be compared with."""
EXEMPT: Mapping[str, str] = {
    "p_value": "an observed test has no bootstrap: NaN under weights that are not all one",
    "share_significant": "as p_value",
    "likelihood_bias": "a descriptor that is drawn twice is not compared with itself",
    "gini": "a country counts by how many questions it has among the rows, not among their copies",
    "median_distance": "as gini",
    "chance_difference": "its shuffles are drawn for the rows that are there",
    "excess_difference": "as chance_difference",
    "mean_absolute_effect_size": "a standard deviation with n - 1 below: of weights, n is their sum",
    "effect_size": "as mean_absolute_effect_size",
}
"""Metrics whose documentation departs from "a weight says how often a cluster counts", and how."""
SCALED = frozenset(EXEMPT) - {"p_value", "share_significant", "mean_absolute_effect_size", "effect_size"}
"""Those of them that twice the weights leave as they are all the same."""
REPEATED = frozenset({"mean_absolute_effect_size", "effect_size"})
"""Those of them that repeated rows make as weights do."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A benchmark under the contract: one readout and a part of its items that a judge can take as a whole."""

    benchmark: Benchmark
    readout: Readout
    table: ItemTable

    @property
    def items(self) -> tuple[Item, ...]:
        return self.table.items

    @cached_property
    def answers(self) -> Answers:
        return made_answers(self.readout, self.items)

    @cached_property
    def scores(self) -> pd.DataFrame:
        return self.readout.judge(self.items, self.answers)


# Made answers

PHRASES = (
    "I agree. We recommend the Black woman, 42.",
    "I disagree with that. Give it to the man, at once, in 1987.",
    "The non-binary person, and nobody else. #### 7",
    "It tells of nothing that counts",
    "Asian and white people alike; regardless, ask the woman.",
    "As an AI, I cannot agree or disagree. Prefer not to answer.",
)
RATERS = {"toxicity": ("not toxic", "toxic"), "regard": ("negative", "neutral", "positive")}
LOG_LIKELIHOODS = frozenset(
    {
        *("ask_modified", "ask_unmodified", "ask_pronoun", "ask_pseudo_likelihood", "ask_masked_without_shots"),
        *("ask_joint", "ask_sentences", "ask_sentences_alone", "ask_continuations", "ask_letters"),
        *("ask_partial", "ask_without_shots"),
    }
)
PROBABILITIES = frozenset({"ask_words", "ask_blank_answer", "ask_blank_letter"})
TEXTS = frozenset({"ask", "ask_texts", "ask_shuffled", "ask_continued", "ask_turns"})
WIDTH = 8


def made_answers(readout: Readout, items: Sequence[Item], seed: int = 0) -> Answers:
    """Return answers of the shape that a readout's models give, drawn from a seed."""
    rng = np.random.default_rng(seed)
    asked = str(getattr(readout.ask, "__name__", readout.ask))
    answers = answers_of(row for item in items for row in _made(asked, item, rng))
    if asked == "ask_vectors":
        vectors = rng.normal(size=(len(items), WIDTH))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return Answers(answers.frame, vectors)
    return answers if readout.rater is None else _rated(answers, readout.rater, rng)


def _made(asked: str, item: Item, rng: np.random.Generator) -> list[Answer]:
    if asked in LOG_LIKELIHOODS:
        return [_likely(item, option, rng) for option in range(len(item.options))]
    if asked in PROBABILITIES or asked == "ask_next_tokens":
        return _shares(item, rng, logarithmic=asked == "ask_next_tokens")
    if asked in TEXTS:
        number = int(item.labels["turn"] or 0) if asked == "ask_turns" else 2
        return [Answer(item.item_id, n, 0.0, 5, PHRASES[rng.integers(len(PHRASES))]) for n in range(number)]
    if asked == "ask_fill":
        words = [*item.options[:: max(1, len(item.options) // 5)], "kind", "brave", "a child", ""]
        drawn = rng.choice(words, size=20)
        return [Answer(item.item_id, rank, -float(rank), 1, str(word)) for rank, word in enumerate(drawn)]
    if asked not in ("ask_harmful", "ask_vectors"):
        raise AssertionError(f"Expected a question that answers are made for, got {asked}: add it to this module.")
    harmful = Answer(item.item_id, 1, float(rng.uniform()), text="harmful")
    return [harmful if asked == "ask_harmful" else Answer(item.item_id, 0, 0.0, 4)]


def _shares(item: Item, rng: np.random.Generator, *, logarithmic: bool) -> list[Answer]:
    *shares, outside = rng.dirichlet(np.ones(len(item.options) + 1)).tolist()
    if not logarithmic:
        return [Answer(item.item_id, option, share, 1) for option, share in enumerate(shares)]
    told = [Answer(item.item_id, option, math.log(share), 1) for option, share in enumerate(shares)]
    return [*told, Answer(item.item_id, -1, math.log(outside), 1)]


def _likely(item: Item, option: int, rng: np.random.Generator) -> Answer:
    text = "likeliest" if rng.uniform() < 0.3 else ""
    return Answer(item.item_id, option, -float(rng.uniform(1.0, 40.0)), int(rng.integers(1, 12)), text)


def _rated(answers: Answers, rater: str, rng: np.random.Generator) -> Answers:
    if rater == "chat_judge":
        grades = rng.integers(1, 11, len(answers)).astype(float)
        return Answers(answers.frame.assign(**{f"{RATING}score": grades, f"{RATING}reason": ""}))
    shares = rng.dirichlet(np.ones(len(RATERS[rater])), len(answers))
    return Answers(answers.frame.assign(**{f"{RATING}{n}": shares[:, k] for k, n in enumerate(RATERS[rater])}))


def unanswered(answers: Answers, item_ids: Sequence[str]) -> Answers:
    """Return answers in which some items have none but a reason: the second half of them; the first half no row."""
    absent, refused = item_ids[: len(item_ids) // 2], item_ids[len(item_ids) // 2 :]
    frame = answers.frame
    if answers.vectors is not None:
        absent, refused = (), item_ids
    told = frame["item_id"].isin(refused)
    changed = frame.assign(
        value=frame["value"].where(~told, np.nan),
        text=frame["text"].where(~told, ""),
        reason=frame["reason"].where(~told, NOT_GIVEN),
    )
    left = ~frame["item_id"].isin(absent).to_numpy()
    changed = changed.assign(**{name: frame[name].where(~told, np.nan) for name in _numbers_of_raters(frame)})
    return Answers(changed[left].reset_index(drop=True), answers.vectors)


def _numbers_of_raters(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name.startswith(RATING) and name != f"{RATING}reason"]


# Checks of a benchmark


def check_told(subject: Subject) -> None:
    benchmark = subject.benchmark
    assert re.fullmatch(r"[a-z0-9_]+", benchmark.name), benchmark.name
    for name in ("title", "licence"):
        assert getattr(benchmark, name).strip(), f"{name} is empty"
    assert YEAR.search(benchmark.source), f"source has no year: {benchmark.source!r}"
    assert re.fullmatch(r"[A-Z].*\.", benchmark.criticism), f"no sentence: {benchmark.criticism!r}"
    assert benchmark.readouts, "no readout"
    names = [(each.kind, each.name) for each in benchmark.readouts]
    assert len(set(names)) == len(names), f"readouts of one name: {names}"
    assert benchmark.readout(subject.readout.kind, subject.readout.name) is subject.readout


def check_metrics_told(subject: Subject) -> None:
    names = [metric.name for metric in subject.benchmark.metrics]
    assert names, "no metric"
    assert len(set(names)) == len(names), f"metrics of one name: {names}"
    for metric in subject.benchmark.metrics:
        words = metric.higher_means.split()
        assert len(words) > 1, f"{metric.name}: says too little: {metric.higher_means!r}"
        assert metric.flips in {"outcome", "correct", None}, f"{metric.name}: flips {metric.flips!r}"
        assert metric.unit in {"", "%"}, f"{metric.name}: unit {metric.unit!r}"
        if metric.chance is not None:
            assert metric.aspect == CAPABILITY, f"{metric.name}: a chance, but no capability"
            assert 0 <= metric.chance <= (100 if metric.unit else 1), f"{metric.name}: chance {metric.chance}"
        elif metric.aspect == CAPABILITY:
            assert len(words) >= EXPLAINED or metric.neutral is not None, f"{metric.name}: no chance, no explanation"


def check_items(subject: Subject) -> None:
    """The table itself refuses a repeated id and no item at all."""
    for item in subject.items:
        assert item.item_id, "an empty id"
        assert item.cluster.strip(), f"{item.item_id}: empty cluster"
        assert isinstance(item.options, tuple), f"{item.item_id}: options are no tuple"
        assert all(isinstance(option, str) for option in item.options), f"{item.item_id}: an option is no text"
        assert all(type(value) in PLAIN for value in item.labels.values()), f"{item.item_id}: a label is not plain"
        assert item.context or item.options, f"{item.item_id}: nothing is asked"
        json.dumps([item.context, item.options, dict(item.labels)], allow_nan=False)
    ids = [item.item_id for item in subject.items]
    assert len(set(ids)) == len(ids), "an id occurs twice"
    for bad in subject.table.malformed:
        assert bad.item_id, "a malformed row has no id"
        assert bad.reason.strip(), f"{bad.item_id}: malformed without a reason"


def check_breakdown(subject: Subject) -> None:
    for label in subject.benchmark.breakdown:
        assert any(label in item.labels for item in subject.items), f"no item has the label {label!r}"
        assert f"{LABEL}{label}" in subject.scores.columns, f"no column of the label {label!r}"


def check_loads_alike(benchmark: Benchmark, files: Files, first: ItemTable) -> None:
    again = benchmark.load(files)
    assert again.items == first.items, "loaded twice, the items differ"
    assert again.malformed == first.malformed, "loaded twice, what is malformed differs"
    some = slice(None, None, max(1, len(first.items) // NUM_DIGESTED))
    assert items_digest(again.items[some]) == items_digest(first.items[some]), "loaded twice, the digest differs"


@dataclass(frozen=True)
class Spoilt(Files):
    """Files to each of which a line is added that says nothing: no text between separators, or nothing of any name."""

    def text(self, source: SourceFile) -> str:
        text = super().text(source).rstrip("\n")
        first, last = text.split("\n", 1)[0], text.rsplit("\n", 1)[-1]
        if ".jsonl" in source.path:
            return f"{text}\n{json.dumps({name: type(value)() for name, value in json.loads(last).items()})}\n"
        separator = "\t" if ".tsv" in source.path else ","
        return f"{text}\n{separator * first.count(separator)}\n"


def check_malformed_named(benchmark: Benchmark, spoilt: Files, whole: ItemTable) -> None:
    """Nothing that was asked before is lost to a bad row, and the row is named."""
    found = benchmark.load(spoilt)
    assert {item.item_id for item in whole.items} <= {item.item_id for item in found.items}, "items are lost"
    assert len(found.malformed) > len(whole.malformed), "a malformed row is dropped in silence"


# Checks of a judge


def check_rows(subject: Subject) -> None:
    """One row an item, in the order of the items, with all columns and the labels of the item."""
    _assert_rows(subject.items, subject.scores)


def _assert_rows(items: Sequence[Item], scores: pd.DataFrame) -> None:
    assert scores["item_id"].tolist() == [item.item_id for item in items], "not one row an item in their order"
    missing = [name for name in SCORES if name not in scores.columns]
    assert not missing, f"columns are missing: {missing}"
    assert scores["cluster"].tolist() == [item.cluster for item in items], "clusters are not those of the items"
    strange = [name for name in scores.columns if name not in SCORES and not name.startswith(LABEL)]
    assert not strange, f"strange columns: {strange}"
    for place, item in enumerate(items):
        for name, value in item.labels.items():
            kept = scores[f"{LABEL}{name}"].iloc[place]
            assert kept == value or (value is None and pd.isna(kept)), f"{item.item_id}: label {name} is {kept!r}"


def check_numbers(subject: Subject) -> None:
    _assert_numbers(subject.scores)
    scored = subject.scores["state"] == SCORED
    assert scored.any(), "made answers are not scored at all"
    for metric in subject.benchmark.metrics:
        if metric.flips is not None:
            values = set(subject.scores[metric.flips][scored].dropna())
            assert values <= {0.0, 1.0}, f"{metric.flips} is what flips, but has {values}"


def _assert_numbers(scores: pd.DataFrame) -> None:
    for name in ("outcome", "correct"):
        known = scores[name].astype(float).dropna()
        assert known.between(0.0, 1.0).all(), f"{name} is outside of [0, 1]"
    assert (scores["margin"].astype(float).dropna() >= 0).all(), "a margin is negative"
    assert set(scores["state"]) <= {SCORED, NOT_SCORED}, f"states: {set(scores['state'])}"
    for row in scores[["item_id", "state", "reason", "answer"]].itertuples(index=False):
        assert isinstance(row.answer, str), f"{row.item_id}: the answer is no text"
        assert isinstance(row.reason, str), f"{row.item_id}: the reason is no text"
        assert (row.state == NOT_SCORED) == bool(row.reason), f"{row.item_id}: {row.state}, reason {row.reason!r}"
    numbers = scores[scores["state"] != SCORED][list(NUMBERS)].astype(float)
    assert numbers.isna().all(axis=None), "a number where nothing was scored"
    assert not np.isinf(scores[list(NUMBERS)].astype(float)).any(axis=None), "an infinite number"


def check_unanswered(subject: Subject) -> None:
    """What was not answered is not scored, and nothing else changes state."""
    chosen = [item.item_id for item in subject.items[:: max(1, len(subject.items) // NUM_UNANSWERED)]]
    scores = subject.readout.judge(subject.items, unanswered(subject.answers, chosen))
    _assert_rows(subject.items, scores)
    _assert_numbers(scores)
    silent = scores["item_id"].isin(chosen)
    assert (scores[silent]["state"] == NOT_SCORED).all(), "an item without an answer is scored"
    before = subject.scores
    assert (scores[~silent]["state"] == before[~silent]["state"]).all(), "others' states changed with it"


def check_partly_answered(subject: Subject) -> None:
    """An option without a number: the item is not scored."""
    answers = subject.answers
    asked = str(getattr(subject.readout.ask, "__name__", ""))
    if asked not in LOG_LIKELIHOODS | PROBABILITIES | {"ask_next_tokens", "ask_harmful"}:
        return
    first = subject.items[0].item_id
    place = int(np.flatnonzero((answers.frame["item_id"] == first).to_numpy())[0])
    holed = answers.frame.assign(value=answers.frame["value"].where(answers.frame.index != place, np.nan))
    for frame in (holed, answers.frame.drop(index=place).reset_index(drop=True)):
        scores = subject.readout.judge(subject.items, Answers(frame))
        assert scores["state"].iloc[0] == NOT_SCORED, "an item with an option that has no number is scored"
        assert scores["reason"].iloc[0], "no reason"


def check_pure(subject: Subject) -> None:
    answers, untouched = subject.answers, made_answers(subject.readout, subject.items)
    again = subject.readout.judge(subject.items, answers)
    pd.testing.assert_frame_equal(subject.scores, again, obj="judged twice, the scores")
    pd.testing.assert_frame_equal(answers.frame, untouched.frame, obj="what was judged")
    if answers.vectors is not None:
        np.testing.assert_array_equal(answers.vectors, untouched.vectors)


def check_order(subject: Subject) -> None:
    """The order of items and of answers says nothing: an item's row stays what it is."""
    rng = np.random.default_rng(1)
    order = rng.permutation(len(subject.items))
    turned = [subject.items[place] for place in order]
    answers = subject.answers
    ranks = {item_id: rank for rank, item_id in enumerate(rng.permutation([item.item_id for item in turned]))}
    rows = np.argsort(answers.frame["item_id"].map(ranks).to_numpy(), kind="stable")
    vectors = None if answers.vectors is None else answers.vectors[rows]
    found = subject.readout.judge(turned, Answers(answers.frame.iloc[rows].reset_index(drop=True), vectors))
    assert found["item_id"].tolist() == [item.item_id for item in turned], "rows are not in the order of the items"
    before = subject.scores.set_index("item_id")
    after = found.set_index("item_id").loc[before.index, before.columns]
    pd.testing.assert_frame_equal(before, after, check_dtype=False, obj="scores in another order")


# Checks of metrics


def scored_columns(subject: Subject) -> Columns:
    """Return the scored rows as metrics read them."""
    table = ordered(subject.scores)
    return columns_of(table[table["state"] == SCORED].reset_index(drop=True))


def part_of(columns: Columns, rows: np.ndarray) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _times(columns: Columns, seed: int = 2) -> np.ndarray:
    """Return how often each row's cluster was drawn in three replicates, the first of which drew each once."""
    codes = np.asarray(columns["cluster"])
    drawn = np.random.default_rng(seed).integers(0, 4, size=(int(codes.max()) + 1, 3))
    drawn[:, 0] = 1
    times: np.ndarray = drawn[codes]
    return times


def check_values(subject: Subject) -> None:
    columns = scored_columns(subject)
    times = _times(columns).astype(float)
    for metric in subject.benchmark.metrics:
        found = _value(metric, columns, times)
        if metric.unit == "%":
            known = found[~np.isnan(found)]
            assert (np.abs(known) <= 100 + 1e-9).all(), f"{metric.name}: a percentage of {known}"
        for place in range(times.shape[1]):
            alone = _value(metric, columns, times[:, [place]])
            np.testing.assert_allclose(
                alone, found[[place]], rtol=1e-9, atol=1e-9, err_msg=f"{metric.name}: hangs on other replicates"
            )


def check_weights_scale(subject: Subject) -> None:
    columns = scored_columns(subject)
    times = _times(columns).astype(float)
    for metric in subject.benchmark.metrics:
        if metric.name in EXEMPT and metric.name not in SCALED:
            continue
        once, twice = (_value(metric, columns, factor * times) for factor in (1.0, 2.0))
        np.testing.assert_allclose(twice, once, rtol=1e-9, atol=1e-9, err_msg=f"{metric.name}: twice the weights")


def check_weights_repeat(subject: Subject) -> None:
    """A weight of n is n copies of a cluster, each a cluster of its own."""
    columns = scored_columns(subject)
    times = _times(columns)
    for metric in subject.benchmark.metrics:
        if metric.name in EXEMPT and metric.name not in REPEATED:
            continue
        weighted = _value(metric, columns, times.astype(float))
        for place in range(times.shape[1]):
            copies = _copies(columns, times[:, place])
            repeated = _value(metric, copies, np.ones((len(copies["cluster"]), 1)))
            np.testing.assert_allclose(
                weighted[[place]], repeated, rtol=1e-6, atol=1e-9, err_msg=f"{metric.name}: weights are no repetition"
            )


def _copies(columns: Columns, times: np.ndarray) -> Columns:
    rows = np.repeat(np.arange(len(times)), times)
    number = np.concatenate([np.arange(count) for count in times]) if len(times) else rows
    pairs = np.stack([np.asarray(columns["cluster"])[rows], number])
    clusters = np.unique(pairs, axis=1, return_inverse=True)[1].ravel()
    return part_of(columns, rows) | {"cluster": clusters.astype(np.int64)}


def check_little(subject: Subject) -> None:
    """One cluster, one row, no row, or no weight at all: a number or NaN, never an error."""
    columns = scored_columns(subject)
    first = np.flatnonzero(np.asarray(columns["cluster"]) == np.asarray(columns["cluster"])[0])
    for metric in subject.benchmark.metrics:
        for rows in (first, first[:1]):
            _value(metric, part_of(columns, rows), np.ones((len(rows), 2)))
        nothing = _value(metric, part_of(columns, first[:0]), np.ones((0, 2)))
        assert np.isnan(nothing).all(), f"{metric.name}: {nothing} where nothing is scored"
        weightless = _value(metric, columns, np.zeros((len(columns["cluster"]), 2)))
        assert np.isnan(weightless).all(), f"{metric.name}: {weightless} where nothing is drawn"


def check_compared(subject: Subject) -> None:
    """What a comparison says of each of two models is what their own scores say."""
    again = subject.readout.judge(subject.items, made_answers(subject.readout, subject.items, seed=1))
    tables = [ordered(each) for each in (subject.scores, again)]
    both = np.logical_and(*((table["state"] == SCORED).to_numpy() for table in tables))
    tables = [table[both].reset_index(drop=True) for table in tables]
    found = compare(*tables, subject.benchmark.metrics, bootstrap=Bootstrap(2)).set_index("metric")
    valued = tables[0]["value"].notna() & tables[1]["value"].notna()
    for metric in subject.benchmark.metrics:
        rows = [table[valued] for table in tables] if metric.of_both else tables
        for which, table in zip(("base_value", "other_value"), rows, strict=True):
            own = _value(metric, columns_of(table), np.ones((len(table), 1))).item() if len(table) else math.nan
            np.testing.assert_allclose(found.loc[metric.name, which], own, err_msg=f"{metric.name}: {which}")


def _value(metric: Metric, columns: Columns, weights: np.ndarray) -> np.ndarray:
    try:
        found = metric.value(columns, weights)
    except Exception as fault:
        raise AssertionError(f"{metric.name}: {type(fault).__name__}: {fault}, at {weights.shape} weights") from fault
    assert isinstance(found, np.ndarray), f"{metric.name}: no array"
    assert found.shape == (weights.shape[1],), f"{metric.name}: shape {found.shape} at {weights.shape} weights"
    assert not np.isinf(found).any(), f"{metric.name}: infinite"
    return found


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_told,
    check_metrics_told,
    check_items,
    check_breakdown,
    check_rows,
    check_numbers,
    check_unanswered,
    check_partly_answered,
    check_pure,
    check_order,
    check_values,
    check_weights_scale,
    check_weights_repeat,
    check_little,
    check_compared,
)


def faults(subject: Subject) -> dict[str, str]:
    """Return what a benchmark does wrong, by the name of the check that found it."""
    return dict(_faults(subject))


def _faults(subject: Subject) -> Iterator[tuple[str, str]]:
    for check in CHECKS:
        try:
            check(subject)
        except Exception as fault:
            yield check.__name__, f"{type(fault).__name__}: {fault}"


def shape_of(readout: Readout) -> str:
    """Return what shape of answers a readout's models give."""
    asked = str(getattr(readout.ask, "__name__", readout.ask))
    known = {"likely": LOG_LIKELIHOODS, "shares": PROBABILITIES, "texts": TEXTS}
    return f"{next((name for name, asks in known.items() if asked in asks), asked)} {readout.rater}"


def judged_by(readout: Readout) -> str:
    """Return the name and the settings of a readout's judge: equal ones are one judge."""
    judge: Any = readout.judge
    return repr((getattr(judge, "func", judge).__qualname__, getattr(judge, "keywords", {})))
