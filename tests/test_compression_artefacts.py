from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chains import LOGISTIC, PERCEPTRON, TINY_TEXT, assembled, run_of, trained
from fairsisa.compression import artefacts
from fairsisa.compression.artefacts import (
    CARD,
    COPY,
    LAYOUT,
    STUDENT,
    Blueprint,
    CopyTask,
    KeepTask,
    ScoreTask,
    calibration_batches,
    card_of,
    in_use,
    keep_copy,
    keep_scores,
    keep_student,
    open_model,
    score_inputs,
)
from fairsisa.compression.classifier_student import StudentTask
from fairsisa.compression.distilling import DistillationWeights
from fairsisa.data.encoding import Inputs
from fairsisa.errors import ConfigError, MissingArtefactError, ModelError
from fairsisa.execution import Event
from fairsisa.lineage import Lineage, slice_digest
from fairsisa.models.whole import EncoderWithHead, NetworkSpec
from fairsisa.runs.networks import checkpoint_of, spec_of
from fairsisa.settings import ModelSettings, TrainerSettings, plain_steps, read_steps
from fairsisa.settings.steps import CALIBRATED, Step
from fairsisa.store import Store

MODELS: dict[str, ModelSettings] = {
    "logistic": LOGISTIC,
    "mlp": PERCEPTRON,
    "head": replace(TINY_TEXT, trains="head"),
    "full": TINY_TEXT,
    "lora": replace(TINY_TEXT, trains="lora", lora_rank=2),
}
every_model = pytest.mark.parametrize("name", MODELS)


@dataclass(frozen=True)
class Source:
    """A trained constituent: where it is kept, what it is called there, how it is built, and some examples."""

    store: str
    name: str
    blueprint: Blueprint
    inputs: Inputs

    @property
    def scores(self) -> np.ndarray:
        return score_inputs(open_model(Store(self.store), self.name, self.blueprint), self.inputs, self.blueprint)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: trained_source(folder / name, model) for name, model in MODELS.items()}


def trained_source(folder: Path, model: ModelSettings) -> Source:
    settings = run_of(model, partition=replace(run_of(model).partition, num_shards=1, num_slices=1))
    assembly = assembled(settings, folder, num_examples=30)
    trained(assembly)
    chain = assembly.constituents[0]
    blueprint = Blueprint(spec_of(chain, Store(folder)))
    return Source(str(folder), checkpoint_of(chain), blueprint, assembly.take(assembly.held_out["test"]))


def copy_task(source: Source, steps: Sequence[str | dict[str, object]], store: str | None = None) -> CopyTask:
    chosen = read_steps(steps)
    used = source.inputs if any(step.method in CALIBRATED for step in chosen) else source.inputs.take([])
    lineage = Lineage(
        kind=COPY,
        parents=(source.name,),
        examples=used.example_ids,
        contents=slice_digest(used.example_ids, used.contents),
        inputs=(),
        settings={"steps": plain_steps(chosen)},
    )
    calibration = used if len(used) else None
    return CopyTask(store or source.store, source.name, lineage, source.blueprint, chosen, calibration, "shard-0")


def made(source: Source, *steps: str | dict[str, object]) -> Source:
    """Compress a source, and return the copy as one."""
    return replace(source, name=keep_copy(copy_task(source, steps), silent))


def silent(event: Event) -> None:
    """Hear an event and do nothing."""


@every_model
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_copy_with_nothing_removed_decides_as_what_it_was_made_from(sources, name, method):
    same = made(sources[name], {"method": method, "sparsity": 0.0, "include_head": True})
    np.testing.assert_allclose(same.scores, sources[name].scores, atol=1e-5)


@every_model
def test_int8_runs_after_pruning_wherever_the_layers_are(sources, name):
    copy = made(sources[name], {"method": "magnitude", "include_head": True}, "int8_dynamic")
    assert np.isfinite(copy.scores).all()
    np.testing.assert_allclose(copy.scores.sum(axis=1), 1, atol=1e-5)
    assert np.abs(copy.scores - sources[name].scores).max() > 1e-7
    assert {layer.stored_bits for layer in card_of(Store(copy.store), copy.name).layers} == {8}


@pytest.mark.parametrize(
    "steps", [["wanda_2to4"], ["magnitude_global", "round_to_nearest_4"], ["random", "int8_dynamic"]]
)
def test_the_card_tells_what_lies_in_the_store(sources, steps):
    copy = made(sources["full"], *steps)
    store = Store(copy.store)
    artefact, card = store.get(copy.name), card_of(store, copy.name)
    assert card.steps == read_steps(steps)
    assert card.parents == (sources["full"].name,)
    calibrated = steps[0].startswith("wanda")
    assert card.calibration_digest == (artefact.lineage.contents if calibrated else None)
    assert card.num_calibration_texts == (len(sources["full"].inputs) if calibrated else 0)
    for layer in card.layers:
        if f"{layer.name}.values" in artefact.tensors:
            levels = artefact.tensors[f"{layer.name}.values"].int() - artefact.tensors[f"{layer.name}.zero_point"].int()
            assert (layer.num_zeros, layer.bits) == (int((levels == 0).sum()), 8)
        else:
            assert layer.num_zeros == int((artefact.tensors[f"{layer.name}.weight"] == 0).sum())
    numbers = [value for key, value in artefact.tensors.items() if key not in (LAYOUT, CARD)]
    assert sum(value.numel() * value.element_size() for value in numbers) <= card.bytes_after


def test_dropped_layers_stay_away(sources):
    copy = made(sources["full"], {"method": "drop_layers", "num_layers": 1, "keep": "first"})
    kept = {key for key in Store(copy.store).get(copy.name).tensors if ".layer." in key}
    assert kept
    assert {key.split(".layer.")[1][0] for key in kept} == {"0"}
    assert open_model(Store(copy.store), copy.name, copy.blueprint).config.num_hidden_layers == 1


def test_what_is_kept_already_is_not_made_again(sources, monkeypatch):
    task = copy_task(sources["logistic"], ["wanda"])
    name = keep_copy(task, silent)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("It was made again.")

    monkeypatch.setattr(artefacts, "compress", refuse)
    heard: list[Event] = []
    assert keep_copy(task, heard.append) == name == task.lineage.name
    told = [(event.kind, event.constituent) for event in heard]
    assert told == [("model_started", "shard-0"), ("model_done", "shard-0")]


def test_the_same_task_gives_the_same_bytes(sources, tmp_path):
    first = Store(sources["mlp"].store)
    checkpoint = first.get(sources["mlp"].name)
    other = Store(tmp_path)
    for parent in (*checkpoint.lineage.parents, sources["mlp"].name):
        other.put(first.get(parent).lineage, first.get(parent).tensors)
    name = made(sources["mlp"], "sparsegpt").name
    assert keep_copy(copy_task(sources["mlp"], ["sparsegpt"], str(tmp_path)), silent) == name
    assert other.manifest(name).sha256 == first.manifest(name).sha256


def test_steps_that_do_not_fit_name_the_layers(sources):
    with pytest.raises(ConfigError, match=r"drop_layers|layers"):
        made(sources["mlp"], {"method": "drop_layers", "num_layers": 1})
    with pytest.raises(ConfigError, match=r"Layer \d+: .*4"):
        made(sources["mlp"], {"method": "wanda", "pattern": "2:4", "include_head": True})


def test_only_what_is_there_and_fits_is_opened(sources):
    full, tabular = sources["full"], sources["mlp"]
    with pytest.raises(MissingArtefactError, match="0" * 64):
        open_model(Store(full.store), "0" * 64, full.blueprint)
    with pytest.raises(ModelError, match=r"Expected the state of a trained network, but 6 parts lack, 0\.mean first"):
        open_model(Store(full.store), full.name, tabular.blueprint)
    with pytest.raises(ModelError, match="What was packed is damaged or another model's: "):
        open_model(Store(full.store), made(full, "random").name, tabular.blueprint)
    task = student_of(tabular, PERCEPTRON)
    wider = replace(task.blueprint, spec=replace(task.blueprint.spec, model=replace(PERCEPTRON, hidden=(6,))))
    for blueprint, said in ((wider, "is that of another network, by its names"), (full.blueprint, "parts lack")):
        with pytest.raises(ModelError, match=said):
            open_model(Store(tabular.store), keep_student(task, silent), blueprint)


def student_of(source: Source, model: ModelSettings, **changes: object) -> KeepTask:
    spec = replace(source.blueprint.spec, model=model, num_features=source.inputs.features.shape[1], seed=3)
    blueprint = Blueprint(spec)
    targets = np.full((len(source.inputs), 2), 0.5, np.float32)
    task = StudentTask(
        spec=spec,
        trainer=TrainerSettings(max_epochs=1.0, batch_size=4, precision="fp32", accelerator="cpu"),
        weights=DistillationWeights(soft=1.0),
        inputs=source.inputs.with_targets(targets),
        pad_id=0,
        seed=1,
        member="student",
    )
    lineage = Lineage(kind=STUDENT, parents=(source.name,), examples=(), inputs=(), settings={"is": "small"})
    return KeepTask(source.store, lineage, blueprint, replace(task, **changes), "student")


def test_a_student_is_kept_with_what_its_training_told(sources):
    task = student_of(sources["mlp"], PERCEPTRON)
    name = keep_student(task, silent)
    artefact = Store(task.store).get(name)
    assert artefact.metadata["steps"] == math.ceil(len(task.student.inputs) / 4)
    assert artefact.metadata["curve"][-1][0] == artefact.metadata["steps"]
    network = open_model(Store(task.store), name, task.blueprint)
    assert not network.training
    assert {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in artefact.tensors.items()
    }
    assert all(torch.equal(value, artefact.tensors[key]) for key, value in network.state_dict().items())
    assert Store(task.store).manifest(name).environment["precision"] == "fp32"


def test_scores_are_those_of_each_example_alone(sources):
    for source in (sources["full"], sources["head"], sources["mlp"]):
        network = open_model(Store(source.store), source.name, source.blueprint)
        alone = np.concatenate(
            [score_inputs(network, source.inputs.take([row]), source.blueprint) for row in range(len(source.inputs))]
        )
        np.testing.assert_allclose(source.scores, alone, atol=1e-5)
        np.testing.assert_allclose(alone.sum(axis=1), 1, atol=1e-5)


def test_scores_are_kept_once(sources, monkeypatch):
    source = sources["full"]
    lineage = Lineage(
        kind="predictions",
        parents=(source.name,),
        examples=source.inputs.example_ids,
        contents=slice_digest(source.inputs.example_ids, source.inputs.contents),
        inputs=(),
        settings={"of": "a copy"},
    )
    task = ScoreTask(source.store, source.name, lineage, source.blueprint, source.inputs, "shard-0")
    name = keep_scores(task, silent)
    np.testing.assert_array_equal(Store(source.store).get(name).tensors["scores"].numpy(), source.scores)
    monkeypatch.setattr(artefacts, "score_inputs", None)
    assert keep_scores(task, silent) == name


def test_a_head_stays_in_fp32_when_its_encoder_computes_in_bf16(sources):
    source = sources["head"]
    blueprint = replace(source.blueprint, precision="bf16")
    network = in_use(open_model(Store(source.store), source.name, blueprint), blueprint)
    assert isinstance(network, EncoderWithHead)
    assert {value.dtype for value in network.encoder.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in network.head.parameters()} == {torch.float32}
    np.testing.assert_allclose(score_inputs(network, source.inputs, blueprint), source.scores, atol=0.05)
    assert blueprint.environment["precision"] == "bf16"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_calibration_holds_every_text_once_and_no_padding(lengths):
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    names = tuple(f"e{row}" for row in range(len(lengths)))
    inputs = Inputs(names, names, np.zeros(len(lengths), np.int64), tokens, offsets)
    batches = calibration_batches(inputs)
    assert not any("mask" in batch for batch in batches)
    found = sorted(tuple(row.tolist()) for batch in batches for row in batch["tokens"])
    assert found == sorted(tuple(inputs.row_tokens(row).tolist()) for row in range(len(inputs)))


def test_a_plan_of_a_network_is_a_value(sources):
    blueprint = sources["full"].blueprint
    assert isinstance(blueprint.spec, NetworkSpec)
    assert replace(blueprint) == blueprint
    assert (blueprint.precision, blueprint.device, blueprint.threads) == ("fp32", "cpu", 1)
    assert Step("wanda") == read_steps(["wanda"])[0]
