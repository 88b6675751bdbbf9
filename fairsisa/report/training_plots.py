"""Plots of the training and curves tables, as matplotlib figures."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fairsisa.report.content import CURVE_KEYS
from fairsisa.report.rows import Row, records
from fairsisa.report.style import (
    BLUE,
    DASHED,
    INK,
    MUTED,
    PAPER,
    WIDTH,
    figure_of,
    new_axes,
    new_panels,
    plain,
    series_colours,
    styled,
)
from fairsisa.report.words import duration

MOST_LABELLED = 150
STRONG = 0.68


def training_curves(curves: pd.DataFrame) -> Figure:
    """Draw each metric of a curves table over the steps, one line a shard, its slices one after another.

    `curves` has the columns shard, slice, step (optimizer steps within the slice), epoch, then one column a metric,
    NaN where it was not taken. A dot marks where a slice ends and its checkpoint is written.
    """
    metrics = [name for name in curves.columns if name not in CURVE_KEYS and curves[name].notna().any()]
    table = curves.assign(place=_running_steps(curves))
    shards = sorted(table["shard"].unique())
    panels = new_panels(max(len(metrics), 2), WIDTH, 3.0)
    for ax in panels[len(metrics) :]:
        ax.set_axis_off()
    for ax, metric in zip(panels, metrics, strict=False):
        with styled():
            for shard, colour in zip(shards, series_colours(len(shards)), strict=True):
                line = table[(table["shard"] == shard) & table[metric].notna()]
                ends = line.groupby("slice").tail(1)
                ax.plot(line["place"], line[metric], color=colour, linewidth=1.3, label=f"shard {shard}")
                ax.plot(ends["place"], ends[metric], "o", color=colour, markersize=3.5)
            ax.set_title(plain(metric))
            ax.set_xlabel("optimizer steps, slice after slice")
            ax.margins(x=0.02)
    with styled():
        handles, labels = panels[0].get_legend_handles_labels()
        figure_of(panels[0]).legend(handles, labels, loc="outside right upper", ncols=1 + len(shards) // 14)
    return figure_of(panels[0])


def training_grid(training: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw one cell a slice, one row a shard: how many examples, how long, and whether it was trained at all.

    `training` has the columns shard, slice, examples, seconds, status ("trained", "reused" or "empty"). A trained
    slice is filled, the darker the longer it took; a reused one, whose checkpoint was already there, is outlined;
    an empty one is dashed. Large grids are drawn without figures.
    """
    rows = records(training)
    shards, slices = (sorted({row[name] for row in rows}) for name in ("shard", "slice"))
    ax = new_axes(ax, min(WIDTH, 1.6 + 1.5 * len(slices)), 0.6 + 0.42 * len(shards))
    longest = max((row["seconds"] for row in rows if row["status"] == "trained"), default=0.0) or 1.0
    with styled():
        for row in rows:
            corner = (slices.index(row["slice"]), shards.index(row["shard"]))
            strength = 0.15 + 0.7 * math.sqrt(row["seconds"] / longest)
            _cell(ax, corner, row["status"], strength)
            if len(rows) <= MOST_LABELLED:
                _cell_text(ax, corner, row, strength)
        ax.set(xlim=(-0.02, len(slices) + 0.02), ylim=(len(shards) + 0.02, -0.02))
        ax.set_xticks([place + 0.5 for place in range(len(slices))], [f"slice {name}" for name in slices])
        ax.set_yticks([place + 0.5 for place in range(len(shards))], [f"shard {name}" for name in shards])
        ax.xaxis.tick_top()
        ax.tick_params(labelcolor=INK, labelsize=9)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    return figure_of(ax)


def _running_steps(curves: pd.DataFrame) -> pd.Series:
    """Return steps counted on from slice to slice within each shard."""
    last = curves.groupby(["shard", "slice"])["step"].max()
    before = last.groupby(level="shard").cumsum() - last
    keys = pd.MultiIndex.from_frame(curves[["shard", "slice"]])
    return pd.Series(before.reindex(keys).to_numpy() + curves["step"].to_numpy(), index=curves.index)


def _cell(ax: Axes, corner: tuple[int, int], status: str, strength: float) -> None:
    box = Rectangle((corner[0] + 0.03, corner[1] + 0.07), 0.94, 0.86, facecolor="none", edgecolor="none")
    if status == "trained":
        box.set(facecolor=BLUE, alpha=strength)
    else:
        box.set(edgecolor=MUTED, linewidth=0.9, linestyle="-" if status == "reused" else DASHED)
    ax.add_patch(box)


def _cell_text(ax: Axes, corner: tuple[int, int], row: Row, strength: float) -> None:
    colour = MUTED
    if row["status"] == "trained":
        colour = PAPER if strength > STRONG else INK
    told = duration(row["seconds"]) if row["status"] == "trained" else row["status"]
    if row["status"] != "empty":
        told = f"{row['examples']:,} ex. · {told}"
    ax.text(corner[0] + 0.5, corner[1] + 0.5, told, ha="center", va="center", fontsize=8, color=colour)
