"""The contract of a benchmark: items, readouts, judgements and metrics."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.answers import Answers
from fairsisa.bias.candidate import KINDS, Candidate
from fairsisa.bias.items import Item, ItemTable
from fairsisa.data.sources import SourceFile, read_source
from fairsisa.errors import ConfigError, DataError
from fairsisa.settings import ScoringSettings, nearest

SCORES = ("item_id", "cluster", "answer", "outcome", "correct", "value", "margin", "state", "reason")
LABEL = "label:"
SCORED, NOT_SCORED, MALFORMED = "scored", "not_scored", "malformed"
NOT_COMPARED = "not_compared"
"""The state of a note on what only one of two models was asked."""
BIAS, TOXICITY, CAPABILITY, COVERAGE = "bias", "toxicity", "capability", "coverage"
ASPECTS = (BIAS, TOXICITY, CAPABILITY, COVERAGE)
LOG_LIKELIHOODS, PROBABILITIES, COMPLETIONS = "log_likelihoods", "probabilities", "completions"
ANSWERED_IN = (LOG_LIKELIHOODS, PROBABILITIES, COMPLETIONS)
CHUNK = 256

Ask = Callable[[Candidate, Sequence[Item], ScoringSettings, Mapping[str, Any]], Answers]
"""Put items to a model; the mapping is the readout's own settings."""
Judge = Callable[[Sequence[Item], Answers], pd.DataFrame]
"""From items and their answers, a scores table: columns `SCORES`, a row an item in the order of the items, and
`label:<name>` for each label of an item. A pure function."""
Columns = Mapping[str, np.ndarray]
Value = Callable[[Columns, np.ndarray], np.ndarray]
"""From the columns of the scored rows, `cluster` as codes 0..num_clusters-1, and their weights, float64 of shape
(num_rows, num_replicates), the metric under each column of weights, shape (num_replicates,); NaN where undefined."""


@dataclass(frozen=True)
class Metric:
    """A number over a scores table.

    `aspect` is one of `ASPECTS`; `higher_means` says in words what a higher value means. `neutral` is the value of a
    model without the bias, where there is one; `chance` that of a model that knows nothing, for a capability. `flips`
    names the 0/1 column of the scores table (`outcome` or `correct`) whose changes from model to model are counted
    beside this metric; where the metric is that column's mean, they are also what its test reads. `unit` is "%" for a
    percentage (0 to 100), else "". `better` says of a capability whether more of it is better (1), worse (-1), or
    neither (0). A metric `of_both` reads items with a `value` alone, such as rated texts: two models are compared over
    the items in which both have one. `magnitude` says that a metric lies at or above neutral by what it is, such as a
    largest minus smallest: noise alone puts it there.
    """

    name: str
    value: Value
    aspect: str
    higher_means: str
    neutral: float | None = None
    chance: float | None = None
    flips: str | None = None
    unit: str = ""
    better: int = 1
    of_both: bool = False
    magnitude: bool = False

    def __post_init__(self) -> None:
        if self.aspect not in ASPECTS:
            raise ValueError(f"Expected an aspect of {', '.join(ASPECTS)}, got {self.aspect!r}.")
        if self.better not in (-1, 0, 1):
            raise ValueError(f"Expected better to be 1, 0 or -1, got {self.better!r}.")


@dataclass(frozen=True)
class Readout:
    """One way of putting a benchmark's items to models of one kind, and of judging what they answer.

    Two readouts of equal `ask` and `settings` share answers. `chunk` is how many items are asked before what they gave
    is kept on disk. `answers` says what the values of an item's options are: log-likelihoods, probabilities, or nothing
    that competes (what was written or filled in, embeddings). `rater` names the classifier ("toxicity" or "regard")
    that rates the texts that were written: the judge then finds class probabilities of each text in columns
    `rating:<class>` of the answers.
    """

    name: str
    kind: str
    ask: Ask
    judge: Judge
    settings: Mapping[str, Any] = field(default_factory=dict)
    chunk: int = CHUNK
    answers: str = LOG_LIKELIHOODS
    rater: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Expected a kind of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.answers not in ANSWERED_IN:
            raise ValueError(f"Expected answers in {', '.join(ANSWERED_IN)}, got {self.answers!r}.")


@dataclass(frozen=True)
class Files:
    """Where a benchmark's files are sought: under `root` if given, else in `cache`, else downloaded there."""

    root: Path | None
    cache: Path

    def text(self, source: SourceFile) -> str:
        """Return a verified file as text; a byte order mark is left out."""
        return read_source(source, root=self.root, cache=self.cache).decode("utf-8-sig")

    def rows(self, source: SourceFile, *, delimiter: str = ",", quoted: bool = True) -> list[dict[str, str]]:
        """Return the rows of a file of separated values, by the names in its first line."""
        text = io.StringIO(self.text(source), newline="")
        if quoted:
            return list(csv.DictReader(text, delimiter=delimiter))
        return list(csv.DictReader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE))

    def objects(self, source: SourceFile) -> list[dict[str, Any]]:
        """Return the objects of a JSON Lines file."""
        return [json.loads(line) for line in self.text(source).split("\n") if line.strip()]


@dataclass(frozen=True)
class Benchmark:
    """A test of bias, toxicity or capability: its items, and how models of each kind are asked.

    `load` gives the items. `metrics` are the same whatever the readout; `breakdown` names labels, for each value of
    which the metrics are given too. `licence` is that of the data, `source` its citation and `criticism` what is
    published against it; a sentence each. `whole` names the label of which a limited evaluation draws all items of a
    value; without it, it draws clusters.
    """

    name: str
    title: str
    load: Callable[[Files], ItemTable]
    readouts: tuple[Readout, ...]
    metrics: tuple[Metric, ...]
    source: str
    licence: str
    criticism: str
    breakdown: tuple[str, ...] = ()
    files: tuple[SourceFile, ...] = ()
    whole: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of model that can be asked."""
        return tuple(dict.fromkeys(readout.kind for readout in self.readouts))

    def readout(self, kind: str, name: str | None = None) -> Readout:
        """Return a readout for models of a kind, the first unless it is named.

        Raises:
            ConfigError: when there is none, naming those there are.
        """
        known = {each.name: each for each in self.readouts if each.kind == kind}
        if not known:
            raise ConfigError(f"{self.name} asks models of kind {' or '.join(self.kinds)}, not {kind} ones.")
        if name is None:
            return next(iter(known.values()))
        if name not in known:
            raise ConfigError(f"{self.name} has no readout {name!r} for {kind} models.{nearest(name, known)}")
        return known[name]


def by_item(items: Sequence[Item], answers: Answers) -> Iterator[tuple[Item, pd.DataFrame]]:
    """Yield each item with its answers, in the order of the items; an item without any has an empty table."""
    rows = answers.frame.groupby("item_id", sort=False).indices
    for item in items:
        yield item, answers.frame.iloc[rows.get(item.item_id, [])]


def score_row(item: Item, **values: Any) -> dict[str, Any]:
    """Return a row of a scores table with an item's id, cluster and labels; `values` are the other columns of it.

    What is not given: NaN, an empty `answer` and `reason`, and the state "scored"; with a reason, "not_scored".
    """
    unknown = set(values) - set(SCORES)
    if unknown:
        raise DataError(f"Expected columns of a scores table ({', '.join(SCORES)}), got {sorted(unknown)[0]!r}.")
    nothing = dict.fromkeys(("outcome", "correct", "value", "margin"), float("nan"))
    state = NOT_SCORED if values.get("reason") else SCORED
    labels = {f"{LABEL}{name}": value for name, value in item.labels.items()}
    known = {"item_id": item.item_id, "cluster": item.cluster, "answer": "", **nothing, "state": state, "reason": ""}
    return known | values | labels


def scores_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows that `score_row` made as a scores table."""
    frame = pd.DataFrame(list(rows))
    labels = [name for name in frame.columns if name.startswith(LABEL)]
    return frame.reindex(columns=[*SCORES, *labels])
