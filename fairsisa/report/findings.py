"""What the numbers say, and what to mind about them, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from fairsisa.fairness.evaluation import SMALL_CELL, Evaluation
from fairsisa.fairness.rates import EVERYONE
from fairsisa.report.content import RunReport, paired_with_baselines
from fairsisa.report.rows import Row, by_key, records
from fairsisa.report.words import count, listed, number, percent, points, signed

FEW_SUBJECTS = 100
ODDS = "equalized_odds_difference"


def headline(report: RunReport) -> list[str]:
    """Say how good and how fair the ensemble is, each against the baselines, in one sentence a matter."""
    found = by_key(report.evaluation.metrics)
    pairs = by_key(paired_with_baselines(report), ("baseline", "sensitive_feature", "metric"))
    row = found[report.ensemble, EVERYONE, "accuracy"]
    examples = count(report.evaluation.num_examples, "held-out example")
    right = f"{report.ensemble} decides {percent(row['value'])} of {examples} rightly"
    interval = f" ({percent(row['low'])} to {percent(row['high'])})"
    against = _against([pairs[name, EVERYONE, "accuracy"] for name in report.baselines], points, " points")
    sentences = [f"{right}{interval}{against}."]
    for feature in report.shown_features:
        compared = [pairs[name, feature, ODDS] for name in report.baselines]
        sentences.append(_odds(report.evaluation, found[report.ensemble, feature, ODDS], compared))
    return sentences


def cautions(report: RunReport) -> list[str]:
    """Say what a reader must mind before acting on the numbers; the run's own warnings come first."""
    evaluation = report.evaluation
    return [
        *report.warnings,
        *_empty_cell_cautions(evaluation),
        *_small_cell_cautions(evaluation),
        *_feature_cautions(evaluation),
        *_sampling_cautions(evaluation),
    ]


def _odds(evaluation: Evaluation, row: Row, compared: list[Row]) -> str:
    told = f"Its equalized odds difference by {row['sensitive_feature']} is"
    if math.isnan(row["value"]):
        return f"{told} undefined: {_why_undefined(evaluation, row['sensitive_feature'])}."
    interval = f"({number(row['low'])} to {number(row['high'])})"
    return f"{told} {number(row['value'])} {interval}{_against(compared, signed)}."


def _against(pairs: list[Row], written: Callable[[float], str], unit: str = "") -> str:
    """Say of each paired difference whether its interval leaves out zero, and on which side."""
    told = []
    for row in pairs:
        if math.isnan(row["value"]):
            continue
        clear = "above" if row["value"] > 0 else "below"
        where = "not told apart from" if row["low"] <= 0 <= row["high"] else clear
        interval = f"{written(row['low'])} to {written(row['high'])}"
        told.append(f"{where} {row['baseline']} (difference {written(row['value'])}{unit}, {interval})")
    return ": " + ", ".join(told) if told else ""


def _why_undefined(evaluation: Evaluation, feature: str) -> str:
    groups = by_key(evaluation.features, ["sensitive_feature"])[(feature,)]["num_groups"]
    if groups < 2:
        return f"the examples hold {count(groups, 'group')} of it"
    return f"no example is {listed(_empty_cells(evaluation)[feature])}"


def _empty_cells(evaluation: Evaluation) -> dict[str, list[str]]:
    """Return the empty cells in words, by sensitive feature."""
    found: dict[str, list[str]] = {}
    for row in records(evaluation.small_cells):
        if row["num_examples"] == 0:
            found.setdefault(row["sensitive_feature"], []).append(f"{row['group']} with label {row['class']}")
    return found


def _empty_cell_cautions(evaluation: Evaluation) -> Iterator[str]:
    for feature, cells in _empty_cells(evaluation).items():
        if feature != EVERYONE:
            yield (
                f"By {feature}, no example is {listed(cells)}: rates there, and the differences built on them, do not "
                "exist and are shown as undefined."
            )


def _small_cell_cautions(evaluation: Evaluation) -> Iterator[str]:
    small = [row["sensitive_feature"] for row in records(evaluation.small_cells) if row["num_examples"] > 0]
    if small:
        features = listed([name or "all examples" for name in dict.fromkeys(small)])
        yield (
            f"{count(len(small), 'cell')} (a group and a label) {'has' if len(small) == 1 else 'have'} fewer than "
            f"{SMALL_CELL} examples ({features}): rates there are mostly noise. See the table of cells with few "
            "examples."
        )


def _feature_cautions(evaluation: Evaluation) -> Iterator[str]:
    for row in records(evaluation.features):
        feature, examples = row["sensitive_feature"], count(evaluation.num_examples, "example")
        if row["num_unknown"]:
            yield f"{feature} is unknown for {row['num_unknown']:,} of {examples}, which are left out of its rates."
        if row["num_groups"] < 2:
            yield f"{feature} has {count(row['num_groups'], 'group')} here: there is no difference to measure."


def _sampling_cautions(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.num_subjects < FEW_SUBJECTS:
        yield (
            f"The intervals come from resampling {evaluation.num_subjects} people; below about {FEW_SUBJECTS} they "
            "tend to be too narrow."
        )
    undefined = max(row["num_undefined"] for row in records(evaluation.metrics) if not math.isnan(row["value"]))
    if undefined:
        yield (
            f"Some numbers do not exist in up to {undefined:,} of {evaluation.num_replicates:,} replicates, because a "
            "small cell came out empty; their intervals leave these out and are marked with the count."
        )
    if len(evaluation.features):
        yield (
            "A difference over groups is a maximum of noisy numbers: it is never negative, chance alone lifts it above "
            "zero, the more so the more and the smaller the groups. An interval that stays above zero is therefore no "
            "proof of unequal treatment, and an interval may even lie above its own number; compare with a baseline "
            "and look at the rates themselves."
        )
