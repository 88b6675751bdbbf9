"""What all post-processors share: a scikit-learn estimator around a rule over groups and states."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data

from fairsisa.errors import ConfigError, DataError
from fairsisa.fairness.derived.criteria import Criterion, cost_matrix, criterion_value, group_rates_of
from fairsisa.fairness.derived.solving import SOLVERS
from fairsisa.fairness.strategies.decisions import Derived, decide, identities, keyed_uniforms, one_hot, rounded
from fairsisa.fairness.strategies.guards import (
    CONSTANT,
    ConstantRuleWarning,
    EqualRowsWarning,
    SmallCellWarning,
    constant_rule,
    criteria_of,
    small_cells,
)
from fairsisa.fairness.strategies.inputs import (
    ERROR,
    UNPROCESSED,
    Inputs,
    blocks,
    majority,
    match_groups,
    read_groups,
    read_inputs,
)
from fairsisa.fairness.strategies.sample import Sample, read_labels, read_weights, require_rows
from fairsisa.fairness.strategies.saving import save_document, to_document
from fairsisa.fairness.strategies.sklearn_bases import BaseEstimator, ClassifierMixin, complete_signature
from fairsisa.settings import one_of

REQUESTS = ("_metadata_request",)
"""Where scikit-learn notes which metadata an estimator asked for; its own clones take that along."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a fitted rule does on the rows it was fitted on.

    `confusion_rows` holds P(D=d | Y=y, g), shape (G, C, C), NaN where a group has no such label; `prices` one number a
    criterion (see `derived.solution.Solution`), NaN where unknown.
    """

    confusion_rows: np.ndarray
    prices: tuple[float, ...]


class Postprocessor(ClassifierMixin, BaseEstimator):
    """Decide fairly from what an ensemble says, given each example's group.

    Hooks of a strategy (all private, all on class indices and group numbers, never on names):

    - `_fit_rule(sample: Sample) -> None`: learn the rule; set fitted attributes, and only those named in `RULE`. What
      is known by then: `classes_`, `groups_`, `criteria_`, `costs_`, and `self._program()`, the keywords of `solve`.
    - `_apply_rule(inputs, groups) -> (probabilities (N, C), backed_off (N,))`: `groups` are all known, 0..G-1. Never
      rounds: `derive` does, where `randomization` is "none".
    - `_outcome(rounded: bool) -> Outcome`: what the rule does in sample, as it is or rounded; from what was counted,
      without data, so that it also serves the copies of `at_tolerances`.
    - `_rules_at(tolerances) -> list[dict[str, object]]`: the attributes of `RULE` that change, with the first criterion
      at each tolerance.
    - `_original(inputs) -> (N,)`: the unprocessed decision; the majority vote unless overridden.
    - `RULE: ClassVar[tuple[str, ...]]`: fitted attributes that `save` keeps: arrays, numbers, text, None, tuples,
      dicts, frames, other Postprocessors, and the dataclasses listed in `saving.VALUES`.

    Subclasses take further keywords as `__init__(self, *, own=..., **common)`, calling `super().__init__(**common)`;
    their signature is completed from the parents'. New classes are listed in `saving.CLASSES`.

    Parameters (keywords; checked in `fit`):
        criterion: a criterion's name, a `Criterion`, or a sequence of either, all of which must hold.
        tolerance: the largest difference allowed, a number for all criteria or one for each; see `Criterion`.
        form: "max" or "mean"; see `Criterion`.
        false_positive_cost: cost of deciding 1 where the label is 0.
        false_negative_cost: cost of deciding 0 where the label is 1.
        solver: "auto", "plane", "highs" or "clarabel"; see `derived.solving.solve`.
        min_cell_count: rows of a group (and label) below which a rate is called unsure.
        small_cells: what to do about such cells: "warn", "error" or "ignore".
        unknown_group: examples whose group is missing or was not seen in fit: "error", "unprocessed" (decide as the
            ensemble does), or the name of the fitted group whose rule they get.
        randomization: "keyed" (chance is a keyed hash of the example) or "none" (the likelier decision).
        seed: the key of chance.
        class_names: what messages call the labels, in the order of `classes_`; None means the labels themselves.
        estimator: a fitted ensemble that turns X into scores; see `read_inputs`. It is never fitted or cloned anew.

    Fitted attributes: `classes_`, `groups_` (names), `n_features_in_`, `num_constituents_`, `criteria_`, `costs_`
    (C, C), `label_counts_` (weights, (G, C)), `row_counts_` (rows of positive weight, (G, C)), `loss_` (mean cost),
    `rates_` (a row a group: group, num_examples, the criteria's rates), `achieved_` (a row a criterion: criterion,
    form, tolerance, value, price), `warnings_` (list of str), all on the rows of fit; and `determinism_cost_` where
    `randomization` is "none" (a row "loss" and one a criterion: what, randomised, deterministic).

    Rows without a known group are left out of `fit`. Weights of 0 are as if the row was not there.
    """

    RULE: ClassVar[tuple[str, ...]] = ()

    def __init__(  # noqa: PLR0913
        self,
        *,
        criterion: str | Criterion | Sequence[str | Criterion] = "equalized_odds",
        tolerance: float | Sequence[float] = 0.0,
        form: str = "max",
        false_positive_cost: float = 1.0,
        false_negative_cost: float = 1.0,
        solver: str = "auto",
        min_cell_count: int = 30,
        small_cells: str = "warn",
        unknown_group: str = ERROR,
        randomization: str = "keyed",
        seed: int = 0,
        class_names: Sequence[str] | None = None,
        estimator: Any = None,
    ) -> None:
        self.criterion = criterion
        self.tolerance = tolerance
        self.form = form
        self.false_positive_cost = false_positive_cost
        self.false_negative_cost = false_negative_cost
        self.solver = solver
        self.min_cell_count = min_cell_count
        self.small_cells = small_cells
        self.unknown_group = unknown_group
        self.randomization = randomization
        self.seed = seed
        self.class_names = class_names
        self.estimator = estimator

    def __init_subclass__(cls, **kwargs: Any) -> None:
        complete_signature(cls)
        super().__init_subclass__(**kwargs)

    def __sklearn_clone__(self) -> Self:
        """Return an unfitted copy that keeps the fitted `estimator`, which scikit-learn would make unfitted."""
        given = self.get_params(deep=False)
        kept = given.pop("estimator")
        made = type(self)(**{name: clone(value, safe=False) for name, value in given.items()}, estimator=kept)
        vars(made).update({name: copy.deepcopy(vars(self)[name]) for name in REQUESTS if name in vars(self)})
        return made

    def fit(self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803
        """Fit the rule on rows that no constituent was trained on; `read_inputs` and `read_groups` say what is taken.

        `y` holds labels, of two sorted values the second the positive one; `sample_weight` finite numbers, 0 or more.

        Raises:
            ValueError: without `sensitive_features`.
            ConfigError: naming the parameter that is unknown or out of range.
            DataError: when the data cannot carry the criterion or do not fit together, naming the culprit.
            SolverError: when no solver keeps its promise.
        """
        self._check_parameters()
        sample = self._read_sample(X, y, sensitive_features, sample_weight)
        self._guard(sample)
        self._fit_rule(sample)
        self._describe()
        for line in self.warnings_:
            if line.startswith(CONSTANT):
                warnings.warn(line, ConstantRuleWarning, stacklevel=2)
        return self

    def predict(self, X: Any, *, sensitive_features: Any = None, example_ids: Any = None) -> np.ndarray:  # noqa: N803
        """Return a label for each row; the same example gets the same answer whatever its batch, order or process.

        Where the rule leaves a decision to chance, it is drawn by `example_ids` (those of a Predictions table unless
        given), else by the row's own content and group.

        Raises:
            ValueError: without `sensitive_features`.
            DataError: for a group that was not fitted (see `unknown_group`), or inputs that do not fit.
        """
        inputs, groups = self._read(X, sensitive_features)
        if example_ids is not None:
            require_rows(len(inputs), {"example_ids": len(example_ids)})
            inputs = replace(inputs, example_ids=np.asarray(example_ids, dtype=object))
        labels, left = np.empty(len(inputs), dtype=self.classes_.dtype), 0
        for rows in blocks(len(inputs)):
            decisions, chance = self._decide(inputs.take(rows), groups[rows])
            labels[rows], left = self.classes_[decisions], left + chance
        if left and inputs.example_ids is None:
            warnings.warn(
                f"{left} decisions were left to chance without example_ids: rows with equal content and group are "
                "decided alike. Give example_ids to predict, or randomization='none'.",
                EqualRowsWarning,
                stacklevel=2,
            )
        return labels

    def predict_proba(self, X: Any, *, sensitive_features: Any = None) -> np.ndarray:  # noqa: N803
        """Return the exact probability of each decision, float64, shape (N, C); this is not P(Y | X)."""
        return self.derive(X, sensitive_features=sensitive_features).probabilities

    def derive(self, X: Any, *, sensitive_features: Any = None) -> Derived:  # noqa: N803
        """Return probabilities of deciding, with the unprocessed decisions and the back-offs."""
        return self._derive(*self._read(X, sensitive_features))

    def score(self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the expected share of right decisions (weighted): the mean probability of deciding for the label."""
        chances = self.derive(X, sensitive_features=sensitive_features).probabilities
        right = np.asarray(y)[:, None] == self.classes_[None, :]
        return float(np.average((chances * right).sum(axis=1), weights=sample_weight))

    def at_tolerances(self, tolerances: Sequence[float]) -> list[Self]:
        """Return fitted copies with the first criterion at each tolerance, solved anew from what `fit` counted."""
        check_is_fitted(self)
        levels = [float(tolerance) for tolerance in tolerances]
        return [self._copy_at(level, rule) for level, rule in zip(levels, self._rules_at(levels), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted post-processor as plain JSON values, without `estimator`."""
        check_is_fitted(self)
        return to_document(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write `to_dict` to a file, whole or not at all; `load_postprocessor` reads it."""
        save_document(self.to_dict(), path)

    @abstractmethod
    def _fit_rule(self, sample: Sample) -> None: ...

    @abstractmethod
    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    @abstractmethod
    def _outcome(self, rounded: bool) -> Outcome: ...

    @abstractmethod
    def _rules_at(self, tolerances: Sequence[float]) -> list[dict[str, Any]]: ...

    def _original(self, inputs: Inputs) -> np.ndarray:
        return majority(inputs.votes, inputs.num_classes)

    def _program(self) -> dict[str, Any]:
        """Return the keywords of `solve`: costs, classes, groups, solver."""
        return {"costs": self.costs_, "classes": self._class_names, "groups": self.groups_, "solver": self.solver}

    @property
    def _class_names(self) -> list[str]:
        return [str(name) for name in (self.classes_ if self.class_names is None else self.class_names)]

    def _read_inputs(self, X: Any) -> Inputs:  # noqa: N803
        return read_inputs(X, self.estimator, classes=self.classes_)

    def _check_parameters(self) -> None:
        self.criteria_ = criteria_of(self.criterion, self.tolerance, self.form)
        one_of("solver", self.solver, SOLVERS)
        one_of("small_cells", self.small_cells, ("warn", "error", "ignore"))
        one_of("randomization", self.randomization, ("keyed", "none"))
        if not self.min_cell_count >= 0:
            raise ConfigError(f"Expected min_cell_count to be 0 or more, got {self.min_cell_count!r}.")

    def _read_sample(self, X: Any, y: Any, sensitive_features: Any, sample_weight: Any) -> Sample:  # noqa: N803
        vars(self).pop("n_features_in_", None)
        validate_data(self, X, y, skip_check_array=True)
        self.classes_, labels = read_labels(y)
        if self.class_names is not None and len(self.class_names) != len(self.classes_):
            raise DataError(
                f"Expected labels of the classes {', '.join(self.class_names)}, found {len(self.classes_)} of these; "
                "every class must occur among the rows fitted."
            )
        inputs = self._read_inputs(X)
        self.num_constituents_ = inputs.num_constituents
        if not hasattr(self, "n_features_in_"):
            self.n_features_in_ = inputs.num_constituents
        codes, self.groups_ = read_groups(sensitive_features)
        weights = read_weights(sample_weight, len(labels))
        require_rows(len(inputs), {"labels": len(labels), "sensitive_features": len(codes)})
        self._check_groups()
        self.warnings_: list[str] = []
        sample = Sample(inputs, labels, codes, weights, len(self.groups_))
        known = codes >= 0
        if known.all():
            return sample
        self.warnings_.append(f"{int((~known).sum())} of {len(known)} rows have no known group: they were left out.")
        return sample.take(known)

    def _check_groups(self) -> None:
        if not self.groups_:
            raise DataError("Expected rows of a known group, got none: every sensitive value is missing.")
        if self.unknown_group not in (ERROR, UNPROCESSED, *self.groups_):
            raise ConfigError(
                f"Expected unknown_group to be {ERROR!r}, {UNPROCESSED!r} or a fitted group "
                f"({', '.join(self.groups_)}), got {self.unknown_group!r}."
            )

    def _guard(self, sample: Sample) -> None:
        """Count labels by group, and refuse or warn of what a criterion cannot rest on."""
        costs = {"false_positive_cost": self.false_positive_cost, "false_negative_cost": self.false_negative_cost}
        self.costs_ = cost_matrix(len(self.classes_), **costs)
        self.label_counts_, self.row_counts_ = sample.label_counts, sample.row_counts
        names = {"classes": self._class_names, "groups": self.groups_}
        for criterion in self.criteria_:
            group_rates_of(criterion, self.label_counts_, costs=self.costs_, **names)
        found = small_cells(self.criteria_, self.row_counts_, self.min_cell_count, **names)
        if found and self.small_cells == "error":
            raise DataError(found[0])
        for line in found if self.small_cells == "warn" else []:
            self.warnings_.append(line)
            warnings.warn(line, SmallCellWarning, stacklevel=3)

    def _describe(self) -> None:
        """Set what the fitted rule does in sample, and note when it decides the same for everyone."""
        outcome = self._outcome(rounded=False)
        before = self._measured(outcome)
        if self.randomization == "none":
            outcome = self._outcome(rounded=True)
            after = self._measured(outcome)
            self.determinism_cost_ = pd.DataFrame({"what": before.index, "randomised": before, "deterministic": after})
            self.determinism_cost_ = self.determinism_cost_.reset_index(drop=True)
            before = after
        self.loss_ = float(before.iloc[0])
        self.rates_ = self._rates(outcome.confusion_rows)
        self.achieved_ = pd.DataFrame(
            {
                "criterion": [criterion.name for criterion in self.criteria_],
                "form": [criterion.form for criterion in self.criteria_],
                "tolerance": [criterion.tolerance for criterion in self.criteria_],
                "value": before.to_numpy()[1:],
                "price": np.asarray(outcome.prices, dtype=np.float64),
            }
        )
        said = constant_rule(outcome.confusion_rows, self.label_counts_, self._class_names)
        if said is not None:
            self.warnings_.append(said)

    def _measured(self, outcome: Outcome) -> pd.Series:
        """Return the mean cost and each criterion's value."""
        decided = self.label_counts_[:, :, None] * np.nan_to_num(outcome.confusion_rows)
        loss = float((decided.sum(axis=0) * self.costs_).sum() / self.label_counts_.sum())
        values = [
            criterion_value(criterion, [rate.values(outcome.confusion_rows) for rate in self._group_rates(criterion)])
            for criterion in self.criteria_
        ]
        return pd.Series([loss, *values], index=["loss", *(criterion.name for criterion in self.criteria_)])

    def _rates(self, confusion_rows: np.ndarray) -> pd.DataFrame:
        rates = {rate.name: rate.values(confusion_rows) for c in self.criteria_ for rate in self._group_rates(c)}
        return pd.DataFrame({"group": self.groups_, "num_examples": self.row_counts_.sum(axis=1), **rates})

    def _group_rates(self, criterion: Criterion) -> tuple[Any, ...]:
        names = {"classes": self._class_names, "groups": self.groups_}
        return group_rates_of(criterion, self.label_counts_, costs=self.costs_, **names)

    def _copy_at(self, tolerance: float, rule: dict[str, Any]) -> Self:
        copied = copy.copy(self)
        first = replace(self.criteria_[0], tolerance=tolerance)
        copied.criteria_ = (first, *self.criteria_[1:])
        copied.criterion = first if len(self.criteria_) == 1 else list(copied.criteria_)
        copied.tolerance = tolerance
        copied.warnings_ = [line for line in self.warnings_ if not line.startswith(CONSTANT)]
        for name, value in rule.items():
            setattr(copied, name, value)
        copied._describe()
        return copied

    def _read(self, X: Any, sensitive_features: Any) -> tuple[Inputs, np.ndarray]:  # noqa: N803
        """Return inputs and fitted group numbers, -1 for those to be left unprocessed."""
        check_is_fitted(self)
        fitted_on_raw = self.estimator is None or hasattr(self, "feature_names_in_")
        if getattr(X, "ndim", None) == 2 and fitted_on_raw:
            validate_data(self, X, reset=False, skip_check_array=True)
        inputs = self._read_inputs(X)
        if inputs.num_constituents != self.num_constituents_:
            raise DataError(
                f"Expected {self.num_constituents_} constituents, as fitted; got {inputs.num_constituents}."
            )
        codes, names = read_groups(sensitive_features)
        require_rows(len(inputs), {"sensitive_features": len(codes)})
        return inputs, match_groups(codes, names, self.groups_, self.unknown_group)

    def _derive(self, inputs: Inputs, groups: np.ndarray) -> Derived:
        original = self._original(inputs)
        known = groups >= 0
        if known.all():
            probabilities, backed_off = self._apply_rule(inputs, groups)
        else:
            probabilities = one_hot(original, len(self.classes_))
            backed_off = np.zeros(len(inputs), dtype=bool)
            probabilities[known], backed_off[known] = self._apply_rule(inputs.take(known), groups[known])
        if self.randomization == "none":
            probabilities = rounded(probabilities, original)
        return Derived(probabilities, original, backed_off)

    def _decide(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, int]:
        """Return decisions as class indices, and how many were left to chance."""
        derived = self._derive(inputs, groups)
        chance, uniforms = np.flatnonzero(derived.randomised), np.zeros(len(inputs))
        if len(chance):
            uniforms[chance] = keyed_uniforms(identities(inputs.take(chance), groups[chance], self.groups_), self.seed)
        return decide(derived.probabilities, uniforms), len(chance)
