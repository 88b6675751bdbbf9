"""Two models on the same items: paired differences, changed answers, tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.bias.benchmark import COVERAGE, LABEL, SCORED, Metric
from fairsisa.bias.measuring import SHARE_SCORED, Group, groups_of, ordered, replicate
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.statistics import holm, mcnemar_exact, sign_p_value, wilson_interval
from fairsisa.errors import DataError
from fairsisa.intervals import BOOTSTRAP, Bootstrap, summarise

COMPARISONS = (
    "metric",
    "aspect",
    "group",
    "base_value",
    "other_value",
    "difference",
    "low",
    "high",
    "standard_error",
    "p_value",
    "p_holm",
    "test",
    "flips",
    "to_one",
    "to_zero",
    "net",
    "gross",
    "gross_low",
    "gross_high",
    "above_floor",
    "num_paired",
    "num_unpaired",
    "num_clusters",
    "unit",
    "neutral",
    "higher_means",
    "better",
)
MCNEMAR, BY_BOOTSTRAP = "McNemar", "bootstrap"
MEANS = tuple(Metric(column, mean_of(column), COVERAGE, "more of the items are 1") for column in ("outcome", "correct"))
"""What a metric is held against: McNemar's test is for the mean of a 0/1 column, and for nothing else."""
MOST_NAMED = 5
Pair = tuple[pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True)
class Floor:
    """How much the same model differs from itself, asked in two ways that should not matter.

    `largest_difference` is that of any item's `value`, `changed_answers` how many items have another answer;
    `changed` the share of items, among those with a number both times, whose `outcome`, `correct` or `scored` changed.
    """

    num_items: int
    largest_difference: float
    changed_answers: int
    changed: dict[str, float]


def compare(
    base_scores: pd.DataFrame,
    other_scores: pd.DataFrame,
    metrics: Sequence[Metric],
    *,
    breakdown: Sequence[str] = (),
    bootstrap: Bootstrap = BOOTSTRAP,
) -> pd.DataFrame:
    """Return how another model differs from a base on the same items: columns `COMPARISONS`, a row a metric and group.

    Only items scored in both are compared; `num_unpaired` counts those scored in one alone. So both values may differ
    from what each model gets by itself. `difference` is other minus base; its interval is that of the cluster
    bootstrap, both models under the same weights, over `num_clusters`. A metric with `flips` (the column of the scores
    table that changes) has the numbers of items that went `to_one` and `to_zero`, `net` (to_one - to_zero) and `gross`
    (to_one + to_zero) as shares of the items with a number in both, `gross` with a Wilson interval. Where the metric is
    the mean of that column (under every draw), its p-value is that of McNemar's exact test, which counts items as
    independent, as the interval of the difference does not. Other metrics have the two-sided p-value of `sign_p_value`.
    A metric `of_both` is compared over the items with a `value` in both. The metric "scored", over all items, is always
    added. `p_holm` is NaN until `holm_over` fills it, `above_floor` None until `with_floor` does.

    Raises:
        DataError: when the item sets differ, a column is missing, an item is there twice, or a label is unknown.
    """
    whole = aligned(base_scores, other_scores, breakdown)
    scored = paired(whole)
    groups = groups_of(whole[0], breakdown)
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for tables, chosen in (
        (scored, [metric for metric in metrics if not metric.of_both]),
        (valued(scored), [metric for metric in metrics if metric.of_both]),
        (whole, [SHARE_SCORED]),
    ):
        for place, metric, row in _compared(tables, groups, chosen, bootstrap):
            rows[place, metric.name] = row | {"num_unpaired": _num_scored(whole, groups[place])[1]}
    in_order = [rows[place, metric.name] for place in range(len(groups)) for metric in (*metrics, SHARE_SCORED)]
    return pd.DataFrame(in_order, columns=list(COMPARISONS))


def _compared(
    tables: Pair, groups: Sequence[Group], metrics: Sequence[Metric], bootstrap: Bootstrap
) -> Iterator[tuple[int, Metric, dict[str, Any]]]:
    """Yield, for the place of each group and each metric, a row of comparisons over all rows of two paired tables."""
    if not metrics:
        return
    means = (*MEANS, SHARE_SCORED)
    values = replicate(tables, groups, [*metrics, *means], bootstrap)
    differences = values[1] - values[0]
    summary = summarise(differences, bootstrap.level)
    for place, group in enumerate(groups):
        own = group.rows(tables[0])
        of_means = {mean.name: values[:, place, len(metrics) + number] for number, mean in enumerate(means)}
        for column, metric in enumerate(metrics):
            row: dict[str, Any] = {name: float(summary[name][place, column]) for name in ("low", "high")}
            row |= {"standard_error": float(summary["standard_error"][place, column])}
            row |= {"difference": float(summary["value"][place, column]), "group": group.name}
            row |= {f"{who}_value": float(values[n, place, column, 0]) for n, who in enumerate(("base", "other"))}
            row |= {"num_paired": _num_scored(tables, group)[0]}
            row |= {"num_clusters": tables[0].iloc[own]["cluster"].nunique()}
            if row["num_clusters"] < 2:
                row |= dict.fromkeys(("low", "high", "standard_error"), np.nan)  # every draw is alike
            # A metric that one of the two has not is not changed, whatever was answered.
            is_there = bool(np.isfinite(row["difference"]))
            changes = _changes(tables, group, metric if is_there else replace(metric, flips=None), bootstrap.level)
            is_mean = _is_mean(values[:, place, column], of_means, metric.flips) and _same_holes(tables, own, metric)
            tested = _tested(changes, differences[place, column], row["num_clusters"], is_mean=is_mean)
            yield place, metric, row | changes | tested | _described(metric)


def holm_over(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return comparisons with `p_holm` filled: Holm's correction over all rows of the table, whatever they compare."""
    return comparisons.assign(p_holm=holm(comparisons["p_value"].to_numpy(dtype=np.float64)))


def floor_of(first: pd.DataFrame, again: pd.DataFrame) -> Floor:
    """Return how much two scores tables of the same model differ, over the items scored in both.

    Raises:
        DataError: when the item sets differ, a column is missing, or an item is there twice.
    """
    whole = aligned(first, again)
    one, two = paired(whole)
    apart = (one["value"] - two["value"]).abs()
    tables = {"outcome": (one, two), "correct": (one, two), "scored": whole}
    counts = {name: changes_of(*pair, name) for name, pair in tables.items()}
    return Floor(
        num_items=len(one),
        largest_difference=float(apart.max()) if apart.notna().any() else 0.0,
        changed_answers=int((one["answer"] != two["answer"]).sum()),
        changed={name: (up + down) / total if total else 0.0 for name, (up, down, total) in counts.items()},
    )


def with_floor(comparisons: pd.DataFrame, floor: Floor) -> pd.DataFrame:
    """Return comparisons with `above_floor`: whether more answers changed than when a model is asked twice.

    Of a metric without flips it stays None.
    """
    above = [
        bool(gross > floor.changed[flips]) if flips else None
        for flips, gross in zip(comparisons["flips"], comparisons["gross"], strict=True)
    ]
    return comparisons.assign(above_floor=pd.Series(above, index=comparisons.index, dtype=object))


def aligned(base_scores: pd.DataFrame, other_scores: pd.DataFrame, breakdown: Sequence[str] = ()) -> Pair:
    """Return two scores tables row by row alike, by item id; clusters and labels of the breakdown are the base's.

    Other labels may be what a judge found in a model's answer: each keeps its own.

    Raises:
        DataError: when the item sets differ; an item that one model was not scored on must still have its row.
    """
    base, other = ordered(base_scores), ordered(other_scores)
    mine, theirs = set(base["item_id"]), set(other["item_id"])
    for which, only in (("base", mine - theirs), ("other model", theirs - mine)):
        if only:
            named = ", ".join(repr(each) for each in sorted(only)[:MOST_NAMED])
            more = f" and {len(only) - MOST_NAMED} more" if len(only) > MOST_NAMED else ""
            raise DataError(
                f"Expected both models to be asked the same items, got {named}{more} of the {which} alone: score both "
                "with the same benchmark, limit and seed."
            )
    kept = ["cluster", *(name for label in breakdown if (name := f"{LABEL}{label}") in base.columns)]
    return base, other.assign(**{name: base[name] for name in kept})


def paired(whole: Pair) -> Pair:
    """Return the rows of two aligned tables that are scored in both."""
    both = (whole[0]["state"] == SCORED) & (whole[1]["state"] == SCORED)
    return whole[0][both], whole[1][both]


def valued(tables: Pair) -> Pair:
    """Return the rows of two paired tables with a `value` in both."""
    both = tables[0]["value"].notna() & tables[1]["value"].notna()
    return tables[0][both], tables[1][both]


def changes_of(base: pd.DataFrame, other: pd.DataFrame, column: str) -> tuple[int, int, int]:
    """Return how many rows of two paired tables went up and down in a 0/1 column, and how many have numbers in both."""
    before, after = (table[column].to_numpy(dtype=np.float64) for table in (base, other))
    total = int((~np.isnan(before) & ~np.isnan(after)).sum())
    return int((after > before).sum()), int((after < before).sum()), total


def _num_scored(tables: Pair, group: Group) -> tuple[int, int]:
    """Return how many items of a group are scored in both of two aligned tables, and how many in one alone."""
    rows = group.rows(tables[0])
    base, other = ((table["state"] == SCORED).to_numpy()[rows] for table in tables)
    return int((base & other).sum()), int((base ^ other).sum())


def _changes(tables: Pair, group: Group, metric: Metric, level: float) -> dict[str, Any]:
    if metric.flips is None:
        return {"flips": "", "to_one": 0, "to_zero": 0, "net": np.nan, "gross": np.nan}
    rows = group.rows(tables[0])
    up, down, total = changes_of(tables[0].iloc[rows], tables[1].iloc[rows], metric.flips)
    low, high = wilson_interval(up + down, total, level)
    shares = {"net": (up - down) / total, "gross": (up + down) / total} if total else {"net": np.nan, "gross": np.nan}
    return {"flips": metric.flips, "to_one": up, "to_zero": down, "gross_low": low, "gross_high": high} | shares


def _is_mean(values: np.ndarray, means: dict[str, np.ndarray], flips: str | None) -> bool:
    """Return whether a metric is the mean of the column that it flips, or 100 times that, under every draw."""
    if flips not in means:
        return False
    return any(np.allclose(values, scale * means[flips], equal_nan=True) for scale in (1.0, 100.0))


def _same_holes(tables: Pair, rows: np.ndarray, metric: Metric) -> bool:
    """Return whether two models have a number in the column that a metric flips for the same items."""
    holes = [table[metric.flips].isna().to_numpy()[rows] for table in tables]
    return bool((holes[0] == holes[1]).all())


def _tested(changes: dict[str, Any], difference: np.ndarray, num_clusters: int, *, is_mean: bool) -> dict[str, Any]:
    if np.isnan(difference[0]):
        return {"p_value": np.nan, "test": ""}
    if is_mean:
        return {"p_value": mcnemar_exact(changes["to_one"], changes["to_zero"]), "test": MCNEMAR}
    return {"p_value": sign_p_value(difference[1:], num_clusters), "test": BY_BOOTSTRAP}


def _described(metric: Metric) -> dict[str, Any]:
    neutral = np.nan if metric.neutral is None else metric.neutral
    told = {"metric": metric.name, "aspect": metric.aspect, "unit": metric.unit, "neutral": neutral}
    told |= {"higher_means": metric.higher_means, "better": metric.better}
    return told | {"p_holm": np.nan, "above_floor": None}
