from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chains import QUICK, TINY_TEXT, run_of
from fairsisa.compression.artefacts import KeepTask, card_of
from fairsisa.compression.folders import load_compressed, load_model
from fairsisa.errors import ConfigError, RunError
from fairsisa.fairness.rates import EVERYONE
from fairsisa.models.base import read_tokenizer
from fairsisa.report.rows import by_key
from fairsisa.runs import students
from fairsisa.runs.compressing import Descended, descend_run, export_descendant
from fairsisa.runs.descendants import Recipe
from fairsisa.runs.directory import Descendant, Run
from fairsisa.runs.evaluating import measure_run
from fairsisa.runs.fitting import load_fitted
from fairsisa.runs.postprocessing import postprocess_run
from fairsisa.runs.serving import score_new
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    ExecutionSettings,
    PartitionSettings,
    PostprocessSettings,
    RunSettings,
)
from fairsisa.sisa import ensemble as predicting
from fairsisa.sisa.ensemble import read_predictions
from fairsisa.store import Store
from fairsisa.tables import CALIBRATION, TEST, TRAIN, Predictions
from unlearning_cases import HERE, TABULAR, copied, silent, trained_in, tree_of

ROWS = replace(TABULAR, data={"name": "synthetic_tabular", "options": {"num_examples": 300, "repeat_share": 0.3}})
RULE = PostprocessSettings(
    strategy="ensemble_vote_count", sensitive_feature=("region",), small_cells="ignore", tolerance=(0.1,), name="rule"
)
LESSONS = {"max_epochs": 1.0, "batch_size": 16}
STILL = {**LESSONS, "learning_rate": 1e-12}
"""A trainer that leaves a student where it begins."""
FEW = CalibrationSettings(num_examples=4)
TRAINS = ("full", "head", "lora")


def texts(trains: str) -> RunSettings:
    model = replace(TINY_TEXT, trains=trains, **({"lora_rank": 2} if trains == "lora" else {}))
    return run_of(
        model,
        replace(QUICK, max_epochs=1.0),
        data={"name": "synthetic_text", "options": {"num_examples": 50}},
        partition=PartitionSettings(num_shards=2, num_slices=1),
    )


@pytest.fixture(scope="module")
def text_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs that only gain descendants; each test makes those that it speaks of."""
    folder = tmp_path_factory.mktemp("texts")
    return {trains: trained_in(folder / trains, texts(trains)) for trains in TRAINS}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tabular run with a post-processor, some of whose training examples are of unknown group."""
    folder = tmp_path_factory.mktemp("rows")
    known = trained_in(folder / "known", ROWS)
    frame = known.examples.frame.copy()
    hidden = (frame["split"] == TRAIN) & (np.arange(len(frame)) % 3 == 0)
    frame.loc[hidden, "sensitive:region"] = None
    run = Run(folder / "run")
    run.begin(
        known.settings,
        replace(known.examples, frame=frame),
        known.partition,
        source=None,
        store=str(folder / "store"),
        environment=known.environment,
    )
    trained_in(folder, ROWS)
    postprocess_run(run, RULE, execution=HERE, on_event=silent, evaluate=False)
    return run


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[KeepTask]:
    """What students are trained on, as it is asked for."""
    asked: list[KeepTask] = []
    train = students.keep_student
    monkeypatch.setattr(students, "keep_student", lambda task, report: (asked.append(task), train(task, report))[1])
    return asked


def student(run: Run, name: str, **settings: Any) -> Descendant:
    return made(run, Recipe(distil=DistillationSettings(**{"name": name, "trainer": LESSONS, **settings})))


def copies(run: Run, name: str, *steps: Any, **settings: Any) -> Descendant:
    return made(run, Recipe(compress=(CompressionSettings(steps, name=name, **settings), FEW)))


def made(run: Run, recipe: Recipe) -> Descendant:
    told = descend_run(run, recipe, execution=HERE, on_event=silent, evaluate=False)
    assert (told.name, told.content) == (recipe.name, None)
    return run.ensemble.descendants[recipe.name]


def scores(run: Run, name: str, split: str = TEST) -> np.ndarray:
    """Return what each member of a descendant says, shape (num_examples, num_members, num_classes)."""
    return read_predictions(run.store, run.ensemble.descendants[name].predictions[split]).scores


def own_scores(run: Run, split: str = TEST) -> np.ndarray:
    ensemble = run.ensemble
    return read_predictions(
        run.store, {name: ensemble.predictions[split][name] for name in ensemble.checkpoints}
    ).scores


def said(run: Run) -> Predictions:
    """Return what the constituents say of the training examples, by the path that serves new ones."""
    frame = run.examples.split(TRAIN)
    if run.examples.is_text:
        return score_new(run, frame["text"].tolist())
    return score_new(run, frame[[f"feature:{name}" for name in run.examples.feature_names]].to_numpy())


# Students


def test_the_mean_teaches_the_mean(rows, lessons):
    student(rows, "mean")
    (task,) = lessons
    np.testing.assert_allclose(task.student.inputs.targets, said(rows).scores.mean(axis=1), atol=1e-6)
    assert list(task.student.inputs.example_ids) == rows.examples.split(TRAIN)["example_id"].tolist()


def test_the_majority_teaches_its_decisions(rows, lessons):
    student(rows, "majority", teacher="majority_vote")
    votes = said(rows).scores.argmax(axis=2)
    shares = np.stack([(votes == label).sum(axis=1) for label in range(2)], axis=1)
    expected = np.where((shares[:, 1] > shares[:, 0])[:, None], [0.0, 1.0], [1.0, 0.0])
    np.testing.assert_array_equal(lessons[0].student.inputs.targets, expected)


def test_the_fair_teacher_says_what_it_would_decide_and_leaves_unknown_groups_out(rows, lessons):
    student(rows, "fair", teacher="fair", postprocessor="rule")
    frame = rows.examples.split(TRAIN)
    known = frame["sensitive:region"].notna().to_numpy()
    assert 0 < known.sum() < len(known)
    taught = lessons[0].student.inputs
    assert list(taught.example_ids) == frame.loc[known, "example_id"].tolist()
    heard = said(rows)
    ids = tuple(frame.loc[known, "example_id"])
    votes = Predictions(ids, heard.constituents, heard.scores[known])
    groups = pd.DataFrame({"region": frame.loc[known, "sensitive:region"].to_numpy(object)})
    expected = load_fitted(rows, "rule").predict_proba(votes, sensitive_features=groups)
    np.testing.assert_allclose(taught.targets, expected, atol=1e-6)
    assert np.abs(taught.targets - votes.scores.mean(axis=1)).max() > 0.1


def test_each_shard_has_a_student_that_its_constituent_teaches(rows, lessons):
    entry = student(rows, "own", scope="shard")
    assert list(entry.models) == ["shard-0", "shard-1"]
    heard, frame = said(rows), rows.partition.frame()
    places = {example: row for row, example in enumerate(rows.examples.split(TRAIN)["example_id"])}
    for number, task in enumerate(lessons):
        taught = task.student.inputs
        assert set(taught.example_ids) == set(frame.loc[frame["shard"] == number, "example_id"])
        expected = heard.scores[[places[example] for example in taught.example_ids], number]
        np.testing.assert_allclose(taught.targets, expected, atol=1e-6)
    assert scores(rows, "own").shape == (len(rows.examples.split(TEST)), 2, 2)


def test_what_teachers_say_is_computed_once(text_runs, monkeypatch):
    run = text_runs["full"]
    first = student(run, "first")
    before = run.store.names("predictions")
    parents = run.store.manifest(first.models["student"]).lineage.parents
    assert set(parents) <= set(before)

    def refuse(*_: Any) -> None:
        raise AssertionError("A teacher was run again.")

    monkeypatch.setattr(predicting, "_scores", refuse)
    second = student(run, "second", temperature=3.0, num_layers=1)
    student(run, "third", teacher="majority_vote")
    assert second.models != first.models
    assert run.store.manifest(second.models["student"]).lineage.parents == parents
    assert np.abs(scores(run, "first") - scores(run, "second")).max() > 0


@pytest.mark.parametrize("trains", ["full", "lora"])
def test_a_student_that_starts_as_its_teacher_and_learns_nothing_decides_like_it(text_runs, trains):
    run = text_runs[trains]
    student(run, "echo", teacher="shard-1", start="teacher", hidden=1.0, attention=1.0, trainer=STILL)
    np.testing.assert_allclose(scores(run, "echo")[:, 0], own_scores(run)[:, 1], atol=1e-5)
    assert np.abs(scores(run, "echo")[:, 0] - own_scores(run)[:, 0]).max() > 1e-4


def test_hidden_states_and_attention_tell_more_than_scores(text_runs):
    run = text_runs["full"]
    told = [
        student(run, "plain", teacher="shard-0", num_layers=1).models["student"],
        student(run, "deep", teacher="shard-0", num_layers=1, hidden=1.0, attention=1.0).models["student"],
    ]
    lineages = [run.store.manifest(name).lineage for name in told]
    assert lineages[1].parents == (*lineages[0].parents, run.ensemble.checkpoints["shard-0"][-1])
    assert np.abs(scores(run, "plain") - scores(run, "deep")).max() > 0


def test_a_head_is_taught_in_full_and_need_not_be_the_start(text_runs):
    run = text_runs["head"]
    model = student(run, "whole").models["student"]
    assert any("attention" in key for key in run.store.get(model).tensors)
    with pytest.raises(ConfigError, match="start=teacher needs a teacher that is a classifier, got a head over"):
        student(run, "begun", teacher="shard-0", start="teacher")
    assert "begun" not in run.ensemble.descendants


def test_a_student_may_be_of_another_shape_and_precision(text_runs, rows):
    narrow = {"shape": {**TINY_TEXT.shape, "hidden_size": 8}}
    run = text_runs["full"]
    model = student(run, "narrow", model=narrow, trainer={**LESSONS, "precision": "auto", "accelerator": "auto"})
    assert run.store.get(model.models["student"]).tensors["bert.embeddings.LayerNorm.weight"].shape == (8,)
    assert run.store.manifest(model.models["student"]).environment["precision"] in ("fp32", "bf16")
    wide = student(rows, "wide", model={"kind": "mlp", "hidden": [7]}).models["student"]
    assert rows.store.get(wide).tensors["1.weight"].shape[0] == 7


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"teacher": "mean_scores"}, "Unknown teacher 'mean_scores'. Did you mean 'mean_score'"),
        ({"teacher": "shard-2"}, "Unknown teacher 'shard-2'. Did you mean 'shard-"),
        ({"teacher": "fair", "postprocessor": "rul"}, "no post-processor 'rul'. Did you mean 'rule'"),
        ({"start": "teacher"}, "need one network as teacher: set teacher=shard-0"),
        ({"hidden": 1.0}, "need one network as teacher: set teacher=shard-0"),
        ({"num_layers": 1}, r"num_layers=1 is for text models; set model\.hidden"),
        ({"model": {"kind": "text"}}, "model.kind=text"),
        ({"model": {"hiden": [3]}}, r"Unknown setting model\.hiden. Did you mean 'hidden'"),
        ({"trainer": {"max_epochs": 1e-9}}, "is no example: raise it"),
    ],
)
def test_students_that_do_not_fit_are_refused_and_leave_the_run_as_it_was(rows, settings, problem):
    before = rows.path("ensemble.json").read_bytes()
    with pytest.raises(ConfigError, match=problem):
        student(rows, "bad", **settings)
    assert rows.path("ensemble.json").read_bytes() == before


# Copies


@pytest.mark.parametrize("trains", TRAINS)
def test_copies_with_nothing_removed_decide_as_their_constituents(text_runs, trains):
    run = text_runs[trains]
    entry = copies(run, "same", {"method": "wanda", "sparsity": 0.0, "include_head": True})
    for split in (CALIBRATION, TEST):
        np.testing.assert_allclose(scores(run, "same", split), own_scores(run, split), atol=1e-5)
    assert list(entry.models) == ["shard-0", "shard-1"]


@pytest.mark.parametrize("trains", TRAINS)
@pytest.mark.parametrize("steps", [["int8_dynamic"], ["wanda_2to4", "int8_dynamic"]], ids=len)
def test_copies_of_every_kind_are_quantised(text_runs, trains, steps):
    run, name = text_runs[trains], f"int8-{len(steps)}"
    entry = copies(run, name, *steps)
    assert np.isfinite(scores(run, name)).all()
    assert 0 < np.abs(scores(run, name) - own_scores(run)).max() < 0.5
    for model in entry.models.values():
        card = card_of(run.store, model)
        assert [step.method for step in card.steps] == [step.partition("_2to4")[0] for step in steps]
        assert {layer.stored_bits for layer in card.layers} == {8}
        if len(steps) > 1:  # of the head, Wanda left all weights
            assert sum(layer.sparsity >= 0.5 for layer in card.layers) >= len(card.layers) - 1


def test_a_student_is_compressed_too(text_runs):
    run = text_runs["full"]
    source = student(run, "mini", num_layers=1)
    entry = copies(run, "mini-same", {"method": "magnitude", "sparsity": 0.0}, source="mini")
    np.testing.assert_allclose(scores(run, "mini-same"), scores(run, "mini"), atol=1e-5)
    assert list(entry.models) == ["student"]
    assert card_of(run.store, entry.models["student"]).parents == (source.models["student"],)
    with pytest.raises(ConfigError, match="Copies of 'mini' cannot take its place: set name="):
        copies(run, "mini", "random", source="mini")


def test_each_constituent_may_be_calibrated_on_its_own_shard(rows):
    calibration = CalibrationSettings(split="train", num_examples=6)
    recipe = Recipe(compress=(CompressionSettings(({"method": "wanda", "sparsity": 0.3},), name="apart"), calibration))
    entry, frame = made(rows, recipe), rows.partition.frame()
    for member, model in entry.models.items():
        used = rows.store.manifest(model).lineage.examples
        own = frame.loc[frame["shard"] == int(member.removeprefix("shard-")), "example_id"]
        assert len(used) == 6
        assert set(used) <= set(own)


@pytest.mark.parametrize(
    ("steps", "settings", "problem"),
    [
        (("random",), {"source": "mni"}, "source to be 'ensemble' or a student of the run, got 'mni'"),
        (({"method": "drop_layers", "num_layers": 1},), {}, "drop layers of"),
        (({"method": "wanda", "pattern": "2:4"},), {}, "multiple of 4|groups of 4|4"),
    ],
)
def test_copies_that_do_not_fit_are_refused_and_leave_the_run_as_it_was(rows, steps, settings, problem):
    before = rows.path("ensemble.json").read_bytes()
    with pytest.raises(ConfigError, match=problem):
        copies(rows, "bad", *steps, **settings)
    assert rows.path("ensemble.json").read_bytes() == before


@pytest.mark.slow
def test_two_workers_give_the_bits_of_one(text_runs, tmp_path):
    recipe = Recipe(compress=(CompressionSettings(("wanda_2to4", "int8_dynamic"), name="both"), FEW))
    found = []
    for workers in (1, 2):
        run = copied(text_runs["full"], tmp_path / str(workers))
        descend_run(run, recipe, execution=ExecutionSettings(num_workers=workers), on_event=silent, evaluate=False)
        names = run.ensemble.descendants["both"].names
        found.append({name: run.store.manifest(name).sha256 for name in names})
    assert found[0] == found[1]
    assert len(found[0]) == 6


@pytest.mark.parametrize("kind", ["student", "copies"])
def test_the_same_command_again_changes_nothing(rows, kind):
    def again() -> Descendant:
        return (
            student(rows, "again") if kind == "student" else copies(rows, "again", "magnitude_global", "int8_dynamic")
        )

    first = again()
    before = tree_of(rows.store.root)
    assert again() == first
    assert tree_of(rows.store.root) == before


def test_one_command_at_a_time(rows):
    with rows.locked(), pytest.raises(RunError, match=r"Another command is at work on .*: wait for it"):
        student(rows, "meanwhile")
    with pytest.raises(RunError, match=r"has no ensemble\.json: train it first"):
        student(Run(rows.directory.parent / "none"), "early")


def test_what_was_made_is_measured_beside_the_ensemble(rows, tmp_path):
    run = copied(rows, tmp_path)
    student(run, "small")
    settings = CompressionSettings(("int8_dynamic",), name="low")
    told: Descended = descend_run(run, Recipe(compress=(settings, FEW)), execution=HERE, on_event=silent)
    assert told.content is not None
    assert told.content.models["name"].tolist()[0] == "majority_vote"
    assert {"small", "low"} <= set(told.content.models["name"])
    for ending in ("html", "md", "json", "csv"):
        assert run.path(f"compression.{ending}").is_file()
    page = run.path("compression.html").read_text()
    assert "small" in page
    assert "low" in page
    table = by_key(pd.DataFrame(json.loads(run.path("metrics.json").read_text())["metrics"]))
    wanted = {}
    labels = run.examples.split(TEST)["label"].to_numpy()
    for name in ("small", "low"):
        votes = scores(run, name).argmax(axis=2)
        decided = votes[:, 0] if votes.shape[1] == 1 else (votes.sum(axis=1) * 2 > votes.shape[1]).astype(int)
        wanted[name] = float((decided == labels).mean())
    assert {name: table[name, EVERYONE, "accuracy"]["value"] for name in wanted} == pytest.approx(wanted)


def test_a_run_without_descendants_has_no_such_page(text_runs, tmp_path):
    run = copied(text_runs["head"], tmp_path)
    run.publish(replace(run.ensemble, descendants={}))
    assert measure_run(run, execution=HERE, on_event=silent).compression is None
    assert not run.path("compression.html").exists()


# Export


def loaded_scores(folder: Path, run: Run) -> np.ndarray:
    """Score the test texts one by one by an exported folder alone."""
    model: Any = load_model(folder)
    tokenizer = read_tokenizer(folder)
    found = []
    for text in run.examples.split(TEST)["text"]:
        tokens = tokenizer(text, truncation=True, max_length=run.settings.model.max_length, return_tensors="pt")
        with torch.no_grad():
            found.append(model(input_ids=tokens["input_ids"]).logits.softmax(dim=1)[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("trains", ["full", "lora"])
def test_an_exported_model_scores_as_the_run_does(text_runs, trains, tmp_path):
    run = text_runs[trains]
    student(run, "out", num_layers=1)
    copies(run, "out-low", {"method": "magnitude", "sparsity": 0.3}, *(["int8_dynamic"] if trains == "lora" else []))
    margin = 1e-3 if trains == "lora" else 1e-5  # int8 rounds inputs by the range of their batch
    (alone,) = export_descendant(run, "out", tmp_path / "student", execution=HERE)
    assert alone == tmp_path / "student"
    np.testing.assert_allclose(loaded_scores(alone, run), scores(run, "out")[:, 0], atol=1e-5)
    folders = export_descendant(run, "out-low", tmp_path / "low", execution=HERE)
    assert folders == (tmp_path / "low" / "shard-0", tmp_path / "low" / "shard-1")
    for number, (folder, model) in enumerate(
        zip(folders, run.ensemble.descendants["out-low"].models.values(), strict=True)
    ):
        np.testing.assert_allclose(loaded_scores(folder, run), scores(run, "out-low")[:, number], atol=margin)
        assert load_compressed(folder).card == card_of(Store(run.store.root), model)
        assert run.ensemble.checkpoints[f"shard-{number}"][-1] in (folder / "README.md").read_text()
    assert load_compressed(alone).card.parents == (run.ensemble.descendants["out"].models["student"],)


def test_what_is_no_model_folder_is_not_exported(text_runs, rows, tmp_path):
    copies(text_runs["head"], "heads", "random")
    with pytest.raises(ConfigError, match=r"'heads' is a head over a frozen encoder.*: export a student instead"):
        export_descendant(text_runs["head"], "heads", tmp_path / "a", execution=HERE)
    copies(rows, "flat", "random")
    with pytest.raises(ConfigError, match="reads features: only networks over tokens"):
        export_descendant(rows, "flat", tmp_path / "a", execution=HERE)
    with pytest.raises(ConfigError, match=r"no student or compressed copy 'flt'\. Did you mean 'flat'"):
        export_descendant(rows, "flt", tmp_path / "a", execution=HERE)
    assert not (tmp_path / "a").exists()
