from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

import fair_worlds
from fair_worlds import copied_votes_world, latent_world
from fairsisa.errors import ConfigError
from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.fairness.strategies.inputs import majority
from fairsisa.fairness.strategies.members import PostprocessThenAggregate, distinct_rows, majority_probabilities
from fairsisa.fairness.strategies.saving import load_postprocessor


def random_chances(seed, num_rows, num_constituents, num_classes):
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(num_classes, 0.5), size=(num_rows, num_constituents))
    certain = rng.random((num_rows, num_constituents)) < 0.3
    return np.where(certain[:, :, None], np.eye(num_classes)[chances.argmax(axis=2)], chances)


def enumerated(chances):
    """Return P(majority is c) by summing over all outcomes of the draws."""
    num_rows, num_constituents, num_classes = chances.shape
    found = np.zeros((num_rows, num_classes))
    for draws in itertools.product(range(num_classes), repeat=num_constituents):
        winner = np.bincount(draws, minlength=num_classes).argmax()
        found[:, winner] += np.prod([chances[:, k, draw] for k, draw in enumerate(draws)], axis=0)
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 4))
def test_the_majority_of_draws_equals_enumeration(seed, num_constituents, num_classes):
    chances = random_chances(seed, 7, num_constituents, num_classes)
    found = majority_probabilities(chances)
    assert found == pytest.approx(enumerated(chances), abs=1e-12)
    assert found.sum(axis=1) == pytest.approx(np.ones(7))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.floats(0.0, 1.0))
def test_equal_draws_are_binomial_and_ties_go_to_class_zero(num_constituents, chance):
    chances = np.tile([1 - chance, chance], (1, num_constituents, 1))
    tail = binom.sf(num_constituents // 2, num_constituents, chance)
    assert majority_probabilities(chances)[0, 1] == pytest.approx(tail, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 4))
def test_certain_draws_give_the_majority_vote(seed, num_constituents, num_classes):
    votes = np.random.default_rng(seed).integers(num_classes, size=(20, num_constituents))
    found = majority_probabilities(np.eye(num_classes)[votes])
    assert found.argmax(axis=1).tolist() == majority(votes, num_classes).tolist()
    assert set(np.unique(found)) <= {0.0, 1.0}


def test_rows_are_worked_through_in_parts(monkeypatch):
    chances = random_chances(3, 50, 4, 3)
    whole = majority_probabilities(chances)
    monkeypatch.setattr("fairsisa.fairness.strategies.members.MAX_OUTCOMES", 60)
    assert np.array_equal(majority_probabilities(chances), whole)
    assert majority_probabilities(chances[:0]).shape == (0, 3)


def test_too_many_outcomes_are_refused():
    with pytest.raises(ConfigError, match=r"68719476736 outcomes.*choose combine='random_member'"):
        majority_probabilities(np.full((1, 15, 10), 0.1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, 2), (60, 2), (4, 5), (30, 5)]), st.sampled_from([1, 3, 100]))
def test_distinct_rows_are_those_of_numpy(seed, shape, num_groups):
    num_constituents, num_classes = shape
    rng = np.random.default_rng(seed)
    votes = rng.integers(num_classes, size=(6, num_constituents))[rng.integers(6, size=40)].astype(np.uint8)
    groups = rng.integers(num_groups, size=40)
    first, place = distinct_rows(groups, votes, num_classes)
    rows = np.column_stack([groups, votes])
    assert np.array_equal(rows[first][place], rows)
    assert len(first) == len(np.unique(rows, axis=0))


def fitted(world, combine, **parameters):
    """Fit on the whole law: every pattern once in each group and label, weighted by its probability."""
    groups, labels, patterns = (each.ravel() for each in np.indices(world.law.shape))
    return PostprocessThenAggregate(combine=combine, small_cells="ignore", **parameters).fit(
        fair_worlds.votes_of(patterns, world.num_constituents),
        labels,
        sensitive_features=np.array(world.group_names)[groups],
        sample_weight=world.law.ravel(),
    )


def test_a_majority_of_fair_members_is_unfair_and_more_so_the_more_they_are():
    differences = []
    for num_constituents in (3, 5, 7):
        world = copied_votes_world(num_constituents)
        by_majority, by_member = (fitted(world, combine) for combine in ("majority", "random_member"))
        for table in by_majority.tables_:
            assert table.solution.values[0] < 1e-12
        assert fair_worlds.difference(world.outcome(by_member)[1]) < 1e-12
        differences.append(fair_worlds.difference(world.outcome(by_majority)[1]))
        assert by_majority.achieved_["value"][0] == pytest.approx(differences[-1], abs=1e-12)
        assert np.isnan(by_majority.achieved_["price"][0])
    assert differences[0] > 0.02
    assert differences == sorted(differences)
    assert differences[0] == pytest.approx(binom.sf(1, 3, 0.8) - 0.8)


@pytest.mark.parametrize("tolerance", [0.0, 0.03])
@pytest.mark.parametrize("criterion", ["equalized_odds", "demographic_parity"])
def test_a_random_member_keeps_every_criterion_and_costs_the_mean_of_the_members(criterion, tolerance):
    world = latent_world(4, 3, seed=2)
    made = fitted(world, "random_member", criterion=criterion, tolerance=tolerance)
    assert made.achieved_["value"][0] <= tolerance + 1e-9
    assert made.loss_ == pytest.approx(np.mean([table.solution.loss for table in made.tables_]))
    assert made.achieved_["price"][0] == pytest.approx(np.mean([t.solution.prices[0] for t in made.tables_]))
    assert made.loss_ == pytest.approx(world.outcome(made)[0])


def test_probabilities_are_looked_up_by_each_constituents_vote_and_group():
    world = latent_world(3, 2, seed=4)
    made = fitted(world, "random_member")
    votes, _, groups = world.draw(50, np.random.default_rng(0))
    found = made.predict_proba(votes, sensitive_features=groups)
    for row in range(50):
        group = world.group_names.index(groups[row])
        chances = []
        for k, table in enumerate(made.tables_):
            cell = np.flatnonzero((table.joint.groups == group) & (table.joint.states == votes[row, k]))[0]
            chances.append(table.solution.mixing[cell])
        assert found[row] == pytest.approx(np.mean(chances, axis=0))


def test_a_vote_unseen_in_its_group_stands_and_is_told():
    votes = np.array([[0, 0], [1, 1], [0, 0], [0, 1]] * 20)
    labels, groups = np.array([0, 1, 0, 1] * 20), np.array(["a", "a", "b", "b"] * 20)
    made = PostprocessThenAggregate(combine="random_member", small_cells="ignore").fit(
        votes, labels, sensitive_features=groups
    )
    derived = made.derive(np.array([[1, 1], [0, 1]]), sensitive_features=["b", "b"])
    assert derived.backed_off.tolist() == [True, False]
    own = made.tables_[1]
    cell = np.flatnonzero((own.joint.groups == 1) & (own.joint.states == 1))[0]
    assert derived.probabilities[0] == pytest.approx((np.array([0.0, 1.0]) + own.solution.mixing[cell]) / 2)


@pytest.mark.parametrize("combine", ["majority", "random_member"])
def test_three_classes_tolerances_and_saving(combine):
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(3, size=600), rng.choice(["a", "b"], size=600)
    votes = np.where(rng.random((600, 4)) < 0.6, labels[:, None], rng.integers(3, size=(600, 4)))
    made = PostprocessThenAggregate(combine=combine, tolerance=0.1).fit(votes, labels, sensitive_features=groups)
    loose, strict = made.at_tolerances([0.1, 0.0])
    given = {"sensitive_features": groups}
    assert np.array_equal(loose.predict_proba(votes, **given), made.predict_proba(votes, **given))
    fresh = PostprocessThenAggregate(combine=combine).fit(votes, labels, **given)
    assert strict.predict_proba(votes, **given) == pytest.approx(fresh.predict_proba(votes, **given))
    again = load_postprocessor(made.to_dict())
    assert np.array_equal(again.predict_proba(votes, **given), made.predict_proba(votes, **given))
    assert again.at_tolerances([0.0])[0].loss_ == strict.loss_


def test_certain_decisions_are_measured_as_they_are_made():
    rng = np.random.default_rng(5)
    labels, groups = rng.integers(2, size=800), rng.choice(["a", "b"], size=800)
    votes = (rng.random((800, 3)) < np.where(labels, 0.8, 0.3 + 0.2 * (groups == "b"))[:, None]).astype(int)
    made = PostprocessThenAggregate(combine="majority", randomization="none").fit(
        votes, labels, sensitive_features=groups
    )
    decisions = made.predict(votes, sensitive_features=groups)
    rates = np.array([[decisions[(labels == y) & (groups == g)].mean() for y in (0, 1)] for g in ("a", "b")])
    assert made.achieved_["value"][0] == pytest.approx(fair_worlds.difference(rates))
    assert made.loss_ == pytest.approx((decisions != labels).mean())


def test_an_unknown_combination_is_refused():
    with pytest.raises(ConfigError, match="combine"):
        PostprocessThenAggregate(combine="median").fit([[0], [1]], [0, 1], sensitive_features=["a", "a"])
    assert issubclass(PostprocessThenAggregate, Postprocessor)
