"""One model on one benchmark: its items asked, its answers judged."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.asking import Tell, ask_items
from fairsisa.bias.benchmark import MALFORMED, SCORES, Benchmark, Readout
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item, ItemTable
from fairsisa.errors import ConfigError
from fairsisa.settings import ScoringSettings
from fairsisa.store import Store

Rate = Callable[[Sequence[Item], Answers], Answers]
"""From items and what was written, the same answers with ratings: probabilities of a classifier, grades of a judge."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What a model did on a benchmark: `scores`, a row an item, those that could not be asked included."""

    candidate: str
    benchmark: Benchmark
    readout: Readout
    scores: pd.DataFrame
    answers: Answers


def evaluate(
    candidate: Candidate,
    benchmark: Benchmark,
    readout: Readout,
    table: ItemTable,
    scoring: ScoringSettings,
    *,
    store: Store,
    rate: Rate | None = None,
    tell: Tell = lambda done, total: None,
) -> Evaluated:
    """Ask a model a benchmark's items in one way, have its texts rated where the readout says so, judge the answers.

    Raises:
        ConfigError: when the readout's rater is missing.
    """
    answers = ask_items(candidate, table.items, readout, scoring, store=store, tell=tell)
    if readout.rater is not None:
        if rate is None:
            raise ConfigError(f"{benchmark.name} needs a {readout.rater} rater: set {readout.rater}=<model>.")
        answers = rate(table.items, answers)
    scores = readout.judge(table.items, answers)
    return Evaluated(candidate.name, benchmark, readout, with_malformed(scores, table), answers)


def with_malformed(scores: pd.DataFrame, table: ItemTable) -> pd.DataFrame:
    """Return a scores table with a row, of state "malformed", for each row of the source that cannot be asked."""
    if not table.malformed:
        return scores
    rows = [
        dict.fromkeys(SCORES, float("nan"))
        | {"item_id": bad.item_id, "cluster": "", "answer": "", "state": MALFORMED, "reason": bad.reason}
        for bad in table.malformed
    ]
    return pd.concat([scores, pd.DataFrame(rows, columns=list(SCORES))], ignore_index=True)


def limited(table: ItemTable, limit: int | None, seed: int, label: str | None = None) -> ItemTable:
    """Return a random part of the items, in their order, whole clusters at a time, so that pairs stay together.

    With a `label`, what stays together are the items of one value of it. At least `limit` items are left, or all; the
    draw depends on the seed and the names of the parts alone.
    """
    if limit is None or limit >= len(table.items):
        return table
    parts = [item.cluster if label is None else str(item.labels[label]) for item in table.items]
    sizes = Counter(parts)
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    chosen, count = set[str](), 0
    for name in names:
        if count >= limit:
            break
        chosen.add(name)
        count += sizes[name]
    kept = (item for item, part in zip(table.items, parts, strict=True) if part in chosen)
    return ItemTable(tuple(kept), table.malformed)
