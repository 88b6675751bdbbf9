"""Facts about countries: how wrong a model is, and for which regions and incomes more (WorldBench)."""

from __future__ import annotations

import ast
import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import (
    BIAS,
    CAPABILITY,
    COMPLETIONS,
    COVERAGE,
    LABEL,
    Benchmark,
    Files,
    Metric,
    Readout,
    score_row,
)
from fairsisa.bias.benchmarks.numbers_in_text import number_in
from fairsisa.bias.benchmarks.text_quality import CHUNK, CONTINUATIONS, score_texts
from fairsisa.bias.candidate import CAUSAL
from fairsisa.bias.items import Item, ItemTable, Label, Malformed
from fairsisa.bias.metrics import difference_between, mean_of
from fairsisa.bias.readouts.texts import ask_texts
from fairsisa.data.sources import SourceFile, github_url

MAX_NEW_TOKENS = 64
UNPARSED = "no number"
PARSED, ALL_ERROR = f"{LABEL}parsed", f"{LABEL}error_or_one"
CATEGORY_COLUMNS = ("Economy", "Region", "Income group")


def only_categories(content: bytes) -> bytes:
    """Return the region and income group of every country as plain UTF-8 lines.

    The source has aggregates without a region, empty columns, and ampersands escaped for LaTeX.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    out = io.StringIO(newline="")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(CATEGORY_COLUMNS)
    for row in csv.DictReader(io.StringIO(text.replace("\\&", "&"), newline="")):
        if row.get("Region"):
            lines.writerow([(row.get(name) or "").strip() for name in CATEGORY_COLUMNS])
    return out.getvalue().encode()


PROMPTS = SourceFile(
    path="worldbench/worldbench.csv.gz",
    url=github_url(
        "aisoc-lab/inference-acceleration-bias",
        "5e47472741b3bb4091a3b8e3c7cc8175a972d5fb",
        "worldbench/worldbench.csv",
    ),
    checksum="sha256:6fb3bbf2dfbbcff864cb87b88a453e57f1a9687c78a91a0591dea487f4ed3794",
)
CATEGORIES = SourceFile(
    path="worldbench/region_and_income.csv",
    url=github_url(
        "mmoayeri/world-bench",
        "c04028902e97ee3d7303fb93b527f34f08ea1ccf",
        "gt_answers/country_categories/region_and_income.csv",
    ),
    checksum="sha256:410436e9043f21b6c8fe7038c9f1410d250a303166c2399c63f12e43553a4cb7",
    prepare=only_categories,
)


def load(files: Files, *, categories: SourceFile = CATEGORIES) -> ItemTable:
    """Return the 2,214 questions, each after the example that the file gives; the cluster is the country.

    Region and income group come from `categories`. Where a folder of data does not hold that file, no item has them,
    and the differences between regions and between income groups are not given. World Bank aggregates ("Arab World")
    have neither. Prompts are those of Kirsten et al. (NAACL 2025) without their system prompt.
    """
    groups = _groups(files, categories)
    items, malformed = list[Item](), list[Malformed]()
    for row in files.rows(PROMPTS):
        item_id = f"{row['type']}/{row['country']}"
        try:
            question, answer = ast.literal_eval(row["example"])
            truth = float(row["gt_answer_avg"])
        except (ValueError, SyntaxError, TypeError) as error:
            malformed.append(Malformed(item_id, f"the example or the truth cannot be read: {error}"))
            continue
        if not (np.isfinite(truth) and truth >= 0):
            malformed.append(Malformed(item_id, f"expected a truth of 0 or more, got {truth}"))
            continue
        region, income = groups.get(_plain(row["country"]), (None, None))
        labels: dict[str, Label] = {
            "type": row["type"],
            "country": row["country"],
            "truth": truth,
            "region": region,
            "income": income,
        }
        items.append(Item(item_id, f"{question} {answer} \n{row['prompt']}", (), row["country"], labels))
    return ItemTable(tuple(items), tuple(malformed))


def relative_error(answer: float, truth: float) -> float:
    """Return |answer - truth| / max(answer, truth), in [0, 1] for numbers of 0 and more; 0 where both are 0.

    The absolute relative error of Moayeri et al. (FAccT 2024).
    """
    larger = max(answer, truth)
    return abs(answer - truth) / larger if larger else 0.0


def judge(items: Sequence[Item], answers: Answers) -> pd.DataFrame:
    """Return the scores: `value` is the mean error over an item's texts that hold a number, NaN where none does.

    An item without a number is scored all the same, so that models which fail to answer do not look good: the label
    `error_or_one` counts such a text as an error of 1.
    """
    return score_texts(items, answers, _score, (PARSED, ALL_ERROR, CONTINUATIONS))


def _score(item: Item, found: pd.DataFrame) -> dict[str, Any]:
    numbers = [number_in(text) for text in found["text"]]
    truth = float(item.labels["truth"] or 0.0)
    errors = [relative_error(number, truth) for number in numbers if number is not None]
    answer = "|".join(UNPARSED if number is None else f"{number:.10g}" for number in numbers)
    missing = len(numbers) - len(errors)
    row = score_row(item, answer=answer, value=float(np.mean(errors)) if errors else float("nan"))
    return row | {
        PARSED: len(errors) / len(numbers),
        ALL_ERROR: (sum(errors) + missing) / len(numbers),
        CONTINUATIONS: float(len(numbers)),
    }


def _groups(files: Files, categories: SourceFile) -> dict[str, tuple[str | None, str | None]]:
    if files.root is not None and not any(path.is_file() for path in _paths(files, categories)):
        return {}
    rows = files.rows(categories)
    return {_plain(row["Economy"]): (row["Region"] or None, row["Income group"] or None) for row in rows}


def _paths(files: Files, source: SourceFile) -> Iterator[Path]:
    if files.root is not None:
        yield files.root / source.path
        yield files.root / source.plain_path


def _plain(country: str) -> str:
    """Return a name without accents: one file has them, the other has not."""
    return unicodedata.normalize("NFKD", country).encode("ascii", "ignore").decode()


def _disparity(label: str, words: str) -> Metric:
    return Metric(
        f"error_difference_{label}",
        difference_between("value", label),
        BIAS,
        f"answers are more wrong for one {words} than for another (largest minus smallest mean error); not given "
        f"where {CATEGORIES.path} is not there",
        neutral=0.0,
        magnitude=True,
        of_both=True,
    )


BENCHMARKS = (
    Benchmark(
        name="worldbench",
        title="WorldBench: facts about countries",
        load=load,
        readouts=(
            Readout(
                "texts", CAUSAL, ask_texts, judge, {"max_new_tokens": MAX_NEW_TOKENS}, chunk=CHUNK, answers=COMPLETIONS
            ),
        ),
        metrics=(
            _disparity("region", "region"),
            _disparity("income", "income group"),
            Metric(
                "error",
                mean_of("value"),
                CAPABILITY,
                "answers that hold a number are more wrong",
                neutral=0.0,
                better=-1,
                of_both=True,
            ),
            Metric(
                "error_counting_unparsed",
                mean_of(ALL_ERROR),
                CAPABILITY,
                "answers are more wrong, an answer without a number counting as wholly wrong",
                neutral=0.0,
                better=-1,
            ),
            Metric("parsed", mean_of(PARSED, scale=100.0), COVERAGE, "more answers hold a number", unit="%"),
        ),
        source="Moayeri et al., WorldBench, FAccT 2024; prompts and parsing as in Kirsten et al., NAACL 2025",
        licence="not stated in the source repositories",
        criticism=(
            "We know of none in what we read. Our own: the published mean leaves answers without a number out, so that "
            "models which fail look better, and the one example is Switzerland throughout."
        ),
        breakdown=("type", "region", "income"),
        files=(PROMPTS,),
    ),
)
