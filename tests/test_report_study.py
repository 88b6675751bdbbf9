from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from fairsisa.errors import DataError
from fairsisa.report.study import (
    COSTS,
    DIFFERENCES,
    RESULTS,
    StudyReport,
    findings,
    study_json,
    write_study,
)
from fairsisa.report.study_plots import cost_by_deletions, cumulative_costs, metric_by_deletions
from fairsisa.report.style import BLUE, GREEN, VERMILION
from test_report_page import EVIL, Page

PREDICTORS = ("ensemble", "baseline whole", "baseline fraction")
KEYS = (("", "accuracy"), ("sex", "equalized_odds_difference"))
STEPS = {"uniform": (0, 5, 50), "group": (0, 5)}
COST = {"unlearning": 10.0, "full retraining": 100.0, "baseline whole": 90.0, "baseline fraction": 20.0}


def results():
    rows = [
        (pattern, repeat, step, name, *key, 0.8 - step / 1000 - place / 100, 0.7 - repeat / 10, 0.9)
        for pattern, repeat in product(STEPS, range(2))
        for step in STEPS[pattern]
        for (place, name), key in product(enumerate(PREDICTORS), KEYS)
    ]
    return pd.DataFrame(rows, columns=list(RESULTS))


def differences(bounds):
    """Differences at every step, with the interval of each repeat as given."""
    rows = [
        (pattern, repeat, step, "ensemble", against, *key, sum(bounds[repeat]) / 2, *bounds[repeat])
        for pattern, repeat in product(STEPS, range(2))
        for step in STEPS[pattern]
        for against, key in product(("ensemble at the start", *PREDICTORS[1:]), KEYS)
    ]
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def costs():
    rows = [
        (pattern, repeat, step, way, spent, spent * step, 0.5, 2.0)
        for pattern, repeat in product(STEPS, range(2))
        for step in STEPS[pattern][1:]
        for way, spent in COST.items()
    ]
    return pd.DataFrame(rows, columns=list(COSTS))


def report(bounds=((-0.2, -0.1), (-0.3, -0.1)), **changes):
    values = {
        "title": "A study",
        "results": results(),
        "differences": differences(bounds),
        "costs": costs(),
        "patterns": {"uniform": "all training examples", "group": "training examples with sex = f"},
        "features": ("sex",),
        "ensemble": "2 shards of 2 slices, majority_vote",
        "num_train": 100,
        "num_test": 40,
        "ended": {"group": 5},
    }
    return StudyReport(**{**values, **changes})


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (((-0.2, -0.1), (-0.3, -0.1)), "accuracy fell (-0.150 [-0.200, -0.100], -0.200 [-0.300, -0.100])"),
        (((0.1, 0.2), (0.1, 0.3)), "accuracy rose ("),
        (((-0.1, 0.2), (-0.1, 0.3)), "accuracy is not told apart (+0.050"),
        (((0.1, 0.2), (-0.1, 0.3)), "accuracy is not told apart in 1 of 2 repeats ("),
        (((0.1, 0.2), (-0.3, -0.1)), "accuracy is not told apart in 0 of 2 repeats ("),
        (((0.0, 0.2), (0.0, 0.3)), "accuracy is not told apart ("),
        (((np.nan, np.nan), (np.nan, np.nan)), "accuracy is not told apart (undefined [undefined, undefined]"),
    ],
)
def test_findings_claim_no_more_than_the_intervals_of_all_repeats_allow(bounds, said):
    first = findings(report(bounds))[0]
    assert first.startswith("After 50 deletions from all training examples, the ensemble's ")
    assert said in first
    assert said.replace("accuracy", "its equalized odds difference by sex") in first


def test_findings_tell_the_cost_and_where_a_pattern_ended():
    told = findings(report())
    spent = 2 * 10 * (5 + 50)
    assert told[1] == (
        f"By the pattern uniform, unlearning took {spent:,} example-epochs in all steps, 10.0 % of retraining the "
        f"whole ensemble at each step (10.0 % at the first, of 5 deletions), and one model on all that is left 9,900."
    )
    assert told[2].startswith("After 5 deletions from training examples with sex = f, ")
    assert told[4] == "The pattern group ends there: the training examples with sex = f are too few for the next step."
    assert len(told) == 5


def test_costs_are_summed_up_to_each_step_whatever_the_order_of_rows():
    table = costs().sample(frac=1.0, random_state=0)
    for row in cumulative_costs(table).to_dict("records"):
        steps = [step for step in STEPS[row["pattern"]] if step <= row["deletions"]]
        assert row["cumulative"] == COST[row["way"]] * sum(steps)


def line_of(ax, colour):
    found = [line for line in ax.get_lines() if line.get_color() == colour]
    assert len(found) == 1
    return found[0]


def test_a_panel_a_pattern_a_line_a_predictor_and_a_band_over_all_repeats():
    figure = metric_by_deletions(results(), sensitive_feature="sex", metric="equalized_odds_difference")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["uniform", "group"]
    for ax, pattern in zip(figure.axes, STEPS, strict=True):
        for place, colour in enumerate((BLUE, VERMILION, GREEN)):
            line = line_of(ax, colour)
            assert line.get_xdata().tolist() == list(range(len(STEPS[pattern])))
            assert line.get_ydata() == pytest.approx([0.8 - step / 1000 - place / 100 for step in STEPS[pattern]])
        heights = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == (pytest.approx(0.6), 0.9)
        assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "5", "50"]
    assert figure.axes[0].get_ylim()[0] == 0
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] == "ensemble, unlearned"


def test_costs_are_drawn_cumulative():
    figure = cost_by_deletions(costs())
    assert line_of(figure.axes[0], BLUE).get_ydata().tolist() == [50.0, 550.0]
    assert line_of(figure.axes[1], BLUE).get_ydata().tolist() == [50.0]
    assert figure.axes[0].get_yscale() == "log"


def test_the_page_stands_alone_and_its_numbers_are_all_there(tmp_path):
    content = report()
    page, numbers = write_study(tmp_path, content)
    text = page.read_text()
    assert text.count("<!doctype html>") == 1
    for sentence in findings(content):
        assert sentence.replace("'", "&#39;") in text
    assert {"accuracy", "difference-0", "cost"} <= {
        name.removeprefix("figure-") for name in text.split('"') if name.startswith("figure-")
    }
    shown = Page(text)
    assert shown.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(shown.tags)
    assert all(value.startswith("#") for name, value in shown.attributes if name in ("href", "src"))
    found = json.loads(numbers.read_text())
    assert found == study_json(content)
    assert len(found["results"]) == len(content.results)
    assert found["results"][0] == dict(zip(RESULTS, results().iloc[0].tolist(), strict=True))


def test_names_from_the_data_stay_text(tmp_path):
    tables = {"results": results(), "differences": differences(((-0.1, 0.1), (-0.1, 0.1)))}
    renamed = {name: table.replace({"sex": EVIL}) for name, table in tables.items()}
    content = report(**renamed, title=EVIL, features=(EVIL,), patterns={"uniform": EVIL, "group": EVIL})
    text = write_study(tmp_path, content)[0].read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.text.count(EVIL) > 10


def test_a_study_without_baselines_costs_or_features_has_a_page(tmp_path):
    alone = results().query("predictor == 'ensemble'")
    content = report(
        results=alone,
        differences=differences(((0.1, 0.2), (0.1, 0.2))).query("against == 'ensemble at the start'"),
        costs=costs().head(0),
        features=(),
        ended={},
    )
    text = write_study(tmp_path, content)[0].read_text()
    assert 'id="cost"' not in text
    assert 'id="fairness"' not in text
    assert len(findings(content)) == 2


@pytest.mark.parametrize("name", ["results", "differences", "costs"])
def test_a_table_that_lacks_a_column_is_refused(name):
    table = getattr(report(), name)
    with pytest.raises(DataError, match=rf"in the {name}; pattern not found"):
        replace(report(), **{name: table.drop(columns="pattern")})


def test_a_study_of_nothing_is_refused():
    with pytest.raises(DataError, match="at least one step, got none"):
        replace(report(), results=results().head(0))
