from __future__ import annotations

import numpy as np
import pytest

import fair_worlds
from fair_worlds import copied_votes_world, latent_world, votes_of
from fairsisa.fairness.derived.criteria import EQUALIZED_ODDS, Criterion
from fairsisa.fairness.strategies.aggregate import AggregateThenPostprocess
from fairsisa.fairness.strategies.ensemble import EnsemblePostprocess

SIZES = (500, 2_000, 8_000, 32_000)
NUM_SEEDS = 16
BAND = (-0.75, -0.3)
STRICT = Criterion(EQUALIZED_ODDS)
STATES = {
    "pattern": lambda votes: np.arange(len(votes)),
    "vote_count": lambda votes: votes.sum(axis=1),
    "label": lambda votes: (2 * votes.sum(axis=1) > votes.shape[1]).astype(int),
}


def new_estimator(states):
    common = {"small_cells": "ignore"}
    return AggregateThenPostprocess(**common) if states == "label" else EnsemblePostprocess(states=states, **common)


def learning_curve(world, states):
    """Return, by number of rows, means over draws of the exact difference, |risk - optimum| and |risk - promised|."""
    codes = STATES[states](world.patterns)
    optimum = world.optimum(STRICT, codes).loss
    curve = []
    for size in SIZES:
        found = []
        for seed in range(NUM_SEEDS):
            votes, labels, groups = world.draw(size, np.random.default_rng([size, seed]))
            made = new_estimator(states).fit(votes, labels, sensitive_features=groups)
            risk, rates = world.outcome(made)
            found.append((fair_worlds.difference(rates), abs(risk - optimum), abs(risk - made.loss_)))
        curve.append(np.mean(found, axis=0))
    return np.array(curve)


def slope(values):
    return np.polyfit(np.log(SIZES), np.log(values), 1)[0]


def test_the_law_sums_to_one_and_is_what_is_drawn():
    world = latent_world(3, 2, seed=1)
    assert world.law.sum() == pytest.approx(1.0)
    votes, labels, groups = world.draw(200_000, np.random.default_rng(0))
    for group, name in enumerate(world.group_names):
        for label in (0, 1):
            inside = (groups == name) & (labels == label)
            assert inside.mean() == pytest.approx(world.law[group, label].sum(), abs=0.005)
            found = votes[inside].mean(axis=0)
            assert found == pytest.approx(
                world.law[group, label] @ world.patterns / world.law[group, label].sum(), abs=0.01
            )
    assert np.array_equal(votes_of(np.array([5]), 3), [[1, 0, 1]])


def test_constituents_err_together_more_in_one_world_than_another():
    independent = copied_votes_world(3).law[0, 1]
    assert independent[7] / independent.sum() == pytest.approx(0.8**3)
    law = latent_world(3, 2, seed=1).law[0, 1]
    law = law / law.sum()
    ones = votes_of(np.arange(8), 3).astype(float)
    assert law @ (ones[:, 0] * ones[:, 1]) > (law @ ones[:, 0]) * (law @ ones[:, 1]) + 0.005


def test_finer_states_cost_less_in_the_population():
    world = latent_world(9, 2, seed=1)
    losses = [world.optimum(STRICT, STATES[states](world.patterns)).loss for states in STATES]
    assert losses[0] < losses[1] - 1e-4
    assert losses[1] < losses[2] + 1e-12


@pytest.mark.parametrize("states", STATES)
def test_held_out_rates_and_risk_approach_the_promised_and_the_best_at_the_expected_rate(states):
    curve = learning_curve(latent_world(3, 2, seed=1), states)
    for place, values in enumerate(curve.T):
        assert BAND[0] <= slope(values) <= BAND[1], (states, place, values)
    assert curve[-1, 0] < 0.012
    assert curve[-1, 1:].max() < 0.006


def test_vote_counts_learn_faster_than_patterns_of_nine_constituents():
    world = latent_world(9, 2, seed=1)
    pattern, count = (learning_curve(world, states) for states in ("pattern", "vote_count"))
    assert (count[:3, 0] < pattern[:3, 0]).all()
    assert (count[:, 2] < pattern[:, 2] / 4).all(), "what a pattern table promises is far from what it does"
    assert BAND[0] <= slope(count[:, 0]) <= BAND[1]
    best = {name: world.optimum(STRICT, STATES[name](world.patterns)).loss for name in ("pattern", "vote_count")}
    assert best["pattern"] < best["vote_count"], "patterns are better, for who knows the law"
    risks = [
        np.mean([world.outcome(new_estimator(states).fit(*draw[:2], sensitive_features=draw[2]))[0] for draw in draws])
        for draws in [[world.draw(500, np.random.default_rng(seed)) for seed in range(8)]]
        for states in ("pattern", "vote_count")
    ]
    assert risks[1] < risks[0], "and vote counts are, for who has 500 rows"
