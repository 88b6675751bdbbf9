"""From an evaluation's and a training's tables to tables that people read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fairsisa.fairness.evaluation import Evaluation
from fairsisa.fairness.metrics import QUALITIES
from fairsisa.fairness.rates import DIFFERENCES, EVERYONE, RATES
from fairsisa.report.content import RunReport, paired_with_baselines
from fairsisa.report.rows import Row, by_key, records
from fairsisa.report.words import METRIC_NAMES, UNDEFINED, duration, number

ALL_EXAMPLES = "all examples"
GROUP_WORDS = ("sensitive feature", "group", "class")
NAME_LENGTH = 16
TRAINING_CAPTION = "Every slice; time and steps of a reused checkpoint are those of the training that made it"
HEADLINE = ((EVERYONE, "accuracy"), (EVERYONE, "macro_f1"))


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is read first, then a detail such as an interval."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table to show: the first `num_text` columns hold words, the others numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_text: int = 1


def headline_table(report: RunReport) -> Table:
    """Show accuracy, macro F1 and the equalized odds differences of the ensemble and the baselines."""
    shown = [*HEADLINE, *((feature, DIFFERENCES[0]) for feature in report.shown_features)]
    rows = _metric_rows(report.evaluation.metrics, (report.ensemble, *report.baselines), shown)
    pairs = paired_with_baselines(report)
    for baseline in report.baselines:
        mine = pairs[pairs["baseline"] == baseline]
        difference = _metric_rows(mine, (report.ensemble,), shown, signed=True)[0][1:]
        rows.append((Cell(f"{report.ensemble} minus {baseline}"), *difference))
    names = (METRIC_NAMES[metric] + (f" by {feature}" if feature else "") for feature, metric in shown)
    return Table("The ensemble and the baselines", ("predictor", *names), tuple(rows))


def quality_table(evaluation: Evaluation) -> Table:
    """Show how good every predictor's decisions and scores are."""
    rows = _metric_rows(evaluation.metrics, evaluation.predictors, [(EVERYONE, metric) for metric in QUALITIES])
    columns = ("predictor", *(METRIC_NAMES[metric] for metric in QUALITIES))
    return Table("Accuracy, ranking and calibration", columns, tuple(rows))


def predictor_differences_table(report: RunReport) -> Table:
    """Show the equalized odds difference of every predictor over each main feature."""
    evaluation, features = report.evaluation, report.shown_features
    rows = _metric_rows(evaluation.metrics, evaluation.predictors, [(name, DIFFERENCES[0]) for name in features])
    columns = ("predictor", *(f"by {feature}" for feature in features))
    return Table("Equalized odds difference of every predictor", columns, tuple(rows))


def feature_differences_table(evaluation: Evaluation, predictor: str) -> Table:
    """Show one predictor's five differences over every sensitive feature."""
    found = by_key(evaluation.metrics)
    rows = [
        (Cell(feature), *(_interval(found[predictor, feature, metric]) for metric in DIFFERENCES))
        for feature in evaluation.features["sensitive_feature"]
    ]
    names = (METRIC_NAMES[metric].replace(" difference", "") for metric in DIFFERENCES)
    return Table(f"Differences over groups, {predictor}", ("sensitive feature", *names), tuple(rows))


def rates_table(evaluation: Evaluation, predictor: str) -> Table:
    """Show one predictor's rates in every group, class by class where there are more than two."""
    mine = evaluation.by_group[evaluation.by_group["predictor"] == predictor]
    where = GROUP_WORDS[: 3 if mine["class"].nunique() > 1 else 2]
    found = by_key(mine, ("sensitive_feature", "group", "class", "metric"))
    rows = []
    for feature, group, class_name in dict.fromkeys(key[:3] for key in found):
        rates = [found[feature, group, class_name, metric] for metric in RATES]
        sizes = (Cell(f"{rates[0][name]:,}") for name in ("num_examples", "num_positives", "num_negatives"))
        words = (feature or ALL_EXAMPLES, group, class_name)[: len(where)]
        rows.append((*(Cell(word) for word in words), *sizes, *(_interval(rate) for rate in rates)))
    columns = (*where, "examples", "positives", "negatives", *(METRIC_NAMES[metric] for metric in RATES))
    return Table(f"Rates in every group, {predictor}", columns, tuple(rows), num_text=len(where))


def disagreement_table(evaluation: Evaluation) -> Table:
    """Show how often two constituents disagree in every group."""
    rows = tuple(
        (Cell(row["sensitive_feature"] or ALL_EXAMPLES), Cell(row["group"]), _size(row), _interval(row))
        for row in records(evaluation.disagreement)
    )
    columns = (*GROUP_WORDS[:2], "examples", "P(two constituents disagree)")
    return Table("Disagreement between constituents", columns, rows, num_text=2)


def small_cells_table(evaluation: Evaluation) -> Table:
    """Show the cells (group and label) with too few examples to trust a rate."""
    rows = tuple(
        (Cell(row["sensitive_feature"] or ALL_EXAMPLES), Cell(row["group"]), Cell(row["class"]), _size(row))
        for row in records(evaluation.small_cells)
    )
    return Table("Cells with few examples", (*GROUP_WORDS[:2], "label", "examples"), rows, num_text=3)


def training_table(training: pd.DataFrame) -> Table:
    """Show every slice: its size, its cost, and whether it was trained or its checkpoint was already there."""
    columns = ("shard", "slice", "status", "checkpoint", "examples", "epochs", "steps", "time", "examples per second")
    rows = tuple(
        (
            *(Cell(str(row[name])) for name in ("shard", "slice", "status")),
            Cell(row["checkpoint"][:NAME_LENGTH] if isinstance(row["checkpoint"], str) else ""),
            *(Cell(f"{row[name]:,.0f}") for name in ("examples", "epochs", "steps")),
            Cell(duration(row["seconds"])),
            Cell(f"{row['examples_per_second']:,.0f}" if row["examples_per_second"] > 0 else ""),
        )
        for row in records(training)
    )
    return Table(TRAINING_CAPTION, columns, rows, num_text=4)


def settings_table(caption: str, settings: Mapping[str, Any]) -> Table:
    """Show nested settings as one row a value, its keys joined with dots."""
    rows = tuple((Cell(key), Cell(value)) for key, value in flatten(settings))
    return Table(caption, ("setting", "value"), rows, num_text=2)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield (dotted key, value as text), in order; an empty mapping is a value."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield name, ", ".join(str(item) for item in value) or "[]"
        else:
            yield name, str(value)


def _metric_rows(
    metrics: pd.DataFrame, predictors: Sequence[str], shown: Sequence[tuple[str, str]], *, signed: bool = False
) -> list[tuple[Cell, ...]]:
    """Return a row a predictor and a cell a (sensitive feature, metric); a predictor may lack scores."""
    found = by_key(metrics)
    rows = []
    for name in predictors:
        cells = (found.get((name, *key)) for key in shown)
        rows.append((Cell(name), *(Cell("no scores") if row is None else _interval(row, plus=signed) for row in cells)))
    return rows


def _interval(row: Row, *, plus: bool = False) -> Cell:
    """Return value and interval; say how many replicates left the number undefined, if any did."""
    value = number(row["value"])
    if value == UNDEFINED:
        return Cell(value)
    detail = f"[{number(row['low'])}, {number(row['high'])}]"
    missing = f", {row['num_undefined']:,} undefined" if row["num_undefined"] else ""
    return Cell(f"+{value}" if plus and row["value"] > 0 else value, detail + missing)


def _size(row: Row) -> Cell:
    return Cell(f"{row['num_examples']:,}")
