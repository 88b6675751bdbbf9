"""The page about one post-processor: what it promised, and what it did to held-out decisions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fairsisa.errors import DataError
from fairsisa.fairness.rates import EVERYONE
from fairsisa.report import fair_plots
from fairsisa.report.content import Fact
from fairsisa.report.fair_plots import AFTER, BEFORE, AttainableRegion, group_label, metric_label, strategy_label
from fairsisa.report.numbers import _plain
from fairsisa.report.pictures import Picture
from fairsisa.report.rows import Row, by_key, records
from fairsisa.report.svg import inline_svg
from fairsisa.report.tables import Cell, Table, settings_table
from fairsisa.report.words import count, listed, number, percent, points, signed
from fairsisa.report.writing import templates, write_whole

FORMAT = 1
CHANGE = "change"
INTERVAL = ("value", "low", "high")
ACHIEVED = ("criterion", "form", "tolerance", "value", "price")
OVERALL = ("predictor", "metric", *INTERVAL)
BY_GROUP = ("predictor", "group", "num_examples", "metric", *INTERVAL)
SHARE_NAMES = ("randomised", "overridden", "backed_off")
SHARES = ("group", "num_examples", *SHARE_NAMES)
SMALL_CELLS = ("group", "class", "num_examples")
CHOICES = ("strategy", "tolerance", "accuracy", "difference", "difference_high", "chosen")
GROUP_LOSS = "bounded_group_loss"
ACCURACY = "accuracy"
SHOWN = (BEFORE, AFTER, CHANGE)
Writer = Callable[[float], str]


@dataclass(frozen=True, eq=False)
class PostprocessingReport:
    """Everything the page about one post-processor tells.

    `achieved` (columns `ACHIEVED`) has a row a criterion: what it came to on the fit data, and its price, by how much
    the loss would fall per unit of more tolerance (NaN where the strategy has none). `loss` is the mean cost on the
    fit data at `costs`, those of a false positive and a false negative. `overall` (`OVERALL`) holds metrics on
    held-out examples of the predictors "before" and "after" and of any others; rows of a predictor "change" hold after
    minus before on the same bootstrap replicates. Among them are accuracy and, for each criterion, the metric that
    `criterion_metric` names. `by_group` (`BY_GROUP`) holds rates by group of "before" and "after", `shares` (`SHARES`,
    each share with optional columns `_low` and `_high`) the shares of held-out decisions by group; a group "" means
    all examples. `choices` (`CHOICES`) are what strategy "auto" weighed, `reason` its sentence. `regions` are for two
    classes only. Empty tables leave their section out.

    Raises:
        DataError: when a table lacks a column, or a metric of before or after is missing.
    """

    title: str
    strategy: str
    sensitive_features: tuple[str, ...]
    achieved: pd.DataFrame
    loss: float
    solver: str
    num_fit: int
    num_test: int
    overall: pd.DataFrame
    by_group: pd.DataFrame
    shares: pd.DataFrame
    small_cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    choices: pd.DataFrame = field(default_factory=pd.DataFrame)
    regions: tuple[AttainableRegion, ...] = ()
    reason: str = ""
    warnings: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    costs: tuple[float, float] = (1.0, 1.0)
    level: float = 0.95

    def __post_init__(self) -> None:
        needed = {"achieved": ACHIEVED, "overall": OVERALL, "by_group": BY_GROUP, "shares": SHARES}
        optional = {"small_cells": SMALL_CELLS, "choices": CHOICES}
        for name, columns in (needed | {key: optional[key] for key in optional if len(getattr(self, key))}).items():
            missing = [column for column in columns if column not in getattr(self, name).columns]
            if missing:
                expected, lacking = ", ".join(columns), ", ".join(missing)
                raise DataError(f"Expected columns {expected} in the {name} table; {lacking} not found.")
        if self.achieved.empty:
            raise DataError("Expected at least one criterion in the achieved table, got none.")
        found = by_key(self.overall, ("predictor", "metric"))
        for metric in (ACCURACY, *self.metrics):
            for predictor in (BEFORE, AFTER):
                if (predictor, metric) not in found:
                    raise DataError(f"Expected the metric {metric!r} of {predictor!r} in the overall table; not found.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metric of each criterion, in the order of `achieved`."""
        return tuple(criterion_metric(row["criterion"], row["form"]) for row in records(self.achieved))

    @property
    def groups_by(self) -> str:
        """The sensitive features in words; of several, groups are their combinations."""
        return " & ".join(self.sensitive_features)


def criterion_metric(criterion: str, form: str = "max") -> str:
    """Return the name of the metric that a criterion's tolerance bounds."""
    name = criterion if criterion == GROUP_LOSS else f"{criterion}_difference"
    return name + ("_mean" if form == "mean" else "")


def write_postprocessing(directory: Path, content: PostprocessingReport, stem: str) -> tuple[Path, Path]:
    """Write <stem>.html and <stem>.json into a directory; return their paths.

    The page stands alone: no script, no address outside it, plots as SVG within. Files of these names are replaced,
    each in one step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shown = {
        "content": content,
        "stem": stem,
        "findings": findings(content),
        "facts": [*_facts(content), *content.facts],
        "prices": prices(content),
        "pictures": _pictures(content),
        "tables": _tables(content),
    }
    numbers = json.dumps(postprocessing_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    page = templates().get_template("postprocessing.html.j2").render(shown)
    return write_whole(directory / f"{stem}.html", page), write_whole(directory / f"{stem}.json", numbers + "\n")


def postprocessing_json(content: PostprocessingReport) -> dict[str, Any]:
    """Return every number of the page as plain JSON values; `format` grows when a key changes its meaning or goes."""
    plain = ("title", "strategy", "solver", "reason", "loss", "num_fit", "num_test", "level", "costs", "warnings")
    tables = ("achieved", "overall", "by_group", "shares", "small_cells", "choices", "settings", "commands")
    return {
        "format": FORMAT,
        "findings": findings(content),
        "sensitive_features": list(content.sensitive_features),
        **{name: _plain(getattr(content, name)) for name in (*plain, *tables)},
        "prices": prices(content),
        "facts": [asdict(fact) for fact in content.facts],
        "regions": [_plain(asdict(region)) for region in content.regions],
    }


def findings(content: PostprocessingReport) -> list[str]:
    """Say in up to four sentences what was chosen, what it changed on held-out examples, and what to beware of.

    A change is told apart when the paired interval leaves out 0 or, without one, when the intervals before and after
    do not overlap.
    """
    goals = [f"{_criterion_words(row)} with tolerance {row['tolerance']:g}" for row in records(content.achieved)]
    reason = f" {content.reason}" if content.reason else ""
    rates = [_criterion_moved(content, row, metric) for row, metric in _criteria(content)]
    beware = _beware(content)
    return [
        f"Decisions by {strategy_label(content.strategy)} ({content.strategy}), fitted by {content.groups_by} to "
        f"{' and '.join(goals)}.{reason}",
        f"On {count(content.num_test, 'held-out example')}, {'; '.join(rates)}.",
        f"Accuracy {_moved(content, ACCURACY, percent, points, ' points')}. {_share_words(content)}",
        *([f"Beware: {beware}"] if beware else []),
    ]


def prices(content: PostprocessingReport) -> list[str]:
    """Say what a little more tolerance would buy on the fit data, a sentence a criterion that has a price."""
    unit = content.costs == (1.0, 1.0)
    return [
        f"One point (0.01) more tolerance of {_criterion_words(row)} would buy "
        + (f"{row['price']:.2f} points of accuracy" if unit else f"{0.01 * row['price']:.4f} of mean cost")
        + " on the calibration rows."
        for row in records(content.achieved)
        if math.isfinite(row["price"])
    ]


def _criterion_words(row: Row) -> str:
    return str(row["criterion"]).replace("_", " ") + (" (mean form)" if row["form"] == "mean" else "")


def _criteria(content: PostprocessingReport) -> Iterator[tuple[Row, str]]:
    yield from zip(records(content.achieved), content.metrics, strict=True)


def _pair(content: PostprocessingReport, metric: str) -> tuple[Row, Row, Row]:
    """Return a metric before, after, and after minus before; without paired rows the change has no interval."""
    found = by_key(content.overall, ("predictor", "metric"))
    before, after = found[BEFORE, metric], found[AFTER, metric]
    unpaired = {"value": after["value"] - before["value"], "low": math.nan, "high": math.nan}
    return before, after, found.get((CHANGE, metric), unpaired)


def _moved(content: PostprocessingReport, metric: str, written: Writer, difference: Writer, unit: str = "") -> str:
    """Say where a metric went, if that is told apart, and by how much."""
    before, after, change = _pair(content, metric)
    paired = math.isfinite(change["low"])
    fell = change["high"] < 0 if paired else after["high"] < before["low"]
    rose = change["low"] > 0 if paired else after["low"] > before["high"]
    values = written(before["value"]), written(after["value"])
    if fell or rose:
        told = "{} from {} to {}".format("fell" if fell else "rose", *values)
    else:
        told = "is not told apart from before: {} before, {} after".format(*values)
    interval = f", {difference(change['low'])} to {difference(change['high'])}" if paired else ""
    return told + (f" (change {difference(change['value'])}{unit}{interval})" if math.isfinite(change["value"]) else "")


def _criterion_moved(content: PostprocessingReport, goal: Row, metric: str) -> str:
    name, after = metric_label(metric), _pair(content, metric)[1]
    missed = f", above the tolerance of {goal['tolerance']:g}" if after["low"] > goal["tolerance"] else ""
    moved = _moved(content, metric, number, signed)
    return f"the {name[0].lower()}{name[1:]} {moved}{missed}; {number(goal['value'])} was promised on the fit data"


def _share_words(content: PostprocessingReport) -> str:
    randomised, overridden, backed_off = (overall_share(content.shares, name) for name in SHARE_NAMES)
    rest = f"; {percent(backed_off)} met a state that the fit data lack" if backed_off > 0 else ""
    return f"{percent(randomised)} of decisions are left to chance, {percent(overridden)} are overridden{rest}."


def overall_share(shares: pd.DataFrame, name: str) -> float:
    """Return a share over all examples: the row of group "", or else the groups' mean by size; NaN without rows."""
    whole = shares[shares["group"] == EVERYONE]
    rows = whole if len(whole) else shares
    sizes = rows["num_examples"].to_numpy(dtype=np.float64)
    if sizes.sum() == 0:
        return math.nan
    return float(np.average(rows[name].to_numpy(dtype=np.float64), weights=sizes))


def _beware(content: PostprocessingReport) -> str:
    """Return the first of what a reader must mind: warnings, small cells, a promise that held-out data break."""
    if content.warnings:
        rest = len(content.warnings) - 1
        return content.warnings[0] + (f" ({count(rest, 'more warning')} on the page.)" if rest else "")
    small = [f"{row['group']} with label {row['class']}" for row in records(content.small_cells)]
    if small:
        return f"rates rest on few examples in {count(len(small), 'cell')} ({listed(small, most=3)})."
    highest = [(row, _pair(content, metric)[1]["high"]) for row, metric in _criteria(content)]
    loose = [f"{number(high)} for {_criterion_words(row)}" for row, high in highest if high > row["tolerance"]]
    return f"the intervals reach beyond the tolerance, up to {' and '.join(loose)}." if loose else ""


def _facts(content: PostprocessingReport) -> list[Fact]:
    names = "cost of a false positive {:g}, of a false negative {:g}".format(*content.costs)
    return [
        Fact("Strategy", content.strategy, strategy_label(content.strategy)),
        Fact("Fitted on", count(content.num_fit, "example"), f"groups by {content.groups_by}"),
        Fact("Loss on the fit data", number(content.loss), names),
        Fact("Solver", content.solver),
    ]


def _pictures(content: PostprocessingReport) -> dict[str, Picture]:
    return {
        name: Picture(inline_svg(figure, name=name, description=caption), caption)
        for name, figure, caption in _figures(content)
    }


def _figures(content: PostprocessingReport) -> Iterator[tuple[str, Figure, str]]:
    if len(content.by_group):
        left_out = content.by_group["metric"].nunique() - fair_plots.MOST_METRICS
        more = f" {count(left_out, 'more rate')} in the table below." if left_out > 0 else ""
        yield (
            "rates",
            fair_plots.rates_before_after(content.by_group),
            f"Rates on held-out examples in each group, before (hollow) and after (filled), with {content.level:.0%} "
            "intervals. A criterion asks rates to agree over groups; it does not ask them to be good: a group may be "
            f"brought level by deciding worse about it. Where intervals are wide, agreement proves little.{more}",
        )
    if content.regions:
        left_out = len(content.regions) - fair_plots.MOST_REGIONS
        more = (
            f" The first {fair_plots.MOST_REGIONS} of {len(content.regions):,} groups are drawn."
            if left_out > 0
            else ""
        )
        yield (
            "regions",
            fair_plots.attainable_regions(content.regions),
            "What each group's decisions can attain, and where they stand before (hollow) and after (filled); squares "
            "are the rules that chance mixes, the first panel shades what all groups can attain at once. The group "
            "whose region ends lowest sets the price for all. All this is the fit data: regions of many states and "
            f"small groups promise more than new data keep.{more}",
        )


def _tables(content: PostprocessingReport) -> dict[str, Table]:
    found = {
        "overall": overall_table(content),
        "by_group": by_group_table(content.by_group),
        "shares": shares_table(content.shares),
        "small_cells": small_cells_table(content.small_cells),
        "choices": choices_table(content.choices),
        "settings": settings_table("Settings", content.settings),
    }
    return {name: table for name, table in found.items() if table.rows}


def overall_table(content: PostprocessingReport) -> Table:
    """Show what was promised on the fit data beside what every predictor does on held-out examples."""
    promised = {metric: row for row, metric in _criteria(content)}
    found = by_key(content.overall, ("predictor", "metric"))
    names = dict.fromkeys(content.overall["predictor"])
    columns = [*(name for name in SHOWN if name in names), *(name for name in names if name not in SHOWN)]
    rows = tuple(
        (
            Cell(metric_label(metric)),
            _promise(promised.get(metric)),
            *(_interval(found.get((name, metric)), plus=name == CHANGE) for name in columns),
        )
        for metric in dict.fromkeys([*promised, ACCURACY, *content.overall["metric"]])
    )
    return Table("Before and after, on held-out examples", ("metric", "promised on the fit data", *columns), rows)


def by_group_table(by_group: pd.DataFrame) -> Table:
    """Show every group's size and rates, before and after."""
    found = by_key(by_group, ("group", "predictor", "metric"))
    metrics = list(dict.fromkeys(by_group["metric"])) if len(by_group) else []
    sizes = {key[:2]: row["num_examples"] for key, row in found.items()}
    groups = dict.fromkeys(group for group, _ in sizes)
    rows = tuple(
        (
            Cell(group_label(group)),
            Cell(name),
            Cell(f"{sizes[group, name]:,}"),
            *(_interval(found.get((group, name, metric))) for metric in metrics),
        )
        for group in groups
        for name in (BEFORE, AFTER)
        if (group, name) in sizes
    )
    columns = ("group", "decisions", "examples", *(metric_label(metric) for metric in metrics))
    return Table("Rates in every group, before and after", columns, rows, num_text=2)


def shares_table(shares: pd.DataFrame) -> Table:
    """Show, group by group, what share of decisions is left to chance, overridden, or made without a fitted state."""
    rows = tuple(
        (Cell(group_label(row["group"])), Cell(f"{row['num_examples']:,}"), *(_share(row, n) for n in SHARE_NAMES))
        for row in records(shares)
    )
    columns = ("group", "examples", "left to chance", "overridden", "state backed off")
    return Table("Shares of held-out decisions", columns, rows)


def small_cells_table(small_cells: pd.DataFrame) -> Table:
    """Show the cells (group and label) of the fit data with too few examples to trust a rate."""
    rows = tuple(
        (Cell(group_label(row["group"])), Cell(str(row["class"])), Cell(f"{row['num_examples']:,}"))
        for row in records(small_cells)
    )
    return Table("Cells of the fit data with few examples", ("group", "label", "examples"), rows, num_text=2)


def choices_table(choices: pd.DataFrame) -> Table:
    """Show what the strategy "auto" weighed, as cross-validation on the fit data saw it."""
    rows = tuple(
        (
            Cell(strategy_label(row["strategy"]), row["strategy"]),
            Cell("chosen" if row["chosen"] else ""),
            Cell(f"{row['tolerance']:g}"),
            Cell(number(row["accuracy"])),
            Cell(number(row["difference"]), f"at most {number(row['difference_high'])}"),
        )
        for row in records(choices)
    )
    columns = ("strategy", "", "tolerance", "accuracy", "difference")
    return Table("What was weighed, cross-fitted on the fit data", columns, rows, num_text=2)


def _promise(row: Row | None) -> Cell:
    return Cell("") if row is None else Cell(number(row["value"]), f"tolerance {row['tolerance']:g}")


def _share(row: Row, name: str) -> Cell:
    bounds = [row.get(f"{name}_{end}", math.nan) for end in ("low", "high")]
    detail = f"[{percent(bounds[0])}, {percent(bounds[1])}]" if all(math.isfinite(end) for end in bounds) else ""
    return Cell(percent(row[name]), detail)


def _interval(row: Row | None, *, plus: bool = False) -> Cell:
    if row is None:
        return Cell("")
    value = signed(row["value"]) if plus and math.isfinite(row["value"]) else number(row["value"])
    bounds = f"[{number(row['low'])}, {number(row['high'])}]" if math.isfinite(row["low"]) else ""
    return Cell(value, bounds)
