"""Plots of fair post-processing, as matplotlib figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fairsisa.errors import DataError
from fairsisa.fairness.rates import EVERYONE
from fairsisa.report.rows import Row, by_key, records
from fairsisa.report.style import (
    BLUE,
    DASHED,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    figure_of,
    label_rows,
    new_panels,
    plain,
    series_colours,
    styled,
)
from fairsisa.report.words import METRIC_NAMES

BEFORE, AFTER = "before", "after"
ALL_EXAMPLES = "all examples"
MOST_REGIONS = 15
MOST_METRICS = 6
REGION_COLUMNS = 4
RATE_COLUMNS = 3
MOST_VERTICES = 400
PAIR_HEIGHT = 0.4
SHIFT = {BEFORE: -0.16, AFTER: 0.16}
STEPS = 201
FIT, TEST = "fit", "test"
STRATEGY_COLUMNS = 4
PALE = 0.25
FEW_MARKS = 12
STRATEGIES = {
    "aggregate_first": ("majority vote, then post-processed", BLUE, "o"),
    "aggregate_first_score": ("mean score, then post-processed", SKY, "s"),
    "members_majority": ("constituents post-processed, majority", VERMILION, "^"),
    "members_random": ("constituents post-processed, one drawn", ORANGE, "v"),
    "ensemble_pattern": ("pattern of votes", PURPLE, "D"),
    "ensemble_vote_count": ("count of votes", GREEN, "o"),
    "ensemble_pooled": ("pattern of votes, rare ones pooled", PURPLE, "^"),
    "score_threshold": ("thresholds on the mean score", INK, "s"),
    "group_blind": ("rule blind to the group", MUTED, "D"),
    "auto": ("choice of cross-validation", BLUE, "v"),
    "unprocessed": ("thresholds without a criterion", INK, "o"),
}
OTHER_MARKERS = "o^sDv"
BASELINE_MARKERS = "*XPpdh<>"


@dataclass(frozen=True, eq=False)
class AttainableRegion:
    """What one group's derived predictors can attain, and where its decisions stand.

    Points are (false positive rate, true positive rate) on the fit data, each rate between 0 and 1. `upper` and
    `lower` bound the region from above and below, shape (m, 2), from (0, 0) on, no rate ever falling. `before` and
    `after` are single points, shape (2,). `mixed` holds the points between which the new decisions are drawn, shape
    (k, 2); there may be none.

    Raises:
        DataError: naming the group and what is wrong with which points.
    """

    group: str
    upper: np.ndarray
    lower: np.ndarray
    before: np.ndarray
    after: np.ndarray
    mixed: np.ndarray

    def __post_init__(self) -> None:
        for name in ("upper", "lower", "mixed", BEFORE, AFTER):
            found = np.asarray(getattr(self, name), dtype=np.float64)
            dimensions = 1 if name in SHIFT else 2
            if found.ndim != dimensions or found.shape[-1] != 2 or not ((found >= -1e-9) & (found <= 1 + 1e-9)).all():
                shape = "(2,)" if name in SHIFT else "(m, 2)"
                raise DataError(
                    f"Expected {name!r} of group {self.group!r} to hold rates between 0 and 1, shape {shape}; got "
                    f"shape {found.shape}."
                )
            chain = name in ("upper", "lower")
            if chain and (len(found) < 2 or not np.allclose(found[0], 0.0) or (np.diff(found, axis=0) < -1e-9).any()):
                raise DataError(f"Expected {name!r} of group {self.group!r} to lead from (0, 0) on, no rate falling.")


def metric_label(metric: str) -> str:
    """Return a metric's name as people read it; one that is not known, with spaces for underscores."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def group_label(group: str) -> str:
    """Return a group's name, or that all examples are meant."""
    return ALL_EXAMPLES if group == EVERYONE else group


def shared_region(regions: Sequence[AttainableRegion]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what all groups can attain: false positive rates, and the lowest and highest true positive rate there.

    Regions are convex, so the shared one lies between the highest of the lower and the lowest of the upper chains.
    Chains are read at their vertices and at even steps between.
    """
    steps = [np.linspace(0.0, 1.0, STEPS), *(_thinned(region.upper)[:, 0] for region in regions)]
    x = np.unique(np.concatenate(steps).clip(0.0, 1.0))
    low = np.max([_height(region.lower, x, upper=False) for region in regions], axis=0)
    high = np.min([_height(region.upper, x, upper=True) for region in regions], axis=0)
    return x, np.minimum(low, high), high


def attainable_regions(regions: Sequence[AttainableRegion]) -> Figure:
    """Draw what the groups can attain together, then each by itself, with the points before and after.

    The first panel shades what all groups share; the others have one group each, in the colour it has in the first.
    At most `MOST_REGIONS` groups are drawn.
    """
    shown = regions[:MOST_REGIONS]
    columns = min(REGION_COLUMNS, len(shown) + 1)
    rows = -(-(len(shown) + 1) // columns)
    width = WIDTH * columns / REGION_COLUMNS
    panels = new_panels(columns, max(width, 4.8), (max(width, 4.8) / columns + 0.25) * rows + 0.3, rows=rows)
    colours = series_colours(len(shown))
    for ax in panels[len(shown) + 1 :]:
        ax.set_axis_off()
    with styled():
        _shared_panel(panels[0], shown, colours)
        for ax, region, colour in zip(panels[1:], shown, colours, strict=False):
            _region_panel(ax, region, colour)
        for place, ax in enumerate(panels[: len(shown) + 1]):
            _rate_square(ax, left=place % columns == 0, bottom=place + columns > len(shown))
        _region_legend(figure_of(panels[0]))
    return figure_of(panels[0])


def rates_before_after(by_group: pd.DataFrame) -> Figure:
    """Draw each group's rates before and after with their intervals, a panel a metric and a row a group.

    `by_group` has the columns predictor ("before" or "after"), group, num_examples, metric, value, low, high. At most
    `MOST_METRICS` metrics are drawn.
    """
    found = by_key(by_group, ("predictor", "group", "metric"))
    metrics = list(dict.fromkeys(by_group["metric"]))[:MOST_METRICS]
    sizes = {key[1]: row["num_examples"] for key, row in found.items()}
    columns = 2 if len(metrics) == 4 else min(RATE_COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    height = (1.0 + PAIR_HEIGHT * len(sizes)) * rows + 0.3
    panels = new_panels(columns, WIDTH if columns > 1 else 5.5, height, rows=rows, share_y=True)
    for ax in panels[len(metrics) :]:
        ax.set_axis_off()
    with styled():
        for ax, metric in zip(panels, metrics, strict=False):
            for place, group in enumerate(sizes):
                _dumbbell(ax, place, {name: found.get((name, group, metric)) for name in SHIFT})
            label_rows(ax, [f"{_cut(group_label(group), 28)} (n = {size:,})" for group, size in sizes.items()])
            ax.set_title(plain(metric_label(metric)))
        _pair_legend(figure_of(panels[0]))
    return figure_of(panels[0])


def _thinned(points: np.ndarray) -> np.ndarray:
    """Return at most `MOST_VERTICES` of a chain's points, first and last among them; the eye sees no difference."""
    chain = np.asarray(points, dtype=np.float64)
    if len(chain) <= MOST_VERTICES:
        return chain
    places = np.linspace(0, len(chain) - 1, MOST_VERTICES).round().astype(int)
    return np.asarray(chain[places])


def _height(points: np.ndarray, x: np.ndarray, *, upper: bool) -> np.ndarray:
    """Return a chain's true positive rate at given false positive rates: at a vertical piece its outer end."""
    chain = _thinned(points)
    first, last = np.unique(chain[:, 0], return_index=True)[1], len(chain) - 1
    outer = np.append(first[1:] - 1, last) if upper else first
    return np.asarray(np.interp(x, chain[outer, 0], chain[outer, 1]))


def _shared_panel(ax: Axes, regions: Sequence[AttainableRegion], colours: Sequence[str]) -> None:
    x, low, high = shared_region(regions)
    ax.fill_between(x, low, high, color=MUTED, alpha=0.28, linewidth=0)
    for region, colour in zip(regions, colours, strict=True):
        ax.plot(*_thinned(region.upper).T, color=colour, linewidth=1.1, zorder=2)
        _places(ax, region, colour, size=4.5)
    ax.set_title("all groups")


def _region_panel(ax: Axes, region: AttainableRegion, colour: str) -> None:
    upper, lower = _thinned(region.upper), _thinned(region.lower)
    ax.fill(*np.concatenate([upper, lower[::-1]]).T, color=colour, alpha=0.16, linewidth=0, zorder=1)
    ax.plot(*upper.T, color=colour, linewidth=1.3, zorder=2)
    mixed = np.asarray(region.mixed, dtype=np.float64).reshape(-1, 2)
    ax.plot(*mixed.T, color=INK, linewidth=0.8, zorder=3)
    ax.plot(*mixed.T, "s", color=INK, markersize=3.6, zorder=4)
    _places(ax, region, colour, size=6.5)
    ax.set_title(plain(_cut(region.group, 20)))


def _places(ax: Axes, region: AttainableRegion, colour: str, *, size: float) -> None:
    """Mark where a group was and where it is now: hollow, then filled."""
    ax.plot(*region.before, "o", markersize=size, markerfacecolor="none", markeredgecolor=colour, zorder=5)
    ax.plot(*region.after, "o", markersize=size, color=colour, markeredgecolor=INK, markeredgewidth=0.9, zorder=6)


def _rate_square(ax: Axes, *, left: bool, bottom: bool) -> None:
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1.5)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    ticks = ([0, 0.5, 1], ["0", ".5", "1"])
    ax.set_xticks(*ticks)
    ax.set_yticks(*ticks)
    if left:
        ax.set_ylabel("true positive rate")
    if bottom:
        ax.set_xlabel("false positive rate")


def _region_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", markeredgecolor=INK, markersize=6),
        Line2D([], [], linestyle="none", marker="o", color=INK, markersize=6),
        Line2D([], [], linewidth=0.8, marker="s", color=INK, markersize=3.6),
        Patch(facecolor=MUTED, alpha=0.28),
    ]
    names = ["before", "after", "mixed to reach it", "attainable for all groups"]
    figure.legend(handles, names, loc="outside upper left", ncols=4, handlelength=1.4, columnspacing=1.4)


def _dumbbell(ax: Axes, place: float, pair: dict[str, Row | None]) -> None:
    """Draw one group's value before, hollow, and after, filled, each on its interval, and a line between them."""
    marks = {name: row for name, row in pair.items() if row is not None and not math.isnan(row["value"])}
    for name, row in marks.items():
        colour, filled = (BLUE, BLUE) if name == AFTER else (MUTED, "none")
        ax.hlines(place + SHIFT[name], row["low"], row["high"], color=colour, linewidth=2.0, alpha=0.4, zorder=2)
        ax.plot(
            [row["value"]], [place + SHIFT[name]], "o", color=colour, markerfacecolor=filled, markersize=5, zorder=3
        )
    if len(marks) == len(SHIFT):
        x, y = [row["value"] for row in marks.values()], [place + SHIFT[name] for name in marks]
        ax.plot(x, y, color=MUTED, linewidth=0.8, alpha=0.6, zorder=1)


def _pair_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], marker="o", color=MUTED, markerfacecolor="none", markersize=5),
        Line2D([], [], marker="o", color=BLUE, markersize=5),
    ]
    figure.legend(handles, [BEFORE, AFTER], loc="outside upper left", ncols=2)


def _cut(text: str, most: int) -> str:
    """Return text cut to so many letters in its middle: combinations of values differ most at their ends."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - 1 - end].rstrip()}…{text[-end:].lstrip()}"


def strategy_label(strategy: str) -> str:
    """Return what a strategy does, in words; one that is not known, with spaces for underscores."""
    return STRATEGIES[strategy][0] if strategy in STRATEGIES else strategy.replace("_", " ")


def frontier_panels(sweep: pd.DataFrame, baselines: pd.DataFrame, *, metric: str) -> Figure:
    """Draw accuracy against difference, a line a strategy over its tolerances: held-out, then on the fit data.

    Both tables have the columns of `fairness.strategies.frontier.sweep`; `metric` names the difference. The large mark
    of a line is its strictest tolerance. Baselines are single marks. Both panels have the same scales, so that what
    was believed can be held against what came out.
    """
    panels = new_panels(2, WIDTH, 4.9, share_y=True)
    for ax, split in zip(panels, (TEST, FIT), strict=True):
        mine, single = (table[table["split"] == split] for table in (sweep, baselines))
        held_out = split == TEST
        with styled():
            for strategy, line in strategy_lines(sweep).items():
                rows = mine[mine["strategy"] == strategy]
                _frontier_line(ax, rows, line, dashed=not held_out, bars=int(held_out))
            _baseline_marks(ax, single, list(dict.fromkeys(baselines["strategy"])))
            ax.set_title("held-out examples" if held_out else "fit data: what was believed")
            ax.set_xlabel(metric)
    with styled():
        _frontier_limits(panels, pd.concat([sweep, baselines], ignore_index=True))
        panels[0].set_ylabel("accuracy")
        _frontier_legend(panels[0], sweep, baselines)
    return figure_of(panels[0])


def strategy_panels(sweep: pd.DataFrame, baselines: pd.DataFrame, *, metric: str) -> Figure:
    """Draw each strategy in a panel of its own: held-out with intervals, dashed on the fit data, the others pale."""
    lines = strategy_lines(sweep)
    columns = min(STRATEGY_COLUMNS, len(lines))
    rows = -(-len(lines) // columns)
    panels = new_panels(columns, max(4.8, WIDTH * columns / STRATEGY_COLUMNS), 2.5 * rows, rows=rows, share_y=True)
    for ax in panels[len(lines) :]:
        ax.set_axis_off()
    held_out, fitted = sweep[sweep["split"] == TEST], sweep[sweep["split"] == FIT]
    with styled():
        for place, (ax, (strategy, line)) in enumerate(zip(panels, lines.items(), strict=False)):
            for other in lines:
                ax.plot(*_path(held_out[held_out["strategy"] == other]), color=FAINT, linewidth=1.1, zorder=1)
            _frontier_line(ax, fitted[fitted["strategy"] == strategy], line, dashed=True, bars=0)
            _frontier_line(ax, held_out[held_out["strategy"] == strategy], line, dashed=False, bars=len(held_out))
            single = baselines[baselines["split"] == TEST]
            _baseline_marks(ax, single, list(dict.fromkeys(baselines["strategy"])))
            ax.set_title(_wrapped(strategy_label(strategy)), fontsize=8.5)
            if place + columns >= len(lines):
                ax.set_xlabel(metric)
            if place % columns == 0:
                ax.set_ylabel("accuracy")
        _frontier_limits(panels[: len(lines)], pd.concat([sweep, baselines], ignore_index=True))
    return figure_of(panels[0])


def strategy_lines(sweep: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return the colour and the mark of every strategy of a sweep; the package's own have theirs on every page."""
    found = list(dict.fromkeys(sweep["strategy"]))
    known = {name: (colour, marker) for name, (_, colour, marker) in STRATEGIES.items()}
    others = [name for name in found if name not in known]
    spare = {
        name: (colour, OTHER_MARKERS[place % len(OTHER_MARKERS)])
        for place, (name, colour) in enumerate(zip(others, series_colours(len(others)), strict=True))
    }
    return {name: (known | spare)[name] for name in found}


def _path(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    ordered = rows.sort_values("tolerance")
    return ordered["difference"], ordered["accuracy"]


def _frontier_line(ax: Axes, rows: pd.DataFrame, line: tuple[str, str], *, dashed: bool, bars: int) -> None:
    """Draw one strategy's path over its tolerances; its `bars` strictest have pale intervals."""
    colour, marker = line
    x, y = _path(rows)
    _bars(ax, rows.nsmallest(bars, "tolerance"), colour)
    style, size = DASHED if dashed else "-", 3.4 if len(rows) <= FEW_MARKS else 2.0
    ax.plot(x, y, color=colour, linewidth=1.3, linestyle=style, marker=marker, markersize=size, zorder=3)
    face = "none" if dashed else colour
    ax.plot(x[:1], y[:1], marker, color=colour, markerfacecolor=face, markersize=7, zorder=4)


def _bars(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Draw each row's intervals as a pale cross."""
    ax.hlines(rows["accuracy"], rows["difference_low"], rows["difference_high"], color=colour, alpha=PALE, lw=1.4)
    ax.vlines(rows["difference"], rows["accuracy_low"], rows["accuracy_high"], color=colour, alpha=PALE, lw=1.4)


def _baseline_marks(ax: Axes, rows: pd.DataFrame, names: Sequence[str]) -> None:
    _bars(ax, rows, INK)
    for row in records(rows):
        marker = BASELINE_MARKERS[names.index(row["strategy"]) % len(BASELINE_MARKERS)]
        ax.plot([row["difference"]], [row["accuracy"]], marker, color=INK, markersize=8, markeredgewidth=0, zorder=5)


def _frontier_limits(panels: Sequence[Axes], rows: pd.DataFrame) -> None:
    """Give all panels one scale that holds every value and interval, differences from 0."""
    x = np.nanmax(rows[["difference", "difference_low", "difference_high"]].to_numpy(dtype=float))
    y = rows[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy(dtype=float)
    low, high = float(np.nanmin(y)), float(np.nanmax(y))
    room = 0.06 * max(high - low, 0.01)
    for ax in panels:
        ax.set_xlim(-0.03 * max(x, 0.01), 1.05 * max(x, 0.01))
        ax.set_ylim(low - room, high + room)


def _frontier_legend(ax: Axes, sweep: pd.DataFrame, baselines: pd.DataFrame) -> None:
    lines = strategy_lines(sweep)
    singles = list(dict.fromkeys(baselines["strategy"]))
    handles = [Line2D([], [], color=colour, marker=marker, markersize=5) for colour, marker in lines.values()]
    markers = [BASELINE_MARKERS[place % len(BASELINE_MARKERS)] for place in range(len(singles))]
    handles += [Line2D([], [], linestyle="none", color=INK, marker=marker, markersize=8) for marker in markers]
    names = [plain(strategy_label(name)) for name in (*lines, *singles)]
    figure_of(ax).legend(handles, names, loc="outside upper left", ncols=3, columnspacing=1.6)


def _wrapped(text: str, most: int = 26) -> str:
    """Return a title in at most two lines that a narrow panel holds."""
    lines = textwrap.wrap(plain(text), most, max_lines=2, placeholder="…", break_on_hyphens=False)
    return "\n".join(lines)
