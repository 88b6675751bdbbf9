"""What each strategy pays in accuracy for how small a difference, tolerance by tolerance."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from fairsisa.errors import ConfigError
from fairsisa.fairness.strategies.audit import Judge, Measured
from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.fairness.strategies.crossfit import label_codes, subject_codes
from fairsisa.fairness.strategies.decisions import Derived
from fairsisa.fairness.strategies.inputs import read_groups
from fairsisa.intervals import BOOTSTRAP, Bootstrap, summarise

FIT, TEST = "fit", "test"
ONE_DRAW = Bootstrap(num_replicates=2)


def sweep(
    estimators: Mapping[str, Postprocessor],
    tolerances: Sequence[float],
    *,
    fit: tuple[Any, Any, Any],
    test: tuple[Any, Any, Any],
    subject_ids: Any = None,
    fit_subject_ids: Any = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> pd.DataFrame:
    """Fit every estimator once and return what it comes to at each tolerance of its first criterion.

    `fit` and `test` are (X, y, sensitive features). One row a strategy (its key), tolerance and split ("fit" or
    "test"), with the columns strategy, tolerance, split, accuracy, accuracy_low, accuracy_high, difference,
    difference_low, difference_high, randomised, overridden, backed_off. Accuracy, difference (what the first
    criterion's tolerance bounds) and overridden are exact in the probabilities of deciding: no coin is tossed.
    Intervals resample subjects of the test rows (`subject_ids`; None makes each row one); numbers of the rows of fit
    have none, since their error is that of fitting to them. Estimators that cross-fit get `fit_subject_ids`.

    Raises:
        ConfigError: without an estimator or a tolerance.
        DataError: as `Postprocessor.fit` and `derive` do.
    """
    if not estimators or not len(tolerances):
        raise ConfigError(f"Expected estimators and tolerances, got {len(estimators)} and {len(tolerances)}.")
    parts = [
        _swept(
            name,
            _fitted_at(estimator, tolerances, fit, fit_subject_ids),
            tolerances,
            (fit, test),
            (subject_ids, bootstrap),
        )
        for name, estimator in estimators.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _fitted_at(
    estimator: Postprocessor, tolerances: Sequence[float], data: tuple[Any, Any, Any], subject_ids: Any
) -> Sequence[Postprocessor]:
    X, y, sensitive_features = data  # noqa: N806
    own = {"subject_ids": subject_ids} if "subject_ids" in inspect.signature(estimator.fit).parameters else {}
    fitted: Postprocessor = clone(estimator).fit(X, y, sensitive_features=sensitive_features, **own)
    return fitted.at_tolerances(tolerances)


def _swept(
    name: str,
    variants: Sequence[Postprocessor],
    tolerances: Sequence[float],
    splits: tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]],
    resampling: tuple[Any, Bootstrap],
) -> pd.DataFrame:
    rows = []
    for split, (X, y, sensitive_features) in zip((FIT, TEST), splits, strict=True):  # noqa: N806
        derived = [each.derive(X, sensitive_features=sensitive_features) for each in variants]
        subject_ids, bootstrap = resampling if split == TEST else (None, ONE_DRAW)
        judge = judge_of(variants[0], y, sensitive_features, subject_ids)
        measured = judge.measure([each.probabilities for each in derived], bootstrap)
        rows += [
            {"strategy": name, "tolerance": float(tolerance), "split": split}
            | _numbers(found, bootstrap.level, has_interval=split == TEST)
            | _shares(decided)
            for tolerance, found, decided in zip(tolerances, measured, derived, strict=True)
        ]
    return pd.DataFrame(rows)


def judge_of(postprocessor: Postprocessor, y: Any, sensitive_features: Any, subject_ids: Any) -> Judge:
    """Return what judges a fitted post-processor on other rows, by its own criteria and costs."""
    codes, names = read_groups(sensitive_features)
    labels = label_codes(y, postprocessor.classes_)
    return Judge(
        labels=labels,
        groups=codes,
        subjects=subject_codes(subject_ids, len(labels)),
        criteria=postprocessor.criteria_[:1],
        costs=postprocessor.costs_,
        classes=[str(each) for each in postprocessor.classes_],
        group_names=names,
    )


def _numbers(measured: Measured, level: float, *, has_interval: bool) -> dict[str, float]:
    numbers = {}
    for name, drawn in (("accuracy", measured.accuracy), ("difference", measured.values[0])):
        summary = summarise(drawn, level)
        numbers[name] = float(summary["value"])
        numbers[f"{name}_low"] = float(summary["low"]) if has_interval else np.nan
        numbers[f"{name}_high"] = float(summary["high"]) if has_interval else np.nan
    return numbers


def _shares(derived: Derived) -> dict[str, float]:
    return {
        "randomised": float(derived.randomised.mean()),
        "overridden": float(derived.override_probability.mean()),
        "backed_off": float(derived.backed_off.mean()),
    }
