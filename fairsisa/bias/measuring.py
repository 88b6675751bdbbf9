"""From a scores table to metrics with cluster-bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.benchmark import CAPABILITY, COVERAGE, LABEL, MALFORMED, SCORED, SCORES, Columns, Metric
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.statistics import FEW_CLUSTERS
from fairsisa.errors import DataError
from fairsisa.intervals import BOOTSTRAP, Bootstrap, summarise, weight_chunks

MEASURES = (
    "metric",
    "aspect",
    "group",
    "value",
    "low",
    "high",
    "standard_error",
    "num_items",
    "num_scored",
    "num_clusters",
    "unit",
    "neutral",
    "chance",
    "higher_means",
    "magnitude",
    "flag",
    "note",
)
NO_BETTER, NOTHING_SCORED = "no better than chance", "nothing scored"
NUMBERS = ("outcome", "correct", "value", "margin")
MOST_REASONS = 3
SHARE_SCORED = Metric(
    name="scored",
    value=mean_of("scored", scale=100.0),
    aspect=COVERAGE,
    higher_means="more of the items count in the other metrics; what is malformed or was not scored does not",
    flips="scored",
    unit="%",
)
"""The coverage that every measurement and comparison gives; it reads all rows, not only scored ones."""


@dataclass(frozen=True)
class Group:
    """The items whose label has a value; all items where `label` is empty."""

    label: str = ""
    value: Any = None

    @property
    def name(self) -> str:
        """The group as tables call it: "bias_type=gender", and "" for all items."""
        return f"{self.label}={_word(self.value)}" if self.label else ""

    def rows(self, table: pd.DataFrame) -> np.ndarray:
        """Return the places of its rows in a scores table."""
        if not self.label:
            return np.arange(len(table))
        return np.flatnonzero((table[f"{LABEL}{self.label}"] == self.value).to_numpy(dtype=bool))


def measure(
    scores: pd.DataFrame,
    metrics: Sequence[Metric],
    *,
    breakdown: Sequence[str] = (),
    bootstrap: Bootstrap = BOOTSTRAP,
) -> pd.DataFrame:
    """Return each metric over a scores table, and over each value of the labels in `breakdown`: columns `MEASURES`.

    Metrics read the scored rows; `num_items` counts all. Intervals are those of the cluster bootstrap: a replicate
    draws clusters of all items, and a group has what it gets of them. The metric "scored" is always added, its `note`
    naming the commonest reasons of what is missing. `flag` is "no better than chance" where the interval of a
    capability does not lie above chance, and "nothing scored" where there is no scored item; `note` warns of few
    clusters, and of replicates in which the metric is undefined. The order of the rows of `scores` changes nothing.

    Raises:
        DataError: when a column is missing, an item is there twice, or a label is unknown.
    """
    table = ordered(scores)
    groups = groups_of(table, breakdown)
    scored = table[table["state"] == SCORED]
    of_scored = replicate([scored], groups, metrics, bootstrap)[0]
    of_all = replicate([table], groups, [SHARE_SCORED], bootstrap)[0]
    summary = summarise(np.concatenate([of_scored, of_all], axis=1), bootstrap.level)
    rows = []
    for place, group in enumerate(groups):
        own = table.iloc[group.rows(table)]
        counts = _counts(own)
        facts = {"group": group.name} | counts
        for column, metric in enumerate((*metrics, SHARE_SCORED)):
            ends = {name: float(summary[name][place, column]) for name in ("value", "low", "high", "standard_error")}
            if counts["num_clusters"] < 2:
                ends |= dict.fromkeys(("low", "high", "standard_error"), np.nan)  # of one cluster, every draw is alike
            drawn = float(summary["num_undefined"][place, column]) / bootstrap.num_replicates
            rows.append(facts | ends | _described(metric) | _remarks(metric, ends, own, undefined=drawn))
    return pd.DataFrame(rows, columns=list(MEASURES))


def ordered(scores: pd.DataFrame) -> pd.DataFrame:
    """Return a scores table by item id, with 0/1 for what is scored in a column `scored`.

    A row without a cluster, as a malformed one is, becomes a cluster of its own.

    Raises:
        DataError: when a column is missing, or an item is there twice.
    """
    missing = [name for name in SCORES if name not in scores.columns]
    if missing:
        raise DataError(f"Expected scores with columns {', '.join(SCORES)}; {', '.join(missing)} not found.")
    twice = scores["item_id"][scores["item_id"].duplicated()]
    if len(twice):
        raise DataError(f"Expected one row an item, got {twice.iloc[0]!r} more than once.")
    table = scores.sort_values("item_id", ignore_index=True)
    cluster = table["cluster"].fillna("").astype(str)
    alone = "\0" + table["item_id"].astype(str)
    return table.assign(
        **{name: table[name].astype(np.float64) for name in NUMBERS},
        cluster=cluster.where(cluster != "", alone),
        scored=(table["state"] == SCORED).astype(np.float64),
    )


def groups_of(table: pd.DataFrame, breakdown: Sequence[str]) -> list[Group]:
    """Return all items as a group, then one for each value of each label, in order; what has no value is in none.

    Raises:
        DataError: when the items have no such label.
    """
    groups = [Group()]
    for label in breakdown:
        if f"{LABEL}{label}" not in table.columns:
            known = [name.removeprefix(LABEL) for name in table.columns if name.startswith(LABEL)]
            raise DataError(f"Expected a label of the items ({', '.join(known) or 'none'}), got {label!r}.")
        values = sorted(table[f"{LABEL}{label}"].dropna().unique(), key=lambda value: (str(type(value)), value))
        groups += [Group(label, value) for value in values]
    return groups


def replicate(
    tables: Sequence[pd.DataFrame], groups: Sequence[Group], metrics: Sequence[Metric], bootstrap: Bootstrap
) -> np.ndarray:
    """Return metrics over tables of the same items: shape (tables, groups, metrics, 1 + num_replicates).

    Estimates come first. The tables have the same items in the same order and share every replicate's weights, so that
    differences between them are paired. NaN where a group has no row.
    """
    found: np.ndarray = np.full((len(tables), len(groups), len(metrics), 1 + bootstrap.num_replicates), np.nan)
    places = [group.rows(tables[0]) for group in groups]
    asked = [
        (number, place, metric, columns)
        for number, table in enumerate(tables)
        for place, rows in enumerate(places)
        if len(rows)
        for columns in [columns_of(table.iloc[rows])]
        for metric in range(len(metrics))
    ]
    for start, weights in _chunks(tables[0], bootstrap) if asked else ():
        end = start + weights.shape[1]
        for number, place, metric, columns in asked:
            own = weights if len(places[place]) == len(weights) else weights[places[place]]
            found[number, place, metric, start:end] = metrics[metric].value(columns, own)
    return found


def columns_of(table: pd.DataFrame) -> Columns:
    """Return the columns of a scores table as metrics read them: arrays, `cluster` as codes 0..num_clusters-1."""
    return {name: table[name].to_numpy() for name in table.columns} | {"cluster": _codes(table)}


def commonest_reasons(table: pd.DataFrame) -> str:
    """Say how many rows are malformed or were not scored, and the commonest reasons; nothing where all are scored."""
    missing = table[table["state"] != SCORED]
    told = []
    for name, own in (
        ("malformed", missing[missing["state"] == MALFORMED]),
        ("not scored", missing[missing["state"] != MALFORMED]),
    ):
        if len(own):
            reasons = own["reason"].fillna("").replace("", "no reason given").value_counts(sort=False)
            most = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_REASONS]
            told.append(f"{len(own)} {name}: " + ", ".join(f"{reason} ({number})" for reason, number in most))
    return "; ".join(told)


def _chunks(table: pd.DataFrame, bootstrap: Bootstrap) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    for weights in weight_chunks(_codes(table), bootstrap):
        yield start, weights
        start += weights.shape[1]


def _codes(table: pd.DataFrame) -> np.ndarray:
    # Codes follow the clusters' names, so that draws do not hang on the order of the rows.
    return np.unique(table["cluster"].to_numpy(dtype=str), return_inverse=True)[1].astype(np.int64)


def _counts(own: pd.DataFrame) -> dict[str, int]:
    scored = own[own["state"] == SCORED]
    return {"num_items": len(own), "num_scored": len(scored), "num_clusters": scored["cluster"].nunique()}


def _described(metric: Metric) -> dict[str, Any]:
    names = ("aspect", "unit", "neutral", "chance", "higher_means", "magnitude")
    told = {name: getattr(metric, name) for name in names} | {"metric": metric.name}
    return {name: np.nan if value is None else value for name, value in told.items()}


def _remarks(metric: Metric, ends: dict[str, float], own: pd.DataFrame, *, undefined: float) -> dict[str, str]:
    if metric is SHARE_SCORED:
        return {"flag": "" if ends["value"] > 0 else NOTHING_SCORED, "note": commonest_reasons(own)}
    counts = _counts(own)
    if not counts["num_scored"]:
        return {"flag": NOTHING_SCORED, "note": ""}
    flag = metric.aspect == CAPABILITY and metric.chance is not None and ends["low"] <= metric.chance
    notes = []
    if counts["num_clusters"] < 2:
        notes.append("one cluster: no interval")
    elif counts["num_clusters"] < FEW_CLUSTERS:
        notes.append(f"{counts['num_clusters']} clusters are few: the interval may be too narrow")
    if 0 < undefined < 1:
        notes.append(f"undefined in {undefined:.1%} of the draws, which the interval leaves out")
    return {"flag": NO_BETTER if flag else "", "note": "; ".join(notes)}


def _word(value: Any) -> str:
    # A row without labels, as a malformed one is, turns a column of whole numbers into floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
