from __future__ import annotations

import time
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

import fair_worlds
from fair_worlds import latent_world
from fairsisa.errors import ConfigError, DataError, SolverError
from fairsisa.fairness.derived.criteria import Criterion
from fairsisa.fairness.strategies import auto
from fairsisa.fairness.strategies.audit import Judge
from fairsisa.fairness.strategies.auto import AutoPostprocess, choose
from fairsisa.fairness.strategies.crossfit import cross_fit
from fairsisa.fairness.strategies.names import STRATEGIES
from fairsisa.fairness.strategies.saving import load_postprocessor
from fairsisa.intervals import Bootstrap

COLUMNS = [
    "strategy",
    "tolerance",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "cost",
    "difference",
    "standard_error",
    "difference_high",
    "chosen",
]


def make_scores(seed, num_rows=800, num_constituents=3):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(2, size=num_rows), rng.choice(["f", "m"], size=num_rows)
    shift = 0.35 * (labels - 0.5) * (1 + (groups == "f")) + 0.1 * (groups == "f")
    return np.clip(0.5 + shift[:, None] + rng.normal(0, 0.25, (num_rows, num_constituents)), 0.01, 0.99), labels, groups


def make_choices(costs, bounds, names=None):
    return pd.DataFrame(
        {
            "strategy": names or [f"s{place}" for place in range(len(costs))],
            "tolerance": 0.0,
            "accuracy": [1 - cost for cost in costs],
            "cost": costs,
            "difference": [bound / 2 for bound in bounds],
            "standard_error": 0.01,
            "difference_high": bounds,
        }
    )


def certain(costs):
    """Return costs whose replicates differ from each other by as much as the costs: no difference is in doubt."""
    return np.asarray(costs)[:, None] + np.tile(np.linspace(-0.1, 0.1, 11), (len(costs), 1))


def pick(costs, bounds, limit=0.05, replicates=None, names=None):
    table, reason = choose(
        make_choices(costs, bounds, names), certain(costs) if replicates is None else replicates, limit, 0.95
    )
    place = int(np.flatnonzero(table["chosen"])[0])
    assert table["chosen"].sum() == 1
    return place, reason


def test_the_cheapest_of_those_that_hold_is_chosen():
    place, reason = pick([0.1, 0.2, 0.3], [0.09, 0.05, 0.01])
    assert place == 1
    assert "2 of 3 candidates have an upper bound of at most 0.05" in reason
    assert "accuracy is 0.800" in reason
    assert "at most 0.050 with 95% confidence" in reason


def test_when_none_holds_a_difference_within_one_standard_error_of_the_tolerance_will_do():
    place, reason = pick([0.1, 0.2, 0.3], [0.2, 0.118, 0.06])  # differences are half the bounds, their errors 0.01
    assert place == 1
    assert "No candidate's upper bound is at most 0.05 on so few rows; 2 of 3 exceed it by one standard error" in reason


def test_when_all_exceed_the_tolerance_the_smallest_bound_is_taken():
    place, reason = pick([0.1, 0.2, 0.3], [0.4, 0.2, 0.3])
    assert place == 1
    assert "all exceed it by more than a standard error" in reason


def test_costs_that_cannot_be_told_apart_leave_the_choice_to_trust():
    rng = np.random.default_rng(0)
    doubtful = np.array([0.22, 0.2, 0.3])[:, None] + np.column_stack([np.zeros(3), rng.normal(0, 0.05, (3, 400))])
    assert pick([0.22, 0.2, 0.3], [0.04, 0.01, 0.01], replicates=doubtful)[0] == 0
    assert pick([0.22, 0.2, 0.3], [0.04, 0.01, 0.01])[0] == 1
    assert pick([0.22, 0.2, 0.3], [0.06, 0.01, 0.01], replicates=doubtful)[0] == 1  # trusted, but does not hold


def test_of_one_strategy_the_tolerance_with_the_smallest_bound_is_taken():
    rng = np.random.default_rng(0)
    doubtful = np.array([0.20, 0.21, 0.2])[:, None] + np.column_stack([np.zeros(3), rng.normal(0, 0.05, (3, 400))])
    place, _ = pick([0.20, 0.21, 0.2], [0.04, 0.02, 0.01], replicates=doubtful, names=["s0", "s0", "s1"])
    assert place == 1


def test_unknown_bounds_never_hold():
    assert pick([0.1, 0.3], [np.nan, 0.02], limit=np.inf)[0] == 0
    assert pick([0.1, 0.3], [np.nan, 0.02])[0] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0, 1))
def test_nothing_cheaper_was_as_fit(pairs, limit):
    costs, bounds = (np.array(part) for part in zip(*pairs, strict=True))
    place, _ = pick(list(costs), list(bounds), limit=limit)
    fit = bounds <= limit + 1e-9
    if not fit.any():
        fit = bounds / 2 - 0.01 <= limit + 1e-9
    if not fit.any():
        fit = bounds == bounds.min()
    assert fit[place]
    assert costs[place] <= costs[fit].min() + 1e-9


def test_what_is_weighed_is_what_cross_fitting_says():
    scores, labels, groups = make_scores(0)
    made = AutoPostprocess(tolerance=0.06, num_folds=4, num_replicates=60).fit(
        scores, labels, sensitive_features=groups
    )
    assert list(made.choices_.columns) == COLUMNS
    names = [auto.SCORE_CANDIDATE, *auto.VOTE_CANDIDATES]
    assert made.choices_["strategy"].tolist() == [name for name in names for _ in range(3)]
    assert made.choices_["tolerance"].tolist() == [0.0, 0.03, 0.06] * len(names)
    row = made.choices_.iloc[4]
    given = {"sensitive_features": groups, "num_folds": 4}
    found = cross_fit(STRATEGIES[row["strategy"]](tolerance=row["tolerance"]), scores, labels, **given)
    assert row["accuracy"] == pytest.approx(found[np.arange(len(labels)), labels].mean())
    rates = np.array([[found[(labels == y) & (groups == g), 1].mean() for y in (0, 1)] for g in ("f", "m")])
    assert row["difference"] == pytest.approx(fair_worlds.difference(rates))
    assert row["cost"] == pytest.approx(1 - row["accuracy"])
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert row["difference_high"] > row["difference"]


def test_the_bound_is_the_quantile_of_replicates_over_subjects():
    scores, labels, groups = make_scores(1, 400)
    subjects = np.arange(400) // 4
    common = {"candidates": ["aggregate_first"], "num_replicates": 200, "level": 0.9}
    made = AutoPostprocess(**common).fit(scores, labels, sensitive_features=groups, subject_ids=subjects)
    found = cross_fit(
        STRATEGIES["aggregate_first"](tolerance=0.05), scores, labels, sensitive_features=groups, subject_ids=subjects
    )
    judge = Judge(
        labels,
        np.searchsorted(["f", "m"], groups),
        subjects,
        (Criterion("equalized_odds"),),
        made.costs_,
        ("0", "1"),
        ("f", "m"),
    )
    measured = judge.measure([found], Bootstrap(200, 0.9, 0))[0]
    row = made.choices_.iloc[-1]
    assert row["difference_high"] == pytest.approx(np.quantile(measured.values[0, 1:], 0.9))
    assert row["standard_error"] == pytest.approx(measured.values[0, 1:].std(ddof=1))
    alone = AutoPostprocess(**common).fit(scores, labels, sensitive_features=groups)
    assert alone.choices_["difference_high"].iloc[-1] != row["difference_high"]


def test_the_choice_is_fitted_on_all_rows_and_speaks_for_the_estimator():
    scores, labels, groups = make_scores(2)
    made = AutoPostprocess(tolerance=0.1, num_replicates=40).fit(scores, labels, sensitive_features=groups)
    name, tolerance = made.choices_.loc[made.choices_["chosen"], ["strategy", "tolerance"]].iloc[0]
    own = STRATEGIES[name](tolerance=tolerance).fit(scores, labels, sensitive_features=groups)
    given = {"sensitive_features": groups}
    assert np.array_equal(made.predict_proba(scores, **given), own.predict_proba(scores, **given))
    assert np.array_equal(made.best_.predict_proba(scores, **given), own.predict_proba(scores, **given))
    assert made.loss_ == own.loss_
    assert made.achieved_["tolerance"][0] == 0.1
    assert made.achieved_["value"][0] == own.achieved_["value"][0]
    assert made.reason_.startswith(f"Chosen is {name} at tolerance {tolerance:g}")
    again = load_postprocessor(made.to_dict())
    assert np.array_equal(again.predict_proba(scores, **given), made.predict_proba(scores, **given))
    pd.testing.assert_frame_equal(again.choices_, made.choices_)
    assert again.reason_ == made.reason_
    assert made.at_tolerances([0.02])[0].loss_ == own.at_tolerances([0.02])[0].loss_


def test_the_same_rows_give_the_same_choice_and_another_seed_may_not():
    scores, labels, groups = make_scores(3)
    first = AutoPostprocess(num_replicates=30).fit(scores, labels, sensitive_features=groups)
    again = clone(first).fit(scores, labels, sensitive_features=groups)
    other = clone(first).set_params(seed=9).fit(scores, labels, sensitive_features=groups)
    pd.testing.assert_frame_equal(first.choices_, again.choices_)
    assert not first.choices_["difference_high"].equals(other.choices_["difference_high"])


def test_votes_of_text_and_of_floats_and_rows_without_group_are_taken():
    scores, labels, groups = make_scores(4)
    votes = (scores > 0.5).astype(int)
    plain = AutoPostprocess(num_replicates=30).fit(votes, labels, sensitive_features=groups)
    assert auto.SCORE_CANDIDATE not in set(plain.choices_["strategy"])
    names = np.array(["no", "yes"])
    text = AutoPostprocess(num_replicates=30).fit(names[votes], names[labels], sensitive_features=groups)
    floats = AutoPostprocess(num_replicates=30).fit(votes, labels.astype(float), sensitive_features=groups)
    for made in (text, floats):
        assert made.choices_["difference_high"].tolist() == plain.choices_["difference_high"].tolist()
    assert set(text.predict(names[votes], sensitive_features=groups, example_ids=range(800))) <= {"no", "yes"}
    some = np.where(np.arange(800) % 5 > 0, groups, None)
    fewer = AutoPostprocess(num_replicates=30).fit(votes, labels, sensitive_features=some, subject_ids=range(800))
    assert fewer.label_counts_.sum() == 640


def test_three_classes_are_decided():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(3, size=600), rng.choice(["f", "m"], size=600)
    votes = np.where(rng.random((600, 3)) < 0.7, labels[:, None], rng.integers(3, size=(600, 3)))
    made = AutoPostprocess(
        tolerance=0.2, num_folds=3, num_replicates=20, candidates=["aggregate_first", "members_random"]
    )
    made.fit(votes, labels, sensitive_features=groups)
    assert made.predict_proba(votes, sensitive_features=groups).shape == (600, 3)
    assert len(made.choices_) == 6


def test_several_criteria_are_weighed_by_the_one_that_is_missed_most():
    scores, labels, groups = make_scores(5)
    made = AutoPostprocess(
        criterion=["equal_opportunity", "demographic_parity"],
        tolerance=[0.1, 0.02],
        num_replicates=30,
        candidates=["aggregate_first"],
    ).fit(scores, labels, sensitive_features=groups)
    criteria = (Criterion("equal_opportunity", 0.1), Criterion("demographic_parity", 0.02))
    found = cross_fit(STRATEGIES["aggregate_first"](criterion=criteria), scores, labels, sensitive_features=groups)
    positive = np.array([found[(labels == 1) & (groups == g), 1].mean() for g in ("f", "m")])
    selected = np.array([found[groups == g, 1].mean() for g in ("f", "m")])
    expected = max(np.ptp(positive) - 0.1, np.ptp(selected) - 0.02) + 0.1
    assert made.choices_["difference"].iloc[-1] == pytest.approx(expected)


def test_no_tolerance_at_all_takes_the_cheapest():
    scores, labels, groups = make_scores(6)
    made = AutoPostprocess(tolerance=np.inf, num_replicates=30).fit(scores, labels, sensitive_features=groups)
    assert made.choices_["tolerance"].tolist() == [np.inf] * 6
    assert made.choices_.loc[made.choices_["chosen"], "cost"].iloc[0] == made.choices_["cost"].min()


def test_a_candidate_that_cannot_be_fitted_is_left_out_and_named():
    scores, labels, groups = make_scores(7)
    bound = 0.16
    made = AutoPostprocess(
        criterion="bounded_group_loss",
        tolerance=bound,
        candidates=["score_threshold", "members_random"],
        num_replicates=30,
    ).fit(scores, labels, sensitive_features=groups)
    assert set(made.choices_["strategy"]) == {"score_threshold"}
    assert any(line.startswith("Strategy members_random was left out:") for line in made.warnings_)


def test_when_no_candidate_can_be_fitted_the_first_error_says_why():
    scores, labels, groups = make_scores(8)
    impossible = AutoPostprocess(criterion="bounded_group_loss", tolerance=0.0, num_replicates=30)
    with pytest.raises((DataError, SolverError), match="bounded_group_loss"):
        impossible.fit(scores, labels, sensitive_features=groups)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"candidates": ["ensemble_patern"]}, "ensemble_pattern"),
        ({"candidates": ["auto"]}, "candidates"),
        ({"level": 1.0}, "level from 0.5"),
        ({"num_replicates": 1}, "2 replicates or more"),
        ({"num_folds": 1}, "2 folds or more"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters, message):
    scores, labels, groups = make_scores(9, 200)
    with pytest.raises(ConfigError, match=message):
        AutoPostprocess(**parameters).fit(scores, labels, sensitive_features=groups)


def test_folds_are_quiet_and_the_estimator_itself_warns_once():
    scores, labels, groups = make_scores(10, 300)
    groups = np.where((np.arange(300) % 12 == 0), "x", groups)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        made = AutoPostprocess(num_replicates=20).fit(scores, labels, sensitive_features=groups)
    said = [str(each.message) for each in heard]
    assert len(said) == len(set(said))
    assert len(made.warnings_) == len(set(made.warnings_))
    assert any("Group 'x'" in line for line in made.warnings_)


def test_two_thousand_rows_and_five_constituents_take_seconds():
    scores, labels, groups = make_scores(11, 2000, 5)
    start = time.perf_counter()
    AutoPostprocess().fit(scores, labels, sensitive_features=groups)
    assert time.perf_counter() - start < 5.0


def test_the_bound_covers_what_is_true_of_everyone():
    world, covered = latent_world(5, 2, seed=1), []
    estimator = AutoPostprocess(candidates=["ensemble_vote_count", "aggregate_first"], num_folds=3, num_replicates=100)
    for seed in range(12):
        votes, labels, groups = world.draw(1500, np.random.default_rng(seed))
        made = clone(estimator).fit(votes, labels, sensitive_features=groups)
        bound = made.choices_.loc[made.choices_["chosen"], "difference_high"].iloc[0]
        covered.append(fair_worlds.difference(world.outcome(made)[1]) <= bound)
    assert np.mean(covered) >= 0.75
