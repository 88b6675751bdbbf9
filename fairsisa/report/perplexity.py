"""The page about language models: how well each predicts each text, and at what size and speed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fairsisa.errors import DataError
from fairsisa.report.pictures import Picture
from fairsisa.report.rows import Row, records
from fairsisa.report.style import DASHED, MUTED, WIDTH, figure_of, new_axes, new_panels, plain, series_colours, styled
from fairsisa.report.svg import inline_svg
from fairsisa.report.tables import Cell, Table, settings_table
from fairsisa.report.words import UNDEFINED, count, percent
from fairsisa.report.writing import templates, write_whole

FORMAT = 1
ROUND = (1.0, 2.0, 5.0)
PERPLEXITIES = (
    "model",
    "family",
    "step",
    "corpus",
    "perplexity",
    "perplexity_standard_error",
    "loss",
    "loss_standard_error",
    "difference",
    "difference_low",
    "difference_high",
    "num_blocks",
    "num_targets",
    "num_parameters",
    "bytes_on_disk",
    "sparsity",
    "tokens_per_second",
)
MOST_PANELS = 3


@dataclass(frozen=True, eq=False)
class PerplexityReport:
    """Everything the page about language models tells.

    `table` (columns `PERPLEXITIES`) has a row a model and corpus; the first row's model is the one that others are
    compared with, and a difference is NaN where it cannot be told. `step` is NaN for what is no checkpoint. `curve`
    (columns step, loss) is that of the training, where there was one.

    Raises:
        DataError: when a table lacks a column.
    """

    title: str
    table: pd.DataFrame
    curve: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["step", "loss"]))
    level: float = 0.95
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, columns in (("table", PERPLEXITIES), ("curve", ("step", "loss"))):
            missing = [column for column in columns if column not in getattr(self, name).columns]
            if missing:
                raise DataError(f"Expected columns {', '.join(columns)} in the {name}; {', '.join(missing)} not found.")

    @property
    def corpora(self) -> list[str]:
        """The texts, in the order of the table."""
        return list(dict.fromkeys(self.table["corpus"]))

    @property
    def models(self) -> list[str]:
        """The models, in the order of the table."""
        return list(dict.fromkeys(self.table["model"]))


def write_perplexity(directory: Path, content: PerplexityReport, *, stem: str = "perplexity") -> tuple[Path, ...]:
    """Write `stem`.html, .csv and .json into a directory; return their paths.

    The page stands alone: no script, no address outside it, plots as SVG within. In the JSON, what is no finite number
    is null. Files of these names are replaced, each in one step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    table = content.table[list(PERPLEXITIES)]
    shown = {
        "content": content,
        "findings": findings(content),
        "pictures": _pictures(content),
        "tables": _tables(content),
        "stem": stem,
    }
    numbers = {"format": FORMAT, "title": content.title, "level": content.level}
    numbers |= {"rows": _finite(table), "curve": _finite(content.curve), "settings": dict(content.settings)}
    numbers |= {"environment": dict(content.environment), "commands": list(content.commands)}
    page = templates().get_template("perplexity.html.j2").render(shown)
    return (
        write_whole(directory / f"{stem}.html", page),
        write_whole(directory / f"{stem}.csv", table.to_csv(index=False, lineterminator="\n")),
        write_whole(directory / f"{stem}.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n"),
    )


def findings(content: PerplexityReport) -> list[str]:
    """Say in a sentence a text which model predicts it best, and how that stands to the first one."""
    return [_finding(content, name) for name in content.corpora]


def _finding(content: PerplexityReport, corpus: str) -> str:
    rows = records(content.table[content.table["corpus"] == corpus])
    best = min(rows, key=lambda row: row["loss"])
    told = f"{corpus}: {best['model']} predicts it best of {count(len(rows), 'model')}, perplexity {_perplexity(best)}"
    if best is rows[0]:
        return f"{told}."
    if math.isnan(best["difference"]):
        return f"{told}; it reads other tokens than {rows[0]['model']}, so that the two are not comparable."
    apart = "" if best["difference_high"] < 0 else "not "
    return f"{told}, {apart}told apart from {rows[0]['model']} ({_perplexity(rows[0])})."


def perplexity_by_step(table: pd.DataFrame) -> Figure:
    """Draw perplexity against the step of training, a panel a text and a line a family; both axes are logarithmic.

    Bars reach two standard errors up and down. Models that are no checkpoints are dashed lines; step 0 is left
    out, and so is what is infinite.
    """
    table = table[np.isfinite(table["perplexity"].to_numpy(dtype=float)) & ~(table["step"] == 0)]
    corpora = list(dict.fromkeys(table["corpus"]))[:MOST_PANELS]
    families = list(dict.fromkeys(table["family"]))
    colours = dict(zip(families, series_colours(len(families)), strict=True))
    panels = new_panels(len(corpora), max(5.2, WIDTH * len(corpora) / MOST_PANELS), 3.6)
    for ax, corpus in zip(panels, corpora, strict=True):
        mine = table[table["corpus"] == corpus]
        with styled():
            for family in families:
                own = mine[mine["family"] == family].sort_values("step")
                if own["step"].isna().all():
                    for value in own["perplexity"]:
                        ax.axhline(value, color=colours[family], linestyle=DASHED, linewidth=1.2, label=plain(family))
                    continue
                low, high = (own["perplexity"] + sign * 2 * own["perplexity_standard_error"] for sign in (-1, 1))
                ax.vlines(own["step"], low, high, color=colours[family], linewidth=2.2, alpha=0.45)
                ax.plot(own["step"], own["perplexity"], "o-", color=colours[family], markersize=4, label=plain(family))
            ax.set(xscale="log", yscale="log", xlabel="optimizer steps", title=plain(corpus))
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
                axis.set_minor_formatter(NullFormatter())
                axis.set_major_locator(LogLocator(subs=ROUND, numticks=9))
    with styled():
        panels[0].set_ylabel("perplexity")
        handles, names = panels[0].get_legend_handles_labels()
        figure_of(panels[0]).legend(handles, names, loc="outside upper left", ncols=3)
    return figure_of(panels[0])


def excess_by_step(table: pd.DataFrame) -> pd.DataFrame:
    """Return how far each family's perplexity lies above the first family's at the same step and on the same text.

    Columns: corpus, family, step, excess (0.1 is 10 % above). No rows where there is one family, or no step is shared.
    """
    finite = table[np.isfinite(table["perplexity"].to_numpy(dtype=float)) & table["step"].notna()]
    compared = finite["family"].isin(table["family"].head(1))
    first, others = finite[compared][["corpus", "step", "perplexity"]], finite[~compared]
    both = others.merge(first, on=["corpus", "step"], suffixes=("", "_first"))
    excess = both["perplexity"] / both["perplexity_first"] - 1
    return pd.DataFrame({name: both[name] for name in ("corpus", "family", "step")} | {"excess": excess})


def excess_panels(excess: pd.DataFrame) -> Figure:
    """Draw the rows of `excess_by_step`, in percent, a panel a text and a line a family."""
    corpora, families = (list(dict.fromkeys(excess[name])) for name in ("corpus", "family"))
    colours = dict(zip(families, series_colours(len(families)), strict=True))
    panels = new_panels(len(corpora[:MOST_PANELS]), max(5.2, WIDTH * len(corpora[:MOST_PANELS]) / MOST_PANELS), 3.6)
    for ax, corpus in zip(panels, corpora, strict=False):
        with styled():
            for family in families:
                own = excess[(excess["corpus"] == corpus) & (excess["family"] == family)].sort_values("step")
                ax.plot(
                    own["step"], 100 * own["excess"], "o-", color=colours[family], markersize=4, label=plain(family)
                )
            ax.axhline(0, color=MUTED, linestyle=DASHED, linewidth=1.2)
            ax.set(xscale="log", xlabel="optimizer steps", title=plain(corpus))
            ax.xaxis.set_major_locator(LogLocator(subs=ROUND, numticks=9))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
    with styled():
        panels[0].set_ylabel("percent above")
        handles, names = panels[0].get_legend_handles_labels()
        figure_of(panels[0]).legend(handles, names, loc="outside upper left", ncols=3)
    return figure_of(panels[0])


def training_loss(curve: pd.DataFrame) -> Figure:
    """Draw the mean training loss since the last time it was logged, against the step."""
    ax = new_axes(None, WIDTH / 1.5, 3.0)
    with styled():
        ax.plot(curve["step"], curve["loss"], linewidth=1.3, color=series_colours(1)[0])
        ax.set(xlabel="optimizer steps", ylabel="nats a token")
        ax.set_title("Training loss")
    return figure_of(ax)


def _pictures(content: PerplexityReport) -> dict[str, Picture]:
    return {
        name: Picture(inline_svg(figure, name=name, description=caption), caption)
        for name, figure, caption in _figures(content)
    }


def _figures(content: PerplexityReport) -> Iterator[tuple[str, Figure, str]]:
    finite = np.isfinite(content.table["perplexity"].to_numpy(dtype=float))
    if (finite & (content.table["step"] > 0)).any():
        left_out = len(content.corpora) - MOST_PANELS
        more = f" The first {MOST_PANELS} texts are drawn; all are in the table." if left_out > 0 else ""
        yield (
            "steps",
            perplexity_by_step(content.table),
            "Perplexity against the steps of training, with two standard errors over blocks. Dashed: models that are "
            f"no checkpoints.{more}",
        )
    excess = excess_by_step(content.table)
    if len(excess):
        yield (
            "excess",
            excess_panels(excess),
            f"Perplexity above that of {content.table['family'].iloc[0]} at the same step, in percent.",
        )
    if len(content.curve):
        yield "curve", training_loss(content.curve), "The loss in training, dropout included."


def _tables(content: PerplexityReport) -> dict[str, Table]:
    predictions = (
        tuple(_prediction(row, content.models[0]) for row in records(content.table)) if len(content.table) else ()
    )
    head = ("model", "text", "perplexity", "loss, nats a token", "difference from the first", "tokens a second")
    sizes = content.table.drop_duplicates("model")
    found = {
        "perplexities": Table("Every model on every text", head, predictions, num_text=2),
        "sizes": Table(
            "Size of each model",
            ("model", "parameters", "bytes of weights on disk", "zeros in weight layers"),
            tuple(_size(row) for row in records(sizes)),
        ),
        "settings": settings_table("Settings", content.settings),
        "environment": settings_table("Environment", content.environment),
    }
    return {name: table for name, table in found.items() if table.rows}


def _prediction(row: Row, first: str) -> tuple[Cell, ...]:
    if math.isnan(row["difference"]):
        difference = Cell("", "first" if row["model"] == first else "other tokens")
    else:
        bounds = f"[{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
        difference = Cell(f"{row['difference']:+.4f}", bounds)
    return (
        Cell(row["model"]),
        Cell(row["corpus"]),
        Cell(f"{row['perplexity']:,.2f}", _error(row["perplexity_standard_error"], 2)),
        Cell(f"{row['loss']:.4f}", _error(row["loss_standard_error"], 4)),
        difference,
        Cell(f"{row['tokens_per_second']:,.0f}"),
    )


def _size(row: Row) -> tuple[Cell, ...]:
    zeros = UNDEFINED if math.isnan(row["sparsity"]) else percent(row["sparsity"])
    return (Cell(row["model"]), Cell(f"{row['num_parameters']:,}"), Cell(f"{row['bytes_on_disk']:,}"), Cell(zeros))


def _error(value: float, digits: int) -> str:
    return f"± {value:,.{digits}f}" if math.isfinite(value) else ""


def _perplexity(row: Row) -> str:
    return f"{row['perplexity']:,.2f} {_error(row['perplexity_standard_error'], 2)}".strip()


def _finite(table: pd.DataFrame) -> list[Row]:
    """Return rows as JSON can hold them."""
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in records(table.astype(object))
    ]
