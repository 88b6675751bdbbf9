"""The verb `compare`: models against one, item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers.logger import Logger

from fairsisa.bias.benchmark import NOT_COMPARED
from fairsisa.bias.candidate import CAUSAL, CLASSIFIER, MASKED, Candidate
from fairsisa.bias.catalogue import find_benchmark
from fairsisa.bias.comparing import Floor, compare, floor_of, holm_over, with_floor
from fairsisa.bias.evaluation import Evaluated
from fairsisa.errors import ConfigError
from fairsisa.execution.local import computing_threads
from fairsisa.report.bias import BiasReport, write_bias
from fairsisa.runs.behaving import behaviour_row, margin_rows
from fairsisa.runs.bias import (
    NOBODY,
    Kept,
    Progress,
    Result,
    Session,
    evaluate_model,
    nothing_to_tell,
    report_of,
    resolved,
    stacked,
    suited,
)
from fairsisa.runs.bias_logging import log_measures
from fairsisa.runs.candidates import Named
from fairsisa.runs.directory import Run
from fairsisa.runs.diverging import Corpora, divergence_rows, find_corpora
from fairsisa.settings import ComparisonSettings, JudgeSettings, PathSettings, ScoringSettings
from fairsisa.store import Store
from fairsisa.store.durable import explained

STEM, AGAIN = "compare", "the base itself"
SMALLEST = 64
"""Batches of the second asking hold at least so many tokens: where half were fewer, they hold twice as many."""


@dataclass(frozen=True, eq=False)
class Pairwise:
    """How another model differs from the base: a table each, empty where there is nothing to tell."""

    comparisons: pd.DataFrame
    behaviours: pd.DataFrame
    margins: pd.DataFrame
    divergences: pd.DataFrame


def compare_run(
    directory: Path,
    settings: ComparisonSettings,
    scoring: ScoringSettings,
    *,
    paths: PathSettings,
    judge: JudgeSettings = NOBODY,
    loggers: Sequence[Logger] = (),
    on_progress: Progress = nothing_to_tell,
    command: str | None = None,
) -> BiasReport:
    """Ask a base and other models the same items; write scores, measures, paired differences and a page with all.

    What the models answered is kept as `bias_run` keeps it, and shared with it. Holm's correction is over every
    difference of the command. Language models of one vocabulary are compared over it on `settings.corpora` too.

    Raises:
        ConfigError: when there is nothing to compare, or no benchmark suits both.
        FairsisaError: of the kind that fits, when a model or a file cannot be read.
    """
    if settings.base is None or not settings.other:
        raise ConfigError("Set base=<model> and other=<model, or a list>: what is to be compared?")
    session = Session(settings, resolved(scoring), paths, directory, judge, on_progress)
    with Run(directory).locked(), computing_threads(scoring.threads):
        first, *others = _models(session, settings)
        corpora = find_corpora(settings, paths)
        base = _asked(session, first)
        _require_suited(settings, base.candidate)
        # A classifier reads texts in batches of its own: asked again, it would do the very same.
        floors = _floors(session, first, base) if settings.floor and base.candidate.kind != CLASSIFIER else {}
        results, pairs = [base.kept], list[Pairwise]()
        for model in others:
            result = _asked(session, model)
            divergences = _diverged(session, base.candidate, result.candidate, corpora, model.store)
            pair = _paired(session, base, result, floors, divergences)
            unread = _unread(base, result, corpora) if pair.divergences.empty else pd.DataFrame()
            results.append(with_notes(result.kept, stacked([_unmatched(base, result), unread])))
            pairs.append(pair)
        report = _report(session, results, pairs, floors=(base, floors), command=command)
        with explained(f"write the comparison to {directory}"):
            write_bias(directory, report, stem=STEM)
    log_measures(loggers, report)
    return report


def _asked(session: Session, model: Named) -> Result:
    candidate = model.open()
    return evaluate_model(session, model, candidate, suited(session.settings.benchmarks, candidate.kind))


def _floors(session: Session, model: Named, base: Result) -> dict[tuple[str, str], Floor]:
    """Return, by benchmark and readout, what changes when the base is asked again in batches of another size."""
    half = session.scoring.max_tokens // 2
    again = session.asking_again(half if half >= SMALLEST else 2 * session.scoring.max_tokens)
    floors = {}
    for each in base.evaluated:
        second = again.evaluated(model, base.candidate, (each.benchmark, each.readout.name))
        floors[each.benchmark.name, each.readout.name] = floor_of(each.scores, second.scores)
    return floors


def _paired(
    session: Session,
    base: Result,
    other: Result,
    floors: Mapping[tuple[str, str], Floor],
    divergences: pd.DataFrame,
) -> Pairwise:
    tables: dict[str, list[pd.DataFrame]] = {"comparisons": [], "behaviours": [], "margins": []}
    pair = {"base": base.candidate.name, "other": other.candidate.name}
    for mine, theirs in _matched(base.evaluated, other.evaluated):
        names = {"benchmark": mine.benchmark.name, "readout": mine.readout.name}
        table = _compared(session, mine, theirs)
        floor = floors.get((names["benchmark"], names["readout"]))
        tables["comparisons"].append((table if floor is None else with_floor(table, floor)).assign(**pair, **names))
        tables["behaviours"].append(pd.DataFrame([{**pair, **names, **row} for row in behaviour_row(mine, theirs)]))
        tables["margins"].append(margin_rows(mine, theirs).assign(**pair, **names))
    return Pairwise(**{name: stacked(each) for name, each in tables.items()}, divergences=divergences)


def _models(session: Session, settings: ComparisonSettings) -> list[Named]:
    """Return the base, which must be one model, and the others; a model may be compared with itself."""
    others = [name for name in settings.other if name != settings.base]
    base = session.models([str(settings.base)])
    if len(base) > 1:
        raise ConfigError(f"Expected base={settings.base} to be one model, got {len(base)}, such as {base[-1].name}.")
    models = session.models([str(settings.base), *others])
    twice = [replace(models[0], name=AGAIN, open=partial(_again, models[0]))] * (len(others) < len(settings.other))
    return [*models, *twice]


def _again(model: Named) -> Candidate:
    return replace(model.open(), name=AGAIN)


def _require_suited(settings: ComparisonSettings, base: Candidate) -> None:
    for name in settings.benchmarks:
        benchmark, readout = find_benchmark(name)
        kinds = {each.kind for each in benchmark.readouts if readout in (None, each.name)}
        if kinds and base.kind not in kinds:
            asked = " or ".join(sorted(kinds))
            raise ConfigError(f"{name} asks {asked} models, and base={base.name} is a {base.kind} one.")


def _unmatched(base: Result, other: Result) -> pd.DataFrame:
    """Return a note for each benchmark that the two were not both asked in the same way."""
    known = {(each.benchmark.name, each.readout.name) for each in other.evaluated}
    rows = [
        {
            "state": NOT_COMPARED,
            "reason": f"{other.candidate.name} ({other.candidate.kind}) is not asked {each.benchmark.name} as "
            f"{base.candidate.name} ({base.candidate.kind}) is",
            "count": len(each.scores),
            "item_id": each.scores["item_id"].iloc[0],
            "model": other.candidate.name,
            "benchmark": each.benchmark.name,
            "readout": each.readout.name,
        }
        for each in base.evaluated
        if (each.benchmark.name, each.readout.name) not in known
    ]
    return pd.DataFrame(rows)


def _unread(base: Result, other: Result, corpora: Corpora) -> pd.DataFrame:
    """Return a note for each text on which two models could not be held against each other."""
    pair = f"{other.candidate.name} ({other.candidate.kind}) and {base.candidate.name} ({base.candidate.kind})"
    rows = [
        {
            "state": NOT_COMPARED,
            "reason": f"{pair} do not predict the same tokens of {text.name}: no KL over a vocabulary",
            "count": 0,
            "item_id": "",
            "model": other.candidate.name,
            "benchmark": text.name,
            "readout": "",
        }
        for text in corpora.texts
    ]
    return pd.DataFrame(rows)


def with_notes(kept: Kept, more: pd.DataFrame) -> Kept:
    """Return what is kept of a model with more notes."""
    return replace(kept, notes=stacked([kept.notes, more]))


def _matched(mine: Sequence[Evaluated], theirs: Sequence[Evaluated]) -> list[tuple[Evaluated, Evaluated]]:
    """Return what both were asked in the same way."""
    known = {(each.benchmark.name, each.readout.name): each for each in theirs}
    keys = [(each.benchmark.name, each.readout.name) for each in mine]
    return [(each, known[key]) for each, key in zip(mine, keys, strict=True) if key in known]


def _compared(session: Session, mine: Evaluated, theirs: Evaluated) -> pd.DataFrame:
    benchmark = mine.benchmark
    return compare(
        mine.scores, theirs.scores, benchmark.metrics, breakdown=benchmark.breakdown, bootstrap=session.bootstrap
    )


def _diverged(session: Session, base: Candidate, other: Candidate, corpora: Corpora, store: Store) -> pd.DataFrame:
    if not {base.kind, other.kind} <= {CAUSAL, MASKED}:
        return pd.DataFrame()
    return pd.DataFrame(divergence_rows(base, other, corpora, bootstrap=session.bootstrap, store=store))


def _report(
    session: Session,
    results: Sequence[Kept],
    pairs: Sequence[Pairwise],
    *,
    floors: tuple[Result, Mapping[tuple[str, str], Floor]],
    command: str | None,
) -> BiasReport:
    comparisons = stacked([pair.comparisons for pair in pairs])
    base, by_benchmark = floors
    rows: list[dict[str, Any]] = [
        {
            "model": base.candidate.name,
            "benchmark": benchmark,
            "readout": readout,
            "num_items": floor.num_items,
            "largest_difference": floor.largest_difference,
            "changed_answers": floor.changed_answers,
        }
        for (benchmark, readout), floor in by_benchmark.items()
    ]
    return report_of(
        session,
        results,
        title=f"Compared with {base.candidate.name}",
        command=command,
        comparisons=holm_over(comparisons) if len(comparisons) else comparisons,
        behaviours=stacked([pair.behaviours for pair in pairs]),
        margins=stacked([pair.margins for pair in pairs]),
        divergences=stacked([pair.divergences for pair in pairs]),
        floors=pd.DataFrame(rows),
    )
