"""The page about a study of deletions: what forgetting, step by step, did to accuracy, fairness and cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fairsisa.errors import DataError
from fairsisa.report.content import Fact
from fairsisa.report.numbers import _plain
from fairsisa.report.pictures import Picture
from fairsisa.report.rows import Row, records
from fairsisa.report.study_plots import (
    ACCURACY,
    ENSEMBLE,
    FRACTION,
    FULL,
    LEGEND,
    UNFAIRNESS,
    UNLEARNING,
    WHOLE,
    cost_by_deletions,
    cumulative_costs,
    metric_by_deletions,
)
from fairsisa.report.svg import inline_svg
from fairsisa.report.tables import Cell, Table, settings_table
from fairsisa.report.words import METRIC_NAMES, UNDEFINED, count, duration, listed, number, percent, signed
from fairsisa.report.writing import templates, write_whole

FORMAT = 1
RESULTS = ("pattern", "repeat", "deletions", "predictor", "sensitive_feature", "metric", "value", "low", "high")
DIFFERENCES = (*RESULTS[:4], "against", *RESULTS[4:])
COSTS = ("pattern", "repeat", "deletions", "way", "planned", "example_epochs", "core_seconds", "seconds")
START = " at the start"
EVERYONE = ""
SAME = "is not told apart"
AGAINST = {ENSEMBLE + START: "its start", WHOLE: LEGEND[WHOLE], FRACTION: LEGEND[FRACTION]}


@dataclass(frozen=True, eq=False)
class StudyReport:
    """Everything the page about a study of deletions tells.

    `results` (columns `RESULTS`) holds the metrics of the ensemble and the baselines after so many deletions, with
    intervals; `differences` (`DIFFERENCES`) holds a predictor's metric minus that of another on the same replicates,
    "... at the start" being the predictor before any deletion; `costs` (`COSTS`) has what each step took, by way.
    `patterns` says in words what each pattern draws from; `ended` after how many deletions it lacked examples for the
    next step. `features` are the sensitive features shown, `level` is the coverage of the intervals.

    Raises:
        DataError: when a table lacks a column, or there is no result.
    """

    title: str
    results: pd.DataFrame
    differences: pd.DataFrame
    costs: pd.DataFrame
    patterns: Mapping[str, str]
    features: tuple[str, ...]
    ensemble: str
    num_train: int
    num_test: int
    level: float = 0.95
    ended: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tables = {"results": (self.results, RESULTS), "differences": (self.differences, DIFFERENCES)}
        for name, (table, columns) in (tables | {"costs": (self.costs, COSTS)}).items():
            missing = [column for column in columns if column not in table.columns]
            if missing:
                raise DataError(f"Expected columns {', '.join(columns)} in the {name}; {', '.join(missing)} not found.")
        if self.results.empty:
            raise DataError("Expected the results of at least one step, got none.")

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """The (sensitive feature, metric) that the page speaks of."""
        return ((EVERYONE, ACCURACY), *((name, UNFAIRNESS) for name in self.features))


def write_study(directory: Path, content: StudyReport) -> tuple[Path, Path]:
    """Write study.html and study.json into a directory; return their paths.

    The page stands alone: no script, no address outside it, plots as SVG within. Files of these names are replaced,
    each in one step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shown = {
        "content": content,
        "findings": findings(content),
        "facts": _facts(content),
        "pictures": _pictures(content),
        "tables": _tables(content),
    }
    numbers = json.dumps(study_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    return (
        write_whole(directory / "study.html", templates().get_template("study.html.j2").render(shown)),
        write_whole(directory / "study.json", numbers + "\n"),
    )


def study_json(content: StudyReport) -> dict[str, Any]:
    """Return every number of the page as plain JSON values; `format` grows when a key changes its meaning or goes."""
    return {
        "format": FORMAT,
        "title": content.title,
        "findings": findings(content),
        "patterns": _plain(content.patterns),
        "ended": _plain(content.ended),
        "level": content.level,
        "results": _plain(content.results),
        "differences": _plain(content.differences),
        "costs": _plain(cumulative_costs(content.costs)),
        "settings": _plain(content.settings),
        "commands": list(content.commands),
    }


def findings(content: StudyReport) -> list[str]:
    """Say, pattern by pattern, what the last step had done, as far as the intervals of all repeats agree."""
    return [sentence for pattern in content.patterns for sentence in _findings_of(content, pattern)]


def _findings_of(content: StudyReport, pattern: str) -> Iterator[str]:
    last, end = _end(content, pattern)
    changes = [_change(end, ENSEMBLE + START, key, ("rose", "fell")) for key in content.shown]
    where = f"After {last:,} deletions from {content.patterns[pattern]}"
    yield f"{where}, the ensemble's {'; its '.join(changes)}, each against its start."
    yield from _cost_sentence(pattern, content.costs[content.costs["pattern"] == pattern])
    if pattern in content.ended:
        yield f"The pattern {pattern} ends there: the {content.patterns[pattern]} are too few for the next step."


def _change(end: pd.DataFrame, against: str, key: tuple[str, str], ways: tuple[str, str]) -> str:
    rows = _paired(end, against, key)
    numbers = listed([f"{_signed(row['value'])} {_bounds(row)}" for row in records(rows)])
    return f"{_name(key)} {_verdict(rows, ways)} ({numbers})"


def _paired(end: pd.DataFrame, against: str, key: tuple[str, str]) -> pd.DataFrame:
    rows = end[end["predictor"].eq(ENSEMBLE) & end["against"].eq(against)]
    return rows[rows["sensitive_feature"].eq(key[0]) & rows["metric"].eq(key[1])]


def _verdict(rows: pd.DataFrame, ways: tuple[str, str]) -> str:
    """Say which way a difference goes, if the intervals of all repeats exclude 0 on the same side."""
    above, below = (rows["low"] > 0).to_numpy(), (rows["high"] < 0).to_numpy()
    if above.all() or below.all():
        return ways[0] if above.all() else ways[1]
    some = int((above | below).sum())
    return f"{SAME} in {len(rows) - some} of {len(rows)} repeats" if some else SAME


def _name(key: tuple[str, str]) -> str:
    feature, metric = key
    return METRIC_NAMES[metric].lower() + (f" by {feature}" if feature else "")


def _cost_sentence(pattern: str, costs: pd.DataFrame) -> Iterator[str]:
    spent = costs.groupby("way")["example_epochs"].sum()
    if UNLEARNING not in spent or not spent[FULL]:
        return
    own = costs[costs["way"] == UNLEARNING]
    first = own["deletions"].min()
    share = costs[costs["deletions"] == first].groupby("way")["example_epochs"].sum()
    single = f", and one model on all that is left {spent[WHOLE]:,.0f}" if WHOLE in spent else ""
    yield (
        f"By the pattern {pattern}, unlearning took {spent[UNLEARNING]:,.0f} example-epochs in all steps, "
        f"{percent(spent[UNLEARNING] / spent[FULL])} of retraining the whole ensemble at each step "
        f"({percent(share[UNLEARNING] / share[FULL])} at the first, of {count(int(first), 'deletion')}){single}."
    )


def _pictures(content: StudyReport) -> dict[str, Picture]:
    return {
        name: Picture(inline_svg(figure, name=name, description=caption), caption)
        for name, figure, caption in _figures(content)
    }


def _figures(content: StudyReport) -> Iterator[tuple[str, Figure, str]]:
    band = f"Bands are {100 * content.level:g} % intervals over test subjects; steps are evenly spaced, not to scale."
    figure = metric_by_deletions(content.results, sensitive_feature=EVERYONE, metric=ACCURACY)
    yield "accuracy", figure, f"Accuracy on {content.num_test:,} test examples after so many deletions. {band}"
    for place, name in enumerate(content.features):
        figure = metric_by_deletions(content.results, sensitive_feature=name, metric=UNFAIRNESS)
        yield f"difference-{place}", figure, f"Equalized odds difference by {name}; 0 is equal error rates. {band}"
    if len(content.costs):
        yield (
            "cost",
            cost_by_deletions(content.costs),
            "What all steps together took so far, in examples shown for training, on a logarithmic scale. A step that "
            "hits every shard's first slice costs as much as retraining everything.",
        )


def _facts(content: StudyReport) -> list[Fact]:
    own = content.costs[content.costs["way"] == UNLEARNING]
    facts = [
        Fact("Training examples", f"{content.num_train:,}", "before the first deletion"),
        Fact("Test examples", f"{content.num_test:,}", "the same at every step"),
        Fact("Ensemble", content.ensemble),
        Fact("Repeats", f"{content.results['repeat'].nunique():,}", "orders of deletion for each pattern"),
    ]
    if len(own):
        facts.append(
            Fact(
                "Time from request to certificate",
                duration(float(own["seconds"].median())),
                "median of the steps; encoding, training, scoring, purge and checks",
            )
        )
    return facts


def _tables(content: StudyReport) -> dict[str, Table]:
    found = {
        "comparisons": _comparisons_table(content),
        "results": _results_table(content),
        "costs": _costs_table(content.costs),
        "settings": settings_table("Settings", content.settings),
    }
    return {name: table for name, table in found.items() if table.rows}


def _results_table(content: StudyReport) -> Table:
    """Show the metrics of every predictor after every step."""
    keys = ("pattern", "repeat", "deletions", "predictor")
    cells: dict[tuple[Any, ...], dict[tuple[str, str], Row]] = {}
    for row in records(content.results):
        cells.setdefault(tuple(row[name] for name in keys), {})[row["sensitive_feature"], row["metric"]] = row
    rows = tuple(
        (
            Cell(str(pattern)),
            Cell(str(predictor)),
            Cell(f"{repeat + 1:,}"),
            Cell(f"{deletions:,}"),
            *(_interval(found.get(key)) for key in content.shown),
        )
        for (pattern, repeat, deletions, predictor), found in cells.items()
    )
    names = ("pattern", "predictor", "repeat", "deletions")
    shown = (METRIC_NAMES[metric] + (f" by {feature}" if feature else "") for feature, metric in content.shown)
    return Table("After every step", (*names, *shown), rows, num_text=2)


def _comparisons_table(content: StudyReport) -> Table:
    """Show what the last step of each pattern left of the ensemble, against its start and the single models."""
    rows = []
    for pattern in content.patterns:
        last, end = _end(content, pattern)
        for against in (name for name in AGAINST if name in set(end["against"])):
            found = [_paired(end, against, key) for key in content.shown]
            cells = (_difference(row) for row in found)
            rows.append((Cell(pattern, f"after {last:,} deletions"), Cell(AGAINST[against]), *cells))
    names = (_name(key) for key in content.shown)
    return Table(
        "The ensemble at the end of each pattern, minus", ("pattern", "minus", *names), tuple(rows), num_text=2
    )


def _difference(rows: pd.DataFrame) -> Cell:
    details = listed([f"{_signed(row['value'])} {_bounds(row)}" for row in records(rows)])
    return Cell(_verdict(rows, ("higher", "lower")).removeprefix("is "), details)


def _end(content: StudyReport, pattern: str) -> tuple[int, pd.DataFrame]:
    """Return after how many deletions a pattern ends, and the differences there."""
    mine = content.differences[content.differences["pattern"] == pattern]
    last = int(mine["deletions"].max())
    return last, mine[mine["deletions"] == last]


def _costs_table(costs: pd.DataFrame) -> Table:
    """Show what every step of unlearning took, beside retraining."""
    table = cumulative_costs(costs)
    rows = tuple(
        (
            Cell(row["pattern"]),
            Cell(LEGEND[row["way"]]),
            Cell(f"{row['repeat'] + 1:,}"),
            Cell(f"{row['deletions']:,}"),
            Cell(f"{row['example_epochs']:,.0f}"),
            Cell(f"{row['cumulative']:,.0f}"),
            *(Cell(duration(row[name]) if np.isfinite(row[name]) else "") for name in ("core_seconds", "seconds")),
        )
        for row in records(table)
    )
    names = ("pattern", "way", "repeat", "deletions", "example-epochs", "cumulative", "training time", "whole request")
    return Table("What every step took", names, rows, num_text=2)


def _interval(row: Row | None) -> Cell:
    return Cell("") if row is None else Cell(number(row["value"]), _bounds(row))


def _bounds(row: Row) -> str:
    return f"[{number(row['low'])}, {number(row['high'])}]"


def _signed(value: float) -> str:
    return signed(value) if np.isfinite(value) else UNDEFINED
