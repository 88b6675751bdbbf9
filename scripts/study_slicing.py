"""Measure what slicing costs in accuracy, and which budget or schedule wins it back at no dearer requests.

Trains HateXplain shards (S=5) under each recipe and seed, and prints one row a recipe: mean accuracy of the shards,
accuracy of the majority vote, and the expected cost of one uniform deletion request in epochs of a shard. Run
`python scripts/study_slicing.py --data DIR --workers N`; on a GPU, every recipe and three seeds take minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fairsisa.data.encoding import Inputs, encode_examples
from fairsisa.data.hatexplain import load_hatexplain
from fairsisa.execution import Event, run_tasks
from fairsisa.models.base import find_base, load_tokenizer
from fairsisa.models.device import resolve_accelerator, resolve_precision
from fairsisa.settings import ExecutionSettings, ModelSettings, TrainerSettings
from fairsisa.sisa.budget import slice_epochs
from fairsisa.sisa.chain import Chain
from fairsisa.sisa.ensemble import PredictTask, predict_constituent
from fairsisa.sisa.training import ShardTask, train_shard
from fairsisa.store import Store

NUM_SHARDS = 5
Recipe = tuple[str, int, dict[str, Any], dict[str, Any]]
RECIPES: list[Recipe] = [
    ("unsliced", 1, {}, {}),
    ("slice", 4, {"schedule": "slice"}, {}),
    ("slice, carried", 4, {"schedule": "slice", "optimizer_state": "carried"}, {}),
    ("chain", 4, {"schedule": "chain"}, {}),
    ("chain, carried", 4, {"schedule": "chain", "optimizer_state": "carried"}, {}),
    (
        "chain, early 2.4/1.6/1/.85",
        4,
        {"schedule": "chain", "budget": "listed", "slice_epochs": (2.4, 1.6, 1.0, 0.85)},
        {},
    ),
    (
        "chain, late .6/.6/.6/2.1",
        4,
        {"schedule": "chain", "budget": "listed", "slice_epochs": (0.6, 0.6, 0.6, 2.1)},
        {},
    ),
    ("unsliced, 3 layers frozen", 1, {}, {"frozen_layers": 3}),
    ("chain, 3 layers frozen", 4, {"schedule": "chain"}, {"frozen_layers": 3}),
]


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard under one recipe and seed, with the held-out rows to score."""

    recipe: str
    seed: int
    train: ShardTask
    held_out: Inputs


def run_job(job: Job, report: object) -> tuple[str, int, list[float], float]:
    started = time.perf_counter()
    train_shard(job.train, ignore)
    name = predict_constituent(PredictTask(job.train.chain, job.held_out), ignore)
    scores = Store(job.train.chain.store).get(str(name)).tensors["scores"].numpy()
    return job.recipe, job.seed, scores[:, 1].tolist(), time.perf_counter() - started


def ignore(event: Event) -> None:
    """Take no notice of progress."""


def expected_cost(trainer: TrainerSettings, num_slices: int) -> float:
    """Return the expected epochs of a shard that one uniform request retrains: sum of e_i * (i/R)^2."""
    epochs = slice_epochs(trainer, num_slices)
    return sum(e * ((i + 1) / num_slices) ** 2 for i, e in enumerate(epochs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--recipes", default="", help="only these, separated by semicolons")
    parser.add_argument("--shards", type=int, default=NUM_SHARDS, help="train only the first of the five shards")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    accelerator = resolve_accelerator("auto")
    precision = resolve_precision("auto", accelerator)
    examples = load_hatexplain(root=options.data, cache=Path(tempfile.gettempdir()), task="binary")
    base = find_base(ModelSettings(base=options.base))
    tokenizer = load_tokenizer(base)
    inputs = encode_examples(examples, tokenizer, 128)
    split = examples.frame["split"].to_numpy()
    train_rows, held_rows = np.flatnonzero(split == "train"), np.flatnonzero(split != "train")
    held_out = inputs.take(held_rows)
    recipes = [recipe for recipe in RECIPES if not options.recipes or recipe[0] in options.recipes.split(";")]
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name, num_slices, trainer_settings, model_settings in recipes:
            settings: dict[str, Any] = {
                "accelerator": accelerator,
                "precision": precision,
                "max_epochs": options.epochs,
            } | trainer_settings
            trainer = TrainerSettings(**settings)
            model = ModelSettings(base=options.base, dropout=0.0, **model_settings)
            for seed in range(options.seeds):
                rows = np.random.default_rng(seed).permutation(train_rows)
                for shard in range(options.shards):
                    own = inputs.take(rows[shard::NUM_SHARDS])
                    blocks = tuple(
                        (tuple(part.tolist()),) for part in np.array_split(np.array(own.example_ids), num_slices)
                    )
                    contents = dict(zip(own.example_ids, own.contents, strict=True))
                    chain = Chain(f"shard-{shard}", blocks, contents, model, trainer, base, 2, seed, Path(folder))
                    jobs.append(Job(name, seed, ShardTask(chain, own, tokenizer.pad_token_id), held_out))
        done = run_tasks(
            run_job,
            jobs,
            execution=ExecutionSettings(num_workers=options.workers),
            threads=1,
            accelerator=accelerator,
            scratch=Path(folder) / "jobs",
            on_event=ignore,
        )
    table = []
    for name, num_slices, trainer_settings, _ in recipes:
        trainer = TrainerSettings(**({"max_epochs": options.epochs} | trainer_settings))
        shards, votes, soft = [], [], []
        for seed in range(options.seeds):
            scores = np.array([row[2] for row in done if row[0] == name and row[1] == seed])
            shards += list(((scores > 0.5) == held_out.labels).mean(axis=1))
            votes.append((((scores > 0.5).mean(axis=0) > 0.5) == held_out.labels).mean())
            soft.append(((scores.mean(axis=0) > 0.5) == held_out.labels).mean())
        seconds = float(np.mean([row[3] for row in done if row[0] == name]))
        row = {
            "recipe": name,
            "shard accuracy": float(np.mean(shards)),
            "standard error": float(np.std(shards, ddof=1) / np.sqrt(len(shards))),
            "majority": float(np.mean(votes)),
            "mean score": float(np.mean(soft)),
            "request cost": expected_cost(trainer, num_slices),
            "seconds a shard": seconds,
        }
        table.append(row)
        print(" | ".join(f"{v:.4f}" if isinstance(v, float) else f"{v:36}" for v in row.values()), flush=True)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
