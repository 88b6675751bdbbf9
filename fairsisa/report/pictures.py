"""Which plots a report shows, and the words under them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from fairsisa.fairness.rates import EVERYONE
from fairsisa.report import plots, training_plots
from fairsisa.report.content import RunReport
from fairsisa.report.svg import inline_svg

MOST_CLASSES = 6
Drawn = tuple[str, Figure, str]


@dataclass(frozen=True)
class Picture:
    """A plot in the page: its SVG, and the words under it."""

    svg: str
    caption: str


def pictures(content: RunReport) -> dict[str, Picture]:
    """Draw the plots that the report's tables allow, by the name under which the page places them."""
    drawn = [*_evaluation_figures(content), *_score_figures(content), *_training_figures(content)]
    return {
        name: Picture(inline_svg(figure, name=name, description=caption), caption) for name, figure, caption in drawn
    }


def _evaluation_figures(content: RunReport) -> Iterator[Drawn]:
    evaluation, features = content.evaluation, content.shown_features
    shown = [(EVERYONE, "accuracy"), *((feature, "equalized_odds_difference") for feature in features)]
    baseline = content.baselines[0] if content.baselines else None
    told = f" The dashed line runs through {baseline}." if baseline else ""
    yield (
        "overview",
        plots.predictor_panels(evaluation.metrics, shown, baseline=baseline),
        f"Every predictor with {evaluation.level:.0%} intervals: aggregations of the ensemble in blue, baselines in "
        f"red, single constituents in grey.{told}",
    )
    if features:
        yield (
            "rates",
            plots.rates_by_group(_few_classes(evaluation.by_group), predictor=content.ensemble, features=features),
            f"Rates of {content.ensemble} in each group with {evaluation.level:.0%} intervals. The dashed line is the "
            "rate over all examples. Equalized odds asks the first two columns to agree over the groups of a feature, "
            f"demographic parity the third.{_classes_left_out(content)}",
        )
    if len(evaluation.disagreement):
        yield (
            "disagreement",
            plots.disagreement(evaluation.disagreement, features=features),
            "How often two constituents, drawn at random, decide differently. Where they disagree more, a decision "
            "hangs more on which shard a person's data fell into.",
        )


def _score_figures(content: RunReport) -> Iterator[Drawn]:
    if len(content.roc) and content.shown_features:
        name = content.roc["predictor"].iloc[0]
        off_curve = " With more than two classes, decisions follow no single threshold and dots leave their curve."
        yield (
            "roc",
            plots.roc_panels(_few_classes(content.roc), content.evaluation.by_group, features=content.shown_features),
            f"ROC curves of {name} by group; the dots are where it decides. Dots apart on one curve mean unequal "
            "thresholds, curves apart mean that the scores tell one group's classes apart better than another's."
            f"{off_curve if len(content.evaluation.classes) > 2 else ''}{_classes_left_out(content)}",
        )
    if len(content.reliability):
        name = content.reliability["predictor"].iloc[0]
        yield (
            "reliability",
            plots.reliability(content.reliability),
            f"How often {name} is right when it is so sure, with {content.evaluation.level:.0%} intervals; the larger "
            "a dot, the more examples. Below the diagonal it is more sure than right.",
        )


def _training_figures(content: RunReport) -> Iterator[Drawn]:
    if len(content.training):
        yield (
            "grid",
            training_plots.training_grid(content.training),
            "Shards and slices. Filled: trained in this run, the darker the longer. Outlined: the checkpoint was "
            "already there and was reused. Dashed: no example is left.",
        )
    if len(content.curves):
        yield (
            "curves",
            training_plots.training_curves(content.curves),
            "What was logged during training, one line a shard, its slices one after another; a dot ends each slice.",
        )


def _few_classes(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first `MOST_CLASSES` classes; a plot of more cannot be read."""
    return table[table["class"].isin(list(dict.fromkeys(table["class"]))[:MOST_CLASSES])]


def _classes_left_out(content: RunReport) -> str:
    total = len(content.evaluation.classes)
    if total <= MOST_CLASSES:
        return ""
    return f" The first {MOST_CLASSES} of {total} classes are drawn; all are in metrics.json."
