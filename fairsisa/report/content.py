"""What a report is made of: tables and facts, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fairsisa.errors import DataError
from fairsisa.fairness.curves import ROC_COLUMNS
from fairsisa.fairness.evaluation import Evaluation, paired_differences

TRAINING_COLUMNS = (
    "shard",
    "slice",
    "examples",
    "epochs",
    "steps",
    "seconds",
    "examples_per_second",
    "status",
    "checkpoint",
)
STATUSES = ("trained", "reused", "empty")
CURVE_KEYS = ("shard", "slice", "step", "epoch")
RELIABILITY_COLUMNS = ("predictor", "bin_low", "bin_high", "num_examples", "confidence", "value", "low", "high")
MOST_MAIN_FEATURES = 4


def _nothing() -> pd.DataFrame:
    return pd.DataFrame()


@dataclass(frozen=True)
class Fact:
    """One number or word worth knowing at a glance, and what it means."""

    label: str
    value: str
    explanation: str = ""


@dataclass(frozen=True, eq=False)
class RunReport:
    """Everything one run's report tells.

    `ensemble` names the predictor that the run would serve, `baselines` those it is held against; all three are
    rows of `evaluation`. `main_features` are the sensitive features of the headline and the plots (the first four,
    if none are named; all are in the tables). `settings` and `environment` may be nested. `training` has a row a
    slice: `TRAINING_COLUMNS`, status one of `STATUSES`. `curves` has `CURVE_KEYS` (step counted within the slice),
    then one column a metric. `roc` and `reliability` come from `fairness.curves`. `repairs` holds what the page of each
    post-processor finds, by the file name of that page. Empty tables leave their section out.

    Raises:
        DataError: when a name is not in the evaluation, or a table lacks a column.
    """

    title: str
    evaluation: Evaluation
    ensemble: str
    baselines: tuple[str, ...] = ()
    main_features: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    repairs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    training: pd.DataFrame = field(default_factory=_nothing)
    curves: pd.DataFrame = field(default_factory=_nothing)
    roc: pd.DataFrame = field(default_factory=_nothing)
    reliability: pd.DataFrame = field(default_factory=_nothing)

    def __post_init__(self) -> None:
        predictors, features = self.evaluation.predictors, self.evaluation.features["sensitive_feature"].tolist()
        _check_names("predictor", (self.ensemble, *self.baselines), predictors)
        _check_names("sensitive feature", self.main_features, features)
        _check_columns("training", self.training, TRAINING_COLUMNS)
        _check_columns("curves", self.curves, CURVE_KEYS)
        _check_columns("roc", self.roc, ROC_COLUMNS)
        _check_columns("reliability", self.reliability, RELIABILITY_COLUMNS)
        if not self.training.empty and not self.training["status"].isin(STATUSES).all():
            found = sorted(set(self.training["status"]) - set(STATUSES))
            raise DataError(f"Expected a training status of {', '.join(STATUSES)}, got {found[0]!r}.")

    @property
    def shown_features(self) -> tuple[str, ...]:
        """The sensitive features of the headline and the plots."""
        return self.main_features or tuple(self.evaluation.features["sensitive_feature"][:MOST_MAIN_FEATURES])


def paired_with_baselines(report: RunReport) -> pd.DataFrame:
    """Return the ensemble's metrics minus each baseline's, as `fairness.evaluation.paired_differences` does."""
    chosen = (report.ensemble,)
    pairs = [paired_differences(report.evaluation, baseline=name, predictors=chosen) for name in report.baselines]
    return pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame()


def _check_names(kind: str, names: tuple[str, ...], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise DataError(f"Expected a {kind} of the evaluation ({', '.join(known) or 'none'}), got {name!r}.")


def _check_columns(name: str, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing and not table.empty:
        raise DataError(f"Expected columns {', '.join(columns)} in the {name} table; {', '.join(missing)} not found.")
