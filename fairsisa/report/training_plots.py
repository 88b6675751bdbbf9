"""Plots of the training and curves tables, as matplotlib figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fairsisa.report.style import BLUE, FAINT, INK, MUTED, PAPER, new_axes, new_panels, plain, series_colours, styled

WIDTH = 9.0
CURVE_KEYS = ("shard", "slice", "step", "epoch")
MOST_LABELLED = 150


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
        panels[0].figure.legend(handles, labels, loc="outside right upper", ncols=1 + len(shards) // 14)
    return panels[0].figure


def training_grid(training: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Draw one cell a slice, one row a shard: how many examples, how long, and whether it was trained at all.

    `training` has the columns shard, slice, examples, seconds, status ("trained", "reused" or "empty"). A trained
    slice is filled, the darker the longer it took; a reused one, whose checkpoint was already there, is outlined;
    an empty one, left by deletion, is only a dash. Large grids are drawn without figures.
    """
    shards, slices = sorted(training["shard"].unique()), sorted(training["slice"].unique())
    ax = new_axes(ax, min(9.0, 1.6 + 1.15 * len(slices)), 0.9 + 0.42 * len(shards))
    longest = max(float(training.loc[training["status"] == "trained", "seconds"].max()), 1e-9) if len(training) else 1.0
    with styled():
        for row in training.itertuples():
            corner = (slices.index(row.slice), shards.index(row.shard))
            strength = 0.15 + 0.7 * np.sqrt(row.seconds / longest) if row.status == "trained" else 0.0
            _cell(ax, corner, row.status, strength)
            if len(training) <= MOST_LABELLED:
                _cell_text(ax, corner, row)
        ax.set(xlim=(-0.02, len(slices) + 0.02), ylim=(len(shards) + 0.02, -0.02))
        ax.set_xticks(np.arange(len(slices)) + 0.5, [f"slice {number}" for number in slices])
        ax.set_yticks(np.arange(len(shards)) + 0.5, [f"shard {number}" for number in shards])
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    return ax.figure


def _running_steps(curves: pd.DataFrame) -> pd.Series:
    """Return steps counted on from slice to slice within each shard."""
    last = curves.groupby(["shard", "slice"])["step"].max()
    before = last.groupby(level="shard").cumsum() - last
    keys = pd.MultiIndex.from_frame(curves[["shard", "slice"]])
    return pd.Series(before.reindex(keys).to_numpy() + curves["step"].to_numpy(), index=curves.index)


def _cell(ax: Axes, corner: tuple[int, int], status: str, strength: float) -> None:
    looks = {
        "trained": {"facecolor": BLUE, "alpha": strength, "edgecolor": "none"},
        "reused": {"facecolor": "none", "edgecolor": MUTED, "linewidth": 0.9},
        "empty": {"facecolor": "none", "edgecolor": FAINT, "linewidth": 0.9, "linestyle": (0, (3, 3))},
    }
    ax.add_patch(Rectangle((corner[0] + 0.03, corner[1] + 0.07), 0.94, 0.86, **looks[status]))


def _cell_text(ax: Axes, corner: tuple[int, int], row: NamedTuple, strength: float) -> None:
    told = {"trained": duration(row.seconds), "reused": "reused", "empty": "empty"}[row.status]
    colour = PAPER if strength > STRONG else (INK if row.status == "trained" else MUTED)
    centre = {"ha": "center", "va": "center", "color": colour}
    if row.status != "empty":
        told = f"{row.examples:,} ex. · {told}"
    ax.text(corner[0] + 0.5, corner[1] + 0.5, told, fontsize=8, **centre)
