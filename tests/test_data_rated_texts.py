from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.cli.composing import compose
from fairsisa.data.rated_texts import (
    REGARD_CLASSES,
    REGARD_FILES,
    TOXICITY_CLASSES,
    TWEETS_FILE,
    RatedText,
    gender_of,
    load_regard,
    load_toxicity,
    parse_hate,
    parse_regard,
    parse_tweets,
    regard_examples,
    toxicity_examples,
)
from fairsisa.errors import ChecksumError, DataError
from fairsisa.tables import Examples

HEAD = ["", "count", "hate_speech", "offensive_language", "neither", "class", "tweet"]
words = st.text("abc ,\"'\n\té", min_size=1).filter(str.strip)


def hate_list(*rows: tuple[Any, ...]) -> bytes:
    keys = ("id", "text", "label", "target_groups")
    return json.dumps([dict(zip(keys, row, strict=True)) for row in rows]).encode()


@pytest.fixture(scope="module")
def toxicity(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return load_toxicity(root=data_root, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def regard(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return load_regard(root=data_root, cache=tmp_path_factory.mktemp("cache"))


# Made rows


@given(st.lists(st.tuples(st.sampled_from("012"), words), max_size=6))
def test_tweets_come_back_whatever_they_hold(rows: list[tuple[str, str]]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerows([HEAD, *([n, 3, 0, 0, 3, label, text] for n, (label, text) in enumerate(rows))])
    found = [*parse_tweets(stream.getvalue().encode())]
    assert [(each.text_id, each.text) for each in found] == [
        (f"davidson-{n}", text) for n, (_, text) in enumerate(rows)
    ]
    assert [each.label for each in found] == [int(label != "2") for label, _ in rows]


@pytest.mark.parametrize(
    ("named", "group"),
    [
        (["women"], "women"),
        (["asian", "chinese"], "chinese"),
        (["mexican", "latino"], "mexican"),
        (["asian", "women"], "several"),
        (["asian", "chinese", "black"], "several"),
    ],
)
def test_a_statement_s_group_is_the_narrowest_one(named: list[str], group: str) -> None:
    content = hate_list((5, "a statement", "hate", named), (7, "another", "neutral", named))
    first, second = parse_hate(content, "toxigen")
    assert first == RatedText("toxigen-5", "a statement", 1, "toxigen", group)
    assert (second.text_id, second.label) == ("toxigen-7", 0)
    assert next(iter(parse_hate(content, "implicit_hate"))).target_group is None


def test_regard_reads_quotes_as_text() -> None:
    content = b'-1\tXYZ was "odd\n0\tXYZ had a job, as a "clerk"\n1\tXYZ was kind\n'
    found = [*parse_regard(content, "dev")]
    assert [each.label for each in found] == [0, 1, 2]
    assert [each.text for each in found] == ['XYZ was "odd', 'XYZ had a job, as a "clerk"', "XYZ was kind"]
    assert [each.text_id for each in found] == ["regard-dev-001", "regard-dev-002", "regard-dev-003"]
    examples = regard_examples(found)
    assert examples.sensitive("bias_context").tolist() == ["respect", "occupation", "respect"]
    assert set(examples.frame["split"]) == {"calibration"}


@pytest.mark.parametrize(
    ("text", "gender"),
    [("XYZ said She sang", "female"), ("his boat", "male"), ("he and she", None), ("the sheep", None), ("", None)],
)
def test_gender_is_that_of_the_pronouns(text: str, gender: str | None) -> None:
    assert gender_of(text) == gender


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (lambda: parse_hate(hate_list((3, "x", "hateful", ["women"])), "toxigen"), "'hateful' for 'toxigen-3'"),
        (lambda: parse_regard(b"2\tXYZ was", "train"), "toxicity|regard: .*-1, 0, 1, got '2' for 'regard-train-001'"),
        (lambda: parse_tweets(b",class,tweet\n8,3,x\n"), "a label of 0, 1, 2, got '3' for 'davidson-8'"),
    ],
)
def test_an_unknown_label_is_named(parse: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(parse())


rated = st.lists(words, min_size=4, max_size=12).map(
    lambda texts: [RatedText(f"id-{n}", text, n % 2, "toxigen", "women") for n, text in enumerate(texts)]
)


@given(rated, st.data())
def test_equal_texts_share_a_split_and_nobody_else_moves(rows: list[RatedText], data: st.DataObject) -> None:
    rows = [*rows, *(replace(row, text_id=f"again-{row.text_id}") for row in rows[::2])]
    frame = toxicity_examples(rows).frame
    assert frame.groupby("text")["split"].nunique().max() == 1
    assert frame.groupby("text")["subject_id"].nunique().max() == 1
    text = data.draw(st.sampled_from(frame["text"].unique().tolist()))
    left = [row for row in rows if row.text != text]
    if {row.label for row in left} == {0, 1}:
        kept = toxicity_examples(left).frame
        assert kept["split"].tolist() == frame.loc[frame["text"] != text, "split"].tolist()


# The published files


@pytest.mark.real_data
def test_toxicity_holds_the_published_numbers(toxicity: Examples) -> None:
    assert toxicity.classes == TOXICITY_CLASSES
    source = toxicity.sensitive("source")
    assert Counter(source.tolist()) == {"davidson": 24_783, "toxigen": 6_514, "implicit_hate": 14_200}
    toxic = Counter(source[toxicity.labels == 1].tolist())
    assert toxic == {"davidson": 1_430 + 19_190, "toxigen": 2_767, "implicit_hate": 7_100}


@pytest.mark.real_data
def test_the_thirteen_groups_of_toxigen_are_the_sensitive_feature(toxicity: Examples) -> None:
    groups, source = toxicity.sensitive("target_group"), toxicity.sensitive("source")
    counts = Counter(groups[source == "toxigen"].tolist())
    assert len(set(counts) - {"several"}) == 13
    assert counts["several"] < 200
    assert all(count > 200 for group, count in counts.items() if group != "several")
    assert set(groups[source != "toxigen"].tolist()) == {None}


@pytest.mark.real_data
def test_splits_of_toxicity_are_dealt_as_elsewhere(toxicity: Examples) -> None:
    shares = toxicity.frame["split"].value_counts(normalize=True)
    assert np.allclose(shares[["train", "calibration", "test"]], [0.6, 0.2, 0.2], atol=0.01)
    by_text = toxicity.frame.groupby("text")
    assert by_text["split"].nunique().max() == 1
    assert len(toxicity) - by_text.ngroups > 80


@pytest.mark.real_data
def test_regard_has_the_official_split(regard: Examples) -> None:
    assert regard.classes == REGARD_CLASSES
    table = regard.frame.groupby(["split", "label"]).size().to_dict()
    expected = {"train": (80, 67, 65), "calibration": (28, 15, 17), "test": (9, 11, 10)}
    assert table == {(split, label): n for split, counts in expected.items() for label, n in enumerate(counts)}
    repeated = regard.frame[regard.frame["text"].duplicated(keep=False)]
    assert repeated["example_id"].tolist() == ["regard-train-172", "regard-test-008"]
    assert repeated["subject_id"].tolist() == ["regard-train-172"] * 2
    assert regard.frame["text"].str.contains("XYZ").all()
    assert Counter(regard.sensitive("bias_context").tolist())["respect"] == 113 + 30 + 11


@pytest.mark.real_data
def test_regard_has_nothing_of_the_file_that_is_left_out(regard: Examples, data_root: Path) -> None:
    lines = (data_root / "nlg_bias" / "regard" / "train_other.tsv").read_text(encoding="utf-8").split("\n")
    other = {line.partition("\t")[2] for line in lines if line.startswith("2\t")}
    assert len(other) == 23
    assert not other & set(regard.frame["text"])
    repeated = {line.partition("\t")[2] for line in lines if line} - other
    assert repeated == set(regard.split("train")["text"])


def test_another_file_is_refused(tmp_path: Path) -> None:
    for source in (REGARD_FILES["train"], TWEETS_FILE):
        place = tmp_path / source.plain_path
        place.parent.mkdir(parents=True)
        place.write_bytes(b"0\tXYZ was\n")
    with pytest.raises(ChecksumError, match=r"regard/train\.tsv: expected content with sha256"):
        load_regard(root=tmp_path, cache=tmp_path)
    with pytest.raises(ChecksumError, match=r"labeled_data\.csv: expected content with sha256"):
        load_toxicity(root=tmp_path, cache=tmp_path)


@pytest.mark.parametrize("name", ["toxicity", "regard"])
def test_a_rater_gives_probabilities_and_not_the_vote_of_one_model(name):
    config = compose("train", [f"experiment={name}_rater"])
    assert config["data"]["name"] == name
    assert config["evaluation"]["aggregation"] == "mean_score"
