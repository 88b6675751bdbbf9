from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.base import BaseEstimator, ClassifierMixin, clone

from fairsisa.errors import ConfigError, DataError, SolverError
from fairsisa.fairness.derived import blind
from fairsisa.fairness.derived.blind import predicted_rows, solve_blind
from fairsisa.fairness.derived.criteria import (
    BOUNDED_GROUP_LOSS,
    CRITERIA,
    Criterion,
    cost_matrix,
    criterion_value,
    group_rates_of,
)
from fairsisa.fairness.derived.joint import Joint
from fairsisa.fairness.derived.solving import solve
from fairsisa.fairness.strategies.linear import GroupBlindPostprocess
from fairsisa.fairness.strategies.saving import load_postprocessor

NAMES = ("a", "b", "c", "d")


def make_joint(seed, num_rows=150, num_groups=2, num_classes=2):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_rows, 4)) @ rng.normal(size=(4, num_groups * num_classes))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    joint = (shares / shares.sum(axis=1, keepdims=True)).reshape(num_rows, num_groups, num_classes)
    return joint, rng.integers(1, 4, size=num_rows).astype(float)


def solved(joint, weights, *criteria, costs=None):
    names = {"classes": NAMES[: joint.shape[2]], "groups": NAMES[: joint.shape[1]]}
    costs = cost_matrix(joint.shape[2]) if costs is None else costs
    return solve_blind(joint, weights, list(criteria), costs=costs, **names)


def pairwise_optimum(joint, weights, criterion):
    """Return the least cost by scipy, every ordered pair of groups bounded by itself (max form)."""
    num_rows, num_groups, num_classes = joint.shape
    costs, totals = cost_matrix(num_classes), np.einsum("n,nay->ay", weights, joint)
    names = {"classes": NAMES[:num_classes], "groups": NAMES[:num_groups]}
    rows, limits = [], []
    for rate in group_rates_of(criterion, totals, costs=costs, **names):
        each = np.einsum("n,gyd,ngy->gnd", weights, rate.coefficients / totals[:, :, None], joint)
        each = each.reshape(num_groups, -1)
        if criterion.bounds_levels:
            rows += list(each)
        else:
            rows += [each[a] - each[b] for a in range(num_groups) for b in range(num_groups) if a != b]
    limits = [criterion.tolerance] * len(rows)
    goal = (weights[:, None] * (joint.sum(axis=1) @ costs)).ravel() / weights.sum()
    sums = np.kron(np.eye(num_rows), np.ones((1, num_classes)))
    found = linprog(goal, A_ub=np.array(rows), b_ub=limits, A_eq=sums, b_eq=np.ones(num_rows), bounds=(0, 1))
    assert found.status == 0
    return found.fun


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 3),
    st.integers(2, 3),
    st.sampled_from(CRITERIA),
    st.sampled_from([0.0, 0.03, 0.2]),
)
def test_the_rule_costs_what_scipy_finds_and_keeps_the_criterion(seed, num_groups, num_classes, name, tolerance):
    joint, weights = make_joint(seed, 60, num_groups, num_classes)
    if name == BOUNDED_GROUP_LOSS:
        tolerance += 0.6
    criterion = Criterion(name, tolerance)
    found = solved(joint, weights, criterion)
    assert found.loss == pytest.approx(pairwise_optimum(joint, weights, criterion), abs=1e-8)
    assert found.values[0] <= tolerance + 1e-9
    totals, rows = predicted_rows(joint, weights, found.rule.decide(joint))
    rates = group_rates_of(
        criterion, totals, costs=cost_matrix(num_classes), classes=NAMES[:num_classes], groups=NAMES[:num_groups]
    )
    assert criterion_value(criterion, [rate.values(rows) for rate in rates]) == pytest.approx(found.values[0], abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_few_rows_are_left_to_chance_and_all_others_go_to_the_least_score(seed, num_groups):
    joint, weights = make_joint(seed, 200, num_groups)
    rule = solved(joint, weights, Criterion("equalized_odds")).rule
    assert len(rule.ties) <= 2 * (num_groups - 1)
    decided = rule.decide(joint)
    assert (decided.max(axis=1) < 1).sum() <= 2 * (num_groups - 1)
    certain = decided.max(axis=1) == 1
    chosen = np.einsum("nay,ayd->nd", joint, rule.scores).argmin(axis=1)
    assert (decided.argmax(axis=1) == chosen)[certain].mean() > 1 - 5 / 200


def test_groups_that_are_known_for_sure_give_the_group_aware_optimum():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, size=(12, 2)).astype(float)
    groups = np.repeat([0, 1, 2], 4)
    joint = np.zeros((12, 3, 2))
    joint[np.arange(12), groups] = counts / counts.sum(axis=1, keepdims=True)
    for tolerance in (0.0, 0.1):
        criterion = Criterion("equalized_odds", tolerance)
        aware = solve(
            Joint(groups, np.tile(np.arange(4), 3), counts, 3),
            [criterion],
            costs=cost_matrix(2),
            classes=NAMES[:2],
            groups=NAMES[:3],
        )
        found = solved(joint, counts.sum(axis=1), criterion)
        assert found.loss == pytest.approx(aware.loss, abs=1e-9)
        assert found.prices[0] == pytest.approx(aware.prices[0], abs=1e-6) or tolerance == 0.0


@pytest.mark.parametrize("form", ["max", "mean"])
def test_a_price_is_what_a_little_more_tolerance_gains(form):
    joint, weights = make_joint(3, 400, 3)
    at = [solved(joint, weights, Criterion("equalized_odds", tolerance, form)) for tolerance in (0.03, 0.0301)]
    assert at[0].prices[0] == pytest.approx((at[0].loss - at[1].loss) / 1e-4, rel=0.05)
    level = [solved(joint, weights, Criterion(BOUNDED_GROUP_LOSS, bound)) for bound in (0.3, 0.3001)]
    assert level[0].prices[0] == pytest.approx((level[0].loss - level[1].loss) / 1e-4, rel=0.05)


def test_several_criteria_hold_at_once():
    joint, weights = make_joint(4, 300, 3, 3)
    asked = (
        Criterion("equal_opportunity", 0.05),
        Criterion("demographic_parity", 0.02),
        Criterion("equalized_odds", np.inf),
    )
    found = solved(joint, weights, *asked)
    assert all(value <= criterion.tolerance + 1e-9 for criterion, value in zip(asked, found.values, strict=True))
    assert found.loss > solved(joint, weights, asked[0]).loss - 1e-12
    assert found.prices[2] == 0.0


def test_criteria_that_cannot_be_met_are_refused():
    joint, weights = make_joint(5)
    with pytest.raises(DataError, match="No group-blind rule meets these criteria"):
        solved(joint, weights, Criterion(BOUNDED_GROUP_LOSS, 0.0))


@pytest.mark.parametrize("tolerance", [0.0, 0.04])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_sifting_through_parts_changes_nothing(monkeypatch, num_classes, tolerance):
    joint, weights = make_joint(6, 700, 2, num_classes)
    whole = solved(joint, weights, Criterion("equalized_odds", tolerance))
    monkeypatch.setattr(blind, "FEW_ROWS", 60)
    sifted = solved(joint, weights, Criterion("equalized_odds", tolerance))
    assert sifted.loss == pytest.approx(whole.loss, abs=1e-10)
    assert sifted.values[0] <= tolerance + 1e-9
    assert len(sifted.rule.ties) <= 2 * num_classes * (num_classes - 1)


def test_a_part_that_cannot_meet_the_bound_does_not_refuse_the_whole(monkeypatch):
    joint, weights = make_joint(7, 300)
    loose = solved(joint, weights)
    worst = solved(joint, weights, Criterion(BOUNDED_GROUP_LOSS, np.inf)).values[0]
    least = next(bound for bound in np.linspace(worst / 4, worst, 80) if _feasible(joint, weights, bound))
    monkeypatch.setattr(blind, "FEW_ROWS", 10)
    found = solved(joint, weights, Criterion(BOUNDED_GROUP_LOSS, least))
    assert found.values[0] <= least + 1e-9
    assert found.loss >= loose.loss - 1e-12


def _feasible(joint, weights, bound):
    try:
        solved(joint, weights, Criterion(BOUNDED_GROUP_LOSS, bound))
    except DataError:
        return False
    return True


def test_a_solver_that_fails_is_told(monkeypatch):
    joint, weights = make_joint(8, 30)

    def fail(*args, **kwargs):
        raise blind.cp.SolverError("out of luck")

    monkeypatch.setattr(blind.cp.Problem, "solve", fail)
    with pytest.raises(SolverError, match="out of luck"):
        solved(joint, weights, Criterion("equalized_odds"))


def make_rows(seed, num_rows=1500, num_constituents=3):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(2, size=num_rows), rng.choice(["f", "m"], size=num_rows, p=[0.4, 0.6])
    shift = 0.35 * (labels - 0.5) * (1 + (groups == "f")) + 0.1 * (groups == "f")
    scores = np.clip(0.5 + shift[:, None] + rng.normal(0, 0.25, size=(num_rows, num_constituents)), 0.01, 0.99)
    hints = (groups == "f")[:, None] + rng.normal(0, 0.5, size=(num_rows, 2))
    return scores, labels, groups, hints


class Frequencies(ClassifierMixin, BaseEstimator):
    """Predict, for every distinct row of features, the shares of codes that were seen with it."""

    def fit(self, X, y, sample_weight=None):  # noqa: N803
        self.classes_ = np.unique(y)
        self.rows_, place = np.unique(X, axis=0, return_inverse=True)
        counts = np.zeros((len(self.rows_), len(self.classes_)))
        np.add.at(
            counts, (place.ravel(), np.searchsorted(self.classes_, y)), 1.0 if sample_weight is None else sample_weight
        )
        self.shares_ = counts / counts.sum(axis=1, keepdims=True)
        return self

    def predict_proba(self, X):  # noqa: N803
        place = [np.flatnonzero((self.rows_ == row).all(axis=1))[0] for row in X]
        return self.shares_[place]


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_a_calibrated_group_predictor_keeps_the_promise_on_true_groups(tolerance):
    scores, labels, groups, _ = make_rows(0)
    votes = (scores > 0.5).astype(int)
    made = GroupBlindPostprocess(tolerance=tolerance, group_estimator=Frequencies()).fit(
        votes, labels, sensitive_features=groups
    )
    assert made.achieved_["predicted_value"][0] <= tolerance + 1e-9
    assert made.achieved_["value"][0] == pytest.approx(made.achieved_["predicted_value"][0], abs=1e-9)
    chances = made.predict_proba(votes)[:, 1]
    rates = np.array([[chances[(labels == y) & (groups == g)].mean() for y in (0, 1)] for g in ("f", "m")])
    assert np.abs(rates[0] - rates[1]).max() == pytest.approx(made.achieved_["value"][0], abs=1e-9)
    assert made.loss_ == pytest.approx(np.where(labels, 1 - chances, chances).mean())


def test_groups_are_read_in_fit_alone_and_predictions_do_not_look_at_neighbours():
    scores, labels, groups, _ = make_rows(1)
    made = GroupBlindPostprocess(tolerance=0.02).fit(scores, labels, sensitive_features=groups)
    whole = made.predict_proba(scores)
    assert np.array_equal(whole, made.predict_proba(scores, sensitive_features=groups[::-1]))
    ids = [str(row) for row in range(len(labels))]
    labels_of = made.predict(scores, example_ids=ids)
    for row in (0, 17, 400):
        assert np.array_equal(made.predict_proba(scores[[row]]), whole[[row]])
        assert made.predict(scores[[row]], example_ids=ids[row : row + 1])[0] == labels_of[row]
    assert made.score(scores, labels) == pytest.approx((whole * np.eye(2)[labels]).sum(axis=1).mean())
    assert not made.derive(scores).backed_off.any()


def test_in_sample_both_promises_are_told_and_the_blind_rule_helps():
    scores, labels, groups, hints = make_rows(2)
    raw = GroupBlindPostprocess(tolerance=np.inf).fit(scores, labels, sensitive_features=groups)
    made = GroupBlindPostprocess(tolerance=0.01).fit(scores, labels, sensitive_features=groups, group_features=hints)
    assert made.achieved_["predicted_value"][0] <= 0.01 + 1e-9
    assert made.achieved_["value"][0] > 0.01 + 1e-6
    assert made.achieved_["value"][0] < raw.achieved_["value"][0] / 2
    fair, loose = made.at_tolerances([0.0, np.inf])
    assert fair.loss_ > made.loss_ - 0.01
    assert loose.solution_.loss <= made.solution_.loss


def test_the_joint_is_calibrated_in_the_large_whatever_the_scale_of_features():
    scores, labels, groups, hints = make_rows(3)
    made = GroupBlindPostprocess().fit(scores, labels, sensitive_features=groups, group_features=hints * 1000 + 5)
    joint = made.predict_joint(scores, group_features=hints * 1000 + 5)
    assert joint.shape == (1500, 2, 2)
    assert joint.sum(axis=(1, 2)) == pytest.approx(np.ones(1500))
    counts = np.array([[((groups == g) & (labels == y)).mean() for y in (0, 1)] for g in ("f", "m")])
    assert joint.mean(axis=0) == pytest.approx(counts, abs=1e-3)
    own = joint[:, 0].sum(axis=1)
    assert own[groups == "f"].mean() > own[groups == "m"].mean() + 0.2


def test_group_features_must_come_again_in_the_same_shape():
    scores, labels, groups, hints = make_rows(4, 400)
    made = GroupBlindPostprocess().fit(scores, labels, sensitive_features=groups, group_features=hints)
    with pytest.raises(DataError, match="Expected 5 features for the group predictor, as fitted, got 3"):
        made.predict_proba(scores)
    with pytest.raises(DataError, match="group_features for each of the 400 rows"):
        made.predict_proba(scores, group_features=hints[:7])
    with pytest.raises(DataError, match="finite numbers of shape"):
        made.predict_proba(scores, group_features=hints[:, 0])
    with pytest.raises(DataError, match="Expected 3 constituents, as fitted; got 2"):
        made.predict_proba(scores[:, :2], group_features=hints)


def test_rows_without_a_group_are_left_out_with_their_features():
    scores, labels, groups, hints = make_rows(5, 600)
    known = np.arange(600) % 3 > 0
    some = np.where(known, groups, None)
    made, fresh = GroupBlindPostprocess(), GroupBlindPostprocess()
    made.fit(scores, labels, sensitive_features=some, group_features=hints)
    fresh.fit(scores[known], labels[known], sensitive_features=groups[known], group_features=hints[known])
    assert np.array_equal(
        made.predict_proba(scores, group_features=hints), fresh.predict_proba(scores, group_features=hints)
    )


def test_weights_count_like_rows():
    scores, labels, groups, _ = make_rows(6, 300)
    weights = np.random.default_rng(0).integers(1, 4, size=300)
    places = np.repeat(np.arange(300), weights)
    common = {"group_estimator": Frequencies(), "small_cells": "ignore"}
    votes = (scores > 0.5).astype(int)
    made = GroupBlindPostprocess(**common).fit(votes, labels, sensitive_features=groups, sample_weight=weights)
    again = GroupBlindPostprocess(**common).fit(votes[places], labels[places], sensitive_features=groups[places])
    assert made.loss_ == pytest.approx(again.loss_)
    assert made.predict_proba(votes) == pytest.approx(again.predict_proba(votes), abs=1e-7)


def test_many_rows_are_drawn_from_every_group_and_label_and_that_is_told():
    scores, labels, groups, _ = make_rows(7)
    rare = (groups == "f") & (labels == 1)
    kept = ~rare | (np.cumsum(rare) <= 2)
    given = {"sensitive_features": groups[kept]}
    made = GroupBlindPostprocess(max_rows=200, small_cells="ignore").fit(scores[kept], labels[kept], **given)
    assert any("rest on" in line and f"of {kept.sum()} rows" in line for line in made.warnings_)
    assert 200 <= made.program_counts_.sum() <= 204
    assert (made.program_counts_.sum(axis=0) > 0).all()
    again = clone(made).fit(scores[kept], labels[kept], **given)
    assert np.array_equal(again.solution_.rule.scores, made.solution_.rule.scores)
    other = clone(made).set_params(seed=1).fit(scores[kept], labels[kept], **given)
    assert not np.array_equal(other.solution_.rule.scores, made.solution_.rule.scores)


def test_three_classes_are_saved_and_loaded():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(3, size=900), rng.choice(["f", "m"], size=900)
    votes = np.where(
        rng.random((900, 3)) < 0.6 + 0.2 * (groups == "f")[:, None], labels[:, None], rng.integers(3, size=(900, 3))
    )
    names = np.array(["hate", "normal", "offensive"])
    made = GroupBlindPostprocess(tolerance=0.05).fit(names[votes], names[labels], sensitive_features=groups)
    assert made.achieved_["predicted_value"][0] <= 0.05 + 1e-9
    again = load_postprocessor(made.to_dict())
    assert np.array_equal(again.predict_proba(names[votes]), made.predict_proba(names[votes]))
    assert again.at_tolerances([0.0])[0].loss_ == made.at_tolerances([0.0])[0].loss_


def test_an_estimator_of_ones_own_cannot_be_saved():
    scores, labels, groups, _ = make_rows(8, 300)
    votes = (scores > 0.5).astype(int)
    made = GroupBlindPostprocess(group_estimator=Frequencies()).fit(votes, labels, sensitive_features=groups)
    with pytest.raises(DataError, match="Frequencies cannot be saved"):
        made.to_dict()


def test_certain_decisions_report_what_they_do():
    scores, labels, groups, _ = make_rows(9)
    votes = (scores > 0.5).astype(int)
    made = GroupBlindPostprocess(randomization="none", group_estimator=Frequencies()).fit(
        votes, labels, sensitive_features=groups
    )
    decisions = made.predict(votes)
    rates = np.array([[decisions[(labels == y) & (groups == g)].mean() for y in (0, 1)] for g in ("f", "m")])
    assert made.achieved_["value"][0] == pytest.approx(np.abs(rates[0] - rates[1]).max())
    assert made.achieved_["predicted_value"][0] == pytest.approx(made.achieved_["value"][0])


@pytest.mark.parametrize(("parameters", "message"), [({"solver": "clarabel"}, "HiGHS"), ({"max_rows": 0}, "max_rows")])
def test_parameters_that_make_no_sense_are_refused(parameters, message):
    scores, labels, groups, _ = make_rows(9, 200)
    with pytest.raises(ConfigError, match=message):
        GroupBlindPostprocess(**parameters).fit(scores, labels, sensitive_features=groups)
