"""The look of every plot: palette, fonts, figure and axes to draw on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart under every common colour blindness; yellow is left out, too pale on white.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"
INK, MUTED, FAINT, PAPER = "#1f2328", "#667079", "#dfe3e8", "#ffffff"
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK, MUTED)
ROW_HEIGHT = 0.27
WIDTH = 9.0
MOST_LETTERS = 42
DASHED = (0, (4, 3))

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "fairsisa",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save inside this context: matplotlib's global settings are untouched outside it.

    matplotlib warns of letters its own font lacks; here the reader's browser brings the font, so that is no news.
    """
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or the axes of a new figure of that size in inches."""
    return new_panels(1, width, height)[0] if ax is None else ax


def new_panels(columns: int, width: float, height: float, *, rows: int = 1, share_y: bool = False) -> list[Axes]:
    """Return the axes of a new figure, row by row; no global state is touched (no pyplot)."""
    with styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    return list(np.ravel(axes))


def figure_of(ax: Axes) -> Figure:
    """Return the figure that axes belong to, through any nesting of subfigures."""
    owner = ax.figure
    while not isinstance(owner, Figure):
        owner = owner.figure
    return owner


def plain(text: str) -> str:
    """Return text that matplotlib draws as it stands, on one line, cut if it is very long.

    A pair of dollar signs would start a formula, so they are escaped.
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    shown = line if len(line) <= MOST_LETTERS else line[: MOST_LETTERS - 1] + "…"
    return shown.replace("$", r"\$")


def series_colours(number: int) -> list[str]:
    """Return that many colours: the palette while it lasts, then an even walk through a perceptually uniform map."""
    if number <= len(SERIES):
        return list(SERIES[:number])
    return [mpl.colors.to_hex(colour) for colour in mpl.colormaps["viridis"](np.linspace(0.05, 0.9, number))]


def label_rows(ax: Axes, names: Sequence[str]) -> None:
    """Give the axes one named row for each name, the first on top, without a line for each."""
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.tick_params(axis="y", labelcolor=INK, labelsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
