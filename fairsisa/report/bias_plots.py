"""Plots of bias and behaviour: differences, flips, margins, metrics by model or by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fairsisa.bias.statistics import wilson_interval
from fairsisa.report.bias_content import compared, series_names
from fairsisa.report.bias_findings import differs, metric_words
from fairsisa.report.rows import Row, records
from fairsisa.report.style import (
    BLUE,
    DASHED,
    INK,
    MUTED,
    ROW_HEIGHT,
    SERIES,
    VERMILION,
    WIDTH,
    figure_of,
    label_rows,
    new_panels,
    plain,
    series_colours,
    styled,
)

MOST_ROWS, MOST_COLUMNS = 30, 40
WORDY_COLUMNS, UPRIGHT_COLUMNS = 8, 4
MOST_PANELS, COLUMNS = 9, 3
MOST_MODELS = 30
NUM_BINS = 6
MOST_LABELS = 12
STRONG = 4.0
DEEPEST = 0.6
FURTHEST_NAME = 22


def delta_map(comparisons: pd.DataFrame, alpha: float) -> Figure:
    """Draw every metric's difference from the base, a row a metric and a column a model.

    The deeper a cell's colour, the more standard errors its difference is from 0 (deepest from four on): blue where
    the model is lower, vermilion where it is higher. In a cell stand the sign and size of the difference, bold and with
    an asterisk where its corrected p-value is below `alpha`; with more than `WORDY_COLUMNS` models the asterisk alone.
    """
    grid = _grid(comparisons)
    turned = len(grid.columns) > UPRIGHT_COLUMNS
    letters = min(FURTHEST_NAME, max(len(name) for name in grid.columns)) if turned else 0
    height = 0.5 + ROW_HEIGHT * len(grid.rows) + 0.075 * letters
    ax = new_panels(1, WIDTH, height)[0]
    with styled():
        for (down, across), row in grid.cells.items():
            _cell(ax, (down, across), row, alpha, wordy=len(grid.columns) <= WORDY_COLUMNS)
        label_rows(ax, grid.rows)
        ax.set_yticks(
            range(len(grid.rows)), [": ".join(plain(part) for part in row.split(": ", 1)) for row in grid.rows]
        )
        ax.set_xlim(-0.5, len(grid.columns) - 0.5)
        names = [" / ".join(plain(_end_of(part)) for part in name.split(" / ")) for name in grid.columns]
        ax.set_xticks(range(len(names)), names, rotation=60 if turned else 0, ha="left" if turned else "center")
        ax.xaxis.tick_top()
        ax.tick_params(axis="x", labelcolor=INK)
        ax.grid(visible=False)
        for side in ("bottom", "top"):
            ax.spines[side].set_visible(False)
    return figure_of(ax)


def flips_by_divergence(behaviours: pd.DataFrame) -> Figure:
    """Draw the share of flips against KL(base, other) over the options, a dot a model and benchmark.

    The axis of KL is logarithmic; rows whose KL is not above 0 are left out.
    """
    table = behaviours[(behaviours["kl_forward"] > 0) & behaviours["flips"].notna()]
    ax = new_panels(1, WIDTH / 1.4, 3.8)[0]
    names = list(dict.fromkeys(table["benchmark"]))
    with styled():
        for name, colour in zip(names, series_colours(len(names)), strict=True):
            own = table[table["benchmark"] == name]
            ax.plot(
                own["kl_forward"], 100 * own["flips"], "o", color=colour, markersize=5, alpha=0.8, label=plain(name)
            )
        if len(table) <= MOST_LABELS:
            for row in records(table.sort_values("flips").drop_duplicates("other", keep="last")):
                at = (row["kl_forward"], 100 * row["flips"])
                text = plain(_end_of(str(row["other"])))
                ax.annotate(text, at, xytext=(6, 3), textcoords="offset points", fontsize=8, color=MUTED)
        ax.set(xscale="log", xlabel="KL(base, model) over the options, nats", ylabel="flips, percent of items")
        ax.margins(x=0.12)
        ax.set_ylim(0, max(1.0, 112 * float(table["flips"].max())))
        _log_axis(ax)
        figure_of(ax).legend(loc="outside upper left", ncols=4)
    return figure_of(ax)


def changed_by_margin(margins: pd.DataFrame, level: float) -> Figure:
    """Draw the share of items whose answer changed against the base's top margin, a panel a benchmark, a line a model.

    Items are put in `NUM_BINS` bins of about equal size by their margin; a dot stands at a bin's mean margin, with
    Wilson intervals. Margins of two benchmarks may be of different units.
    """
    models = list(dict.fromkeys(margins["other"]))[: len(SERIES)]
    margins = margins[margins["other"].isin(models)]
    names = list(dict.fromkeys(margins["benchmark"]))[:MOST_PANELS]
    panels = _new_grid(len(names), height=2.8)
    for ax, benchmark in zip(panels, names, strict=False):
        own = margins[margins["benchmark"] == benchmark]
        with styled():
            for name, colour in zip(models, series_colours(len(models)), strict=True):
                binned = margin_bins(own[own["other"] == name], level)
                low, high = 100 * binned["low"], 100 * binned["high"]
                ax.vlines(binned["margin"], low, high, color=colour, linewidth=2.2, alpha=0.4)
                shares = 100 * binned["share"]
                ax.plot(binned["margin"], shares, "o-", color=colour, markersize=4, label=plain(_end_of(name)))
            ax.set_xlabel("top margin of the base")
            ax.set_ylim(bottom=0)
            ax.set_title(plain(str(benchmark)), fontsize=9)
    with styled():
        panels[0].set_ylabel("answers changed, percent")
        handles, labels = panels[0].get_legend_handles_labels()
        figure_of(panels[0]).legend(handles, labels, loc="outside upper left", ncols=4)
    return figure_of(panels[0])


def margin_bins(margins: pd.DataFrame, level: float) -> pd.DataFrame:
    """Return for bins of about equal size by margin: mean margin, share of changed answers, its Wilson interval, size.

    Columns: margin, share, low, high, num_items. Items of equal margin are in one bin, so that there may be fewer.
    """
    own = margins[margins["margin"].notna()]
    edges = np.unique(np.quantile(own["margin"], np.linspace(0, 1, NUM_BINS + 1))) if len(own) else np.zeros(1)
    places = np.clip(np.searchsorted(edges, own["margin"], side="right") - 1, 0, max(len(edges) - 2, 0))
    rows = []
    for place in np.unique(places):
        mine = own[places == place]
        changed = int(mine["changed"].astype(bool).sum())
        low, high = wilson_interval(changed, len(mine), level)
        ends = {"low": low, "high": high, "num_items": len(mine)}
        rows.append({"margin": mine["margin"].mean(), "share": changed / len(mine)} | ends)
    return pd.DataFrame(rows, columns=["margin", "share", "low", "high", "num_items"])


def metric_forest(measures: pd.DataFrame, incapable: Sequence[str] = ()) -> Figure:
    """Draw metrics with intervals, a panel a metric and a row a model; dashed is the value without the bias.

    Hollow are the `incapable` models, which failed the capability check.
    """
    models = list(dict.fromkeys(measures["model"]))[:MOST_MODELS]
    panels = _panels_of(measures, height=0.75 + ROW_HEIGHT * len(models), share_y=True)
    for place, (ax, title, own) in enumerate(panels):
        rows = {row["model"]: row for row in records(own)}
        with styled():
            for down, model in enumerate(models):
                if model not in rows:
                    continue
                ends = [rows[model]["low"], rows[model]["high"]]
                face = "none" if model in incapable else BLUE
                ax.plot(ends, [down, down], color=BLUE, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
                ax.plot([rows[model]["value"]], [down], "o", color=BLUE, mfc=face, markersize=5)
            _neutral(ax.axvline, own)
            if place % COLUMNS == 0:
                label_rows(ax, [_end_of(model) for model in models])
            else:
                ax.grid(visible=False, axis="y")
                ax.spines["left"].set_visible(False)
                ax.tick_params(axis="y", labelleft=False)
            ax.set_ylim(len(models) - 0.5, -0.5)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.set_title(title, fontsize=9)
    return figure_of(panels[0][0])


def metric_by_step(measures: pd.DataFrame, models: pd.DataFrame) -> Figure:
    """Draw metrics against the step of training, a panel a metric and a line a family, with intervals.

    Dashed is the value without the bias, or of a model that knows nothing. Step 0 is left out: the axis is logarithmic.
    """
    steps = models[models["step"] > 0].set_index("name")
    table = measures[measures["model"].isin(steps.index)]
    table = table.assign(
        step=[float(steps.loc[name, "step"]) for name in table["model"]],
        family=[str(steps.loc[name, "family"]) for name in table["model"]],
    )
    families = list(dict.fromkeys(table["family"]))
    colours = dict(zip(families, series_colours(len(families)), strict=True))
    panels = _panels_of(table, height=2.5)
    for ax, title, own in panels:
        with styled():
            for family in families:
                mine = own[own["family"] == family].sort_values("step")
                ax.fill_between(mine["step"], mine["low"], mine["high"], color=colours[family], alpha=0.15, linewidth=0)
                ax.plot(
                    mine["step"], mine["value"], "o-", color=colours[family], markersize=3, label=plain(_end_of(family))
                )
            _neutral(ax.axhline, own)
            ax.set_xscale("log")
            ax.set_title(title, fontsize=9)
            _log_axis(ax)
    with styled():
        for ax, _, _ in panels[-COLUMNS:]:
            ax.set_xlabel("optimizer steps")
        handles, names = panels[0][0].get_legend_handles_labels()
        figure_of(panels[0][0]).legend(handles, names, loc="outside upper left", ncols=4)
    return figure_of(panels[0][0])


@dataclass(frozen=True)
class _Grid:
    """What a map of differences shows: names of rows and columns, and a comparison a cell."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[int, int], Row]


def _grid(comparisons: pd.DataFrame) -> _Grid:
    table = compared(comparisons)
    bases = table["base"].nunique()
    named = table.assign(
        down=series_names(table) + ": " + table["metric"].map(metric_words),
        across=table["other"] if bases < 2 else table["other"] + " / " + table["base"],
    )
    rows = list(dict.fromkeys(named["down"]))[:MOST_ROWS]
    columns = list(dict.fromkeys(named["across"]))[:MOST_COLUMNS]
    places = ({name: place for place, name in enumerate(names)} for names in (rows, columns))
    down, across = places
    cells = {
        (down[row["down"]], across[row["across"]]): row
        for row in records(named)
        if row["down"] in down and row["across"] in across
    }
    return _Grid(tuple(rows), tuple(columns), cells)


def _cell(ax: Axes, place: tuple[int, int], row: Row, alpha: float, *, wordy: bool) -> None:
    down, across = place
    if not math.isfinite(row["difference"]):
        return
    depth = _errors_away(row) / STRONG
    colour = BLUE if row["difference"] < 0 else VERMILION
    # Fainter colours are made by opacity, so that the page's own background shows through, be it dark or light.
    ax.add_patch(
        Rectangle((across - 0.48, down - 0.46), 0.96, 0.92, facecolor=colour, alpha=DEEPEST * depth, linewidth=0)
    )
    told = differs(row, alpha)
    words = _delta_words(row["difference"], str(row["unit"])) if wordy else ""
    text = f"{words}{' ' if told and words else ''}{'*' if told else ''}"
    ax.text(across, down, text, ha="center", va="center", fontsize=8, color=INK, weight="bold" if told else "normal")


def _errors_away(row: Row) -> float:
    """Return how many standard errors a difference is from 0, at most `STRONG`."""
    size, error = abs(row["difference"]), row["standard_error"]
    if size == 0 or not math.isfinite(error):
        return 0.0
    return STRONG if error == 0 else min(STRONG, size / error)


def _delta_words(value: float, unit: str) -> str:
    if value == 0:
        return "0"
    return f"{value:+.1f}" if unit == "%" else f"{value:+.3f}"


def _panels_of(table: pd.DataFrame, *, height: float, share_y: bool = False) -> list[tuple[Axes, str, pd.DataFrame]]:
    """Return a panel for each of the first `MOST_PANELS` metrics of a table, with its title and rows."""
    series = series_names(table) + ": " + table["metric"].map(metric_words)
    names = list(dict.fromkeys(series))[:MOST_PANELS]
    panels = _new_grid(len(names), height=height, share_y=share_y)
    titles = ("\n".join(plain(part) for part in name.split(": ", 1)) for name in names)
    return [(ax, title, table[series == name]) for ax, title, name in zip(panels, titles, names, strict=False)]


def _new_grid(number: int, *, height: float, share_y: bool = False) -> list[Axes]:
    """Return axes for so many panels in rows of `COLUMNS`, each `height` inches high; those left over are hidden."""
    columns = min(COLUMNS, number)
    rows = -(-number // columns)
    width = max(5.2, WIDTH * columns / COLUMNS)
    panels = new_panels(columns, width, height * rows + 0.3, rows=rows, share_y=share_y)
    for ax in panels[number:]:
        ax.set_visible(False)
    return panels


def _neutral(draw: Callable[..., Any], own: pd.DataFrame) -> None:
    for name in ("neutral", "chance"):
        known = own[name].dropna()
        if len(known):
            draw(float(known.iloc[0]), color=MUTED, linestyle=DASHED, linewidth=1.2)
            return


def _log_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(LogLocator(numticks=6))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    )
    ax.xaxis.set_minor_formatter(NullFormatter())


def _end_of(name: str) -> str:
    """Return a model's name, of a long one its end, where names of one sweep differ."""
    return name if len(name) <= FURTHEST_NAME else f"…{name[-FURTHEST_NAME + 1 :]}"
