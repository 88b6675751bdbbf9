from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fairsisa.errors import DataError, SolverError
from fairsisa.fairness.derived.criteria import Criterion
from fairsisa.fairness.strategies import ScoreThresholdPostprocess, Unprocessed, load_postprocessor
from strategy_contract import Problem, loss, value


def scored(seed: int, *, num_groups: int = 2, size: int = 60, help_of: float = 0.25) -> Problem:
    """Return a problem of one score on a coarse grid; in some groups it may tell little, or lie."""
    rng = np.random.default_rng(seed)
    cells = np.array(list(itertools.product(range(num_groups), range(2))))
    groups, labels = cells[np.concatenate([np.arange(len(cells)), rng.integers(0, len(cells), size)])].T
    slopes = help_of * rng.normal(1.0, 1.0, num_groups)
    positive = np.clip(np.round(0.5 + slopes[groups] * (labels - 0.5) + rng.normal(0, 0.2, len(labels)), 1), 0.0, 1.0)
    names = np.array([f"g{group}" for group in groups], dtype=object)
    return Problem(np.stack([1.0 - positive, positive], axis=1)[:, None, :], labels, names)


def fit(problem: Problem, **parameters: object) -> ScoreThresholdPostprocess:
    made = ScoreThresholdPostprocess(**{"small_cells": "ignore", "false_negative_cost": 1.0, **parameters})
    return made.fit(problem.scores[:, :, 1], problem.labels, sensitive_features=problem.groups)


def best_by_program(problem: Problem, tolerance: float) -> float:
    """Return the least loss of mixtures of thresholds under equalized odds: one weight a group and threshold."""
    names, positive = sorted(set(problem.groups)), problem.scores[:, 0, 1]
    thresholds = [*np.unique(positive), np.inf]
    columns = [(group, threshold) for group in names for threshold in thresholds]
    cost, rates = np.zeros(len(columns)), np.zeros((2, len(columns)))
    for place, (group, threshold) in enumerate(columns):
        for label in (0, 1):
            mine = (problem.groups == group) & (problem.labels == label)
            rates[label, place] = (positive[mine] >= threshold).mean()
            cost[place] += ((positive[mine] >= threshold) != label).sum() / len(positive)
    member = np.array([[group == name for group, _ in columns] for name in names], dtype=float)
    rows = [
        rates[label] * (member[one] - member[other])
        for one, other in itertools.permutations(range(len(names)), 2)
        for label in (0, 1)
    ]
    bound = np.full(len(rows), tolerance) if rows else None
    found = linprog(cost, A_ub=rows or None, b_ub=bound, A_eq=member, b_eq=np.ones(len(names)), method="highs")
    return float(found.fun)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([0.0, 0.05, 0.3]))
@pytest.mark.filterwarnings("ignore::fairsisa.fairness.strategies.guards.ConstantRuleWarning")
def test_no_mixture_of_thresholds_is_better(seed: int, num_groups: int, tolerance: float) -> None:
    problem = scored(seed, num_groups=num_groups)
    fitted = fit(problem, tolerance=tolerance)
    assert math.isclose(fitted.loss_, best_by_program(problem, tolerance), abs_tol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, math.inf]))
@pytest.mark.filterwarnings("ignore::fairsisa.fairness.strategies.guards.ConstantRuleWarning")
def test_the_chance_of_a_one_rises_with_the_score(seed: int, tolerance: float) -> None:
    problem = scored(seed, num_groups=3)
    fitted = fit(problem, tolerance=tolerance)
    grid = np.linspace(0.0, 1.0, 41)
    for name in fitted.groups_:
        chances = fitted.predict_proba(grid, sensitive_features=np.full(41, name, dtype=object))[:, 1]
        assert (np.diff(chances) >= -1e-12).all()
        assert len(np.unique(chances)) <= 4


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.data())
@pytest.mark.filterwarnings("ignore::fairsisa.fairness.strategies.guards.ConstantRuleWarning")
def test_criteria_hold_together_even_where_the_score_lies(seed: int, data: st.DataObject) -> None:
    problem = scored(seed, num_groups=3, help_of=-0.2)
    names = ["equalized_odds", "equal_opportunity", "predictive_equality", "demographic_parity"]
    asked = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    levels = [data.draw(st.sampled_from([0.0, 0.03, 0.2])) for _ in asked]
    form = data.draw(st.sampled_from(["max", "mean"]))
    costs = data.draw(st.sampled_from([(1.0, 1.0), (0.0, 1.0), (3.0, 1.0), (1.0, 0.0)]))
    fitted = fit(
        problem,
        criterion=asked,
        tolerance=levels,
        form=form,
        false_positive_cost=costs[0],
        false_negative_cost=costs[1],
    )
    chances = fitted.predict_proba(problem.scores[:, :, 1], sensitive_features=problem.groups)
    for name, level in zip(asked, levels, strict=True):
        assert value(problem, chances, name, form) <= level + 1e-9
    assert math.isclose(loss(problem, chances, costs), fitted.loss_, abs_tol=1e-9)


def test_equal_scores_are_one_threshold() -> None:
    scores, labels = np.array([0.3, 0.3, 0.3, 0.7, 0.7] * 20), np.array([0, 0, 1, 1, 0] * 20)
    groups = np.repeat(["a", "b"], 50)
    fitted = ScoreThresholdPostprocess(small_cells="ignore").fit(scores, labels, sensitive_features=groups)
    chances = fitted.predict_proba(scores, sensitive_features=groups)
    for score in (0.3, 0.7):
        assert len(np.unique(chances[scores == score, 1])) == 1


def test_the_mean_score_is_what_counts() -> None:
    problem = scored(1, size=300)
    positive = problem.scores[:, 0, 1]
    members = np.stack([positive / 2, positive / 2 + 0.25, positive / 2 + 0.125], axis=1) + 0.0
    members = np.stack([positive, np.clip(2 * positive - members.mean(axis=1), 0, 1)], axis=1)
    one = ScoreThresholdPostprocess(small_cells="ignore").fit(
        members.mean(axis=1), problem.labels, sensitive_features=problem.groups
    )
    two = ScoreThresholdPostprocess(small_cells="ignore").fit(
        np.stack([1.0 - members, members], axis=2), problem.labels, sensitive_features=problem.groups
    )
    assert math.isclose(one.loss_, two.loss_, abs_tol=1e-9)


@pytest.mark.filterwarnings("ignore::fairsisa.fairness.strategies.guards.ConstantRuleWarning")
def test_unprocessed_is_the_best_there_is_whatever_the_criterion() -> None:
    problem = scored(7, size=200)
    for criterion in ("equalized_odds", "demographic_parity"):
        made = Unprocessed(criterion=criterion, tolerance=0.0, small_cells="error")
        made.fit(problem.scores[:, :, 1], problem.labels, sensitive_features=problem.groups)
        free = fit(problem, tolerance=math.inf)
        assert made.loss_ == free.loss_
        assert made.achieved_["tolerance"].tolist() == [math.inf]
        chances = made.predict_proba(problem.scores[:, :, 1], sensitive_features=problem.groups)
        assert math.isclose(made.achieved_["value"][0], value(problem, chances, criterion), abs_tol=1e-12)
        assert [copied.loss_ for copied in made.at_tolerances([0.0, 0.5])] == [made.loss_, made.loss_]
    assert made.loss_ <= fit(problem).loss_


def test_ties_without_chance_go_to_the_unprocessed_decision() -> None:
    scores = np.array([0.2, 0.4, 0.6, 0.8] * 2)
    labels, groups = np.array([0, 1, 1, 0, 0, 0, 1, 1]), np.repeat(["a", "b"], 4)
    fitted = ScoreThresholdPostprocess(small_cells="ignore", randomization="none").fit(
        scores, labels, sensitive_features=groups
    )
    mixed = ScoreThresholdPostprocess(small_cells="ignore").fit(scores, labels, sensitive_features=groups)
    chance = mixed.predict_proba(scores, sensitive_features=groups)[:, 1]
    assert (np.abs(chance - 0.5) < 1e-9).any()
    expected = np.where(np.abs(chance - 0.5) < 1e-9, scores > 0.5, chance > 0.5)
    decided = fitted.predict(scores, sensitive_features=groups)
    assert (decided == expected).all()
    assert math.isclose(fitted.loss_, float((decided != labels).mean()), abs_tol=1e-12)


def test_more_classes_and_bare_votes_are_refused() -> None:
    labels, groups = np.array([0, 1, 2] * 4), np.repeat(["a", "b"], 6)
    scores, made = np.full((12, 2, 3), 1 / 3), ScoreThresholdPostprocess(small_cells="ignore")
    with pytest.raises(DataError, match="between two classes, got 3: choose the strategy group_blind or ensemble_vote"):
        made.fit(scores, labels, sensitive_features=groups)
    with pytest.raises(DataError, match="Expected scores, got votes"):
        made.fit(np.zeros((12, 2), int), labels % 2, sensitive_features=groups)


def test_without_two_classes_of_scores_the_unprocessed_rule_is_the_cheapest_by_count_of_votes() -> None:
    rng = np.random.default_rng(5)
    labels, groups = rng.integers(3, size=300), rng.choice(["a", "b"], 300)
    votes = np.where(rng.random((300, 3)) < 0.6, labels[:, None], rng.integers(3, size=(300, 3)))
    made = Unprocessed(tolerance=0.0, small_cells="ignore").fit(votes, labels, sensitive_features=groups)
    cells: dict[tuple[object, ...], list[int]] = {}
    for row in range(300):
        key = (groups[row], *np.bincount(votes[row], minlength=3))
        cells.setdefault(key, []).append(int(labels[row]))
    right = sum(max(map(found.count, range(3))) for found in cells.values())
    assert math.isclose(1.0 - made.loss_, right / 300)
    again = load_postprocessor(made.to_dict())
    given = {"sensitive_features": groups}
    assert (again.predict_proba(votes, **given) == made.predict_proba(votes, **given)).all()
    assert made.at_tolerances([0.0, 0.5])[1].loss_ == made.loss_


def test_criteria_that_contradict_each_other_are_named() -> None:
    problem = scored(3)
    asked = [Criterion("demographic_parity", 0.1), Criterion("bounded_group_loss", 0.01)]
    with pytest.raises(
        SolverError, match=r"demographic_parity \(0.1\), bounded_group_loss \(0.01\).*raise a tolerance"
    ):
        fit(problem, criterion=asked)
