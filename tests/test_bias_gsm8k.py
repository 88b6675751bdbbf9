"""GSM8K: the number that a text ends with, its judgement, the real answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import gsm8k
from fairsisa.bias.items import Item


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 pens and buys 4, so 7.", "7"),
        ("#### 12", "12"),
        ("3 + 4 is 7\n#### 7\n#### 8 or 9", "8"),
        ("The total is $1,250.50.", "1250.5"),
        ("It falls to -3 degrees", "-3"),
        ("They lose -$5", "-5"),
        ("12 #### ", "12"),
        ("18.00", "18"),
        ("007", "7"),
        ("It is 0.0", "0"),
        ("half is .5", "0.5"),
        ("none at all", ""),
        ("", ""),
        ("1, 2, 3", "3"),
    ],
)
def test_the_last_number_counts_unless_one_is_marked(text, number):
    assert gsm8k.answer_in(text) == number


@settings(max_examples=60)
@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "{}.", "{}.00", "It is {:,} eggs.", "2 + 2\n#### {}"])
)
def test_however_an_integer_is_written_it_is_read(number, form):
    assert gsm8k.answer_in(form.format(number)) == str(number)


def problem(item_id: str, key: str) -> Item:
    return Item(item_id, "Question: how many?\nAnswer:", (), item_id, {"key": key})


def test_texts_are_judged_by_their_number():
    items = [problem("a", "7"), problem("b", "7"), problem("c", "7"), problem("d", "7"), problem("e", "7")]
    answers = answers_of(
        [
            Answer("a", 0, 0.0, 3, "so 7"),
            Answer("b", 0, 0.0, 3, "so 8"),
            Answer("c", 0, 0.0, 3, "I cannot tell"),
            Answer("d", 0, float("nan"), reason="the prompt holds no token"),
        ]
    )
    scores = gsm8k.judge_numbers(items, answers)
    assert scores["correct"].tolist()[:3] == [1.0, 0.0, 0.0]
    assert scores["answer"].tolist()[:3] == ["7", "8", ""]
    assert scores["state"].tolist() == ["scored"] * 3 + ["not_scored"] * 2
    assert scores["reason"].tolist()[3:] == ["the prompt holds no token", gsm8k.NO_TEXT]
    columns = {"answer": scores["answer"].to_numpy()[:3]}
    assert gsm8k.share_answered(columns, np.ones((3, 1))) == pytest.approx([200 / 3])


def test_of_several_texts_the_first_is_the_answer_and_all_make_the_share():
    answers = answers_of([Answer("a", 1, 0.0, 3, "7"), Answer("a", 0, 0.0, 3, "8"), Answer("a", 2, 0.0, 3, "7")])
    row = gsm8k.judge_numbers([problem("a", "7")], answers).iloc[0]
    assert (row["answer"], row["correct"]) == ("8", 0.0)
    assert row["value"] == pytest.approx(2 / 3)


@pytest.mark.real_data
def test_real_solutions_end_in_their_answers(data_root, tmp_path):
    files = Files(data_root, tmp_path)
    table = gsm8k.BENCHMARKS[0].load(files)
    assert len(table.items) == 1319
    assert not table.malformed
    rows = files.objects(gsm8k.PROBLEMS)
    keys = [item.labels["key"] for item in table.items]
    assert [gsm8k.answer_in(f"{row['chain_of_thought']}\n#### {row['answer']}") for row in rows] == keys
    # Without the mark, the last number of a worked solution is nearly always its answer.
    unmarked = [gsm8k.answer_in(row["chain_of_thought"]) == key for row, key in zip(rows, keys, strict=True)]
    assert np.mean(unmarked) > 0.97
