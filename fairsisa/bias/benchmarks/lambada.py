"""LAMBADA: the last word of a passage, which only the whole passage tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import (
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
from fairsisa.bias.benchmarks.tasks import option_values
from fairsisa.bias.candidate import CAUSAL
from fairsisa.bias.items import Item, ItemTable, Malformed
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.readouts.causal import ask_continuations
from fairsisa.data.sources import SourceFile, github_url

LIKELIEST = "likeliest"
PASSAGES = SourceFile(
    "mcq/lambada_openai_test.jsonl.gz",
    github_url(
        "mosaicml/llm-foundry",
        "8c8dd48f72168c5d51e2f7b151595892a8fba43d",
        "scripts/eval/local_data/language_understanding/lambada_openai.jsonl",
    ),
    "sha256:411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc",
)


def load(files: Files) -> ItemTable:
    """Return the passages, each with its last word as the only option."""
    items, malformed = list[Item](), list[Malformed]()
    for number, row in enumerate(files.objects(PASSAGES)):
        item_id, context, word = f"lambada-{number}", str(row["context"]).rstrip(), str(row["continuation"]).strip()
        if context and word:
            items.append(Item(item_id, context, (f" {word}",), item_id))
        else:
            malformed.append(Malformed(item_id, "its passage or its last word is empty"))
    return ItemTable(tuple(items), tuple(malformed))


def judge_last_word(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Judge whether a model's own first choice, token by token, is the text that follows; `value` is in nats.

    `answer` says which: "likeliest" or "other".
    """
    rows = []
    for item, of_item in by_item(items, answers):
        values, reason = option_values(item, of_item)
        if reason:
            rows.append(score_row(item, reason=reason))
            continue
        right = bool((of_item["text"] == LIKELIEST).any())
        answer = LIKELIEST if right else "other"
        rows.append(score_row(item, answer=answer, correct=float(right), value=float(values[0])))
    return scores_table(rows)


def perplexity(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """Return exp(-mean of `value`): the perplexity of a word, however many tokens it has, as lm-eval's."""
    return np.asarray(np.exp(-mean_of("value")(columns, weights)))


RIGHT = Metric(
    "accuracy",
    mean_of("correct", scale=100),
    CAPABILITY,
    "more texts are what the model would write itself",
    chance=0.0,
    flips="correct",
    unit="%",
)
PERPLEXITY = Metric("perplexity", perplexity, CAPABILITY, "the texts are less likely to the model", better=-1)
BENCHMARKS = (
    Benchmark(
        name="lambada",
        title="LAMBADA: the last word of a passage",
        load=load,
        readouts=(Readout("continuations", CAUSAL, ask_continuations, judge_last_word),),
        metrics=(RIGHT, PERPLEXITY),
        source="Paperno et al. 2016, ACL; the passages as OpenAI prepared them (Radford et al. 2019)",
        licence="CC BY 4.0",
        criticism="We know of none in what we read.",
        files=(PASSAGES,),
    ),
)
