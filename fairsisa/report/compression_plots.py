"""How the page about smaller copies of a predictor shows its numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from fairsisa.report.fair_plots import metric_label
from fairsisa.report.planning_plots import size_words
from fairsisa.report.rows import METRIC_KEY, Row, by_key, records
from fairsisa.report.style import BLUE, DASHED, GREEN, INK, MUTED, PURPLE, WIDTH, figure_of, new_panels, plain, styled
from fairsisa.report.tables import Cell, Table
from fairsisa.report.words import UNDEFINED, count, number, percent, points, signed
from fairsisa.report.writing import markdown_text

MADE_BY: Mapping[str, tuple[str, str, str]] = {
    "train": ("trained", BLUE, "s"),
    "distil": ("distilled", GREEN, "o"),
    "compress": ("compressed", PURPLE, "^"),
}
ACCURACY = "accuracy"
INTERVAL = ("value", "low", "high")
LATENCY = ("latency_ms", "latency_low", "latency_high")
MODELS = (
    "name",
    "made_by",
    "source",
    "steps",
    "num_models",
    "num_parameters",
    "size_bytes",
    "memory_bytes",
    "sparsity",
    "bits",
    *LATENCY,
    "texts_per_second",
)
METRICS = (*METRIC_KEY, *INTERVAL)
CHANGES = ("predictor", "baseline", *METRICS[1:])
LAYERS = ("name", "constituent", "layer", "sparsity", "bits")
NEAR = 0.02
SIDE_STEP = 9.0
MARK, BAR, LINE = 5.0, 1.5, 0.2
LABEL_GAP, LABEL_STEP, LABEL_HEIGHT, LEADER = 8.0, 10.0, 10.0, 16.0
MOST_STEPS = 6
BETWEEN = 0.05
LEFT_ROOM, RIGHT_ROOM, LEAST_SPAN = 0.12, 0.24, 2.6
SIZE_SUBS = (1.0, 2.0, 5.0)


@dataclass(frozen=True, eq=False)
class Mark:
    """One model in one panel: where it stands, how far aside in points, and whether it is told apart."""

    row: Row
    metric: Row
    aside: float
    told: bool

    @property
    def ends(self) -> tuple[float, float, float]:
        """The value, and the interval's low and high end."""
        value, low, high = (float(self.metric[name]) for name in INTERVAL)
        return value, low, high


def told_apart(change: Row) -> int:
    """Return 1 where a paired interval lies above 0, -1 where below, and 0 where it does not tell."""
    return int(change["low"] > 0) - int(change["high"] < 0)


def size_panels(
    models: pd.DataFrame, metrics: pd.DataFrame, changes: pd.DataFrame, shown: Sequence[tuple[str, str]]
) -> Figure:
    """Draw each (sensitive feature, metric) of `shown` against the size on disk, a panel each, one above the other.

    The first of `models` (name, made_by, size_bytes) is what all are compared with: the dashed line runs through it.
    `metrics` and `changes` (of each model, minus the first) have the columns predictor, sensitive_feature, metric,
    value, low, high. A mark is filled where the paired interval leaves out 0, else hollow. Marks of about equal size
    stand side by side. A model without the metric is named in the panel's corner.
    """
    found, paired, rows = by_key(metrics), by_key(changes), records(models)
    aside = _side_steps(models["size_bytes"].to_numpy(dtype=np.float64))
    panels = new_panels(1, WIDTH, (2.0 + 0.14 * len(rows)) * len(shown) + 0.7, rows=len(shown))
    drawn = []
    for ax, key in zip(panels, shown, strict=True):
        marks = [
            Mark(row, found[row["name"], *key], step, place == 0 or told_apart(paired[row["name"], *key]) != 0)
            for place, (row, step) in enumerate(zip(rows, aside, strict=True))
        ]
        drawn.append([mark for mark in marks if math.isfinite(mark.ends[0])])
        with styled():
            _panel(ax, marks, key)
    with styled():
        _size_axes(panels, models["size_bytes"].to_numpy(dtype=np.float64))
        _legend(figure_of(panels[0]), rows)
        figure_of(panels[0]).set_layout_engine("constrained", hspace=BETWEEN)
        figure_of(panels[0]).draw_without_rendering()
        for ax, marks in zip(panels, drawn, strict=True):
            _label_marks(ax, marks)
    return figure_of(panels[0])


def _side_steps(sizes: np.ndarray) -> list[float]:
    """Return how many points each mark stands aside, so that those of about equal size do not hide each other."""
    logs = np.log(sizes)
    order, near = np.argsort(logs, kind="stable"), NEAR * max(float(np.ptp(logs)), 1.0)
    clusters = np.split(order, np.flatnonzero(np.diff(logs[order]) > near) + 1)
    aside = np.zeros(len(sizes))
    for cluster in clusters:
        members = np.sort(cluster)
        aside[members] = SIDE_STEP * (np.arange(len(members)) - (len(members) - 1) / 2)
    return [float(step) for step in aside]


def _panel(ax: Axes, marks: Sequence[Mark], key: tuple[str, str]) -> None:
    feature, metric = key
    ax.set_title(plain(metric_label(metric) + (f" by {feature}" if feature else "")))
    for place, mark in enumerate(marks):
        if not math.isfinite(mark.ends[0]):
            continue
        _, colour, marker = MADE_BY[mark.row["made_by"]]
        x, place_of = mark.row["size_bytes"], _place_of(ax, mark.aside)
        ax.plot([x, x], mark.ends[1:], color=colour, alpha=0.4, linewidth=2.0, transform=place_of, zorder=2)
        face = colour if mark.told else "none"
        ax.plot([x], [mark.ends[0]], marker, color=colour, mfc=face, markersize=6, transform=place_of, zorder=4)
        if place == 0:
            ax.axhline(mark.ends[0], color=MUTED, linewidth=0.8, linestyle=DASHED, zorder=1)
    missing = [mark.row["name"] for mark in marks if not math.isfinite(mark.ends[0])]
    if missing:
        said = plain(f"{UNDEFINED}: {', '.join(missing)}")
        ax.text(0.01, 0.03, said, transform=ax.transAxes, fontsize=8, color=MUTED)
    _limits(ax, marks)


def _limits(ax: Axes, marks: Sequence[Mark]) -> None:
    """Give a panel a scale that holds every value and interval, with room around."""
    ends = np.array([mark.ends for mark in marks], dtype=np.float64)
    if np.isnan(ends).all():
        return
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    room = 0.08 * max(high - low, 0.01)
    ax.set_ylim(low - room, high + room)


def _size_axes(panels: Sequence[Axes], sizes: np.ndarray) -> None:
    """Give all panels the same logarithmic scale of sizes, with room for names at both ends."""
    low, high = np.log(sizes.min()), np.log(sizes.max())
    span = max(float(high - low), LEAST_SPAN)
    ends = np.exp([low - LEFT_ROOM * span, high + RIGHT_ROOM * span])
    for ax in panels:
        ax.set_xscale("log")
        ax.set_xlim(float(ends[0]), float(ends[1]))
        ax.xaxis.set_major_locator(LogLocator(subs=SIZE_SUBS))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_words(value)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
    panels[-1].set_xlabel("size on disk")


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    kinds = [MADE_BY[kind] for kind in MADE_BY if kind in {row["made_by"] for row in rows}]
    handles = [Line2D([], [], linestyle="none", color=colour, marker=marker) for _, colour, marker in kinds]
    handles += [
        Line2D([], [], linestyle="none", color=INK, marker="D", markersize=5),
        Line2D([], [], linestyle="none", color=INK, marker="D", markersize=5, markerfacecolor="none"),
        Line2D([], [], color=MUTED, linewidth=0.8, linestyle=DASHED),
    ]
    base = plain(str(rows[0]["name"]))
    names = [*(name for name, _, _ in kinds), f"told apart from {base}", "not told apart", base]
    figure.legend(handles, names, loc="outside upper left", ncols=len(names), columnspacing=1.4, handlelength=1.6)


def _label_marks(ax: Axes, marks: Sequence[Mark]) -> None:
    """Write each model's name by its mark where it hides the least; a thin line leads to one that stands off."""
    points = 72 / figure_of(ax).dpi
    frame = np.asarray(ax.get_window_extent().extents, dtype=np.float64) * points
    at = {}
    for mark in marks:
        ends = [(mark.row["size_bytes"], y) for y in mark.ends]
        at[mark.row["name"]] = ax.transData.transform(ends) * points + [mark.aside, 0.0]
    dots = [np.array([x - MARK, y - MARK, x + MARK, y + MARK]) for (x, y), _, _ in at.values()]
    bars = [np.array([x - BAR, low, x + BAR, high]) for (x, _), (_, low), (_, high) in at.values()]
    taken: list[np.ndarray] = []
    bars = [bar for bar in bars if np.isfinite(bar).all()]
    if marks:
        level = at[marks[0].row["name"]][0, 1]
        bars.append(np.array([frame[0], level - LINE, frame[2], level + LINE]))
    for mark in sorted(marks, key=lambda mark: -mark.ends[0]):
        label = _label(ax, mark)
        width = float(label.get_window_extent().width) * points
        here = at[mark.row["name"]][0]
        shift, box = _best_place(here, width, aside=mark.aside, frame=frame, solid=[*dots, *taken], bars=bars)
        label.set_position((float(shift[0]), float(shift[1])))
        label.set_horizontalalignment("left" if shift[0] > 0 else "right")
        taken.append(box)
        if math.hypot(*shift) > LEADER:
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            _note(ax, "", mark, (float(shift[0]), float(shift[1])), arrowprops=line)


def _place_of(ax: Axes, aside: float) -> Transform:
    """Return where data stand on the page, moved aside by so many points."""
    return ax.transData + ScaledTranslation(aside / 72, 0, figure_of(ax).dpi_scale_trans)


def _note(ax: Axes, text: str, mark: Mark, shift: tuple[float, float], **look: Any) -> Annotation:
    """Write a text so many points off a mark, without a say in the layout."""
    at, place_of = (mark.row["size_bytes"], mark.ends[0]), _place_of(ax, mark.aside)
    note = ax.annotate(text, at, xycoords=place_of, xytext=shift, textcoords="offset points", **look)
    note.set_in_layout(False)
    return note


def _label(ax: Axes, mark: Mark) -> Annotation:
    name = plain(str(mark.row["name"]))
    return _note(ax, name, mark, (LABEL_GAP, 0), va="center_baseline", fontsize=8.5, color=INK, zorder=6)


def _best_place(
    here: np.ndarray,
    width: float,
    *,
    aside: float,
    frame: np.ndarray,
    solid: Sequence[np.ndarray],
    bars: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the shift of a label from its mark, and its box, both in points, that covers least and strays least."""
    costs, places = [], []
    for side, far, step in itertools.product((1, -1), (1.0, 2.5), range(-MOST_STEPS, MOST_STEPS + 1)):
        shift = np.array([side * LABEL_GAP * far, LABEL_STEP * step])
        left, middle = here + shift - np.array([width if side < 0 else 0.0, 0.0])
        box = np.array([left, middle - LABEL_HEIGHT / 2, left + width, middle + LABEL_HEIGHT / 2])
        ends = np.stack([here + np.array([side * MARK, 0.0]), here + shift])
        way = np.concatenate([ends.min(axis=0), ends.max(axis=0) + np.array([0.0, 1.0])])
        hidden = width * LABEL_HEIGHT - _shared(box, frame) + sum(_shared(box, other) for other in solid)
        crossed = sum(_shared(way, other) for other in (*solid, *bars))
        covered = sum(_shared(box, bar) for bar in bars)
        inward = abs(aside) >= SIDE_STEP and side * aside < 0
        costs.append(30 * hidden + 10 * covered + crossed + 6 * abs(step) + 8 * (far > 1) + 30 * inward + (side < 0))
        places.append((shift, box))
    return places[int(np.argmin(costs))]


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """Return the area that two boxes (left, bottom, right, top) have in common."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(np.prod(sides.clip(min=0.0)))


def times_smaller(base: Row, row: Row, name: str = "size_bytes") -> str:
    """Say how many times smaller a model is than the base, or larger."""
    ratio = base[name] / row[name]
    if not math.isfinite(ratio) or f"{ratio:.2f}" == "1.00":
        return "as large" if math.isfinite(ratio) else ""
    return f"{ratio:.2f} times smaller" if ratio > 1 else f"{1 / ratio:.2f} times larger"


def metric_words(key: tuple[str, ...]) -> str:
    """Return a (sensitive feature, metric) in words."""
    feature, metric = key
    label = metric_label(metric)
    return label[0].lower() + label[1:] + (f" by {feature}" if feature else "")


def changed_words(row: Row, key: tuple[str, str]) -> str:
    """Return a copy's name and its paired change with the interval; shares in percentage points."""
    written, unit = (signed, "") if key[0] else (points, " points")
    ends = f"{written(row['low'])} to {written(row['high'])}"
    return f"{row['predictor']} ({written(row['value'])}{unit}, {ends})"


def weight_words(row: Row) -> str:
    """Return what a model takes on disk, and of how many models it consists."""
    return f"{size_words(row['size_bytes'])} ({count(int(row['num_models']), 'model')})"


def milliseconds(value: float) -> str:
    """Return a latency without its unit, with one decimal or, below 1, two digits."""
    if not math.isfinite(value):
        return UNDEFINED
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def copies_words(number_of: int) -> str:
    """Return a number of copies in words."""
    return "1 copy" if number_of == 1 else f"{number_of:,} copies"


def measured_table(models: pd.DataFrame, metrics: pd.DataFrame, shown: Sequence[tuple[str, str]]) -> Table:
    """Show what was measured of every model: metrics with intervals, sizes, latency."""
    found, rows = by_key(metrics), records(models)
    cells = tuple(
        (
            Cell(row["name"], row["steps"]),
            *(_interval(found[row["name"], *key]) for key in shown),
            *(_size(rows[0], row, name) for name in ("size_bytes", "memory_bytes")),
            _latency(row),
            Cell(f"{row['texts_per_second']:,.4g}" if math.isfinite(row["texts_per_second"]) else ""),
        )
        for row in rows
    )
    columns = ("model", *map(metric_words, shown), "on disk", "in memory", "latency of one text", "texts per second")
    return Table("Every model, measured", columns, cells)


def changes_table(models: pd.DataFrame, changes: pd.DataFrame, shown: Sequence[tuple[str, str]]) -> Table:
    """Show what every copy changed, with the interval of the paired change, and whether that is told apart."""
    found = by_key(changes)
    base, *copies = models["name"].tolist()
    rows = tuple((Cell(name), *(_change(found[name, *key]) for key in shown)) for name in copies)
    return Table(f"Every copy minus {base}, paired", ("model", *map(metric_words, shown)), rows)


def made_table(models: pd.DataFrame) -> Table:
    """Show what every model is: how it was made, of what, and how many weights of how many bits it has."""
    rows = tuple(
        (
            Cell(row["name"]),
            Cell(MADE_BY[row["made_by"]][0]),
            Cell(row["source"]),
            Cell(row["steps"]),
            Cell(f"{row['num_models']:,.0f}"),
            Cell(f"{row['num_parameters']:,.0f}"),
            Cell(percent(row["sparsity"]) if math.isfinite(row["sparsity"]) else ""),
            Cell(f"{row['bits']:.3g}" if math.isfinite(row["bits"]) else ""),
        )
        for row in records(models)
    )
    columns = ("model", "made", "from", "steps", "models", "parameters", "sparsity", "bits a weight")
    return Table("What every model is", columns, rows, num_text=4)


def layers_table(layers: pd.DataFrame) -> Table:
    """Show the sparsity and bits of every layer, the mean over a model's constituents with their range."""
    rows = tuple(
        (
            Cell(str(name)),
            Cell(str(layer)),
            Cell(f"{mine['constituent'].nunique():,}"),
            _mean(mine["sparsity"], percent),
            _mean(mine["bits"], "{:.3g}".format),
        )
        for (name, layer), mine in layers.groupby(["name", "layer"], sort=False)
    )
    return Table("Every layer", ("model", "layer", "constituents", "sparsity", "bits a weight"), rows, num_text=2)


def _mean(values: pd.Series, written: Callable[[float], str]) -> Cell:
    low, mean, high = (float(value) for value in (values.min(), values.mean(), values.max()))
    if not math.isfinite(mean):
        return Cell("")
    ends = (written(low), written(high))
    return Cell(written(mean), f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else "")


def _interval(row: Row) -> Cell:
    bounds = f"[{number(row['low'])}, {number(row['high'])}]"
    return Cell(number(row["value"]), bounds if math.isfinite(row["low"]) else "")


def _change(row: Row) -> Cell:
    if not math.isfinite(row["value"]):
        return Cell(UNDEFINED)
    told = {-1: "lower", 0: "not told apart", 1: "higher"}[told_apart(row)]
    return Cell(signed(row["value"]), f"[{signed(row['low'])}, {signed(row['high'])}] {told}")


def _size(base: Row, row: Row, name: str) -> Cell:
    if not math.isfinite(row[name]):
        return Cell("")
    return Cell(size_words(row[name]), "" if row is base else times_smaller(base, row, name))


def _latency(row: Row) -> Cell:
    if not math.isfinite(row["latency_ms"]):
        return Cell("")
    low, high = (milliseconds(row[name]) for name in LATENCY[1:])
    return Cell(f"{milliseconds(row['latency_ms'])} ms", f"[{low}, {high}]")


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, its caption above."""
    rules = ["---" if place < table.num_text else "---:" for place in range(len(table.columns))]
    rows = [[f"{markdown_text(cell.text)} {markdown_text(cell.detail)}".strip() for cell in row] for row in table.rows]
    lines = [[markdown_text(name) for name in table.columns], rules, *rows]
    return "\n".join([f"**{markdown_text(table.caption)}**\n", *(f"| {' | '.join(line)} |" for line in lines)])
