from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.bias.benchmark import BIAS, CAPABILITY, Metric, scores_table
from fairsisa.bias.measuring import MEASURES, columns_of, measure, ordered
from fairsisa.bias.metrics import by_replicate, macro_mean_of, mean_of
from fairsisa.errors import DataError
from fairsisa.intervals import Bootstrap, weight_chunks

FEW = Bootstrap(num_replicates=50, seed=3)
STEREOTYPED = Metric(
    "stereotyped", mean_of("outcome", scale=100), BIAS, "more stereotypes", neutral=50, flips="outcome", unit="%"
)
ACCURACY = Metric("accuracy", mean_of("correct"), CAPABILITY, "more right answers", chance=0.25, flips="correct")
MEDIAN = Metric("median", by_replicate(lambda columns: float(np.median(columns["value"]))), BIAS, "larger scores")
METRICS = (STEREOTYPED, ACCURACY, MEDIAN)


def score(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "item_id": f"item-{number:03d}",
        "cluster": f"cluster-{number % 7}",
        "answer": "yes",
        "outcome": float(number % 3 == 0),
        "correct": float(number % 2),
        "value": number / 10,
        "margin": 0.1,
        "state": "scored",
        "reason": "",
        "label:kind": ("age", "gender")[number % 2],
    }
    return row | changes


def table_of(number: int = 40) -> pd.DataFrame:
    unscored = [
        score(number, state="not_scored", reason="too long", outcome=math.nan, correct=math.nan, value=math.nan),
        score(number + 1, state="malformed", reason="two blanks", cluster="", **{"label:kind": None}),
        score(number + 2, state="not_scored", reason="", outcome=math.nan),
        score(number + 3, state="not_scored", reason="too long", outcome=math.nan),
    ]
    return scores_table([*(score(each) for each in range(number)), *unscored])


def by_name(measures: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["metric"], row["group"]): row for row in measures.to_dict("records")}


def test_values_counts_and_words():
    measures = measure(table_of(), METRICS, breakdown=["kind"], bootstrap=FEW)
    assert tuple(measures.columns) == MEASURES
    assert len(measures) == 3 * 4
    found = by_name(measures)
    assert found["stereotyped", ""]["value"] == pytest.approx(100 * 14 / 40)
    assert found["accuracy", "kind=gender"]["value"] == 1.0
    assert found["median", ""]["value"] == pytest.approx(1.95)
    assert (found["stereotyped", ""]["num_items"], found["stereotyped", ""]["num_scored"]) == (44, 40)
    assert (found["stereotyped", "kind=age"]["num_items"], found["stereotyped", "kind=age"]["num_scored"]) == (22, 20)
    assert (found["stereotyped", ""]["neutral"], found["stereotyped", ""]["unit"]) == (50, "%")
    assert math.isnan(found["median", ""]["neutral"])
    assert found["scored", ""]["value"] == pytest.approx(100 * 40 / 44)
    assert found["scored", ""]["note"] == (
        "1 malformed: two blanks (1); 3 not scored: too long (2), no reason given (1)"
    )
    assert found["median", ""]["note"] == "7 clusters are few: the interval may be too narrow"


def test_only_a_capability_whose_interval_lies_above_chance_is_without_a_flag():
    found = by_name(measure(table_of(), METRICS, breakdown=["kind"], bootstrap=FEW))
    assert found["accuracy", ""]["flag"] == ""
    assert found["accuracy", "kind=age"]["flag"] == "no better than chance"
    assert found["stereotyped", ""]["flag"] == ""
    unsure = table_of().assign(correct=[float(place % 4 == 0 or place == 1) for place in range(44)])
    row = by_name(measure(unsure, METRICS, bootstrap=FEW))["accuracy", ""]
    assert row["low"] < 0.25 < row["value"]
    assert row["flag"] == "no better than chance"


def test_draws_without_a_value_are_told():
    """A metric of one cluster alone is undefined where it is not drawn: in (6 / 7)^7 = 34 % of the draws of seven."""

    def of_the_first(columns: Any, weights: np.ndarray) -> np.ndarray:
        own = weights[np.asarray(columns["cluster"]) == 0].sum(axis=0)
        return np.where(own > 0, 1.0, np.nan)

    metric = Metric("first", of_the_first, BIAS, "more of the first")
    row = by_name(measure(table_of(), [metric], bootstrap=Bootstrap(2000, seed=1)))["first", ""]
    share = re.search(r"undefined in ([\d.]+)% of the draws", row["note"])
    assert share is not None
    assert float(share[1]) == pytest.approx(100 * (6 / 7) ** 7, abs=4)
    assert "undefined" not in by_name(measure(table_of(), METRICS, bootstrap=FEW))["accuracy", ""]["note"]


def test_one_cluster_has_no_interval():
    row = by_name(measure(table_of().assign(cluster="all"), METRICS, bootstrap=FEW))["accuracy", ""]
    assert np.isfinite(row["value"])
    assert all(math.isnan(row[name]) for name in ("low", "high", "standard_error"))
    assert (row["flag"], row["note"]) == ("", "one cluster: no interval")


def test_a_capability_that_is_undefined_is_not_called_chance():
    row = by_name(measure(table_of().assign(correct=math.nan), METRICS, bootstrap=FEW))["accuracy", ""]
    assert math.isnan(row["value"])
    assert row["flag"] == ""


@pytest.mark.parametrize("group", ["", "kind=gender"])
def test_intervals_are_those_of_replicates_drawn_one_by_one(group):
    scores = table_of()
    scored = ordered(scores).query("state == 'scored'")
    clusters = np.unique(scored["cluster"], return_inverse=True)[1]
    weights = np.concatenate(list(weight_chunks(clusters, FEW)), axis=1)
    found = by_name(measure(scores, METRICS, breakdown=["kind"], bootstrap=FEW))
    kinds = scored["label:kind"]
    drawn = []
    for times in weights.T.astype(int):
        rows = zip(scored["outcome"], kinds, times, strict=True)
        values = [value for value, kind, count in rows if group in ("", f"kind={kind}") for _ in range(count)]
        drawn.append(100 * sum(values) / len(values))
    row = found["stereotyped", group]
    assert row["value"] == pytest.approx(drawn[0])
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(drawn[1:], [0.025, 0.975])))
    assert row["standard_error"] == pytest.approx(np.std(drawn[1:], ddof=1))


@settings(max_examples=8)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(random):
    scores = table_of(12)
    rows = list(range(len(scores)))
    random.shuffle(rows)
    metrics = (*METRICS, Metric("macro", macro_mean_of("value"), BIAS, "larger scores"))
    before = measure(scores, metrics, breakdown=["kind"], bootstrap=FEW)
    pd.testing.assert_frame_equal(before, measure(scores.iloc[rows], metrics, breakdown=["kind"], bootstrap=FEW))


def test_clusters_reach_metrics_as_codes_without_gaps():
    columns = columns_of(ordered(table_of()).query("`label:kind` == 'age' and cluster != 'cluster-2'"))
    assert columns["cluster"].dtype == np.int64
    assert sorted(set(columns["cluster"].tolist())) == list(range(len(set(columns["cluster"].tolist()))))


def test_nothing_scored_is_undefined_and_flagged():
    scores = table_of().assign(state="not_scored", reason="no answer")
    found = by_name(measure(scores, METRICS, bootstrap=FEW))
    assert {row["flag"] for row in found.values()} == {"nothing scored"}
    assert math.isnan(found["accuracy", ""]["value"])
    assert found["scored", ""]["value"] == 0.0


def test_whole_numbers_stay_whole_beside_malformed_rows():
    scores = pd.concat([table_of().assign(**{"label:size": 3}), scores_table([score(99, state="malformed")])])
    assert "size=3" in set(measure(scores, METRICS, breakdown=["size"], bootstrap=FEW)["group"])


def test_bad_tables_are_refused():
    with pytest.raises(DataError, match="state not found"):
        measure(table_of().drop(columns="state"), METRICS)
    with pytest.raises(DataError, match="'item-000' more than once"):
        measure(pd.concat([table_of(), table_of().head(1)]), METRICS)
    with pytest.raises(DataError, match=r"a label of the items \(kind\), got 'sort'"):
        measure(table_of(), METRICS, breakdown=["sort"])
