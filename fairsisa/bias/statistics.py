"""Exact tests and intervals for counts of changed answers."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

LEVEL = 0.95
FEW_CLUSTERS = 20
"""Of fewer, a cluster bootstrap's intervals are too narrow."""


def wilson_interval(count: float, total: float, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's interval of coverage `level` for a share, `count` out of `total`; NaN where `total` is 0.

    Its ends are the shares p with |count / total - p| = z sqrt(p (1 - p) / total) (Wilson 1927). It holds the observed
    share, stays within [0, 1], and has a width where the observed share is 0 or 1.

    Raises:
        ValueError: when the count is below 0 or above the total, or the level not between 0 and 1.
    """
    if not 0 <= count <= total:
        raise ValueError(f"Expected a count between 0 and the total of {total}, got {count}.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"Expected a level between 0 and 1, such as 0.95, got {level}.")
    if total == 0:
        return math.nan, math.nan
    z = float(stats.norm.ppf(0.5 + level / 2))
    share, scale = count / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # Rounding would leave 0 or 1 a little outside of its own interval.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def mcnemar_exact(num_to_one: int, num_to_zero: int) -> float:
    """Return the two-sided p-value of McNemar's exact test; 1 where nothing changed.

    Under the hypothesis that a change is as likely in one direction as in the other, the `num_to_one` changes are
    binomial among all changes with probability 1/2 (McNemar 1947). Items count as independent of one another.

    Raises:
        ValueError: when a count is below 0.
    """
    if min(num_to_one, num_to_zero) < 0:
        raise ValueError(f"Expected counts of changes of at least 0, got {num_to_one} and {num_to_zero}.")
    changes = num_to_one + num_to_zero
    if changes == 0:
        return 1.0
    return min(1.0, 2.0 * float(stats.binom.cdf(min(num_to_one, num_to_zero), changes, 0.5)))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values adjusted by Holm's procedure (Holm 1979), which holds the chance of any false finding.

    With m p-values in order, the adjusted i-th is the largest of (m - j + 1) p_(j) over j <= i, at most 1. What is NaN
    was not tested: it stays NaN and does not count in m.

    Raises:
        ValueError: when a p-value is not between 0 and 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(values))
    if ((values[tested] < 0) | (values[tested] > 1)).any():
        raise ValueError("Expected p-values between 0 and 1.")
    order = tested[np.argsort(values[tested], kind="stable")]
    adjusted: np.ndarray = np.full(len(values), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order])) if len(order) else 0.0
    return adjusted


def sign_p_value(replicates: np.ndarray, num_clusters: int) -> float:
    """Return a two-sided p-value for a difference of 0 from its bootstrap replicates, shape (num_replicates,).

    Twice the smaller share of replicates on either side of 0, those at 0 on both sides, with one replicate added to
    either count (Davison and Hinkley 1997, section 4.2); at most 1. So it says what the percentile interval says.
    Where no replicate is on the other side, that is but a bound, which no correction for many tests would let pass:
    there it is the p-value of the normal distribution with the replicates' mean and standard deviation, at most that
    bound; the bound itself where all replicates are the same.

    Of fewer than `FEW_CLUSTERS` clusters a bootstrap draws too narrowly: there it is at least the p-value of Student's
    distribution with a degree of freedom less than clusters, the standard deviation taken sqrt(G / (G - 1)) as large
    (Cameron, Gelbach and Miller 2008, section II). NaN of one cluster, or where most replicates are undefined.
    """
    drawn = replicates[~np.isnan(replicates)]
    if num_clusters < 2 or len(drawn) < max(2, len(replicates) / 2):
        return math.nan
    smaller = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    share = min(1.0, 2.0 * (smaller + 1) / (len(drawn) + 1))
    spread = float(drawn.std(ddof=1)) if np.ptp(drawn) > 0 else 0.0
    if not spread:
        return share
    away = abs(float(drawn.mean())) / spread
    if num_clusters < FEW_CLUSTERS:
        shrunk = away * math.sqrt((num_clusters - 1) / num_clusters)
        return max(share, 2.0 * float(stats.t.sf(shrunk, num_clusters - 1)))
    return share if smaller else min(share, 2.0 * float(stats.norm.sf(away)))
