"""Thresholds on the ensemble's mean score, group by group, and the baseline that thresholds without any criterion."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fairsisa.errors import DataError, SolverError
from fairsisa.fairness.derived.criteria import criterion_value
from fairsisa.fairness.derived.plane import PlaneSolution
from fairsisa.fairness.derived.solution import WHOLE
from fairsisa.fairness.derived.solving import PROMISE, Names, solve_regions
from fairsisa.fairness.derived.thresholds import ScoreChain, levels_of, score_chains, threshold_mixture
from fairsisa.fairness.strategies.base import Outcome, Postprocessor
from fairsisa.fairness.strategies.ensemble import EnsemblePostprocess
from fairsisa.fairness.strategies.guards import ConstantRuleWarning
from fairsisa.fairness.strategies.inputs import Inputs
from fairsisa.fairness.strategies.sample import Sample

MOST_THRESHOLDS = 3
HALF = np.float32(0.5)


@dataclass(frozen=True, eq=False)
class ThresholdRule:
    """For every group, thresholds on the mean score and how likely each is to apply.

    `thresholds` rise, float32, and `weights` sum to 1, shape (G, 3), infinity and 0 where there are fewer: a score is
    decided 1 with the summed weight of the thresholds it reaches. `points` are the (false positive rate, true positive
    rate) of each threshold by itself on the rows of fit, shape (G, 3, 2); `prices` those of the criteria.
    """

    thresholds: np.ndarray
    weights: np.ndarray
    points: np.ndarray
    prices: tuple[float, ...]

    @property
    def mean_points(self) -> np.ndarray:
        """The rates of the mixture on the rows of fit, shape (G, 2)."""
        return np.asarray(np.einsum("gk,gkr->gr", self.weights, self.points))

    def chances(self, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Return P(D=1), float64; scores as `levels_of` them and group numbers have shape (N,)."""
        reached = np.zeros(len(scores))
        for place in range(self.thresholds.shape[1]):
            reached += np.where(scores >= self.thresholds[groups, place], self.weights[groups, place], 0.0)
        return np.minimum(reached, 1.0)


class ScoreThresholdPostprocess(Postprocessor):
    """Decide 1 above a group's threshold on the mean score, at random between thresholds; two classes only.

    The chance of a 1 never falls as the score rises, which is what keeps the rule from overfitting. They are
    the optimum among mixtures of thresholds (Hardt et al. 2016, section 4.2; tolerances as in Cruz and Hardt 2024).
    A group has one threshold, or two with chance between them; a third where its optimum lies inside its region.

    Scores that are equal as float32 are never told apart. `solver` is not used: the exact one in the plane always is.

    All parameters and attributes are those of `Postprocessor`; besides, `chains_` (what thresholds allow in a group),
    `rule_`, and `original_points_`, the rates of the decision score > 0.5 by group, shape (G, 2).
    """

    RULE: ClassVar[tuple[str, ...]] = ("chains_", "rule_", "original_points_")

    def _fit_rule(self, sample: Sample) -> None:
        if len(self.classes_) != 2:
            raise DataError(
                f"Thresholds on a score decide between two classes, got {len(self.classes_)}: choose the strategy "
                "group_blind or ensemble_vote_count."
            )
        scores = _levels(sample.inputs)
        labels, groups, weights = sample.labels, sample.groups, sample.weights
        self.chains_ = tuple(score_chains(scores, labels, groups, num_groups=sample.num_groups, weights=weights))
        above = (scores > HALF).astype(np.float64)
        rows = sample.confusion_rows(above[:, None])
        self.original_points_ = np.nan_to_num(rows[:, :, 0])
        self.rule_ = next(self._rules([self.criteria_[0].tolerance]))

    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positive = self.rule_.chances(_levels(inputs), groups)
        return np.stack([1.0 - positive, positive], axis=1), np.zeros(len(inputs), dtype=bool)

    def _original(self, inputs: Inputs) -> np.ndarray:
        return (_levels(inputs) > HALF).astype(np.int64)

    def _outcome(self, rounded: bool) -> Outcome:
        rule: ThresholdRule = self.rule_
        if not rounded:
            return self._at(rule.mean_points, rule.prices)
        points = np.stack([self._rounded(group) for group in range(len(self.groups_))])
        return self._at(points, (math.nan,) * len(rule.prices))

    def _rules_at(self, tolerances: Sequence[float]) -> list[dict[str, Any]]:
        return [{"rule_": rule} for rule in self._rules(tolerances)]

    def _rules(self, tolerances: Sequence[float]) -> Iterator[ThresholdRule]:
        names = Names(self.costs_, self._class_names, self.groups_)
        chains = [source.chain for source in self.chains_]
        levels = iter(tolerances)
        try:
            for found in solve_regions(chains, self.label_counts_, self.criteria_, tolerances, names):
                yield self._kept(_rule(self.chains_, found), next(levels))
        except SolverError as error:
            asked = ", ".join(f"{criterion.name} ({criterion.tolerance:g})" for criterion in self.criteria_)
            raise SolverError(
                f"No thresholds were found that meet {asked} in every group; raise a tolerance or drop a criterion. "
                f"{error}"
            ) from error

    def _kept(self, rule: ThresholdRule, tolerance: float) -> ThresholdRule:
        """Return the rule; it must keep the criteria, the first at `tolerance`, on the numbers."""
        rows = self._at(rule.mean_points, rule.prices).confusion_rows
        for place, criterion in enumerate(self.criteria_):
            value = criterion_value(criterion, [rate.values(rows) for rate in self._group_rates(criterion)])
            if value > (criterion.tolerance if place else tolerance) + PROMISE:
                raise SolverError(f"The best thresholds miss {criterion.name}: {value!r}.")
        return rule

    def _rounded(self, group: int) -> np.ndarray:
        """Return the group's rates when the likelier decision is made, and the unprocessed one in a tie."""
        rule: ThresholdRule = self.rule_
        chance = np.cumsum(rule.weights[group])
        likely, tied = int(np.argmax(chance > 0.5 + WHOLE / 2)), int(np.argmax(chance >= 0.5 - WHOLE / 2))
        if rule.thresholds[group, tied] <= HALF < rule.thresholds[group, likely]:
            return np.asarray(self.original_points_[group])
        return np.asarray(rule.points[group, tied if rule.thresholds[group, tied] > HALF else likely])

    def _at(self, points: np.ndarray, prices: tuple[float, ...]) -> Outcome:
        """Return the outcome of groups' points, rates of deciding 1 by label, shape (G, 2)."""
        rows = np.stack([1.0 - points, points], axis=2)
        return Outcome(np.where(self.label_counts_[:, :, None] > 0, rows, np.nan), prices)


class Unprocessed(ScoreThresholdPostprocess):
    """Each group's own best rule, whatever the criteria: the baseline of every comparison (Cruz and Hardt 2024).

    With two classes and scores, the best thresholds; otherwise the best decision by count of votes. What fairness
    costs, or a new threshold gives anyway, shows against this rule. Criteria are measured, not met, and `tolerance` is
    not used. `by_count_` is the post-processor over vote counts, or None; the other attributes are missing then.
    """

    RULE: ClassVar[tuple[str, ...]] = (*ScoreThresholdPostprocess.RULE, "by_count_")

    def at_tolerances(self, tolerances: Sequence[float]) -> list[Self]:
        """Return a copy for each tolerance, all alike."""
        check_is_fitted(self)
        return [copy.copy(self) for _ in tolerances]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self.criteria_ = tuple(replace(criterion, tolerance=math.inf) for criterion in self.criteria_)

    def _fit_rule(self, sample: Sample) -> None:
        self.by_count_: Postprocessor | None = None
        if sample.inputs.has_scores and len(self.classes_) == 2:
            super()._fit_rule(sample)
            return
        shared = {name: getattr(self, name) for name in ("false_positive_cost", "false_negative_cost", "solver")}
        rule = EnsemblePostprocess(states="vote_count", criterion=self.criteria_, small_cells="ignore", **shared)
        given = sample.as_given(self.classes_, self.groups_)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantRuleWarning)  # told by this rule itself
            self.by_count_ = rule.fit(given.X, given.y, sensitive_features=given.groups, sample_weight=given.weights)

    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        by_count = self.by_count_
        return super()._apply_rule(inputs, groups) if by_count is None else by_count._apply_rule(inputs, groups)

    def _original(self, inputs: Inputs) -> np.ndarray:
        return super()._original(inputs) if self.by_count_ is None else self.by_count_._original(inputs)

    def _outcome(self, rounded: bool) -> Outcome:
        return super()._outcome(rounded) if self.by_count_ is None else self.by_count_._outcome(rounded)


def _levels(inputs: Inputs) -> np.ndarray:
    """Return the mean scores of the positive class as thresholds see them."""
    return levels_of(inputs.mean_positive)


def _rule(chains: Sequence[ScoreChain], found: PlaneSolution) -> ThresholdRule:
    shape = (len(chains), MOST_THRESHOLDS)
    thresholds, weights, points = np.full(shape, np.inf, dtype=np.float32), np.zeros(shape), np.zeros((*shape, 2))
    for group, (source, target) in enumerate(zip(chains, found.points, strict=True)):
        falling, shares = threshold_mixture(source, target)
        places = np.searchsorted(-source.thresholds, -falling)
        thresholds[group, : len(falling)] = falling[::-1]
        weights[group, : len(falling)] = shares[::-1]
        points[group, : len(falling)] = source.chain.points[places][::-1]
    return ThresholdRule(thresholds, weights, points, found.prices)
