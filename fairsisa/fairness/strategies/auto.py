"""Choose strategy and tolerance by what cross-fitting says they will do on new data."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from fairsisa.errors import ConfigError, DataError, FairsisaError, SolverError
from fairsisa.fairness.derived.criteria import Criterion
from fairsisa.fairness.strategies.audit import Judge, Measured
from fairsisa.fairness.strategies.base import Outcome, Postprocessor
from fairsisa.fairness.strategies.crossfit import cross_paths, fold_rows, subject_codes
from fairsisa.fairness.strategies.guards import ConstantRuleWarning, SmallCellWarning
from fairsisa.fairness.strategies.inputs import Inputs, read_groups
from fairsisa.fairness.strategies.names import STRATEGIES
from fairsisa.fairness.strategies.sample import Given, Sample
from fairsisa.intervals import Bootstrap, summarise
from fairsisa.settings import one_of

VOTE_CANDIDATES = ("ensemble_vote_count", "ensemble_pooled", "ensemble_pattern", "aggregate_first", "members_random")
SCORE_CANDIDATE = "score_threshold"
AUTO = "auto"
SLACK = 1e-9
"""By how much a bound may exceed the tolerance and still count as at most that: what a program's promise allows."""


class AutoPostprocess(Postprocessor):
    """Take a cheap strategy and tolerance whose difference is, with confidence, small on rows it has not seen.

    Every candidate strategy is cross-fitted at tolerances 0, t/2 and t, t being the one asked of the first criterion.
    From the out-of-fold probabilities come the expected accuracy, cost and difference (no coin is tossed); from
    resampled subjects the difference's upper confidence bound, its `level` quantile over replicates. Fit to be chosen
    are candidates whose bound is at most the tolerance. On few rows no bound may be so small: a difference is never
    negative, noise lifts it, and its replicates once more. Then those are fit whose difference exceeds the tolerance by
    at most one standard error, so that it cannot be told that they exceed it; if there are none either, the one with
    the smallest bound. Of these, candidates whose cost is within one standard error (of the paired difference) of the
    least count as equally cheap (the rule of Breiman et al. 1984, section 3.4.3); the first in the order of
    `candidates` is taken, at the tolerance with the smallest bound. It is then fitted on all rows.

    With several criteria the difference stands for the criterion that exceeds its tolerance most, moved to the scale of
    the first: the excess plus the first's tolerance.

    Parameters:
        candidates: names of `names.STRATEGIES`, the more trusted first; None means score_threshold (two classes,
            scores known), ensemble_vote_count, ensemble_pooled, ensemble_pattern, aggregate_first, members_random.
        num_folds: folds of the cross-fitting, over subjects.
        level: confidence of the upper bound, one-sided, and coverage of the accuracy's interval.
        num_replicates: draws of subjects.

    All other parameters and attributes are those of `Postprocessor`; besides, `best_` (the fitted choice), `choices_`
    (a row a candidate: strategy, tolerance, accuracy, accuracy_low, accuracy_high, cost, difference, standard_error,
    difference_high (the bound), chosen) and `reason_` (a sentence). Candidates that cannot be fitted are left out, and
    `warnings_` says why.
    """

    RULE: ClassVar[tuple[str, ...]] = ("best_", "choices_", "reason_")

    def __init__(
        self,
        *,
        tolerance: float | Sequence[float] = 0.05,
        candidates: Sequence[str] | None = None,
        num_folds: int = 5,
        level: float = 0.95,
        num_replicates: int = 500,
        **common: Any,
    ) -> None:
        super().__init__(tolerance=tolerance, **common)
        self.candidates = candidates
        self.num_folds = num_folds
        self.level = level
        self.num_replicates = num_replicates

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        subject_ids: Any = None,
    ) -> Self:
        """Choose and fit; as in `Postprocessor.fit`, with the subject of each row, whose rows share a fold.

        `subject_ids` are any hashable values, shape (N,); None makes each row a subject of its own.

        Raises:
            ConfigError, DataError, SolverError: as `Postprocessor.fit`, `cross_fit`, and where no candidate can be
                fitted.
        """
        self._check_parameters()
        sample = self._read_sample(X, y, sensitive_features, sample_weight)
        known = self._known(sensitive_features)
        subjects = subject_codes(subject_ids, len(known))[known]
        self._guard(sample)
        self._choose(sample, subjects)
        self._describe()
        self.warnings_ = list(dict.fromkeys(self.warnings_))
        return self

    def _known(self, sensitive_features: Any) -> np.ndarray:
        return np.asarray(read_groups(sensitive_features)[0] >= 0)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in self.candidates or ():
            one_of("candidates", name, [known for known in STRATEGIES if known != AUTO])
        if not 0.5 <= self.level < 1.0 or self.num_replicates < 2:
            raise ConfigError(
                f"Expected a level from 0.5 to below 1 and 2 replicates or more, got {self.level!r} and "
                f"{self.num_replicates!r}."
            )

    def _fit_rule(self, sample: Sample) -> None:
        self._choose(sample, np.arange(len(sample.labels)))

    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._best._apply_rule(inputs, groups)

    def _outcome(self, rounded: bool) -> Outcome:
        return self._best._outcome(rounded)

    def _rules_at(self, tolerances: Sequence[float]) -> list[dict[str, Any]]:
        return [{"best_": each} for each in self._best.at_tolerances(tolerances)]

    def _original(self, inputs: Inputs) -> np.ndarray:
        return self._best._original(inputs)

    @property
    def _best(self) -> Postprocessor:
        best: Postprocessor = self.best_
        return best

    def _choose(self, sample: Sample, subjects: np.ndarray) -> None:
        """Set `best_`, `choices_` and `reason_`; `subjects` holds any numbers, shape (N,)."""
        data = sample.as_given(self.classes_, self.groups_)
        folds = list(fold_rows(data.y, data.groups, subjects, self.num_folds, self.seed))
        judge = self._judge(sample, subjects)
        rows, costs, failures = list[dict[str, Any]](), list[np.ndarray](), dict[str, FairsisaError]()
        for name in self._names(sample.inputs):
            try:
                found = self._weighed(name, data, folds, judge)
                rows += [row for row, _ in found]
                costs += [cost for _, cost in found]
            except (ConfigError, DataError, SolverError) as error:
                failures[name] = error
        if not rows:
            raise next(iter(failures.values()))
        self.warnings_ += [f"Strategy {name} was left out: {error}" for name, error in failures.items()]
        self.choices_, self.reason_ = choose(pd.DataFrame(rows), np.stack(costs), _limit(self.criteria_), self.level)
        strategy, tolerance = self.choices_.loc[self.choices_["chosen"], ["strategy", "tolerance"]].iloc[0]
        first = replace(self.criteria_[0], tolerance=float(tolerance))
        self.best_ = self._new(strategy, (first, *self.criteria_[1:]))
        with _quiet():
            self.best_.fit(data.X, data.y, sensitive_features=data.groups, sample_weight=data.weights)
        self.warnings_ += self.best_.warnings_

    def _weighed(
        self, name: str, data: Given, folds: Sequence[tuple[np.ndarray, np.ndarray]], judge: Judge
    ) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Return, for each tolerance, what cross-fitting says of a strategy, and the replicates of its cost."""
        levels = _levels(self.criteria_[0])
        derived = cross_paths(
            self._new(name, self.criteria_),
            data.X,
            data.y,
            sensitive_features=data.groups,
            folds=folds,
            variants=lambda fitted: fitted.at_tolerances(levels),
            sample_weight=data.weights,
        )
        bootstrap = Bootstrap(self.num_replicates, self.level, self.seed)
        measured = judge.measure([each.probabilities for each in derived], bootstrap)
        return [
            ({"strategy": name, "tolerance": level, **_numbers(found, self.criteria_, self.level)}, found.cost)
            for level, found in zip(levels, measured, strict=True)
        ]

    def _names(self, inputs: Inputs) -> Sequence[str]:
        if self.candidates is not None:
            return list(self.candidates)
        return [*([SCORE_CANDIDATE] if inputs.has_scores and inputs.num_classes == 2 else []), *VOTE_CANDIDATES]

    def _new(self, name: str, criteria: tuple[Criterion, ...]) -> Postprocessor:
        """Return an unfitted candidate; small cells and constant rules are for this estimator itself to tell of."""
        own = {"criterion": criteria, "small_cells": "ignore", "unknown_group": "error", "estimator": None}
        common = inspect.signature(Postprocessor.__init__).parameters
        shared = {key: getattr(self, key) for key in common if key not in ("self", "tolerance", "form")}
        return STRATEGIES[name](**shared | own)

    def _judge(self, sample: Sample, subjects: np.ndarray) -> Judge:
        return Judge(
            labels=sample.labels,
            groups=sample.groups,
            subjects=subject_codes(subjects, len(sample.labels)),
            criteria=self.criteria_,
            costs=self.costs_,
            classes=self._class_names,
            group_names=self.groups_,
            weights=sample.weights,
        )


def choose(choices: pd.DataFrame, costs: np.ndarray, limit: float, level: float) -> tuple[pd.DataFrame, str]:
    """Return the candidates with a column `chosen`, and why that one was, in a sentence.

    `choices` has the columns of `AutoPostprocess.choices_` but that one, the more trusted candidates first; `costs`
    holds each one's mean cost and its replicates, shape (num_candidates, 1 + num_replicates). The rule is that of
    `AutoPostprocess`, `limit` the tolerance.
    """
    bounds = choices["difference_high"].fillna(math.inf).to_numpy()
    fit, told = _fit_to_choose(choices, bounds, limit)
    cheapest = int(fit[np.argmin(costs[fit, 0])])
    margins = np.std(costs[:, 1:] - costs[cheapest, 1:], axis=1, ddof=1)
    near = [int(row) for row in fit if costs[row, 0] <= costs[cheapest, 0] + margins[row] + SLACK]
    strategy = choices["strategy"].iloc[near[0]]
    best = min((row for row in near if choices["strategy"].iloc[row] == strategy), key=lambda row: float(bounds[row]))
    alike = "it is the cheapest" if len(near) == 1 else f"the costs of {len(near)} cannot be told apart, it leads them"
    reason = f"{_said(choices.iloc[best], level)} {told} Of these {alike}."
    return choices.assign(chosen=np.arange(len(choices)) == best), reason


def _fit_to_choose(choices: pd.DataFrame, bounds: np.ndarray, limit: float) -> tuple[np.ndarray, str]:
    """Return the rows of candidates that may be chosen, and a sentence that says why these."""
    held = np.flatnonzero(bounds <= limit + SLACK)
    if len(held):
        return held, f"{len(held)} of {len(choices)} candidates have an upper bound of at most {limit:g}."
    none = f"No candidate's upper bound is at most {limit:g} on so few rows"
    excess = choices["difference"] - choices["standard_error"].fillna(math.inf) - limit
    doubtful = np.flatnonzero(excess <= SLACK)
    if len(doubtful):
        return doubtful, f"{none}; {len(doubtful)} of {len(choices)} exceed it by one standard error or less."
    return np.array([int(np.argmin(bounds))]), f"{none}, and all exceed it by more than a standard error."


def _said(best: pd.Series, level: float) -> str:
    return (
        f"Chosen is {best['strategy']} at tolerance {best['tolerance']:g}: cross-fitted, its accuracy is "
        f"{best['accuracy']:.3f} and its difference {best['difference']:.3f}, at most {best['difference_high']:.3f} "
        f"with {level:.0%} confidence."
    )


def _numbers(measured: Measured, criteria: Sequence[Criterion], level: float) -> dict[str, float]:
    accuracy = summarise(measured.accuracy, level)
    difference = summarise(_difference(measured.values, criteria), 2.0 * level - 1.0)
    return {
        "accuracy": float(accuracy["value"]),
        "accuracy_low": float(accuracy["low"]),
        "accuracy_high": float(accuracy["high"]),
        "cost": float(measured.cost[0]),
        "difference": float(difference["value"]),
        "standard_error": float(difference["standard_error"]),
        "difference_high": float(difference["high"]),
    }


def _difference(values: np.ndarray, criteria: Sequence[Criterion]) -> np.ndarray:
    """Return the largest excess over a finite tolerance plus `_limit`; of one criterion, its value."""
    finite = [place for place, criterion in enumerate(criteria) if math.isfinite(criterion.tolerance)]
    if not finite:
        return np.asarray(values[0])
    limit = _limit(criteria)
    return np.asarray(np.max([values[place] + (limit - criteria[place].tolerance) for place in finite], axis=0))


def _limit(criteria: Sequence[Criterion]) -> float:
    """Return the first finite tolerance; infinity where there is none."""
    return next((each.tolerance for each in criteria if math.isfinite(each.tolerance)), math.inf)


def _levels(criterion: Criterion) -> list[float]:
    """Return the tolerances to try; a bound on levels, or no bound, is tried as it is."""
    asked = criterion.tolerance
    if criterion.bounds_levels or math.isinf(asked):
        return [asked]
    return sorted({0.0, asked / 2.0, asked})


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for kind in (SmallCellWarning, ConstantRuleWarning):
            warnings.simplefilter("ignore", kind)
        yield
