"""The page about a sweep of tolerances: what each strategy pays in accuracy for how much fairness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fairsisa.errors import DataError
from fairsisa.report.content import Fact
from fairsisa.report.fair_plots import (
    FIT,
    TEST,
    frontier_panels,
    metric_label,
    strategy_label,
    strategy_panels,
)
from fairsisa.report.pictures import Picture
from fairsisa.report.postprocessing import criterion_metric
from fairsisa.report.rows import Row, by_key, records
from fairsisa.report.svg import inline_svg
from fairsisa.report.tables import Cell, Table, settings_table
from fairsisa.report.words import count, number, percent
from fairsisa.report.writing import templates, write_whole

SWEEP = (
    "strategy",
    "tolerance",
    "split",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "difference",
    "difference_low",
    "difference_high",
    "randomised",
    "overridden",
    "backed_off",
)

SPLITS = (FIT, TEST)
UNPROCESSED = "unprocessed"
MOST_TOLERANCES = 4


@dataclass(frozen=True, eq=False)
class FrontierReport:
    """Everything the page about a sweep of tolerances tells.

    `sweep` (columns `SWEEP`, as `fairness.strategies.frontier.sweep` returns it) has a row a strategy, tolerance and
    split, "fit" or "test"; bounds may be NaN on the fit data. `baselines` has the same columns, a row a predictor and
    split that no tolerance changes, its name under `strategy`; strategy "unprocessed" of the sweep joins them.
    `criterion` and `form` are those whose difference was measured.

    Raises:
        DataError: when a table lacks a column, a split is neither of the two, or no held-out row exists.
    """

    title: str
    sweep: pd.DataFrame
    criterion: str
    sensitive_features: tuple[str, ...]
    num_fit: int
    num_test: int
    baselines: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(SWEEP)))
    form: str = "max"
    level: float = 0.95
    facts: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("sweep", "baselines"):
            table = getattr(self, name)
            missing = [column for column in SWEEP if column not in table.columns]
            if missing:
                raise DataError(f"Expected columns {', '.join(SWEEP)} in the {name}; {', '.join(missing)} not found.")
            wrong = sorted(set(table["split"]) - set(SPLITS))
            if wrong:
                raise DataError(f"Expected a split of {' or '.join(SPLITS)} in the {name}, got {wrong[0]!r}.")
        if not (self.lines["split"] == TEST).any():
            raise DataError("Expected a strategy at one tolerance at least, measured on held-out rows; got none.")

    @property
    def lines(self) -> pd.DataFrame:
        """The rows of strategies that a tolerance changes."""
        return self.sweep[self.sweep["strategy"] != UNPROCESSED]

    @property
    def singles(self) -> pd.DataFrame:
        """The rows of the baselines, one a name and split."""
        same = self.sweep[self.sweep["strategy"] == UNPROCESSED]
        tables = [table for table in (self.baselines, same) if len(table)]
        joined = pd.concat(tables, ignore_index=True) if tables else self.baselines
        return joined.drop_duplicates(["strategy", "split"]).assign(tolerance=np.nan)

    @property
    def tolerances(self) -> list[float]:
        """The tolerances of held-out rows, ascending."""
        held_out = self.lines["split"] == TEST
        return sorted(float(value) for value in self.lines.loc[held_out, "tolerance"].unique())

    @property
    def metric(self) -> str:
        """The name of the difference in words."""
        label = metric_label(criterion_metric(self.criterion, self.form))
        return label[0].lower() + label[1:]

    @property
    def groups_by(self) -> str:
        """The sensitive features in words; of several, groups are their combinations."""
        return " & ".join(self.sensitive_features)


def write_frontier(directory: Path, content: FrontierReport) -> tuple[Path, Path]:
    """Write frontier.html and frontier.csv into a directory; return their paths.

    The page stands alone: no script, no address outside it, plots as SVG within. The CSV holds the sweep, then the
    baselines, without a tolerance. Files of these names are replaced, each in one step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shown = {
        "content": content,
        "findings": findings(content),
        "pictures": _pictures(content),
        "tables": _tables(content),
    }
    rows = pd.DataFrame(records(content.lines) + records(content.singles), columns=list(SWEEP))
    page = templates().get_template("frontier.html.j2").render(shown)
    return (
        write_whole(directory / "frontier.html", page),
        write_whole(directory / "frontier.csv", rows.to_csv(index=False, lineterminator="\n")),
    )


def findings(content: FrontierReport) -> list[str]:
    """Say in up to four sentences who is fairest, who is most accurate, who keeps a promise, and who does not.

    The intervals are each row's own, not paired: two numbers are told apart only when their intervals do not overlap,
    which is stricter than a test of the difference.
    """
    strictest = content.tolerances[0]
    rows = records(_at(content.lines, strictest, TEST).dropna(subset=["difference", "accuracy"]))
    told = [*_fairest(content, rows, strictest), *_most_accurate(rows)] if rows else []
    return [*told, *_kept(content), *_broken(content)]


def _fairest(content: FrontierReport, rows: list[Row], tolerance: float) -> Iterator[str]:
    best = min(rows, key=lambda row: row["difference"])
    singles = content.singles[content.singles["split"] == TEST]
    against = [
        f"{'' if _apart(best, row, 'difference') else 'not '}told apart from {strategy_label(row['strategy'])} "
        f"({_bounded(row, 'difference')}, accuracy {percent(row['accuracy'])})"
        for row in records(singles.head(1))
    ]
    yield (
        f"At the strictest tolerance, {tolerance:g}, the lowest {content.metric} on held-out examples is that of "
        f"{strategy_label(best['strategy'])}: {_bounded(best, 'difference')}, accuracy {percent(best['accuracy'])}"
        f"{', ' + against[0] if against else ''}."
    )


def _most_accurate(rows: list[Row]) -> Iterator[str]:
    best = max(rows, key=lambda row: row["accuracy"])
    close = [row for row in rows if row is not best and not _apart(best, row, "accuracy")]
    if len(rows) > 1:
        others = f"{len(close):,} of {count(len(rows) - 1, 'other')} {'is' if len(close) == 1 else 'are'}"
        yield (
            f"At that tolerance {strategy_label(best['strategy'])} decides most accurately "
            f"({percent(best['accuracy'])}); {others} not told apart from it."
        )


def _kept(content: FrontierReport) -> Iterator[str]:
    """Say which is the smallest tolerance that held-out data keep, whole interval included."""
    held_out = content.lines[content.lines["split"] == TEST]
    kept = held_out[held_out["difference_high"] <= held_out["tolerance"]].sort_values("tolerance", kind="stable")
    if kept.empty:
        yield "No strategy's held-out interval lies within its tolerance, at any tolerance swept."
        return
    first = kept.iloc[0]
    names = [strategy_label(name) for name in kept[kept["tolerance"] == first["tolerance"]]["strategy"]]
    yield (
        f"The smallest tolerance that a held-out interval keeps entirely is {first['tolerance']:g}, by "
        f"{'; '.join(names)}."
    )


def _broken(content: FrontierReport) -> Iterator[str]:
    """Name the row whose held-out difference exceeds most what the fit data promised, if that is told apart."""
    fitted = by_key(content.lines[content.lines["split"] == FIT], ("strategy", "tolerance"))
    pairs = [
        (row, fitted[row["strategy"], row["tolerance"]])
        for row in records(content.lines[content.lines["split"] == TEST])
        if (row["strategy"], row["tolerance"]) in fitted
    ]
    broken = [(row, own) for row, own in pairs if row["difference_low"] > own["difference"]]
    if broken:
        row, own = max(broken, key=lambda pair: pair[0]["difference"] - pair[1]["difference"])
        yield (
            f"The fit data promise most too much for {strategy_label(row['strategy'])} at tolerance "
            f"{row['tolerance']:g}: {number(own['difference'])} there, {_bounded(row, 'difference')} on held-out "
            "examples."
        )


def _apart(one: Row, other: Row, name: str) -> bool:
    low, high = f"{name}_low", f"{name}_high"
    return bool(one[high] < other[low] or other[high] < one[low])


def _bounded(row: Row, name: str) -> str:
    return f"{number(row[name])} [{number(row[f'{name}_low'])}, {number(row[f'{name}_high'])}]"


def _at(table: pd.DataFrame, tolerance: float, split: str) -> pd.DataFrame:
    return table[table["tolerance"].eq(tolerance) & table["split"].eq(split)]


def _pictures(content: FrontierReport) -> dict[str, Picture]:
    return {
        name: Picture(inline_svg(figure, name=name, description=caption), caption)
        for name, figure, caption in _figures(content)
    }


def _figures(content: FrontierReport) -> Iterator[tuple[str, Figure, str]]:
    yield (
        "frontier",
        frontier_panels(content.lines, content.singles, metric=content.metric),
        "Accuracy against difference, a line a strategy over its tolerances; the large mark is the strictest. Up and "
        f"left is better. Left: {count(content.num_test, 'held-out example')}, with {content.level:.0%} intervals of "
        "the strictest tolerance and the baselines. Right: the fit data, on the same scales; what a line loses from "
        "right to left is the price of believing it. Points within each other's intervals are not in an order that "
        "new data need keep.",
    )
    yield (
        "strategies",
        strategy_panels(content.lines, content.singles, metric=content.metric),
        f"One strategy a panel: held-out (full line, {content.level:.0%} intervals) and on the fit data (dashed, "
        "hollow). Pale lines are the other strategies on held-out examples, black marks the baselines.",
    )


def _tables(content: FrontierReport) -> dict[str, Table]:
    shown = content.tolerances
    if len(shown) > MOST_TOLERANCES:
        places = np.linspace(0, len(shown) - 1, MOST_TOLERANCES).round().astype(int)
        shown = [content.tolerances[place] for place in places]
    found = {
        "equal": sweep_table(content, shown, "Every strategy at equal tolerance, and the baselines"),
        "sweep": sweep_table(content, content.tolerances, "Every strategy at every tolerance"),
        "settings": settings_table("Settings", content.settings),
    }
    return {name: table for name, table in found.items() if table.rows}


def sweep_table(content: FrontierReport, tolerances: list[float], caption: str) -> Table:
    """Show accuracy, difference and shares on held-out examples beside the fit data, tolerance by tolerance."""
    fitted = {_key(row): row for row in _rows(content, FIT, tolerances)}
    rows = tuple(_cells(row, fitted.get(_key(row))) for row in _rows(content, TEST, tolerances))
    columns = ("strategy", "tolerance", "accuracy", "difference", "accuracy, fit data", "difference, fit data")
    shares = ("left to chance", "overridden", "state backed off")
    return Table(caption, (*columns, *shares), rows)


def _rows(content: FrontierReport, split: str, tolerances: list[float]) -> list[Row]:
    """Return the baselines of a split, then its strategies tolerance by tolerance."""
    singles = content.singles[content.singles["split"] == split]
    return [*records(singles), *(row for value in tolerances for row in records(_at(content.lines, value, split)))]


def _key(row: Row) -> tuple[str, float | None]:
    """Return what a row is about; NaN, a baseline's tolerance, would not equal itself."""
    return row["strategy"], row["tolerance"] if np.isfinite(row["tolerance"]) else None


def _cells(row: Row, fitted: Row | None) -> tuple[Cell, ...]:
    own = ("", "") if fitted is None else (number(fitted["accuracy"]), number(fitted["difference"]))
    return (
        Cell(strategy_label(row["strategy"]), "" if np.isfinite(row["tolerance"]) else "baseline"),
        Cell(f"{row['tolerance']:g}" if np.isfinite(row["tolerance"]) else ""),
        *(_interval(row, name) for name in ("accuracy", "difference")),
        *(Cell(text) for text in own),
        *(Cell(percent(row[name])) for name in ("randomised", "overridden", "backed_off")),
    )


def _interval(row: Row, name: str) -> Cell:
    bounds = f"[{number(row[f'{name}_low'])}, {number(row[f'{name}_high'])}]"
    return Cell(number(row[name]), bounds if np.isfinite(row[f"{name}_low"]) else "")
