from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fairsisa.fairness.evaluation import evaluate
from fairsisa.fairness.predictors import HeldOut, Predictor
from fairsisa.intervals import Bootstrap
from fairsisa.report.content import RunReport
from fairsisa.report.findings import cautions, headline
from test_report_content import make_report


def report_of(labels, decided, groups, *, people=None, baselines=("baseline whole",)):
    ids = tuple(str(number) for number in range(len(labels)))
    people = np.array(ids) if people is None else people
    held = HeldOut(ids, people, labels, ("no", "yes"), {"who": groups})
    predictors = [Predictor(name, decisions) for name, decisions in decided.items()]
    evaluation = evaluate(held, predictors, bootstrap=Bootstrap(num_replicates=100))
    return RunReport("toy", evaluation, ensemble="majority_vote", baselines=baselines)


@pytest.fixture
def labels():
    return np.array([0, 1] * 200)


@pytest.fixture
def groups():
    return np.array(["a", "a", "b", "b"] * 100, dtype=object)


def wrong_for(labels, rows):
    decided = labels.copy()
    decided[rows] = 1 - decided[rows]
    return decided


def test_a_clear_difference_and_an_unclear_one_are_told_apart(labels, groups):
    decided = {
        "majority_vote": wrong_for(labels, np.arange(0, 400, 4)),
        "baseline whole": labels,
        "baseline fraction": wrong_for(labels, np.arange(1, 400, 4)),
    }
    sentences = headline(report_of(labels, decided, groups, baselines=("baseline whole", "baseline fraction")))
    accuracy, odds = sentences
    assert accuracy.startswith("majority_vote decides 75.0 % of 400 held-out examples rightly (")
    assert "below baseline whole (difference -25.0 points, -" in accuracy
    assert "not told apart from baseline fraction (difference +0.0 points, -" in accuracy
    assert odds.startswith("Its equalized odds difference by who is 1.000 (1.000 to 1.000): above baseline whole (")


def test_a_difference_that_does_not_exist_is_explained(labels, groups):
    lone = np.full(400, "a", dtype=object)
    decided = {"majority_vote": labels, "baseline whole": labels}
    assert headline(report_of(labels, decided, lone))[1] == (
        "Its equalized odds difference by who is undefined: the examples hold 1 group of it."
    )
    bare = groups.copy()
    bare[(labels == 0) & (groups == "b")] = "a"
    report = report_of(labels, decided, bare)
    assert headline(report)[1] == ("Its equalized odds difference by who is undefined: no example is b with label no.")
    assert any(told.startswith("By who, no example is b with label no: rates there") for told in cautions(report))


def test_without_baselines_the_headline_stands_alone(labels, groups):
    sentences = headline(report_of(labels, {"majority_vote": labels}, groups, baselines=()))
    assert sentences[0] == "majority_vote decides 100.0 % of 400 held-out examples rightly (100.0 % to 100.0 %)."
    assert sentences[1] == "Its equalized odds difference by who is 0.000 (0.000 to 0.000)."


def test_cautions_begin_with_the_runs_own_warnings_and_name_what_is_weak(labels, groups):
    weak = groups.copy()
    weak[:7] = "rare"
    weak[7:12] = None
    people = np.array([f"person {number % 40}" for number in range(400)])
    report = report_of(labels, {"majority_vote": labels, "baseline whole": labels}, weak, people=people)
    told = cautions(replace(report, warnings=("first of all",)))
    assert told[0] == "first of all"
    assert told[1].startswith("2 cells (a group and a label) have fewer than 30 examples (who)")
    assert told[2] == "who is unknown for 5 of 400 examples, which are left out of its rates."
    assert told[3].startswith("The intervals come from resampling 40 people; below about 100")
    assert told[4].startswith("Some numbers do not exist in up to ")
    assert told[4].split("up to ")[1].split(" ")[0] == str(report.evaluation.metrics["num_undefined"].max())
    assert told[5].startswith("A difference over groups is a maximum of noisy numbers")
    assert len(told) == 6


def test_strong_data_leave_only_the_word_on_differences(labels, groups):
    told = cautions(report_of(labels, {"majority_vote": labels, "baseline whole": labels}, groups))
    assert len(told) == 1
    assert cautions(make_report(features=(), warnings=())) == []
