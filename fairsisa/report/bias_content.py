"""What the page about bias and behaviour is made of: tables, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fairsisa.bias.benchmark import COVERAGE
from fairsisa.bias.comparing import COMPARISONS
from fairsisa.bias.measuring import MEASURES
from fairsisa.errors import DataError

MODELS = (
    "name",
    "kind",
    "num_parameters",
    "bytes_on_disk",
    "sparsity",
    "digest",
    "capability",
    "capable",
    "family",
    "step",
)
PAIR = ("base", "other")
MEASURED = ("model", "benchmark", "readout", *MEASURES)
COMPARED = (*PAIR, "benchmark", "readout", *COMPARISONS)
BEHAVED = (
    *PAIR,
    "benchmark",
    "num_items",
    "flips",
    "all_flips",
    "correct_to_wrong",
    "wrong_to_correct",
    "wrong_to_wrong",
    "accuracy_change",
    "top_margin_changed",
    "top_margin_unchanged",
    "kl_forward",
    "kl_backward",
    "flips_of",
)
BOUNDS = ("", "_low", "_high")
DIVERGED = (
    *PAIR,
    "corpus",
    *(f"kl_{way}{end}" for way in ("forward", "backward") for end in BOUNDS),
    "same_top",
    "num_tokens",
)
MARGINS = (*PAIR, "benchmark", "item_id", "margin", "changed")
NOTES = ("model", "benchmark", "readout", "state", "reason", "count", "item_id")
FLOORS = ("model", "benchmark", "readout", "num_items", "largest_difference", "changed_answers")
ABOUT = ("benchmark", "title", "source", "licence", "criticism")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "models": MODELS,
    "measures": MEASURED,
    "comparisons": COMPARED,
    "behaviours": BEHAVED,
    "divergences": DIVERGED,
    "margins": MARGINS,
    "floors": FLOORS,
    "notes": NOTES,
    "raters": (),
    "benchmarks": ABOUT,
}
NEEDED: Mapping[str, tuple[str, ...]] = {
    "models": ("name",),
    "measures": ("model", "benchmark", *MEASURES[:6]),
    "comparisons": (*PAIR, "benchmark", *COMPARISONS[:8]),
    "behaviours": BEHAVED[:6],
    "divergences": (*PAIR, "corpus", "kl_forward"),
    "margins": (*PAIR, "margin", "changed"),
    "floors": ("model", "benchmark", "changed_answers"),
    "notes": ("benchmark", "reason"),
    "raters": (),
    "benchmarks": ("benchmark",),
}
WORDS = frozenset(
    (
        *("kind", "digest", "capability", "family", "benchmark", "readout", "group", "unit"),
        *("higher_means", "flag", "note", "test", "state", "reason", "flips_of"),
    )
)
"""Columns that hold words: what is missing in them is empty."""


@dataclass(frozen=True, eq=False)
class BiasReport:
    """Everything the page about bias and behaviour tells; of an empty table, the page says nothing.

    `models` (columns `MODELS`) has a row a model: bytes on disk, sparsity in [0, 1], `capability` what its check found,
    in words, and `capable` whether it passed, None if it was not checked; `family` and `step` for checkpoints.
    `measures` (`MEASURED`) is what
    `bias.measuring.measure` gave for each model, benchmark and readout, `comparisons` (`COMPARED`) what
    `bias.comparing.holm_over` gave over all of `compare`. `behaviours` (`BEHAVED`) has shares in [0, 1] for flips,
    all flips and the change of accuracy, counts for the ways in which answers changed, KL in nats over the options;
    where `flips_of` is "outcome", an outcome of 1 stands in for a right answer.
    `divergences` (`DIVERGED`) has KL in nats a token over the full vocabulary, `same_top` the share of positions with
    the same likeliest token. `margins` (`MARGINS`) has the base's top margin of each item. `floors` (`FLOORS`) is what
    changes when the same model is asked twice, `notes` (`NOTES`) what could not be asked or scored, by reason.
    `raters` has a row a classifier that rated texts, with any columns; `benchmarks` (`ABOUT`) their sources. Columns
    that a table lacks are filled with what is missing; more columns go to the CSV as they are.

    Raises:
        DataError: when a table that is not empty lacks a column that it cannot be read without.
    """

    title: str
    models: pd.DataFrame = field(default_factory=pd.DataFrame)
    measures: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)
    behaviours: pd.DataFrame = field(default_factory=pd.DataFrame)
    divergences: pd.DataFrame = field(default_factory=pd.DataFrame)
    margins: pd.DataFrame = field(default_factory=pd.DataFrame)
    floors: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: pd.DataFrame = field(default_factory=pd.DataFrame)
    raters: pd.DataFrame = field(default_factory=pd.DataFrame)
    benchmarks: pd.DataFrame = field(default_factory=pd.DataFrame)
    level: float = 0.95
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in COLUMNS:
            object.__setattr__(self, name, _filled(name, getattr(self, name)))

    @property
    def all_tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name, empty ones too."""
        return {name: getattr(self, name) for name in COLUMNS}

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that hold anything, by name."""
        return {name: table for name, table in self.all_tables.items() if len(table)}

    @property
    def incapable(self) -> list[str]:
        """The models that failed the capability check."""
        return self.models.loc[[capable is False for capable in self.models["capable"]], "name"].tolist()

    @property
    def alpha(self) -> float:
        """Below which a corrected p-value tells two models apart."""
        return 1.0 - self.level


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows over all items of a benchmark, without those of its groups."""
    return table[table["group"] == ""]


def compared(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the rows over all items, without those of a coverage that differs nowhere on a benchmark."""
    table = overall(comparisons)
    moved = table.loc[(table["aspect"] == COVERAGE) & (table["difference"] != 0), "benchmark"]
    return table[(table["aspect"] != COVERAGE) | table["benchmark"].isin(moved)]


def series_names(table: pd.DataFrame) -> pd.Series:
    """Return each row's "benchmark" or, where a benchmark was read out in several ways, "benchmark (readout)"."""
    readouts = table.groupby("benchmark")["readout"].transform("nunique") if len(table) else pd.Series(dtype=int)
    return table["benchmark"].where(readouts < 2, table["benchmark"] + " (" + table["readout"] + ")")


def _filled(name: str, table: pd.DataFrame) -> pd.DataFrame:
    columns = COLUMNS[name]
    if table.empty:
        return pd.DataFrame(columns=list(columns))
    missing = [column for column in NEEDED[name] if column not in table.columns]
    if missing:
        raise DataError(f"Expected columns {', '.join(NEEDED[name])} in {name}; {', '.join(missing)} not found.")
    more = [column for column in table.columns if column not in columns]
    filled = table.reindex(columns=[*columns, *more]).reset_index(drop=True)
    for column in columns:
        if column in WORDS or (name, column) == ("comparisons", "flips"):
            filled[column] = filled[column].astype(object).where(filled[column].notna(), "")
    if name == "models":
        checked = filled["capable"].notna()
        filled["capable"] = pd.Series([bool(each) for each in filled["capable"]], dtype=object).where(checked, None)
        filled["family"] = filled["family"].where(filled["family"] != "", filled["name"])
        filled["step"] = filled["step"].astype(float)
    return filled
