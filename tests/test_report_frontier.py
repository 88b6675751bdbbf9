from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from fairsisa.errors import DataError
from fairsisa.report.content import Fact
from fairsisa.report.fair_plots import STRATEGIES, frontier_panels, strategy_label, strategy_lines, strategy_panels
from fairsisa.report.frontier import SWEEP, FrontierReport, findings, sweep_table, write_frontier
from fairsisa.report.svg import THEMED, inline_svg
from test_report_page import EVIL, Page
from test_report_plots import words

TOLERANCES = (0.0, 0.05, 0.1)
NAMES = ("aggregate_first", "ensemble_pattern")
OVERSHOOT = {"aggregate_first": 0.01, "ensemble_pattern": 0.12}
ACCURACY = {"aggregate_first": 0.66, "ensemble_pattern": 0.7}


def row(strategy, tolerance, split, accuracy, difference, *, half=0.02):
    bounds = (max(difference - half, 0.0), difference + half)
    shares = (0.1, 0.2, 0.3)
    return (strategy, tolerance, split, accuracy, accuracy - half, accuracy + half, difference, *bounds, *shares)


def sweep(names=NAMES, tolerances=TOLERANCES, half=0.02):
    rows = [
        row(
            name,
            value,
            split,
            ACCURACY.get(name, 0.6) + value,
            value + (OVERSHOOT.get(name, 0) if split == "test" else 0),
            half=half,
        )
        for name, value, split in product(names, tolerances, ("fit", "test"))
    ]
    return pd.DataFrame(rows, columns=list(SWEEP))


def baselines(names=("majority_vote", "single model")):
    rows = [
        row(name, math.nan, split, 0.75 + place / 100, 0.2)
        for (place, name), split in product(enumerate(names), ("fit", "test"))
    ]
    return pd.DataFrame(rows, columns=list(SWEEP))


def report(**changes):
    values = {
        "title": "A sweep",
        "sweep": sweep(),
        "criterion": "equalized_odds",
        "sensitive_features": ("sex",),
        "num_fit": 1000,
        "num_test": 1234,
        "baselines": baselines(),
    }
    return FrontierReport(**{**values, **changes})


def test_findings_name_the_fairest_the_most_accurate_and_what_was_not_kept():
    told = findings(report())
    assert told == [
        "At the strictest tolerance, 0, the lowest equalized odds difference on held-out examples is that of majority "
        "vote, then post-processed: 0.010 [0.000, 0.030], accuracy 66.0 %, told apart from majority vote (0.200 "
        "[0.180, 0.220], accuracy 75.0 %).",
        "At that tolerance pattern of votes decides most accurately (70.0 %); 1 of 1 other is not told apart from it.",
        "No strategy's held-out interval lies within its tolerance, at any tolerance swept.",
        "The fit data promise most too much for pattern of votes at tolerance 0: 0.000 there, 0.120 [0.100, 0.140] on "
        "held-out examples.",
    ]


def test_what_overlaps_is_not_told_apart():
    wide = baselines().assign(difference_low=0.03)
    assert "66.0 %, not told apart from majority vote" in findings(report(baselines=wide))[0]
    assert "66.0 %, told apart from majority vote" in findings(report(baselines=wide.assign(difference_low=0.031)))[0]
    narrow = sweep(half=0.019)
    assert "; 0 of 1 other are not told apart from it." in findings(report(sweep=narrow))[1]


def test_a_promise_kept_is_told_with_its_tolerance():
    kept = sweep(half=0.02).assign(difference_high=lambda table: table["difference"] - 0.01)
    assert findings(report(sweep=kept))[2] == (
        "The smallest tolerance that a held-out interval keeps entirely is 0, by majority vote, then post-processed."
    )
    modest = sweep().assign(difference_low=0.0)
    assert len(findings(report(sweep=modest))) == 3


def test_unbounded_fit_rows_and_a_single_strategy_without_baselines_are_fine(tmp_path):
    table = sweep(names=NAMES[:1])
    bounds = [name for name in SWEEP if name.endswith(("_low", "_high"))]
    table.loc[table["split"] == "fit", bounds] = math.nan
    content = report(sweep=table, baselines=baselines().head(0))
    told = findings(content)
    assert told[0].endswith("accuracy 66.0 %.")
    assert len(told) == 2
    assert write_frontier(tmp_path, content)[0].stat().st_size > 10_000


def test_the_unprocessed_strategy_is_a_baseline():
    content = report(sweep=sweep(names=(*NAMES, "unprocessed")))
    assert list(dict.fromkeys(content.lines["strategy"])) == list(NAMES)
    assert content.singles["strategy"].tolist() == ["majority_vote"] * 2 + ["single model"] * 2 + ["unprocessed"] * 2
    assert content.singles["tolerance"].isna().all()
    assert report(baselines=baselines().head(0)).singles.empty


def marked(ax, colour):
    """The points of a strategy's line, in order."""
    lines = [line for line in ax.get_lines() if line.get_color() == colour and len(line.get_xdata()) > 1]
    return [line.get_xydata().tolist() for line in lines]


def test_both_panels_have_a_line_a_strategy_on_the_same_scales():
    table = sweep()
    figure = frontier_panels(table.iloc[::-1], baselines(), metric="a difference")
    held_out, fitted = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["held-out examples", "fit data: what was believed"]
    assert held_out.get_xlim() == fitted.get_xlim()
    assert held_out.get_ylim() == fitted.get_ylim()
    for ax, split in ((held_out, "test"), (fitted, "fit")):
        for name in NAMES:
            mine = table[table["strategy"].eq(name) & table["split"].eq(split)]
            assert marked(ax, STRATEGIES[name][1]) == [mine[["difference", "accuracy"]].to_numpy().tolist()]
        stars = [line for line in ax.get_lines() if line.get_marker() == "*"]
        assert stars[0].get_xydata().tolist() == [[0.2, 0.75]]
    x, y = table["difference_high"].max(), table["accuracy_low"].min()
    assert held_out.get_xlim()[0] < 0 < x < held_out.get_xlim()[1]
    assert held_out.get_ylim()[0] < y
    labels = set(words(figure))
    assert {*(strategy_label(name) for name in NAMES), "majority vote", "single model", "a difference"} <= labels


def test_the_strictest_tolerance_has_the_large_mark_and_the_interval():
    ax = frontier_panels(sweep(names=NAMES[:1]), baselines().head(0), metric="d").axes[0]
    large = [line for line in ax.get_lines() if line.get_markersize() == 7]
    assert large[0].get_xydata().tolist() == [[0.01, 0.66]]
    ends = [segment.tolist() for bars in ax.collections for segment in bars.get_segments()]
    assert np.array(ends) == pytest.approx(np.array([[[0, 0.66], [0.03, 0.66]], [[0.01, 0.64], [0.01, 0.68]]]))


def test_each_strategy_has_a_panel_with_both_its_lines():
    figure = strategy_panels(sweep(), baselines(), metric="a difference")
    assert [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes] == [strategy_label(n) for n in NAMES]
    for ax, name in zip(figure.axes, NAMES, strict=True):
        assert len(marked(ax, STRATEGIES[name][1])) == 2
        intervals = [segment for bars in ax.collections for segment in bars.get_segments()]
        assert len(intervals) == 2 * len(TOLERANCES) + 2 * 2


def test_all_strategies_look_different_in_themed_colours():
    names = [name for name in STRATEGIES if name != "unprocessed"]
    lines = strategy_lines(sweep(names=(*names, "mine", "yours")))
    assert len({lines[name] for name in names}) == len(names)
    assert {colour for colour, _ in lines.values()} <= set(THEMED)
    assert lines["mine"] != lines["yours"]
    figure = frontier_panels(sweep(names=names), baselines(), metric="d")
    assert inline_svg(figure, name="frontier", description="all").startswith("<svg")


def test_the_table_goes_tolerance_by_tolerance_after_the_baselines():
    table = sweep_table(report(), [0.0, 0.1], "x")
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        ("majority vote", ""),
        ("single model", ""),
        *product([strategy_label(name) for name in NAMES], ["0"]),
        *product([strategy_label(name) for name in NAMES], ["0.1"]),
    ]
    last = [(cell.text, cell.detail) for cell in table.rows[-1][2:]]
    assert last == [
        ("0.800", "[0.780, 0.820]"),
        ("0.220", "[0.200, 0.240]"),
        ("0.800", ""),
        ("0.100", ""),
        ("10.0 %", ""),
        ("20.0 %", ""),
        ("30.0 %", ""),
    ]
    assert [cell.text for cell in table.rows[0][4:6]] == ["0.750", "0.200"]


def test_the_page_stands_alone_and_the_numbers_are_beside_it(tmp_path):
    content = report(
        sweep=sweep(tolerances=[round(0.01 * step, 2) for step in range(10)]),
        facts=(Fact("a", "b"),),
        warnings=("Mind this.",),
        commands=("fairsisa frontier",),
    )
    page, numbers = write_frontier(tmp_path / "new", content)
    assert sorted(path.name for path in page.parent.iterdir()) == ["frontier.csv", "frontier.html"]
    text = page.read_text(encoding="utf-8")
    seen = Page(text)
    assert seen.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(seen.tags)
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in seen.attributes if name == "href"} <= set(ids)
    for sentence in (*findings(content), "Mind this.", "frontier.csv", "at 10 tolerances of the equalized odds"):
        assert sentence in seen.text
    assert seen.tags.count("figure") == 2
    assert seen.text.count("Every strategy at every tolerance (22 rows)") == 1
    assert [str(value) in text for value in (0, 0.03, 0.06, 0.09)] == [True] * 4
    found = pd.read_csv(numbers)
    pd.testing.assert_frame_equal(found.head(len(content.sweep)), content.sweep, check_dtype=False)
    assert found["strategy"].tolist()[len(content.sweep) :] == baselines()["strategy"].tolist()


def test_names_stay_text(tmp_path):
    content = report(
        title=EVIL,
        sensitive_features=(EVIL,),
        warnings=(EVIL,),
        sweep=sweep(names=(EVIL, NAMES[0])),
        baselines=baselines((EVIL,)),
        settings={EVIL: EVIL},
    )
    page = Page(write_frontier(tmp_path, content)[0].read_text(encoding="utf-8"))
    assert page.open == []
    assert "script" not in page.tags
    assert page.text.count(EVIL) > 10


@pytest.mark.parametrize("name", ["sweep", "baselines"])
def test_a_table_that_lacks_a_column_or_has_an_unknown_split_is_refused(name):
    table = getattr(report(), name)
    with pytest.raises(DataError, match=rf"in the {name}; randomised not found"):
        replace(report(), **{name: table.drop(columns="randomised")})
    with pytest.raises(DataError, match=rf"split of fit or test in the {name}, got 'train'"):
        replace(report(), **{name: table.assign(split="train")})


@pytest.mark.parametrize("table", [sweep().head(0), sweep().query("split == 'fit'"), sweep(names=("unprocessed",))])
def test_a_sweep_without_held_out_rows_is_refused(table):
    with pytest.raises(DataError, match=r"measured on held-out rows; got none"):
        report(sweep=table)
