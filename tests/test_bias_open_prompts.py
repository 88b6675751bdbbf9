from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bias_models import tiny_llama
from fairsisa.bias.answers import Answer, Answers, answers_of
from fairsisa.bias.benchmark import NOT_SCORED, SCORED, Columns, Files, Judge, Metric
from fairsisa.bias.benchmarks import bold, real_toxicity, regard
from fairsisa.bias.benchmarks.regard import masked_sentence
from fairsisa.bias.benchmarks.text_quality import quality, words
from fairsisa.bias.items import Item
from fairsisa.bias.measuring import measure
from fairsisa.bias.metrics import by_replicate, difference_between
from fairsisa.errors import DataError
from fairsisa.intervals import Bootstrap
from fairsisa.settings import ScoringSettings

WORDS = st.lists(st.sampled_from(["tea", "is", "hot", "and", "cold"]), max_size=15)
REGARDS = ("negative", "neutral", "positive")


@given(WORDS)
def test_quality_is_counted_by_hand(read: list[str]) -> None:
    found = quality([" ".join(read).capitalize() + "!"])
    fours = [tuple(read[start : start + 4]) for start in range(len(read) - 3)]
    seen: set[tuple[str, ...]] = set()
    repeated = sum(four in seen or bool(seen.add(four)) for four in fours)
    assert found["label:num_words"] == len(read)
    assert found["label:distinct_words"] == pytest.approx(len(set(read)) / len(read) if read else math.nan, nan_ok=True)
    assert found["label:repetition"] == pytest.approx(repeated / len(fours) if fours else math.nan, nan_ok=True)


def test_words_keep_apostrophes_and_hyphens() -> None:
    assert words("It's well-known: 3 na\u00efve _owls_ -- oh!") == [
        "it's",
        "well-known",
        "3",
        "na\u00efve",
        "owls",
        "oh",
    ]


def test_quality_averages_over_the_texts_that_have_it() -> None:
    found = quality(["a b", "", "a a a a a"])
    assert found["label:num_words"] == pytest.approx(7 / 3)
    assert found["label:distinct_words"] == pytest.approx((1 + 1 / 5) / 2)
    assert found["label:repetition"] == pytest.approx(1 / 2)
    assert found["label:num_continuations"] == 3


def _rated(ratings: dict[str, list[Sequence[float]]], classes: Sequence[str]) -> Answers:
    rows = [(name, number, row) for name, found in ratings.items() for number, row in enumerate(found)]
    frame = answers_of(Answer(name, number, 0.0, text="so it is") for name, number, _ in rows).frame
    columns = {f"rating:{each}": [row[place] for _, _, row in rows] for place, each in enumerate(classes)}
    return Answers(frame.assign(**columns))


def _items(*names: str, **labels: Any) -> list[Item]:
    return [Item(name, "?", (), name, {"group": name[0], "domain": "d", **labels}) for name in names]


def _values(scores: pd.DataFrame, metrics: Sequence[Metric]) -> pd.Series:
    return measure(scores, metrics, bootstrap=Bootstrap(10)).set_index("metric")["value"]


TOXIC = {"a1": [0.2, 0.6, 0.1], "a2": [0.5, math.nan, 0.3], "b1": [0.1, 0.2, 0.0], "b2": [math.nan] * 3}


def _toxic_answers() -> Answers:
    return _rated({name: [(1 - p, p) for p in found] for name, found in TOXIC.items()}, ("not_toxic", "toxic"))


def test_toxicity_of_prompts_is_gehmans() -> None:
    scores = real_toxicity.judge(_items(*TOXIC, prompt="toxic"), _toxic_answers())
    assert scores["state"].tolist() == [SCORED] * 4
    assert scores["answer"].tolist() == ["toxic", "toxic", "not toxic", "no rating"]
    assert scores["value"].isna().tolist() == scores["outcome"].isna().tolist() == [False, False, False, True]
    found = _values(scores, real_toxicity.BENCHMARKS[0].metrics)
    assert found["expected_maximum_toxicity"] == pytest.approx((0.6 + 0.5 + 0.2) / 3)
    assert found["toxicity_probability"] == pytest.approx(200 / 3)
    assert found["mean_toxicity"] == pytest.approx((0.3 + 0.4 + 0.1) / 3)
    assert found["toxic_share"] == pytest.approx(100 * (1 / 3 + 1 / 2 + 0) / 3)
    assert found["texts_rated"] == pytest.approx(100 * 8 / 12)
    assert found["scored"] == 100


def test_what_no_rater_saw_is_not_scored() -> None:
    answers = answers_of([Answer("a1", 0, 0.0, text="hm")])
    for judge in (real_toxicity.judge, bold.judge_toxicity, bold.judge_regard, regard.judge):
        scores = judge(_items("a1", "a2", prompt="toxic", context="c"), answers)
        assert scores["reason"].tolist() == ["no text has a rating", "no answer"]
    metrics = (*real_toxicity.BENCHMARKS[0].metrics, *regard.BENCHMARKS[0].metrics, *bold.METRICS)
    scores = bold.judge_regard(_items("a1"), answers).assign(**{"label:mean_toxicity": math.nan})
    assert _values(scores, metrics).drop("scored").isna().all()


TOXICITIES, MEANS = ("not_toxic", "toxic"), {"mean_toxicity": 0.6, "toxic_share": 100.0}


@pytest.mark.parametrize(
    ("judge", "metrics", "classes", "rating", "means"),
    [
        (
            real_toxicity.judge,
            real_toxicity.BENCHMARKS[0].metrics,
            TOXICITIES,
            (0.4, 0.6),
            MEANS | {"expected_maximum_toxicity": 0.6, "toxicity_probability": 100.0},
        ),
        (bold.judge_toxicity, bold.METRICS, TOXICITIES, (0.4, 0.6), MEANS | {"toxicity_difference": 0.0}),
        (bold.judge_regard, bold.METRICS, REGARDS, (0.6, 0.3, 0.1), {"mean_regard": -1.0, "negative_regard": 100.0}),
        (
            regard.judge,
            regard.BENCHMARKS[0].metrics,
            REGARDS,
            (0.6, 0.3, 0.1),
            {"mean_regard": -1.0, "negative_regard": 100.0, "regard_difference": 0.0},
        ),
    ],
)
def test_an_empty_text_counts_among_the_texts_and_in_no_mean_of_ratings(
    judge: Judge, metrics: Sequence[Metric], classes: Sequence[str], rating: Sequence[float], means: dict[str, float]
) -> None:
    # 40 prompts of one text each: 36 are empty, 4 hold three words. One more could not be asked.
    items = _items(*(f"{'ab'[number % 2]}{number}" for number in range(41)), prompt="toxic", context="c")
    said = ["so it is" if number < 4 else "" for number in range(40)]
    told = [Answer(item.item_id, 0, 0.0, text=text) for item, text in zip(items, said, strict=False)]
    frame = answers_of([*told, Answer(items[-1].item_id, 0, math.nan, reason="the prompt holds no token")]).frame
    columns = {
        f"rating:{name}": [share if text else math.nan for text in [*said, ""]]
        for name, share in zip(classes, rating, strict=True)
    }
    scores = judge(items, Answers(frame.assign(**columns)))
    assert scores["state"].tolist() == [SCORED] * 40 + [NOT_SCORED]
    assert scores["reason"].tolist() == [""] * 40 + ["the prompt holds no token"]
    assert scores[["value", "outcome"]].notna().sum().tolist() == [4, 4]
    found = _values(scores, metrics)
    assert found["texts_rated"] == pytest.approx(100 * 4 / 40)
    assert found["scored"] == pytest.approx(100 * 40 / 41)
    assert found[[*means]].to_dict() == pytest.approx(means)
    if "words_per_text" in found:
        assert found["words_per_text"] == pytest.approx(4 * 3 / 40)
        assert found["distinct_words"] == 1.0
    none = judge(items[4:], Answers(frame.assign(**columns)))
    found = _values(none, metrics)
    assert found["texts_rated"] == 0
    assert found[[*means]].isna().all()


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("not_toxic", "toxic"), "rating:toxic"),
        (("toxic", "severe_toxic", "obscene"), "rating:toxic"),
        (("Toxicity",), "rating:Toxicity"),
        (("non-rude", "rude"), "rating:rude"),
        (("hate", "normal", "offensive"), "rating:hate"),
        ((), None),
    ],
)
def test_the_toxic_class_is_found(classes: tuple[str, ...], expected: str | None) -> None:
    assert (
        real_toxicity.toxic_column(pd.DataFrame(columns=["text", *(f"rating:{each}" for each in classes)])) == expected
    )


@pytest.mark.parametrize("classes", [("cat", "dog"), ("not_a", "not_b"), ("negative", "neutral", "positive")])
def test_a_rater_of_something_else_is_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=f"a class toxic, got {', '.join(classes)}"):
        real_toxicity.toxic_column(pd.DataFrame(columns=[f"rating:{each}" for each in classes]))


def test_regard_counts_the_likeliest_class() -> None:
    low, plain, high, none = (0.6, 0.3, 0.1), (0.2, 0.5, 0.3), (0.1, 0.2, 0.7), (math.nan,) * 3
    answers = _rated({"a1": [low, high, high], "a2": [low, low, plain], "b1": [plain, none], "b2": [none]}, REGARDS)
    scores = regard.judge(_items("a1", "a2", "b1", "b2", context="c"), answers)
    assert scores["value"].tolist() == pytest.approx([1 / 3, -2 / 3, 0.0, math.nan], nan_ok=True)
    assert scores["outcome"].tolist() == pytest.approx([0.0, 1.0, 0.0, math.nan], nan_ok=True)
    assert scores["answer"].tolist() == ["positive", "negative", "neutral", "no rating"]
    assert scores["state"].tolist() == [SCORED] * 4
    found = _values(scores, regard.BENCHMARKS[0].metrics)
    assert found["mean_regard"] == pytest.approx((1 / 3 - 2 / 3 + 0) / 3)
    assert found["negative_regard"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 0) / 3)
    assert found["regard_difference"] == pytest.approx(0 - (1 / 3 - 2 / 3) / 2)
    assert found["texts_rated"] == pytest.approx(100 * 7 / 9)


def test_a_further_class_of_regard_is_neutral() -> None:
    answers = _rated({"a1": [(0.1, 0.1, 0.1, 0.7)]}, (*REGARDS, "other"))
    assert regard.judge(_items("a1"), answers)["value"].tolist() == [0.0]
    with pytest.raises(DataError, match="classes negative, neutral, positive, got toxic, fine"):
        regard.judge(_items("a1"), _rated({"a1": [(0.1, 0.9)]}, ("toxic", "fine")))


NUMBER = st.one_of(st.just(math.nan), st.floats(-1, 1))
ROW = st.tuples(NUMBER, st.sampled_from(["x", "y", "z", None, ""]), st.sampled_from(["p", "q"]), st.integers(0, 3))


def _by_hand(rows: Columns) -> float:
    frame = pd.DataFrame({name: rows[name] for name in ("value", "label:group", "label:part")})
    frame = frame[frame["label:group"].notna() & (frame["label:group"] != "") & frame["value"].notna()]
    spreads = []
    for _, part in frame.groupby("label:part"):
        means = part.groupby("label:group")["value"].mean()
        spreads += [means.max() - means.min()] if len(means) > 1 else []
    return float(np.mean(spreads)) if spreads else math.nan


@given(st.lists(ROW, min_size=1, max_size=12))
def test_differences_between_groups_are_those_of_repeated_rows(rows: list[tuple[float, str | None, str, int]]) -> None:
    numbers, groups, parts, times = zip(*rows, strict=True)
    columns = {
        "value": np.array(numbers, dtype=np.float64),
        "label:group": np.array(groups, dtype=object),
        "label:part": np.array(parts, dtype=object),
        "cluster": np.arange(len(rows)),
    }
    weights = np.array([[1.0, float(each)] for each in times])
    found = difference_between("value", "group", within="part")(columns, weights)
    assert found == pytest.approx(by_replicate(_by_hand)(columns, weights), nan_ok=True, abs=1e-12)


def test_bold_compares_groups_within_domains() -> None:
    items = _items("a1", "a2", "b1")
    scores = bold.judge_toxicity(items, _toxic_answers())
    found = _values(scores, bold.METRICS)
    assert found["toxicity_difference"] == pytest.approx((0.3 + 0.4) / 2 - 0.1)
    assert np.isnan(found["mean_regard"])
    by_regard = _rated({"a1": [(0.9, 0.1, 0.0)], "a2": [(0.0, 0.1, 0.9)], "b1": [(0.0, 0.2, 0.8)]}, REGARDS)
    found = _values(bold.judge_regard(items, by_regard), bold.METRICS)
    assert found["regard_difference"] == pytest.approx(1.0)
    assert found["negative_regard"] == pytest.approx(100 / 3)
    assert np.isnan(found["mean_toxicity"])


def test_a_sentence_is_masked_up_to_its_first_stop() -> None:
    masked = masked_sentence("The owl was known for", "The owl", " its hat. The owl slept.")
    assert masked == "XYZ was known for its hat."
    assert masked_sentence("The owl worked as", "The owl", " a guard, The owl") == "XYZ worked as a guard, XYZ"


def _bold_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> Files:
    raw = json.dumps(content).encode()
    source = replace(bold.SOURCES["race"], checksum=f"sha256:{hashlib.sha256(raw).hexdigest()}")
    path = tmp_path / source.path
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(raw))
    monkeypatch.setattr(bold, "SOURCES", {"race": source})
    return Files(tmp_path, tmp_path / "cache")


def test_empty_prompts_of_bold_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _bold_files(tmp_path, monkeypatch, {"Owls": {"Oz": ["Oz is a ", " "], "Ys": ["Ys has "]}})
    table = bold.load(files)
    assert {(item.item_id, item.context, item.cluster) for item in table.items} == {
        ("race/Owls/Oz/1", "Oz is a", "Oz"),
        ("race/Owls/Ys/1", "Ys has", "Ys"),
    }
    assert [(bad.item_id, bad.reason) for bad in table.malformed] == [("race/Owls/Oz/2", "the prompt is empty")]


def test_a_file_that_is_not_bold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _bold_files(tmp_path, monkeypatch, {"Owls": ["Oz is a"]})
    with pytest.raises(DataError, match="hold groups of entities with lists of prompts"):
        bold.load(files)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": {"text": " ", "toxicity": 0.1}}, "the prompt is empty"),
        ({"prompt": {"text": "Tea", "toxicity": None}}, "the prompt's toxicity is unknown"),
        ({}, "the prompt is empty"),
    ],
)
def test_prompts_without_text_or_toxicity_are_named(
    row: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"filename": "f", "challenging": True, "prompt": {"text": "Tea", "toxicity": 0.5}}
    raw = "\n".join(json.dumps(each) for each in (good, row)).encode()
    source = replace(real_toxicity.SOURCES["toxic"], checksum=f"sha256:{hashlib.sha256(raw).hexdigest()}")
    (tmp_path / source.path).parent.mkdir()
    (tmp_path / source.path).write_bytes(gzip.compress(raw))
    monkeypatch.setattr(real_toxicity, "SOURCES", {"toxic": source})
    table = real_toxicity.load(Files(tmp_path, tmp_path))
    assert table.items == (
        Item("toxic/1", "Tea", (), "f", {"prompt": "toxic", "prompt_toxicity": 0.5, "challenging": True}),
    )
    assert [(bad.item_id, bad.reason) for bad in table.malformed] == [("toxic/2", reason)]


@pytest.mark.real_data
def test_bold_is_drawn_evenly_and_nested(data_root: Path) -> None:
    files = Files(data_root, data_root)
    every = bold.load(files, per_group=None)
    assert (len(every.items), len(every.malformed)) == (23_674, 5)
    groups = pd.Series([(item.labels["domain"], item.labels["group"]) for item in every.items]).value_counts()
    assert len(groups) == 43
    drawn = bold.load(files)
    kept = pd.Series([(item.labels["domain"], item.labels["group"]) for item in drawn.items]).value_counts()
    assert kept.to_dict() == groups.clip(upper=50).to_dict()
    fewer = bold.load(files, per_group=5)
    assert {item.item_id for item in fewer.items} < {item.item_id for item in drawn.items}


@pytest.mark.real_data
def test_real_toxicity_prompts_are_toxic_by_their_score(data_root: Path) -> None:
    table = real_toxicity.load(Files(data_root, data_root))
    assert (len(table.items), len(table.malformed)) == (2396, 0)
    assert pd.Series([item.labels["prompt"] for item in table.items]).value_counts().to_dict() == {
        "toxic": 993,
        "not toxic": 1403,
    }
    assert sum(bool(item.labels["challenging"]) for item in table.items) == 1200


@pytest.mark.real_data
def test_regard_is_asked_about_a_masked_person(data_root: Path) -> None:
    table = regard.load(Files(data_root, data_root))
    assert len(table.items) == 60
    assert {item.labels["group"] for item in table.items} == {"Black", "White", "man", "woman", "gay", "straight"}
    # The published samples are 100 of each prompt.
    samples = gzip.decompress((data_root / "nlg_bias" / "small_gpt2_generated_samples.tsv.gz").read_bytes())
    starts = [item.context for item in table.items]
    counts = dict.fromkeys(starts, 0)
    for line in samples.decode().splitlines():
        found = [start for start in starts if line.startswith(start)]
        if found:
            counts[max(found, key=len)] += 1
    assert set(counts.values()) == {100}
    scoring = ScoringSettings(num_continuations=2, temperature=1.0, seed=1)
    readout = regard.BENCHMARKS[0].readout("causal")
    answers = readout.ask(tiny_llama(data_root), table.items[:3], scoring, {**readout.settings, "max_new_tokens": 8})
    assert answers.frame.groupby("item_id", sort=False).size().tolist() == [2, 2, 2]
    for item in table.items[:3]:
        texts = answers.frame.loc[answers.frame["item_id"] == item.item_id, "text"]
        masked = item.context.replace(str(item.labels["person"]), "XYZ")
        assert all(text.startswith(masked) and "\n" not in text for text in texts)
        assert all("." not in text[:-1] for text in texts)
