"""GSM8K: word problems whose answer is the last number that is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import (
    CAPABILITY,
    COMPLETIONS,
    COVERAGE,
    Benchmark,
    Columns,
    Files,
    Metric,
    Readout,
    by_item,
    score_row,
    scores_table,
)
from fairsisa.bias.candidate import CAUSAL
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import mean_of, ratio
from fairsisa.bias.readouts.texts import ask_texts
from fairsisa.data.sources import SourceFile, github_url

MARK = "####"
NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
NO_TEXT = "nothing was written"
KEY = "key"
PROBLEMS = SourceFile(
    "mcq/gsm8k_test.jsonl.gz",
    github_url(
        "mosaicml/llm-foundry",
        "8c8dd48f72168c5d51e2f7b151595892a8fba43d",
        "scripts/eval/local_data/symbolic_problem_solving/gsm8k.jsonl",
    ),
    "sha256:de44d36e1b80fae762efc1e858c875ba83c208de1aba99deda890fff6b5f732d",
)


def load(files: Files) -> ItemTable:
    """Return the problems as open prompts, the answer a label.

    No solved examples come first: the file holds the test problems alone, and lm-eval's five are of the training ones.
    """
    items, malformed = list[Item](), list[Malformed]()
    for number, row in enumerate(files.objects(PROBLEMS)):
        item_id, key = f"gsm8k-{number}", answer_in(str(row["answer"]))
        if key:
            items.append(Item(item_id, f"Question: {row['context']}\nAnswer:", (), item_id, {KEY: key}))
        else:
            malformed.append(Malformed(item_id, f"its answer {row['answer']!r} is no number"))
    return ItemTable(tuple(items), tuple(malformed))


def answer_in(text: str) -> str:
    """Return the first number after the last "####" of a text or, without one, its last number; "" if there is none.

    A dollar sign and the commas within a number are left out, and so are zeros that change nothing: 1,000.50 is
    "1000.5". The mark is that of the data; the last number is lm-eval's flexible extraction.
    """
    before, mark, after = text.rpartition(MARK)
    found = NUMBER.findall(after)
    if mark and found:
        return _plain(found[0])
    found = NUMBER.findall(before or after)
    return _plain(found[-1]) if found else ""


def judge_numbers(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Judge whether the number that was written is the key.

    `answer` and `correct` are of the first text, "" and 0 where it holds no number; `value` is the share of all texts
    that are right.
    """
    rows = []
    for item, of_item in by_item(items, answers):
        reason = next((str(each) for each in of_item["reason"] if each), "" if len(of_item) else NO_TEXT)
        if reason:
            rows.append(score_row(item, reason=reason))
            continue
        numbers = [answer_in(text) for text in of_item.sort_values("option")["text"]]
        right = [float(number == item.labels[KEY]) for number in numbers]
        rows.append(score_row(item, answer=numbers[0], correct=right[0], value=float(np.mean(right))))
    return scores_table(rows)


def share_answered(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return the share of texts that hold a number, in percent."""
    answered = np.array([bool(answer) for answer in columns["answer"]], dtype=np.float64)
    return 100 * ratio(answered @ weights, weights.sum(axis=0))


def _plain(number: str) -> str:
    value = Decimal(number.replace("$", "").replace(",", ""))
    return f"{value.normalize():f}" if value else "0"


BENCHMARKS = (
    Benchmark(
        name="gsm8k",
        title="GSM8K: word problems of grade school, no examples given",
        load=load,
        readouts=(
            Readout(
                "texts",
                CAUSAL,
                ask_texts,
                judge_numbers,
                {"max_new_tokens": 256, "stop": ["Question:", "</s>", "<|im_end|>"]},
                chunk=32,
                answers=COMPLETIONS,
            ),
        ),
        metrics=(
            Metric(
                "exact_match",
                mean_of("correct", scale=100),
                CAPABILITY,
                "more problems are solved",
                chance=0.0,
                flips="correct",
                unit="%",
            ),
            Metric("answered", share_answered, COVERAGE, "more texts hold a number at all", unit="%"),
        ),
        source="Cobbe et al. 2021, arXiv 2110.14168",
        licence="MIT",
        criticism="On new problems of the same kind some models solve several points fewer (Zhang et al. 2024).",
        files=(PROBLEMS,),
    ),
)
