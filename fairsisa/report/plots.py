"""Plots of an evaluation's tables, as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fairsisa.fairness.rates import EVERYONE
from fairsisa.report.rows import by_key, records
from fairsisa.report.style import (
    BLUE,
    DASHED,
    FAINT,
    INK,
    MUTED,
    ROW_HEIGHT,
    VERMILION,
    WIDTH,
    figure_of,
    label_rows,
    new_axes,
    new_panels,
    plain,
    series_colours,
    styled,
)
from fairsisa.report.words import METRIC_NAMES, UNDEFINED, number

MOST_COLUMNS = 3
RATE_PANELS = ("true_positive_rate", "false_positive_rate", "selection_rate")
RATE_KEY = ("sensitive_feature", "group", "class", "metric")


def role_colour(predictor: str) -> str:
    """Return the colour of a predictor's role, which its name tells: constituent, baseline or aggregation."""
    if predictor.startswith("constituent "):
        return MUTED
    return VERMILION if predictor.startswith("baseline") else BLUE


def forest(table: pd.DataFrame, *, title: str = "", colours: Sequence[str] = (), ax: Axes | None = None) -> Figure:
    """Draw one row a label: a dot for the value, a line for its interval, and the value in figures.

    `table` has the columns label, value, low, high; a row whose value is NaN says so in words. `colours` has one a
    row. Returns the figure of `ax`, or of new axes.
    """
    ax = new_axes(ax, WIDTH / 1.5, 0.7 + ROW_HEIGHT * len(table))
    rows = records(table)
    chosen = list(colours) or [BLUE] * len(rows)
    with styled():
        label_rows(ax, [row["label"] for row in rows])
        for place, (row, colour) in enumerate(zip(rows, chosen, strict=True)):
            _interval(ax, place, (row["value"], row["low"], row["high"]), colour)
        ax.set_title("\n".join(plain(line) for line in title.split("\n")))
        ax.set_xlim(*_range(table[["value", "low", "high"]].to_numpy(dtype=float)))
    return figure_of(ax)


def predictor_panels(metrics: pd.DataFrame, shown: Sequence[tuple[str, str]], *, baseline: str | None = None) -> Figure:
    """Draw one panel for each (sensitive feature, metric) of `shown`, one row for each predictor.

    `metrics` is an evaluation's table of that name. The dashed line runs through `baseline`, if given. Aggregations
    are blue, baselines red, constituents grey.
    """
    names, found = list(dict.fromkeys(metrics["predictor"])), by_key(metrics)
    columns = min(len(shown), MOST_COLUMNS)
    rows = -(-len(shown) // columns)
    panels = new_panels(columns, WIDTH, (0.85 + ROW_HEIGHT * len(names)) * rows, rows=rows, share_y=True)
    for ax in panels[len(shown) :]:
        ax.set_axis_off()
    missing = {"value": math.nan, "low": math.nan, "high": math.nan}
    for ax, (feature, metric) in zip(panels, shown, strict=False):
        table = pd.DataFrame([{**found.get((name, feature, metric), missing), "label": name} for name in names])
        title = METRIC_NAMES[metric] + (f"\nby {feature}" if feature else "")
        forest(table, title=title, colours=[role_colour(name) for name in names], ax=ax)
        if baseline is not None:
            value = found[baseline, feature, metric]["value"]
            ax.axvline(value, color=VERMILION, linewidth=0.8, linestyle=DASHED, zorder=1)
    return figure_of(panels[0])


def rates_by_group(by_group: pd.DataFrame, *, predictor: str, features: Sequence[str]) -> Figure:
    """Draw one predictor's true positive, false positive and selection rate for each group, with intervals.

    `by_group` is an evaluation's table of that name. The dashed line is the rate over all examples. With more than
    two classes each rate is drawn per class, class against the rest.
    """
    mine = by_group[by_group["predictor"] == predictor]
    found, classes = by_key(mine, RATE_KEY), list(dict.fromkeys(mine["class"]))
    sizes = {key[:2]: row["num_examples"] for key, row in found.items() if key[0] in features}
    step = ROW_HEIGHT * (1 + 0.35 * (len(classes) - 1))
    panels = new_panels(len(RATE_PANELS), WIDTH, 0.9 + step * len(sizes), share_y=True)
    spread = np.linspace(-0.28, 0.28, len(classes)) if len(classes) > 1 else np.zeros(1)
    for ax, metric in zip(panels, RATE_PANELS, strict=True):
        _rate_axes(ax, METRIC_NAMES[metric], sizes)
        for shift, name, colour in zip(spread, classes, series_colours(len(classes)), strict=True):
            overall = found[EVERYONE, EVERYONE, name, metric]["value"]
            ax.axvline(overall, color=colour, linewidth=0.8, alpha=0.7, linestyle=DASHED, zorder=1)
            for place, key in enumerate(sizes):
                row = found[*key, name, metric]
                _interval(ax, place + shift, (row["value"], row["low"], row["high"]), colour, text=len(classes) == 1)
    if len(classes) > 1:
        _class_legend(figure_of(panels[0]), classes)
    return figure_of(panels[0])


def roc_by_group(
    roc: pd.DataFrame, by_group: pd.DataFrame, *, feature: str, class_name: str, title: str = "", ax: Axes | None = None
) -> Figure:
    """Draw the ROC curve of each group of one sensitive feature, with the point the predictor works at.

    `roc` comes from `curves.roc_by_group`, `by_group` from an evaluation of the same predictor; without rows of that
    predictor no working points are drawn. Equalized odds asks for working points that coincide.
    """
    ax = new_axes(ax, 3.6, 3.7)
    mine = roc[(roc["sensitive_feature"] == feature) & (roc["class"] == class_name)]
    rates = by_key(by_group, ("predictor", *RATE_KEY))
    groups = list(dict.fromkeys(mine["group"]))
    with styled():
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
        for group, colour in zip(groups, series_colours(len(groups)), strict=True):
            curve = mine[mine["group"] == group]
            x, y = curve["false_positive_rate"], curve["true_positive_rate"]
            ax.plot(x, y, color=colour, linewidth=1.5, label=plain(group))
            key = (curve["predictor"].iloc[0], feature, group, class_name)
            if (*key, "true_positive_rate") in rates:
                point = [rates[*key, name]["value"] for name in ("false_positive_rate", "true_positive_rate")]
                ax.plot(*point, "o", color=colour, markersize=7, markeredgecolor=INK, markeredgewidth=1.2, zorder=5)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        ax.set(xlabel="false positive rate", ylabel="true positive rate")
        ax.set_title(plain(title))
        ax.legend(loc="lower right", handlelength=1.2)
    return figure_of(ax)


def roc_panels(roc: pd.DataFrame, by_group: pd.DataFrame, *, features: Sequence[str]) -> Figure:
    """Draw `roc_by_group` for several sensitive features and every class, one panel each."""
    classes = list(dict.fromkeys(roc["class"]))
    pairs = [(name, feature) for name in classes for feature in features]
    rows = -(-len(pairs) // MOST_COLUMNS)
    panels = new_panels(MOST_COLUMNS, WIDTH, (WIDTH / MOST_COLUMNS + 0.3) * rows, rows=rows)
    for ax in panels[len(pairs) :]:
        ax.set_axis_off()
    for ax, (name, feature) in zip(panels, pairs, strict=False):
        title = f"by {feature}" if len(classes) == 1 else f"{name}, by {feature}"
        roc_by_group(roc, by_group, feature=feature, class_name=name, title=title, ax=ax)
    return figure_of(panels[0])


def reliability(table: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw accuracy against confidence, bin by bin, with intervals; the area of a dot is the bin's share of examples.

    `table` comes from `curves.reliability`. Dots below the diagonal are over-confident.
    """
    ax = new_axes(ax, 4.2, 4.0)
    share = (table["num_examples"] / table["num_examples"].sum()).to_numpy()
    with styled():
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=DASHED, zorder=1)
        ax.vlines(table["confidence"], table["low"], table["high"], color=BLUE, linewidth=2.2, alpha=0.45)
        ax.scatter(table["confidence"], table["value"], s=12 + 400 * share, color=BLUE, zorder=3, linewidths=0)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        ax.set(xlabel="confidence (top score)", ylabel="accuracy")
        ax.text(0.06, 0.09, "perfectly calibrated", rotation=45, rotation_mode="anchor", fontsize=8, color=MUTED)
    return figure_of(ax)


def disagreement(table: pd.DataFrame, *, features: Sequence[str], ax: Axes | None = None) -> Figure:
    """Draw how often two constituents' votes differ in each group, with intervals; the first row is everyone."""
    mine = table[table["sensitive_feature"].isin([EVERYONE, *features])]
    ax = new_axes(ax, WIDTH / 1.5, 0.7 + ROW_HEIGHT * len(mine))
    owners = mine["sensitive_feature"].tolist()
    pairs = zip(owners, mine["group"], strict=True)
    labels = [f"{feature}: {group}" if feature else "all examples" for feature, group in pairs]
    figure = forest(mine.assign(label=labels), title="P(two constituents disagree)", ax=ax)
    ax.axvline(mine["value"].iloc[0], color=MUTED, linewidth=0.8, linestyle=DASHED, zorder=1)
    _feature_rules(ax, owners)
    return figure


def _interval(ax: Axes, place: float, found: tuple[float, float, float], colour: str, *, text: bool = True) -> None:
    """Draw (value, low, high) on one row: a dot on a line, and the value in figures if `text`."""
    value, low, high = found
    if math.isnan(value):
        ax.text(0.02, place, UNDEFINED, transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=MUTED)
        return
    ax.hlines(place, low, high, color=colour, linewidth=2.2, alpha=0.45, zorder=2)
    ax.plot([value], [place], "o", color=colour, markersize=5.5, zorder=3)
    if text:
        edge = (value if math.isnan(high) else max(value, high), place)
        ax.annotate(number(value), edge, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=INK)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return x limits around intervals, with room for figures on the right; from 0 if they come near it."""
    if np.isnan(values).all():
        return 0.0, 1.0
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = max(high - low, 0.02)
    start = 0.0 if 0 <= low < span else low - 0.1 * span
    width = max(high - start, span)
    return start - 0.02 * width, start + 1.4 * width


def _rate_axes(ax: Axes, title: str, sizes: dict[tuple[str, str], int]) -> None:
    with styled():
        label_rows(ax, [f"{feature}: {group}  (n = {size:,})" for (feature, group), size in sizes.items()])
        ax.set_title(title)
        ax.set_xlim(-0.03, 1.22)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", ".25", ".5", ".75", "1"])
    _feature_rules(ax, [feature for feature, _ in sizes])


def _feature_rules(ax: Axes, features: Sequence[str]) -> None:
    """Draw a thin line wherever the rows pass from one sensitive feature to the next."""
    for place in range(1, len(features)):
        if features[place] != features[place - 1]:
            ax.axhline(place - 0.5, color=FAINT, linewidth=0.8)


def _class_legend(figure: Figure, classes: Sequence[str]) -> None:
    colours = series_colours(len(classes))
    handles = [Line2D([], [], marker="o", color=colour, markersize=5) for colour in colours]
    with styled():
        names = [plain(name) for name in classes]
        figure.legend(handles, names, loc="outside lower right", ncols=min(len(classes), 6))
