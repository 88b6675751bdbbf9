from __future__ import annotations

import math
import re
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fairsisa.report import plots, training_plots
from fairsisa.report.rows import by_key
from fairsisa.report.style import BLUE, MUTED, SERIES, VERMILION, figure_of, plain, series_colours, styled
from fairsisa.report.svg import inline_svg
from test_report_content import make_curves, make_report, make_training

ROWS = pd.DataFrame({"label": ["a", "b", "c"], "value": [0.2, math.nan, 0.5], "low": [0.1, math.nan, 0.4]})
ROWS["high"] = [0.3, math.nan, 0.7]


def dots(ax):
    """Where single dots stand, as (x, y)."""
    lines = [line for line in ax.get_lines() if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def bars(ax):
    """Where horizontal intervals run, as (from, to, y)."""
    return [
        (segment[0][0], segment[1][0], segment[0][1])
        for collection in ax.collections
        for segment in collection.get_segments()
    ]


def words(figure):
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def test_a_forest_shows_values_intervals_and_what_is_undefined():
    figure = plots.forest(ROWS, title="of trees")
    ax = figure.axes[0]
    assert dots(ax) == [(0.2, 0), (0.5, 2)]
    assert bars(ax) == [(0.1, 0.3, 0), (0.4, 0.7, 2)]
    assert {"a", "b", "c", "of trees", "undefined", "0.200", "0.500"} <= set(words(figure))
    assert ax.yaxis_inverted()
    low, high = ax.get_xlim()
    assert low < 0.1
    assert high > 0.7


def test_a_forest_of_nothing_defined_is_still_drawn():
    empty = ROWS.assign(value=math.nan, low=math.nan, high=math.nan)
    assert words(plots.forest(empty)).count("undefined") == 3


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_a_forest_of_equal_values_has_room_around_them(value):
    ax = plots.forest(ROWS.assign(value=value, low=value, high=value)).axes[0]
    low, high = ax.get_xlim()
    assert low < value < high
    assert high - low < 2.0


def test_given_axes_are_drawn_on():
    figure = Figure()
    ax = figure.subfigures(1, 2)[1].subplots()
    assert plots.forest(ROWS, ax=ax) is figure
    assert figure_of(ax) is figure
    assert len(dots(ax)) == 2


def test_every_predictor_has_a_row_in_every_panel_in_the_colour_of_its_role():
    metrics = make_report().evaluation.metrics
    shown = [("", "accuracy"), *((name, "equalized_odds_difference") for name in ("religion", "race", "religion"))]
    figure = plots.predictor_panels(metrics, shown, baseline="baseline whole")
    drawn = [ax for ax in figure.axes if ax.axison]
    assert len(drawn) == 4
    found = by_key(metrics)
    names = list(dict.fromkeys(metrics["predictor"]))
    for ax, key in zip(drawn, shown, strict=True):
        assert dots(ax) == [(found[name, *key]["value"], place) for place, name in enumerate(names)]
        colours = [line.get_color() for line in ax.get_lines() if line.get_marker() == "o"]
        assert colours == [BLUE, VERMILION, MUTED, MUTED, MUTED]
        dashed = [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"]
        assert dashed == [found["baseline whole", *key]["value"]]
    assert set(names) < set(words(figure))


def test_a_predictor_without_the_metric_is_undefined_there():
    metrics = make_report().evaluation.metrics
    dropped = metrics[(metrics["predictor"] != "baseline whole") | (metrics["metric"] != "auroc")]
    figure = plots.predictor_panels(dropped, [("", "auroc")])
    assert words(figure).count("undefined") == 1


@pytest.mark.parametrize("num_classes", [2, 3])
def test_rates_of_every_group_are_drawn_for_every_class(num_classes):
    by_group = make_report(num_classes=num_classes).evaluation.by_group
    figure = plots.rates_by_group(by_group, predictor="mean_score", features=("religion", "race"))
    mine = by_group[(by_group["predictor"] == "mean_score") & (by_group["sensitive_feature"] != "")]
    for ax, metric in zip(figure.axes, plots.RATE_PANELS, strict=True):
        expected = sorted(mine.loc[mine["metric"] == metric, "value"])
        assert sorted(x for x, _ in dots(ax)) == pytest.approx(expected)
    size = mine.loc[(mine["sensitive_feature"] == "race") & (mine["group"] == "none"), "num_examples"].iloc[0]
    assert f"race: none (n = {size})" in words(figure)
    assert ("toxic" in words(figure)) == (num_classes == 3)


def test_roc_curves_and_working_points_are_those_of_the_tables():
    report = make_report()
    figure = plots.roc_panels(report.roc, report.evaluation.by_group, features=("religion", "race"))
    ax = next(ax for ax in figure.axes if ax.get_title(loc="left") == "by race")
    curve = report.roc[(report.roc["sensitive_feature"] == "race") & (report.roc["group"] == "none")]
    line = next(line for line in ax.get_lines() if line.get_label() == "none")
    assert np.array_equal(line.get_ydata(), curve["true_positive_rate"])
    found = by_key(report.evaluation.by_group, ("predictor", "sensitive_feature", "group", "metric"))
    expected = [
        tuple(found["mean_score", "race", group, f"{kind}_positive_rate"]["value"] for kind in ("false", "true"))
        for group in ("mentioned", "none")
    ]
    assert np.array(dots(ax)) == pytest.approx(np.array(expected))
    other = plots.roc_by_group(
        report.roc.assign(predictor="unknown"), report.evaluation.by_group, feature="race", class_name="toxic"
    )
    assert dots(other.axes[0]) == []


def test_many_classes_have_a_roc_panel_each():
    report = make_report(num_classes=3)
    figure = plots.roc_panels(report.roc, report.evaluation.by_group, features=("religion", "race"))
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.axison]
    assert titles == [f"{c}, by {name}" for c in ("normal", "toxic", "spam") for name in ("religion", "race")]


def test_reliability_dots_grow_with_the_bin():
    table = make_report().reliability
    scatter = plots.reliability(table).axes[0].collections[-1]
    assert np.asarray(scatter.get_offsets()) == pytest.approx(table[["confidence", "value"]].to_numpy())
    assert np.argsort(scatter.get_sizes()).tolist() == np.argsort(table["num_examples"]).tolist()


def test_disagreement_starts_with_everyone():
    table = make_report().evaluation.disagreement
    figure = plots.disagreement(table, features=("race",))
    shown = table[table["sensitive_feature"] != "religion"]["value"].tolist()
    assert [x for x, _ in dots(figure.axes[0])] == shown
    assert {"all examples", "race: mentioned", "race: none"} < set(words(figure))


def test_training_curves_run_on_from_slice_to_slice():
    curves = make_curves(num_shards=2)
    longer = curves["slice"].eq(0) & curves["shard"].eq(1)
    curves.loc[longer, "step"] = curves.loc[longer, "step"] * 10
    figure = training_plots.training_curves(curves)
    loss, accuracy = [ax for ax in figure.axes if ax.axison]
    assert [loss.get_title(loc="left"), accuracy.get_title(loc="left")] == ["train_loss", "accuracy"]
    lines = {line.get_label(): line.get_xdata().tolist() for line in loss.get_lines()}
    assert lines["shard 0"] == [1, 2, 3, 4, 5, 6]
    assert lines["shard 1"] == [10, 20, 30, 31, 32, 33]
    assert [len(line.get_xdata()) for line in accuracy.get_lines()] == [2, 2, 2, 2]


def test_the_grid_tells_trained_from_reused_from_empty():
    training = make_training()
    ax = training_plots.training_grid(training).axes[0]
    filled = [patch.get_facecolor()[3] > 0 for patch in ax.patches]
    assert filled == [status == "trained" for status in training["status"]]
    dashed = [patch.get_linestyle() not in ("-", "solid") for patch in ax.patches]
    assert dashed == [status == "empty" for status in training["status"]]
    told = [text.get_text() for text in ax.texts]
    assert told == [
        "80 ex. · reused",
        "empty",
        "81 ex. · 8.1 s",
        "81 ex. · 8.1 s",
        "82 ex. · reused",
        "82 ex. · reused",
    ]


def test_longer_slices_are_darker_and_large_grids_carry_no_figures():
    training = make_training(num_shards=20, num_slices=10).assign(status="trained", seconds=np.arange(200.0))
    ax = training_plots.training_grid(training).axes[0]
    strengths = [patch.get_alpha() for patch in ax.patches]
    assert strengths == sorted(strengths)
    assert len(ax.texts) == 0
    assert training_plots.training_grid(make_training().assign(status="reused")).axes[0].patches


@pytest.mark.parametrize("name", ["$a$", "$\\frac{1$", "女性", "x" * 300, "two\nlines", "nul\x00"])
def test_any_group_name_can_be_drawn(name):
    table = ROWS.assign(label=name)
    svg = inline_svg(plots.forest(table, title=name), name="odd", description=name)
    expected = {"x" * 300: "x" * 41 + "…", "two\nlines": "two lines", "nul\x00": "nul"}.get(name, name)
    assert svg.count(f">{expected}<") >= 3
    assert "\x00" not in svg.split("</title>")[1]


def test_colours_last_and_stay_apart():
    assert series_colours(3) == list(SERIES[:3])
    for number in (len(SERIES), 9, 40):
        assert len(set(series_colours(number))) == number
    assert plain("a  $ b\t") == r"a \$ b"


def test_svg_has_its_own_ids_and_the_pages_colours():
    figure = plots.forest(ROWS.assign(label=["<b>&", 'id="x', BLUE]))
    first = inline_svg(figure, name="one", description='<i> "quoted" & more')
    assert first.startswith("<svg ")
    assert "<title>&lt;i&gt; &quot;quoted&quot; &amp; more</title>" in first
    ids = re.findall(r'<[^<>]*\bid="([^"]+)"', first)
    assert ids
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("one-") for name in ids)
    used = set(re.findall(r"url\(#([^)]+)\)", first)) | set(re.findall(r'href="#([^"]+)"', first))
    assert used <= set(ids)
    assert "var(--blue)" in first
    drawn = re.sub(r"<[^<>]*>", "\n", first)
    assert "&lt;b&gt;&amp;" in drawn
    assert 'id="x' in drawn
    assert BLUE in drawn
    assert not any(BLUE in tag for tag in re.findall(r"<[^<>]*>", first))
    assert inline_svg(figure, name="two", description="").count('id="two-') == len(ids)


def test_drawing_leaves_matplotlibs_settings_alone():
    before = dict(mpl.rcParams)
    with styled():
        assert mpl.rcParams["svg.fonttype"] == "none"
    plots.forest(ROWS)
    assert dict(mpl.rcParams) == before


def test_no_plot_needs_pyplot():
    code = "import sys, fairsisa.report.page; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
