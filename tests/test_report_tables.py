from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from fairsisa.fairness.evaluation import paired_differences
from fairsisa.report import tables
from fairsisa.report.rows import by_key
from fairsisa.report.tables import Cell
from test_report_content import make_report, make_training


def with_metrics(report, **columns):
    """The same report with some columns of its metrics overwritten by constants."""
    evaluation = replace(report.evaluation, metrics=report.evaluation.metrics.assign(**columns))
    return replace(report, evaluation=evaluation)


def test_the_headline_holds_the_ensemble_against_each_baseline():
    report = make_report()
    table = tables.headline_table(report)
    assert table.columns == (
        "predictor",
        "Accuracy",
        "Macro F1",
        "Equalized odds difference by religion",
        "Equalized odds difference by race",
    )
    names = [row[0].text for row in table.rows]
    assert names == ["mean_score", "baseline whole", "mean_score minus baseline whole"]
    found = by_key(report.evaluation.metrics)["mean_score", "race", "equalized_odds_difference"]
    assert table.rows[0][4] == Cell(f"{found['value']:.3f}", f"[{found['low']:.3f}, {found['high']:.3f}]")
    pair = by_key(paired_differences(report.evaluation, baseline="baseline whole"))["mean_score", "", "accuracy"]
    assert float(table.rows[2][1].text) == pytest.approx(pair["value"], abs=6e-4)
    assert table.rows[2][1].text[0] in "+-"
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_numbers_that_do_not_exist_say_so():
    table = tables.quality_table(with_metrics(make_report(), value=float("nan")).evaluation)
    assert {cell for row in table.rows for cell in row[1:]} == {Cell("undefined")}


def test_replicates_without_the_number_are_counted_beside_the_interval():
    changed = with_metrics(make_report(), value=0.25, low=0.1, high=0.4, num_undefined=1234)
    table = tables.predictor_differences_table(changed)
    assert table.rows[0][1] == Cell("0.250", "[0.100, 0.400], 1,234 undefined")


def test_a_predictor_without_scores_is_not_ranked():
    report = make_report()
    metrics = report.evaluation.metrics
    dropped = metrics[~((metrics["predictor"] == "mean_score") & (metrics["metric"] == "auroc"))]
    table = tables.quality_table(replace(report.evaluation, metrics=dropped))
    assert table.rows[0][table.columns.index("AUROC")] == Cell("no scores")
    assert table.rows[1][table.columns.index("AUROC")].detail


@pytest.mark.parametrize("num_classes", [2, 3])
def test_rates_stand_in_the_columns_they_belong_to(num_classes):
    evaluation = make_report(num_classes=num_classes).evaluation
    table = tables.rates_table(evaluation, "mean_score")
    assert len(table.rows) == 5 * (1 if num_classes == 2 else 3)
    keys = ("predictor", "sensitive_feature", "group", "class", "metric")
    found = by_key(evaluation.by_group, keys)
    for row in table.rows:
        shown = dict(zip(table.columns, (cell.text for cell in row), strict=True))
        name = shown.get("class", "toxic")
        feature = shown["sensitive feature"].replace("all examples", "")
        rate = found["mean_score", feature, shown["group"], name, "false_positive_rate"]
        assert shown["False positive rate"] == f"{rate['value']:.3f}"
        assert shown["negatives"] == str(rate["num_negatives"])
        assert shown["positives"] == str(rate["num_positives"])
    assert table.num_text == (2 if num_classes == 2 else 3)


def test_differences_of_every_feature_are_shown():
    table = tables.feature_differences_table(make_report().evaluation, "mean_score")
    assert [row[0].text for row in table.rows] == ["religion", "race"]
    assert table.columns[1:] == (
        "Equalized odds",
        "Equalized odds, mean",
        "Equal opportunity",
        "Predictive equality",
        "Demographic parity",
    )


def test_every_group_and_every_small_cell_is_shown():
    evaluation = make_report().evaluation
    disagreement = tables.disagreement_table(evaluation)
    assert [row[0].text for row in disagreement.rows] == ["all examples", "religion", "religion", "race", "race"]
    small = pd.DataFrame([("", "", "toxic", 7), ("race", "none", "normal", 0)])
    small.columns = evaluation.small_cells.columns
    table = tables.small_cells_table(replace(evaluation, small_cells=small))
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["all examples", "", "toxic", "7"],
        ["race", "none", "normal", "0"],
    ]


def test_slices_are_shown_one_by_one():
    training = make_training()
    training["checkpoint"] = training["checkpoint"].where(training["status"] != "empty", None)
    table = tables.training_table(training)
    shown = [[cell.text for cell in row] for row in table.rows]
    assert shown[0] == ["0", "0", "reused", "0000000000000000", "80", "3", "20", "8.0 s", "10"]
    assert shown[1] == ["0", "1", "empty", "", "0", "3", "0", "0.0 s", ""]
    assert len(shown) == len(training)


def test_settings_are_flattened_in_order():
    nested = {"a": {"b": {"c": 1}, "d": ["x", 2]}, "e": None, "f": {}, "g": [], "h": "text"}
    assert list(tables.flatten(nested)) == [
        ("a.b.c", "1"),
        ("a.d", "x, 2"),
        ("e", "None"),
        ("f", "{}"),
        ("g", "[]"),
        ("h", "text"),
    ]
    assert tables.settings_table("Settings", nested).rows[0] == (Cell("a.b.c"), Cell("1"))
