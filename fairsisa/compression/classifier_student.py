"""Classifiers that learn from what a teacher says of each example."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fairsisa.compression.distilling import (
    LAST_LAYERS,
    DistillationWeights,
    MatchedLayers,
    Outputs,
    distillation_loss,
)
from fairsisa.compression.students import truncated_student
from fairsisa.data.batches import training_batches
from fairsisa.data.encoding import Inputs
from fairsisa.errors import ConfigError, DataError, TrainingError
from fairsisa.execution import Event, Report
from fairsisa.models.batching import SliceData
from fairsisa.models.classifier import OPTIMIZER, Classifier, Schedule, initial_state
from fairsisa.models.device import dtype_of
from fairsisa.models.fitting import TellingLogger, fit_quietly, standardizer_state
from fairsisa.models.network import Batch, build_network, freeze_lowest, logits_of
from fairsisa.models.whole import EncoderWithHead, NetworkSpec, whole_network
from fairsisa.settings import TrainerSettings, one_of

State = Mapping[str, torch.Tensor]
BUNDLE = 64
"""Optimizer steps per Lightning batch of a network whose steps take microseconds."""


@dataclass(frozen=True, eq=False)
class StudentTask:
    """All that decides one student; what one process needs to train it.

    `spec` says how its network is built, of which with `num_layers` only these layers stay (`keep` as in
    `students.kept_layers`). `start` is "base", or "teacher": from the weights of `teacher`, a trained constituent's
    spec and state, which is also what hidden states and attention maps are compared with. Soft targets are the
    `targets` of `inputs`, class probabilities; without them, what `teacher` says. `trainer` is resolved: accelerator
    and precision are not "auto". `member` is what progress is reported as.
    """

    spec: NetworkSpec
    trainer: TrainerSettings
    weights: DistillationWeights
    inputs: Inputs
    pad_id: int
    seed: int
    member: str
    num_layers: int | None = None
    keep: str = "alternate"
    start: str = "base"
    teacher: tuple[NetworkSpec, State] | None = None
    layers: MatchedLayers = LAST_LAYERS

    def __post_init__(self) -> None:
        one_of("start", self.start, ("base", "teacher"))
        if self.teacher is None and (self.start == "teacher" or self.needs_live_teacher):
            raise ConfigError(
                "Hidden states, attention, start=teacher, and soft targets that were not computed before need a "
                "constituent as teacher, got none: name one, or set distillation.hidden=0, distillation.attention=0 "
                "and start=base, with targets."
            )
        if not len(self.inputs):
            raise DataError(f"Expected examples for {self.member} to learn from, got none.")

    @property
    def needs_live_teacher(self) -> bool:
        """Whether the teacher must run beside the student, as the stored targets do not say all that is asked for."""
        untold = self.weights.soft > 0 and self.inputs.targets is None
        return untold or self.weights.hidden > 0 or self.weights.attention > 0


@dataclass(frozen=True, eq=False)
class TrainedStudent:
    """What training gave: every weight and buffer of the student in fp32, so that nothing else is needed to load it.

    `curve` holds (step, mean loss since the last entry).
    """

    state: dict[str, torch.Tensor]
    curve: tuple[tuple[int, float], ...]
    steps: int
    seconds: float


class ClassifierStudent(Classifier):
    """Training of a student on `distillation_loss`, of the batch's `teacher` probabilities where it holds them.

    A `teacher` network, if given, reads the same batch and gets no gradient; what is stored in the batch goes before
    its logits.
    """

    def __init__(
        self,
        network: nn.Module,
        state: State,
        trainer: TrainerSettings,
        schedule: Schedule,
        *,
        weights: DistillationWeights,
        teacher: nn.Module | None = None,
        layers: MatchedLayers = LAST_LAYERS,
    ) -> None:
        super().__init__(network, state, trainer, schedule)
        self.weights = weights
        self.layers = layers
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        """Return the weighted sum of the losses of distillation, a scalar in fp32."""
        stored = batch.get("teacher")
        heard = Outputs(logits=stored)
        if self.teacher is not None:
            with torch.no_grad():
                heard = _said(self.teacher, batch, self.weights)
            if stored is not None:
                heard = Outputs(stored, heard.hidden_states, heard.attentions)
        return distillation_loss(
            self.weights,
            _said(self.network, batch, self.weights),
            heard,
            batch["labels"],
            batch.get("mask"),
            layers=self.layers,
            teacher_gives="logits" if stored is None else "probabilities",
        )


def train_student(task: StudentTask, report: Report) -> TrainedStudent:
    """Train the student of a task; a pure function of the task, bit for bit on one machine.

    It sees `trainer.max_epochs` epochs, counted in examples, in the order that the seed gives. Text models train in
    full, but for what the spec's freeze settings hold back, in the trainer's precision on fp32 masters.

    Raises:
        ConfigError: when student and teacher do not fit as asked.
        TrainingError: when training diverged or stopped early.
        KeyboardInterrupt: when the process was told to stop.
    """
    started = time.perf_counter()
    network = student_network(task.spec, task.num_layers, task.keep)
    teacher = None if task.teacher is None else whole_network(*task.teacher)
    if task.start == "teacher":
        _copy_teacher(network, teacher, task)
    frozen = {name: p.detach().clone() for name, p in network.named_parameters() if not p.requires_grad}
    model = _fit(task, network, teacher if task.needs_live_teacher else None, report)
    trained = {name: value for name, value in model.trained_state().items() if not name.startswith(OPTIMIZER)}
    _refuse_divergence(task, model, trained)
    return TrainedStudent(
        frozen | trained, tuple(model.curve), model.num_steps_done, seconds=time.perf_counter() - started
    )


def student_network(spec: NetworkSpec, num_layers: int | None = None, keep: str = "alternate") -> nn.Module:
    """Return a student's network in fp32 before any training: the spec's, of which `num_layers` layers stay.

    What does not train by the spec's freeze settings needs no gradient.

    Raises:
        ConfigError: when the spec does not train in full, or as `truncated_student` does.
    """
    if spec.base is not None and spec.model.trains != "full":
        raise ConfigError(f"A student trains in full, got model.trains={spec.model.trains}: set model.trains=full.")
    network = build_network(
        spec.model, spec.base, num_features=spec.num_features, num_classes=spec.num_classes, seed=spec.seed
    )
    if num_layers is None:
        return network
    if spec.base is None:
        raise ConfigError(
            f"num_layers={num_layers} is for text models; set model.hidden to make a tabular one smaller."
        )
    smaller: nn.Module = truncated_student(network, num_layers, keep)
    freeze_lowest(smaller, spec.model)
    return smaller


def _copy_teacher(network: nn.Module, teacher: nn.Module | None, task: StudentTask) -> None:
    """Give the student the weights of its teacher, of the layers that it keeps."""
    if teacher is None or isinstance(teacher, EncoderWithHead):
        raise ConfigError(
            "start=teacher needs a teacher that is a classifier, got a head over the base's own frozen encoder: "
            "set start=base, which begins with the same encoder."
        )
    kept = teacher if task.num_layers is None else truncated_student(teacher, task.num_layers, task.keep)
    try:
        network.load_state_dict(kept.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"start=teacher needs a student of the teacher's shape; change no width of the model. {error}"
        ) from error


def _fit(task: StudentTask, network: nn.Module, teacher: nn.Module | None, report: Report) -> ClassifierStudent:
    inputs, settings = task.inputs, task.trainer
    state = initial_state(network)
    if inputs.features is not None and task.start == "base":
        state |= standardizer_state(network, inputs)
    batches = training_batches(
        inputs.lengths, round(settings.max_epochs * len(inputs)), batch_size=settings.batch_size, seed=task.seed
    )
    if not batches:
        raise ConfigError(
            f"trainer.max_epochs={settings.max_epochs} of {len(inputs)} examples is no example: raise it."
        )
    dtype = dtype_of("fp32" if task.spec.base is None else settings.precision)
    end = 1.0 if settings.schedule == "constant" else 0.0
    model = ClassifierStudent(
        network.to(dtype).train(),
        state,
        settings,
        Schedule(len(batches), 1.0, end, settings.warmup),
        weights=task.weights,
        teacher=None if teacher is None else teacher.to(dtype),
        layers=task.layers,
    )
    data = SliceData(inputs, batches, pad_id=task.pad_id, bundle=1 if inputs.features is None else BUNDLE)
    logger = TellingLogger(task.member, 0, partial(_tell, task.member, report))
    fit_quietly(model, data, accelerator=settings.accelerator, seed=task.seed, logger=logger)
    if model.num_steps_done != len(batches):
        raise TrainingError(
            f"{task.member} stopped after {model.num_steps_done} of {len(batches)} steps: run the same command again."
        )
    return model


def _tell(member: str, report: Report, step: int, metrics: Mapping[str, float]) -> None:
    report(Event("metrics", member, 0, step, metrics))


def _said(network: nn.Module, batch: Batch, weights: DistillationWeights) -> Outputs:
    """Run a network, and ask for no more than the weights need."""
    wanted = {"output_hidden_states": weights.hidden > 0, "output_attentions": weights.attention > 0}
    asked = {name: True for name, value in wanted.items() if value}
    if not asked or "features" in batch:
        return Outputs(logits_of(network, batch))
    told: Any = network(input_ids=batch["tokens"], attention_mask=batch.get("mask"), **asked)
    return Outputs(told.logits.float(), told.hidden_states, told.attentions)


def _refuse_divergence(task: StudentTask, model: Classifier, trained: State) -> None:
    losses = torch.tensor([loss for _, loss in model.curve])
    bad = [name for name, value in {**trained, "train_loss": losses}.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise TrainingError(
            f"{task.member} diverged: {bad[0]} and {len(bad) - 1} other tensors hold NaN or infinity after "
            f"{model.num_steps_done} steps. Lower trainer.learning_rate ({task.trainer.learning_rate})."
        )
