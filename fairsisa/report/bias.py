"""The page about bias and behaviour: what models do to groups of people, and what changed between two of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from fairsisa.bias.benchmark import BIAS, CAPABILITY, TOXICITY
from fairsisa.report.bias_content import BiasReport, compared, overall
from fairsisa.report.bias_findings import findings
from fairsisa.report.bias_plots import (
    MOST_COLUMNS,
    MOST_MODELS,
    MOST_PANELS,
    MOST_ROWS,
    STRONG,
    WORDY_COLUMNS,
    changed_by_margin,
    delta_map,
    flips_by_divergence,
    metric_by_step,
    metric_forest,
)
from fairsisa.report.bias_tables import (
    behaviour_table,
    comparison_tables,
    divergence_table,
    measure_tables,
    models_table,
    plain_table,
)
from fairsisa.report.numbers import _plain
from fairsisa.report.pictures import Drawn, Picture
from fairsisa.report.rows import records
from fairsisa.report.style import SERIES
from fairsisa.report.svg import inline_svg
from fairsisa.report.tables import Table, settings_table
from fairsisa.report.words import count, listed
from fairsisa.report.writing import templates, write_whole

__all__ = ["BiasReport", "bias_json", "findings", "write_bias"]

FORMAT = 1
FEWEST_CORRELATED = 4
AGAINST_STEPS, BIASES = (BIAS, TOXICITY, CAPABILITY), (BIAS, TOXICITY)
ABOUT_WORDS = (("Source", "source"), ("Licence of the data", "licence"), ("Criticism", "criticism"))
LIMITS = (
    "A benchmark of bias asks about some stereotypes of some groups in one language, and its published criticism is "
    "part of its result. A value at neutral shows that this test found nothing, not that a model is fair.",
    "A model that has learnt nothing, or that lost much, prefers neither side and so looks neutral. Read every bias "
    "metric beside the capability of the same model on the same page.",
    "Intervals speak of chance in which items were asked, whole clusters of them at a time, given these models: "
    "another training, calibration set or draw would move them. McNemar's test counts items as independent of one "
    "another; where clusters hold many items, rely on the interval.",
    "Divergence and flips tell how much two models disagree, not in which direction: among models close to the base "
    "they say little about which of two is better.",
)


@dataclass(frozen=True)
class Section:
    """One part of the page: sentences, plots, tables, tables behind a click; what there is of them, in that order.

    `link` is what leads there from the top of the page, if not the heading.
    """

    name: str
    heading: str
    sentences: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    link: str = ""

    @property
    def holds(self) -> bool:
        """Whether there is anything to show."""
        return any((self.sentences, self.pictures, self.tables, self.folded))


def write_bias(directory: Path, content: BiasReport, stem: str = "bias") -> tuple[Path, ...]:
    """Write `stem`.html, `stem`.json and, of each table that holds anything, `stem`_<table>.csv; return their paths.

    The page stands alone: no script, no address outside it, plots as SVG within. Files of these names are replaced,
    each in one step; a CSV of an earlier writing whose table is empty now is removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sections = [section for section in _sections(content) if section.holds]
    shown = {"content": content, "lead": _lead(content), "sections": sections, "stem": stem}
    shown["settings"] = settings_table("Settings", content.settings) if content.settings else None
    page = templates().get_template("bias.html.j2").render(shown)
    numbers = json.dumps(bias_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    written = [
        write_whole(directory / f"{stem}.html", page),
        write_whole(directory / f"{stem}.json", numbers + "\n"),
    ]
    held = content.tables
    for name in content.all_tables:
        path = directory / f"{stem}_{name}.csv"
        if name in held:
            written.append(write_whole(path, held[name].to_csv(index=False, lineterminator="\n")))
        else:
            path.unlink(missing_ok=True)
    return tuple(written)


def bias_json(content: BiasReport) -> dict[str, Any]:
    """Return every number of the page as plain JSON values; `format` grows when a key changes its meaning or goes.

    Tables are lists of rows; what is no finite number is null.
    """
    told: dict[str, Any] = {
        "format": FORMAT,
        "title": content.title,
        "level": content.level,
        "findings": findings(content),
    }
    tables = {name: _plain(table) for name, table in content.all_tables.items()}
    return told | tables | {"settings": _plain(content.settings), "commands": list(content.commands)}


def _lead(content: BiasReport) -> str:
    models = list(dict.fromkeys([*content.models["name"], *content.measures["model"]]))
    names = [*content.measures["benchmark"], *content.comparisons["benchmark"], *content.behaviours["benchmark"]]
    benchmarks = [str(name) for name in dict.fromkeys(names)]
    asked = f" on {listed(benchmarks)}" if benchmarks else ""
    bases = listed([str(name) for name in dict.fromkeys(content.comparisons["base"])])
    against = f", compared item by item with {bases}" if bases else ""
    return f"{count(len(models), 'model')}{asked}{against}."


def _sections(content: BiasReport) -> Iterator[Section]:
    yield Section("findings", "Findings", tuple(findings(content)))
    pictures = tuple(
        Picture(inline_svg(f, name=name, description=words), words) for name, f, words in _figures(content)
    )
    yield Section("plots", "Plots", pictures=pictures)
    yield Section("models", "Models", tables=(models_table(content.models),) if len(content.models) else ())
    tables, folded = comparison_tables(content)
    yield Section("differences", "Differences", tables=tuple(tables), folded=tuple(folded))
    yield Section("behaviour", "Behaviour", tables=tuple(_behaviour_tables(content)))
    yield from _benchmark_sections(content)
    yield Section("notes", "Not asked, not scored, rated", tables=tuple(_note_tables(content)))
    yield Section("limits", "What these numbers cannot tell", LIMITS)


def _benchmark_sections(content: BiasReport) -> Iterator[Section]:
    """Yield a section a benchmark and readout: where it is from, what is said against it, its metrics."""
    known = {row["benchmark"]: row for row in records(content.benchmarks)}
    for place, (benchmark, readout, tables, folded) in enumerate(measure_tables(content)):
        row = known.get(benchmark, {})
        told = [f"{name}: {row[key]}" for name, key in ABOUT_WORDS if isinstance(row.get(key), str) and row[key]]
        title = row.get("title")
        heading = f"{title} ({benchmark})" if isinstance(title, str) and title else benchmark
        heading += f", read out by {readout}" if readout else ""
        yield Section(
            name=f"benchmark-{place}",
            heading=heading,
            sentences=tuple(told),
            tables=tuple(tables),
            folded=tuple(folded),
            link=benchmark,
        )


def _behaviour_tables(content: BiasReport) -> Iterator[Table]:
    if len(content.behaviours):
        yield behaviour_table(content.behaviours)
    if len(content.divergences):
        yield divergence_table(content.divergences)
    if len(content.floors):
        yield plain_table("The floor: what changes when the same model is asked twice", content.floors, num_text=3)


def _note_tables(content: BiasReport) -> Iterator[Table]:
    if len(content.notes):
        notes = content.notes.sort_values("count", ascending=False, kind="stable", ignore_index=True)
        yield plain_table("Items that could not be asked or scored; one of each is named", notes, num_text=5)
    if len(content.raters):
        yield plain_table("Classifiers that rated texts, with their own error", content.raters, num_text=1)


def _figures(content: BiasReport) -> Iterator[Drawn]:
    """Yield the plots that the tables allow, each with its name and the words under it."""
    if compared(content.comparisons)["difference"].notna().any():
        fewer = _without_steps(content, content.comparisons, "other", most=MOST_COLUMNS)
        yield "deltas", delta_map(fewer, content.alpha), _delta_words(fewer) + _last_words(fewer, content.comparisons)
    yield from _behaviour_figures(content)
    told = overall(content.measures)
    told = told[told["value"].notna()]
    by_step = told[told["aspect"].isin(AGAINST_STEPS) & told["model"].isin(_checkpoints(content))]
    if by_step["model"].nunique() > 1:
        yield (
            "steps",
            metric_by_step(by_step, content.models),
            f"Metrics against the steps of training, with {content.level:.0%} intervals. Dashed: neutral, or for a "
            f"capability what chance gives.{_first(by_step, MOST_PANELS, 'metrics')}",
        )
    every = told[told["aspect"].isin(BIASES)]
    if len(every):
        biased = _without_steps(content, every, "model", most=MOST_MODELS)
        words = _forest_words(content, biased) + _last_words(biased, every)
        yield "bias", metric_forest(biased, content.incapable), words


def _behaviour_figures(content: BiasReport) -> Iterator[Drawn]:
    drawn = content.behaviours[(content.behaviours["kl_forward"] > 0) & content.behaviours["flips"].notna()]
    if len(drawn):
        yield "flips", flips_by_divergence(content.behaviours), _scatter_words(content.behaviours, drawn)
    every = content.margins[content.margins["margin"].notna()]
    if len(every):
        margins = _without_steps(content, every, "other", most=len(SERIES))
        models = margins["other"].nunique()
        more = (
            f" The first {len(SERIES)} of {models} models are drawn; all are in the CSV."
            if models > len(SERIES)
            else ""
        )
        yield (
            "margins",
            changed_by_margin(margins, content.level),
            "Share of items whose answer changed, by how sure the base was of its own; items in bins of about equal "
            f"size, with {content.level:.0%} Wilson intervals.{more}"
            f"{_last_words(margins, every)}",
        )


def _without_steps(content: BiasReport, table: pd.DataFrame, column: str, *, most: int) -> pd.DataFrame:
    """Return a table's rows of the last checkpoint of each family alone, if it names more than `most` models."""
    if table[column].nunique() <= most:
        return table
    checkpoints = content.models[content.models["step"].notna()].sort_values("step")
    last = checkpoints.drop_duplicates("family", keep="last")["name"]
    return table[~table[column].isin(checkpoints["name"]) | table[column].isin(last)]


def _last_words(fewer: pd.DataFrame, table: pd.DataFrame) -> str:
    return " Of each family the last checkpoint is drawn; all are in the CSV." if len(fewer) < len(table) else ""


def _delta_words(comparisons: pd.DataFrame) -> str:
    table = compared(comparisons)
    columns = len(table[["base", "other"]].drop_duplicates())
    rows = len(table[["benchmark", "readout", "metric"]].drop_duplicates())
    bases = listed([str(name) for name in dict.fromkeys(table["base"])])
    inside = "its size in the metric's unit" if columns <= WORDY_COLUMNS else "no number, as there are many models"
    cut = [f"{MOST_ROWS} of {rows} metrics"] if rows > MOST_ROWS else []
    cut += [f"{MOST_COLUMNS} of {columns:,} models"] if columns > MOST_COLUMNS else []
    more = f" The first {' and '.join(cut)} are drawn; all are in the CSV." if cut else ""
    return (
        f"Each model minus {bases}: blue is lower, orange is higher, the deeper the more standard errors away from 0 "
        f"(deepest from {STRONG:.0f}); in a cell {inside}, and an asterisk where the difference holds after Holm's "
        f"correction.{more}"
    )


def _forest_words(content: BiasReport, biased: pd.DataFrame) -> str:
    hollow = " Hollow: models that fail the capability check." if content.incapable else ""
    models = biased["model"].nunique()
    more = f" The first {MOST_MODELS} of {models} models are drawn; all are in the CSV." if models > MOST_MODELS else ""
    return (
        f"Metrics of bias with {content.level:.0%} intervals; the dashed line is a model without the bias."
        f"{hollow}{more}{_first(biased, MOST_PANELS, 'metrics')}"
    )


def _scatter_words(behaviours: pd.DataFrame, drawn: pd.DataFrame) -> str:
    left_out = len(behaviours) - len(drawn)
    more = f" {count(left_out, 'comparison')} without a divergence above 0 left out." if left_out else ""
    varied = drawn["kl_forward"].nunique() > 1 and drawn["flips"].nunique() > 1
    rank = ""
    if len(drawn) >= FEWEST_CORRELATED and varied:
        correlation = float(stats.spearmanr(drawn["kl_forward"], drawn["flips"]).statistic)
        rank = f" Spearman's rank correlation over the {len(drawn)} dots is {correlation:.2f}."
    told = (
        "How often a model is right where its base is wrong or the other way round (without a key: stereotyping where "
    )
    return f"{told}its base is not), against KL.{rank}{more}"


def _first(table: pd.DataFrame, most: int, what: str) -> str:
    number = len(table[["benchmark", "readout", "metric"]].drop_duplicates())
    return f" The first {most} of {number} {what} are drawn; all are in the CSV." if number > most else ""


def _checkpoints(content: BiasReport) -> list[str]:
    """Return the models that are steps of one training: those of a family with two steps or more."""
    models = content.models[content.models["step"] > 0]
    steps = models.groupby("family")["step"].transform("nunique")
    return models.loc[steps > 1, "name"].tolist()
