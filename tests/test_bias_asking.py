"""Items are asked once, in parts that survive a kill, and answers come back as they were given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bias_asking
from bias_asking import CANDIDATE, made_items, readout
from fairsisa.bias.answers import ANSWERS, Answer, Answers, answers_of, from_tensors, to_tensors
from fairsisa.bias.asking import answers_lineage, ask_items, chunks_of
from fairsisa.bias.benchmark import MALFORMED, SCORED, Benchmark, score_row
from fairsisa.bias.candidate import CLASSIFIER, MASKED, Candidate
from fairsisa.bias.evaluation import evaluate, limited, with_malformed
from fairsisa.bias.items import Item, ItemTable, Malformed, items_digest
from fairsisa.bias.rating import RATING, rated
from fairsisa.errors import ConfigError, DataError
from fairsisa.lineage import Lineage
from fairsisa.settings import ScoringSettings
from fairsisa.store import Store

SCORING = ScoringSettings()
texts = st.text(max_size=8)


def journal(place: Path) -> list[str]:
    return (place / "journal").read_text(encoding="utf-8").splitlines()


def run_child(place: Path, *words: object) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, bias_asking.__file__, str(place), *map(str, words)]
    return subprocess.run(command, env=environment, check=False, capture_output=True).returncode


def test_answers_come_in_the_order_of_the_items(tmp_path: Path) -> None:
    items = made_items(30)
    answers = ask_items(CANDIDATE, items, readout(tmp_path / "journal"), SCORING, store=Store(tmp_path / "store"))
    assert answers.frame["item_id"].tolist() == [item.item_id for item in items for _ in range(2)]
    assert answers.frame["option"].tolist() == [0, 1] * 30
    assert answers.frame["value"].tolist() == [len(item.context) * left for item in items for left in (1.0, 0.0)]
    assert answers.vectors is not None
    assert answers.vectors.shape == (60, 3)


def test_the_vectors_stay_with_their_rows(tmp_path: Path) -> None:
    items = made_items(8)
    chosen = readout(tmp_path / "journal")
    asked = bias_asking.ask(CANDIDATE, next(chunks_of(items, 8)), SCORING, chosen.settings)
    kept = ask_items(CANDIDATE, items, chosen, SCORING, store=Store(tmp_path / "store"))
    assert asked.vectors is not None
    assert kept.vectors is not None
    for row, item_id in enumerate(kept.frame["item_id"]):
        place = int(np.flatnonzero((asked.frame["item_id"] == item_id) & (asked.frame["option"] == row % 2))[0])
        np.testing.assert_array_equal(kept.vectors[row], asked.vectors[place])


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    items, store, told = made_items(20), Store(tmp_path / "store"), []
    chosen = readout(tmp_path / "journal")
    first = ask_items(
        CANDIDATE, items, chosen, SCORING, store=store, tell=lambda done, total: told.append((done, total))
    )
    again = ask_items(CANDIDATE, items, chosen, SCORING, store=store)
    assert sorted(journal(tmp_path)) == sorted(item.item_id for item in items)
    assert told == [(8, 20), (16, 20), (20, 20)]
    pd.testing.assert_frame_equal(first.frame, again.frame)


def test_a_killed_command_goes_on_where_it_was(tmp_path: Path) -> None:
    """The third of four parts kills the process: two parts are kept, and only the others are asked again."""
    killed = tmp_path / "killed"
    killed.mkdir()
    assert run_child(killed, 30, 20) == -signal.SIGKILL
    asked = journal(killed)
    assert len(asked) == 24
    (killed / "journal").write_text("")  # so that the same settings do not kill it again
    die = readout(killed / "journal", die_after=20)
    ask_items(CANDIDATE, made_items(30), die, SCORING, store=Store(killed / "store"))
    ask_items(CANDIDATE, made_items(30), readout(tmp_path / "journal"), SCORING, store=Store(tmp_path / "whole"))
    assert sorted(asked[:16] + journal(killed)) == sorted(journal(tmp_path))
    names = Store(killed / "store").names("answers")
    values = [Store(killed / "store").get(name).tensors["value"] for name in names]
    assert len(names) == 4
    assert sum(len(value) for value in values) == 60


@pytest.mark.parametrize("change", ["model", "items", "settings", "scoring", "parents"])
def test_the_name_of_answers_covers_what_they_depend_on(tmp_path: Path, change: str) -> None:
    items, chosen = made_items(4), readout(tmp_path / "journal")
    name = answers_lineage(CANDIDATE, items, chosen, SCORING).name
    other: dict[str, tuple[Any, ...]] = {
        "model": (replace(CANDIDATE, digest="cd" * 32), items, chosen, SCORING),
        "items": (CANDIDATE, [*items[:3], replace(items[3], labels={"even": 5})], chosen, SCORING),
        "settings": (CANDIDATE, items, readout(tmp_path / "journal", more=1), SCORING),
        "scoring": (CANDIDATE, items, chosen, ScoringSettings(max_tokens=7)),
        "parents": (replace(CANDIDATE, parents=("ef" * 32,)), items, chosen, SCORING),
    }
    assert answers_lineage(*other[change]).name != name


def test_answers_are_purged_with_the_model(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    lineage = Lineage(kind="checkpoint", parents=(), examples=("a",), contents="0" * 64, inputs=(), settings={})
    model = store.put(lineage, {"weights": torch.zeros(1)})
    candidate = replace(CANDIDATE, parents=(model,))
    ask_items(candidate, made_items(9), readout(tmp_path / "journal"), SCORING, store=store)
    assert len(store.names("answers")) == 2
    store.purge(store.find(["a"]))
    assert store.names() == ()


@given(st.lists(st.tuples(texts, st.integers(-1, 5), st.floats(allow_nan=True), texts), max_size=6), st.booleans())
def test_answers_survive_being_tensors(rows: list[tuple[str, int, float, str]], vectors: bool) -> None:
    made = [Answer(name, option, value, 3, text) for name, option, value, text in rows]
    held = np.ones((len(rows), 2), dtype=np.float32) if vectors else None
    before = answers_of(made, held)
    after = from_tensors(to_tensors(before))
    pd.testing.assert_frame_equal(after.frame, before.frame, check_dtype=False)
    assert (after.vectors is None) == (held is None)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=40), st.integers(1, 9))
def test_chunks_hold_every_item_once(contexts: list[str], size: int) -> None:
    items = [Item(f"{number}", text, (), "") for number, text in enumerate(contexts)]
    chunks = [*chunks_of(items, size)]
    assert sorted(item.item_id for chunk in chunks for item in chunk) == sorted(item.item_id for item in items)
    lengths = [len(item.context) for chunk in chunks for item in chunk]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(chunk) == size for chunk in chunks[:-1])


def test_answers_of_other_columns_are_refused() -> None:
    with pytest.raises(DataError, match="value not found"):
        Answers(pd.DataFrame(columns=[name for name in ANSWERS if name != "value"]))
    with pytest.raises(DataError, match="a vector for each of 0 answers, got 1"):
        Answers(pd.DataFrame(columns=list(ANSWERS)), np.zeros((1, 2)))


def test_a_table_without_items_names_what_was_wrong() -> None:
    with pytest.raises(DataError, match="of 1: no blank"):
        ItemTable((), (Malformed("a", "no blank"),))
    item = Item("a", "", (), "")
    with pytest.raises(DataError, match="'a' twice"):
        ItemTable((item,), (Malformed("a", "no blank"),))


def test_a_digest_of_items_sees_every_field() -> None:
    item = Item("a", "c", ("x", "y"), "k", {"group": "g"})
    others = [
        replace(item, item_id="b"),
        replace(item, context=""),
        replace(item, options=("y", "x")),
        replace(item, cluster=""),
        replace(item, labels={"group": None}),
    ]
    assert len({items_digest([each]) for each in [item, *others]}) == 6


def made_benchmark(place: Path, **changes: Any) -> Benchmark:
    values: dict[str, Any] = {
        "name": "made",
        "title": "Made",
        "load": lambda files: ItemTable(made_items(12)),
        "readouts": (readout(place / "journal"),),
        "metrics": (),
        "source": "",
        "licence": "",
        "criticism": "",
    }
    return Benchmark(**{**values, **changes})


def test_malformed_rows_stay_in_the_table(tmp_path: Path) -> None:
    table = ItemTable(made_items(12), (Malformed("row-5", "two blanks"),))
    found = evaluate(
        CANDIDATE, made_benchmark(tmp_path), readout(tmp_path / "journal"), table, SCORING, store=Store(tmp_path / "s")
    )
    assert found.scores["state"].tolist() == [SCORED] * 12 + [MALFORMED]
    assert found.scores.iloc[-1][["item_id", "reason"]].tolist() == ["row-5", "two blanks"]
    assert found.scores["label:even"].notna().sum() == 12
    assert with_malformed(found.scores, ItemTable(table.items)) is found.scores


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    benchmark = made_benchmark(tmp_path)
    with pytest.raises(ConfigError, match="asks models of kind classifier, not masked"):
        benchmark.readout(MASKED)
    with pytest.raises(ConfigError, match="no readout 'mode' for classifier models"):
        benchmark.readout(CLASSIFIER, "mode")


def as_it_is(items: Any, answers: Answers) -> Answers:
    return answers


def test_a_missing_rater_is_named(tmp_path: Path) -> None:
    chosen = replace(readout(tmp_path / "journal"), rater="toxicity")
    table, store = ItemTable(made_items(2)), Store(tmp_path / "store")
    with pytest.raises(ConfigError, match="set toxicity=<model>"):
        evaluate(CANDIDATE, made_benchmark(tmp_path), chosen, table, SCORING, store=store)
    found = evaluate(
        CANDIDATE, made_benchmark(tmp_path), chosen, table, SCORING, store=store, rate=lambda _, told: told
    )
    assert len(found.scores) == 2


def test_empty_texts_have_no_rating(tmp_path: Path) -> None:
    seen: list[str] = []

    def classify(texts: Any) -> np.ndarray:
        seen.extend(texts)
        return np.array([[1 - len(text) / 10, len(text) / 10] for text in texts])

    rater = Candidate("rater", "12" * 32, CLASSIFIER, classify=classify, classes=("fine", "toxic"))
    answers = answers_of(
        [Answer("a", 0, 0.0, text="abc"), Answer("b", 0, 0.0, text=" "), Answer("c", 0, 0.0, text="d")]
    )
    store = Store(tmp_path / "store")
    frame = rated(answers, rater, SCORING, store=store).frame
    np.testing.assert_allclose(frame[f"{RATING}toxic"], [0.3, np.nan, 0.1])
    np.testing.assert_allclose(rated(answers, rater, SCORING, store=store).frame[f"{RATING}fine"], [0.7, np.nan, 0.9])
    assert seen == ["abc", "d"]
    with pytest.raises(ConfigError, match="to be a classifier"):
        rated(answers, CANDIDATE, SCORING, store=store)


@given(st.integers(1, 40), st.integers(0, 3))
def test_a_limit_keeps_clusters_whole(limit: int, seed: int) -> None:
    table = ItemTable(made_items(40), (Malformed("bad", "why"),))
    part = limited(table, limit, seed)
    assert len(part.items) >= min(limit, 40)
    assert part.malformed == table.malformed
    kept = {item.cluster for item in part.items}
    assert part.items == tuple(item for item in table.items if item.cluster in kept)
    assert limited(table, limit, seed) == part


def test_a_score_of_unknown_column_is_refused() -> None:
    with pytest.raises(DataError, match="got 'score'"):
        score_row(made_items(1)[0], score=1.0)
