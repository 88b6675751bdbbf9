from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains import LOGISTIC, QUICK, run_of, trained
from fairsisa.cli.composing import compose
from fairsisa.cli.main import run_command
from fairsisa.cli.studying import study_directory
from fairsisa.data.synthetic_samples import load_synthetic_tabular
from fairsisa.errors import ConfigError, DataError, RunError
from fairsisa.fairness.rates import EVERYONE
from fairsisa.runs import studying
from fairsisa.runs.assembly import assemble
from fairsisa.runs.directory import Run
from fairsisa.runs.planning import plan_deletion
from fairsisa.runs.studying import Curve, draw_curves, simulate_deletions
from fairsisa.settings import EvaluationSettings, ExecutionSettings, PartitionSettings, PathSettings, StudySettings
from fairsisa.sisa.chain import plan_stages
from fairsisa.sisa.ensemble import aggregate, predict_constituent, read_predictions
from fairsisa.store import Store

SETTINGS = run_of(
    LOGISTIC,
    QUICK,
    data={"name": "synthetic_tabular", "options": {"num_examples": 240}},
    partition=PartitionSettings(num_shards=2, num_slices=2),
    evaluation=EvaluationSettings(num_replicates=100),
)
ASKED = StudySettings(patterns=("uniform", "group"), sensitive_feature="region", group="southern", steps=(2, 30, 70))
SMALL = StudySettings(patterns=("label",), steps=(1, 20), repeats=2)
TABLES = ("results", "differences", "costs")
EXAMPLES = load_synthetic_tabular(num_examples=240)
TRAIN = EXAMPLES.frame[EXAMPLES.frame["split"] == "train"]


def simulated(directory, asked=ASKED, settings=SETTINGS, **options):
    return simulate_deletions(
        settings,
        asked,
        directory,
        paths=PathSettings(),
        execution=ExecutionSettings(num_workers=1),
        on_event=lambda event: None,
        **options,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study")
    return directory, simulated(directory)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("small")
    simulated(directory, SMALL)
    return directory


def written(directory):
    """Every table of a study, less what a clock decides."""
    tables = {name: pd.read_csv(directory / f"{name}.csv") for name in TABLES}
    tables["costs"] = tables["costs"].drop(columns=["core_seconds", "seconds"])
    return tables


def chosen(table, **values):
    return table[np.logical_and.reduce([table[name] == value for name, value in values.items()])]


def curves_of(asked, seed=0):
    return {curve.name: curve for curve in draw_curves(EXAMPLES, asked, seed=seed)}


def scratch(run, gone, store, baselines=("whole", "fraction")):
    """Train without the ids, as if they had never been there."""
    examples = run.examples.keep(~run.examples.frame["example_id"].isin(gone).to_numpy())
    assembly = assemble(run.settings, examples, run.partition.without(set(gone)), str(store), baselines=baselines)
    trained(assembly)
    return assembly


def accuracies(assembly, store):
    names = {
        task.chain.constituent: predict_constituent(task, lambda event: None)
        for split, task in assembly.predict_tasks()
        if split == "test"
    }
    labels = EXAMPLES.frame.set_index("example_id")["label"]
    found = {}
    for name, own in {
        "ensemble": [name for name in names if name.startswith("shard-")],
        "baseline whole": ["baseline-whole"],
        "baseline fraction": ["baseline-fraction"],
    }.items():
        predictions = read_predictions(Store(store), {member: names[member] for member in own})
        decided = aggregate(predictions, "majority_vote", weights=[1.0] * len(own)).argmax(axis=1)
        found[name] = float((decided == labels.loc[list(predictions.example_ids)].to_numpy()).mean())
    return found


@pytest.mark.parametrize(("pattern", "step"), [("uniform", 30), ("group", 2), ("group", 30)])
def test_a_step_measures_what_training_from_scratch_without_the_ids_gives(study, tmp_path, pattern, step):
    directory, report = study
    gone = curves_of(ASKED)[f"{pattern}-0"].order[:step]
    found = accuracies(scratch(Run(directory / "start"), gone, tmp_path / "store"), tmp_path / "store")
    rows = chosen(report.results, pattern=pattern, deletions=step, metric="accuracy")
    assert dict(zip(rows["predictor"], rows["value"], strict=True)) == pytest.approx(found, abs=1e-12)
    assert len(found) == 3


def test_costs_are_those_of_the_plan_and_of_training_anew(study, tmp_path):
    directory, report = study
    start, curve = Run(directory / "start"), curves_of(ASKED)["uniform-0"]
    plan = plan_deletion(start, curve.order[:2])
    own = chosen(report.costs, pattern="uniform", way="unlearning").set_index("deletions")
    assert own.loc[2, "planned"] == plan.presentations < plan.full_presentations
    assert own["planned"].tolist() == own["example_epochs"].tolist()
    for step in curve.steps:
        assembly = scratch(start, curve.order[:step], tmp_path / f"{step}")
        shown = {
            kind: sum(stage.num_presentations for chain in chains for stage in plan_stages(chain))
            for kind, chains in {
                "full retraining": assembly.constituents,
                "baseline whole": assembly.baselines[:1],
                "baseline fraction": assembly.baselines[1:],
            }.items()
        }
        rows = chosen(report.costs, pattern="uniform", deletions=step).set_index("way")["example_epochs"]
        assert {way: rows[way] for way in shown} == shown
        assert rows["unlearning"] <= rows["full retraining"]
    spent = chosen(report.costs, way="unlearning")
    assert (spent["core_seconds"] > 0).all()
    assert (spent["seconds"] > spent["core_seconds"]).all()


def test_only_what_a_pattern_may_draw_is_gone(study):
    directory, report = study
    curves = curves_of(ASKED)
    for curve in curves.values():
        left = set(Run(directory / curve.name).examples.example_ids)
        assert set(EXAMPLES.example_ids) - left == set(curve.order[: curve.steps[-1]])
    assert len(Run(directory / "start").examples) == len(EXAMPLES)
    assert report.ended == {"group": 30}
    assert sorted(set(chosen(report.results, pattern="group")["deletions"])) == [0, 2, 30]


def test_the_start_differs_from_itself_by_nothing_and_each_later_step_is_paired_with_it(study):
    _, report = study
    against = report.differences[report.differences["against"] == "ensemble at the start"]
    keys = ["pattern", "deletions", "sensitive_feature", "metric"]
    first = chosen(against, deletions=0).dropna()
    assert (first[["value", "low", "high"]] == 0).all(axis=None)
    values = chosen(report.results, predictor="ensemble").set_index(keys)["value"]
    start = values.xs(0, level="deletions")
    for row in against.dropna().to_dict("records"):
        began = start[row["pattern"], row["sensitive_feature"], row["metric"]]
        assert row["value"] == pytest.approx(values[tuple(row[key] for key in keys)] - began)
    pairs = set(zip(report.differences["predictor"], report.differences["against"], strict=True))
    assert pairs == {
        *((name, f"{name} at the start") for name in ("ensemble", "baseline whole", "baseline fraction")),
        ("ensemble", "baseline whole"),
        ("ensemble", "baseline fraction"),
    }


def test_intervals_hold_the_value_and_everyone_has_the_empty_feature(study):
    _, report = study
    rows = report.results.dropna()
    assert (rows["low"] <= rows["high"]).all()
    assert set(rows["sensitive_feature"]) == {EVERYONE, "region"}


@pytest.mark.parametrize("victim", ["_train_anew", "results.csv"])
def test_a_study_goes_on_where_it_was_stopped(small, tmp_path, monkeypatch, victim):
    calls, write, stop_at = [], studying.Study.write, 3

    def stopped(function):
        def act(*args, **options):
            if victim == "results.csv" and args[1] != victim:
                return function(*args, **options)
            calls.append(victim)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return function(*args, **options)

        return act

    with monkeypatch.context() as patched:
        if victim == "results.csv":
            patched.setattr(studying.Study, "write", stopped(write))
        else:
            patched.setattr(studying, victim, stopped(getattr(studying, victim)))
        with pytest.raises(KeyboardInterrupt):
            simulated(tmp_path, SMALL)
    assert not (tmp_path / "study.html").exists()
    done = studying.Study(tmp_path, SMALL, PathSettings(), ExecutionSettings(), lambda event: None).done()
    asked, real = [], studying._take_step
    monkeypatch.setattr(studying, "_take_step", lambda *args: (asked.append(args[2]), real(*args)))
    simulated(tmp_path, SMALL)
    assert len(asked) == 6 - len(done)
    for name, table in written(small).items():
        pd.testing.assert_frame_equal(written(tmp_path)[name], table)


def test_a_study_that_is_done_takes_no_step_again(small, monkeypatch):
    monkeypatch.setattr(studying, "_take_step", None)
    steps = []
    report = simulated(small, SMALL, on_step=steps.append)
    assert [step.deletions for step in steps] == [0, 1, 20] * 2
    assert (steps[-1].num_done, steps[-1].num_steps) == (6, 6)
    row = chosen(report.results, repeat=1, deletions=20, predictor="ensemble", metric="accuracy")
    assert steps[-1].accuracy == row["value"].item()


def test_a_study_keeps_its_store_and_keys_to_itself(small):
    start = Run(small / "start")
    assert start.store.location == str((small / "store").resolve())
    assert sorted(path.name for path in small.iterdir() if path.is_dir()) == [
        "keys",
        "label-0",
        "label-1",
        "start",
        "store",
    ]
    names = start.ensemble.names
    assert names
    assert all(start.store.has(name) for name in names)


def test_a_directory_takes_no_other_study(small):
    with pytest.raises(RunError, match=r"with study.steps=\[1, 20\], but \[1, 30\] was asked for: choose another run="):
        simulated(small, replace(SMALL, steps=(1, 30)))
    with pytest.raises(RunError, match="is a run with seed=0, but seed=1 was asked for"):
        simulated(small, SMALL, replace(SETTINGS, seed=1))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"group": "sothern"}, ConfigError, "study.group=sothern is not in the training examples. Did you mean 'south"),
        ({"patterns": ("label",), "label": "hapy"}, ConfigError, "study.label=hapy .* Did you mean 'happy'"),
        ({"steps": (1000,)}, ConfigError, "begins with 1,000 deletions, but all training examples count only"),
        ({"patterns": ("group",), "sensitive_feature": "regio"}, DataError, "Expected a sensitive feature"),
        ({"patterns": ("group",), "steps": (60,)}, ConfigError, "with region = southern count only"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_trained(tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        simulated(tmp_path, replace(ASKED, **changes))
    assert not (tmp_path / "start").exists()


def test_two_commands_on_one_study_are_refused(tmp_path):
    with Run(tmp_path).locked(), pytest.raises(RunError, match="Another command is at work"):
        simulated(tmp_path)


@given(
    pattern=st.sampled_from(["uniform", "group", "label"]),
    steps=st.sets(st.integers(1, 160), min_size=1, max_size=4),
    seed=st.integers(0, 5),
    label=st.sampled_from([None, "happy", "unhappy"]),
    group=st.sampled_from([None, "northern", "southern"]),
)
def test_orders_hold_eligible_training_examples_once_and_no_step_they_lack(pattern, steps, seed, label, group):
    asked = StudySettings((pattern,), "region", group, label, tuple(sorted({1, *steps})), repeats=2)
    curves = draw_curves(EXAMPLES, asked, seed=seed)
    rows = TRAIN
    if pattern == "label":
        rows = rows[rows["label"] == EXAMPLES.classes.index(label or "happy")]
    if pattern == "group":
        sizes = rows["sensitive:region"].value_counts()
        enough = sizes[sizes >= asked.steps[-1]]
        wanted = group or (enough.idxmin() if len(enough) else sizes.idxmax())
        rows = rows[rows["sensitive:region"] == wanted]
    for curve in curves:
        assert curve.steps == tuple(s for s in asked.steps if s <= len(rows) and s < len(TRAIN))
        assert len(set(curve.order)) == len(curve.order) == curve.steps[-1]
        assert set(curve.order) <= set(rows["example_id"])
    assert [curve.repeat for curve in curves] == [0, 1]


def test_an_order_depends_on_seed_and_repeat_and_not_on_later_steps_or_other_examples():
    asked = StudySettings(("uniform",), steps=(10, 50), repeats=2)
    first, second = curves_of(asked).values()
    assert first.order != second.order
    assert curves_of(asked, seed=1)["uniform-0"].order != first.order
    assert curves_of(replace(asked, steps=(10,)))["uniform-0"].order == first.order[:10]
    labelled = curves_of(replace(asked, patterns=("uniform", "label"), steps=(10, len(TRAIN) - 1)))
    happy = set(TRAIN.loc[TRAIN["label"] == 1, "example_id"])
    kept = [example for example in labelled["uniform-0"].order if example in happy]
    assert tuple(kept[:10]) == labelled["label-0"].order
    assert isinstance(first, Curve)


def test_the_command_studies_and_says_what_it_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["data=synthetic_tabular", "model=logistic", "trainer=tabular", "trainer.max_epochs=1"]
    words += ["data.options.num_examples=150", "partition.num_shards=2", "partition.num_slices=2", "seed=3"]
    words += ["study.patterns=[label]", "study.steps=[2]", "evaluation.num_replicates=100", "execution.num_workers=1"]
    assert run_command(["simulate", *words]) == 0
    said = capsys.readouterr().out
    directory = study_directory(compose("simulate", words), words)
    assert f"page: {directory / 'study.html'}" in said
    assert "[2/2] label-0: 2 deleted, accuracy" in said
    assert "After 2 deletions from training examples labelled happy" in said
    page = (directory / "study.html").read_text()
    assert f"fairsisa simulate {' '.join(words)}" in page
    other = ["study.steps=[3]" if word == "study.steps=[2]" else word for word in words]
    assert study_directory(compose("simulate", other), other) != directory
    assert study_directory(compose("simulate", [*words, "run=here"]), words).name == "here"
