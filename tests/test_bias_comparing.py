from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairsisa.bias.benchmark import BIAS, CAPABILITY, Metric, scores_table
from fairsisa.bias.comparing import COMPARISONS, compare, floor_of, holm_over, with_floor
from fairsisa.bias.metrics import macro_mean_of, mean_of, ratio
from fairsisa.bias.statistics import holm, wilson_interval
from fairsisa.errors import DataError
from fairsisa.intervals import Bootstrap, weight_chunks

FEW = Bootstrap(num_replicates=60, seed=5)
METRICS = (
    Metric("stereotyped", mean_of("outcome", scale=100), BIAS, "more stereotypes", neutral=50, flips="outcome"),
    Metric("accuracy", mean_of("correct"), CAPABILITY, "more right answers", chance=0.5, flips="correct"),
    Metric("gap", mean_of("value"), BIAS, "larger gaps"),
)


def made(seed: int, number: int = 30, *, unscored: tuple[int, ...] = ()) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for place in range(number):
        row = {
            "item_id": f"item-{place:03d}",
            "cluster": f"cluster-{place // 3}",
            "answer": str(draw.integers(3)),
            "outcome": float(draw.integers(2)),
            "correct": float(draw.integers(2)),
            "value": float(draw.normal()),
            "margin": 0.2,
            "state": "scored",
            "reason": "",
            "label:kind": "abc"[place % 3],
        }
        if place in unscored:
            row |= {"state": "not_scored", "reason": "too long", "outcome": math.nan, "value": math.nan}
        rows.append(row)
    return scores_table(rows)


def by_name(comparisons: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["metric"], row["group"]): row for row in comparisons.to_dict("records")}


@settings(max_examples=6)
@given(st.integers(0, 1000))
def test_the_same_scores_twice_differ_in_nothing(seed):
    scores = made(seed)
    table = holm_over(compare(scores, scores, METRICS, breakdown=["kind"], bootstrap=FEW))
    assert tuple(table.columns) == COMPARISONS
    assert len(table) == 4 * 4
    assert (table[["difference", "low", "high", "standard_error", "to_one", "to_zero"]] == 0).all(axis=None)
    assert (table[["p_value", "p_holm"]] == 1).all(axis=None)
    assert (table["base_value"] == table["other_value"]).all()
    floor = floor_of(scores, scores)
    assert (floor.largest_difference, floor.changed_answers, set(floor.changed.values())) == (0.0, 0, {0.0})


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_intervals_hold_the_difference_and_the_order_of_rows_changes_nothing(one, two, random):
    base, other = made(one, unscored=(3, 8)), made(two + 2000, unscored=(8, 9))
    table = compare(base, other, METRICS, breakdown=["kind"], bootstrap=FEW)
    overall = table[table["group"] == ""]
    assert (overall["low"] <= overall["difference"] + 1e-12).all()
    assert (overall["difference"] <= overall["high"] + 1e-12).all()
    rows = random.sample(range(len(base)), len(base))
    again = compare(base.iloc[rows], other.iloc[rows[::-1]], METRICS, breakdown=["kind"], bootstrap=FEW)
    pd.testing.assert_frame_equal(table, again)
    back = by_name(compare(other, base, METRICS, bootstrap=FEW))
    for row in overall.to_dict("records"):
        turned = back[row["metric"], ""]
        assert turned["difference"] == pytest.approx(-row["difference"])
        assert (turned["to_one"], turned["to_zero"]) == (row["to_zero"], row["to_one"])
        assert turned["p_value"] == pytest.approx(row["p_value"])


def test_differences_are_bootstrapped_with_the_same_weights_for_both():
    base, other = made(1, 75, unscored=(4,)), made(2, 75, unscored=(5, 6))
    row = by_name(compare(base, other, METRICS, bootstrap=FEW))["gap", ""]
    kept = [place for place in range(75) if place not in (4, 5, 6)]
    clusters = [place // 3 for place in kept]
    codes = np.unique([f"cluster-{each}" for each in clusters], return_inverse=True)[1]
    weights = np.concatenate(list(weight_chunks(codes, FEW)), axis=1)
    drawn = []
    for times in weights.T:
        total = sums = 0.0
        for cluster in sorted(set(clusters)):
            members = [n for n, each in enumerate(clusters) if each == cluster]
            changes = [other["value"][kept[n]] - base["value"][kept[n]] for n in members]
            sums += times[members[0]] * sum(changes)
            total += times[members[0]] * len(members)
        drawn.append(sums / total)
    assert row["difference"] == pytest.approx(drawn[0])
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(drawn[1:], [0.025, 0.975])))
    below, above = (sum(1 for each in drawn[1:] if sign * each <= 0) for sign in (1, -1))
    assert row["p_value"] == pytest.approx(min(1, 2 * (min(below, above) + 1) / 61))
    assert (row["num_paired"], row["num_unpaired"], row["test"]) == (72, 3, "bootstrap")
    assert row["num_clusters"] == 25


def test_flips_are_counted_item_by_item():
    base, other = made(11, 60, unscored=(1,)), made(12, 60)
    other.loc[7, "outcome"] = math.nan
    found = by_name(compare(base, other, METRICS, breakdown=["kind"], bootstrap=FEW))
    pairs = [
        (before, after, kind)
        for place, (before, after, kind) in enumerate(
            zip(base["outcome"], other["outcome"], base["label:kind"], strict=True)
        )
        if place not in (1, 7)
    ]
    for group, own in (("", pairs), *((f"kind={kind}", [pair for pair in pairs if pair[2] == kind]) for kind in "abc")):
        up, down = (sum(1 for pair in own if pair[:2] == way) for way in ((0, 1), (1, 0)))
        row = found["stereotyped", group]
        assert (row["to_one"], row["to_zero"]) == (up, down)
        assert row["net"] == pytest.approx((up - down) / len(own))
        assert row["gross"] == pytest.approx((up + down) / len(own))
        assert (row["gross_low"], row["gross_high"]) == wilson_interval(up + down, len(own))
        # McNemar's test would compare other items than the metric does, where one model lacks a number.
        assert row["test"] == ("McNemar" if group in ("kind=a", "kind=c") else "bootstrap")
        if row["test"] == "McNemar":
            assert row["p_value"] == pytest.approx(stats.binomtest(up, up + down).pvalue)
    coverage = found["scored", ""]
    assert (coverage["to_one"], coverage["to_zero"], coverage["difference"]) == (1, 0, pytest.approx(100 / 60))


def test_clusters_and_labels_are_those_of_the_base():
    base, other = made(1), made(2)
    renamed = other.assign(cluster="one", **{"label:kind": "d"})
    metrics = (*METRICS, Metric("macro", macro_mean_of("value"), BIAS, "larger scores"))
    expected = compare(base, other, metrics, breakdown=["kind"], bootstrap=FEW)
    pd.testing.assert_frame_equal(expected, compare(base, renamed, metrics, breakdown=["kind"], bootstrap=FEW))


def test_what_a_judge_found_in_an_answer_is_each_models_own():
    """A label that is no label of the item, such as whether the model agreed, is not taken from the base."""
    base, other = (made(1, 75).assign(**{"label:agrees": agrees}) for agrees in (0.0, 1.0))
    metrics = (*METRICS, Metric("agrees", mean_of("label:agrees"), BIAS, "the model agrees more often"))
    rows = by_name(compare(base, other, metrics, breakdown=["kind"], bootstrap=FEW))
    row = rows["agrees", ""]
    assert (row["base_value"], row["other_value"], row["difference"]) == (0.0, 1.0, 1.0)
    assert row["p_value"] == pytest.approx(2 / 61)
    assert rows["agrees", "kind=a"]["difference"] == 1.0


def test_one_cluster_has_no_interval_and_tells_nothing_apart():
    base, other = (made(seed).assign(cluster="all") for seed in (1, 2))
    row = by_name(compare(base, other, METRICS, bootstrap=FEW))["gap", ""]
    assert np.isfinite(row["difference"])
    assert all(math.isnan(row[name]) for name in ("low", "high", "standard_error", "p_value"))


def test_a_metric_of_both_reads_items_with_a_value_in_both():
    """Half the texts are toxic; the other model writes four of these alike and nothing else: no text got more toxic."""
    base = made(1, 40).assign(value=[0.9, 0.1] * 20, outcome=[1.0, 0.0] * 20)
    empty = np.arange(40) >= 8
    other = base.assign(value=base["value"].mask(empty | (base["outcome"] == 0)), outcome=base["outcome"])
    other["outcome"] = other["outcome"].mask(other["value"].isna())
    metric = Metric("toxic", mean_of("outcome", scale=100), BIAS, "more toxic texts", flips="outcome")
    rows = by_name(compare(base, other, [metric, replace(metric, name="both", of_both=True)], bootstrap=FEW))
    assert rows["toxic", ""]["difference"] == pytest.approx(50.0)
    assert rows["toxic", ""]["test"] == "bootstrap"
    both = rows["both", ""]
    assert (both["difference"], both["p_value"], both["test"]) == (0.0, 1.0, "McNemar")
    assert (both["num_paired"], both["base_value"], both["other_value"]) == (4, 100.0, 100.0)
    assert rows["toxic", ""]["num_paired"] == 40


def test_of_a_metric_that_one_model_has_not_nothing_is_counted_as_changed():
    base, other = made(1), made(2)
    metric = Metric("gap", mean_of("value"), BIAS, "larger gaps", flips="outcome")
    there, lacking = (
        by_name(compare(base, each, [metric], bootstrap=FEW))["gap", ""]
        for each in (other, other.assign(value=math.nan))
    )
    assert there["flips"] == "outcome"
    assert there["to_one"] + there["to_zero"] > 0
    assert (lacking["flips"], lacking["to_one"], lacking["to_zero"]) == ("", 0, 0)
    assert math.isnan(lacking["gross"])
    assert math.isnan(lacking["p_value"])


def test_holm_runs_over_the_whole_table():
    table = pd.concat([compare(made(1), made(seed), METRICS, bootstrap=FEW) for seed in (2, 3)], ignore_index=True)
    assert table["p_holm"].isna().all()
    assert holm_over(table)["p_holm"].tolist() == pytest.approx(holm(table["p_value"].to_numpy()).tolist())


def test_changes_are_held_against_those_of_a_model_asked_twice():
    first, again, other = made(1), made(1), made(2)
    again.loc[0, "outcome"] = 1 - again.loc[0, "outcome"]
    again.loc[0, "answer"] = "changed"
    again.loc[1, "value"] += 0.25
    floor = floor_of(first, again)
    assert (floor.num_items, floor.changed_answers, floor.largest_difference) == (30, 1, pytest.approx(0.25))
    assert floor.changed == {"outcome": 1 / 30, "correct": 0.0, "scored": 0.0}
    table = by_name(with_floor(compare(first, other, METRICS, bootstrap=FEW), floor))
    assert table["stereotyped", ""]["above_floor"] is True
    assert table["gap", ""]["above_floor"] is None
    same = by_name(with_floor(compare(first, again, METRICS, bootstrap=FEW), floor))
    assert same["stereotyped", ""]["above_floor"] is False


def test_mcnemar_tests_the_mean_of_what_flips_and_nothing_else():
    """The mean over clusters of unequal size is not what McNemar's test counts, nor is that of half of the items."""
    base, other = made(1), made(2)
    base["cluster"] = other["cluster"] = ["large" if place < 20 else f"small-{place}" for place in range(30)]

    def of_a(columns, weights):
        there = columns["label:kind"] == "a"
        return ratio(columns["outcome"][there] @ weights[there], weights[there].sum(axis=0))

    metrics = (
        *METRICS,
        Metric("by_cluster", macro_mean_of("outcome"), BIAS, "more", flips="outcome"),
        Metric("of_a", of_a, BIAS, "more", flips="outcome"),
    )
    table = by_name(compare(base, other, metrics, bootstrap=FEW, breakdown=["kind"]))
    tests = {name: table[name, ""]["test"] for name in ("stereotyped", "accuracy", "gap", "by_cluster", "of_a")}
    assert tests == {
        "stereotyped": "McNemar",
        "accuracy": "McNemar",
        "gap": "bootstrap",
        "by_cluster": "bootstrap",
        "of_a": "bootstrap",
    }
    assert table["of_a", "kind=a"]["test"] == "McNemar"
    up, down = table["stereotyped", ""]["to_one"], table["stereotyped", ""]["to_zero"]
    assert table["stereotyped", ""]["p_value"] == pytest.approx(stats.binomtest(up, up + down).pvalue)


def test_other_items_are_refused_by_name():
    with pytest.raises(DataError, match="'item-030', 'item-031' of the other model alone"):
        compare(made(1), made(1, 32), METRICS)
    with pytest.raises(DataError, match="'item-008' and 25 more of the base alone"):
        compare(made(1, 34), made(1, 4), METRICS)


def test_two_models_without_a_common_scored_item_have_no_difference():
    every = tuple(range(30))
    table = by_name(compare(made(1), made(2, unscored=every), METRICS, bootstrap=FEW))
    assert all(
        math.isnan(table[name, ""][column]) for name in ("gap", "accuracy") for column in ("difference", "p_value")
    )
    assert (table["gap", ""]["num_paired"], table["gap", ""]["num_unpaired"]) == (0, 30)
    assert table["scored", ""]["difference"] == -100
