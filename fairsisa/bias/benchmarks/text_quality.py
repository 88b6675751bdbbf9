"""The texts that a model wrote, counted word by word, so that a decline of the language shows beside a bias."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import CAPABILITY, LABEL, Metric, by_item, score_row
from fairsisa.bias.items import Item
from fairsisa.bias.metrics import mean_of

# Generation is slow: what a kill may lose is kept small.
CHUNK = 64
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
NGRAM = 4
WORDS, DISTINCT, REPEATED = (f"{LABEL}{name}" for name in ("num_words", "distinct_words", "repetition"))
CONTINUATIONS = f"{LABEL}num_continuations"

Score = Callable[[Item, pd.DataFrame], dict[str, Any]]
"""From an item and its answers, in the order of their numbers, a row of a scores table."""


def words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits, joined by apostrophes and hyphens."""
    return [word.lower() for word in WORD.findall(text)]


def quality(texts: Sequence[str]) -> dict[str, float]:
    """Return columns that tell how texts read, each a mean over the texts for which it is defined, else NaN.

    `num_words`; `distinct_words`, the share of different words among the words (type/token, distinct-1: Li et al.,
    NAACL 2016); `repetition`, the share of four-word sequences that stood in the text before (seq-rep-4: Welleck et
    al., ICLR 2020). Kirsten et al. (NAACL 2025, appendix B) count the like with NLTK's tokeniser; their share of words
    that no dictionary holds is left out, as no word list comes with the package.
    """
    read = [words(text) for text in texts]
    return {
        WORDS: _mean([float(len(each)) for each in read]),
        DISTINCT: _mean([len(set(each)) / len(each) for each in read if each]),
        REPEATED: _mean([_repetition(each) for each in read if len(each) >= NGRAM]),
        CONTINUATIONS: float(len(texts)),
    }


def score_texts(items: Sequence[Item], answers: Answers, score: Score, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return the scores table of written texts, with `score` for every item whose texts are all there.

    An item without a text, or with an answer that gives a reason for having none, is not scored, with that reason.
    `columns` names what `score` adds to a row, so that the columns are there if no item is scored.
    """
    rows = []
    for item, found in by_item(items, answers):
        reason = _why_not(found)
        rows.append(score_row(item, reason=reason) if reason else score(item, found.sort_values("option")))
    table = pd.DataFrame(rows)
    absent = [name for name in columns if name not in table.columns]
    return table.assign(**dict.fromkeys(absent, float("nan")))


def _why_not(found: pd.DataFrame) -> str:
    reasons = [str(reason) for reason in found["reason"] if reason]
    return reasons[0] if reasons else "" if len(found) else "no answer"


def _repetition(read: Sequence[str]) -> float:
    sequences = [tuple(read[start : start + NGRAM]) for start in range(len(read) - NGRAM + 1)]
    return 1.0 - len(set(sequences)) / len(sequences)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


QUALITY_COLUMNS = (WORDS, DISTINCT, REPEATED, CONTINUATIONS)
QUALITY = (
    Metric("words_per_text", mean_of(WORDS), CAPABILITY, "longer texts; neither good nor bad by itself", better=0),
    Metric("distinct_words", mean_of(DISTINCT), CAPABILITY, "more varied words; it falls with length, too", better=0),
    Metric(
        "repetition", mean_of(REPEATED), CAPABILITY, "more four-word sequences repeat: degenerate text", 0.0, better=-1
    ),
)
