from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fairsisa.fairness.strategies import AggregateThenPostprocess, EnsemblePostprocess
from fairsisa.fairness.strategies.ensemble import row_coder
from fairsisa.fairness.strategies.names import STRATEGIES
from strategy_contract import Problem, loss, make_problem, probabilities, value


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    base = draw(st.integers(2, 9))
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 130)))
    few = draw(st.integers(1, 2))  # few different digits, so that parts of rows agree
    return draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, min(base, few + 1) - 1))), base


@given(tables(), st.sampled_from([12, 1000, 1 << 58]))
def test_codes_are_equal_where_rows_are(table: tuple[np.ndarray, int], largest: int) -> None:
    rows, base = table
    coder = row_coder(rows, base, largest=largest)
    codes = coder.encode(rows)
    assert codes.dtype == np.int64
    assert codes.min() >= 0
    assert codes.max() < coder.span <= max(largest, len(rows))
    for one in range(len(rows)):
        for other in range(one):
            assert (codes[one] == codes[other]) == bool((rows[one] == rows[other]).all())


@given(tables(), st.data())
def test_a_row_that_was_never_seen_has_no_code_or_one_of_its_own(
    table: tuple[np.ndarray, int], data: st.DataObject
) -> None:
    rows, base = table
    coder = row_coder(rows, base, largest=len(rows))
    other = rows[:1].copy()
    for place in data.draw(st.sets(st.integers(0, rows.shape[1] - 1))):
        other[0, place] = (other[0, place] + 1) % base
    seen = [bool((row == other[0]).all()) for row in rows]
    code = coder.encode(other)[0]
    if any(seen):
        assert code == coder.encode(rows)[seen.index(True)]
    else:
        assert code not in coder.encode(rows)
        assert code == -1 or coder.tables is None


def test_digits_are_kept_apart_from_tables() -> None:
    rows = np.zeros((3, 80), dtype=np.uint8)
    narrow = row_coder(rows[:, :5], 2, largest=100)
    assert (narrow.part, narrow.span, narrow.tables) == (5, 32, None)
    assert row_coder(rows, 2, largest=100).tables is not None


def _two_groups(patterns: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return votes, labels and groups where both groups hold the same rows."""
    groups = np.repeat(["a", "b"], len(labels))
    return np.vstack([patterns, patterns]), np.concatenate([labels, labels]), groups


def test_an_unseen_pattern_is_decided_as_its_vote_count_is() -> None:
    patterns = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]] * 10)
    labels = np.array([1, 1, 1, 1, 0] * 10)
    votes, labels, groups = _two_groups(patterns, labels)
    fitted = EnsemblePostprocess(min_cell_count=0).fit(votes, labels, sensitive_features=groups)
    unseen = np.array([[0, 0, 1]])
    derived = fitted.derive(unseen, sensitive_features=["a"])
    assert derived.backed_off.tolist() == [True]
    assert derived.original.tolist() == [0]
    counted = EnsemblePostprocess(states="vote_count", min_cell_count=0).fit(votes, labels, sensitive_features=groups)
    found = counted.derive(unseen, sensitive_features=["a"])
    assert derived.probabilities.tolist() == found.probabilities.tolist() == [[0.0, 1.0]]
    assert not found.backed_off.any()


def test_an_unseen_vote_count_is_decided_as_its_majority_is() -> None:
    patterns = np.array([[1, 1, 1], [0, 0, 0]] * 20)
    labels = np.array([0, 1] * 20)  # the ensemble is always wrong, which the label's table knows
    votes, labels, groups = _two_groups(patterns, labels)
    fitted = EnsemblePostprocess(min_cell_count=0).fit(votes, labels, sensitive_features=groups)
    derived = fitted.derive(np.array([[1, 1, 0], [0, 0, 1]]), sensitive_features=["a", "b"])
    assert derived.backed_off.all()
    assert derived.probabilities.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_majority_that_a_group_never_had_stands_as_it_is() -> None:
    votes = np.array([[1, 1, 1]] * 20 + [[1, 1, 1], [0, 0, 0]] * 20)
    labels = np.array([0, 1] * 10 + [1, 0] * 20)
    groups = np.array(["a"] * 20 + ["b"] * 40)
    fitted = EnsemblePostprocess(criterion="demographic_parity", tolerance=1.0, min_cell_count=0).fit(
        votes, labels, sensitive_features=groups
    )
    derived = fitted.derive(np.array([[0, 0, 0]]), sensitive_features=["a"])
    assert derived.backed_off.all()
    assert derived.probabilities.tolist() == [[1.0, 0.0]]


def test_every_back_off_keeps_the_criterion_too() -> None:
    problem = make_problem(8, num_members=4, size=300)
    fitted = EnsemblePostprocess(small_cells="ignore", tolerance=0.02).fit(
        problem.scores, problem.labels, sensitive_features=problem.groups
    )
    assert len(fitted.tables_) == 3
    for table, states in zip(fitted.tables_[1:], ("vote_count", None), strict=True):
        assert table.solution.values[0] <= 0.02 + 1e-9
        name = "ensemble_vote_count" if states else "aggregate_first"
        alone = STRATEGIES[name](small_cells="ignore", tolerance=0.02).fit(
            problem.scores, problem.labels, sensitive_features=problem.groups
        )
        assert math.isclose(alone.loss_, table.solution.loss, abs_tol=1e-12)


def test_rare_patterns_are_pooled_by_vote_count_in_their_group() -> None:
    patterns = np.array([[1, 1, 0]] * 20 + [[1, 0, 1]] * 3 + [[0, 1, 1]] * 4 + [[0, 0, 0]] * 20)
    votes, labels, groups = _two_groups(patterns, patterns[:, 0])
    pooled = EnsemblePostprocess(states="pooled_pattern", pool_below=15, min_cell_count=0)
    pooled.fit(votes, labels, sensitive_features=groups)
    assert len(pooled.joint_) == 2 * 3
    rare = np.array([[1, 0, 1], [0, 1, 1]])
    one, other = pooled.predict_proba(rare, sensitive_features=["a", "a"])
    assert one.tolist() == other.tolist()
    apart = EnsemblePostprocess(states="pooled_pattern", pool_below=4, min_cell_count=0)
    assert len(apart.fit(votes, labels, sensitive_features=groups).joint_) == 2 * 4
    never = EnsemblePostprocess(states="pooled_pattern", pool_below=0, min_cell_count=0)
    assert len(never.fit(votes, labels, sensitive_features=groups).joint_) == 2 * 4


def test_a_pattern_that_was_not_seen_belongs_to_the_pool() -> None:
    patterns = np.array([[1, 1, 0]] * 20 + [[1, 0, 1]] * 3 + [[0, 0, 0]] * 20)
    votes, labels, groups = _two_groups(patterns, patterns[:, 0])
    pooled = EnsemblePostprocess(states="pooled_pattern", min_cell_count=0).fit(
        votes, labels, sensitive_features=groups
    )
    derived = pooled.derive(np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]]), sensitive_features=["a", "a", "a"])
    assert derived.backed_off.tolist() == [False, False, True]
    assert derived.probabilities[0].tolist() == derived.probabilities[1].tolist()


@settings(max_examples=5)
@given(st.integers(0, 10_000), st.sampled_from(["pattern", "pooled_pattern", "vote_count"]))
def test_wide_patterns_give_what_narrow_ones_do(seed: int, states: str) -> None:
    problem = make_problem(seed, num_members=3, size=100)
    narrow = problem.scores.argmax(axis=2)
    wide = np.hstack([narrow, np.zeros((len(narrow), 60), dtype=np.int64), narrow[:, ::-1]])  # still as many patterns
    asked = {"states": states, "small_cells": "ignore", "tolerance": 0.05, "pool_below": 5}
    one = EnsemblePostprocess(**asked).fit(narrow, problem.labels, sensitive_features=problem.groups)
    two = EnsemblePostprocess(**asked).fit(wide, problem.labels, sensitive_features=problem.groups)
    assert math.isclose(one.loss_, two.loss_, abs_tol=1e-9)
    derived = two.derive(wide, sensitive_features=problem.groups)
    assert not derived.backed_off.any()
    other = 1 - wide[:3]
    assert two.derive(other, sensitive_features=problem.groups[:3]).backed_off.all()


def test_mean_score_and_majority_vote_may_differ() -> None:
    scores = np.array([[0.9, 0.45, 0.45], [0.1, 0.55, 0.55]] * 30)
    labels, groups = np.array([1, 0] * 30), np.repeat(["a", "b"], 30)
    vote = AggregateThenPostprocess(small_cells="ignore").fit(scores, labels, sensitive_features=groups)
    mean = AggregateThenPostprocess(aggregation="mean_score", small_cells="ignore")
    mean.fit(scores, labels, sensitive_features=groups)
    assert vote.derive(scores, sensitive_features=groups).original[:2].tolist() == [0, 1]
    assert mean.derive(scores, sensitive_features=groups).original[:2].tolist() == [1, 0]
    with pytest.raises(ValueError, match="Expected aggregation to be one of"):
        AggregateThenPostprocess(aggregation="best").fit(scores, labels, sensitive_features=groups)


def test_three_classes_of_text_run_through() -> None:
    problem = make_problem(3, num_classes=3, size=150)
    names = np.array(["hate", "normal", "offensive"])
    votes, labels = names[problem.scores.argmax(axis=2)], names[problem.labels]
    for states in ("pattern", "vote_count", "pooled_pattern"):
        fitted = EnsemblePostprocess(states=states, tolerance=0.05, small_cells="ignore")
        fitted.fit(votes, labels, sensitive_features=problem.groups)
        chances = fitted.predict_proba(votes, sensitive_features=problem.groups)
        assert value(problem, chances, "equalized_odds") <= 0.05 + 1e-9
        assert math.isclose(loss(problem, chances), fitted.loss_, abs_tol=1e-9)
        decided = fitted.predict(votes, sensitive_features=problem.groups, example_ids=problem.ids)
        assert set(decided) <= set(names)


def test_the_table_of_a_rule_can_be_read() -> None:
    problem: Problem = make_problem(5, size=120)
    fitted = EnsemblePostprocess(states="vote_count", small_cells="ignore").fit(
        problem.scores, problem.labels, sensitive_features=problem.groups
    )
    votes = problem.scores.argmax(axis=2).sum(axis=1)
    chances = probabilities(fitted, problem)
    joint, solution = fitted.joint_, fitted.solution_
    for group, state, mixing in zip(joint.groups, joint.states, solution.mixing, strict=True):
        rows = (problem.groups == fitted.groups_[group]) & (votes == state)
        assert (chances[rows] == mixing).all()
    assert solution.fractional.sum() <= 2 * (len(fitted.groups_) - 1)
