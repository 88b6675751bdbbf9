"""Plots of the tables of planned unlearning, as matplotlib figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from fairsisa.report.rows import Row, records
from fairsisa.report.style import (
    BLUE,
    DASHED,
    INK,
    MUTED,
    VERMILION,
    WIDTH,
    figure_of,
    new_axes,
    new_panels,
    series_colours,
    styled,
)
from fairsisa.report.words import count

CANDIDATE = ("num_shards", "num_slices", "window")
MOST_PANELS = 3
MOST_TICKS = 10
NORMAL_95 = 1.96
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def cost_by_shards(candidates: pd.DataFrame) -> Figure:
    """Draw the expected cost of a request against the number of shards, one line a number of slices.

    One panel a window, the smallest, the middle and the largest of them. Lines with more slices are thinner, so that
    those behind them show. A ring marks the recommended candidate; hollow dots are candidates outside the limits.
    """
    windows = _spread(sorted(candidates["window"].unique()), MOST_PANELS)
    slices = sorted(candidates["num_slices"].unique())
    best = records(within_limits(candidates).head(1))
    panels = new_panels(len(windows), max(4.6, WIDTH * len(windows) / MOST_PANELS), 3.3, share_y=True)
    for ax, window in zip(panels, windows, strict=True):
        mine = candidates[candidates["window"] == window].sort_values("num_shards")
        with styled():
            for place, (number, colour) in enumerate(zip(slices, series_colours(len(slices)), strict=True)):
                line, thick = mine[mine["num_slices"] == number], 1 + 2 * (1 - place / len(slices))
                ax.plot(line["num_shards"], line["example_epochs_per_request"], color=colour, linewidth=thick)
                _dots(ax, line, ("num_shards", "example_epochs_per_request"), colour, 10 * thick)
            for row in best:
                if row["window"] == window:
                    _ring(ax, row["num_shards"], row["example_epochs_per_request"])
            _log_axis(ax, "x", sorted(mine["num_shards"].unique()))
            _log_axis(ax, "y")
            ax.set_title(count(int(window), "request") + " at a time")
            ax.set_xlabel("shards")
    with styled():
        panels[0].set_ylabel("example-epochs per request")
        handles = [panels[0].get_lines()[place] for place in range(len(slices))]
        names = [count(int(number), "slice") for number in slices]
        figure_of(panels[0]).legend(handles, names, loc="outside right upper")
    return figure_of(panels[0])


def speed_up_by_batch(batches: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw the speed-up over full retraining against how many requests are executed together.

    `batches` has the columns `BATCH_COLUMNS`. Lines are closed forms: expected, best and worst. Dots are Monte Carlo
    means with their 95 % intervals, bars hold the middle 90 % of trials.
    """
    ax = new_axes(ax, WIDTH / 1.5, 3.6)
    sizes = batches["num_requests"]
    with styled():
        ax.fill_between(sizes, batches["worst"], batches["best"], color=MUTED, alpha=0.09, linewidth=0)
        for name in ("best", "worst"):
            ax.plot(sizes, batches[name], color=MUTED, linewidth=1.0, linestyle=DASHED)
            _line_end(ax, sizes, batches[name], name)
        ax.vlines(sizes, batches["q5"], batches["q95"], color=BLUE, linewidth=4.5, alpha=0.28, label="middle 90 %")
        ax.plot(sizes, batches["expected"], color=VERMILION, linewidth=1.4, label="expected, closed form")
        low, high = (batches["mean"] + side * NORMAL_95 * batches["standard_error"] for side in (-1, 1))
        ax.vlines(sizes, low, high, color=BLUE, linewidth=1.4, zorder=4)
        ax.plot(sizes, batches["mean"], "o", color=BLUE, markersize=4.5, zorder=4, label="Monte Carlo mean")
        _log_axis(ax, "x", sorted(sizes))
        _log_axis(ax, "y")
        ax.set(xlabel="requests executed together", ylabel="times cheaper than full retraining")
        ax.legend(loc="center right")
    return figure_of(ax)


def storage_and_cost(candidates: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw the bytes of checkpoints against the expected core-seconds a day, one dot a candidate.

    Blue dots are within the limits, hollow grey ones are not; the line joins those that no other feasible candidate
    beats in both. A ring marks the recommended one.
    """
    ax = new_axes(ax, WIDTH / 1.5, 3.6)
    axes = ("storage_bytes", "core_seconds_per_day")
    feasible = within_limits(candidates)
    with styled():
        front = _front(feasible, axes)
        ax.plot(front[axes[0]], front[axes[1]], color=BLUE, linewidth=1.2, alpha=0.6, drawstyle="steps-post")
        _dots(ax, candidates[~candidates["feasible"]], axes, MUTED)
        _dots(ax, feasible, axes, BLUE)
        _log_axis(ax, "x")
        _log_axis(ax, "y")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_words(value)))
        for row in records(feasible.head(1)):
            _ring(ax, row[axes[0]], row[axes[1]])
            ax.set_title(f"Ring: {candidate_name(row)}")
        ax.set(xlabel="checkpoints on disk", ylabel="core-seconds per day")
    return figure_of(ax)


def within_limits(candidates: pd.DataFrame) -> pd.DataFrame:
    """Return the feasible candidates, in order."""
    return candidates[candidates["feasible"].astype(bool)]


def candidate_name(row: Row) -> str:
    """Return what a candidate is, in words."""
    shards, slices, window = (int(row[name]) for name in CANDIDATE)
    return f"{count(shards, 'shard')}, {count(slices, 'slice')}, {window:,} at a time"


def size_words(num_bytes: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, name in UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} B"


def _front(candidates: pd.DataFrame, axes: tuple[str, str]) -> pd.DataFrame:
    """Return the rows that no other beats in both columns, by the first."""
    ordered = candidates.sort_values(list(axes))
    return ordered[ordered[axes[1]] < ordered[axes[1]].cummin().shift(fill_value=np.inf)]


def _dots(ax: Axes, table: pd.DataFrame, axes: tuple[str, str], colour: str, size: float = 20) -> None:
    """Draw one dot a row, hollow where the candidate is outside the limits."""
    for feasible, fill in ((True, colour), (False, "none")):
        mine = table[table["feasible"].astype(bool) == feasible]
        x, y = mine[axes[0]], mine[axes[1]]
        ax.scatter(x, y, s=size, facecolors=fill, edgecolors=colour, linewidths=1.0, zorder=3)


def _ring(ax: Axes, x: float, y: float) -> None:
    ax.plot([x], [y], "o", markersize=11, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4, zorder=5)


def _line_end(ax: Axes, x: pd.Series, y: pd.Series, text: str) -> None:
    """Write a line's name at its right end."""
    end = (x.iloc[-1], y.iloc[-1])
    ax.annotate(text, end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=MUTED)


def _log_axis(ax: Axes, name: str, ticks: list[float] | None = None) -> None:
    """Make an axis logarithmic, its numbers written out; with ticks at the given values if they are few."""
    (ax.set_xscale if name == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if name == "x" else ax.yaxis
    few = ticks is not None and len(ticks) <= MOST_TICKS
    axis.set_major_locator(FixedLocator(ticks or []) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _spread(values: list[int], most: int) -> list[int]:
    """Return at most that many of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[place] for place in np.linspace(0, len(values) - 1, most).round().astype(int)]
