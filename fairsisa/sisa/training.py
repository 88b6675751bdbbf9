"""Train a shard: walk its slices and fit the names that the store lacks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fairsisa.data.batches import training_batches
from fairsisa.data.encoding import Inputs
from fairsisa.errors import CorruptArtefactError, MissingArtefactError, TrainingError
from fairsisa.execution import Event, Report
from fairsisa.models.batching import SliceData, run_batched
from fairsisa.models.classifier import Classifier, Schedule, initial_state
from fairsisa.models.device import dtype_of, numeric_environment
from fairsisa.models.fitting import TellingLogger, fit_quietly, standardizer_state
from fairsisa.models.network import build_encoder, build_network, feature_width, pooled_features
from fairsisa.sisa.chain import Chain, Stage, features_lineage, plan_stages
from fairsisa.store import Manifest, Store

State = Mapping[str, torch.Tensor]
BUNDLE = 64
"""Optimizer steps per Lightning batch of a network whose steps take microseconds."""


@dataclass(frozen=True)
class ShardTask:
    """A chain with its examples, in chain order, as arrays; what one process needs to train one constituent."""

    chain: Chain
    inputs: Inputs
    pad_id: int


@dataclass(frozen=True)
class FeaturesTask:
    """One block of texts whose features a frozen encoder is to give, in block order."""

    chain: Chain
    inputs: Inputs


@dataclass(frozen=True)
class SliceResult:
    """One row of the training table; steps, seconds and curve are those of the training that made the checkpoint.

    `status` is "trained", "reused", "empty", or "dropped" by a retention policy. `curve` holds (step, mean
    cross-entropy since the last entry).
    """

    constituent: str
    slice: int
    num_examples: int
    num_presentations: int
    steps: int
    seconds: float
    status: str
    checkpoint: str
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Workshop:
    """What the missing stages of one chain share: its examples as the network reads them, and the network."""

    task: ShardTask
    store: Store
    inputs: Inputs
    network: torch.nn.Module
    initial: State


def train_shard(task: ShardTask, report: Report) -> list[SliceResult]:
    """Train every slice of the task's chain whose checkpoint is missing; return one result per slice.

    Stage r continues from stage r-1 and sees the examples of slices 1..r (Bourtoule et al. 2021, section IV). It is a
    pure function of what its name covers. An empty slice trains nothing and stands for its parent's weights. A
    checkpoint that a retention policy dropped is made again only when a later slice needs its weights.

    Raises:
        TrainingError: when a stage diverged or was interrupted; the finished stages are kept.
    """
    store, stages = Store(task.chain.store), plan_stages(task.chain)
    first = first_to_train(store, stages)
    workshop: Workshop | None = None
    results: list[SliceResult] = []
    for stage in stages:
        status = "reused" if store.has(stage.lineage.name) else "dropped"
        if status == "dropped" and stage.index >= first:
            report(Event("slice_started", task.chain.constituent, stage.index))
            if stage.lineage.examples:
                workshop = workshop or _open_workshop(task, store)
                status = _make(workshop, stages, stage.index, report)
            else:
                status = _pass_on(task.chain, stage, store)
        results.append(_result(stage, task.chain.constituent, status, store.manifest(stage.lineage.name)))
        report(Event("slice_done", task.chain.constituent, stage.index, results[-1].steps, {"status": status}))
    return results


def first_to_train(store: Store, stages: Sequence[Stage]) -> int:
    """Return the index of the first stage that training must make; the number of stages when nothing is missing.

    A checkpoint counts as missing unless it exists or was dropped on purpose, as no policy drops the last one with
    examples, which is served; training restarts early enough to find the weights it continues from.
    """
    there = [store.has(stage.lineage.name) for stage in stages]
    served = max((stage.index for stage in stages if stage.lineage.examples), default=0)
    missing = (i for i, has in enumerate(there) if not has and (i == served or not _was_dropped(store, stages[i])))
    first = next(missing, len(stages))
    if first == len(stages):
        return first
    for index in reversed(range(first)):
        if stages[index].lineage.examples:
            if there[index]:
                break
            first = index
    return first


def make_features(task: FeaturesTask, report: Report) -> None:
    """Put the features of the task's texts into the store, unless they are there: float32, one row a text."""
    chain, store = task.chain, Store(task.chain.store)
    lineage = features_lineage(chain, task.inputs.example_ids, task.inputs.contents)
    if store.has(lineage.name):
        return
    features = encoder_features(chain, task.inputs)
    store.put(lineage, {"features": torch.from_numpy(features)}, environment=environment_of(chain))
    report(Event("features_done", chain.constituent, values={"examples": len(task.inputs)}))


def encoder_features(chain: Chain, inputs: Inputs) -> np.ndarray:
    """Return what the chain's frozen encoder makes of texts: float32, shape (num_examples, width)."""
    if chain.base is None:
        raise ValueError("Expected a chain with a base model; a tabular model's features are its inputs.")
    device = chain.trainer.accelerator
    encoder = build_encoder(chain.model, chain.base).to(device, dtype_of(chain.trainer.precision))
    return run_batched(partial(pooled_features, encoder), inputs, width=feature_width(encoder), device=device)


def network_inputs(chain: Chain, inputs: Inputs, sizes: Sequence[int], store: Store) -> Inputs:
    """Return `inputs` as the chain's network reads them: as they are, or as the features kept for each block.

    The rows of `inputs` stand in blocks of the given sizes, one after the other.
    """
    if not chain.reads_features:
        return inputs
    start, parts = 0, []
    for size in sizes:
        block = inputs.take(range(start, start + size))
        make_features(FeaturesTask(chain, block), lambda event: None)
        parts.append(store.get(features_lineage(chain, block.example_ids, block.contents).name).tensors["features"])
        start += size
    return inputs.with_features(torch.cat(parts).numpy())


def new_network(chain: Chain, num_features: int) -> torch.nn.Module:
    """Return the chain's network before any training, in fp32."""
    return build_network(
        chain.model, chain.base, num_features=num_features, num_classes=chain.num_classes, seed=chain.init_seed
    )


def compute_dtype(chain: Chain) -> torch.dtype:
    """Return the number format in which the chain's network computes: fp32 wherever it reads features."""
    reads_tokens = chain.base is not None and not chain.reads_features
    return dtype_of(chain.trainer.precision if reads_tokens else "fp32")


def trained_weights(store: Store, stages: tuple[Stage, ...], index: int) -> State | None:
    """Return what the stages up to `index` left: the last checkpoint that is not of an empty slice, or None."""
    for stage in reversed(stages[: index + 1]):
        if stage.lineage.examples:
            return store.get(stage.lineage.name).tensors
    return None


def _was_dropped(store: Store, stage: Stage) -> bool:
    try:
        return not store.manifest(stage.lineage.name).kept
    except (MissingArtefactError, CorruptArtefactError):
        return False


def environment_of(chain: Chain) -> dict[str, str | int]:
    """Return the numeric environment that is recorded with what a chain makes."""
    return numeric_environment(chain.trainer.accelerator, chain.trainer.precision, chain.trainer.threads)


def _open_workshop(task: ShardTask, store: Store) -> Workshop:
    chain = task.chain
    sizes = [len(block) for blocks in chain.blocks for block in blocks if block]
    inputs = network_inputs(chain, task.inputs, sizes, store)
    num_features = 0 if inputs.features is None else inputs.features.shape[1]
    network = new_network(chain, num_features)
    initial = initial_state(network)
    return Workshop(task, store, inputs, network.to(compute_dtype(chain)), initial)


def _pass_on(chain: Chain, stage: Stage, store: Store) -> str:
    store.put(stage.lineage, {}, {"steps": 0, "seconds": 0.0, "curve": []}, environment=environment_of(chain))
    return "empty"


def _make(workshop: Workshop, stages: tuple[Stage, ...], index: int, report: Report) -> str:
    stage, chain, store = stages[index], workshop.task.chain, workshop.store
    inputs = workshop.inputs.take(range(sum(len(ids) for ids in chain.slices[: index + 1])))
    state = trained_weights(store, stages, index - 1)
    started = time.perf_counter()
    model = _fit(
        workshop, stage, inputs, workshop.initial if state is None else state, fresh=state is None, report=report
    )
    tensors = model.trained_state()
    metadata = {"steps": model.num_steps_done, "seconds": time.perf_counter() - started, "curve": model.curve}
    losses = torch.tensor([loss for _, loss in model.curve])
    bad = [name for name, tensor in {**tensors, "train_loss": losses}.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise TrainingError(
            f"{chain.constituent}, slice {index} diverged: {bad[0]} and {len(bad) - 1} other tensors hold NaN or "
            f"infinity after {model.num_steps_done} steps. Lower trainer.learning_rate ({chain.trainer.learning_rate})."
        )
    store.put(stage.lineage, tensors, metadata, environment=environment_of(chain))
    return "trained"


def _fit(workshop: Workshop, stage: Stage, inputs: Inputs, state: State, *, fresh: bool, report: Report) -> Classifier:
    chain, network = workshop.task.chain, workshop.network
    state = dict(state)
    if fresh and inputs.features is not None:
        state |= standardizer_state(network, inputs)
    settings = chain.trainer
    batches = training_batches(inputs.lengths, stage.num_presentations, batch_size=settings.batch_size, seed=stage.seed)
    bundle = 1 if inputs.features is None else BUNDLE
    data = SliceData(inputs, batches, pad_id=workshop.task.pad_id, bundle=bundle)
    network.train()
    model = Classifier(network, state, settings, Schedule(len(batches), *stage.window, settings.warmup))
    if len(batches):  # a share of epochs may round to no example at all
        logger = TellingLogger(chain.constituent, stage.index, partial(_tell, chain.constituent, stage.index, report))
        fit_quietly(model, data, accelerator=settings.accelerator, seed=stage.seed, logger=logger)
    if model.num_steps_done != len(batches):
        raise TrainingError(
            f"{chain.constituent}, slice {stage.index} stopped after {model.num_steps_done} of {len(batches)} steps; "
            "the slices before it are kept: run the same command again to go on."
        )
    return model


def _tell(constituent: str, index: int, report: Report, step: int, metrics: Mapping[str, float]) -> None:
    report(Event("metrics", constituent, index, step, metrics))


def _result(stage: Stage, constituent: str, status: str, manifest: Manifest) -> SliceResult:
    curve = tuple((int(step), float(loss)) for step, loss in manifest.metadata["curve"])
    return SliceResult(
        constituent=constituent,
        slice=stage.index,
        num_examples=len(stage.lineage.examples),
        num_presentations=stage.num_presentations,
        steps=manifest.metadata["steps"],
        seconds=manifest.metadata["seconds"],
        status=status,
        checkpoint=stage.lineage.name,
        curve=curve,
    )
