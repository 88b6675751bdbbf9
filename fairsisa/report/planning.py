"""The page about planned unlearning: what it would cost, and what is recommended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fairsisa.errors import DataError
from fairsisa.report.content import Fact
from fairsisa.report.numbers import _plain
from fairsisa.report.pictures import Picture
from fairsisa.report.planning_plots import (
    NORMAL_95,
    candidate_name,
    cost_by_shards,
    size_words,
    speed_up_by_batch,
    storage_and_cost,
    within_limits,
)
from fairsisa.report.rows import records
from fairsisa.report.svg import inline_svg
from fairsisa.report.tables import Cell, Table, settings_table
from fairsisa.report.words import count, duration
from fairsisa.report.writing import templates, write_whole

FORMAT = 1
CANDIDATE_COLUMNS = (
    "num_shards",
    "num_slices",
    "window",
    "num_checkpoints",
    "storage_bytes",
    "example_epochs_per_request",
    "core_seconds_per_day",
    "delay_days",
    "worst_core_seconds",
    "method",
    "feasible",
    "reason",
)

BATCH_COLUMNS = ("num_requests", "best", "expected", "worst", "mean", "standard_error", "q5", "q95")
MOST_SHOWN = 12


@dataclass(frozen=True, eq=False)
class PlanningReport:
    """Everything the page about planned unlearning tells.

    `candidates` is the table of `sisa.advice.advise`, best first; `batches` that of
    `sisa.simulation.compare_batches`, for the candidate that `batches_of` names in words. Without `batches` its section
    is left out.

    Raises:
        DataError: when a table lacks a column, or there is no candidate.
    """

    title: str
    candidates: pd.DataFrame
    batches: pd.DataFrame = field(default_factory=pd.DataFrame)
    batches_of: str = ""
    facts: tuple[Fact, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_columns("candidates", self.candidates, CANDIDATE_COLUMNS)
        if self.candidates.empty:
            raise DataError("Expected at least one candidate, got none: name numbers of shards, slices and a window.")
        if len(self.batches):
            _check_columns("batches", self.batches, BATCH_COLUMNS)


def write_plan(directory: Path, content: PlanningReport) -> tuple[Path, Path]:
    """Write plan.html and plan.json into a directory; return their paths.

    The page stands alone: no script, no address outside it, plots as SVG within. Files of these names are replaced,
    each in one step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shown = {
        "content": content,
        "findings": findings(content),
        "pictures": _pictures(content),
        "tables": _tables(content),
        "most": MOST_SHOWN,
    }
    numbers = json.dumps(plan_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    return (
        write_whole(directory / "plan.html", templates().get_template("planning.html.j2").render(shown)),
        write_whole(directory / "plan.json", numbers + "\n"),
    )


def plan_json(content: PlanningReport) -> dict[str, Any]:
    """Return every number of the page as plain JSON values; `format` grows when a key changes its meaning or goes."""
    return {
        "format": FORMAT,
        "title": content.title,
        "recommended": _plain(within_limits(content.candidates).head(1)),
        "candidates": _plain(content.candidates),
        "batches_of": content.batches_of,
        "batches": _plain(content.batches),
        "facts": [asdict(fact) for fact in content.facts],
        "settings": _plain(content.settings),
        "commands": list(content.commands),
    }


def findings(content: PlanningReport) -> list[str]:
    """Say in a few sentences what is recommended, what it costs, and what stands in the way of others."""
    total, chosen = len(content.candidates), records(within_limits(content.candidates))
    if not chosen:
        nearest = records(content.candidates)[0]
        return [
            f"None of {count(total, 'candidate')} meets the limits.",
            f"The cheapest, {candidate_name(nearest)}, {nearest['reason']}.",
        ]
    best = chosen[0]
    return [
        f"Recommended: {candidate_name(best)}. It is the cheapest of the {len(chosen):,} within the limits, of "
        f"{count(total, 'candidate')} in all.",
        f"It is expected to train {best['example_epochs_per_request']:,.0f} examples again for each request, repeats "
        f"counted, and to keep one core busy for {duration(best['core_seconds_per_day'])} a day.",
        f"The first request of a batch is expected to wait {_days(best['delay_days'])} until it is executed; the "
        f"costliest execution takes {duration(best['worst_core_seconds'])} of one core.",
        f"Its {count(best['num_checkpoints'], 'checkpoint')} take {size_words(best['storage_bytes'])}.",
    ]


def candidates_table(candidates: pd.DataFrame, caption: str = "All candidates, the recommended first") -> Table:
    """Show every candidate in order, and why some are outside the limits."""
    columns = (
        "candidate",
        "limits",
        "example-epochs per request",
        "core time per day",
        "delay",
        "costliest",
        "storage",
    )
    rows = tuple(
        (
            Cell(candidate_name(row), row["method"]),
            Cell("within" if row["feasible"] else "outside", row["reason"]),
            Cell(f"{row['example_epochs_per_request']:,.0f}"),
            Cell(duration(row["core_seconds_per_day"])),
            Cell(_days(row["delay_days"])),
            Cell(duration(row["worst_core_seconds"])),
            Cell(size_words(row["storage_bytes"]), count(row["num_checkpoints"], "checkpoint")),
        )
        for row in records(candidates)
    )
    return Table(caption, columns, rows, num_text=2)


def batches_table(batches: pd.DataFrame) -> Table:
    """Show the speed-ups of batches: best, expected and worst in closed form, mean and spread of trials."""
    columns = ("requests together", "best", "expected", "worst", "Monte Carlo mean", "middle 90 % of trials")
    rows = tuple(
        (
            Cell(f"{row['num_requests']:,}"),
            *(Cell(f"{row[name]:.2f}") for name in ("best", "expected", "worst")),
            Cell(f"{row['mean']:.2f}", f"± {NORMAL_95 * row['standard_error']:.2f}"),
            Cell(f"{row['q5']:.2f} to {row['q95']:.2f}"),
        )
        for row in records(batches)
    )
    return Table("How many times cheaper than full retraining", columns, rows, num_text=0)


def _tables(content: PlanningReport) -> dict[str, Table]:
    found = {
        "recommended": candidates_table(
            within_limits(content.candidates).head(MOST_SHOWN), "The cheapest within the limits"
        ),
        "candidates": candidates_table(content.candidates),
        "batches": batches_table(content.batches),
        "settings": settings_table("Settings", content.settings),
    }
    return {name: table for name, table in found.items() if table.rows}


def _pictures(content: PlanningReport) -> dict[str, Picture]:
    return {
        name: Picture(inline_svg(figure, name=name, description=caption), caption)
        for name, figure, caption in _figures(content)
    }


def _figures(content: PlanningReport) -> Iterator[tuple[str, Figure, str]]:
    yield (
        "cost",
        cost_by_shards(content.candidates),
        "Expected cost of a request, by the number of shards and slices, and by how many requests are executed at a "
        "time. Filled dots are within the limits, hollow ones are not; the ring is the recommended candidate. More "
        "shards cost less here, and accuracy elsewhere.",
    )
    yield (
        "storage",
        storage_and_cost(content.candidates),
        "What checkpoints take on disk, and what requests cost. Blue dots are within the limits; the line joins those "
        "that no other of them beats in both.",
    )
    if len(content.batches):
        yield (
            "batches",
            speed_up_by_batch(content.batches),
            f"Speed-up over retraining everything, {content.batches_of or 'by batch size'}. The expected one is an "
            "average: a batch may fall anywhere between best and worst.",
        )


def _check_columns(name: str, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(f"Expected columns {', '.join(columns)} in the {name} table; {', '.join(missing)} not found.")


def _days(days: float) -> str:
    return duration(86_400 * days) if days < 2 else f"{days:,.1f} days"
