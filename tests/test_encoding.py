from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.data.encoding import Inputs, encode_examples
from fairsisa.data.summary import describe_examples
from fairsisa.errors import DataError
from fairsisa.lineage import content_digest
from fairsisa.tables import Examples

WORDS = ("a", "bb", "ccc", "dddd")
texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), min_size=2, max_size=12)


class WordTokenizer:
    """Every word becomes its length; what it was called with is kept."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, text: list[str], *, truncation: bool, max_length: int, padding: bool
    ) -> dict[str, list[list[int]]]:
        self.calls.append({"text": text, "truncation": truncation, "max_length": max_length, "padding": padding})
        return {"input_ids": [[len(word) for word in line.split()][:max_length] for line in text]}


def text_examples(lines: list[str]) -> Examples:
    frame = pd.DataFrame(
        {
            "example_id": [f"e{row}" for row in range(len(lines))],
            "subject_id": [f"s{row}" for row in range(len(lines))],
            "label": [row % 2 for row in range(len(lines))],
            "split": "train",
            "text": lines,
        }
    )
    return Examples("texts", frame, ("no", "yes"))


def table_examples() -> Examples:
    frame = pd.DataFrame(
        {
            "example_id": ["a", "b", "c"],
            "subject_id": ["s", "s", "t"],
            "label": [1, 0, 1],
            "split": ["train", "train", "test"],
            "feature:x": np.array([0.5, -1.0, 2.0], dtype=np.float32),
            "feature:y": np.array([1, 2, 3], dtype=np.float32),
            "sensitive:region": ["north", None, "south"],
        }
    )
    return Examples("table", frame, ("bad", "good"))


def encoded(lines: list[str]) -> Inputs:
    return encode_examples(text_examples(lines), WordTokenizer(), max_length=4)


def by_words(line: str) -> list[int]:
    return [len(word) for word in line.split()][:4]


@given(texts)
def test_each_row_holds_its_own_tokens(lines):
    inputs = encoded(lines)
    assert len(inputs) == len(lines)
    assert [inputs.row_tokens(row).tolist() for row in range(len(lines))] == [by_words(line) for line in lines]
    assert inputs.lengths.tolist() == [len(by_words(line)) for line in lines]
    assert inputs.offsets.tolist() == [sum(inputs.lengths[:row]) for row in range(len(lines) + 1)]
    assert (inputs.tokens.dtype, inputs.offsets.dtype, inputs.labels.dtype) == (np.int32, np.int64, np.int64)
    assert inputs.labels.tolist() == [row % 2 for row in range(len(lines))]


@given(texts, st.data())
def test_taken_rows_come_in_the_order_asked_for(lines, data):
    inputs = encoded(lines)
    rows = data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=10))
    taken = inputs.take(rows)
    assert taken.example_ids == tuple(f"e{row}" for row in rows)
    assert [taken.row_tokens(place).tolist() for place in range(len(rows))] == [by_words(lines[row]) for row in rows]
    assert taken.labels.tolist() == [row % 2 for row in rows]
    assert taken.contents == tuple(inputs.contents[row] for row in rows)
    assert (taken.tokens.dtype, taken.offsets[0], taken.offsets[-1]) == (np.int32, 0, len(taken.tokens))


@given(texts, st.data())
def test_taking_twice_is_taking_once(lines, data):
    inputs = encoded(lines)
    first = data.draw(st.permutations(range(len(lines))))
    second = data.draw(st.lists(st.sampled_from(range(len(lines))), max_size=6))
    twice, once = inputs.take(first).take(second), inputs.take([first[row] for row in second])
    assert (twice.example_ids, twice.contents) == (once.example_ids, once.contents)
    assert np.array_equal(twice.tokens, once.tokens)
    assert np.array_equal(twice.offsets, once.offsets)


def test_every_text_is_tokenised_once_and_cut_but_not_padded():
    tokenizer, lines = WordTokenizer(), ["a bb ccc dddd a", "bb"]
    inputs = encode_examples(text_examples(lines), tokenizer, max_length=4)
    assert tokenizer.calls == [{"text": lines, "truncation": True, "max_length": 4, "padding": False}]
    assert inputs.lengths.tolist() == [4, 1]


def test_the_digest_of_an_example_is_that_of_its_text_and_label():
    inputs = encoded(["a bb", "ccc"])
    assert inputs.contents == (content_digest("a bb", 0), content_digest("ccc", 1))


def test_features_are_the_table_as_it_is():
    inputs = encode_examples(table_examples(), None, max_length=128)
    assert inputs.features.tolist() == [[0.5, 1.0], [-1.0, 2.0], [2.0, 3.0]]
    assert (inputs.features.dtype, inputs.lengths.tolist()) == (np.float32, [1, 1, 1])
    assert inputs.contents[2] == content_digest(np.array([2.0, 3.0], dtype=np.float32), 1)
    taken = inputs.take(np.array([2, 0]))
    assert taken.features.tolist() == [[2.0, 3.0], [0.5, 1.0]]
    assert (taken.example_ids, taken.labels.tolist()) == (("c", "a"), [1, 1])


def test_features_take_the_place_of_tokens():
    inputs = encoded(["a bb", "ccc"]).with_features(np.arange(6, dtype=np.float64).reshape(3, 2).T[:, ::-1])
    assert (inputs.tokens, inputs.offsets, inputs.features.dtype) == (None, None, np.float32)
    assert inputs.features.tolist() == [[4.0, 2.0, 0.0], [5.0, 3.0, 1.0]]
    assert inputs.features.flags.c_contiguous
    assert inputs.contents == encoded(["a bb", "ccc"]).contents
    assert inputs.lengths.tolist() == [1, 1]


def test_features_hold_no_tokens():
    with pytest.raises(DataError, match="Expected inputs that hold tokens, got features"):
        encode_examples(table_examples(), None, max_length=2).row_tokens(0)


def test_texts_need_a_tokenizer():
    with pytest.raises(DataError, match="texts holds texts: choose a text model"):
        encode_examples(text_examples(["a", "bb"]), None, max_length=8)


def test_a_text_that_becomes_no_token_is_named():
    def tokenizer(text: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[] if line == "bb" else [1] for line in text]}

    with pytest.raises(DataError, match=r"2 texts become no token at all; the first is example 'e1'"):
        encode_examples(text_examples(["a", "bb", "bb"]), tokenizer, max_length=8)


def test_a_tokenizer_that_loses_a_text_is_refused():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        encode_examples(text_examples(["a", "bb"]), lambda text, **options: {"input_ids": [[1]]}, max_length=8)


def test_a_corpus_is_described_by_its_counts():
    assert describe_examples(table_examples()) == [
        {"of": "all", "value": "", "train": "2", "calibration": "0", "test": "1"},
        {"of": "class", "value": "bad", "train": "1", "calibration": "0", "test": "0"},
        {"of": "class", "value": "good", "train": "1", "calibration": "0", "test": "1"},
        {"of": "region", "value": "(unknown)", "train": "1", "calibration": "0", "test": "0"},
        {"of": "region", "value": "north", "train": "1", "calibration": "0", "test": "0"},
        {"of": "region", "value": "south", "train": "0", "calibration": "0", "test": "1"},
    ]


@given(texts, st.data())
def test_what_a_teacher_says_follows_its_example(lines, data):
    plain = encode_examples(text_examples(lines), WordTokenizer(), max_length=4)
    said = np.arange(3.0 * len(lines)).reshape(len(lines), 3)
    inputs = plain.with_targets(said)
    rows = data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=8))
    features = np.zeros((len(lines), 2))
    for taken in (
        inputs.take(rows),
        inputs.with_features(features).take(rows),
        inputs.take(rows).with_features(features[rows]),
    ):
        assert taken.targets.dtype == np.float32
        assert np.array_equal(taken.targets, said[rows])
        assert taken.example_ids == plain.take(rows).example_ids
    assert plain.targets is plain.take(rows).targets is plain.with_features(features).targets is None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros((2, 2)), r"for each of 3 examples, got shape \(2, 2\): score"),
        (np.zeros(3), r"got shape \(3,\): score"),
        (np.full((3, 2), np.nan), r"got shape \(3, 2\) with NaN or infinity: score the same examples anew"),
    ],
)
def test_targets_of_other_examples_are_refused(targets, message):
    with pytest.raises(DataError, match=message):
        encode_examples(table_examples(), None, max_length=4).with_targets(targets)


@given(st.lists(st.tuples(st.sampled_from(["train", "test", "calibration"]), st.booleans()), max_size=60))
def test_the_counts_of_classes_add_up(rows):
    rows = [("train", True), ("train", False), *rows]
    frame = pd.DataFrame(
        {
            "example_id": [f"e{row}" for row in range(len(rows))],
            "subject_id": "s",
            "label": [int(label) for _, label in rows],
            "split": [split for split, _ in rows],
            "text": "t",
        }
    )
    total, *classes = describe_examples(Examples("made", frame, ("no", "yes")))
    for split, count in Counter(split for split, _ in rows).items():
        assert int(total[split]) == count == sum(int(row[split]) for row in classes)


def test_thousands_are_set_apart():
    frame = pd.concat([text_examples(["a", "bb"]).frame] * 600, ignore_index=True)
    frame["example_id"] = [f"e{row}" for row in range(len(frame))]
    assert describe_examples(Examples("many", frame, ("no", "yes")))[0]["train"] == "1,200"
