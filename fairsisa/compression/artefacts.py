"""Compressed models and students as artefacts of a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fairsisa.compression.card import Card
from fairsisa.compression.classifier_student import StudentTask, student_network, train_student
from fairsisa.compression.compressing import compress
from fairsisa.compression.packing import Packed, pack, unpack
from fairsisa.data.batches import inference_batches
from fairsisa.data.encoding import Inputs
from fairsisa.execution import Event, Report
from fairsisa.lineage import Lineage, canonical_json
from fairsisa.models.batching import INFERENCE_ROWS, INFERENCE_TOKENS, collate, run_batched
from fairsisa.models.device import dtype_of, numeric_environment
from fairsisa.models.network import Batch, build_encoder, build_network, logits_of
from fairsisa.models.whole import EncoderWithHead, NetworkSpec, load_all, whole_network
from fairsisa.settings import Step
from fairsisa.store import Artefact, Store

STUDENT, COPY = "student", "compressed"
LAYOUT, CARD = "__layout__", "__card__"
"""The names, among a copy's tensors, of JSON text as bytes: how to put the tensors in place, and what was done."""


@dataclass(frozen=True)
class Blueprint:
    """How an artefact's network is built and used: with `num_layers`, of these layers of its spec's network only.

    `precision` is that in which it computes, "fp32" or "bf16"; a head over a frozen encoder's features takes fp32.
    """

    spec: NetworkSpec
    num_layers: int | None = None
    keep: str = "alternate"
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1

    @property
    def environment(self) -> Mapping[str, Any]:
        """What the numbers of this network depend on, beside data and settings."""
        return numeric_environment(self.device, self.precision, self.threads)


@dataclass(frozen=True)
class CopyTask:
    """A model of a store that is to be compressed; `calibration` is None for methods that read no example.

    `label` is what progress is reported as.
    """

    store: str
    source: str
    lineage: Lineage
    blueprint: Blueprint
    steps: tuple[Step, ...]
    calibration: Inputs | None
    label: str


@dataclass(frozen=True)
class KeepTask:
    """A student that is to be trained, and the lineage under which a store keeps it."""

    store: str
    lineage: Lineage
    blueprint: Blueprint
    student: StudentTask
    label: str


@dataclass(frozen=True)
class ScoreTask:
    """Examples that a student or a copy is to score, and the lineage of its scores."""

    store: str
    model: str
    lineage: Lineage
    blueprint: Blueprint
    inputs: Inputs
    label: str


def keep_student(task: KeepTask, report: Report) -> str:
    """Train a student unless the store has it; return its name.

    Raises:
        TrainingError: when training diverged or was interrupted.
    """
    store, name = Store(task.store), task.lineage.name
    report(Event("model_started", task.label))
    steps = 0
    if not store.has(name):
        made = train_student(task.student, report)
        steps = made.steps
        notes = {"steps": made.steps, "seconds": made.seconds, "curve": [list(point) for point in made.curve]}
        store.put(task.lineage, made.state, notes, environment=task.blueprint.environment)
    report(Event("model_done", task.label, step=steps, values={"status": "trained" if steps else "reused"}))
    return name


def keep_copy(task: CopyTask, report: Report) -> str:
    """Compress a model of the store unless the store has the copy; return its name.

    Raises:
        ConfigError: when a step does not fit the model's layers, naming them.
    """
    store, name = Store(task.store), task.lineage.name
    report(Event("model_started", task.label))
    if not store.has(name):
        model = open_model(store, task.source, task.blueprint)
        batches = [] if task.calibration is None else calibration_batches(task.calibration)
        made = compress(
            model.to(task.blueprint.device),
            task.steps,
            batches,
            parents=(task.source,),
            calibration_digest=None if task.calibration is None else task.lineage.contents,
        )
        packed = pack(made.model)
        texts = {LAYOUT: packed.layout, CARD: made.card.to_dict()}
        tensors = dict(packed.tensors) | {key: _as_bytes(value) for key, value in texts.items()}
        store.put(task.lineage, tensors, environment=task.blueprint.environment)
    report(Event("model_done", task.label, values={"status": "compressed"}))
    return name


def keep_scores(task: ScoreTask, report: Report) -> str:
    """Put a model's class probabilities of some examples into the store, unless they are there; return their name."""
    store, name = Store(task.store), task.lineage.name
    if not store.has(name):
        network = in_use(open_model(store, task.model, task.blueprint), task.blueprint)
        scores = score_inputs(network, task.inputs, task.blueprint)
        store.put(task.lineage, {"scores": torch.from_numpy(scores)}, environment=task.blueprint.environment)
    report(Event("predicted", task.label, values={"examples": len(task.inputs)}))
    return name


def open_model(store: Store, name: str, blueprint: Blueprint) -> nn.Module:
    """Return the network of a checkpoint, a student or a copy, in evaluation mode, as it was kept.

    Raises:
        MissingArtefactError: when the store has it no more.
        ModelError: when it is of another network than the blueprint's.
    """
    artefact = store.get(name)
    kind = artefact.lineage.kind
    if kind == COPY:
        network = unpack(_skeleton(blueprint), _packed(artefact))
    elif kind == STUDENT:
        network = _skeleton(blueprint)
        load_all(network, artefact.tensors)
    else:
        network = whole_network(blueprint.spec, artefact.tensors)
    return network.eval()


def card_of(store: Store, name: str) -> Card:
    """Return what is on record of a compressed copy."""
    return Card.from_dict(json.loads(store.get(name).tensors[CARD].numpy().tobytes()))


def in_use(network: nn.Module, blueprint: Blueprint) -> nn.Module:
    """Return a network on its device and in the number format that it computes in."""
    network = network.to(blueprint.device)
    if blueprint.precision != "fp32":
        part = network.encoder if isinstance(network, EncoderWithHead) else network
        part.to(dtype_of(blueprint.precision))
    return network.eval()


def score_inputs(network: nn.Module, inputs: Inputs, blueprint: Blueprint) -> np.ndarray:
    """Return class probabilities, float32, shape (num_examples, num_classes)."""

    def probabilities(batch: Batch) -> torch.Tensor:
        return logits_of(network, batch).softmax(dim=1)

    return run_batched(probabilities, inputs, width=blueprint.spec.num_classes, device=blueprint.device)


def calibration_batches(inputs: Inputs) -> list[Batch]:
    """Return examples in batches of equal length, so that there is no padding."""
    most = INFERENCE_ROWS if inputs.features is not None else INFERENCE_TOKENS
    return [collate(inputs, rows, pad_id=0) for rows in inference_batches(inputs.lengths, max_tokens=most)]


def _skeleton(blueprint: Blueprint) -> nn.Module:
    """Return the network before any weights are put in."""
    spec = blueprint.spec
    if spec.base is None:
        return build_network(spec.model, None, num_features=spec.num_features, num_classes=spec.num_classes, seed=0)
    if spec.model.trains == "head":
        head = build_network(
            spec.model, spec.base, num_features=spec.num_features, num_classes=spec.num_classes, seed=0
        )
        return EncoderWithHead(build_encoder(spec.model, spec.base), head)
    plain = replace(spec, model=replace(spec.model, trains="full"))
    return student_network(plain, blueprint.num_layers, blueprint.keep)


def _packed(artefact: Artefact) -> Packed:
    tensors = dict(artefact.tensors)
    layout, _ = tensors.pop(LAYOUT), tensors.pop(CARD)
    return Packed(json.loads(layout.numpy().tobytes()), tensors)


def _as_bytes(value: Mapping[str, Any]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(canonical_json(value), dtype=np.uint8).copy())
