from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fairsisa.errors import DataError
from fairsisa.fairness.curves import reliability, roc_by_group
from fairsisa.fairness.evaluation import evaluate
from fairsisa.fairness.predictors import HeldOut, Predictor, constituent_predictors
from fairsisa.intervals import Bootstrap
from fairsisa.report.content import TRAINING_COLUMNS, Fact, RunReport
from fairsisa.tables import Predictions


def make_held_out(rng, *, num_examples=240, num_classes=2, features=("religion", "race")):
    labels = rng.integers(num_classes, size=num_examples)
    sensitive = {name: rng.choice(["mentioned", "none"], size=num_examples).astype(object) for name in features}
    ids = tuple(f"post-{number}" for number in range(num_examples))
    classes = ("normal", "toxic", "spam")[:num_classes]
    people = np.array([f"person-{number}" for number in rng.integers(num_examples // 2, size=num_examples)])
    return HeldOut(ids, people, labels, classes, sensitive)


def make_predictors(rng, held):
    shape = (len(held), 3, len(held.classes))
    raw = rng.random(shape)
    raw[np.arange(len(held)), :, held.labels] += 0.5
    scores = raw / raw.sum(axis=2, keepdims=True)
    predictions = Predictions(held.example_ids, ("shard-0", "shard-1", "shard-2"), scores.astype(np.float32))
    mean, whole = scores.mean(axis=1), scores[:, 0] * 0.5 + scores[:, 1] * 0.5
    return predictions, [
        Predictor("mean_score", mean.argmax(axis=1), mean),
        Predictor("baseline whole", whole.argmax(axis=1), whole),
        *constituent_predictors(predictions),
    ]


def make_training(num_shards=3, num_slices=2):
    rows = []
    for shard in range(num_shards):
        for part in range(num_slices):
            status = "empty" if (shard, part) == (0, 1) else ("trained" if shard == 1 else "reused")
            size = 0 if status == "empty" else 80 + shard
            rows.append(
                (shard, part, size, 3, size // 4, size / 10, 10.0 if size else 0.0, status, f"{shard}{part}" * 16)
            )
    return pd.DataFrame(rows, columns=list(TRAINING_COLUMNS))


def make_curves(num_shards=3, num_slices=2):
    keys = [(shard, part, step) for shard in range(num_shards) for part in range(num_slices) for step in (1, 2, 3)]
    frame = pd.DataFrame(keys, columns=["shard", "slice", "step"]).assign(epoch=0.0)
    frame["train_loss"] = np.linspace(0.9, 0.2, len(frame))
    frame["accuracy"] = np.where(frame["step"] == 3, 0.8, np.nan)
    return frame


def make_report(seed=0, *, num_classes=2, features=("religion", "race"), **changes):
    rng = np.random.default_rng(seed)
    held = make_held_out(rng, num_classes=num_classes, features=features)
    predictions, predictors = make_predictors(rng, held)
    evaluation = evaluate(held, predictors, predictions=predictions, bootstrap=Bootstrap(num_replicates=50))
    content = {
        "title": "Toy run",
        "evaluation": evaluation,
        "ensemble": "mean_score",
        "baselines": ("baseline whole",),
        "facts": (Fact("Training time", "3 s", "on one core"),),
        "warnings": ("The base model saw other data.",),
        "commands": ("fairsisa train data=toy",),
        "settings": {"data": {"name": "toy", "columns": ["a", "b"]}, "seed": 0, "risk": None},
        "environment": {"torch": "2.13.0"},
        "training": make_training(),
        "curves": make_curves(),
        "roc": roc_by_group(held, predictors[0]),
        "reliability": reliability(held, predictors[0], bootstrap=Bootstrap(num_replicates=50)),
    }
    return RunReport(**(content | changes))


def test_main_features_are_those_named_or_the_first_four():
    assert make_report().shown_features == ("religion", "race")
    assert make_report(main_features=("race",)).shown_features == ("race",)
    assert make_report(features=tuple("abcdef")).shown_features == tuple("abcd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "nobody"}, r"predictor of the evaluation \(mean_score, baseline whole, .*\), got 'nobody'"),
        ({"baselines": ("nothing",)}, "got 'nothing'"),
        ({"main_features": ("age",)}, r"sensitive feature of the evaluation \(religion, race\), got 'age'"),
        ({"training": make_training().drop(columns="seconds")}, "in the training table; seconds not found"),
        ({"training": make_training().assign(status="done")}, "status of trained, reused, empty, got 'done'"),
        ({"curves": make_curves().drop(columns=["step", "epoch"])}, "in the curves table; step, epoch not found"),
        ({"roc": pd.DataFrame({"group": ["a"]})}, "in the roc table; predictor, sensitive_feature, class"),
        ({"reliability": pd.DataFrame({"low": [0.1]})}, "in the reliability table; predictor, bin_low"),
    ],
)
def test_names_and_tables_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        make_report(**changes)
