"""Plots of an evaluation's tables, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fairsisa.fairness.rates import EVERYONE
from fairsisa.report.style import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    ROW_HEIGHT,
    VERMILION,
    label_rows,
    new_axes,
    new_panels,
    plain,
    series_colours,
    styled,
)
from fairsisa.report.words import METRIC_NAMES

WIDTH = 9.0
RATE_PANELS = ("true_positive_rate", "false_positive_rate", "selection_rate")


def role_colour(predictor: str) -> str:
    """Return the colour of a predictor's role, which its name tells: constituent, baseline or aggregation."""
    if predictor.startswith("constituent "):
        return MUTED
    return VERMILION if predictor.startswith("baseline") else BLUE


def forest(table: pd.DataFrame, *, title: str = "", colours: Sequence[str] = (), ax: Axes | None = None) -> Figure:
    """Draw one row a label: a dot for the value, a line for its interval, the value in figures.

    `table` has the columns label, value, low, high; a row whose value is NaN says so in words. `colours`, one a
    row, default to the palette's first. Returns the figure that the axes belong to, `ax` or new ones.
    """
    ax = new_axes(ax, WIDTH / 1.5, 0.7 + ROW_HEIGHT * len(table))
    chosen = list(colours) or [BLUE] * len(table)
    with styled():
        label_rows(ax, [str(label) for label in table["label"]])
        for place, row in enumerate(table.itertuples()):
            _interval(ax, place, row.value, row.low, row.high, chosen[place], text=True)
        ax.set_title(plain(title))
        _widen(ax, table, room=0.2)
    return ax.figure


def predictor_panels(
    metrics: pd.DataFrame, shown: Sequence[tuple[str, str]], *, baseline: str | None = None
) -> Figure:
    """Draw one panel for each (sensitive feature, metric) of `shown`, one row for each predictor.

    `metrics` is an evaluation's table of that name. Dots show values, lines intervals; the dashed line runs through
    `baseline`, if given. Constituents are grey, baselines red, aggregations blue.
    """
    names = list(dict.fromkeys(metrics["predictor"]))
    panels = new_panels(len(shown), WIDTH, 0.85 + ROW_HEIGHT * len(names), share_y=True)
    for ax, (feature, metric) in zip(panels, shown, strict=True):
        chosen = (metrics["sensitive_feature"] == feature) & (metrics["metric"] == metric)
        table = metrics[chosen].set_index("predictor").reindex(names).rename_axis("label").reset_index()
        title = METRIC_NAMES[metric] + (f"\nby {feature}" if feature else "\n")
        forest(table, title=title, colours=[role_colour(name) for name in names], ax=ax)
        if baseline in names:
            value = table.loc[table["label"] == baseline, "value"].iloc[0]
            ax.axvline(value, color=VERMILION, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    return panels[0].figure


def rates_by_group(by_group: pd.DataFrame, *, predictor: str, features: Sequence[str]) -> Figure:
    """Draw one predictor's true positive, false positive and selection rate for each group, with intervals.

    `by_group` is an evaluation's table of that name. The dashed line is the rate over all examples. With more than
    two classes each rate is drawn per class, class against the rest.
    """
    table = by_group[by_group["predictor"] == predictor]
    classes = list(dict.fromkeys(table["class"]))
    mine = table[table["sensitive_feature"].isin(list(features))]
    rows = list(dict.fromkeys(zip(mine["sensitive_feature"], mine["group"], strict=True)))
    sizes = mine.groupby(["sensitive_feature", "group"])["num_examples"].first()
    step = ROW_HEIGHT * (1 + 0.3 * (len(classes) - 1))
    panels = new_panels(len(RATE_PANELS), WIDTH, 0.85 + step * len(rows), share_y=True)
    for ax, metric in zip(panels, RATE_PANELS, strict=True):
        with styled():
            label_rows(ax, [f"{feature}: {group}  (n={sizes[feature, group]:,})" for feature, group in rows])
            ax.set_title(METRIC_NAMES[metric])
            ax.set_xlim(-0.03, 1.03 if len(classes) > 1 else 1.15)
            ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", ".25", ".5", ".75", "1"])
        _rate_rows(ax, table[table["metric"] == metric], rows, classes)
        _feature_rules(ax, [feature for feature, _ in rows])
    if len(classes) > 1:
        _class_legend(panels[0].figure, classes)
    return panels[0].figure


def roc_by_group(
    roc: pd.DataFrame, by_group: pd.DataFrame, *, feature: str, class_name: str, ax: Axes | None = None
) -> Figure:
    """Draw the ROC curve of each group of one sensitive feature, with the point the predictor works at.

    `roc` comes from `curves.roc_by_group`, `by_group` from an evaluation of the same predictor; without rows of that
    predictor no working points are drawn. Equalized odds asks for working points that coincide.
    """
    ax = new_axes(ax, 3.6, 3.7)
    mine = roc[(roc["sensitive_feature"] == feature) & (roc["class"] == class_name)]
    groups = list(dict.fromkeys(mine["group"]))
    with styled():
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
        for group, colour in zip(groups, series_colours(len(groups)), strict=True):
            curve = mine[mine["group"] == group]
            x, y = curve["false_positive_rate"], curve["true_positive_rate"]
            ax.plot(x, y, color=colour, linewidth=1.6, label=plain(group))
            point = _working_point(by_group, str(curve["predictor"].iloc[0]), feature, group, class_name)
            ax.plot(*point, "o", color=colour, markersize=7, markeredgecolor=INK, markeredgewidth=1.2, zorder=5)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        ax.set_xlabel("false positive rate")
        ax.set_ylabel("true positive rate")
        ax.set_title(plain(f"by {feature}" if feature != EVERYONE else "all examples"))
        ax.legend(loc="lower right", handlelength=1.2)
    return ax.figure


def roc_panels(roc: pd.DataFrame, by_group: pd.DataFrame, *, features: Sequence[str]) -> Figure:
    """Draw `roc_by_group` for several sensitive features side by side, one row of panels for each class."""
    classes = list(dict.fromkeys(roc["class"]))
    height = WIDTH / max(len(features), 3) + 0.35
    panels = new_panels(max(len(features), 3), WIDTH, height * len(classes), rows=len(classes))
    for place, ax in enumerate(panels):
        row, column = divmod(place, max(len(features), 3))
        if column >= len(features):
            ax.set_axis_off()
            continue
        roc_by_group(roc, by_group, feature=features[column], class_name=classes[row], ax=ax)
        if len(classes) > 1:
            ax.set_title(plain(f"{classes[row]}, by {features[column]}"))
    return panels[0].figure


def reliability(table: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw accuracy against confidence, bin by bin, with intervals; the area of a dot is the bin's share of examples.

    `table` comes from `curves.reliability`. Dots below the diagonal are over-confident.
    """
    ax = new_axes(ax, 4.2, 4.0)
    share = table["num_examples"] / table["num_examples"].sum()
    with styled():
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.vlines(table["confidence"], table["low"], table["high"], color=BLUE, linewidth=1.4, alpha=0.6)
        ax.plot(table["confidence"], table["value"], color=BLUE, linewidth=1, alpha=0.5)
        ax.scatter(table["confidence"], table["value"], s=12 + 400 * share, color=BLUE, zorder=3, linewidths=0)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        ax.set_xlabel("confidence (top score)")
        ax.set_ylabel("accuracy")
        ax.annotate("perfectly calibrated", (0.02, 0.02), xytext=(14, 2), textcoords="offset points", rotation=45,
                    rotation_mode="anchor", transform_rotates_text=True, fontsize=8, color=MUTED)
    return ax.figure


def disagreement(table: pd.DataFrame, *, features: Sequence[str], ax: Axes | None = None) -> Figure:
    """Draw how often two constituents' votes differ in each group, with intervals; the first row is everyone."""
    mine = table[table["sensitive_feature"].isin([EVERYONE, *features])]
    labels = [
        f"{row.sensitive_feature}: {row.group}" if row.sensitive_feature else "all examples" for row in mine.itertuples()
    ]
    figure = forest(mine.assign(label=labels), title="P(two constituents disagree)", ax=ax)
    axes = figure.axes[0] if ax is None else ax
    axes.axvline(mine["value"].iloc[0], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    _feature_rules(axes, list(mine["sensitive_feature"]))
    return figure


def _interval(ax: Axes, place: float, value: float, low: float, high: float, colour: str, *, text: bool) -> None:
    if np.isnan(value):
        note = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": MUTED, "style": "italic"}
        ax.annotate("undefined", (0, place), xytext=(4, 0), xycoords=ax.get_yaxis_transform(), **note)
        return
    ax.hlines(place, low, high, color=colour, linewidth=2.2, alpha=0.45, zorder=2)
    ax.plot([value], [place], "o", color=colour, markersize=5.5, zorder=3)
    if text:
        edge = value if np.isnan(high) else max(value, high)
        ax.annotate(f"{value:.3f}", (edge, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


def _widen(ax: Axes, table: pd.DataFrame, *, room: float) -> None:
    """Set the x range to the intervals' own, with room for figures on the right; rates start at 0 if they near it."""
    values = table[["value", "low", "high"]].to_numpy(dtype=float)
    if np.isnan(values).all():
        ax.set_xlim(0, 1)
        return
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = max(high - low, 0.02)
    start = 0.0 if 0 <= low < span else low - 0.08 * span
    ax.set_xlim(start - 0.02 * span, high + room * span * 1.6)


def _rate_rows(ax: Axes, table: pd.DataFrame, rows: Sequence[tuple[str, str]], classes: Sequence[str]) -> None:
    indexed = table.set_index(["sensitive_feature", "group", "class"])[["value", "low", "high"]]
    spread = np.linspace(-0.28, 0.28, len(classes)) if len(classes) > 1 else [0.0]
    with styled():
        for shift, name, colour in zip(spread, classes, series_colours(len(classes)), strict=True):
            overall = indexed.loc[(EVERYONE, EVERYONE, name), "value"]
            ax.axvline(overall, color=colour, linewidth=0.8, alpha=0.7, linestyle=(0, (4, 3)), zorder=1)
            for place, (feature, group) in enumerate(rows):
                value, low, high = indexed.loc[(feature, group, name)]
                _interval(ax, place + shift, value, low, high, colour, text=len(classes) == 1)


def _feature_rules(ax: Axes, features: Sequence[str]) -> None:
    """Draw a thin line wherever the rows pass from one sensitive feature to the next."""
    for place in range(1, len(features)):
        if features[place] != features[place - 1]:
            ax.axhline(place - 0.5, color=FAINT, linewidth=0.8)


def _class_legend(figure: Figure, classes: Sequence[str]) -> None:
    with styled():
        axes = figure.axes[0]
        handles = [
            axes.plot([], [], "o-", color=colour, markersize=5, label=plain(name))[0]
            for name, colour in zip(classes, series_colours(len(classes)), strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower right", ncols=min(len(classes), 6))


def _working_point(
    by_group: pd.DataFrame, predictor: str, feature: str, group: str, class_name: str
) -> tuple[list[float], list[float]]:
    mine = by_group[
        (by_group["predictor"] == predictor)
        & (by_group["sensitive_feature"] == feature)
        & (by_group["group"] == group)
        & (by_group["class"] == class_name)
    ].set_index("metric")["value"]
    if mine.empty:
        return [], []
    return [mine["false_positive_rate"]], [mine["true_positive_rate"]]
