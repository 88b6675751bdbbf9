"""Compare every fair strategy at equal tolerance on HateXplain ensembles of 1, 3, 5 and 9 shards.

The question is FairSISA's (Kadhe et al. 2023): does sharding hurt fairness, and which post-processing repairs it? The
paper's own settings are not published; this is our protocol: MiniLM with a linear head per shard (`--model minilm_lora`
for LoRA), post-processors fitted on the calibration split, measured on the test split, several training seeds. Rates
are exact expectations over the strategies' randomness, intervals resample test subjects (the same draws for every
strategy and seed, so that differences are paired), and every number is the mean over seeds.

`python scripts/reproduce_fairsisa.py --data DIR --out fairsisa.csv` prints Markdown tables and writes all rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.cli.composing import compose
from fairsisa.fairness.predictors import held_out
from fairsisa.fairness.strategies.auto import AutoPostprocess
from fairsisa.fairness.strategies.names import STRATEGIES
from fairsisa.intervals import Bootstrap, summarise, weight_chunks
from fairsisa.runs.directory import Run
from fairsisa.runs.training import train_run
from fairsisa.settings import ExecutionSettings, PathSettings, run_settings
from fairsisa.sisa.ensemble import aggregate, read_predictions
from fairsisa.tables import CALIBRATION, TEST, Predictions

FEATURES = ("religion_any", "race_any", "gender_any")
KEYS = ("seed", "data", "model", "partition", "trainer", "evaluation")
FAIRSISA = ("aggregate_first", "members_majority", "ensemble_pattern")
OTHERS = ("members_random", "ensemble_vote_count", "ensemble_pooled", "score_threshold", "auto")
SHARES = ("overridden", "randomised", "backed_off")


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a run: predictions, labels, subject numbers, and the group names by feature."""

    predictions: Predictions
    labels: np.ndarray
    subjects: np.ndarray
    features: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one strategy gives on the test split: replicates of accuracy and difference, and shares of decisions."""

    accuracy: np.ndarray
    difference: np.ndarray
    shares: tuple[float, ...]
    chosen: str = ""


def trained(num_shards: int, seed: int, asked: argparse.Namespace, root: Path) -> tuple[Split, Split]:
    """Train an ensemble, or find it, and return its calibration and test split."""
    trainer = {"minilm_head": "head", "minilm": "fine_tune", "minilm_lora": "fine_tune"}[asked.model]
    overrides = [
        f"data={asked.corpus}",
        f"model={asked.model}",
        f"trainer={trainer}",
        f"partition.num_shards={num_shards}",
        "partition.num_slices=1",
        "evaluation.baselines=[]",
        f"seed={seed}",
        *(["trainer.learning_rate=1e-3"] if asked.model == "minilm_lora" else []),
    ]
    config = compose("train", overrides)
    run = Run(root / f"{asked.corpus}-{asked.model}-{num_shards}-{seed}")
    paths = PathSettings(data=asked.data, store=str(root / "store"))
    execution = ExecutionSettings(num_workers=asked.workers)
    settings = run_settings({key: config[key] for key in KEYS})
    train_run(settings, run, paths=paths, execution=execution, on_event=lambda event: None)
    calibration, test = (_split(run, name) for name in (CALIBRATION, TEST))
    return calibration, test


def _split(run: Run, name: str) -> Split:
    rows = held_out(run.examples, split=name)
    names = {k: v for k, v in run.ensemble.predictions[name].items() if k in run.ensemble.checkpoints}
    features = {feature: rows.sensitive_features[feature] for feature in FEATURES}
    return Split(read_predictions(run.store, names), rows.labels, rows.subjects, features)


def outcomes(calibration: Split, test: Split, feature: str, tolerance: float) -> Iterator[tuple[str, Outcome]]:
    """Fit every strategy on the calibration split; yield its outcome on the test split."""
    known = {split: _known(part, feature) for split, part in (("fit", calibration), ("test", test))}
    part, rows = known["test"]
    weights = np.concatenate(list(weight_chunks(part.subjects, Bootstrap(num_replicates=1000))), axis=1)
    numbers = np.unique(rows, return_inverse=True)[1]

    def judged(probabilities: np.ndarray, shares: tuple[float, ...], chosen: str = "") -> Outcome:
        return Outcome(*measured(probabilities, part.labels, numbers, weights), shares, chosen)

    for name in ("majority_vote", "mean_score"):
        decisions = aggregate(part.predictions, name, weights=[1.0] * len(part.predictions.constituents)).argmax(axis=1)
        yield name, judged(decisions.astype(float), (0.0, 0.0, 0.0))
    fit, fit_rows = known["fit"]
    for name in ("unprocessed", *FAIRSISA, *OTHERS):
        rule = AutoPostprocess(tolerance=tolerance) if name == "auto" else STRATEGIES[name](tolerance=tolerance)
        extra: dict[str, Any] = {"subject_ids": fit.subjects} if name == "auto" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # small cells are the point of the table
            rule.fit(fit.predictions, fit.labels, sensitive_features=fit_rows, **extra)
            derived = rule.derive(part.predictions, sensitive_features=rows)
        changed = 1.0 - derived.probabilities[np.arange(len(rows)), derived.original]
        shares = (float(changed.mean()), float(derived.randomised.mean()), float(derived.backed_off.mean()))
        yield name, judged(derived.probabilities[:, 1], shares, getattr(rule, "reason_", ""))


def _known(split: Split, feature: str) -> tuple[Split, np.ndarray]:
    """Return the rows of a split whose group is known, and their groups."""
    kept = np.flatnonzero([value is not None for value in split.features[feature]])
    ids = tuple(split.predictions.example_ids[row] for row in kept)
    predictions = Predictions(ids, split.predictions.constituents, split.predictions.scores[kept])
    subjects = np.unique(split.subjects[kept], return_inverse=True)[1]
    return Split(predictions, split.labels[kept], subjects, {}), split.features[feature][kept].astype(str)


def measured(
    positive: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracy and equalized odds difference under each weighting; `positive` is P(decision 1) by row."""
    right = np.where(labels == 1, positive, 1.0 - positive)
    rates = []
    for label in (0, 1):
        cells = [np.flatnonzero((groups == group) & (labels == label)) for group in np.unique(groups)]
        rates.append(np.stack([positive[c] @ weights[c] / weights[c].sum(axis=0) for c in cells]))
    difference = np.maximum(*(np.ptp(rate, axis=0) for rate in rates))
    return right @ weights / weights.sum(axis=0), difference


def rows_of(
    num_shards: int, feature: str, found: Mapping[str, list[Outcome]], tolerance: float
) -> Iterator[dict[str, Any]]:
    """Yield one row per strategy: means over seeds with intervals, and differences from `auto`, paired."""
    reference = {name: [getattr(o, name) for o in found["auto"]] for name in ("accuracy", "difference")}
    for strategy, each in found.items():
        row: dict[str, Any] = {"shards": num_shards, "feature": feature, "strategy": strategy, "tolerance": tolerance}
        for name in ("accuracy", "difference"):
            mine = np.stack([getattr(outcome, name) for outcome in each])
            row |= _interval(name, mine)
            row |= _interval(f"auto minus this: {name}", np.stack(reference[name]) - mine)
        row |= dict(zip(SHARES, np.mean([outcome.shares for outcome in each], axis=0), strict=True))
        yield row | {"chosen": " | ".join(outcome.chosen for outcome in each)}


def _interval(name: str, replicates: np.ndarray) -> dict[str, float]:
    """Return the mean over seeds and its interval; `replicates` has shape (num_seeds, 1 + num_replicates)."""
    found = summarise(replicates.mean(axis=0)[None], 0.95)
    return {
        name: float(found["value"][0]),
        f"{name} low": float(found["low"][0]),
        f"{name} high": float(found["high"][0]),
    }


def markdown(table: pd.DataFrame) -> Iterator[str]:
    """Yield the table for readers."""
    yield "| shards | feature | strategy | accuracy | difference | overridden | randomised | backed off |\n"
    yield "|---|---|---|---|---|---|---|---|\n"
    for row in table.to_dict("records"):
        shown = [f"{row[n]:.3f} [{row[f'{n} low']:.3f}, {row[f'{n} high']:.3f}]" for n in ("accuracy", "difference")]
        shares = [f"{100 * row[name]:.1f} %" for name in SHARES]
        yield f"| {row['shards']} | {row['feature']} | {row['strategy']} | {' | '.join(shown + shares)} |\n"


def against(table: pd.DataFrame, others: Sequence[str]) -> Iterator[str]:
    """Yield what `auto` gains over others, paired; an asterisk marks what an interval tells from zero."""
    yield "| shards | feature | auto minus | accuracy | difference |\n|---|---|---|---|---|\n"
    for row in table[table["strategy"].isin(others)].to_dict("records"):
        cells = []
        for name in (f"auto minus this: {key}" for key in ("accuracy", "difference")):
            low, high = row[f"{name} low"], row[f"{name} high"]
            cells.append(f"{row[name]:+.3f} [{low:+.3f}, {high:+.3f}]{'*' if low > 0 or high < 0 else ''}")
        yield f"| {row['shards']} | {row['feature']} | {row['strategy']} | {' | '.join(cells)} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of corpora")
    parser.add_argument("--corpus", default="hatexplain")
    parser.add_argument("--model", default="minilm_head", choices=("minilm_head", "minilm_lora", "minilm"))
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 3, 5, 9])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--root", help="where ensembles are kept (a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path("fairsisa.csv"))
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(asked.root or temporary)
        for num_shards in asked.shards:
            found: dict[str, dict[str, list[Outcome]]] = {feature: {} for feature in FEATURES}
            for seed in range(asked.seeds):
                calibration, test = trained(num_shards, seed, asked, root)
                for feature in FEATURES:
                    for name, outcome in outcomes(calibration, test, feature, asked.tolerance):
                        found[feature].setdefault(name, []).append(outcome)
            for feature in FEATURES:
                rows += list(rows_of(num_shards, feature, found[feature], asked.tolerance))
            pd.DataFrame(rows).to_csv(asked.out, index=False)
            print(f"{num_shards} shards: done", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    print("### Every strategy\n\n" + "".join(markdown(table)))
    print("### What auto gains over FairSISA's three\n\n" + "".join(against(table, FAIRSISA)))


if __name__ == "__main__":
    main()
