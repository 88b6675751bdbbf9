"""The smoke test of a deletion: can a simple attack still tell deleted examples from unseen ones?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq
from scipy.stats import rankdata

LEVEL = 0.95
WORDS = "smoke test: cannot prove forgetting"
NEAR_ONE = 1.0 - 1e-12


@dataclass(frozen=True, kw_only=True)
class MembershipAuc:
    """How well the attack tells members from non-members: 0.5 is guessing, 1 is always right.

    `low` and `high` bound the AUC at `LEVEL`. All three are None when there are no members or no non-members to
    compare; then `reason` says so, and is empty otherwise.
    """

    auc: float | None
    low: float | None
    high: float | None
    num_members: int
    num_nonmembers: int
    reason: str = ""

    def __post_init__(self) -> None:
        known = [value for value in (self.auc, self.low, self.high) if value is not None]
        if len(known) not in (0, 3) or bool(known) == bool(self.reason):
            raise ValueError("Expected an AUC with its bounds, or none of them and a reason.")
        if known and not 0.0 <= known[1] <= known[0] <= known[2] <= 1.0:
            raise ValueError(f"Expected 0 <= low <= auc <= high <= 1, got {known[1]}, {known[0]}, {known[2]}.")
        if min(self.num_members, self.num_nonmembers) < 0:
            raise ValueError(f"Expected counts from 0, got {self.num_members} and {self.num_nonmembers}.")


@dataclass(frozen=True, kw_only=True)
class MembershipReport:
    """The attack on the deleted examples, with the ensemble from before the deletion and with the one after it."""

    before: MembershipAuc
    after: MembershipAuc
    words: str = WORDS


def membership_report(
    *,
    members_before: np.ndarray,
    nonmembers_before: np.ndarray,
    members_after: np.ndarray,
    nonmembers_after: np.ndarray,
) -> MembershipReport:
    """Attack the deleted examples ("members") twice: by their losses before and after the deletion.

    Non-members are examples no model was trained on, such as those of the test split. Arguments and errors are those
    of `membership_auc`.
    """
    return MembershipReport(
        before=membership_auc(members_before, nonmembers_before), after=membership_auc(members_after, nonmembers_after)
    )


def membership_auc(member_losses: np.ndarray, nonmember_losses: np.ndarray) -> MembershipAuc:
    """Return the AUC of the attack that calls an example a member when its loss is low (Yeom et al., CSF 2018).

    Losses are per-example cross-entropies, one dimension each. The AUC is the Mann-Whitney statistic: the chance that
    a member's loss is below a non-member's, ties counting half. The interval inverts Hanley and McNeil's variance
    (Radiology 1982) as a score interval (Newcombe, Statistics in Medicine 2006, method 5), so that it keeps a width
    where the attack is always right or always wrong.

    Raises:
        ValueError: when losses are not one-dimensional numbers, or one is NaN.
    """
    members, others = _losses("member_losses", member_losses), _losses("nonmember_losses", nonmember_losses)
    missing = [what for what, losses in (("members", members), ("non-members", others)) if not len(losses)]
    if missing:
        return MembershipAuc(
            auc=None,
            low=None,
            high=None,
            num_members=len(members),
            num_nonmembers=len(others),
            reason=f"no {' and no '.join(missing)}",
        )
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    above = float(ranks.sum()) - len(members) * (len(members) + 1) / 2
    pairs = len(members) * len(others)
    auc = min(max(1.0 - above / pairs, 0.0), 1.0)
    low = _lower_bound(auc, len(members), len(others))
    high = 1.0 - _lower_bound(1.0 - auc, len(members), len(others))
    return MembershipAuc(
        auc=auc, low=min(low, auc), high=max(high, auc), num_members=len(members), num_nonmembers=len(others)
    )


def _lower_bound(auc: float, num_members: int, num_nonmembers: int) -> float:
    """Return the smallest AUC that the one seen does not contradict; the variance is symmetric around 0.5."""
    if auc == 0.0:
        return 0.0
    quantile = NormalDist().inv_cdf((1.0 + LEVEL) / 2)
    spread = (num_members + num_nonmembers) / 2 - 1

    def contradiction(theta: float) -> float:
        cluster = 1 + spread * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * cluster / (num_members * num_nonmembers)
        return abs(auc - theta) - quantile * math.sqrt(variance)

    return float(brentq(contradiction, 0.0, min(auc, NEAR_ONE), xtol=1e-12))


def _losses(name: str, values: np.ndarray) -> np.ndarray:
    losses = np.asarray(values, dtype=np.float64)
    if losses.ndim != 1:
        raise ValueError(f"Expected {name} of shape (num_examples,), got shape {losses.shape}.")
    if np.isnan(losses).any():
        raise ValueError(f"Expected {name} without NaN, got {int(np.isnan(losses).sum())} of {len(losses)}.")
    return losses
