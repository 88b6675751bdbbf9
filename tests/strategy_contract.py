"""One contract for every strategy: what each check demands, and what each strategy promises."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.fairness.strategies.guards import ConstantRuleWarning
from fairsisa.fairness.strategies.names import STRATEGIES
from fairsisa.fairness.strategies.saving import load_postprocessor

CRITERIA = ("equalized_odds", "equal_opportunity", "predictive_equality", "demographic_parity", "bounded_group_loss")
SLACK = 1e-9


@dataclass(frozen=True)
class Problem:
    """Scores of shape (N, K, C), labels, groups, weights (or None) of some examples."""

    scores: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    weights: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        return int(self.scores.shape[2])

    @property
    def ids(self) -> list[str]:
        return [f"example {number}" for number in range(len(self.labels))]

    def take(self, rows: np.ndarray) -> Problem:
        weights = None if self.weights is None else self.weights[rows]
        return Problem(self.scores[rows], self.labels[rows], self.groups[rows], weights)


@dataclass(frozen=True)
class Claim:
    """A strategy by name, and what it promises of the criterion: to keep it in sample, or nothing.

    `has_one_loss` says that what it costs in sample is the optimum of a program, so that ties among optima do not show;
    `many_classes` that it takes more than two; `counts_alone` that its rule is made of counts, with nothing estimated
    between; `needs_groups` that it wants groups to predict. What chooses among these (`auto`) is tested elsewhere.
    """

    name: str
    make: Callable[..., Postprocessor]
    keeps_criterion: bool = True
    has_one_loss: bool = True
    many_classes: bool = True
    counts_alone: bool = True
    needs_groups: bool = True

    def fit(self, problem: Problem, **parameters: Any) -> Postprocessor:
        common: dict[str, Any] = {"small_cells": "ignore", **parameters}
        made = self.make(**common)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantRuleWarning)
            return made.fit(
                problem.scores,
                problem.labels,
                sensitive_features=problem.groups,
                sample_weight=problem.weights,
            )


def claim(name: str, **promises: bool) -> Claim:
    return Claim(name, STRATEGIES[name], **promises)


CLAIMS = (
    claim("aggregate_first"),
    claim("aggregate_first_score"),
    claim("members_majority", keeps_criterion=False, has_one_loss=False),
    claim("members_random"),
    claim("ensemble_pattern"),
    claim("ensemble_vote_count"),
    claim("ensemble_pooled"),
    claim("score_threshold", many_classes=False),
    claim("group_blind", keeps_criterion=False, has_one_loss=False, counts_alone=False, needs_groups=False),
    claim("unprocessed", keeps_criterion=False),
)
BY_NAME = {each.name: each for each in CLAIMS}


def make_problem(
    seed: int, *, num_groups: int = 2, num_members: int = 3, num_classes: int = 2, size: int = 60
) -> Problem:
    """Return a small problem on a coarse grid of scores, in which every group has every label."""
    rng = np.random.default_rng(seed)
    cells = np.array(list(itertools.product(range(num_groups), range(num_classes))))
    groups, labels = cells[np.concatenate([np.arange(len(cells)), rng.integers(0, len(cells), size)])].T
    leaning = rng.uniform(0.2, 1.2, size=(num_groups, num_members))
    strength = rng.integers(0, 5, size=(len(labels), num_members, num_classes)).astype(np.float64)
    strength[np.arange(len(labels)), :, labels] += 3.0 * leaning[groups]
    scores = np.round(strength / strength.sum(axis=2, keepdims=True).clip(1.0) * 8) / 8
    scores[:, :, 0] += 1.0 - scores.sum(axis=2)
    scores = np.abs(scores) / np.abs(scores).sum(axis=2, keepdims=True)
    return Problem(scores, labels, np.array([f"group {chr(97 + g)}" for g in range(num_groups)], dtype=object)[groups])


def group_means(problem: Problem, values: np.ndarray, kept: np.ndarray) -> list[float]:
    """Return the weighted mean of `values` over the kept rows of each group."""
    weights = np.ones(len(values)) if problem.weights is None else problem.weights
    names = sorted(set(problem.groups))
    return [float(np.average(values[m], weights=weights[m])) for n in names for m in [kept & (problem.groups == n)]]


def rates(problem: Problem, chances: np.ndarray, criterion: str) -> list[list[float]]:
    """Return the rates of a criterion, by group; the second path, straight from the definitions."""
    labels, num_classes = problem.labels, problem.num_classes
    everyone = np.ones(len(labels), dtype=bool)
    positive = [1] if num_classes == 2 else list(range(num_classes))
    if criterion == "equalized_odds":
        pairs = itertools.product(range(num_classes), positive)
        return [group_means(problem, chances[:, d], labels == y) for y, d in pairs]
    if criterion == "equal_opportunity":
        return [group_means(problem, chances[:, c], labels == c) for c in positive]
    if criterion == "predictive_equality":
        return [group_means(problem, chances[:, c], labels != c) for c in positive]
    if criterion == "demographic_parity":
        return [group_means(problem, chances[:, c], everyone) for c in positive]
    return [group_means(problem, 1.0 - chances[np.arange(len(labels)), labels], everyone)]


def value(problem: Problem, chances: np.ndarray, criterion: str, form: str = "max") -> float:
    found = rates(problem, chances, criterion)
    if criterion == "bounded_group_loss":
        return max(found[0])
    spreads = [max(each) - min(each) for each in found]
    return max(spreads) if form == "max" else sum(spreads) / len(spreads)


def loss(problem: Problem, chances: np.ndarray, costs: tuple[float, float] = (1.0, 1.0)) -> float:
    """Return the mean cost of deciding; two classes cost (false positive, false negative)."""
    labels = problem.labels
    wrong = 1.0 - chances[np.arange(len(labels)), labels]
    each = np.where(labels == 0, costs[0], costs[1]) if problem.num_classes == 2 else np.full(len(labels), costs[0])
    return float(np.average(wrong * each, weights=problem.weights))


def probabilities(fitted: Postprocessor, problem: Problem) -> np.ndarray:
    return fitted.predict_proba(problem.scores, sensitive_features=problem.groups)


def check_criterion(of: Claim, problem: Problem, criterion: str, tolerance: float, form: str = "max") -> None:
    """In sample, the criterion is within its tolerance, and what the estimator says of itself is true."""
    fitted = of.fit(problem, criterion=criterion, tolerance=tolerance, form=form)
    chances = probabilities(fitted, problem)
    assert np.abs(chances.sum(axis=1) - 1.0).max() < 1e-9
    assert chances.min() >= 0.0
    found = value(problem, chances, criterion, form)
    if of.keeps_criterion:
        assert found <= tolerance + SLACK
    assert math.isclose(found, fitted.achieved_["value"][0], abs_tol=1e-9)
    assert math.isclose(loss(problem, chances), fitted.loss_, abs_tol=1e-9)
    for rate, expected in zip(fitted.rates_.columns[2:], rates(problem, chances, criterion), strict=True):
        np.testing.assert_allclose(fitted.rates_[rate], expected, atol=1e-9)


def check_relabelled_groups(of: Claim, problem: Problem) -> None:
    """Groups' names, and so their order, do not matter."""
    names = sorted(set(problem.groups))
    renamed = np.array([names[-1 - names.index(group)] + "!" for group in problem.groups], dtype=object)
    other = replace(problem, groups=renamed)
    one, two = of.fit(problem, tolerance=0.05), of.fit(other, tolerance=0.05)
    assert math.isclose(one.loss_, two.loss_, abs_tol=1e-9)
    assert math.isclose(loss(other, probabilities(two, other)), one.loss_, abs_tol=1e-9)


def check_swapped_classes(of: Claim, problem: Problem) -> None:
    """With two classes and their costs swapped, the same is lost."""
    other = Problem(problem.scores[:, :, ::-1], 1 - problem.labels, problem.groups, problem.weights)
    one = of.fit(problem, tolerance=0.05, false_positive_cost=1.0, false_negative_cost=2.0)
    two = of.fit(other, tolerance=0.05, false_positive_cost=2.0, false_negative_cost=1.0)
    assert math.isclose(one.loss_, two.loss_, abs_tol=1e-9)


def check_row_order(of: Claim, problem: Problem, seed: int) -> None:
    """The order of rows matters neither to the fit nor to a decision."""
    order = np.random.default_rng(seed).permutation(len(problem.labels))
    shuffled = problem.take(order)
    one, two = of.fit(problem, tolerance=0.02), of.fit(shuffled, tolerance=0.02)
    np.testing.assert_allclose(probabilities(two, problem), probabilities(one, problem), atol=1e-9)
    ids = np.array(problem.ids, dtype=object)
    whole = one.predict(problem.scores, sensitive_features=problem.groups, example_ids=ids)
    mixed = one.predict(shuffled.scores, sensitive_features=shuffled.groups, example_ids=ids[order])
    assert (whole[order] == mixed).all()
    alone = [
        one.predict(
            problem.scores[row : row + 1], sensitive_features=problem.groups[row : row + 1], example_ids=[ids[row]]
        )
        for row in range(len(ids))
    ]
    assert (np.concatenate(alone) == whole).all()


def check_perfect(of: Claim, problem: Problem, criterion: str) -> None:
    """Constituents that are always right are left alone, where the criterion lets them."""
    right = np.repeat(np.eye(problem.num_classes)[problem.labels][:, None, :], problem.scores.shape[1], axis=1)
    perfect = replace(problem, scores=right)
    fitted = of.fit(perfect, criterion=criterion)
    np.testing.assert_allclose(probabilities(fitted, perfect), np.eye(problem.num_classes)[problem.labels], atol=1e-9)
    assert fitted.loss_ == 0.0


def check_weights(of: Claim, problem: Problem, seed: int) -> None:
    """A weight of n is n rows; one of 0 is no row."""
    counts = np.random.default_rng(seed).integers(0, 4, len(problem.labels))
    counts[: len(set(problem.groups)) * problem.num_classes] += 1
    weighted = replace(problem, weights=counts.astype(np.float64))
    repeated = problem.take(np.repeat(np.arange(len(counts)), counts))
    one, two = of.fit(weighted, tolerance=0.03), of.fit(repeated, tolerance=0.03)
    assert math.isclose(one.loss_, two.loss_, abs_tol=1e-9)
    np.testing.assert_allclose(probabilities(one, problem), probabilities(two, problem), atol=1e-9)


def check_keyed(of: Claim, problem: Problem, draws: int = 400) -> None:
    """Over ids, decisions come as often as `predict_proba` says."""
    fitted = of.fit(problem)
    chances = probabilities(fitted, problem)
    ids = [f"{row}/{draw}" for draw in range(draws) for row in range(len(problem.labels))]
    many = problem.take(np.tile(np.arange(len(problem.labels)), draws))
    drawn = fitted.predict(many.scores, sensitive_features=many.groups, example_ids=ids)
    for c in range(problem.num_classes):
        share = (drawn == c).reshape(draws, -1).mean(axis=0)
        error = np.sqrt(chances[:, c] * (1.0 - chances[:, c]) / draws)
        assert (np.abs(share - chances[:, c]) <= 5.0 * error + 1e-9).all()


def check_saved(of: Claim, problem: Problem) -> None:
    """What was saved and loaded predicts the same, to the bit."""
    fitted = of.fit(problem, tolerance=0.04)
    loaded = load_postprocessor(fitted.to_dict())
    assert type(loaded) is type(fitted)
    assert (probabilities(loaded, problem) == probabilities(fitted, problem)).all()
    asked = {"sensitive_features": problem.groups, "example_ids": problem.ids}
    assert (loaded.predict(problem.scores, **asked) == fitted.predict(problem.scores, **asked)).all()
    assert loaded.achieved_.equals(fitted.achieved_)


def check_tolerances(of: Claim, problem: Problem, tolerances: Sequence[float]) -> None:
    """Copies at other tolerances cost what fits there would."""
    copies = of.fit(problem).at_tolerances(tolerances)
    for tolerance, copied in zip(tolerances, copies, strict=True):
        fitted = of.fit(problem, tolerance=tolerance)
        assert math.isclose(copied.loss_, fitted.loss_, abs_tol=1e-8)
        assert math.isclose(loss(problem, probabilities(copied, problem)), fitted.loss_, abs_tol=1e-8)
        if of.keeps_criterion:
            assert value(problem, probabilities(copied, problem), "equalized_odds") <= tolerance + SLACK


def check_deterministic(of: Claim, problem: Problem) -> None:
    """Without chance every decision is certain, and what the estimator says of itself is of that rule."""
    fitted = of.fit(problem, tolerance=0.01, randomization="none")
    chances = probabilities(fitted, problem)
    assert set(np.unique(chances)) <= {0.0, 1.0}
    assert math.isclose(loss(problem, chances), fitted.loss_, abs_tol=1e-9)
    assert math.isclose(value(problem, chances, "equalized_odds"), fitted.achieved_["value"][0], abs_tol=1e-9)
    with_chance = of.fit(problem, tolerance=0.01)
    cost = fitted.determinism_cost_.set_index("what")
    assert math.isclose(cost.loc["loss", "randomised"], with_chance.loss_, abs_tol=1e-9)
    assert math.isclose(cost.loc["loss", "deterministic"], fitted.loss_, abs_tol=1e-9)
    assert (fitted.predict(problem.scores, sensitive_features=problem.groups) == chances.argmax(axis=1)).all()
    mixed = probabilities(with_chance, problem)
    clear = np.abs(mixed - 1.0 / problem.num_classes).max(axis=1) > 1e-6
    top = mixed.max(axis=1)
    assert (mixed[np.arange(len(top)), chances.argmax(axis=1)] >= top - 1e-9)[clear].all()
