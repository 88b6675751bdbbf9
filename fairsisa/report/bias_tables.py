"""The tables that people read on the page about bias and behaviour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fairsisa.bias.benchmark import ASPECTS, COVERAGE
from fairsisa.bias.statistics import FEW_CLUSTERS
from fairsisa.report.bias_content import BiasReport, compared, overall, series_names
from fairsisa.report.bias_findings import differs, metric_words, p_words, value_words
from fairsisa.report.planning_plots import size_words
from fairsisa.report.rows import Row, by_key, records
from fairsisa.report.tables import Cell, Table
from fairsisa.report.words import UNDEFINED, percent

MOST_ROWS = 60
UNBROKEN = "\u00a0"
MODELS_SIDE_BY_SIDE = 3
SHORT_DIGEST = 12
NONE = "—"
FAILS = "fails the capability check"
ORDER = {aspect: place for place, aspect in enumerate(ASPECTS)}


@dataclass(frozen=True)
class MarkedCell(Cell):
    """A cell that the page sets off: `mark` is "warning" for what a reader must not overlook, "told" for what holds."""

    mark: str = ""


def cut(caption: str, columns: Sequence[str], rows: Sequence[tuple[Cell, ...]], *, num_text: int = 1) -> Table:
    """Return a table of the first `MOST_ROWS` rows; its caption says how many there are."""
    more = f" (first {MOST_ROWS} of {len(rows):,} shown, all in the CSV)" if len(rows) > MOST_ROWS else ""
    return Table(f"{caption}{more}", tuple(columns), tuple(rows[:MOST_ROWS]), num_text=num_text)


def models_table(models: pd.DataFrame) -> Table:
    """Show every model: what it is, how large, and whether it has learnt anything; empty columns are left out."""
    shown: list[tuple[str, str, Callable[[Row], Cell]]] = [
        ("name", "model", lambda row: Cell(str(row["name"]))),
        ("kind", "kind", lambda row: Cell(row["kind"])),
        ("digest", "digest", lambda row: Cell(str(row["digest"])[:SHORT_DIGEST])),
        ("capability", "capability check", _capability),
        ("num_parameters", "parameters", lambda row: _whole(row["num_parameters"])),
        ("bytes_on_disk", "on disk", _bytes),
        ("sparsity", "zeros", lambda row: Cell(percent(row["sparsity"]) if math.isfinite(row["sparsity"]) else NONE)),
    ]
    kept = [each for each in shown if models[each[0]].notna().any() and (models[each[0]] != "").any()]
    rows = [tuple(cell(row) for _, _, cell in kept) for row in records(models)]
    num_text = sum(name in ("name", "kind", "digest", "capability") for name, _, _ in kept)
    return cut("Models", [title for _, title, _ in kept], rows, num_text=num_text)


def measure_tables(content: BiasReport) -> Iterator[tuple[str, str, list[Table], list[Table]]]:
    """Yield for each benchmark and readout: both names, the tables over all items, and those of its groups."""
    for (benchmark, readout), own in content.measures.groupby(["benchmark", "readout"], sort=False):
        whole, groups = overall(own), own[own["group"] != ""]
        few = whole["model"].nunique() <= MODELS_SIDE_BY_SIDE
        gone = content.incapable
        tables = [_by_metric(whole, gone)] if few else [_by_model(whole, gone), _meanings(whole)]
        yield str(benchmark), str(readout), tables, [_group_table(groups)] if len(groups) else []


def comparison_tables(content: BiasReport) -> tuple[list[Table], list[Table]]:
    """Return the table of differences over all items, and that of groups; those told apart come first."""
    tables: list[list[Table]] = [[], []]
    named = content.comparisons.assign(benchmark=series_names(content.comparisons))
    by_group = named[(named["group"] != "") & (named["aspect"] != COVERAGE)]
    for place, own in enumerate((compared(named), by_group)):
        rows = sorted(records(own), key=lambda row: (not row["p_holm"] <= 1, row["p_holm"], row["p_value"]))
        if rows:
            caption = f"Differences from the base{' by group' if place else ''}, those told apart first"
            tables[place].append(_differences(caption, rows, content, grouped=bool(place)))
    return tables[0], tables[1]


def behaviour_table(behaviours: pd.DataFrame) -> Table:
    """Show how answers changed; without a key, what has the outcome 1 stands in for what is right."""
    columns = (
        *("model", "base", "benchmark", "items", "flips", "all flips"),
        *("right to wrong", "wrong to right", "wrong to wrong", "accuracy, points"),
        *("top margin where changed", "KL(base, model)", "KL(model, base)"),
    )
    rows = [
        (
            *(Cell(str(row[name])) for name in ("other", "base")),
            Cell(str(row["benchmark"]), "outcome 1 in place of right" if row["flips_of"] == "outcome" else ""),
            _whole(row["num_items"]),
            *(Cell(percent(row[name])) for name in ("flips", "all_flips")),
            *(_whole(row[name]) for name in ("correct_to_wrong", "wrong_to_correct", "wrong_to_wrong")),
            _figures(100 * row["accuracy_change"], "+.1f"),
            Cell(
                _figures(row["top_margin_changed"], ".3f").text,
                f"else {_figures(row['top_margin_unchanged'], '.3f').text}",
            ),
            *(_figures(row[name], ".3g") for name in ("kl_forward", "kl_backward")),
        )
        for row in records(behaviours)
    ]
    return cut("Changed answers, and KL divergence over the options in nats", columns, rows, num_text=3)


def divergence_table(divergences: pd.DataFrame) -> Table:
    """Show KL over the full vocabulary, a token."""
    rows = [
        (
            *(Cell(str(row[name])) for name in ("other", "base", "corpus")),
            *(_with_ends(row, f"kl_{way}") for way in ("forward", "backward")),
            Cell(percent(row["same_top"])),
            _whole(row["num_tokens"]),
        )
        for row in records(divergences)
    ]
    columns = ("model", "base", "text", "KL(base, model)", "KL(model, base)", "same likeliest token", "tokens")
    return cut("KL divergence over the full vocabulary, nats a token", columns, rows, num_text=3)


def plain_table(caption: str, table: pd.DataFrame, *, num_text: int = 1) -> Table:
    """Show a table as it is, but for columns that hold nothing."""
    kept = [str(name) for name in table.columns if table[name].notna().any() and (table[name] != "").any()]
    rows = [tuple(Cell(_as_text(row[name])) for name in kept) for row in records(table[kept])]
    return cut(caption, [metric_words(name) for name in kept], rows, num_text=num_text)


def _by_metric(whole: pd.DataFrame, incapable: Sequence[str]) -> Table:
    """Show few models side by side, a row a metric with what higher means."""
    models = list(dict.fromkeys(whole["model"]))
    found = by_key(whole, ("model", "metric"))
    rows = []
    for row in _metrics(whole):
        cells = (_measured(found.get((model, row["metric"]))) for model in models)
        name = Cell(metric_words(row["metric"]), str(row["aspect"]))
        rows.append((name, Cell(row["higher_means"]), Cell(_reference(row)), *cells))
    named = (f"{model} ({FAILS})" if model in incapable else model for model in models)
    columns = ("metric", "higher means", "reference", *named)
    return Table("Over all items, with intervals", columns, tuple(rows), num_text=3)


def _by_model(whole: pd.DataFrame, incapable: Sequence[str]) -> Table:
    """Show many models one below the other, a column a metric."""
    metrics, found = _metrics(whole), by_key(whole, ("model", "metric"))
    rows = [
        (_named(model, incapable), *(_measured(found.get((model, row["metric"]))) for row in metrics))
        for model in dict.fromkeys(whole["model"])
    ]
    return cut("Over all items, with intervals", ("model", *(metric_words(row["metric"]) for row in metrics)), rows)


def _named(model: str, incapable: Sequence[str], detail: str = "") -> Cell:
    if model in incapable:
        return MarkedCell(model, f"{detail} {FAILS}".strip(), "warning")
    return Cell(model, detail)


def _meanings(whole: pd.DataFrame) -> Table:
    rows = tuple(
        (
            Cell(metric_words(row["metric"])),
            Cell(row["aspect"]),
            Cell(row["higher_means"]),
            Cell(_reference(row)),
        )
        for row in _metrics(whole)
    )
    return Table("What the metrics mean", ("metric", "aspect", "higher means", "reference"), rows, num_text=4)


def _metrics(whole: pd.DataFrame) -> list[Row]:
    """Return a row a metric, bias before capability before coverage."""
    rows = records(whole.drop_duplicates("metric"))
    return sorted(rows, key=lambda row: ORDER.get(str(row["aspect"]), len(ORDER)))


def _group_table(groups: pd.DataFrame) -> Table:
    rows = [
        (
            Cell(row["group"]),
            Cell(metric_words(row["metric"])),
            Cell(row["model"]),
            _measured(row),
            _whole(row["num_scored"]),
        )
        for row in records(groups[groups["aspect"] != COVERAGE])
    ]
    return cut("By group", ("group", "metric", "model", "value", "items scored"), rows, num_text=3)


def _differences(caption: str, rows: Sequence[Row], content: BiasReport, *, grouped: bool) -> Table:
    columns = (
        *("metric", *(["group"] if grouped else []), "model", "verdict"),
        *("of the base", "of the model", "difference", "p, corrected", "items", "changed"),
    )
    several = len({row["base"] for row in rows}) > 1
    shown = [
        (
            Cell(metric_words(row["metric"]), str(row["benchmark"])),
            *([Cell(row["group"])] if grouped else []),
            _named(str(row["other"]), content.incapable, f"against {row['base']}" if several else ""),
            verdict(row, content.alpha),
            *(Cell(value_words(row[f"{who}_value"], str(row["unit"]))) for who in ("base", "other")),
            _difference(row),
            Cell(_bare(row["p_holm"]), f"{row['test']} {_bare(row['p_value'])}".strip()),
            _paired(row),
            _flips(row),
        )
        for row in rows
    ]
    return cut(caption, columns, shown, num_text=4 if grouped else 3)


def verdict(row: Row, alpha: float) -> MarkedCell:
    """Return in words whether a comparison tells the two models apart, and whether by more than the floor."""
    floor = "within the floor" if row["above_floor"] is False and row["to_one"] + row["to_zero"] > 0 else ""
    if not math.isfinite(row["p_holm"]):
        return MarkedCell("not tested", floor)
    if not differs(row, alpha):
        return MarkedCell("not told apart".replace(" ", UNBROKEN), floor)
    return MarkedCell("lower" if row["difference"] < 0 else "higher", floor, "told")


def _difference(row: Row) -> Cell:
    unit = str(row["unit"])
    if not math.isfinite(row["difference"]):
        return Cell(UNDEFINED)
    ends = f"[{_short(row['low'], unit, plus=True)}, {_short(row['high'], unit, plus=True)}]"
    return Cell(value_words(row["difference"], unit, plus=True), ends if math.isfinite(row["low"]) else "")


def _paired(row: Row) -> Cell:
    alone = int(row["num_unpaired"]) if math.isfinite(row["num_unpaired"]) else 0
    told = [f"{alone:,} in one only"] if alone else []
    if row["num_clusters"] < FEW_CLUSTERS:
        told.append(f"few clusters: {row['num_clusters']:.0f}")
    return Cell(_whole(row["num_paired"]).text, ", ".join(told))


def _flips(row: Row) -> Cell:
    if not row["flips"] or not math.isfinite(row["gross"]):
        return Cell(NONE)
    return Cell(percent(row["gross"]), f"{row['to_one']:,} up, {row['to_zero']:,} down")


def _bare(p: float) -> str:
    return p_words(p).removeprefix("p ").removeprefix("= ")


def _measured(row: Row | None) -> Cell:
    if row is None:
        return Cell(NONE)
    unit, flag = str(row["unit"]), str(row["flag"])
    value = value_words(row["value"], unit)
    ends = f"[{_short(row['low'], unit)}, {_short(row['high'], unit)}]" if math.isfinite(row["low"]) else ""
    if flag:
        return MarkedCell(value, f"{ends} {flag}".strip(), "warning")
    return Cell(value, ends)


def _reference(row: Row) -> str:
    told = [
        f"{name} {value_words(row[name], str(row['unit']))}"
        for name in ("neutral", "chance")
        if math.isfinite(row[name])
    ]
    return ", ".join(told) or NONE


def _capability(row: Row) -> Cell:
    if row["capable"] is None:
        return Cell("not checked", row["capability"])
    return Cell("passed", row["capability"]) if row["capable"] else MarkedCell("failed", row["capability"], "warning")


def _with_ends(row: Row, name: str) -> Cell:
    if not math.isfinite(row[name]):
        return Cell(UNDEFINED)
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return Cell(f"{row[name]:.3g}", f"[{low:.3g}, {high:.3g}]" if math.isfinite(low) else "")


def _short(value: float, unit: str, *, plus: bool = False) -> str:
    return value_words(value, unit, plus=plus).removesuffix(" %").removesuffix(" points")


def _figures(value: float, form: str) -> Cell:
    return Cell(f"{value:{form}}" if math.isfinite(value) else NONE)


def _whole(value: Any) -> Cell:
    return Cell(f"{int(value):,}" if value is not None and math.isfinite(value) else NONE)


def _bytes(row: Row) -> Cell:
    value = row["bytes_on_disk"]
    return Cell(size_words(value) if math.isfinite(value) else NONE)


def _as_text(value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return NONE
        return f"{int(value):,}" if value.is_integer() else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
