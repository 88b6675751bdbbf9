"""One model on one benchmark: its items asked, its answers judged."""

from __future__ import annotations

import random
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


def limited(table: ItemTable, limit: int | None, seed: int) -> ItemTable:
    """Return a random part of the items, in their order, whole clusters at a time, so that pairs stay together.

    At least `limit` items are left, or all; the draw depends on the seed and the clusters' names alone.
    """
    if limit is None or limit >= len(table.items):
        return table
    clusters = sorted({item.cluster for item in table.items})
    random.Random(seed).shuffle(clusters)
    sizes = _sizes(table.items)
    chosen, count = set[str](), 0
    for cluster in clusters:
        if count >= limit:
            break
        chosen.add(cluster)
        count += sizes[cluster]
    return ItemTable(tuple(item for item in table.items if item.cluster in chosen), table.malformed)


def _sizes(items: Sequence[Item]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.cluster] = sizes.get(item.cluster, 0) + 1
    return sizes
