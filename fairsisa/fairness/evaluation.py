"""The evaluation of predictors on held-out examples, with intervals on every number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from fairsisa.errors import DataError
from fairsisa.fairness.metrics import accuracy, auroc, expected_calibration_error, macro_f1
from fairsisa.fairness.predictors import HeldOut, Predictor, check_predictions, check_predictors
from fairsisa.fairness.rates import (
    EVERYONE,
    RATES,
    Grouping,
    confusion_counts,
    confusion_indicator,
    group_examples,
    group_rates,
    indicator,
    judged_classes,
    rate_differences,
    ratio,
)
from fairsisa.intervals import BOOTSTRAP, INTERVAL_COLUMNS, Bootstrap, summarise, weight_chunks
from fairsisa.tables import Predictions

SMALL_CELL = 30
METRIC_KEYS = ("predictor", "sensitive_feature", "metric")
GROUP_KEYS = ("sensitive_feature", "group")
Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured of each predictor, as tidy tables.

    Each number a reader may act on stands in a row with `value`, `low` and `high` (percentile interval of coverage
    `level`), `standard_error` and `num_undefined` (replicates, of `num_replicates`, in which a cell was empty and
    the number does not exist; the interval is of the others). A `sensitive_feature` of "" means all examples.

    - `metrics`: predictor, sensitive_feature, metric (`metrics.QUALITIES`, `rates.DIFFERENCES`), interval.
    - `by_group`: predictor, sensitive_feature, group, class, num_examples, num_positives, num_negatives, metric
      (`rates.RATES`), interval. One class for two-class problems, the positive one; else each against the rest.
    - `disagreement`: sensitive_feature, group, num_examples, interval of the mean over pairs of constituents of
      P(their votes differ); no rows for fewer than two constituents.
    - `small_cells`: sensitive_feature, group, class, num_examples of the cells under `SMALL_CELL` examples.
    - `features`: sensitive_feature, num_groups, num_examples, num_unknown (rows left out of its rates).
    - `replicates`: shape (len(metrics), num_replicates), row by row those of `metrics`.
    """

    metrics: pd.DataFrame
    by_group: pd.DataFrame
    disagreement: pd.DataFrame
    small_cells: pd.DataFrame
    features: pd.DataFrame
    replicates: np.ndarray
    classes: tuple[str, ...]
    num_examples: int
    num_subjects: int
    num_replicates: int
    level: float

    @property
    def predictors(self) -> list[str]:
        """The predictors' names, in the order given."""
        return list(dict.fromkeys(self.metrics["predictor"]))


def evaluate(
    held_out: HeldOut,
    predictors: Sequence[Predictor],
    *,
    predictions: Predictions | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Evaluation:
    """Measure quality, rates by group and their differences for each predictor, with intervals.

    Intervals resample subjects, a subject with all its examples, and are the same draws for every predictor.
    They speak of chance in who is in the held-out examples, not of chance in training. A difference over groups
    is a maximum of noisy numbers and so biased upward; `rates.rate_differences` says how to read it. With
    `predictions`, the constituents' disagreement by group is measured too.

    Raises:
        DataError: when predictors or predictions do not speak of the held-out examples.
    """
    check_predictors(held_out, predictors)
    grouping = group_examples(held_out.sensitive_features, len(held_out))
    metrics, replicates, by_group = [], [], []
    for predictor in predictors:
        named, rates = _measure(held_out, predictor, grouping, bootstrap)
        metrics.append(pd.DataFrame([(predictor.name, *key) for key in named], columns=list(METRIC_KEYS)))
        replicates.append(np.stack(list(named.values())))
        by_group.append(_rates_table(held_out, predictor.name, grouping, rates, bootstrap.level))
    drawn = np.concatenate(replicates)
    return Evaluation(
        metrics=_with_intervals(pd.concat(metrics, ignore_index=True), drawn, bootstrap.level),
        by_group=pd.concat(by_group, ignore_index=True),
        disagreement=_disagreement(held_out, predictions, grouping, bootstrap),
        small_cells=_small_cells(held_out, grouping),
        features=_features(grouping),
        replicates=drawn[:, 1:],
        classes=held_out.classes,
        num_examples=len(held_out),
        num_subjects=int(held_out.subjects.max()) + 1,
        num_replicates=bootstrap.num_replicates,
        level=bootstrap.level,
    )


def paired_differences(
    evaluation: Evaluation, *, baseline: str, predictors: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return other predictors' metrics minus the baseline's, with intervals of that difference.

    Both sides of a difference come from the same replicate, so that what they share cancels: two overlapping
    intervals may hide a difference that is clear. `predictors` are all others unless named. Columns: predictor,
    baseline, sensitive_feature, metric, value, low, high, standard_error, num_undefined. Metrics that one of the two
    does not have are left out.

    Raises:
        DataError: when a name is not a predictor's.
    """
    known = evaluation.predictors
    chosen = [name for name in known if name != baseline] if predictors is None else list(predictors)
    for name in (baseline, *chosen):
        if name not in known:
            raise DataError(f"Expected a predictor of {', '.join(known)}; got {name!r}.")
    metrics = evaluation.metrics
    drawn = np.column_stack([metrics["value"].to_numpy(), evaluation.replicates])
    keys = list(zip(*(metrics[column] for column in METRIC_KEYS), strict=True))
    place = {key: row for row, key in enumerate(keys)}
    rows = [row for row, key in enumerate(keys) if key[0] in chosen and (baseline, *key[1:]) in place]
    theirs = [place[baseline, *keys[row][1:]] for row in rows]
    table = metrics.iloc[rows][list(METRIC_KEYS)].reset_index(drop=True)
    table.insert(1, "baseline", baseline)
    return _with_intervals(table, drawn[rows] - drawn[theirs], evaluation.level)


def _measure(
    held_out: HeldOut, predictor: Predictor, grouping: Grouping, bootstrap: Bootstrap
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """Return replicates of the metrics by (feature, metric), and of the rates, shape (groups, classes, columns)."""
    num_classes = len(held_out.classes)
    matrix = confusion_indicator(grouping, held_out.labels, predictor.decisions, num_classes)
    metrics: list[dict[tuple[str, str], np.ndarray]] = []
    rates: list[dict[str, np.ndarray]] = []
    for weights in weight_chunks(held_out.subjects, bootstrap, rows=matrix.shape[0]):
        counts = confusion_counts(matrix, weights, num_classes)
        rates.append(group_rates(counts))
        found = {(EVERYONE, name): values for name, values in _qualities(held_out, predictor, counts[0], weights)}
        for feature in grouping.features[1:]:
            differences = rate_differences(rates[-1], grouping.members(feature))
            found |= {(feature, name): values for name, values in differences.items()}
        metrics.append(found)
    return _joined(metrics), _joined(rates)


def _qualities(
    held_out: HeldOut, predictor: Predictor, confusion: np.ndarray, weights: np.ndarray
) -> Iterable[tuple[str, np.ndarray]]:
    yield "accuracy", accuracy(confusion)
    yield "macro_f1", macro_f1(confusion)
    if predictor.scores is not None:
        yield "auroc", auroc(held_out.labels, predictor.scores, weights)
        yield (
            "expected_calibration_error",
            expected_calibration_error(held_out.labels, predictor.scores, weights),
        )


def _joined(chunks: Sequence[Mapping[Key, np.ndarray]]) -> dict[Key, np.ndarray]:
    return {key: np.concatenate([chunk[key] for chunk in chunks], axis=-1) for key in chunks[0]}


def _with_intervals(table: pd.DataFrame, replicates: np.ndarray, level: float) -> pd.DataFrame:
    """Return the table with `INTERVAL_COLUMNS` added; `replicates` has one row for each of its rows."""
    summary = summarise(replicates, level)
    return table.assign(**{name: summary[name] for name in INTERVAL_COLUMNS})


def _rates_table(
    held_out: HeldOut, predictor: str, grouping: Grouping, rates: Mapping[str, np.ndarray], level: float
) -> pd.DataFrame:
    sizes = _cell_sizes(held_out, grouping)
    rows = [
        (predictor, *names, held_out.classes[c], group.sum(), group[c], group.sum() - group[c], rate)
        for names, group in zip(grouping.groups, sizes, strict=True)
        for c in judged_classes(len(held_out.classes))
        for rate in RATES
    ]
    columns = ["predictor", *GROUP_KEYS, "class", "num_examples", "num_positives", "num_negatives", "metric"]
    stacked = np.stack([rates[rate] for rate in RATES], axis=2)
    return _with_intervals(pd.DataFrame(rows, columns=columns), stacked.reshape(len(rows), -1), level)


def _cell_sizes(held_out: HeldOut, grouping: Grouping) -> np.ndarray:
    """Count examples by group and label, int64, shape (num_groups, num_classes)."""
    num_classes = len(held_out.classes)
    cells = np.where(grouping.codes >= 0, grouping.codes * num_classes + held_out.labels[:, None], -1)
    counted = np.bincount(cells[cells >= 0], minlength=len(grouping.groups) * num_classes)
    return counted.reshape(-1, num_classes)


def _small_cells(held_out: HeldOut, grouping: Grouping) -> pd.DataFrame:
    sizes = _cell_sizes(held_out, grouping)
    rows = [
        (*grouping.groups[group], held_out.classes[label], int(sizes[group, label]))
        for group, label in np.argwhere(sizes < SMALL_CELL)
    ]
    return pd.DataFrame(rows, columns=[*GROUP_KEYS, "class", "num_examples"])


def _features(grouping: Grouping) -> pd.DataFrame:
    unknown = (grouping.codes < 0).sum(axis=0)
    rows = [
        (feature, grouping.members(feature).stop - grouping.members(feature).start, len(grouping.codes) - gone, gone)
        for feature, gone in zip(grouping.features[1:], unknown[1:], strict=True)
    ]
    return pd.DataFrame(rows, columns=["sensitive_feature", "num_groups", "num_examples", "num_unknown"])


def _disagreement(
    held_out: HeldOut, predictions: Predictions | None, grouping: Grouping, bootstrap: Bootstrap
) -> pd.DataFrame:
    columns = [*GROUP_KEYS, "num_examples"]
    if predictions is None or len(predictions.constituents) < 2:
        return pd.DataFrame(columns=[*columns, *INTERVAL_COLUMNS])
    check_predictions(held_out, predictions)
    table = pd.DataFrame(grouping.groups, columns=list(GROUP_KEYS))
    table["num_examples"] = _cell_sizes(held_out, grouping).sum(axis=1)
    num_groups = len(grouping.groups)
    share = indicator(grouping.codes, num_groups, pairwise_disagreement(predictions.votes))
    everyone = indicator(grouping.codes, num_groups)
    drawn = [
        ratio(share @ weights, everyone @ weights)
        for weights in weight_chunks(held_out.subjects, bootstrap, rows=num_groups)
    ]
    return _with_intervals(table, np.concatenate(drawn, axis=1), bootstrap.level)


def pairwise_disagreement(votes: np.ndarray) -> np.ndarray:
    """Return the share of pairs of constituents whose votes differ, shape (num_examples,), in [0, 1].

    `votes` holds class indices, int64, shape (num_examples, num_constituents), two constituents or more.
    """
    num_constituents = votes.shape[1]
    agreeing = sum((votes == votes[:, [k]]).sum(axis=1) for k in range(num_constituents)) - num_constituents
    return np.asarray(1.0 - agreeing / (num_constituents * (num_constituents - 1)))
