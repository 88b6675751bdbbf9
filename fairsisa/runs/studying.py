"""The verb `simulate`: what deletion, step by step, does to accuracy, fairness and cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.data.corpora import load_corpus
from fairsisa.errors import ConfigError, RunError
from fairsisa.execution import Report
from fairsisa.fairness.evaluation import evaluate, paired_differences
from fairsisa.fairness.predictors import HeldOut, Predictor, held_out
from fairsisa.intervals import Bootstrap
from fairsisa.report.study import COSTS, DIFFERENCES, RESULTS, StudyReport, write_study
from fairsisa.runs.assembly import Assembly, assemble
from fairsisa.runs.directory import UNTRAINED, Run
from fairsisa.runs.making import Workplace, publishable, settle, train_missing
from fairsisa.runs.training import data_root, train_run
from fairsisa.runs.unlearning import unlearn
from fairsisa.runs.verifying import CERTIFICATES
from fairsisa.settings import (
    ExecutionSettings,
    PathSettings,
    RequestSettings,
    RunSettings,
    StudySettings,
    UnlearningSettings,
    nearest,
    plain,
)
from fairsisa.sisa.chain import Chain, plan_stages
from fairsisa.sisa.ensemble import aggregate, read_predictions
from fairsisa.sisa.training import SliceResult
from fairsisa.store.durable import explained, write_durably
from fairsisa.tables import TEST, TRAIN, Examples

START, ASKED, AT_START = "start", "asked.json", " at the start"
ENSEMBLE, UNLEARNING, FULL = "ensemble", "unlearning", "full retraining"
KEY = ("pattern", "repeat", "deletions")
INTERVAL = ("value", "low", "high")
WORDS = frozenset({"pattern", "predictor", "against", "sensitive_feature", "metric", "way"})
TABLES = {"results": RESULTS, "differences": DIFFERENCES, "costs": COSTS}


@dataclass(frozen=True)
class Curve:
    """One order in which training examples are deleted: by a pattern, drawn for the `repeat`-th time.

    After step k, the first `steps[k]` ids of `order` are gone. `drawn_from` says in words from where.
    """

    pattern: str
    repeat: int
    order: tuple[str, ...]
    steps: tuple[int, ...]
    drawn_from: str

    @property
    def name(self) -> str:
        """The name of the curve's run."""
        return f"{self.pattern}-{self.repeat}"


@dataclass(frozen=True)
class Progress:
    """A step that is done: what it measured of the ensemble, and how many of the study's steps are done in all."""

    curve: str
    deletions: int
    accuracy: float
    num_done: int
    num_steps: int


@dataclass(frozen=True)
class Study:
    """What the steps of one study share."""

    directory: Path
    asked: StudySettings
    paths: PathSettings
    execution: ExecutionSettings
    on_event: Report

    def run(self, name: str) -> Run:
        """Return the run of a curve, or the start of all."""
        return Run(self.directory / name)

    def table(self, name: str) -> pd.DataFrame:
        """Return what was measured so far."""
        path = self.directory / f"{name}.csv"
        if not path.is_file():
            return pd.DataFrame(columns=list(TABLES[name]))
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column in TABLES[name]:
            if column in ("repeat", "deletions"):
                table[column] = table[column].astype("int64")
            elif column not in WORDS:  # by hand: every version of pandas then reads back the bits it wrote
                table[column] = [float(text) if text else np.nan for text in table[column]]
        return table

    def add(self, curve: Curve, deletions: int, rows: dict[str, pd.DataFrame]) -> None:
        """Write down one step's rows; those of the results come last and mark the step as done."""
        for name in ("costs", "differences", "results"):
            kept = self.table(name)
            own = kept["pattern"].eq(curve.pattern) & kept["repeat"].eq(curve.repeat) & kept["deletions"].eq(deletions)
            new = rows[name].assign(pattern=curve.pattern, repeat=curve.repeat, deletions=deletions)
            parts = [part for part in (kept[~own], new) if len(part)]
            table = pd.concat(parts, ignore_index=True)[list(TABLES[name])] if parts else kept
            self.write(f"{name}.csv", table.to_csv(index=False))

    def write(self, name: str, text: str) -> None:
        """Replace a file of the study, durably."""
        with explained(f"write {self.directory / name}"):
            write_durably(self.directory / name, text.encode())

    def done(self) -> set[tuple[str, int, int]]:
        """Return (pattern, repeat, deletions) of every step that is done."""
        return set(self.table("results")[list(KEY)].itertuples(index=False, name=None))


def simulate_deletions(
    settings: RunSettings,
    asked: StudySettings,
    directory: Path,
    *,
    paths: PathSettings,
    execution: ExecutionSettings,
    on_event: Report,
    on_step: Callable[[Progress], None] = lambda step: None,
    command: str | None = None,
) -> StudyReport:
    """Unlearn step by step by each pattern; measure the ensemble after every step, beside models trained anew.

    The directory gets results.csv, differences.csv, costs.csv, study.json and study.html, and a run for each pattern
    and repeat; returns what the page tells. Stopped in the middle, the same call goes on with the step it was at.

    Raises:
        ConfigError: when a group or class is not there, or a pattern lacks the examples for its first step.
        RunError: when the directory holds another study, or another command is at work on it.
        FairsisaError: of the kind that fits, when training or unlearning fails; finished steps are kept.
    """
    # A store and keys of its own: a study must neither keep alive what real runs have to forget, nor purge it.
    own = replace(paths, store=str((directory / "store").resolve()), keys=str(directory / "keys"))
    study = Study(directory, asked, own, execution, on_event)
    with Run(directory).locked():
        _require_same(study)
        examples = load_corpus(settings.data, root=data_root(paths), cache=Path(paths.cache).expanduser())
        curves = draw_curves(examples, asked, seed=settings.seed)
        study.write(ASKED, json.dumps(plain(asked), indent=1))
        train_run(settings, study.run(START), paths=own, execution=execution, on_event=on_event, command=command)
        total = sum(1 + len(curve.steps) for curve in curves)
        for curve in curves:
            for deletions in (0, *curve.steps):
                if (*_key(curve), deletions) not in study.done():
                    _take_step(study, curve, deletions)
                on_step(_progress(study, curve, deletions, total))
        report = _report(study, curves, [] if command is None else [command])
        write_study(directory, report)
    return report


def draw_curves(examples: Examples, asked: StudySettings, *, seed: int) -> list[Curve]:
    """Return the curves of a study. Of equal repeats, all patterns share one order, each keeping what it may draw.

    The order follows a hash of (seed, repeat, example id), so that each step's ids are among the next one's. Steps
    that a pattern lacks examples for, or that would leave none to train on, are left out.

    Raises:
        ConfigError: when a group or class is not there, or a pattern cannot take its first step.
    """
    frame = examples.frame
    train = (frame["split"] == TRAIN).to_numpy()
    curves = []
    for pattern in asked.patterns:
        mask, words = _eligible(examples, asked, pattern)
        ids = frame.loc[mask & train, "example_id"].tolist()
        steps = tuple(step for step in asked.steps if step <= len(ids) and step < train.sum())
        if not steps:
            raise ConfigError(
                f"study.steps begins with {asked.steps[0]:,} deletions, but {words} count only {len(ids):,}: "
                "take smaller steps, or leave this pattern out."
            )
        for repeat in range(asked.repeats):
            order = sorted(ids, key=partial(_drawn, seed, repeat))
            curves.append(Curve(pattern, repeat, tuple(order[: steps[-1]]), steps, words))
    return curves


def _drawn(seed: int, repeat: int, example: str) -> bytes:
    return hashlib.sha256(json.dumps([seed, repeat, example]).encode()).digest()


def _eligible(examples: Examples, asked: StudySettings, pattern: str) -> tuple[np.ndarray, str]:
    """Return which examples a pattern may delete, and these in words."""
    if pattern == "uniform":
        return np.ones(len(examples), dtype=bool), "all training examples"
    if pattern == "label":
        label = examples.classes[-1] if asked.label is None else asked.label
        _require_known("study.label", label, examples.classes)
        return examples.labels == examples.classes.index(label), f"training examples labelled {label}"
    values = examples.sensitive(str(asked.sensitive_feature))
    train = (examples.frame["split"] == TRAIN).to_numpy()
    sizes = pd.Series(values[train], dtype=object).dropna().value_counts().sort_index()
    group = _smallest_sufficient(sizes, asked.steps[-1]) if asked.group is None else asked.group
    _require_known("study.group", group, sizes.index)
    return values == group, f"training examples with {asked.sensitive_feature} = {group}"


def _smallest_sufficient(sizes: pd.Series, wanted: int) -> str:
    enough = sizes[sizes >= wanted]
    if sizes.empty:
        raise ConfigError("No training example has a known group of study.sensitive_feature: choose another.")
    return str(sizes.idxmax() if enough.empty else enough.idxmin())


def _require_known(name: str, value: str, known: Iterable[str]) -> None:
    if value not in set(known):
        raise ConfigError(f"{name}={value} is not in the training examples.{nearest(value, known)}")


def _require_same(study: Study) -> None:
    path = study.directory / ASKED
    if not path.is_file():
        return
    before, now = json.loads(path.read_text()), plain(study.asked)
    for name in now:
        if before.get(name) != now[name]:
            raise RunError(
                f"{study.directory} holds a study with study.{name}={before.get(name)}, but {now[name]} was asked "
                "for: choose another run=, or ask for the same."
            )


def _key(curve: Curve) -> tuple[str, int]:
    return curve.pattern, curve.repeat


def _take_step(study: Study, curve: Curve, deletions: int) -> None:
    """Unlearn up to a number of deletions, train the baselines anew, measure all, and write it down."""
    run = study.run(curve.name)
    if not run.exists or run.pointer.status == UNTRAINED:
        start = study.run(START)  # of the same settings, so of the same names: nothing is trained
        train_run(start.settings, run, paths=study.paths, execution=study.execution, on_event=study.on_event)
    costs = pd.DataFrame(columns=list(COSTS))
    if deletions:
        before = [step for step in curve.steps if step < deletions]
        unlearn(
            run,
            RequestSettings(ids=curve.order[max(before, default=0) : deletions], reason="a study of deletions"),
            keys=Path(str(study.paths.keys)),
            settings=UnlearningSettings(membership=False, evaluate=False, verify="lineage"),
            execution=study.execution,
            on_event=study.on_event,
        )
        costs = _costs(study, curve, *_train_anew(study, run))
    results, differences = _measured(study, run)
    study.add(curve, deletions, {"costs": costs, "differences": differences, "results": results})


def _train_anew(study: Study, run: Run) -> tuple[Assembly, list[SliceResult]]:
    """Train the baselines on what is left, and publish them beside the ensemble."""
    settings = run.settings
    with run.locked():
        assembly = assemble(settings, run.examples, run.partition, run.store.location)
        place = Workplace(run, settings, study.execution, study.on_event)
        run.store.claim(run.directory, assembly.names | run.ensemble.names)
        results = train_missing(assembly, place)
        run.publish(publishable(assembly, place))
        settle(place, assembly, results)
    return assembly, results


def _costs(study: Study, curve: Curve, assembly: Assembly, results: Sequence[SliceResult]) -> pd.DataFrame:
    """Return what the step cost, one row a way: as certified, by plan, and as trained anew.

    Certificates of an interrupted step count too: what they sum to, less what earlier steps cost, is this step's.
    """
    spent = study.table("costs")
    mine = spent[spent["pattern"].eq(curve.pattern) & spent["repeat"].eq(curve.repeat) & spent["way"].eq(UNLEARNING)]
    proofs = [json.loads(p.read_text()) for p in sorted(study.run(curve.name).path(CERTIFICATES).glob("*.json"))]
    totals = {
        "planned": sum(proof["presentations_planned"] for proof in proofs),
        "example_epochs": sum(proof["presentations_done"] for proof in proofs),
        "core_seconds": sum(proof["core_seconds"] for proof in proofs),
        "seconds": sum(_seconds(proof) for proof in proofs),
    }
    earlier = mine[mine["deletions"] < sum(sum(proof["num_examples"].values()) for proof in proofs)]
    rows: list[dict[str, Any]] = [
        {"way": UNLEARNING} | {name: total - earlier[name].sum() for name, total in totals.items()}
    ]
    rows.append({"way": FULL, "planned": sum(map(_presentations, assembly.constituents))})
    rows[-1]["example_epochs"] = rows[-1]["planned"]
    for chain in assembly.baselines:
        shown, name = _presentations(chain), chain.constituent
        seconds = sum(row.seconds for row in results if row.constituent == name)
        way = _words(name)
        rows.append({"way": way, "planned": shown, "example_epochs": shown, "core_seconds": seconds})
    return pd.DataFrame(rows)


def _seconds(certificate: dict[str, Any]) -> float:
    """Return the time from the request to the certificate; that of an interruption is in it."""
    received, attested = (pd.Timestamp(certificate[name]) for name in ("received_at", "attested_at"))
    return float((attested - received).total_seconds())


def _presentations(chain: Chain) -> int:
    return sum(stage.num_presentations for stage in plan_stages(chain))


def _measured(study: Study, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the results of a run's predictors, and the paired differences of interest."""
    settings = run.settings
    chosen = settings.evaluation
    bootstrap = Bootstrap(chosen.num_replicates, chosen.level, settings.seed)
    now = _predictors(run)
    names = [predictor.name for predictor in now]
    first = [replace(p, name=p.name + AT_START) for p in _predictors(study.run(START)) if p.name in names]
    evaluation = evaluate(_judged(run), [*now, *first], bootstrap=bootstrap)
    kept = ("predictor", "sensitive_feature", "metric", *INTERVAL)
    results = evaluation.metrics[evaluation.metrics["predictor"].isin(names)][list(kept)]
    pairs = [(name, name + AT_START) for name in names] + [(ENSEMBLE, name) for name in names[1:]]
    differences = [paired_differences(evaluation, baseline=other, predictors=[name]) for name, other in pairs]
    table = pd.concat(differences, ignore_index=True).rename(columns={"baseline": "against"})
    return results, table[[kept[0], "against", *kept[1:]]]


def _judged(run: Run) -> HeldOut:
    judged, chosen = held_out(run.examples), run.settings.evaluation
    named = dict.fromkeys((*chosen.sensitive_features, *chosen.headline_features))
    wanted = named if chosen.sensitive_features else judged.sensitive_features
    return replace(judged, sensitive_features={name: judged.sensitive_features[name] for name in wanted})


def _predictors(run: Run) -> list[Predictor]:
    """Return the ensemble, then the baselines."""
    settings, ensemble = run.settings, run.ensemble
    made = ensemble.predictions[TEST]
    votes = read_predictions(run.store, {name: made[name] for name in ensemble.checkpoints if name in made})
    sizes = run.partition.frame().groupby("shard").size()
    weights = [float(sizes[int(name.removeprefix("shard-"))]) for name in votes.constituents]
    scores = {ENSEMBLE: aggregate(votes, settings.evaluation.aggregation, weights=weights, seed=settings.seed)}
    for name in ensemble.baselines:
        if name in made:
            single = read_predictions(run.store, {name: made[name]})
            scores[_words(name)] = single.scores[:, 0].astype(np.float64)
    return [Predictor(name, values.argmax(axis=1), values) for name, values in scores.items()]


def _words(constituent: str) -> str:
    return constituent.replace("baseline-", "baseline ")


def _progress(study: Study, curve: Curve, deletions: int, total: int) -> Progress:
    results = study.table("results")
    row = results[
        results["pattern"].eq(curve.pattern)
        & results["repeat"].eq(curve.repeat)
        & results["deletions"].eq(deletions)
        & results["predictor"].eq(ENSEMBLE)
        & results["metric"].eq("accuracy")
    ]
    return Progress(curve.name, deletions, float(row["value"].iloc[0]), len(study.done()), total)


def _report(study: Study, curves: Sequence[Curve], commands: Sequence[str]) -> StudyReport:
    start = study.run(START)
    settings, examples = start.settings, start.examples
    chosen = settings.evaluation
    features = chosen.headline_features or chosen.sensitive_features or examples.sensitive_names[:4]
    last = study.asked.steps[-1]
    partition = settings.partition
    return StudyReport(
        title=f"{examples.name}: deletions, step by step",
        results=study.table("results"),
        differences=study.table("differences"),
        costs=study.table("costs"),
        patterns={curve.pattern: curve.drawn_from for curve in curves},
        ended={curve.pattern: curve.steps[-1] for curve in curves if curve.steps[-1] < last},
        features=tuple(features),
        ensemble=f"{partition.num_shards} shards of {partition.num_slices} slices, {chosen.aggregation}",
        num_train=int((examples.frame["split"] == TRAIN).sum()),
        num_test=int((examples.frame["split"] == TEST).sum()),
        level=chosen.level,
        settings={"study": plain(study.asked), **plain(settings)},
        commands=tuple(commands),
    )
