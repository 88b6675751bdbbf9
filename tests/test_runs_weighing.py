from __future__ import annotations

import json
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains import QUICK, TINY_TEXT, run_of
from fairsisa.cli import compressing
from fairsisa.cli.main import run_command
from fairsisa.compression.artefacts import CARD, LAYOUT, card_of
from fairsisa.models.base import load_classifier
from fairsisa.report.compression import CompressionReport
from fairsisa.runs.compressing import descend_run, export_descendant
from fairsisa.runs.descendants import Recipe
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import measure_run
from fairsisa.runs.networks import checkpoint_of, origin_of
from fairsisa.runs.weighing import command_of, descendant_predictors
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    PartitionSettings,
)
from fairsisa.sisa.ensemble import read_predictions
from fairsisa.tables import TEST
from unlearning_cases import HERE, silent, trained_in

TEXTS = run_of(
    TINY_TEXT,
    replace(QUICK, max_epochs=1.0),
    data={"name": "synthetic_text", "options": {"num_examples": 50}},
    partition=PartitionSettings(num_shards=2, num_slices=1),
)
FEW = CalibrationSettings(num_examples=4)
SPARSE = ({"method": "wanda", "sparsity": 0.4}, "round_to_nearest_4")
RECIPES = {
    "mini": Recipe(distil=DistillationSettings(name="mini", num_layers=1, trainer={"max_epochs": 1.0})),
    "sparse": Recipe(compress=(CompressionSettings(SPARSE, name="sparse"), FEW)),
    "int8": Recipe(compress=(CompressionSettings(("int8_dynamic",), name="int8"), FEW)),
    "mini-int8": Recipe(compress=(CompressionSettings(("int8_dynamic",), source="mini", name="mini-int8"), FEW)),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = trained_in(tmp_path_factory.mktemp("weighed"), TEXTS)
    for recipe in RECIPES.values():
        descend_run(made, recipe, execution=HERE, on_event=silent, evaluate=False)
    return made


@pytest.fixture(scope="module")
def told(run: Run) -> CompressionReport:
    content = measure_run(run, execution=HERE, on_event=silent).compression
    assert content is not None
    return content


def stored_bytes(run: Run, name: str) -> int:
    """Count the bytes of an artefact's numbers in its file: without header, layout and card."""
    payload = (run.store.root / "objects" / name[:2] / f"{name}.safetensors").read_bytes()
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    notes = sum(np.diff(header[key]["data_offsets"]).item() for key in (LAYOUT, CARD) if key in header)
    return len(payload) - 8 - length - notes


def row(told: CompressionReport, name: str) -> dict[str, Any]:
    return told.models.set_index("name").loc[name].to_dict()


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_are_those_of_what_is_stored(run, told, name):
    models = run.ensemble.descendants[name].models.values()
    found = row(told, name)
    assert found["size_bytes"] == sum(stored_bytes(run, model) for model in models)
    assert found["num_models"] == len(models)


def test_the_ensembles_size_is_that_of_its_networks_with_what_never_trained(run, told):
    chains = origin_of(run, HERE, silent).chains.values()
    whole = sum(
        value.numel() for chain in chains for value in load_classifier(chain.base, chain.model, 2, 0).parameters()
    )
    assert row(told, told.base)["num_parameters"] == whole
    assert row(told, told.base)["size_bytes"] == 4 * whole
    assert 4 * whole > sum(stored_bytes(run, checkpoint_of(chain)) for chain in chains)


@pytest.mark.parametrize("name", ["mini", "int8"])
def test_sizes_are_those_of_exported_files_too(run, told, name, tmp_path):
    folders = export_descendant(run, name, tmp_path / name, execution=HERE)
    total = 0
    for folder in folders:
        payload = (folder / "model.safetensors").read_bytes()
        total += len(payload) - 8 - int.from_bytes(payload[:8], "little")
    assert row(told, name)["size_bytes"] == total


def test_sparsity_and_bits_are_those_of_the_cards(run, told):
    for name in ("sparse", "int8", "mini-int8"):
        models = run.ensemble.descendants[name].models
        layers = [layer for model in models.values() for layer in card_of(run.store, model).layers]
        weights = np.array([layer.num_weights for layer in layers])
        zeros = sum(layer.num_zeros for layer in layers)
        assert row(told, name)["sparsity"] == pytest.approx(zeros / weights.sum())
        stored = np.array([layer.stored_bits for layer in layers])
        assert row(told, name)["bits"] == pytest.approx((stored * weights).sum() / weights.sum())
        own = told.layers[told.layers["name"] == name]
        assert sorted(set(own["constituent"])) == sorted(models)
        assert len(own) == len(layers)
    assert row(told, "int8")["bits"] == 8
    assert row(told, "sparse")["sparsity"] >= 0.3
    assert row(told, "mini")["bits"] == row(told, told.base)["bits"] == 32


def test_each_row_tells_what_it_was_made_from(told):
    assert told.models["name"].tolist() == [told.base, *RECIPES]
    made = {name: (row(told, name)["made_by"], row(told, name)["source"]) for name in (told.base, *RECIPES)}
    assert made == {
        told.base: ("train", ""),
        "mini": ("distil", "mean_score"),
        "sparse": ("compress", "ensemble"),
        "int8": ("compress", "ensemble"),
        "mini-int8": ("compress", "mini"),
    }
    assert row(told, "sparse")["steps"] == "wanda 40%, round_to_nearest 4 bits in groups of 32"
    assert row(told, "mini")["steps"] == "ensemble student of mean_score, 1 layers"
    for name in (told.base, *RECIPES):
        found = row(told, name)
        assert 0 < found["latency_low"] <= found["latency_ms"] <= found["latency_high"]
        assert found["texts_per_second"] > 0
    assert row(told, "mini")["num_parameters"] == row(told, "mini-int8")["num_parameters"]
    assert 2 * row(told, "mini")["num_parameters"] < row(told, told.base)["num_parameters"]


def test_what_members_decide_together_is_aggregated_as_the_ensembles_is(run):
    weights = [3.0, 1.0]
    found = {
        way: descendant_predictors(run.store, run.ensemble.descendants, aggregation=way, weights=weights, seed=0)
        for way in ("mean_score", "weighted_score")
    }
    for name in RECIPES:
        made = run.ensemble.descendants[name].predictions[TEST]
        scores = read_predictions(run.store, dict(sorted(made.items()))).scores.astype(float)
        (mean,) = (each for each in found["mean_score"] if each.name == name)
        (weighed,) = (each for each in found["weighted_score"] if each.name == name)
        np.testing.assert_allclose(mean.scores, scores.mean(axis=1))
        own = weights if scores.shape[1] == 2 else [1.0]
        np.testing.assert_allclose(weighed.scores, np.average(scores, axis=1, weights=own))
        np.testing.assert_array_equal(mean.decisions, mean.scores.argmax(axis=1))


def test_what_is_out_of_service_decides_nothing(run):
    idle = {"gone": replace(run.ensemble.descendants["mini"], models={}, predictions={}, reason="gone")}
    assert descendant_predictors(run.store, idle, aggregation="mean_score", weights=[1.0], seed=0) == []


# Commands

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,12}", fullmatch=True).filter(
    lambda name: name != "ensemble" and not name.startswith("shard-")
)
STEPS = st.sampled_from(
    [
        "wanda",
        "wanda_2to4",
        {"method": "wanda", "pattern": "1:4", "include_head": True},
        {"method": "magnitude", "sparsity": 1e-05, "pool": "model"},
        {"method": "drop_layers", "num_layers": 2, "keep": "first"},
        {"method": "round_to_nearest", "bits": 3, "group_size": None, "symmetric": False},
    ]
)
LAST = st.sampled_from(["int8_dynamic", {"method": "torchao", "scheme": "int8_dynamic", "group_size": 8}])
OUTDATED = st.sampled_from(["rebuild", "stale", "remove"])
COPIES = st.builds(
    lambda steps, last, calibration, **own: Recipe(compress=(CompressionSettings((*steps, *last), **own), calibration)),
    st.lists(STEPS, min_size=1, max_size=2),
    st.lists(LAST, max_size=1),
    st.builds(
        CalibrationSettings,
        split=st.sampled_from(["calibration", "train"]),
        num_examples=st.integers(1, 300),
        seed=st.integers(0, 9),
        corpus=st.sampled_from([None, "wikitext2_validation", "/a folder/it's mine, 2.txt"]),
    ),
    source=NAMES | st.just("ensemble"),
    name=st.none() | NAMES,
    when_outdated=OUTDATED,
)
STUDENTS = st.builds(
    lambda fair, **own: Recipe(distil=DistillationSettings(**own, **fair)),
    st.sampled_from([{}, {"teacher": "fair", "postprocessor": "a.b+c"}, {"teacher": "shard-3"}, {"scope": "shard"}]),
    name=st.none() | NAMES,
    start=st.sampled_from(["base", "teacher"]),
    num_layers=st.none() | st.integers(1, 12),
    keep=st.sampled_from(["alternate", "first"]),
    soft=st.floats(0.1, 9),
    hidden=st.floats(0, 9),
    temperature=st.floats(1e-7, 20),
    model=st.sampled_from([{}, {"architecture": "bert", "shape": {"hidden_size": 16, "hidden_act": "relu"}}]),
    trainer=st.sampled_from([{}, {"max_epochs": 0.5, "batch_size": 8, "precision": "fp32"}]),
    when_outdated=OUTDATED,
)


def read_back(command: str) -> Recipe:
    """Return the recipe that a command asks for, given to the program as a shell would give it."""
    words = shlex.split(command)
    assert words[0] == "fairsisa"
    asked: list[tuple[Any, Recipe]] = []
    with mock.patch.object(compressing, "_descend", lambda config, recipe: asked.append((config, recipe))):
        assert run_command(words[1:]) == 0
    assert asked[0][0]["run"] == DIRECTORY
    return asked[0][1]


DIRECTORY = "/some where/it's, a=run"


@settings(max_examples=25)
@given(COPIES | STUDENTS)
def test_the_command_on_the_page_asks_for_the_same_again(recipe):
    again = read_back(command_of(DIRECTORY, recipe.entry))
    assert again.name == recipe.name
    assert replace(again.chosen, name=None) == replace(recipe.chosen, name=None)
    if recipe.compress is not None:
        assert again.compress is not None
        assert again.compress[1] == recipe.compress[1]
        assert again.compress[0].steps == recipe.compress[0].steps


def test_a_command_tells_what_differs_and_no_more():
    assert command_of("runs/a", RECIPES["int8"].entry) == (
        "fairsisa compress run=runs/a 'compression=[int8_dynamic]' name=int8 calibration.num_examples=4"
    )
    assert command_of("runs/a", RECIPES["mini"].entry) == (
        "fairsisa distil run=runs/a name=mini num_layers=1 trainer.max_epochs=1.0"
    )


def test_the_page_shows_each_command(run, told):
    shown = run.path("compression.md").read_text()
    for name, command in zip(RECIPES, told.commands, strict=True):
        assert command == command_of(str(run.directory), run.ensemble.descendants[name])
        assert command in shown
        assert f"name={name}" in command
    assert Path(run.path("compression.html")).stat().st_size > 0
    assert {each.name for each in fields(CompressionReport)} >= {"commands", "models", "changes"}
