from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from fairsisa.sisa.membership import MembershipAuc, membership_auc, membership_report

losses = st.lists(st.floats(0, 4) | st.sampled_from([0.0, 0.5, 1.0, math.inf]), min_size=1, max_size=20)


@given(losses, losses)
def test_auc_is_that_of_scipy_and_of_counting_pairs(members, others):
    found = membership_auc(np.asarray(members), np.asarray(others)).auc
    counted = np.mean([(m < o) + 0.5 * (m == o) for m in members for o in others])
    assert found == pytest.approx(counted, abs=1e-12)
    below = mannwhitneyu(others, members, method="asymptotic").statistic / (len(members) * len(others))
    assert found == pytest.approx(below, abs=1e-12)


@given(st.lists(st.floats(0, 4), min_size=1, max_size=20), st.lists(st.floats(0, 4), min_size=1, max_size=20))
def test_auc_is_that_of_sklearn(members, others):
    expected = roc_auc_score([1] * len(members) + [0] * len(others), [-loss for loss in members + others])
    assert membership_auc(np.asarray(members), np.asarray(others)).auc == pytest.approx(expected, abs=1e-12)


@given(losses, losses)
def test_sides_mirror_each_other(members, others):
    one, two = (membership_auc(np.asarray(a), np.asarray(b)) for a, b in ((members, others), (others, members)))
    assert (one.auc, one.low, one.high) == pytest.approx((1 - two.auc, 1 - two.high, 1 - two.low), abs=1e-9)


@pytest.mark.parametrize(("num_members", "num_others", "overlap"), [(3, 7, 0), (20, 20, 5), (5, 200, 3), (1, 1, 0)])
def test_interval_holds_every_auc_that_is_not_contradicted(num_members, num_others, overlap):
    """Second path: walk over a fine grid of Hanley and McNeil's variance, no root finding."""
    found = membership_auc(np.arange(num_members) + 0.5, np.arange(num_others) + num_members - overlap)
    theta = np.linspace(0, 1, 200_001)
    q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
    mean = (num_members + num_others) / 2
    variance = theta * (1 - theta) + (mean - 1) * (q1 - theta**2 + q2 - theta**2)
    inside = np.abs(found.auc - theta) <= 1.959964 * np.sqrt(np.maximum(variance, 0) / (num_members * num_others))
    assert found.low == pytest.approx(theta[inside].min(), abs=1e-5)
    assert found.high == pytest.approx(theta[inside].max(), abs=1e-5)
    assert found.low < found.high


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator, hits, rounds = np.random.default_rng(3), 0, 400
    truth = 0.5 * (1 + math.erf(0.5 / 2))  # losses N(0, 1) against N(0.5, 1): P(member < other) = Phi(0.5 / sqrt(2))
    for _ in range(rounds):
        found = membership_auc(generator.normal(0, 1, 25), generator.normal(0.5, 1, 40))
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / rounds <= 0.98


def test_a_perfect_attack_on_few_examples_is_no_certainty():
    found = membership_auc(np.zeros(3), np.ones(3))
    assert (found.auc, found.high) == (1.0, 1.0)
    assert 0.3 < found.low < 0.7


def test_a_useless_attack_contains_one_half():
    found = membership_auc(np.full(9, 0.7), np.full(400, 0.7))
    assert found.auc == 0.5
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize(
    ("members", "others", "reason"),
    [(0, 3, "no members"), (3, 0, "no non-members"), (0, 0, "no members and no non-members")],
)
def test_nothing_to_compare_has_a_reason(members, others, reason):
    found = membership_auc(np.ones(members), np.ones(others))
    assert found == MembershipAuc(
        auc=None, low=None, high=None, num_members=members, num_nonmembers=others, reason=reason
    )


def test_report_has_both_sides_and_says_what_it_is():
    learnt, fresh = np.asarray([0.1, 0.2]), np.asarray([1.0, 2.0, 3.0])
    report = membership_report(
        members_before=learnt, nonmembers_before=fresh, members_after=fresh[:2], nonmembers_after=fresh
    )
    assert report.before == membership_auc(learnt, fresh)
    assert report.after == membership_auc(fresh[:2], fresh)
    assert report.words == "smoke test: cannot prove forgetting"


@pytest.mark.parametrize(
    ("bad", "message"), [(np.ones((2, 2)), "shape"), (np.float64(1.0), "shape"), (np.asarray([1.0, np.nan]), "NaN")]
)
def test_losses_of_another_form_are_refused(bad, message):
    with pytest.raises(ValueError, match=f"member_losses.*{message}"):
        membership_auc(bad, np.ones(2))
    with pytest.raises(ValueError, match=f"nonmember_losses.*{message}"):
        membership_auc(np.ones(2), bad)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auc": 0.5, "low": None, "high": 1.0}, "with its bounds"),
        ({"auc": None, "low": None, "high": None}, "a reason"),
        ({"auc": 0.5, "low": 0.4, "high": 0.6, "reason": "none"}, "a reason"),
        ({"auc": 0.5, "low": 0.6, "high": 0.7}, "low <= auc"),
        ({"auc": 1.5, "low": 0.6, "high": 1.7}, "<= 1"),
        ({"auc": 0.5, "low": 0.4, "high": 0.6, "num_members": -1}, "counts from 0"),
    ],
)
def test_impossible_results_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MembershipAuc(**{"num_members": 1, "num_nonmembers": 1, **fields})
