"""What a post-processor does to people it was not fitted on, before against after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from fairsisa.errors import DataError
from fairsisa.fairness.derived.criteria import BOUNDED_GROUP_LOSS, Criterion, group_rates_of
from fairsisa.fairness.evaluation import Evaluation, evaluate
from fairsisa.fairness.predictors import HeldOut, Predictor
from fairsisa.fairness.rates import (
    DIFFERENCES,
    EVERYONE,
    group_rates,
    indicator,
    judged_classes,
    rate_differences,
    ratio,
)
from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.fairness.strategies.crossfit import label_codes
from fairsisa.fairness.strategies.decisions import Derived, one_hot
from fairsisa.fairness.strategies.inputs import read_groups
from fairsisa.fairness.strategies.sample import require_rows
from fairsisa.intervals import BOOTSTRAP, INTERVAL_COLUMNS, Bootstrap, summarise, weight_chunks

BEFORE, AFTER, CHANGE = "before", "after", "change"
FEATURE = "group"
SHARES = ("randomised", "overridden", "backed_off")
MEAN_COST = "mean_cost"


@dataclass(frozen=True, eq=False)
class Audit:
    """What was measured on held-out rows, as tidy tables; `INTERVAL_COLUMNS` as in `evaluation.Evaluation`.

    Predictors are "before", the unprocessed decisions, and "after", the decisions that people get: keyed, one a row.
    `expected` is the same number with chance averaged out, computed from the probabilities of deciding.

    - `overall`: predictor, metric, interval, expected. Besides those of `evaluation.evaluate` the metrics hold
      "mean_cost" and what the tolerance of each fitted criterion bounds, as `criteria.Criterion` defines it, named by
      `criterion_metric`. A third predictor, "change", holds after minus before, from the same replicates.
    - `by_group`: predictor, group, class, num_examples, num_positives, num_negatives, metric (`rates.RATES`), interval,
      expected. Group "" is everyone.
    - `shares`: group, num_examples, and for each share its value and, with suffixes `_low` and `_high`, its interval:
      `randomised` decisions (left to chance), `overridden` ones (the mean probability of another decision than the
      unprocessed one), `backed_off` ones (the state was unknown). Group "" is everyone.
    """

    overall: pd.DataFrame
    by_group: pd.DataFrame
    shares: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Measured:
    """Quality and criteria of one way to decide; the first column is the estimate, the others its replicates.

    `accuracy` and `cost` (mean cost) have shape (1 + num_replicates,), `values` (what each criterion's tolerance
    bounds) one row a criterion, NaN where a rate has no example.
    """

    accuracy: np.ndarray
    cost: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Judge:
    """The rows, and the measures, by which probabilities of deciding are judged.

    `labels` are class indices, `groups` numbers of `group_names` or -1 where unknown (such rows count in accuracy and
    cost alone), `subjects` numbers from 0, all of shape (N,); `weights` float64 of that shape, or None; `costs` by
    label and decision, shape (C, C).
    """

    labels: np.ndarray
    groups: np.ndarray
    subjects: np.ndarray
    criteria: tuple[Criterion, ...]
    costs: np.ndarray
    classes: Sequence[str]
    group_names: Sequence[str]
    weights: np.ndarray | None = None

    def measure(self, probabilities: Sequence[np.ndarray], bootstrap: Bootstrap) -> list[Measured]:
        """Return what each of several ways to decide, arrays of shape (N, C), comes to under the same replicates."""
        matrix = scipy.sparse.vstack([self._indicator(decided) for decided in probabilities], format="csr")
        everyone = indicator(self._cells[:, None], self._shape[0] * self._shape[1])
        chunks = []
        for drawn in weight_chunks(self.subjects, bootstrap, rows=matrix.shape[0]):
            weights = drawn if self.weights is None else drawn * self.weights[:, None]
            counts = np.asarray(everyone @ weights).reshape(*self._shape, -1)
            decided = np.asarray(matrix @ weights).reshape(len(probabilities), len(self.classes), *self._shape, -1)
            coefficients = [self._coefficients(criterion, counts[:-1]) for criterion in self.criteria]
            chunks.append([self._measured(each, counts, coefficients) for each in decided])
        return [_joined(parts) for parts in zip(*chunks, strict=True)]

    @property
    def _shape(self) -> tuple[int, int]:
        """The numbers of groups, the unknown one last, and of labels."""
        return len(self.group_names) + 1, len(self.classes)

    @cached_property
    def _cells(self) -> np.ndarray:
        groups = np.where(self.groups < 0, len(self.group_names), self.groups)
        return np.asarray(groups * len(self.classes) + self.labels)

    def _indicator(self, probabilities: np.ndarray) -> scipy.sparse.csr_array:
        size = self._shape[0] * self._shape[1]
        return scipy.sparse.vstack([indicator(self._cells[:, None], size, chances) for chances in probabilities.T])

    def _measured(self, decided: np.ndarray, counts: np.ndarray, coefficients: Sequence[np.ndarray]) -> Measured:
        """Return the measures; `decided` holds weights by (decision, group, label, column), `counts` sums those."""
        total = counts.sum(axis=(0, 1))
        rows = np.nan_to_num(ratio(decided, counts[None]))[:, :-1]
        values = [
            _criterion_values(criterion, np.einsum("kgydr,dgyr->kgr", each, rows))
            for criterion, each in zip(self.criteria, coefficients, strict=True)
        ]
        return Measured(
            accuracy=ratio(np.einsum("ygyr->r", decided), total),
            cost=ratio(np.einsum("dgyr,yd->r", decided, self.costs), total),
            values=np.stack(values) if values else np.zeros((0, len(total))),
        )

    def _coefficients(self, criterion: Criterion, counts: np.ndarray) -> np.ndarray:
        """Return the coefficients of the criterion's rates in each column, shape (K, G, C, C, R); NaN if undefined."""
        columns = [self._column(criterion, counts[:, :, column]) for column in range(counts.shape[2])]
        num_rates = max(len(each) for each in columns)
        blank = np.full((max(num_rates, 1), *counts.shape[:2], len(self.classes)), np.nan)
        return np.stack([each if len(each) else blank for each in columns], axis=-1)

    def _column(self, criterion: Criterion, label_counts: np.ndarray) -> np.ndarray:
        names = {"classes": self.classes, "groups": self.group_names}
        try:
            rates = group_rates_of(criterion, label_counts, costs=self.costs, **names)
        except DataError:  # A replicate without some group's label has no such rate: that is counted, not refused.
            return np.zeros((0, *label_counts.shape, len(self.classes)))
        return np.stack([rate.coefficients for rate in rates])


def audit(
    postprocessor: Postprocessor,
    X: Any,  # noqa: N803
    y: Any,
    *,
    sensitive_features: Any,
    example_ids: Any = None,
    subject_ids: Any = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Audit:
    """Measure a fitted post-processor on rows that neither it nor a constituent was fitted on.

    Without `example_ids` those of a Predictions table key the decisions, else the rows' numbers do; without
    `subject_ids` each row is a subject. Intervals resample subjects.

    Raises:
        DataError: when the rows do not fit together or to the post-processor.
    """
    derived = postprocessor.derive(X, sensitive_features=sensitive_features)
    ids = _ids(example_ids, X, len(derived.original))
    decisions = postprocessor.predict(X, sensitive_features=sensitive_features, example_ids=ids)
    codes, names = read_groups(sensitive_features)
    held = _held_out(postprocessor.classes_, y, (codes, names), ids, subject_ids)
    after = np.searchsorted(postprocessor.classes_, decisions)
    judge = Judge(
        labels=held.labels,
        groups=codes,
        subjects=held.subjects,
        criteria=postprocessor.criteria_,
        costs=postprocessor.costs_,
        classes=held.classes,
        group_names=names,
    )
    predictors = [Predictor(BEFORE, derived.original), Predictor(AFTER, after)]
    evaluation = evaluate(held, predictors, bootstrap=bootstrap)
    ways = {BEFORE: one_hot(derived.original, len(held.classes)), AFTER: derived.probabilities}
    exact = {name: _exact(judge, chances) for name, chances in ways.items()}
    keyed = [one_hot(predictor.decisions, len(held.classes)) for predictor in predictors]
    measured = judge.measure([*keyed, derived.probabilities], bootstrap)
    return Audit(
        overall=_overall(evaluation, judge.criteria, measured, exact),
        by_group=_by_group(evaluation, exact),
        shares=_shares(judge, derived, bootstrap),
    )


def criterion_metric(criterion: Criterion) -> str:
    """Return the name, in `Audit.overall`, of what a criterion's tolerance bounds."""
    name = criterion.name if criterion.name == BOUNDED_GROUP_LOSS else f"{criterion.name}_difference"
    return name + ("_mean" if criterion.form == "mean" else "")


def _criterion_values(criterion: Criterion, rates: np.ndarray) -> np.ndarray:
    """Return `criteria.criterion_value` column by column; `rates` has shape (K, G, R)."""
    if criterion.bounds_levels:
        return np.asarray(rates.max(axis=(0, 1)))
    spreads = rates.max(axis=1) - rates.min(axis=1)
    return np.asarray(spreads.max(axis=0) if criterion.form == "max" else spreads.mean(axis=0))


def _joined(parts: Sequence[Measured]) -> Measured:
    return Measured(
        accuracy=np.concatenate([part.accuracy for part in parts]),
        cost=np.concatenate([part.cost for part in parts]),
        values=np.concatenate([part.values for part in parts], axis=1),
    )


def _ids(example_ids: Any, X: Any, num_rows: int) -> list[str]:  # noqa: N803
    given = getattr(X, "example_ids", range(num_rows)) if example_ids is None else example_ids
    ids = [str(each) for each in given]
    require_rows(num_rows, {"example_ids": len(ids)})
    return ids


def _held_out(
    classes: np.ndarray, y: Any, groups: tuple[np.ndarray, list[str]], ids: Sequence[str], subject_ids: Any
) -> HeldOut:
    labels, (codes, names) = label_codes(y, classes), groups
    subjects = ids if subject_ids is None else np.asarray(subject_ids)
    require_rows(len(ids), {"labels": len(labels), "subject_ids": len(subjects)})
    return HeldOut(
        example_ids=tuple(ids),
        subject_ids=np.array([str(each) for each in subjects], dtype=object),
        labels=labels,
        classes=tuple(str(name) for name in classes),
        sensitive_features={FEATURE: np.array([*names, None], dtype=object)[codes]},
    )


def _exact(judge: Judge, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return the `RATES` of everyone and of each group, shape (1 + G, num_judged, 1), chance averaged out."""
    everyone = np.zeros_like(judge.groups)
    size = len(judge.group_names) + 1
    cells = np.stack([everyone, np.where(judge.groups < 0, -1, judge.groups + 1)], axis=1)
    cells = np.where(cells < 0, -1, cells * len(judge.classes) + judge.labels[:, None])
    ones = np.ones((len(cells), 1))
    sums = [np.asarray(indicator(cells, size * len(judge.classes), each) @ ones) for each in probabilities.T]
    return group_rates(np.stack(sums, axis=1).reshape(size, len(judge.classes), len(sums), 1))


def _overall(
    evaluation: Evaluation,
    criteria: Sequence[Criterion],
    measured: Sequence[Measured],
    exact: Mapping[str, Mapping[str, np.ndarray]],
) -> pd.DataFrame:
    """Return `Audit.overall`; `measured` are before, after and the probabilities of deciding."""
    metrics = evaluation.metrics
    drawn = np.column_stack([metrics["value"].to_numpy(), evaluation.replicates])
    names = zip(metrics["predictor"].astype(str), metrics["metric"].astype(str), strict=True)
    found = dict(zip(names, drawn, strict=True))
    expected = {(name, metric): value for name, rates in exact.items() for metric, value in _means(rates).items()}
    for place, name in enumerate((BEFORE, AFTER)):
        found |= {(name, metric): each for metric, each in _named(criteria, measured[place])}
        averaged = measured[2 * place]
        expected |= {(name, metric): float(each[0]) for metric, each in _named(criteria, averaged)}
    named = list(dict.fromkeys(metric for _, metric in found))
    found |= {(CHANGE, metric): found[AFTER, metric] - found[BEFORE, metric] for metric in named}
    for metric in named:
        pair = [expected.get((name, metric), np.nan) for name in (BEFORE, AFTER)]
        expected[CHANGE, metric] = pair[1] - pair[0]
    keys = [(name, metric) for name in (BEFORE, AFTER, CHANGE) for metric in named]
    summary = summarise(np.stack([found[key] for key in keys]), evaluation.level)
    table = pd.DataFrame(keys, columns=["predictor", "metric"])
    table = table.assign(**{name: summary[name] for name in INTERVAL_COLUMNS})
    return table.assign(expected=[expected.get(key, np.nan) for key in keys])


def _named(criteria: Sequence[Criterion], measured: Measured) -> Iterable[tuple[str, np.ndarray]]:
    yield MEAN_COST, measured.cost
    for criterion, values in zip(criteria, measured.values, strict=True):
        yield criterion_metric(criterion), values


def _means(rates: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the accuracy, and the `DIFFERENCES` over groups, of exact rates."""
    differences = rate_differences(rates, slice(1, None))
    return {"accuracy": float(rates["accuracy"][0, 0, 0])} | {name: float(differences[name][0]) for name in DIFFERENCES}


def _by_group(evaluation: Evaluation, exact: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    table = evaluation.by_group.drop(columns="sensitive_feature")
    groups = list(dict.fromkeys(table["group"]))
    judged = [evaluation.classes[c] for c in judged_classes(len(evaluation.classes))]
    expected = [
        exact[row["predictor"]][row["metric"]][groups.index(row["group"]), judged.index(row["class"]), 0]
        for row in table[["predictor", "group", "class", "metric"]].to_dict("records")
    ]
    return table.assign(expected=expected)


def _shares(judge: Judge, derived: Derived, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return `Audit.shares`."""
    cells = np.stack([np.zeros_like(judge.groups), np.where(judge.groups < 0, -1, judge.groups + 1)], axis=1)
    size = len(judge.group_names) + 1
    values = (derived.randomised, derived.override_probability, derived.backed_off)
    sums = [indicator(cells, size, each.astype(np.float64)) for each in values]
    everyone = indicator(cells, size)
    drawn = [
        np.stack([ratio(each @ weights, everyone @ weights) for each in sums])
        for weights in weight_chunks(judge.subjects, bootstrap, rows=size)
    ]
    summary = summarise(np.concatenate(drawn, axis=2), bootstrap.level)
    table = pd.DataFrame({"group": [EVERYONE, *judge.group_names], "num_examples": everyone.sum(axis=1).astype(int)})
    for place, name in enumerate(SHARES):
        table[name] = summary["value"][place]
        table[f"{name}_low"], table[f"{name}_high"] = summary["low"][place], summary["high"][place]
    return table
