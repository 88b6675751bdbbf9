"""What the numbers say, and what to mind about them, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from fairsisa.fairness.evaluation import SMALL_CELL, Evaluation, paired_differences
from fairsisa.fairness.rates import EVERYONE
from fairsisa.report.content import RunReport
from fairsisa.report.rows import by_key, records
from fairsisa.report.words import count, listed, number, percent, points, signed

FEW_SUBJECTS = 100
ODDS = "equalized_odds_difference"


def headline(report: RunReport) -> list[str]:
    """Say how good and how fair the ensemble is, each against the baselines, in one sentence a matter."""
    row = by_key(report.evaluation.metrics)[report.ensemble, EVERYONE, "accuracy"]
    examples = count(report.evaluation.num_examples, "held-out example")
    right = f"{report.ensemble} decides {percent(row['value'])} of {examples} rightly"
    interval = f" ({percent(row['low'])} to {percent(row['high'])})"
    against = _against_baselines(report, EVERYONE, "accuracy", points, " points")
    return [f"{right}{interval}{against}.", *(_odds(report, feature) for feature in report.shown_features)]


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


def _odds(report: RunReport, feature: str) -> str:
    row = by_key(report.evaluation.metrics)[report.ensemble, feature, ODDS]
    if math.isnan(row["value"]):
        return f"Its equalized odds difference by {feature} is undefined: {_why_undefined(report.evaluation, feature)}."
    found = f"Its equalized odds difference by {feature} is {number(row['value'])}"
    interval = f" ({number(row['low'])} to {number(row['high'])})"
    return f"{found}{interval}{_against_baselines(report, feature, ODDS, signed)}."


def _against_baselines(
    report: RunReport, feature: str, metric: str, written: Callable[[float], str], unit: str = ""
) -> str:
    told = []
    for baseline in report.baselines:
        row = by_key(paired_differences(report.evaluation, baseline=baseline))[report.ensemble, feature, metric]
        if math.isnan(row["value"]):
            continue
        clear = "above" if row["value"] > 0 else "below"
        where = "not told apart from" if row["low"] <= 0 <= row["high"] else clear
        interval = f"{written(row['low'])} to {written(row['high'])}"
        told.append(f"{where} {baseline} (difference {written(row['value'])}{unit}, {interval})")
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
            f"{SMALL_CELL} examples ({features}): rates there are mostly noise. See the table of cells with few examples."
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
