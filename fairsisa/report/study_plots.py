"""Plots of a study: a metric, or the cost, against the number of deletions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fairsisa.report.style import (
    BLUE,
    DASHED,
    GREEN,
    MUTED,
    VERMILION,
    WIDTH,
    figure_of,
    new_panels,
    plain,
    styled,
)
from fairsisa.report.words import METRIC_NAMES

ACCURACY, UNFAIRNESS = "accuracy", "equalized_odds_difference"
ENSEMBLE, UNLEARNING, FULL, WHOLE, FRACTION = (
    "ensemble",
    "unlearning",
    "full retraining",
    "baseline whole",
    "baseline fraction",
)

COLOURS = {ENSEMBLE: BLUE, UNLEARNING: BLUE, FULL: MUTED, WHOLE: VERMILION, FRACTION: GREEN}
LEGEND = {
    ENSEMBLE: "ensemble, unlearned",
    WHOLE: "one model on all that is left",
    FRACTION: "one model on one shard of it",
    UNLEARNING: "unlearning",
    FULL: "retraining the whole ensemble",
}


def cumulative_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """Return the costs with a column `cumulative`: the example-epochs of a way up to each step."""
    ordered = costs.sort_values("deletions", kind="stable")
    return costs.assign(cumulative=ordered.groupby(["pattern", "repeat", "way"])["example_epochs"].cumsum())


def metric_by_deletions(results: pd.DataFrame, *, sensitive_feature: str, metric: str) -> Figure:
    """Draw a metric against the number of deletions, a panel a pattern and a line a predictor, averaged over repeats.

    A band reaches from the lowest to the highest bound of the repeats' intervals. Steps are evenly spaced.
    """
    table = results[results["sensitive_feature"].eq(sensitive_feature) & results["metric"].eq(metric)]
    panels = _panels(table)
    for ax, pattern, mine in panels:
        with styled():
            for name in _ordered(mine["predictor"]):
                steps = mine[mine["predictor"] == name].groupby("deletions")
                place = _places(table, steps["value"].mean().index)
                ax.fill_between(place, steps["low"].min(), steps["high"].max(), color=COLOURS[name], alpha=0.12, lw=0)
                ax.plot(place, steps["value"].mean(), color=COLOURS[name], label=LEGEND[name], **_line(name))
            _step_axis(ax, table, pattern)
    with styled():
        panels[0][0].set_ylabel(METRIC_NAMES[metric].lower())
        if metric == UNFAIRNESS:
            panels[0][0].set_ylim(bottom=0)
    return _with_legend(panels)


def cost_by_deletions(costs: pd.DataFrame) -> Figure:
    """Draw the example-epochs that each way took up to each step, averaged over repeats, a panel a pattern."""
    table = cumulative_costs(costs)
    panels = _panels(table)
    for ax, pattern, mine in panels:
        with styled():
            for name in _ordered(mine["way"]):
                spent = mine[mine["way"] == name].groupby("deletions")["cumulative"].mean()
                place = _places(table, spent.index)
                ax.plot(place, spent, color=COLOURS[name], label=LEGEND[name], **_line(name))
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            ax.yaxis.set_minor_locator(NullLocator())
            _step_axis(ax, table, pattern)
    with styled():
        panels[0][0].set_ylabel("example-epochs, cumulative")
    return _with_legend(panels)


def _panels(table: pd.DataFrame) -> list[tuple[Axes, str, pd.DataFrame]]:
    patterns = list(dict.fromkeys(table["pattern"]))
    axes = new_panels(len(patterns), max(4.6, WIDTH * len(patterns) / 3), 3.2, share_y=True)
    return [(ax, name, table[table["pattern"] == name]) for ax, name in zip(axes, patterns, strict=True)]


def _with_legend(panels: Sequence[tuple[Axes, str, pd.DataFrame]]) -> Figure:
    figure = figure_of(panels[0][0])
    with styled():
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles[::-1], names[::-1], loc="outside upper left", ncols=len(names))
    return figure


def _step_axis(ax: Axes, table: pd.DataFrame, pattern: str) -> None:
    steps = sorted(table["deletions"].unique())
    ax.set_xticks(range(len(steps)), [f"{step:,}" for step in steps])
    ax.set_xlim(-0.3, len(steps) - 0.7)
    ax.set_title(plain(pattern))
    ax.set_xlabel("deletions")


def _places(table: pd.DataFrame, deletions: Iterable[int]) -> np.ndarray:
    return np.searchsorted(np.sort(table["deletions"].unique()), list(deletions))


def _ordered(names: pd.Series) -> list[str]:
    """Return the names in the order of the palette, what all is compared with drawn last, on top."""
    found = set(names)
    return [name for name in reversed(COLOURS) if name in found]


def _line(name: str) -> dict[str, Any]:
    own = name in (ENSEMBLE, UNLEARNING)
    dashed = {"linestyle": DASHED} if name == FULL else {}
    return {"linewidth": 2.0 if own else 1.3, "marker": "o", "markersize": 4.5 if own else 3.5, **dashed}
