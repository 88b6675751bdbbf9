from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairlearn.postprocessing import ThresholdOptimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression

from fairsisa.data.corpora import load_corpus
from fairsisa.fairness.derived.criteria import Criterion
from fairsisa.fairness.strategies import EnsemblePostprocess, ScoreThresholdPostprocess
from fairsisa.fairness.strategies.base import Outcome
from fairsisa.fairness.strategies.decisions import Derived
from fairsisa.fairness.strategies.inputs import Inputs
from strategy_contract import (
    BY_NAME,
    CLAIMS,
    CRITERIA,
    Claim,
    Problem,
    check_criterion,
    check_deterministic,
    check_keyed,
    check_perfect,
    check_relabelled_groups,
    check_row_order,
    check_saved,
    check_swapped_classes,
    check_tolerances,
    check_weights,
    loss,
    make_problem,
    probabilities,
    value,
)

named = pytest.mark.parametrize("of", CLAIMS, ids=lambda each: each.name)
counting = pytest.mark.parametrize("of", [each for each in CLAIMS if each.counts_alone], ids=lambda each: each.name)
optimal = pytest.mark.parametrize("of", [each for each in CLAIMS if each.has_one_loss], ids=lambda each: each.name)
binary_problems = st.builds(
    make_problem,
    st.integers(0, 2**32 - 1),
    num_groups=st.integers(1, 3),
    num_members=st.integers(1, 4),
    size=st.integers(10, 80),
)
few = settings(max_examples=4)
TOLERANCES = {"bounded_group_loss": 0.67}  # what always deciding a group's commonest label costs, at most


@named
@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(binary_problems, st.sampled_from([0.0, 0.03, 0.2]))
def test_the_criterion_holds_in_sample(of: Claim, criterion: str, problem: Problem, tolerance: float) -> None:
    check_criterion(of, problem, criterion, TOLERANCES.get(criterion, 0.0) + tolerance)


@pytest.mark.parametrize("of", [each for each in CLAIMS if each.many_classes], ids=lambda each: each.name)
@pytest.mark.parametrize("criterion", CRITERIA)
@settings(max_examples=2)
@given(st.integers(0, 2**32 - 1))
def test_the_criterion_holds_for_three_classes(of: Claim, criterion: str, seed: int) -> None:
    check_criterion(of, make_problem(seed, num_classes=3, size=50), criterion, TOLERANCES.get(criterion, 0.05))


@named
@few
@given(binary_problems)
def test_the_mean_form_holds_in_sample(of: Claim, problem: Problem) -> None:
    check_criterion(of, problem, "equalized_odds", 0.04, form="mean")


@settings(max_examples=20)
@given(binary_problems, st.sampled_from(CRITERIA), st.sampled_from([0.0, 0.05]))
def test_the_more_a_rule_sees_the_less_it_costs_in_sample(problem: Problem, criterion: str, tolerance: float) -> None:
    order = ["ensemble_pattern", "ensemble_pooled", "ensemble_vote_count", "aggregate_first"]
    tolerance = TOLERANCES.get(criterion, 0.0) + tolerance
    losses = [
        BY_NAME[name].fit(problem, criterion=criterion, tolerance=tolerance, pool_below=4).loss_ for name in order[1:2]
    ]
    losses = [
        BY_NAME[name].fit(problem, criterion=criterion, tolerance=tolerance).loss_ for name in (order[0], *order[2:])
    ] + losses
    pattern, vote_count, first, pooled = losses
    assert pattern <= pooled + 1e-9
    assert pooled <= vote_count + 1e-9
    assert vote_count <= first + 1e-9


@optimal
@few
@given(binary_problems)
def test_names_of_groups_do_not_matter(of: Claim, problem: Problem) -> None:
    check_relabelled_groups(of, problem)


@optimal
@few
@given(st.integers(0, 2**32 - 1))
def test_classes_may_be_swapped_with_their_costs(of: Claim, seed: int) -> None:
    problem = make_problem(seed)
    positive = 0.98 * problem.scores[:, :, 1] + np.random.default_rng(seed).uniform(0.0, 0.02, problem.scores.shape[:2])
    untied = np.stack([1.0 - positive, positive], axis=2)  # a tie goes to the lower class, which is then another
    check_swapped_classes(of, Problem(untied, problem.labels, problem.groups))


@named
@few
@given(binary_problems, st.integers(0, 1000))
def test_rows_may_come_in_any_order_and_company(of: Claim, problem: Problem, seed: int) -> None:
    check_row_order(of, problem, seed)


@counting
@pytest.mark.parametrize(
    "criterion", ["equalized_odds", "equal_opportunity", "predictive_equality", "bounded_group_loss"]
)
@settings(max_examples=3)
@given(binary_problems)
def test_perfect_constituents_are_left_alone(of: Claim, criterion: str, problem: Problem) -> None:
    check_perfect(of, problem, criterion)


@counting
@few
@given(binary_problems, st.integers(0, 1000))
def test_weights_count_as_rows(of: Claim, problem: Problem, seed: int) -> None:
    check_weights(of, problem, seed)


@named
@settings(max_examples=3)
@given(st.integers(0, 1000))
def test_keyed_decisions_come_as_often_as_they_should(of: Claim, seed: int) -> None:
    check_keyed(of, make_problem(seed, size=30))


@named
@few
@given(binary_problems)
def test_saved_and_loaded_it_predicts_the_same(of: Claim, problem: Problem) -> None:
    check_saved(of, problem)


@optimal
@few
@given(binary_problems)
def test_copies_at_other_tolerances_are_fits_there(of: Claim, problem: Problem) -> None:
    check_tolerances(of, problem, [0.0, 0.02, 0.1, math.inf])


@named
@few
@given(binary_problems)
def test_without_chance_it_says_what_the_rule_does(of: Claim, problem: Problem) -> None:
    check_deterministic(of, problem)


class _TooLax(EnsemblePostprocess):
    def _check_parameters(self) -> None:
        super()._check_parameters()
        self.criteria_ = tuple(Criterion(each.name, each.tolerance + 0.2, each.form) for each in self.criteria_)


class _Boastful(EnsemblePostprocess):
    def _outcome(self, rounded: bool) -> Outcome:
        return Outcome(
            np.broadcast_to(np.eye(len(self.classes_)), super()._outcome(rounded).confusion_rows.shape), (0.0,)
        )


class _ForgetsWeights(EnsemblePostprocess):
    def fit(self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None) -> Any:  # noqa: N803
        return super().fit(X, y, sensitive_features=sensitive_features)


class _DrawsByPlace(EnsemblePostprocess):
    def predict(self, X: Any, *, sensitive_features: Any = None, example_ids: Any = None) -> np.ndarray:  # noqa: N803
        return super().predict(X, sensitive_features=sensitive_features, example_ids=range(len(X)))


class _Meddles(EnsemblePostprocess):
    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(inputs), len(self.classes_)), 1.0 / len(self.classes_)), np.zeros(len(inputs), dtype=bool)


class _PrefersTheFirstGroup(EnsemblePostprocess):
    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities, backed_off = super()._apply_rule(inputs, groups)
        probabilities[groups == 0] = [0.0, 1.0]
        return probabilities, backed_off


class _AlwaysTheLikelier(EnsemblePostprocess):
    def derive(self, X: Any, *, sensitive_features: Any = None) -> Derived:  # noqa: N803
        found = super().derive(X, sensitive_features=sensitive_features)
        return Derived(np.full_like(found.probabilities, 0.5), found.original, found.backed_off)


class _CopiesAsItIs(EnsemblePostprocess):
    def _rules_at(self, tolerances: Any) -> list[dict[str, Any]]:
        return [{} for _ in tolerances]


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (_TooLax, lambda of, p: check_criterion(of, p, "equalized_odds", 0.0)),
        (_Boastful, lambda of, p: check_criterion(of, p, "demographic_parity", 0.1)),
        (_ForgetsWeights, lambda of, p: check_weights(of, p, 0)),
        (_DrawsByPlace, lambda of, p: check_row_order(of, p, 0)),
        (_Meddles, lambda of, p: check_perfect(of, p, "equalized_odds")),
        (_PrefersTheFirstGroup, check_relabelled_groups),
        (_AlwaysTheLikelier, check_keyed),
        (_CopiesAsItIs, lambda of, p: check_tolerances(of, p, [0.0, 0.2])),
        (_Meddles, check_deterministic),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_the_contract_finds_a_broken_strategy(broken: type[EnsemblePostprocess], check: Any) -> None:
    problem = make_problem(3, size=80)
    with pytest.raises(AssertionError):
        check(Claim("broken", broken), problem)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1.0, 1.0), (1.0, 3.0), (2.0, 1.0)]))
def test_one_constituent_gives_the_program_of_hardt(seed: int, costs: tuple[float, float]) -> None:
    problem = make_problem(seed, num_members=1)
    expected = hardt(problem.scores[:, 0].argmax(axis=1), problem.labels, problem.groups, costs)
    asked = {"false_positive_cost": costs[0], "false_negative_cost": costs[1]}
    for name in ("aggregate_first", "ensemble_pattern", "ensemble_vote_count", "members_random", "members_majority"):
        fitted = BY_NAME[name].fit(problem, **asked)
        assert math.isclose(fitted.loss_, expected, abs_tol=1e-9)
        assert math.isclose(loss(problem, probabilities(fitted, problem), costs), expected, abs_tol=1e-9)


def hardt(votes: np.ndarray, labels: np.ndarray, groups: np.ndarray, costs: tuple[float, float]) -> float:
    """Return the optimum of the program of Hardt et al. 2016 in its four variables P(D=1 | vote, group)."""
    names, total = sorted(set(groups)), len(labels)
    objective, rows = np.zeros(4), np.zeros((2, 4))
    for place, (group, vote) in enumerate([(g, v) for g in names for v in (0, 1)]):
        here = (groups == group) & (votes == vote)
        negatives, positives = (here & (labels == 0)).sum(), (here & (labels == 1)).sum()
        objective[place] = (costs[0] * negatives - costs[1] * positives) / total
        for label in (0, 1):
            share = (here & (labels == label)).sum() / ((groups == group) & (labels == label)).sum()
            rows[label, place] = share if group == names[0] else -share
    found = linprog(objective, A_eq=rows, b_eq=[0.0, 0.0], bounds=[(0.0, 1.0)] * 4, method="highs")
    return float(found.fun + costs[1] * (labels == 1).mean())


class _Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier that hands a score on."""

    def __init__(self) -> None:
        self.classes_ = np.array([0, 1])

    def fit(self, X: Any, y: Any) -> _Given:  # noqa: N803
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        return X[:, 0]


@pytest.mark.parametrize("seed", range(4))
def test_no_worse_than_fairlearn_and_within_its_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 2, 3000), rng.integers(0, 3, 3000)
    scores = np.clip(np.round(0.5 + 0.2 * (labels - 0.5) * (1 + groups) + rng.normal(0, 0.2, 3000), 1), 0.0, 1.0)
    theirs = ThresholdOptimizer(estimator=_Given(), constraints="equalized_odds", prefit=True, predict_method="predict")
    theirs.fit(scores[:, None], labels, sensitive_features=groups)
    chance = theirs._pmf_predict(scores[:, None], sensitive_features=groups)
    their_loss = float(np.abs(chance[:, 1] - labels).mean())
    ours = ScoreThresholdPostprocess().fit(scores, labels, sensitive_features=groups)
    assert ours.loss_ <= their_loss + 1e-9
    assert their_loss - ours.loss_ < 2e-3
    assert ours.achieved_["value"][0] <= 1e-9


@pytest.mark.real_data
def test_on_recidivism_scores_every_promise_holds(data_root: Path, tmp_path: Path) -> None:
    examples = load_corpus({"name": "compas"}, root=data_root, cache=tmp_path)
    features, labels = examples.features().astype(np.float64), examples.labels
    race = examples.sensitive(examples.sensitive_names[0])
    train = np.arange(len(labels)) % 2 == 0
    members = [
        LogisticRegression(C=0.01, max_iter=2000).fit(features[train][k::5], labels[train][k::5]) for k in range(5)
    ]
    scores = np.stack([member.predict_proba(features[~train]) for member in members], axis=1)
    frequent = np.isin(race[~train], ["African-American", "Caucasian", "Hispanic"])
    assert frequent.sum() > 1000
    problem = Problem(scores[frequent], labels[~train][frequent], race[~train][frequent])
    losses = {}
    for of in CLAIMS:
        fitted = of.fit(problem, tolerance=0.02)
        losses[of.name] = loss(problem, probabilities(fitted, problem))
        if of.keeps_criterion:
            assert value(problem, probabilities(fitted, problem), "equalized_odds") <= 0.02 + 1e-9
    assert losses["ensemble_pattern"] <= losses["ensemble_vote_count"] + 1e-12 <= losses["aggregate_first"] + 2e-12
    assert losses["unprocessed"] <= losses["score_threshold"] + 1e-12
