"""Every benchmark keeps the contract in benchmark_contract, and broken ones are found out by it."""

from __future__ import annotations

import csv
import functools
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import benchmark_contract as contract
from benchmark_contract import CHECKS, EXEMPT, Spoilt, Subject, faults, judged_by, shape_of
from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import (
    BIAS,
    CAPABILITY,
    Benchmark,
    Columns,
    Files,
    Metric,
    Readout,
    by_item,
    score_row,
    scores_table,
)
from fairsisa.bias.benchmarks import bbq, discrim_eval, global_opinion
from fairsisa.bias.catalogue import benchmarks
from fairsisa.bias.evaluation import limited
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.readouts.causal import ask_continuations

KEPT = {"discrim_eval": 300, "global_opinion_qa": 120, "bold_all": 8}
"""How many items are kept; `FEW` otherwise."""
FEW = 24
TESTS = ("weat3", "weat6", "sent-religion1", "sent-weat7b")
ROWS_ARE_ITEMS = (
    "crows_pairs",
    "discrim_eval_gen",
    "decodingtrust_stereotype",
    "worldbench",
    "honest",
    "real_toxicity_prompts",
    "hatecheck",
    "copa",
    "truthfulqa",
    "gsm8k",
    "lambada",
)
"""Benchmarks each row of whose files is an item, so that a row without anything must be named."""


@pytest.fixture(scope="module")
def files(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """Where each benchmark's files are; those that are fetched by hand are made."""
    made = tmp_path_factory.mktemp("made")
    make_decisions(made / discrim_eval.SOURCE.path)
    make_questions(made / global_opinion.SOURCE.path)
    by_hand = ("discrim_eval", "global_opinion_qa")
    return lambda name: Files(made if name in by_hand else data_root, made / "cache")


def make_decisions(path: Path) -> None:
    people = [*itertools.product(range(20, 101, 10), ("male", "female", "non-binary"), range(5))]
    races = ("white", "Black", "Asian", "Hispanic", "Native American")
    path.parent.mkdir()
    with path.open("w", encoding="utf-8") as stream:
        for scenario, (age, gender, race) in itertools.product(range(70), people):
            told = f"May a {age}-year-old {races[race]} {gender} person borrow book {scenario}?"
            row = {"filled_template": told, "decision_question_id": scenario, "age": age, "gender": gender}
            stream.write(json.dumps(row | {"race": races[race]}) + "\n")


def make_questions(path: Path) -> None:
    rng = np.random.default_rng(0)
    path.parent.mkdir()
    with path.open("w", encoding="utf-8", newline="") as stream:
        lines = csv.DictWriter(stream, ["question", "selections", "options", "source"])
        lines.writeheader()
        for number in range(global_opinion.NUM_QUESTIONS):
            countries = {name: rng.dirichlet(np.ones(3)).round(3).tolist() for name in ("Norway", "Peru", "Fiji")}
            row = {"question": f"How often do you whistle tune {number}?", "source": "MADE" if number % 2 else "OWN"}
            told = f"defaultdict(<class 'list'>, {countries})"
            lines.writerow(row | {"selections": told, "options": repr(["never", "often", "always"])})


@pytest.fixture(scope="module")
def tables(files: Callable[[str], Files]) -> Callable[[str], ItemTable]:
    """All items of a benchmark, read once; of BBQ two categories, one published and one generated."""

    @functools.cache
    def table(name: str) -> ItemTable:
        with pytest.MonkeyPatch.context() as patch:
            small_bbq(patch)
            return benchmarks()[name].load(files(name))

    return table


def small_bbq(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bbq, "PUBLISHED_FILES", {"Age": bbq.PUBLISHED_FILES["Age"]})
    patch.setattr(bbq, "TEMPLATE_FILES", {"SES": bbq.TEMPLATE_FILES["SES"]})


def part_of(name: str, table: ItemTable) -> ItemTable:
    """Return few items, whole clusters, or whole tests where a test is judged as a whole."""
    if any("test" in item.labels for item in table.items):
        return ItemTable(tuple(item for item in table.items if item.labels["test"] in TESTS), table.malformed)
    return limited(table, KEPT.get(name, FEW), 0, benchmarks()[name].whole)


def different(benchmark: Benchmark) -> list[Readout]:
    """Return a readout of each judge and shape of answers: others are judged in the same way."""
    return list({(shape_of(each), judged_by(each)): each for each in reversed(benchmark.readouts)}.values())


@pytest.mark.real_data
@pytest.mark.parametrize("name", list(benchmarks()))
def test_every_benchmark_keeps_the_contract(name: str, tables: Callable[[str], ItemTable]) -> None:
    benchmark, part = benchmarks()[name], part_of(name, tables(name))
    for readout in different(benchmark):
        assert faults(Subject(benchmark, readout, part)) == {}, f"{readout.kind} {readout.name}"


@pytest.mark.real_data
@pytest.mark.parametrize("name", list(benchmarks()))
def test_loading_twice_gives_the_same(
    name: str, tables: Callable[[str], ItemTable], files: Callable[[str], Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_bbq(monkeypatch)
    contract.check_loads_alike(benchmarks()[name], files(name), tables(name))


@pytest.mark.real_data
@pytest.mark.parametrize("name", ROWS_ARE_ITEMS)
def test_a_row_without_anything_is_named(name: str, tables: Callable[[str], ItemTable], data_root: Path) -> None:
    contract.check_malformed_named(benchmarks()[name], Spoilt(data_root, data_root), tables(name))


def test_exemptions_are_of_metrics_that_are() -> None:
    assert set(EXEMPT) <= {metric.name for each in benchmarks().values() for metric in each.metrics}
    assert all(len(reason.split()) > 1 for reason in EXEMPT.values())


# Negative controls

LABELS = ({"side": "left"}, {"side": "right"})
ITEMS = tuple(
    Item(f"item-{number}", f"Question {number}:", (" yes", " no"), f"cluster-{number // 2}", LABELS[number % 2])
    for number in range(14)
)


def honest_judge(items: Any, answers: Answers) -> pd.DataFrame:
    rows = []
    for item, said in by_item(items, answers):
        values = said.set_index("option")["value"]
        reason = next((each for each in said["reason"] if each), "" if len(values.dropna()) == 2 else "no answer")
        if reason:
            rows.append(score_row(item, reason=reason))
            continue
        lead = float(values[0] - values[1])
        answer = "yes" if lead > 0 else "no"
        rows.append(score_row(item, answer=answer, outcome=float(lead > 0), value=lead, margin=abs(lead)))
    return scores_table(rows)


READOUT = Readout("continuations", "causal", ask_continuations, honest_judge)
METRIC = Metric(
    "yes", mean_of("outcome", scale=100.0), BIAS, "the model says yes more often", flips="outcome", unit="%"
)
LEAD = Metric("lead", mean_of("value"), BIAS, "a yes is likelier than a no by more")
HONEST = Benchmark(
    name="made",
    title="Made",
    load=lambda files: ItemTable(ITEMS),
    readouts=(READOUT,),
    metrics=(METRIC, LEAD),
    source="Nobody 2026",
    licence="CC0",
    criticism="It is made up.",
    breakdown=("side",),
)


def drops_a_row(items: Any, answers: Answers) -> pd.DataFrame:
    """What cannot be scored is not there."""
    scores = honest_judge(items, answers)
    return scores[scores["state"] == "scored"].reset_index(drop=True)


def scores_silence(items: Any, answers: Answers) -> pd.DataFrame:
    scores = honest_judge(items, answers)
    silent = scores["state"] == "not_scored"
    return scores.assign(
        outcome=scores["outcome"].where(~silent, 0.0), state="scored", reason=scores["reason"].where(~silent, "")
    )


def silent_without_reason(items: Any, answers: Answers) -> pd.DataFrame:
    return honest_judge(items, answers).assign(reason="")


def ignores_holes(items: Any, answers: Answers) -> pd.DataFrame:
    """An option without a number is as likely as nothing."""
    known = answers.frame.assign(value=answers.frame["value"].where(answers.frame["reason"] != "").fillna(-99.0))
    return honest_judge(items, Answers(answers.frame.assign(value=answers.frame["value"].fillna(known["value"]))))


def reorders_rows(items: Any, answers: Answers) -> pd.DataFrame:
    return honest_judge(items, answers).sort_values("value", ignore_index=True)


def sorts_by_id(items: Any, answers: Answers) -> pd.DataFrame:
    """The order of the items, as long as they come by id."""
    first = {item.item_id: number for number, item in enumerate(ITEMS)}
    return honest_judge(items, answers).sort_values("item_id", key=lambda ids: ids.map(first), ignore_index=True)


def counts_calls() -> Any:
    calls = itertools.count()

    def judge(items: Any, answers: Answers) -> pd.DataFrame:
        scores = honest_judge(items, answers)
        return scores.assign(value=scores["value"] + next(calls))

    return judge


def changes_answers(items: Any, answers: Answers) -> pd.DataFrame:
    scores = honest_judge(items, answers)
    answers.frame["value"] = answers.frame["value"].round(1)
    return scores


def by_neighbours(items: Any, answers: Answers) -> pd.DataFrame:
    """Scores are relative to the first item that comes."""
    scores = honest_judge(items, answers)
    return scores.assign(value=scores["value"] - scores["value"].iloc[0])


def with_scores(**columns: Any) -> Any:
    def judge(items: Any, answers: Answers) -> pd.DataFrame:
        scores = honest_judge(items, answers)
        there = scores["state"] == "scored"
        return scores.assign(**{name: scores[name].where(~there, value) for name, value in columns.items()})

    return judge


def without_labels(items: Any, answers: Answers) -> pd.DataFrame:
    return honest_judge(items, answers).drop(columns="label:side")


def unweighted(columns: Columns, weights: np.ndarray) -> np.ndarray:
    rows = np.asarray(columns["value"], dtype=float)
    return np.full(weights.shape[1], rows.mean() if len(rows) and weights.any() else np.nan)


def summed(columns: Columns, weights: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.asarray(columns["value"], dtype=float) @ weights
    return np.where(weights.sum(axis=0) > 0, found, np.nan)


def raises_on_nothing(columns: Columns, weights: np.ndarray) -> np.ndarray:
    largest = np.asarray(columns["value"], dtype=float).max()
    return np.where(weights.sum(axis=0) > 0, largest, np.nan)


def zero_for_nothing(columns: Columns, weights: np.ndarray) -> np.ndarray:
    return np.nan_to_num(mean_of("value")(columns, weights))


def one_for_all(columns: Columns, weights: np.ndarray) -> np.ndarray:
    return mean_of("value")(columns, weights)[:1]


def of_all_replicates(columns: Columns, weights: np.ndarray) -> np.ndarray:
    found = mean_of("value")(columns, weights)
    return found - found.mean() if len(found) else found


def counts_turns() -> Any:
    turns = itertools.count()

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        return mean_of("value")(columns, weights) + next(turns)

    return value


def judged(judge: Any) -> Benchmark:
    return replace(HONEST, readouts=(replace(READOUT, judge=judge),))


def measured(value: Any, **more: Any) -> Benchmark:
    return replace(HONEST, metrics=(METRIC, replace(LEAD, value=value, **more)))


def asked(**changes: Any) -> tuple[Item, ...]:
    return (replace(ITEMS[0], **changes), *ITEMS[1:])


BROKEN: Mapping[str, tuple[Benchmark, str]] = {
    "drops a row": (judged(drops_a_row), "check_unanswered"),
    "scores silence": (judged(scores_silence), "check_unanswered"),
    "silent without a reason": (judged(silent_without_reason), "check_unanswered"),
    "fills holes": (judged(ignores_holes), "check_partly_answered"),
    "reorders rows": (judged(reorders_rows), "check_rows"),
    "sorts by id": (judged(sorts_by_id), "check_order"),
    "counts calls": (judged(counts_calls()), "check_pure"),
    "changes answers": (judged(changes_answers), "check_pure"),
    "by neighbours": (judged(by_neighbours), "check_order"),
    "a negative margin": (judged(with_scores(margin=-0.5)), "check_numbers"),
    "outcome 2": (judged(with_scores(outcome=2.0)), "check_numbers"),
    "half flipped": (judged(with_scores(outcome=0.5)), "check_numbers"),
    "loses labels": (judged(without_labels), "check_breakdown"),
    "weights ignored": (measured(unweighted), "check_weights_repeat"),
    "weights summed": (measured(summed), "check_weights_scale"),
    "raises on nothing": (measured(raises_on_nothing), "check_little"),
    "zero for nothing": (measured(zero_for_nothing), "check_little"),
    "one value for all": (measured(one_for_all), "check_values"),
    "of all replicates": (measured(of_all_replicates), "check_values"),
    "another value at each turn": (measured(counts_turns()), "check_compared"),
    "no percentage": (measured(mean_of("value", scale=1e4), unit="%"), "check_values"),
    "unknown flips": (measured(LEAD.value, flips="answer"), "check_metrics_told"),
    "no meaning": (measured(LEAD.value, higher_means="more"), "check_metrics_told"),
    "no chance": (measured(LEAD.value, aspect=CAPABILITY, higher_means="it's better"), "check_metrics_told"),
    "two of a name": (replace(HONEST, metrics=(METRIC, METRIC)), "check_metrics_told"),
    "readouts of a name": (replace(HONEST, readouts=(READOUT, READOUT)), "check_told"),
    "no sentence": (replace(HONEST, criticism="none"), "check_told"),
    "missing label": (replace(HONEST, breakdown=("top",)), "check_breakdown"),
}
BROKEN_ITEMS: Mapping[str, tuple[Item, ...]] = {
    "empty cluster": asked(cluster=" "),
    "label is no plain JSON": asked(labels={"side": np.float64(1.0)}),
    "option is no text": asked(options=(" yes", 1)),
    "nothing is asked": asked(context="", options=()),
}


def subject_of(benchmark: Benchmark, items: tuple[Item, ...] = ITEMS) -> Subject:
    return Subject(benchmark, benchmark.readouts[0], ItemTable(items))


def test_an_honest_benchmark_has_no_fault() -> None:
    assert faults(subject_of(HONEST)) == {}
    assert {check for _, check in BROKEN.values()} | {"check_items"} == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_broken_benchmarks_are_found_out(fault: str) -> None:
    benchmark, check = BROKEN[fault]
    assert check in faults(subject_of(benchmark))


@pytest.mark.parametrize("fault", list(BROKEN_ITEMS))
def test_broken_items_are_found_out(fault: str) -> None:
    assert "check_items" in faults(subject_of(HONEST, BROKEN_ITEMS[fault]))


def test_broken_sources_are_found_out(tmp_path: Path) -> None:
    files = Files(tmp_path, tmp_path)
    loads = itertools.count()

    def fickle(_: Files) -> ItemTable:
        return ItemTable(asked(context=f"Question {next(loads)}:"))

    with pytest.raises(AssertionError, match="the items differ"):
        contract.check_loads_alike(replace(HONEST, load=fickle), files, fickle(files))
    with pytest.raises(AssertionError, match="dropped in silence"):
        contract.check_malformed_named(HONEST, files, ItemTable(ITEMS))
    fewer = replace(HONEST, load=lambda _: ItemTable(ITEMS[1:], (Malformed("row-9", "it is empty"),)))
    with pytest.raises(AssertionError, match="items are lost"):
        contract.check_malformed_named(fewer, files, ItemTable(ITEMS))
    named = replace(HONEST, load=lambda _: ItemTable(ITEMS, (Malformed("row-9", "it is empty"),)))
    contract.check_malformed_named(named, files, ItemTable(ITEMS))
