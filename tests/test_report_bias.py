from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsisa.bias.benchmark import BIAS, CAPABILITY, Metric, scores_table
from fairsisa.bias.comparing import compare, floor_of, holm_over, with_floor
from fairsisa.bias.measuring import measure
from fairsisa.bias.metrics import mean_of
from fairsisa.bias.statistics import wilson_interval
from fairsisa.errors import DataError
from fairsisa.intervals import Bootstrap
from fairsisa.report.bias import BiasReport, findings, write_bias
from fairsisa.report.bias_findings import differs, value_words
from fairsisa.report.bias_plots import changed_by_margin, delta_map, margin_bins, metric_by_step, metric_forest

FEW = Bootstrap(num_replicates=40)
STEREOTYPED = Metric(
    "stereotype_score", mean_of("outcome", scale=100), BIAS, "more stereotypes", neutral=50, flips="outcome", unit="%"
)
ACCURACY = Metric("accuracy", mean_of("correct"), CAPABILITY, "more right answers", chance=0.5, flips="correct")
METRICS = (STEREOTYPED, ACCURACY)
BASE, COPY, RANDOM = "base", "copy & paste", "<b>random</b>"


def scores(outcome: float, correct: float, *, unscored: int = 1, number: int = 200) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for place in range(number):
        row = {"item_id": f"item-{place}", "cluster": f"c{place % 25}", "answer": "a", "value": 0.0, "margin": 0.1}
        # A fixed walk through the unit interval, so that copies change some items and leave the others as they are.
        row |= {"outcome": float(place * 0.618 % 1 < outcome), "correct": float(place * 0.414 % 1 < correct)}
        bad = place < unscored
        row |= {"state": "not_scored" if bad else "scored", "reason": "<i>two blanks</i>" if bad else ""}
        rows.append(row | {"label:kind": ("age", "gender")[place % 2]})
    return scores_table(rows)


@pytest.fixture(scope="module")
def content() -> BiasReport:
    models = {BASE: scores(0.7, 0.9), COPY: scores(0.51, 0.7), RANDOM: scores(0.5, 0.5)}
    where = {"benchmark": "pairs", "readout": "summed"}
    measures = [
        measure(table, METRICS, breakdown=["kind"], bootstrap=FEW).assign(model=name, **where)
        for name, table in models.items()
    ]
    floor = floor_of(models[BASE], models[BASE])
    comparisons = [
        with_floor(compare(models[BASE], models[name], METRICS, breakdown=["kind"], bootstrap=FEW), floor).assign(
            base=BASE, other=name, **where
        )
        for name in (COPY, RANDOM)
    ]
    pairs = [{"base": BASE, "other": name} for name in (COPY, RANDOM)]
    behaviours = [
        pair
        | {"benchmark": "pairs", "num_items": 200, "flips": 0.2, "all_flips": 0.3, "kl_forward": 0.02}
        | {"correct_to_wrong": 39, "wrong_to_correct": 1, "wrong_to_wrong": 20, "accuracy_change": -0.19}
        for pair in pairs
    ]
    divergences = [pair | {"corpus": "stories", "kl_forward": 0.25, "same_top": 0.75} for pair in pairs]
    margins = [pairs[0] | {"margin": place / 50, "changed": place < 10} for place in range(50)]
    return BiasReport(
        "Pairs & more",
        pd.DataFrame(
            [
                {"name": BASE, "kind": "causal", "num_parameters": 1234, "bytes_on_disk": 5000, "digest": "ab" * 32},
                {"name": COPY, "kind": "causal", "capability": "prefers 30 of 32 sentences", "capable": True},
                {"name": RANDOM, "kind": "causal", "capability": "no better than chance", "capable": False},
            ]
        ),
        pd.concat(measures),
        holm_over(pd.concat(comparisons)),
        pd.DataFrame(behaviours),
        pd.DataFrame(divergences),
        pd.DataFrame(margins),
        notes=pd.DataFrame([{**where, "item_id": "item-0", "reason": "<i>two blanks</i>", "count": 3}]),
        benchmarks=pd.DataFrame([{"benchmark": "pairs", "title": "Pairs", "criticism": "Few items."}]),
        settings={"seed": 3},
        commands=("fairsisa compare base=base",),
    )


@pytest.fixture(scope="module")
def page(content, tmp_path_factory) -> str:
    return write_bias(tmp_path_factory.mktemp("page"), content)[0].read_text()


def test_a_page_stands_alone_and_escapes_what_others_named(page):
    assert "<title>Pairs &amp; more</title>" in page
    assert "&lt;b&gt;random&lt;/b&gt;" in page
    assert "&lt;i&gt;two blanks&lt;/i&gt;" in page
    assert not re.search(r"<script|<b>random|<i>two|(src|href)=\"(?!#)", page)
    assert page.count("<figure") == 4
    assert page.count("fails the capability check") >= 3
    for text in ("Few items.", "0.25", "75.0 %", "ab" * 6, "fairsisa compare base=base", "kind=gender", "not checked"):
        assert text in page


def test_every_table_is_written_with_what_is_in_it(content, tmp_path):
    (tmp_path / "report_floors.csv").write_text("old")
    paths = write_bias(tmp_path, content, stem="report")
    tables = ("models", "measures", "comparisons", "behaviours", "divergences", "margins", "notes", "benchmarks")
    assert [path.name for path in paths] == ["report.html", "report.json", *(f"report_{name}.csv" for name in tables)]
    assert not (tmp_path / "report_floors.csv").exists()
    back = pd.read_csv(tmp_path / "report_comparisons.csv", keep_default_na=False, na_values=[""])
    assert back["difference"].tolist() == content.comparisons["difference"].tolist()
    values = json.loads(paths[1].read_text())
    assert [row["value"] for row in values["measures"]] == content.measures["value"].tolist()
    assert values["floors"] == []
    assert values["measures"][1]["neutral"] is None


def test_findings_warn_of_random_networks_and_of_fairness_by_collapse(content):
    told = findings(content)
    assert told[0].startswith(f"Beware: the capability check is failed by {RANDOM} (no better than chance).")
    assert told[1] == f"Beware: on pairs, accuracy is flagged (no better than chance) for {RANDOM}."
    text = "\n".join(told)
    assert (
        "pairs: stereotype score is told apart from the neutral 50.0 % for 1 of 3 models; furthest away base has"
        in text
    )
    assert f"Beware: {COPY}, {RANDOM} moved closer to neutral and lost capability too." in text
    assert "that is closer to neutral. The same metric is told apart for 1 other model." in text
    assert "on 20.0 % of 200 items, and gives another answer on 30.0 %, while accuracy changes by -19.0 points" in text
    assert "3 items of pairs could not be asked or scored" in text


def test_the_same_model_twice_differs_in_nothing():
    table = compare(scores(0.6, 0.8), scores(0.6, 0.8), METRICS, bootstrap=FEW)
    same = holm_over(table.assign(base="a", other="b", benchmark="pairs", readout=""))
    assert findings(BiasReport("x", comparisons=same)) == [
        "None of 3 comparisons (metrics, groups and models) are told apart after Holm's correction at 0.05; that is no "
        "proof that nothing changed."
    ]


def test_two_models_are_told_apart_by_p_value_and_interval():
    """Forty answers turn round, all of one cluster: McNemar takes them for forty, the interval for one."""
    before, after = (made.assign(cluster=made["item_id"]) for made in (scores(0.9, 0.8), scores(0.7, 0.8)))
    together = np.where(before["outcome"] != after["outcome"], "changed", before["item_id"])
    rows = []
    for clusters in (before["item_id"], together):
        pair = (table.assign(cluster=clusters) for table in (before, after))
        table = holm_over(compare(*pair, METRICS, bootstrap=FEW))
        rows.append(table[table["metric"] == "stereotype_score"].iloc[0].to_dict())
    alone, clustered = rows
    assert alone["p_holm"] == clustered["p_holm"] < 1e-6
    assert alone["high"] < 0 <= clustered["high"]
    assert differs(alone, 0.05)
    assert not differs(clustered, 0.05)
    assert not differs({**alone, "p_holm": 0.06}, 0.05)


@pytest.mark.parametrize(
    ("value", "unit", "plus", "expected"),
    [
        (0.0004, "", True, "+4e-04"),
        (-0.0004, "", False, "-4e-04"),
        (0.0, "", True, "+0.000"),
        (0.04, "%", True, "+4e-02 points"),
        (0.05, "%", False, "0.1 %"),
        (0.0005, "", False, "0.001"),
        (1234.5, "", False, "1,234.500"),
    ],
)
def test_what_is_not_0_never_looks_like_it(value, unit, plus, expected):
    assert value_words(value, unit, plus=plus) == expected


def test_the_largest_difference_is_told_of_those_that_are_told_apart(content):
    table = content.comparisons
    told = "\n".join(findings(content))
    apart = table[(table["metric"] == "stereotype_score") & (table["group"] == "") & (table["p_holm"] < 0.05)]
    largest = apart.loc[apart["difference"].abs().idxmax()]
    assert f"stereotype score goes from {largest['base_value']:.1f} % (base) to {largest['other_value']:.1f} %" in told
    whole = content.measures[(content.measures["metric"] == "stereotype_score") & (content.measures["group"] == "")]
    unsure = whole.iloc[:1].assign(model="unsure", value=99.0, low=40.0, high=100.0)
    assert "furthest away base has" in "\n".join(findings(replace(content, measures=pd.concat([whole, unsure]))))
    bare = replace(content, measures=content.measures.assign(low=np.nan, high=np.nan))
    assert "told apart from the neutral" in told
    assert "told apart from the neutral" not in "\n".join(findings(bare))


@pytest.mark.parametrize(("better", "warned"), [(1, False), (-1, True), (0, False)])
def test_a_capability_is_lost_in_its_own_direction(content, better, warned):
    """A perplexity that rises is a loss, an accuracy that rises is none."""
    table = content.comparisons[content.comparisons["group"] == ""]
    bias = table[(table["other"] == COPY) & (table["aspect"] == BIAS)].iloc[:1]
    assert bias["p_holm"].item() < 0.05
    risen = bias.assign(metric="perplexity", aspect=CAPABILITY, difference=30.0, low=20.0, high=40.0, better=better)
    told = "\n".join(findings(BiasReport("x", comparisons=pd.concat([bias, risen]))))
    assert ("moved closer to neutral and lost capability too" in told) is warned


def test_changes_within_the_floor_are_named():
    first, again = scores(0.6, 0.8), scores(0.62, 0.8)
    table = with_floor(compare(first, again, METRICS, bootstrap=FEW), floor_of(first, again))
    told = findings(
        BiasReport("x", comparisons=holm_over(table.assign(base="a", other="b", benchmark="pairs", readout="")))
    )
    assert "Within the floor, so not due to the model: b on pairs" in told[-1]


def test_nothing_measured_is_a_page_too(tmp_path):
    paths = write_bias(tmp_path, BiasReport("Empty"))
    assert [path.name for path in paths] == ["bias.html", "bias.json"]
    html = paths[0].read_text()
    assert "Nothing was measured." in html
    assert "<table" not in html
    assert "<figure" not in html


@pytest.mark.parametrize("kept", ["models", "measures", "comparisons", "behaviours", "divergences", "margins", "notes"])
def test_any_table_can_be_the_only_one(content, tmp_path, kept):
    paths = write_bias(tmp_path, BiasReport("x", **{kept: getattr(content, kept)}))
    assert paths[2].name == f"bias_{kept}.csv"


def test_tables_without_what_they_need_are_refused():
    with pytest.raises(DataError, match="in measures; benchmark, metric, aspect"):
        BiasReport("x", measures=pd.DataFrame([{"model": "a"}]))


def test_the_map_marks_what_holds_after_correction(content):
    texts = {text.get_text() for text in delta_map(content.comparisons, 0.05).axes[0].texts}
    rows = content.comparisons.query("group == '' and metric == 'stereotype_score'")
    assert {f"{row['difference']:+.1f}" + (" *" if row["p_holm"] < 0.05 else "") for _, row in rows.iterrows()} <= texts
    labels = [label.get_text() for label in delta_map(content.comparisons, 0.05).axes[0].get_yticklabels()]
    assert labels == ["pairs: stereotype score", "pairs: accuracy"]


def test_margin_bins_count_changed_items():
    margins = pd.DataFrame({"margin": np.arange(60) / 60, "changed": np.arange(60) < 15})
    bins = margin_bins(margins, 0.95)
    assert bins["num_items"].tolist() == [10] * 6
    assert bins["share"].tolist() == [1.0, 0.5, 0, 0, 0, 0]
    assert (bins["low"][1], bins["high"][1]) == wilson_interval(5, 10)
    assert bins["margin"][0] == pytest.approx(np.arange(10).mean() / 60)
    assert len(margin_bins(margins.assign(margin=0.5), 0.95)) == 1
    assert margin_bins(margins.assign(margin=math.nan), 0.95).empty


def checkpoints(number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    measured = measure(scores(0.6, 0.8, number=30), METRICS, bootstrap=Bootstrap(num_replicates=4))
    names = [(family, step) for family in ("dense", "sparse") for step in range(number)]
    models = [{"name": f"{family}/step-{step:06d}", "family": family, "step": float(step)} for family, step in names]
    where = {"benchmark": "pairs", "readout": ""}
    return pd.DataFrame(models), pd.concat([measured.assign(model=row["name"], **where) for row in models])


def test_checkpoints_are_lines_by_family():
    models, measures = checkpoints(4)
    content = BiasReport("x", models, measures)
    figure = metric_by_step(content.measures, content.models)
    lines = {str(line.get_label()): line.get_xdata().tolist() for line in figure.axes[0].get_lines()[:2]}
    assert lines == {"dense": [1, 2, 3], "sparse": [1, 2, 3]}


def test_many_models_stay_readable(tmp_path):
    models, measures = checkpoints(65)
    comparisons = compare(scores(0.6, 0.8, number=30), scores(0.3, 0.8, number=30), METRICS, bootstrap=FEW)
    pairs = [
        comparisons.assign(base=models["name"][0], other=name, benchmark="pairs", readout="")
        for name in models["name"][1:]
    ]
    html = write_bias(tmp_path, BiasReport("x", models, measures, holm_over(pd.concat(pairs))))[0].read_text()
    assert "(first 60 of 130 shown, all in the CSV)" in html
    assert html.count("Of each family the last checkpoint is drawn; all are in the CSV.</figcaption>") == 2
    assert len(pd.read_csv(tmp_path / "bias_models.csv")) == 130
    assert len(html) < 1_000_000


def test_the_forest_shows_models_that_failed_hollow(content):
    table = content.measures.query("group == '' and aspect == 'bias'")
    ax = metric_forest(table, [RANDOM]).axes[0]
    faces = [line.get_markerfacecolor() for line in ax.get_lines() if line.get_marker() == "o"]
    assert [face == "none" for face in faces] == [False, False, True]


def test_what_noise_alone_puts_above_neutral_is_not_told_apart_from_it(content):
    sentence = "told apart from the neutral"
    assert sentence in "\n".join(findings(content))
    sizes = content.measures.assign(magnitude=True)
    assert sentence not in "\n".join(findings(replace(content, measures=sizes)))


def test_a_panel_of_margins_has_a_line():
    """The ninth model is not drawn, and so nor is the benchmark that it alone was asked."""
    rows = [
        {"other": f"m{model}", "benchmark": "rare" if model == 8 else "pairs", "margin": place / 20, "changed": False}
        for model in range(9)
        for place in range(20)
    ]
    axes = changed_by_margin(pd.DataFrame(rows), 0.95).axes
    assert [ax.get_title("left") for ax in axes if ax.get_visible()] == ["pairs"]


def test_what_has_no_interval_has_no_brackets(content, tmp_path):
    bare = {"low": np.nan, "high": np.nan}
    told = replace(content, measures=content.measures.assign(**bare), comparisons=content.comparisons.assign(**bare))
    write_bias(tmp_path, told, stem="report")
    page = (tmp_path / "report.html").read_text()
    assert "[undefined" not in page
    assert "75.0 %" in page
