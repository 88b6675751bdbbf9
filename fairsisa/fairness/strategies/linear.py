"""A fair rule that needs no sensitive feature when it decides: linear in a group predictor's probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from fairsisa.errors import ConfigError, DataError
from fairsisa.fairness.derived.blind import BlindSolution, LinearRule, predicted_rows, solve_blind
from fairsisa.fairness.derived.criteria import Criterion, criterion_value, group_rates_of
from fairsisa.fairness.strategies.base import Outcome, Postprocessor
from fairsisa.fairness.strategies.decisions import Derived, rounded
from fairsisa.fairness.strategies.inputs import Inputs
from fairsisa.fairness.strategies.sample import Sample, require_rows

SMALLEST_SCORE = 1e-6
MOST_STEPS = 1000


class GroupBlindPostprocess(Postprocessor):
    """Decide fairly without being told groups: sensitive features are read in `fit` alone.

    A group predictor estimates P(A=a, Y=y | x) from what the constituents say; the rule is the cheapest that keeps the
    criteria when those probabilities are true (`solve_blind`; Xian and Zhao 2024). THE PROMISE IS ABOUT PREDICTED
    GROUPS: on true groups it holds as far as the predictor is calibrated. `achieved_` has both: `predicted_value`, at
    most the tolerance, and `value`, on the true groups of the rows of fit, which no one promises.

    Parameters:
        group_estimator: an unfitted classifier with `predict_proba`, cloned and fitted on the features below and on
            the codes a * C + y of group and label; None means a logistic regression. Saving needs None.
        max_rows: the program and its in-sample numbers rest on at most about so many rows, drawn by `seed`, of every
            group and label; `warnings_` says so. The group predictor is fitted on all rows.

    Features are the constituents' log-odds of each class against the first, or their votes (one column a class but
    the first), then `group_features`, and for the logistic regression standardised. `solver` must be "auto" or "highs".
    All other parameters and attributes are those of `Postprocessor`; besides, `solution_`, a `BlindSolution`.
    `unknown_group` has no meaning when deciding.
    """

    RULE: ClassVar[tuple[str, ...]] = (
        "solution_",
        "num_features_",
        "group_predictor_",
        "group_weights_",
        "group_offsets_",
        "program_joint_",
        "program_counts_",
        "program_originals_",
    )

    def __init__(self, *, group_estimator: Any = None, max_rows: int = 20_000, **common: Any) -> None:
        super().__init__(**common)
        self.group_estimator = group_estimator
        self.max_rows = max_rows

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        group_features: Any = None,
    ) -> Self:
        """Fit group predictor and rule; as in `Postprocessor.fit`, with `group_features`, numbers, shape (N, M).

        Group features, say an embedding of the input, help to tell groups apart; they must then be given when deciding.
        """
        X = _paired(X, group_features)  # noqa: N806
        return super().fit(X, y, sensitive_features=sensitive_features, sample_weight=sample_weight)

    def predict(
        self,
        X: Any,  # noqa: N803
        *,
        sensitive_features: Any = None,
        example_ids: Any = None,
        group_features: Any = None,
    ) -> np.ndarray:
        """Return a label for each row, as `Postprocessor.predict`; `sensitive_features` are not looked at."""
        return super().predict(_paired(X, group_features), example_ids=example_ids)

    def predict_proba(
        self,
        X: Any,  # noqa: N803
        *,
        sensitive_features: Any = None,
        group_features: Any = None,
    ) -> np.ndarray:
        """Return the exact probability of each decision, as `Postprocessor.predict_proba`."""
        return super().predict_proba(_paired(X, group_features))

    def derive(
        self,
        X: Any,  # noqa: N803
        *,
        sensitive_features: Any = None,
        group_features: Any = None,
    ) -> Derived:
        """Return probabilities of deciding and the unprocessed decisions; nothing is ever backed off."""
        return super().derive(_paired(X, group_features))

    def score(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        group_features: Any = None,
    ) -> float:
        """Return the expected share of right decisions, as `Postprocessor.score`."""
        return super().score(_paired(X, group_features), y, sample_weight=sample_weight)

    def predict_joint(self, X: Any, *, group_features: Any = None) -> np.ndarray:  # noqa: N803
        """Return the group predictor's P(A=a, Y=y | x), float64, shape (N, G, C)."""
        return self._joint(self._read(_paired(X, group_features), None)[0])

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.solver not in ("auto", "highs"):
            raise ConfigError(f"The group-blind program is solved by HiGHS: choose solver=auto, not {self.solver!r}.")
        if not self.max_rows >= 1:
            raise ConfigError(f"Expected max_rows to be 1 or more, got {self.max_rows!r}.")

    def _read_inputs(self, X: Any) -> Inputs:  # noqa: N803
        if not isinstance(X, _Paired):
            return super()._read_inputs(X)
        read = super()._read_inputs(X.X)
        require_rows(len(read), {"group_features": len(X.group_features)})
        return FeaturedInputs(read.values, read.num_classes, read.example_ids, read.content, X.group_features)

    def _read(self, X: Any, sensitive_features: Any) -> tuple[Inputs, np.ndarray]:  # noqa: N803
        """Return inputs, and the same group for everyone: no rule looks at it."""
        check_is_fitted(self)
        inputs = self._read_inputs(X)
        if inputs.num_constituents != self.num_constituents_:
            raise DataError(
                f"Expected {self.num_constituents_} constituents, as fitted; got {inputs.num_constituents}."
            )
        return inputs, np.zeros(len(inputs), dtype=np.int64)

    def _fit_rule(self, sample: Sample) -> None:
        features, codes = _features(sample.inputs), sample.groups * len(self.classes_) + sample.labels
        self.num_features_ = features.shape[1]
        self.group_predictor_ = self.group_weights_ = self.group_offsets_ = None
        if self.group_estimator is None:
            size = len(self.groups_) * len(self.classes_)
            self.group_weights_, self.group_offsets_ = _logistic(features, codes, sample.weights, size)
        else:
            weighted = {} if sample.weights is None else {"sample_weight": sample.weights}
            self.group_predictor_ = clone(self.group_estimator).fit(features, codes, **weighted)
        self._count(sample, codes)
        self.solution_ = self._solved(self.criteria_)

    def _count(self, sample: Sample, codes: np.ndarray) -> None:
        """Set what the program sees: distinct rows of joint probabilities, true weights of (group, label) in each."""
        drawn = _drawn(codes, self.max_rows, self.seed)
        if len(drawn) < len(codes):
            self.warnings_.append(
                f"The group-blind program and its in-sample numbers rest on {len(drawn)} of {len(codes)} rows, drawn "
                f"by seed {self.seed}; raise max_rows to use more."
            )
        inputs = sample.inputs.take(drawn)
        joint, originals = self._joint(inputs), self._original(inputs)
        rows = np.column_stack([joint.reshape(len(joint), -1), originals])
        found, place = np.unique(rows, axis=0, return_inverse=True)
        size = joint.shape[1] * joint.shape[2]
        weights = None if sample.weights is None else sample.weights[drawn]
        counts = np.bincount(place.ravel() * size + codes[drawn], weights, minlength=len(found) * size)
        self.program_joint_ = found[:, :-1].reshape(-1, *joint.shape[1:])
        self.program_originals_ = found[:, -1].astype(np.int64)
        self.program_counts_ = counts.astype(np.float64).reshape(self.program_joint_.shape)

    def _solved(self, criteria: Sequence[Criterion]) -> BlindSolution:
        names = {"classes": self._class_names, "groups": self.groups_}
        return solve_blind(self.program_joint_, self._program_weights, criteria, costs=self.costs_, **names)

    @property
    def _program_weights(self) -> np.ndarray:
        return np.asarray(self.program_counts_.sum(axis=(1, 2)))

    def _joint(self, inputs: Inputs) -> np.ndarray:
        features = _features(inputs)
        if features.shape[1] != self.num_features_:
            raise DataError(
                f"Expected {self.num_features_} features for the group predictor, as fitted, got {features.shape[1]}: "
                "give group_features of as many columns as in fit, and scores or votes as there."
            )
        if self.group_predictor_ is None:
            flat = softmax(features @ self.group_weights_ + self.group_offsets_, axis=1)
        else:
            flat = np.zeros((len(inputs), len(self.groups_) * len(self.classes_)))
            flat[:, self.group_predictor_.classes_] = self.group_predictor_.predict_proba(features)
        return np.asarray(flat).reshape(len(inputs), len(self.groups_), len(self.classes_))

    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rule: LinearRule = self.solution_.rule
        return rule.decide(self._joint(inputs)), np.zeros(len(inputs), dtype=bool)

    def _decided(self, is_rounded: bool) -> np.ndarray:
        """Return P(D=d) on the rows of the program."""
        decided = self.solution_.rule.decide(self.program_joint_)
        return rounded(decided, self.program_originals_) if is_rounded else decided

    def _outcome(self, rounded: bool) -> Outcome:
        rows = np.einsum("ngy,nd->gyd", self.program_counts_, self._decided(rounded))
        totals = self.program_counts_.sum(axis=0)[:, :, None]
        rows = np.divide(rows, totals, out=np.full_like(rows, np.nan), where=totals > 0)
        prices = self.solution_.prices
        return Outcome(rows, (math.nan,) * len(prices) if rounded else prices)

    def _describe(self) -> None:
        super()._describe()
        decided = self._decided(self.randomization == "none")
        totals, rows = predicted_rows(self.program_joint_, self._program_weights, decided)
        names = {"classes": self._class_names, "groups": self.groups_}
        rates = (group_rates_of(each, totals, costs=self.costs_, **names) for each in self.criteria_)
        pairs = zip(self.criteria_, rates, strict=True)
        self.achieved_["predicted_value"] = [criterion_value(c, [each.values(rows) for each in r]) for c, r in pairs]

    def _rules_at(self, tolerances: Sequence[float]) -> list[dict[str, Any]]:
        first, *rest = self.criteria_
        return [{"solution_": self._solved((replace(first, tolerance=float(t)), *rest))} for t in tolerances]


@dataclass(frozen=True, eq=False)
class FeaturedInputs(Inputs):
    """Inputs beside further features for the group predictor, float64, shape (N, M)."""

    group_features: np.ndarray | None = None

    def take(self, rows: np.ndarray | slice) -> Inputs:
        """Return the given rows (indices, a mask or a slice)."""
        taken = super().take(rows)
        features = None if self.group_features is None else self.group_features[rows]
        return FeaturedInputs(taken.values, taken.num_classes, taken.example_ids, taken.content, features)


@dataclass(frozen=True, eq=False)
class _Paired:
    """What a post-processor reads, and the group features that go with it."""

    X: Any
    group_features: np.ndarray


def _paired(X: Any, group_features: Any) -> Any:  # noqa: N803
    """Return X as it is, or with the group features beside it.

    Raises:
        DataError: when these are not finite numbers of shape (N, M).
    """
    if group_features is None:
        return X
    features = np.asarray(group_features, dtype=np.float64)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DataError(f"Expected group_features as finite numbers of shape (rows, any), got {features.shape}.")
    return _Paired(X, features)


def _features(inputs: Inputs) -> np.ndarray:
    """Return what the group predictor reads, float64, shape (N, F); see `GroupBlindPostprocess`."""
    if inputs.scores is None:
        own = (inputs.votes[:, :, None] == np.arange(1, inputs.num_classes)).astype(np.float64)
    else:
        logs = np.log(np.clip(inputs.scores.astype(np.float64), SMALLEST_SCORE, None))
        own = logs[:, :, 1:] - logs[:, :, :1]
    columns = [own.reshape(len(inputs), -1)]
    if isinstance(inputs, FeaturedInputs) and inputs.group_features is not None:
        columns.append(inputs.group_features)
    return np.concatenate(columns, axis=1)


def _logistic(
    features: np.ndarray, codes: np.ndarray, weights: np.ndarray | None, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights, shape (F, size), and offsets, shape (size,), of the log-odds of codes; -inf where there is none.

    Features are standardised before the fit, and the scale is folded into what is returned.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(max_iter=MOST_STEPS).fit((features - mean) / scale, codes, sample_weight=weights)
    slopes, offsets = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:
        slopes, offsets = np.column_stack([0.0 * slopes, slopes]), np.append(0.0, offsets)
    found = np.zeros((features.shape[1], size)), np.full(size, -np.inf)
    found[0][:, model.classes_] = slopes / scale[:, None]
    found[1][model.classes_] = offsets - (mean / scale) @ slopes
    return found


def _drawn(codes: np.ndarray, max_rows: int, seed: int) -> np.ndarray:
    """Return the rows that the program sees, in order: all, or about `max_rows`, some of each code."""
    if len(codes) <= max_rows:
        return np.arange(len(codes))
    chance = np.random.default_rng(seed).permutation(len(codes))
    ordered = np.lexsort((chance, codes))
    picked = ordered[np.linspace(0, len(codes) - 1, max_rows).astype(np.int64)]
    first = ordered[np.unique(codes[ordered], return_index=True)[1]]
    return np.union1d(picked, first)
