"""The page about smaller copies of a predictor: what each saves, and what it costs in accuracy and fairness."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fairsisa.errors import DataError
from fairsisa.fairness.rates import EVERYONE
from fairsisa.report.compression_plots import (
    ACCURACY,
    CHANGES,
    INTERVAL,
    LATENCY,
    LAYERS,
    MADE_BY,
    METRICS,
    MODELS,
    changed_words,
    changes_table,
    copies_words,
    layers_table,
    made_table,
    markdown_table,
    measured_table,
    metric_words,
    milliseconds,
    size_panels,
    times_smaller,
    told_apart,
    weight_words,
)
from fairsisa.report.numbers import _plain
from fairsisa.report.pictures import Picture
from fairsisa.report.planning_plots import size_words
from fairsisa.report.rows import Row, by_key, records
from fairsisa.report.svg import inline_svg
from fairsisa.report.tables import Table, settings_table
from fairsisa.report.words import listed, number, percent
from fairsisa.report.writing import code_block, markdown_text, templates, write_whole

FORMAT = 1
NO_PROMISE = (
    "Sparsity promises no speed: a weight that is zero is stored and multiplied like any other, unless the software "
    "that runs the model skips it. What was measured is above."
)
LIMITS = (
    "A change counts as told apart when its paired interval leaves out 0; of many such intervals, some do by chance. "
    '"Not told apart" does not mean equal. Intervals speak of chance in who is in the held-out examples, given these '
    "models: another training, another calibration set or another draw would move every mark.",
    "A difference over groups is a maximum of noisy rates: chance alone lifts it above 0, most where groups are small. "
    "A model that decides almost always alike has almost equal rates in all groups: read a difference beside accuracy.",
    "Latency is that of one text at a time on the machine named below, and stands for no other: whether a scheme is "
    "faster hangs on the processor and the software. A latency counts as told apart when the intervals do not overlap. "
    "One model beside an ensemble of several is smaller and faster for that reason too.",
)


@dataclass(frozen=True, eq=False)
class CompressionReport:
    """Everything the page about smaller copies of a predictor tells.

    `models` (columns `MODELS`) has a row a predictor: `base`, which all are compared with, then every student and every
    pruned or quantised copy; `made_by` is a key of `MADE_BY`, `source` what it was made from, sizes are in bytes,
    `sparsity` is in [0, 1] (NaN: not counted), `bits` the mean of a weight, latency in milliseconds of one text at a
    time (NaN: not measured). `metrics` (`METRICS`) and `changes` (`CHANGES`, predictor minus base) hold, of each model,
    accuracy and `difference` by each of `features`. `layers` (`LAYERS`) has a row a model, constituent and layer.
    `majority_share` is the share of held-out examples in the commonest class, NaN if unknown. `idle` tells of
    descendants out of service why they are.

    Raises:
        DataError: when a table lacks a column or a row, or the first model is not `base`.
    """

    title: str
    base: str
    models: pd.DataFrame
    metrics: pd.DataFrame
    changes: pd.DataFrame
    features: tuple[str, ...] = ()
    difference: str = "equalized_odds_difference"
    layers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(LAYERS)))
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    level: float = 0.95
    environment: Mapping[str, Any] = field(default_factory=dict)
    idle: Mapping[str, str] = field(default_factory=dict)
    majority_share: float = math.nan

    def __post_init__(self) -> None:
        for name, columns in {"models": MODELS, "metrics": METRICS, "changes": CHANGES, "layers": LAYERS}.items():
            missing = [column for column in columns if column not in getattr(self, name).columns]
            if missing:
                expected, lacking = ", ".join(columns), ", ".join(missing)
                raise DataError(f"Expected columns {expected} in the {name} table; {lacking} not found.")
        _check_models(self.base, self.models)
        names, others = self.models["name"].tolist(), sorted(set(self.changes["baseline"]) - {self.base})
        if others:
            raise DataError(f"Expected changes against {self.base!r}, got some against {others[0]!r}.")
        for table, wanted in (("metrics", names), ("changes", names[1:])):
            found = by_key(getattr(self, table))
            for key in ((name, *shown) for name in wanted for shown in self.shown):
                if key not in found:
                    raise DataError(f"Expected {metric_words(key[1:])} of {key[0]!r} in the {table} table; not found.")
        unknown = sorted(set(self.layers["name"]) - set(names))
        if unknown:
            raise DataError(f"Expected layers of the models ({', '.join(names)}), got some of {unknown[0]!r}.")

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """The (sensitive feature, metric) that the page speaks of."""
        return ((EVERYONE, ACCURACY), *((feature, self.difference) for feature in self.features))


@dataclass(frozen=True)
class Section:
    """One part of the page: sentences, a plot, paragraphs, tables, commands; what there is of them, in that order."""

    name: str
    heading: str
    sentences: tuple[str, ...] = ()
    picture: Picture | None = None
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether there is anything to show."""
        return any((self.sentences, self.picture, self.paragraphs, self.tables, self.folded, self.commands))


def _check_models(base: str, models: pd.DataFrame) -> None:
    names = models["name"].tolist()
    if not names or names[0] != base:
        raise DataError(f"Expected {base!r}, which all are compared with, in the first row of the models, got {names}.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"Expected one row a model, got {names.count(twice)} of {twice!r}.")
    wrong = sorted(set(models["made_by"]) - set(MADE_BY))
    if wrong:
        raise DataError(f"Expected models made by {', '.join(MADE_BY)}, got {wrong[0]!r}.")
    for row in records(models):
        if not (row["size_bytes"] > 0 and math.isfinite(row["size_bytes"])):
            raise DataError(f"Expected the size on disk of {row['name']!r} above 0 bytes, got {row['size_bytes']}.")


def write_compression(
    directory: Path, content: CompressionReport, stem: str = "compression"
) -> tuple[Path, Path, Path, Path]:
    """Write <stem>.html, <stem>.md, <stem>.csv and <stem>.json into a directory; return their paths.

    The page stands alone: no script, no address outside it, the plot as SVG within; the text has the same words and
    tables. The CSV has a row a model, its metrics and paired changes side by side. Files of these names are replaced,
    each in one step.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sections = [section for section in _sections(content) if section.holds]
    lead, foot = _lead(content), f"All numbers of this page, unrounded, are in {stem}.csv and {stem}.json beside it."
    page = (
        templates()
        .get_template("compression.html.j2")
        .render(title=content.title, lead=lead, foot=foot, sections=sections)
    )
    numbers = json.dumps(compression_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    return (
        write_whole(directory / f"{stem}.html", page),
        write_whole(directory / f"{stem}.md", _markdown(content.title, (lead, foot), sections)),
        write_whole(directory / f"{stem}.csv", side_by_side(content).to_csv(index=False, lineterminator="\n")),
        write_whole(directory / f"{stem}.json", numbers + "\n"),
    )


def compression_json(content: CompressionReport) -> dict[str, Any]:
    """Return every number of the page as plain JSON values; `format` grows when a key changes its meaning or goes."""
    names = ("title", "base", "difference", "features", "level", "majority_share", "models", "metrics", "changes")
    rest = ("layers", "idle", "warnings", "settings", "environment", "commands")
    told = {"format": FORMAT, "findings": list(findings(content))}
    return told | {name: _plain(getattr(content, name)) for name in (*names, *rest)}


def side_by_side(content: CompressionReport) -> pd.DataFrame:
    """Return `models` with the metrics shown as columns: value, interval, change against the base, its interval.

    A metric's columns are named `<metric>` or `<metric>:<sensitive feature>`, then `_low`, `_high`, `_change`,
    `_change_low`, `_change_high`; the base has no changes.
    """
    table = content.models[list(MODELS)].copy()
    for feature, metric in content.shown:
        stem = f"{metric}:{feature}" if feature else metric
        for found, kind in ((by_key(content.metrics), ""), (by_key(content.changes), "_change")):
            rows = [found.get((name, feature, metric), {}) for name in table["name"]]
            for end in INTERVAL:
                ending = "" if end == "value" else f"_{end}"
                table[f"{stem}{kind}{ending}"] = [float(row.get(end, math.nan)) for row in rows]
    return table


def findings(content: CompressionReport) -> tuple[str, ...]:
    """Say which copies decide otherwise than the base, by paired intervals, and what they save in size and time.

    One sentence or two a matter: the base, accuracy and each difference, collapsed models, size, latency, idle ones.
    """
    base, *copies = records(content.models)
    told = [_base_finding(content)]
    for key in content.shown if copies else ():
        told.append(_change_finding(content, key))
    told += _collapsed(content)
    told += [_size_finding(base, copies), _latency_finding(base, copies)] if copies else ["No copy of it was measured."]
    if content.idle:
        are = "is" if len(content.idle) == 1 else "are"
        told.append(f"{copies_words(len(content.idle))} {are} out of service: {listed(list(content.idle))}.")
    return tuple(told)


def _base_finding(content: CompressionReport) -> str:
    found = by_key(content.metrics)
    right = found[content.base, EVERYONE, ACCURACY]
    parts = [
        f"{content.base} decides {percent(right['value'])} of the held-out examples rightly "
        f"({percent(right['low'])} to {percent(right['high'])})"
    ]
    for key in content.shown[1:]:
        row = found[content.base, *key]
        parts.append(
            f"its {metric_words(key)} is {number(row['value'])} ({number(row['low'])} to {number(row['high'])})"
        )
    return "; ".join(parts) + "."


def _change_finding(content: CompressionReport, key: tuple[str, str]) -> str:
    """Say for which copies a metric is told apart from the base's, on which side, and for which it is not."""
    found, names = by_key(content.changes), content.models["name"].tolist()[1:]
    rows = [found[name, *key] for name in names]
    defined = [row for row in rows if math.isfinite(row["value"])]
    told = {way: [changed_words(row, key) for row in defined if told_apart(row) == way] for way in (-1, 1)}
    same = [str(row["predictor"]) for row in defined if told_apart(row) == 0]
    apart = len(told[-1]) + len(told[1])
    sides = [f"{word} for {', '.join(told[way])}" for way, word in ((-1, "lower"), (1, "higher")) if told[way]]
    opening = f"The {metric_words(key)}" if key[0] else "Accuracy"
    of = f"{apart or 'none'} of {copies_words(len(rows))}"
    sentence = f"{opening} is told apart from that of {content.base} for {of}{': ' if sides else ''}{'; '.join(sides)}."
    if same and apart:
        sentence += f" It is not told apart for {', '.join(same)}."
    undefined = [str(row["predictor"]) for row in rows if not math.isfinite(row["value"])]
    return sentence + (f" It is undefined for {listed(undefined)}." if undefined else "")


def _collapsed(content: CompressionReport) -> Iterator[str]:
    """Warn of models whose error rates agree because they decide almost always alike."""
    found, paired = by_key(content.metrics), by_key(content.changes)
    names = content.models["name"].tolist()
    gone = [name for name in names if found[name, EVERYONE, ACCURACY]["low"] <= content.majority_share]
    if gone:
        does = "does not decide" if len(gone) == 1 else "do not decide"
        yield (
            f"Beware: {listed(gone)} {does} more rightly, as far as can be told, than always answering with the "
            f"commonest class would ({percent(content.majority_share)}). A collapsed model looks fair: it errs alike "
            "in every group, so a small difference there says nothing."
        )
    fell = [
        name
        for name in names[1:]
        if name not in gone
        and told_apart(paired[name, EVERYONE, ACCURACY]) < 0
        and any(told_apart(paired[name, *key]) < 0 for key in content.shown[1:])
    ]
    if fell:
        yield (
            f"Beware: for {listed(fell)} a difference fell together with accuracy. A collapsed model looks fair, and a "
            "model on the way there looks fairer: look at its rates in every group before calling it so."
        )


def _size_finding(base: Row, copies: list[Row]) -> str:
    best = min(copies, key=lambda row: row["size_bytes"])
    sentence = f"On disk {base['name']} takes {weight_words(base)}."
    if best["size_bytes"] < base["size_bytes"]:
        sentence += f" The smallest copy is {best['name']} with {weight_words(best)}, {times_smaller(base, best)}."
    larger = [
        f"{row['name']} ({size_words(row['size_bytes'])})" for row in copies if row["size_bytes"] >= base["size_bytes"]
    ]
    return sentence + (f" Not smaller: {', '.join(larger)}." if larger else "")


def _latency_finding(base: Row, copies: list[Row]) -> str:
    """Say which copies are faster and which slower, told apart where the intervals of latency do not overlap."""
    told: dict[str, list[str]] = {"Faster": [], "Slower": [], "Not told apart": [], "Not measured": []}
    if not math.isfinite(base["latency_ms"]):
        return f"The latency of {base['name']} was not measured: no copy can be called faster or slower."
    for row in copies:
        own = f"{row['name']} ({milliseconds(row['latency_ms'])} ms"
        ratio = base["latency_ms"] / row["latency_ms"]
        if not math.isfinite(ratio):
            told["Not measured"].append(str(row["name"]))
        elif row["latency_high"] < base["latency_low"]:
            told["Faster"].append(f"{own}, {ratio:.2f} times as fast)")
        elif row["latency_low"] > base["latency_high"]:
            told["Slower"].append(f"{own}, takes {1 / ratio:.2f} times as long)")
        else:
            told["Not told apart"].append(f"{own})")
    sides = " ".join(f"{way}: {', '.join(names)}." for way, names in told.items() if names)
    middle, low, high = (milliseconds(base[name]) for name in LATENCY)
    return f"One text at a time, {base['name']} takes {middle} ms ({low} to {high}). {sides}"


def _lead(content: CompressionReport) -> str:
    return (
        f"{copies_words(len(content.models) - 1).capitalize()} of {content.base}, distilled, pruned or quantised, each "
        f"compared with it on the same held-out examples. Intervals cover {content.level:.0%}; those of changes are "
        "paired."
    )


def _sections(content: CompressionReport) -> Iterator[Section]:
    picture = _picture(content)
    idle = tuple(f"{name}: {reason}" for name, reason in content.idle.items())
    yield Section("headline", "Findings", findings(content))
    yield Section("sizes", "Size, accuracy and fairness", picture=picture, tables=_tables(content))
    layers = tuple(table for table in (layers_table(content.layers),) if table.rows)
    if layers or (content.models["sparsity"] > 0).any():
        yield Section("layers", "Sparsity in every layer", paragraphs=(NO_PROMISE,), folded=layers)
    yield Section("idle", "Out of service", idle)
    yield Section("care", "Read with care", content.warnings or ("No warning came up.",))
    yield Section("limits", "What these numbers cannot tell", paragraphs=LIMITS)
    kept = (settings_table("Settings", content.settings), settings_table("Environment", content.environment))
    tables = tuple(table for table in kept if table.rows)
    yield Section("settings", "Settings and environment", tables=tables, commands=content.commands)


def _tables(content: CompressionReport) -> tuple[Table, ...]:
    changes = changes_table(content.models, content.changes, content.shown)
    measured = measured_table(content.models, content.metrics, content.shown)
    return (measured, *([changes] if changes.rows else []), made_table(content.models))


def _picture(content: CompressionReport) -> Picture:
    below = " and against each difference" if content.features else ""
    caption = (
        f"Size on disk, on a logarithmic scale, against accuracy{below}, with {content.level:.0%} intervals. Filled "
        f"marks are told apart from {content.base} (dashed) by the interval of the paired change, hollow ones are not; "
        "marks of about equal size stand side by side. Further left is smaller, higher accuracy and a lower difference "
        "are better; a low difference beside a low accuracy is no achievement."
    )
    figure = size_panels(content.models, content.metrics, content.changes, content.shown)
    return Picture(inline_svg(figure, name="size", description=caption), caption)


def _markdown(title: str, ends: tuple[str, str], sections: list[Section]) -> str:
    """Return the page as Markdown, without the plot."""
    parts = [f"# {markdown_text(title)}", markdown_text(ends[0])]
    for section in sections:
        parts.append(f"## {section.heading}")
        parts += ["\n".join(f"- {markdown_text(sentence)}" for sentence in section.sentences)]
        parts += [markdown_text(paragraph) for paragraph in section.paragraphs]
        if section.commands:
            parts += ["To reproduce:", code_block(list(section.commands))]
        parts += [markdown_table(table) for table in (*section.tables, *section.folded)]
    return "\n\n".join(part for part in (*parts, markdown_text(ends[1])) if part) + "\n"
