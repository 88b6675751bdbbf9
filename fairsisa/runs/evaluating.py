"""The verb `evaluate`: from a published ensemble to measured rates, tables and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.errors import ConfigError, RunError
from fairsisa.execution import Report
from fairsisa.fairness.curves import reliability, roc_by_group
from fairsisa.fairness.evaluation import Evaluation, evaluate
from fairsisa.fairness.predictors import HeldOut, Predictor, constituent_predictors, held_out
from fairsisa.intervals import Bootstrap
from fairsisa.lineage import canonical_json
from fairsisa.report.compression import CompressionReport, write_compression
from fairsisa.report.content import Fact, RunReport
from fairsisa.report.page import write_report
from fairsisa.report.postprocessing import PostprocessingReport, findings, write_postprocessing
from fairsisa.runs.assembly import assemble
from fairsisa.runs.auditing import Decided, decide, fair_report, in_service
from fairsisa.runs.completing import completed
from fairsisa.runs.directory import ENSEMBLE, Ensemble, Run, file_digest
from fairsisa.runs.making import Workplace
from fairsisa.runs.networks import origin_of
from fairsisa.runs.weighing import compression_report, descendant_predictors
from fairsisa.settings import AGGREGATIONS, EvaluationSettings, ExecutionSettings, RunSettings, plain
from fairsisa.sisa.ensemble import aggregate, read_predictions
from fairsisa.store.durable import delete, explained
from fairsisa.tables import CALIBRATION, TEST, Predictions

PREDICTIONS, DERIVED = "predictions.parquet", "derived.json"
REPORTS = (PREDICTIONS, "metrics.json", "report.md", "report.html")
FAIR, FRONTIER, COMPRESSION = "postprocess-", "frontier", "compression"
"""How the names of the files begin that tell of post-processors, of frontiers, of students and compressed copies."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What a measurement tells: the run's report, that of each post-processor in service, and that of smaller models.

    `compression` is None in a run without student or compressed copy in service.
    """

    report: RunReport
    fair: Mapping[str, PostprocessingReport]
    compression: CompressionReport | None = None


def evaluate_run(
    run: Run, *, settings: EvaluationSettings | None = None, execution: ExecutionSettings, on_event: Report
) -> RunReport:
    """Measure a trained run on its test split; write and return its report.

    Leaves predictions.parquet, metrics.json, report.md and report.html in the run, and a page of its own for each
    post-processor that is in service. `settings` None means those of the run. Predictions come from the store; only
    those it lacks are made.

    Raises:
        RunError: when the run is not trained, or another command is at work on it.
        ConfigError: when `settings` ask for baselines that the run was not trained with.
    """
    return measure_run(run, settings=settings, execution=execution, on_event=on_event).report


def measure_run(
    run: Run, *, settings: EvaluationSettings | None = None, execution: ExecutionSettings, on_event: Report
) -> Measured:
    """Do what `evaluate_run` does, and return the reports of post-processors too."""
    with run.locked():
        run.prune()  # of an attempt that was killed
        own = run.settings
        chosen = _chosen(run, settings)
        require_votes(run)
        ensemble = with_predictions(run, execution, on_event)
        clear_outdated(run)
        fitted, idle = in_service(run, ensemble)
        decided = decide(run, ensemble, fitted)
        with explained(f"write the predictions of {run.directory}"):
            _write_predictions(run, ensemble, decided)
        judged = _judged(run, chosen)
        predictions = _predictions(run, ensemble, TEST)
        bootstrap = Bootstrap(chosen.num_replicates, chosen.level, own.seed)
        smaller = _descendants(run, ensemble, chosen)
        predictors = _predictors(run, ensemble, chosen, own.seed) + [made.predictor for made in decided] + smaller
        evaluation = evaluate(judged, predictors, predictions=predictions, bootstrap=bootstrap)
        report = _report(run, chosen, judged, predictors, evaluation)
        fair = {made.name: fair_report(run, made, bootstrap) for made in decided}
        repairs = {f"{FAIR}{name}.html": tuple(findings(content)) for name, content in fair.items()}
        report = replace(report, warnings=(*report.warnings, *idle.values()), repairs=repairs)
        compression = None
        if smaller:
            origin = origin_of(run, execution, on_event)
            features = report.shown_features
            compression = compression_report(origin, evaluation, base=chosen.aggregation, features=features)
        with explained(f"write the report of {run.directory}"):
            write_report(run.directory, report)
            for name, content in fair.items():
                write_postprocessing(run.directory, content, FAIR + name)
            if compression is not None:
                write_compression(run.directory, compression, COMPRESSION)
        record_reports(run)
    return Measured(report, fair, compression)


def derived(run: Run) -> dict[str, Any]:
    """Return which ensemble the run's reports and tables were made from, and the SHA-256 of each file."""
    return {
        "ensemble": file_digest(run.path(ENSEMBLE)),
        "predictions": _predictions_digest(run.pointer),
        "files": {name: file_digest(run.path(name)) for name in report_files(run)},
    }


def record_reports(run: Run) -> None:
    """Write down that the run's reports, as they lie there, tell of the ensemble that is served."""
    run.write(DERIVED, json.dumps(derived(run), indent=1))


def are_reports_current(run: Run) -> bool:
    """Whether the run's reports are there, and tell of the ensemble that is served."""
    return _recorded(run) == derived(run)


def report_files(run: Run) -> tuple[str, ...]:
    """Return the names of all files that tell of the ensemble: reports, their tables, the pages of post-processors."""
    fair = sorted(path.name for start in (FAIR, FRONTIER, COMPRESSION) for path in run.directory.glob(f"{start}*"))
    return tuple(name for name in (*REPORTS, *fair) if run.path(name).is_file())


def clear_outdated(run: Run) -> None:
    """Delete the pages of post-processors, which are written anew, and a frontier of other predictions than now."""
    fresh = _recorded(run).get("predictions") == _predictions_digest(run.pointer)
    starts = (FAIR, COMPRESSION) if fresh else (FAIR, COMPRESSION, FRONTIER)
    with explained(f"delete reports of {run.directory}"):
        delete([path for start in starts for path in run.directory.glob(f"{start}*")])


def _recorded(run: Run) -> dict[str, Any]:
    """Return what was written down of the run's reports; nothing where there are none."""
    try:
        return dict(json.loads(run.path(DERIVED).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _predictions_digest(ensemble: Ensemble) -> str:
    return hashlib.sha256(canonical_json(ensemble.predictions)).hexdigest()


def forget_reports(run: Run) -> tuple[str, ...]:
    """Delete what was derived from the ensemble that is no longer served; return the names of the files."""
    with explained(f"delete reports of {run.directory}"):
        return tuple(path.name for path in delete(run.path(name) for name in (*report_files(run), DERIVED)))


def _chosen(run: Run, settings: EvaluationSettings | None) -> EvaluationSettings:
    """Return what to measure; baselines that a deletion took away are measured no more, unless asked for."""
    own, kept = run.settings.evaluation, {name.removeprefix("baseline-") for name in run.ensemble.baselines}
    if settings is None:
        return replace(own, baselines=tuple(name for name in own.baselines if name in kept))
    untrained = set(settings.baselines) - kept
    if untrained:
        raise ConfigError(f"This run has no baseline {min(untrained)!r}; train with evaluation.baselines holding it.")
    return settings


def can_be_measured(run: Run) -> bool:
    """Whether a test example is left, and a constituent that votes on it."""
    ensemble = run.ensemble
    return bool(set(ensemble.predictions[TEST]) & set(ensemble.checkpoints))


def require_votes(run: Run) -> None:
    """Raise RunError when the run cannot be measured."""
    if not can_be_measured(run):
        raise RunError(
            f"{run.directory} has nothing to measure: no test example is left, or no constituent that votes; "
            "the deletions stand, the run cannot be evaluated."
        )


def with_predictions(run: Run, execution: ExecutionSettings, on_event: Report) -> Ensemble:
    """Return what the run serves; predictions and post-processors that the store has lost are made again."""
    ensemble, store, settings = run.ensemble, run.store, run.settings
    fair = {entry["artefact"] for entry in ensemble.postprocessors.values() if entry["artefact"] is not None}
    fair = fair.union(*(made.names for made in ensemble.descendants.values()))
    if not all(map(store.has, fair.union(*(made.values() for made in ensemble.predictions.values())))):
        examples, baselines = run.examples, [name.removeprefix("baseline-") for name in ensemble.baselines]
        assembly = assemble(settings, examples, run.partition, store.location, baselines=baselines)
        ensemble = run.publish(completed(assembly, Workplace(run, settings, execution, on_event), examples))
    return ensemble


def _predictions(run: Run, ensemble: Ensemble, split: str, kind: str = "checkpoints") -> Predictions:
    wanted: Iterable[str] = getattr(ensemble, kind)
    made = ensemble.predictions[split]
    return read_predictions(run.store, {name: made[name] for name in wanted if name in made})


def _write_predictions(run: Run, ensemble: Ensemble, decided: Iterable[Decided]) -> None:
    parts = [
        _predictions(run, ensemble, split).frame().assign(split=split)
        for split in (CALIBRATION, TEST)
        if ensemble.predictions[split]
    ]
    parts += [made.frame().assign(split=TEST) for made in decided]
    partial = run.path(PREDICTIONS + ".partial")
    pd.concat(parts, ignore_index=True).to_parquet(partial, index=False)
    partial.replace(run.path(PREDICTIONS))


def _judged(run: Run, settings: EvaluationSettings) -> HeldOut:
    judged = held_out(run.examples)
    wanted = settings.sensitive_features or tuple(judged.sensitive_features)
    return replace(judged, sensitive_features={name: run.examples.sensitive(name)[_test_rows(run)] for name in wanted})


def _test_rows(run: Run) -> np.ndarray:
    return (run.examples.frame["split"] == TEST).to_numpy()


def _descendants(run: Run, ensemble: Ensemble, settings: EvaluationSettings) -> list[Predictor]:
    return descendant_predictors(
        run.store,
        ensemble.descendants,
        aggregation=settings.aggregation,
        weights=shard_sizes(run),
        seed=run.settings.seed,
    )


def shard_sizes(run: Run) -> list[float]:
    """Return the number of training examples in each shard."""
    sizes = run.partition.frame().groupby("shard").size()
    return [float(sizes.get(shard, 0)) for shard in range(run.settings.partition.num_shards)]


def _predictors(run: Run, ensemble: Ensemble, settings: EvaluationSettings, seed: int) -> list[Predictor]:
    predictions = _predictions(run, ensemble, TEST)
    sizes = shard_sizes(run)
    weights = [sizes[int(name.removeprefix("shard-"))] for name in predictions.constituents]
    predictors = []
    for name in (settings.aggregation, *(name for name in AGGREGATIONS if name != settings.aggregation)):
        scores = aggregate(predictions, name, weights=weights, seed=seed)
        predictors.append(Predictor(name, scores.argmax(axis=1), scores))
    if settings.baselines and ensemble.baselines:
        baselines = _predictions(run, ensemble, TEST, "baselines")
        for place, name in enumerate(baselines.constituents):
            if name.removeprefix("baseline-") in settings.baselines:
                scores = baselines.scores[:, place].astype(np.float64)
                predictors.append(Predictor(_baseline_name(name), scores.argmax(axis=1), scores))
    return predictors + constituent_predictors(predictions)


def _baseline_name(constituent: str) -> str:
    return constituent.replace("baseline-", "baseline ")


def _report(
    run: Run,
    settings: EvaluationSettings,
    judged: HeldOut,
    predictors: list[Predictor],
    evaluation: Evaluation,
) -> RunReport:
    own, by_name = run.settings, {predictor.name: predictor for predictor in predictors}
    scored, environment = by_name["mean_score"], run.environment
    training = pd.read_csv(run.path("training.csv"))
    baselines = tuple(name for name in by_name if name.startswith("baseline "))
    main = settings.headline_features or tuple(judged.sensitive_features)[:4]
    drawn = replace(judged, sensitive_features={name: judged.sensitive_features[name] for name in main})
    return RunReport(
        title=f"{run.examples.name}: {own.partition.num_shards} shards of {own.partition.num_slices} slices",
        evaluation=evaluation,
        ensemble=settings.aggregation,
        baselines=baselines,
        main_features=main,
        facts=tuple(_facts(run, own, training)),
        warnings=tuple(_declarations(own)),
        commands=(*environment.get("commands", []), f"fairsisa evaluate run={run.directory}"),
        settings=plain(own),
        environment={key: value for key, value in environment.items() if key != "commands"},
        training=training,
        curves=pd.read_csv(run.path("curves.csv")),
        roc=roc_by_group(drawn, scored),
        reliability=reliability(judged, scored, bootstrap=Bootstrap(settings.num_replicates, settings.level, own.seed)),
    )


def _facts(run: Run, settings: RunSettings, training: pd.DataFrame) -> Iterable[Fact]:
    sizes = run.examples.frame["split"].value_counts()
    yield Fact("Training examples", f"{sizes.get('train', 0):,}", "each in one slice of one shard")
    yield Fact(
        "Calibration / test examples", f"{sizes.get(CALIBRATION, 0):,} / {sizes.get(TEST, 0):,}", "never trained on"
    )
    subjects = run.partition.frame()["subject_id"].nunique()
    yield Fact("Training subjects", f"{subjects:,}", "a subject's examples are never split across shards or slices")
    own = training[training["shard"].str.startswith("shard-")]
    rest = training[~training["shard"].str.startswith("shard-")]
    yield Fact("Training time of the ensemble", f"{own['seconds'].sum():,.1f} core-seconds", "summed over its slices")
    if len(rest):
        yield Fact(
            "Training time of the baselines", f"{rest['seconds'].sum():,.1f} core-seconds", "the price of comparing"
        )
    if settings.model.kind == "text":
        yield Fact("What trains", settings.model.trains, f"base: {settings.model.base}")


def _declarations(settings: RunSettings) -> Iterable[str]:
    if settings.model.kind != "text" or settings.model.trains == "head":
        yield (
            "Features are standardised by the mean and deviation of the first slice of each shard; these belong to "
            "that slice's checkpoint and are fitted anew when it is retrained. Nothing learnt from data crosses shards."
        )
    if settings.partition.strategy != "uniform":
        yield (
            f"The {settings.partition.strategy} partition was dealt once, with every subject in view, and stays fixed: "
            "exactness is meant given this partition."
        )
