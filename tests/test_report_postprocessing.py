from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import DataError
from fairsisa.report.content import Fact
from fairsisa.report.fair_plots import (
    MOST_REGIONS,
    MOST_VERTICES,
    AttainableRegion,
    attainable_regions,
    metric_label,
    rates_before_after,
    shared_region,
    strategy_label,
)
from fairsisa.report.postprocessing import (
    ACHIEVED,
    BY_GROUP,
    CHOICES,
    OVERALL,
    SHARES,
    SMALL_CELLS,
    PostprocessingReport,
    by_group_table,
    choices_table,
    criterion_metric,
    findings,
    overall_share,
    overall_table,
    postprocessing_json,
    prices,
    shares_table,
    write_postprocessing,
)
from fairsisa.report.style import BLUE, VERMILION, series_colours
from test_report_page import EVIL, Page
from test_report_plots import words

ODDS = "equalized_odds_difference"
GROUPS = ("f", "m")
RATES = ("true_positive_rate", "false_positive_rate")
UP = np.array([[0.0, 0.0], [0.2, 0.6], [1.0, 1.0]])


def region(group="f", upper=UP, **changes):
    values = {
        "group": group,
        "upper": upper,
        "lower": (1 - upper)[::-1],
        "before": np.array([0.2, 0.6]),
        "after": np.array([0.1, 0.3]),
        "mixed": upper[:2],
    }
    return AttainableRegion(**{**values, **changes})


def overall(change=(-0.16, -0.08), accuracy=(-0.05, -0.01), after=(0.03, 0.09)):
    """Before and after, with the paired intervals given; None leaves the pairs out."""
    rows = [
        ("before", ODDS, 0.2, 0.15, 0.25),
        ("after", ODDS, sum(after) / 2, *after),
        ("before", "accuracy", 0.75, 0.7, 0.8),
        ("after", "accuracy", 0.72, 0.69, 0.78),
        ("baseline whole", "accuracy", 0.77, 0.7, 0.8),
    ]
    for metric, bounds in ((ODDS, change), ("accuracy", accuracy)):
        if bounds is not None:
            rows.append(("change", metric, sum(bounds) / 2, *bounds))
    return pd.DataFrame(rows, columns=list(OVERALL))


def by_group(groups=GROUPS):
    cells = product(("before", "after"), enumerate(groups), enumerate(RATES))
    rows = [
        (name, group, 40 + place, metric, 0.3 + place / 10 + which / 5, 0.2, 0.9)
        for name, (place, group), (which, metric) in cells
    ]
    return pd.DataFrame(rows, columns=list(BY_GROUP))


def shares(groups=GROUPS):
    rows = [(group, 100 * (place + 1), 0.1 * place, 0.2, 0.0) for place, group in enumerate(groups)]
    return pd.DataFrame(rows, columns=list(SHARES))


def report(**changes):
    values = {
        "title": "A rule",
        "strategy": "ensemble_vote_count",
        "sensitive_features": ("sex",),
        "achieved": pd.DataFrame([("equalized_odds", "max", 0.05, 0.05, 0.31)], columns=list(ACHIEVED)),
        "loss": 0.28,
        "solver": "plane",
        "num_fit": 1000,
        "num_test": 1234,
        "overall": overall(),
        "by_group": by_group(),
        "shares": shares(),
        "regions": tuple(region(group) for group in GROUPS),
    }
    return PostprocessingReport(**{**values, **changes})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (overall(), "fell from 0.200 to 0.060 (change -0.120, -0.160 to -0.080); 0.050 was promised on the fit data"),
        (overall(change=(0.01, 0.03)), "rose from 0.200 to 0.060 (change +0.020, +0.010 to +0.030)"),
        (overall(change=(-0.2, 0.0)), "is not told apart from before: 0.200 before, 0.060 after (change -0.100"),
        (overall(change=None), "fell from 0.200 to 0.060 (change -0.140); 0.050"),
        (
            overall(change=None, after=(0.1, 0.2)),
            "apart from before: 0.200 before, 0.150 after (change -0.050), above the tolerance of",
        ),
        (overall(change=None, after=(0.26, 0.3)), "rose from 0.200 to 0.280 (change +0.080), above the tolerance of"),
        (overall(after=(0.05, 0.09)), "to -0.080); 0.050 was"),
        (overall(after=(math.nan, math.nan)), "fell from 0.200 to undefined (change -0.120"),
    ],
)
def test_a_difference_is_told_apart_only_where_intervals_allow_it(table, said):
    told = findings(report(overall=table))[1]
    assert told.startswith("On 1,234 held-out examples, the equalized odds difference ")
    assert said in told
    assert ("above the tolerance" in told) == ("above the tolerance" in said)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((-0.05, -0.01), "Accuracy fell from 75.0 % to 72.0 % (change -3.0 points, -5.0 to -1.0). "),
        ((-0.05, 0.01), "Accuracy is not told apart from before: 75.0 % before, 72.0 % after (change -2.0 points,"),
        ((0.01, 0.05), "Accuracy rose from 75.0 %"),
    ],
)
def test_accuracy_and_chance_are_told_in_one_sentence(bounds, said):
    told = findings(report(overall=overall(accuracy=bounds)))[2]
    assert told.startswith(said)
    assert told.endswith(" 6.7 % of decisions are left to chance, 20.0 % are overridden.")


def test_backing_off_is_told_where_it_happens():
    told = findings(report(shares=shares().assign(backed_off=0.25)))[2]
    assert told.endswith("20.0 % are overridden; 25.0 % met a state that the fit data lack.")


def test_the_first_sentence_says_what_was_chosen_and_why():
    two = [("equalized_odds", "mean", 0.05, 0.05, 0.3), ("demographic_parity", "max", 0.1, 0.1, math.nan)]
    table = pd.concat(
        [overall().replace(ODDS, ODDS + "_mean"), overall().replace(ODDS, "demographic_parity_difference")]
    )
    content = report(
        achieved=pd.DataFrame(two, columns=list(ACHIEVED)),
        overall=table,
        reason="It kept its promise.",
        sensitive_features=("sex", "race"),
    )
    told = findings(content)
    assert told[0] == (
        "Decisions by count of votes (ensemble_vote_count), fitted by sex & race to equalized odds (mean form) with "
        "tolerance 0.05 and demographic parity with tolerance 0.1. It kept its promise."
    )
    assert "; the demographic parity difference fell from" in told[1]
    assert prices(content) == [
        "One point (0.01) more tolerance of equalized odds (mean form) would buy 0.30 points of accuracy on the "
        "calibration rows."
    ]


def test_with_unequal_costs_tolerance_buys_cost_and_not_accuracy():
    assert prices(report(costs=(1.0, 4.0)))[0].endswith(" would buy 0.0031 of mean cost on the calibration rows.")


def test_beware_of_the_first_that_applies():
    small = pd.DataFrame([("f", "toxic", 12)], columns=list(SMALL_CELLS))
    content = report(warnings=("It is a constant.", "And more."), small_cells=small)
    assert findings(content)[3] == "Beware: It is a constant. (1 more warning on the page.)"
    assert findings(replace(content, warnings=()))[3] == (
        "Beware: rates rest on few examples in 1 cell (f with label toxic)."
    )
    assert findings(report())[3] == "Beware: the intervals reach beyond the tolerance, up to 0.090 for equalized odds."
    assert len(findings(report(overall=overall(after=(0.01, 0.05))))) == 3


def test_the_share_of_all_is_the_row_of_all_or_the_mean_by_size():
    assert overall_share(shares(), "randomised") == pytest.approx(0.2 / 3)
    whole = pd.DataFrame([("", 300, 0.5, 0.0, 0.0)], columns=list(SHARES))
    assert overall_share(pd.concat([shares(), whole]), "randomised") == 0.5
    assert math.isnan(overall_share(shares().head(0), "randomised"))


def test_tables_hold_what_was_promised_beside_what_came_out():
    table = overall_table(report())
    assert table.columns == ("metric", "promised on the fit data", "before", "after", "change", "baseline whole")
    assert [row[0].text for row in table.rows] == ["Equalized odds difference", "Accuracy"]
    assert [(cell.text, cell.detail) for cell in table.rows[0][1:]] == [
        ("0.050", "tolerance 0.05"),
        ("0.200", "[0.150, 0.250]"),
        ("0.060", "[0.030, 0.090]"),
        ("-0.120", "[-0.160, -0.080]"),
        ("", ""),
    ]
    table = by_group_table(by_group(("", "f")))
    assert [[cell.text for cell in row[:4]] for row in table.rows[:2]] == [
        ["all examples", "before", "40", "0.300"],
        ["all examples", "after", "40", "0.300"],
    ]
    table = shares_table(shares().assign(randomised_low=0.0, randomised_high=0.125))
    assert (table.rows[1][2].text, table.rows[1][2].detail) == ("10.0 %", "[0.0 %, 12.5 %]")
    assert table.rows[1][3].detail == ""
    chosen = choices_table(pd.DataFrame([("members_random", 0.05, 0.7, 0.04, 0.06, True)], columns=list(CHOICES)))
    assert [cell.text for cell in chosen.rows[0]] == [
        "constituents post-processed, one drawn",
        "chosen",
        "0.05",
        "0.700",
        "0.040",
    ]
    assert chosen.rows[0][4].detail == "at most 0.060"


@pytest.mark.parametrize(
    ("criterion", "form", "metric"),
    [
        ("equalized_odds", "max", "Equalized odds difference"),
        ("equalized_odds", "mean", "Equalized odds difference, mean"),
        ("bounded_group_loss", "max", "bounded group loss"),
        ("demographic_parity", "max", "Demographic parity difference"),
    ],
)
def test_every_criterion_has_its_metric(criterion, form, metric):
    assert metric_label(criterion_metric(criterion, form)) == metric


chains = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=6)


def chain_of(steps):
    """A concave chain from positive steps, the steepest first, scaled to end at (1, 1)."""
    ordered = np.array(sorted(steps, key=lambda step: -step[1] / step[0]))
    return np.vstack([np.zeros(2), np.cumsum(ordered, axis=0) / ordered.sum(axis=0)]).clip(0, 1)


@given(st.lists(chains, min_size=1, max_size=4))
def test_the_shared_region_is_inside_every_region_and_touches_one(steps):
    found = [region(str(place), chain_of(chain)) for place, chain in enumerate(steps)]
    x, low, high = shared_region(found)
    assert (np.diff(x) > 0).all()
    assert (low <= high + 1e-9).all()
    uppers = np.array([np.interp(x, own.upper[:, 0], own.upper[:, 1]) for own in found])
    lowers = np.array([np.interp(x, own.lower[:, 0], own.lower[:, 1]) for own in found])
    inside = slice(1, -1)  # ends may be vertical
    assert high[inside] == pytest.approx(uppers.min(axis=0)[inside])
    assert low[inside] == pytest.approx(np.minimum(lowers.max(axis=0), uppers.min(axis=0))[inside], abs=1e-9)


def test_a_vertical_piece_belongs_to_the_region():
    perfect = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    x, low, high = shared_region([region("f", perfect)])
    assert (x[0], low[0], high[0]) == (0, 0, 1)
    assert (low[-1], high[-1]) == (0, 1)
    assert (low[:-1] == 0).all()


def test_a_panel_a_group_and_one_for_all_with_every_point():
    figure = attainable_regions([region("f"), region("m", mixed=np.empty((0, 2)))])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["all groups", "f", "m"]
    assert {"before", "after", "mixed to reach it", "attainable for all groups"} <= set(words(figure))
    for ax, colour in zip(figure.axes[1:], (BLUE, VERMILION), strict=True):
        lines = {(line.get_marker(), line.get_markerfacecolor()): line for line in ax.get_lines()}
        assert lines["o", "none"].get_xydata().tolist() == [[0.2, 0.6]]
        assert lines["o", colour].get_xydata().tolist() == [[0.1, 0.3]]
        polygon = ax.patches[0].get_xy()
        assert polygon[: len(UP)].tolist() == UP.tolist()
    squares = [line for line in figure.axes[1].get_lines() if line.get_marker() == "s"]
    assert squares[0].get_xydata().tolist() == UP[:2].tolist()


def test_many_groups_and_vertices_stay_few_enough_to_draw():
    x = np.linspace(0, 1, 5000)
    long = np.column_stack([x, np.sqrt(x)])
    figure = attainable_regions([region(f"group {place}", long) for place in range(MOST_REGIONS + 3)])
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert len(titles) == MOST_REGIONS + 1
    assert max(len(line.get_xdata()) for ax in figure.axes for line in ax.get_lines()) == MOST_VERTICES
    colours = [ax.patches[0].get_facecolor() for ax in figure.axes[1 : MOST_REGIONS + 1]]
    assert len({tuple(colour) for colour in colours}) == len(series_colours(MOST_REGIONS))


def test_rates_have_a_panel_a_metric_and_a_pair_a_group():
    figure = rates_before_after(by_group(("", "f", "m")))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["True positive rate", "False positive rate"]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "all examples (n = 40)"
    values = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert values == pytest.approx([0.3, 0.3, 0.4, 0.4, 0.5, 0.5])


def test_long_names_of_groups_keep_both_their_ends():
    names = [f"a sensitive feature with many words & {end}" for end in ("women", "men")]
    labels = [label.get_text() for label in rates_before_after(by_group(names)).axes[0].get_yticklabels()]
    assert len(set(labels)) == 2
    assert all(label.startswith("a sensitive") and "(n = " in label for label in labels)


def test_an_undefined_rate_leaves_its_place_empty():
    table = by_group().assign(value=math.nan, low=math.nan, high=math.nan)
    assert not [line for line in rates_before_after(table).axes[0].get_lines() if line.get_marker() == "o"]


def test_the_page_stands_alone_and_the_numbers_are_beside_it(tmp_path):
    choices = pd.DataFrame([("members_random", 0.05, 0.7, 0.04, 0.06, True)], columns=list(CHOICES))
    small = pd.DataFrame([("f", "toxic", 12)], columns=list(SMALL_CELLS))
    content = report(choices=choices, small_cells=small, commands=("fairsisa postprocess",), facts=(Fact("a", "b"),))
    page, numbers = write_postprocessing(tmp_path / "new", content, "fair")
    assert sorted(path.name for path in page.parent.iterdir()) == ["fair.html", "fair.json"]
    text = page.read_text(encoding="utf-8")
    seen = Page(text)
    assert seen.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(seen.tags)
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in seen.attributes if name == "href"} <= set(ids)
    for sentence in (*findings(content), *prices(content), "Left to chance".lower(), "fair.json", "fairsisa postproc"):
        assert sentence in seen.text
    assert seen.tags.count("figure") == 2
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert found == postprocessing_json(content)
    assert found["overall"][0] == dict(zip(OVERALL, overall().iloc[0].tolist(), strict=True))
    assert found["regions"][0]["upper"] == UP.tolist()
    assert found["achieved"][0]["price"] == 0.31


def test_a_page_of_three_classes_has_no_regions_and_empty_tables_no_section(tmp_path):
    content = report(regions=(), by_group=by_group().head(0), shares=shares().head(0))
    content = replace(content, achieved=content.achieved.assign(price=math.nan))
    text = write_postprocessing(tmp_path, content, "fair")[0].read_text(encoding="utf-8")
    for section in ("groups", "regions", "shares", "choices"):
        assert f'id="{section}"' not in text
        assert f'href="#{section}"' not in text
    assert "undefined of decisions are left to chance" in text


def test_names_from_the_data_stay_text(tmp_path):
    content = report(
        title=EVIL,
        strategy=EVIL,
        sensitive_features=(EVIL,),
        reason=EVIL,
        warnings=(EVIL,),
        by_group=by_group((EVIL, "m")),
        shares=shares((EVIL, "m")),
        small_cells=pd.DataFrame([(EVIL, EVIL, 1)], columns=list(SMALL_CELLS)),
        regions=(region(EVIL),),
        settings={EVIL: EVIL},
    )
    text = write_postprocessing(tmp_path, content, "fair")[0].read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.text.count(EVIL) > 10


@pytest.mark.parametrize("name", ["achieved", "overall", "by_group", "shares"])
def test_a_table_that_lacks_a_column_is_refused(name):
    table = getattr(report(), name)
    column = table.columns[0]
    with pytest.raises(DataError, match=rf"in the {name} table; {column} not found"):
        replace(report(), **{name: table.drop(columns=column)})


@pytest.mark.parametrize(("name", "columns"), [("small_cells", SMALL_CELLS), ("choices", CHOICES)])
def test_an_optional_table_is_checked_when_it_has_rows(name, columns):
    with pytest.raises(DataError, match=rf"in the {name} table; {columns[1]}"):
        report(**{name: pd.DataFrame({columns[0]: ["x"]})})


def test_what_the_findings_need_must_be_there():
    with pytest.raises(DataError, match=r"metric 'accuracy' of 'after' in the overall table"):
        report(overall=overall().query("not (predictor == 'after' and metric == 'accuracy')"))
    with pytest.raises(DataError, match=r"metric 'equalized_odds_difference' of 'before'"):
        report(overall=overall().query("metric == 'accuracy'"))
    with pytest.raises(DataError, match="at least one criterion"):
        report(achieved=report().achieved.head(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"before": np.array([0.2, 1.2])}, r"'before' of group 'f' to hold rates between 0 and 1, shape \(2,\)"),
        ({"after": np.array([0.2, np.nan])}, "'after' of group 'f'"),
        ({"mixed": np.array([0.2, 0.3])}, r"'mixed' of group 'f' .* shape \(m, 2\); got shape \(2,\)"),
        ({"upper": UP[::-1]}, r"'upper' of group 'f' to lead from \(0, 0\) on, no rate falling"),
        ({"lower": UP[:1]}, "'lower' of group 'f' to lead"),
        ({"upper": np.array([[0, 0], [0.5, 0.6], [0.4, 1]])}, "'upper' of group 'f' to lead"),
    ],
)
def test_points_that_are_no_rates_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        region(**changes)


def test_a_strategy_that_is_not_known_keeps_its_name():
    assert strategy_label("my_own") == "my own"
