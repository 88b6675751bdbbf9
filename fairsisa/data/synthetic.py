"""Worlds whose joint law of group, label, score is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import bdtrc, comb, expit, logit, ndtr, xlog1py, xlogy

from fairsisa.errors import ConfigError

REGIONS = ("northern", "southern", "eastern", "western")
MAX_CUES = 12


class World(Protocol):
    """A population: group shares, base rates P(Y = 1 | group), and the law of one score given (group, label).

    Groups are the first of `REGIONS`, in that order.
    """

    @property
    def group_shares(self) -> tuple[float, ...]:
        """Return P(group), summing to 1."""
        ...

    @property
    def base_rates(self) -> tuple[float, ...]:
        """Return P(Y = 1 | group)."""
        ...

    def log_likelihood(self, scores: np.ndarray) -> np.ndarray:
        """Return the log density (or probability) of each score, shape (num_groups, 2, num_scores)."""
        ...

    def survival(self, threshold: np.ndarray) -> np.ndarray:
        """Return P(score >= threshold | group, label), shape (num_groups, 2), for one threshold per group."""
        ...

    def bayes_thresholds(self) -> np.ndarray:
        """Return each group's smallest score with P(Y = 1 | score, group) >= 1/2, shape (num_groups,)."""
        ...


@dataclass(frozen=True)
class GaussianWorld:
    """A world whose score is normal: Z | group a, label y ~ N(midpoints[a] + (y - 1/2) separations[a], 1).

    All tuples have one entry per group, two to four; shares sum to 1, base rates lie in (0, 1), separations are
    positive.

    Raises:
        ConfigError: when an entry is out of range.
    """

    group_shares: tuple[float, ...] = (0.65, 0.35)
    base_rates: tuple[float, ...] = (0.5, 0.35)
    separations: tuple[float, ...] = (2.4, 1.6)
    midpoints: tuple[float, ...] = (0.0, -0.3)

    def __post_init__(self) -> None:
        _require_population(self.group_shares, self.base_rates)
        _require_per_group(len(self.group_shares), separations=self.separations, midpoints=self.midpoints)
        if min(self.separations) <= 0:
            raise ConfigError(f"Expected positive separations, got {self.separations}.")

    @property
    def means(self) -> np.ndarray:
        """Mean score given (group, label), shape (num_groups, 2)."""
        halves = np.multiply.outer(np.asarray(self.separations), np.array([-0.5, 0.5]))
        return np.asarray(np.asarray(self.midpoints)[:, None] + halves)

    def log_likelihood(self, scores: np.ndarray) -> np.ndarray:
        """Return the log of the normal density of each score, shape (num_groups, 2, num_scores)."""
        distance = np.asarray(scores, dtype=np.float64) - self.means[:, :, None]
        return np.asarray(-0.5 * (distance**2 + np.log(2.0 * np.pi)))

    def survival(self, threshold: np.ndarray) -> np.ndarray:
        """Return P(Z >= threshold | group, label), shape (num_groups, 2), for one threshold per group."""
        return np.asarray(ndtr(self.means - np.asarray(threshold, dtype=np.float64)[:, None]))

    def bayes_thresholds(self) -> np.ndarray:
        """Return midpoint + log((1 - base rate) / base rate) / separation, shape (num_groups,)."""
        return np.asarray(self.midpoints - logit(self.base_rates) / np.asarray(self.separations))


@dataclass(frozen=True)
class CueWorld:
    """A world whose score counts positive cues: K | group a, label y ~ Binomial(num_cues, cue_rates[a][y]).

    Each of `num_cues` slots of a text holds a positive cue with probability `cue_rates[a][y]`, independently, a
    negative one otherwise; the count K is sufficient for the label given the group. `cue_rates` has one pair (label 0,
    label 1) per group, 0 < first < second < 1; `num_cues` is 1 to 12.

    Raises:
        ConfigError: when an entry is out of range.
    """

    group_shares: tuple[float, ...] = (0.65, 0.35)
    base_rates: tuple[float, ...] = (0.5, 0.35)
    cue_rates: tuple[tuple[float, float], ...] = ((0.25, 0.7), (0.3, 0.6))
    num_cues: int = 8

    def __post_init__(self) -> None:
        _require_population(self.group_shares, self.base_rates)
        _require_per_group(len(self.group_shares), cue_rates=self.cue_rates)
        if not all(len(pair) == 2 and 0 < pair[0] < pair[1] < 1 for pair in self.cue_rates):
            raise ConfigError(f"Expected pairs of cue rates with 0 < first < second < 1, got {self.cue_rates}.")
        if not 1 <= self.num_cues <= MAX_CUES:
            raise ConfigError(f"Expected num_cues from 1 to {MAX_CUES}, got {self.num_cues}.")

    def log_likelihood(self, scores: np.ndarray) -> np.ndarray:
        """Return the log of the binomial probability of each count, shape (num_groups, 2, num_scores)."""
        praised, rate = np.asarray(scores, dtype=np.float64), np.asarray(self.cue_rates)[:, :, None]
        blamed = self.num_cues - praised
        return np.asarray(np.log(comb(self.num_cues, praised)) + xlogy(praised, rate) + xlog1py(blamed, -rate))

    def survival(self, threshold: np.ndarray) -> np.ndarray:
        """Return P(K >= threshold | group, label), shape (num_groups, 2), for one threshold per group."""
        below = np.clip(np.ceil(np.asarray(threshold, dtype=np.float64)) - 1, -1, self.num_cues)[:, None]
        return np.asarray(bdtrc(below, self.num_cues, np.asarray(self.cue_rates)))

    def bayes_thresholds(self) -> np.ndarray:
        """Return each group's smallest count with P(Y = 1 | count, group) >= 1/2; num_cues + 1 where there is none."""
        counts = np.arange(self.num_cues + 1)
        likely = posterior(self, counts) >= 0.5 - 1e-12  # a tie, up to rounding, counts as likely
        return np.where(likely.any(axis=1), likely.argmax(axis=1), self.num_cues + 1).astype(np.float64)


@dataclass(frozen=True)
class GroupRates:
    """Rates of a decision by group, each of shape (num_groups,)."""

    selection_rate: np.ndarray
    true_positive_rate: np.ndarray
    false_positive_rate: np.ndarray


def group_label_shares(world: World) -> np.ndarray:
    """Return P(group, label), shape (num_groups, 2)."""
    positive = np.asarray(world.base_rates)
    return np.asarray(np.asarray(world.group_shares)[:, None] * np.stack([1.0 - positive, positive], axis=1))


def rates(world: World, threshold: float | np.ndarray) -> GroupRates:
    """Return the exact rates of the decision score >= threshold, one threshold for all or one per group."""
    survival = world.survival(_per_group(world, threshold))
    positive = np.asarray(world.base_rates)
    selected = (1.0 - positive) * survival[:, 0] + positive * survival[:, 1]
    return GroupRates(selected, survival[:, 1], survival[:, 0])


def accuracy(world: World, threshold: float | np.ndarray) -> float:
    """Return P(decision = label) of the decision score >= threshold, one threshold for all or one per group."""
    survival = world.survival(_per_group(world, threshold))
    correct = np.stack([1.0 - survival[:, 0], survival[:, 1]], axis=1)
    return float((group_label_shares(world) * correct).sum())


def bayes_accuracy(world: World) -> float:
    """Return the best accuracy of any rule that sees score and group."""
    return accuracy(world, world.bayes_thresholds())


def equalized_odds_difference(world: World, threshold: float | np.ndarray) -> float:
    """Return the larger of the true and the false positive rates' differences over groups (fairlearn's worst case)."""
    exact = rates(world, threshold)
    return float(max(np.ptp(exact.true_positive_rate), np.ptp(exact.false_positive_rate)))


def score_density(world: World, scores: np.ndarray) -> np.ndarray:
    """Return the density (or probability) of each score within each group, shape (num_groups, num_scores)."""
    positive = np.asarray(world.base_rates)[:, None]
    likelihood = np.exp(world.log_likelihood(scores))
    return np.asarray((1.0 - positive) * likelihood[:, 0] + positive * likelihood[:, 1])


def posterior(world: World, scores: np.ndarray) -> np.ndarray:
    """Return P(Y = 1 | score, group), shape (num_groups, num_scores)."""
    logs = world.log_likelihood(scores)
    prior = logit(np.asarray(world.base_rates))[:, None]
    return np.asarray(expit(prior + logs[:, 1] - logs[:, 0]))


def joint(world: World, edges: np.ndarray) -> np.ndarray:
    """Return P(group, label, bin), shape (num_groups, 2, len(edges) + 1).

    Ascending `edges` cut the scores into (-inf, edges[0]), [edges[0], edges[1]), ..., [edges[-1], inf).
    """
    num_groups = len(world.group_shares)
    tails = [world.survival(np.full(num_groups, edge)) for edge in np.asarray(edges, dtype=np.float64)]
    bounds = np.stack([np.ones((num_groups, 2)), *tails, np.zeros((num_groups, 2))], axis=2)
    return np.asarray(group_label_shares(world)[:, :, None] * -np.diff(bounds, axis=2))


def _per_group(world: World, threshold: float | np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.asarray(threshold, dtype=np.float64), (len(world.group_shares),))


def _require_population(group_shares: tuple[float, ...], base_rates: tuple[float, ...]) -> None:
    if not 2 <= len(group_shares) <= len(REGIONS):
        raise ConfigError(f"Expected two to {len(REGIONS)} groups, got {len(group_shares)}.")
    if min(group_shares) <= 0 or abs(sum(group_shares) - 1.0) > 1e-9:
        raise ConfigError(f"Expected positive group shares that sum to 1, got {group_shares}.")
    _require_per_group(len(group_shares), base_rates=base_rates)
    if not all(0 < rate < 1 for rate in base_rates):
        raise ConfigError(f"Expected base rates between 0 and 1, got {base_rates}.")


def _require_per_group(num_groups: int, **entries: tuple[object, ...]) -> None:
    for name, values in entries.items():
        if len(values) != num_groups:
            raise ConfigError(f"Expected {num_groups} {name}, one per group, got {len(values)}.")
