from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from fairsisa.bias.statistics import holm, mcnemar_exact, sign_p_value, wilson_interval

counts = st.integers(0, 60)
levels = st.floats(0.5, 0.999)
shares = st.tuples(counts, counts).map(lambda pair: (min(pair), max(pair)))


@given(shares, levels)
def test_wilson_ends_solve_the_score_equation(share, level):
    count, total = share
    assume(total > 0)
    z, seen = stats.norm.ppf(0.5 + level / 2), count / total

    def score(p: float) -> float:
        return (seen - p) ** 2 - z**2 * p * (1 - p) / total

    low, high = wilson_interval(count, total, level)
    expected_low = optimize.brentq(score, 0, seen, xtol=1e-13) if 0 < count < total else (0.0 if count == 0 else low)
    expected_high = optimize.brentq(score, seen, 1, xtol=1e-13) if 0 < count < total else (1.0 if count else high)
    assert (low, high) == pytest.approx((expected_low, expected_high), abs=1e-9)
    assert score(low) == pytest.approx(0, abs=1e-9)
    assert score(high) == pytest.approx(0, abs=1e-9)
    assert low <= seen <= high


@given(shares, levels)
def test_wilson_agrees_with_scipy_and_mirrors(share, level):
    count, total = share
    assume(total > 0)
    ours = wilson_interval(count, total, level)
    theirs = stats.binomtest(count, total).proportion_ci(level, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    low, high = wilson_interval(total - count, total, level)
    assert ours == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_of_nothing_is_undefined_and_wrong_counts_are_refused():
    assert all(math.isnan(end) for end in wilson_interval(0, 0))
    with pytest.raises(ValueError, match="between 0 and the total of 3, got 4"):
        wilson_interval(4, 3)
    with pytest.raises(ValueError, match="level between 0 and 1"):
        wilson_interval(1, 3, 1.0)


@given(counts, counts)
def test_mcnemar_is_the_binomial_test_of_scipy(up, down):
    p = mcnemar_exact(up, down)
    expected = stats.binomtest(up, up + down).pvalue if up + down else 1.0
    assert p == pytest.approx(expected, rel=1e-9)
    assert p == mcnemar_exact(down, up)
    assert 0 < p <= 1


def test_mcnemar_of_published_counts():
    # Qwen2.5-1.5B on MMLU, int4: 86 right answers became wrong, 43 wrong ones right; of 4-bit runs in all, 738 and 470.
    assert mcnemar_exact(43, 86) == pytest.approx(stats.binomtest(43, 129).pvalue)
    assert 1e-15 < mcnemar_exact(470, 738) < 1e-13
    with pytest.raises(ValueError, match="at least 0, got -1"):
        mcnemar_exact(-1, 2)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
def test_holm_is_the_smallest_level_at_which_the_procedure_rejects(p_values):
    adjusted = holm(np.array(p_values))
    tested = sorted(p for p in p_values if not math.isnan(p))
    for p, value in zip(p_values, adjusted, strict=True):
        if math.isnan(p):
            assert math.isnan(value)
            continue
        # Step down by hand: rejected at a level if each smaller or equal p-value passes its own bound.
        needed = [(len(tested) - place) * each for place, each in enumerate(tested) if each <= p]
        first = tested.index(p)
        assert value == pytest.approx(min(1.0, max(needed[: first + 1])))
        assert value >= p


def test_holm_by_hand_and_its_refusal():
    assert holm(np.array([0.01, 0.04, 0.03, math.nan, 0.005])) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan, 0.02], nan_ok=True
    )
    assert holm(np.array([])).shape == (0,)
    with pytest.raises(ValueError, match="p-values between 0 and 1"):
        holm(np.array([1.2]))


def test_sign_p_values():
    many = 50
    assert sign_p_value(np.zeros(9), many) == 1.0
    mixed = np.array([-1.0, 1.0, 1.0, 2.0])
    assert sign_p_value(mixed, many) == sign_p_value(-mixed, many)
    drawn = np.random.default_rng(0).normal(5, 1, 99)
    z = drawn.mean() / drawn.std(ddof=1)
    assert sign_p_value(drawn, many) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-6)
    assert sign_p_value(-drawn, many) == pytest.approx(sign_p_value(drawn, many))
    assert sign_p_value(np.array([0.01, 0.02, 9.0]), many) == 0.5
    assert sign_p_value(np.array([*mixed, math.nan]), many) == pytest.approx(0.8)


def test_a_change_of_everything_is_told_and_one_cluster_tells_nothing():
    everything = np.full(999, 100.0)
    assert sign_p_value(everything, 40) == 0.002
    assert sign_p_value(everything, 3) == 0.002
    assert math.isnan(sign_p_value(everything, 1))
    assert math.isnan(sign_p_value(np.array([1.0, math.nan]), 40))
    assert math.isnan(sign_p_value(np.array([0.5, 0.51, *[math.nan] * 98]), 40))


@pytest.mark.parametrize("num_clusters", [3, 5, 10, 19, 20, 40])
def test_few_clusters_find_no_more_than_there_is(num_clusters):
    """Means of clusters that differ by chance: of 400 such tests, as many are below .01 as should be, or nearly so."""
    draw = np.random.default_rng(num_clusters)
    weights = draw.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=400) / num_clusters
    p_values = np.array([sign_p_value(weights @ draw.normal(size=num_clusters), num_clusters) for _ in range(400)])
    assert (p_values < 0.01).mean() <= 0.03
    assert (p_values < 0.001).mean() <= 0.0125
    assert p_values.max() > 0.5


def test_few_clusters_by_hand():
    """Student's distribution by its own formula: of 2 degrees of freedom, P(T > t) = 1/2 - t / (2 sqrt(t^2 + 2))."""
    drawn = np.array([1.0, 2.0, 3.0, 2.0] * 50)
    t = drawn.mean() / drawn.std(ddof=1) * math.sqrt(2 / 3)
    assert sign_p_value(drawn, 3) == pytest.approx(1 - t / math.sqrt(t * t + 2))
