"""The verb `bias`: what models do on benchmarks of bias, toxicity and behaviour."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers.logger import Logger

from fairsisa.bias.benchmark import MALFORMED, NOT_SCORED, Benchmark, Files
from fairsisa.bias.benchmarks.mt_bench import graded
from fairsisa.bias.candidate import CAUSAL, CLASSIFIER, ENCODER, MASKED, Candidate
from fairsisa.bias.capability import Capability, check_capability
from fairsisa.bias.catalogue import find_benchmark
from fairsisa.bias.evaluation import Evaluated, Rate, evaluate, limited
from fairsisa.bias.items import ItemTable
from fairsisa.bias.judging import CHAT_JUDGE
from fairsisa.bias.measuring import measure
from fairsisa.errors import ConfigError
from fairsisa.execution.local import computing_threads
from fairsisa.intervals import Bootstrap
from fairsisa.lineage import canonical_json
from fairsisa.models.device import resolve_accelerator
from fairsisa.report.bias import BiasReport, write_bias
from fairsisa.runs.bias_logging import log_measures
from fairsisa.runs.candidates import Named, named_models
from fairsisa.runs.directory import Run
from fairsisa.runs.raters import Rater, find_rater, rater_table
from fairsisa.runs.training import data_root, store_of
from fairsisa.settings import BiasSettings, JudgeSettings, PathSettings, ScoringSettings, plain
from fairsisa.store.durable import explained

SUITED: Mapping[str, tuple[str, ...]] = {
    MASKED: ("crows_pairs", "stereoset_intrasentence", "winobias", "winogender", "seat"),
    CAUSAL: ("crows_pairs", "stereoset_intrasentence", "stereoset_intersentence", "winobias", "winogender", "seat"),
    CLASSIFIER: ("hatecheck", "wiki_madlibs"),
    ENCODER: ("seat", "weat"),
}
"""What is asked where nobody said: bias of each kind that takes minutes and needs no other model."""
NOBODY = JudgeSettings()
Progress = Callable[[str, int, int], None]
"""Told what is asked, how many items are answered, and how many there are."""


def nothing_to_tell(what: str, done: int, total: int) -> None:
    """Hear of progress and do nothing."""


@dataclass(frozen=True, eq=False)
class Session:
    """What all evaluations of one command share; tables and raters fill up as they are needed."""

    settings: BiasSettings
    scoring: ScoringSettings
    paths: PathSettings
    directory: Path
    judge: JudgeSettings
    on_progress: Progress = nothing_to_tell
    benchmarks: dict[str, Benchmark] = field(default_factory=dict)
    tables: dict[str, ItemTable] = field(default_factory=dict)
    raters: dict[str, Rater] = field(default_factory=dict)

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are drawn."""
        return Bootstrap(self.settings.num_replicates, self.settings.level, self.settings.seed)

    def models(self, names: Sequence[str]) -> list[Named]:
        """Return the models that names stand for."""
        return named_models(names, self.scoring, store=store_of(self.paths), tokenizer=self.settings.tokenizer)

    @property
    def told(self) -> pd.DataFrame:
        """What is known of the benchmarks that were read: title, source, licence of the data, criticism."""
        names = ("title", "source", "licence", "criticism")
        read = self.benchmarks.values()
        return pd.DataFrame([{"benchmark": each.name} | {name: getattr(each, name) for name in names} for each in read])

    def table(self, benchmark: Benchmark) -> ItemTable:
        """Return a benchmark's items, or the part of them that was asked for, read once."""
        if benchmark.name not in self.tables:
            files = Files(data_root(self.paths), Path(self.paths.cache).expanduser())
            whole = benchmark.load(files)
            self.benchmarks[benchmark.name] = benchmark
            self.tables[benchmark.name] = limited(whole, self.settings.limit, self.settings.seed, benchmark.whole)
        return self.tables[benchmark.name]

    def rater(self, what: str) -> Rate:
        """Return what rates texts, found once: a classifier, or the chat model that grades."""
        if what == CHAT_JUDGE:
            return partial(graded, settings=self.judge, keep=self.directory / "judgements")
        if what not in self.raters:
            self.raters[what] = find_rater(
                what, self.settings, self.scoring, paths=self.paths, store=store_of(self.paths)
            )
        return self.raters[what].rate

    def evaluated(self, model: Named, candidate: Candidate, chosen: tuple[Benchmark, str | None]) -> Evaluated:
        """Return what a model does on a benchmark."""
        benchmark, name = chosen
        readout = benchmark.readout(candidate.kind, name)
        return evaluate(
            candidate,
            benchmark,
            replace(readout, settings={**readout.settings, **self.more(candidate.kind)}),
            self.table(benchmark),
            self.scoring,
            store=model.store,
            rate=None if readout.rater is None else self.rater(readout.rater),
            tell=lambda done, total: self.on_progress(f"{candidate.name}: {benchmark.name}", done, total),
        )

    def more(self, kind: str) -> Mapping[str, Any]:
        """Return what readouts of a kind are told beside their benchmark's settings."""
        named = list(self.settings.positive_classes)
        return {"positive_classes": named} if named and kind == CLASSIFIER else {}

    def asking_again(self, max_tokens: int) -> Session:
        """Return the same with batches of another size."""
        return replace(self, scoring=replace(self.scoring, max_tokens=max_tokens))


def bias_run(
    directory: Path,
    settings: BiasSettings,
    scoring: ScoringSettings,
    *,
    paths: PathSettings,
    judge: JudgeSettings = NOBODY,
    loggers: Sequence[Logger] = (),
    on_progress: Progress = nothing_to_tell,
    command: str | None = None,
) -> BiasReport:
    """Ask models benchmarks; write scores by item, measures, and a page with both into the directory.

    Every item's score is in scores/<model>/<benchmark>.<readout>.parquet. What was answered is kept in a store under
    the model's digest: the same command goes on where it was killed, and asks nothing twice.

    Raises:
        ConfigError: when there is nothing to ask, or a benchmark suits none of the models.
        FairsisaError: of the kind that fits, when a model or a file cannot be read.
    """
    session = Session(settings, resolved(scoring), paths, directory, judge, on_progress)
    with Run(directory).locked(), computing_threads(scoring.threads):
        results = [result.kept for result in evaluate_models(session, session.models(settings.models))]
        report = report_of(session, results, title="Bias and behaviour", command=command)
        with explained(f"write what models did to {directory}"):
            write_bias(directory, report)
    log_measures(loggers, report)
    _require_asked(session, report)
    return report


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of a model once it is no longer in memory: a row of facts, its measures, and what went wrong."""

    row: Mapping[str, Any]
    measures: pd.DataFrame
    notes: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Result:
    """A model that was asked, while it is in memory."""

    candidate: Candidate
    evaluated: tuple[Evaluated, ...]
    kept: Kept


def evaluate_models(session: Session, models: Sequence[Named]) -> Iterator[Result]:
    """Yield each model with what it did on the benchmarks, one model in memory at a time."""
    for model in models:
        candidate = model.open()
        yield evaluate_model(session, model, candidate, suited(session.settings.benchmarks, candidate.kind))


def evaluate_model(
    session: Session, model: Named, candidate: Candidate, benchmarks: Sequence[tuple[Benchmark, str | None]]
) -> Result:
    """Return what a model does on benchmarks; scores by item are on disk when it returns."""
    capability = check_capability(candidate, session.scoring) if session.settings.check_capability else None
    evaluated = tuple(session.evaluated(model, candidate, each) for each in benchmarks)
    for each in evaluated:
        _keep_scores(session.directory, each)
    measures = [_measured(session, each) for each in evaluated]
    kept = Kept(
        _row(candidate, capability),
        pd.concat(measures, ignore_index=True) if measures else pd.DataFrame(),
        pd.concat([_notes(each) for each in evaluated], ignore_index=True) if evaluated else pd.DataFrame(),
    )
    return Result(candidate, evaluated, kept)


def _require_asked(session: Session, report: BiasReport) -> None:
    """Raise ConfigError, once the page is there, for a benchmark that was named and suits none of the models."""
    kinds = set(report.models["kind"])
    for name in session.settings.benchmarks:
        benchmark, readout = find_benchmark(name)
        asked = {each.kind for each in benchmark.readouts if readout in (None, each.name)}
        if asked and not kinds & asked:
            raise ConfigError(f"{name} asks {' or '.join(sorted(asked))} models, and none of yours is one.")


def resolved(scoring: ScoringSettings) -> ScoringSettings:
    """Return the settings with the device that "auto" is here, which answers are named after.

    Raises:
        ConfigError: when a GPU is asked for and none is there.
    """
    return replace(scoring, accelerator=resolve_accelerator(scoring.accelerator))


def suited(names: Sequence[str], kind: str) -> list[tuple[Benchmark, str | None]]:
    """Return the named benchmarks, each with its readout, that ask models of a kind, once; without names, the usual."""
    found = [find_benchmark(name) for name in (names or SUITED[kind])]
    own = [(one, readout) for one, readout in found if kind in one.kinds and not _is_elsewhere(one, readout, kind)]
    return list({(one.name, one.readout(kind, readout).name): (one, readout) for one, readout in own}.values())


def _is_elsewhere(benchmark: Benchmark, readout: str | None, kind: str) -> bool:
    """Return whether a readout is one for models of other kinds; what none has is a mistake that is told."""
    kinds = {each.kind for each in benchmark.readouts if each.name == readout}
    return bool(kinds) and kind not in kinds


def report_of(
    session: Session, results: Sequence[Kept], *, title: str, command: str | None, **tables: Any
) -> BiasReport:
    """Return the page's content from what is kept of each model."""
    return BiasReport(
        title=title,
        models=pd.DataFrame([result.row for result in results]),
        measures=stacked([result.measures for result in results]),
        notes=stacked([result.notes for result in results]),
        raters=rater_table(session.raters),
        benchmarks=session.told,
        level=session.settings.level,
        settings=plain(session.settings) | {"scoring": plain(session.scoring)},
        commands=() if command is None else (command,),
        **tables,
    )


def directory_of(*settings: Any, root: str, verb: str) -> Path:
    """Return where a command writes that does not say: named after its settings, so that it finds it again."""
    digest = hashlib.sha256(canonical_json([plain(each) for each in settings])).hexdigest()[:10]
    return Path(root).expanduser() / f"{verb}-{digest}"


def _measured(session: Session, each: Evaluated) -> pd.DataFrame:
    benchmark = each.benchmark
    table = measure(each.scores, benchmark.metrics, breakdown=benchmark.breakdown, bootstrap=session.bootstrap)
    return table.assign(model=each.candidate, benchmark=benchmark.name, readout=each.readout.name)


def _row(candidate: Candidate, capability: Capability | None) -> dict[str, Any]:
    told = {} if capability is None else {"capability": capability.told, "capable": capability.passed}
    return {"name": candidate.name, "kind": candidate.kind, "digest": candidate.digest, **candidate.facts, **told}


def _notes(each: Evaluated) -> pd.DataFrame:
    """Return the items that could not be asked or scored, by reason, with how many there are and the first one."""
    bad = each.scores[each.scores["state"].isin([MALFORMED, NOT_SCORED])]
    rows = bad.groupby(["state", "reason"], sort=True)["item_id"].agg(["size", "first"]).reset_index()
    rows = rows.rename(columns={"size": "count", "first": "item_id"})
    return rows.assign(model=each.candidate, benchmark=each.benchmark.name, readout=each.readout.name)


def _keep_scores(directory: Path, each: Evaluated) -> None:
    place = directory / "scores" / _file_name(each.candidate)
    with explained(f"write scores to {place}"):
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{_file_name(each.benchmark.name)}.{each.readout.name}.parquet"
        partial = path.with_name(path.name + ".partial")
        each.scores.to_parquet(partial, index=False)
        partial.replace(path)


def _file_name(name: str) -> str:
    """Return a name as one part of a path: letters that are safe, and a digest where others were left out."""
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".") or "model"
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the tables that hold anything as one."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
