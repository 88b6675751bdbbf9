"""Language models that learn from what a teacher says at each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from fairsisa.compression.distilling import (
    LAST_LAYERS,
    DistillationWeights,
    MatchedLayers,
    Outputs,
    distillation_loss,
)
from fairsisa.compression.stored_logits import StoredLogits
from fairsisa.data.corpus_blocks import NO_TARGET, Blocks, Masking
from fairsisa.errors import ConfigError, TrainingError
from fairsisa.models.base import is_bidirectional
from fairsisa.models.classifier import Schedule
from fairsisa.models.device import resolve_accelerator, resolve_precision
from fairsisa.models.fitting import Tell, TellingLogger, fit_quietly
from fairsisa.models.language import BlockData, LanguageModule, require_fit
from fairsisa.models.network import Batch
from fairsisa.models.training_state import TrainingState
from fairsisa.settings import TrainerSettings, in_range


@dataclass(frozen=True)
class LanguageDistillation:
    """How a language model is distilled: `num_steps` batches of `batch_size` blocks, in the order that `seed` gives.

    Of `trainer` it reads learning rate, weight decay, clip, warm-up, schedule ("constant", else a line down to 0),
    precision (bf16 is Lightning's autocast), accelerator and how often to log. `masking` is for masked models.
    """

    weights: DistillationWeights
    trainer: TrainerSettings
    num_steps: int
    batch_size: int
    seed: int
    masking: Masking | None = None
    layers: MatchedLayers = LAST_LAYERS

    def __post_init__(self) -> None:
        in_range("num_steps", self.num_steps, low=1)
        in_range("batch_size", self.batch_size, low=1)


class LanguageStudent(LanguageModule):
    """Training of a student on `distillation_loss`, of the batch's `teacher` log-probabilities or a live teacher.

    Soft targets and hard labels count where the batch has a target: at every token but a block's last, or at masked
    tokens; hidden states and attention maps at all tokens. The `teacher` network, if given, reads the same batch, in
    evaluation mode and without a gradient. With `start` training goes on, as that of a LanguageModule does.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainerSettings,
        schedule: Schedule,
        *,
        seed: int,
        weights: DistillationWeights,
        teacher: nn.Module | None = None,
        layers: MatchedLayers = LAST_LAYERS,
        start: TrainingState | None = None,
    ) -> None:
        super().__init__(model, settings, schedule, seed=seed, start=start)
        self.weights = weights
        self.layers = layers
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the weighted sum of the losses of distillation; log its mean every so many steps."""
        loss = self.batch_loss(batch)
        self._losses.append(loss.detach())
        self._log(self.num_steps_done + 1)
        return loss

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        """Return what a batch costs, a scalar in fp32."""
        heard = Outputs(logits=batch.get("teacher"))
        if self.teacher is not None:
            with torch.no_grad():
                heard = _said(self.teacher, batch, self.weights)
        labels = batch["targets"][batch["targets"] != NO_TARGET]
        ours = _said(self.model, batch, self.weights)
        return distillation_loss(self.weights, ours, heard, labels, batch.get("mask"), layers=self.layers)


def distil_language_model(
    student: nn.Module,
    teacher: nn.Module | StoredLogits,
    blocks: Blocks,
    plan: LanguageDistillation,
    *,
    callbacks: Sequence[pl.Callback] = (),
    tell: Tell | None = None,
) -> list[tuple[int, float]]:
    """Train `student` in place on what a teacher says of `blocks`; return (step, mean loss since the last entry).

    The teacher is a network, which runs beside the student and is frozen, or what was stored of one. Each step's bits
    depend on its arguments alone. `callbacks` may keep checkpoints (`models.step_checkpoints.keep_at`), `tell` gets
    the metrics.

    Raises:
        ConfigError: when student, teacher, blocks and plan do not fit each other.
        TrainingError: when training diverged or stopped early.
        KeyboardInterrupt: when the process was told to stop.
    """
    data = BlockData(
        student,
        blocks,
        num_steps=plan.num_steps,
        batch_size=plan.batch_size,
        seed=plan.seed,
        masking=plan.masking,
    )
    if isinstance(teacher, StoredLogits):
        hear_stored(data, teacher, blocks, plan.weights, plan.masking)
    else:
        require_fit(teacher, blocks, plan.masking)
    settings = plan.trainer
    module = LanguageStudent(
        student,
        settings,
        Schedule(plan.num_steps, 1.0, 1.0 if settings.schedule == "constant" else 0.0, settings.warmup),
        seed=plan.seed,
        weights=plan.weights,
        teacher=None if isinstance(teacher, StoredLogits) else teacher,
        layers=plan.layers,
    )
    accelerator = resolve_accelerator(settings.accelerator)
    fit_quietly(
        module,
        data,
        accelerator=accelerator,
        seed=plan.seed,
        logger=None if tell is None else TellingLogger("student", 0, tell),
        callbacks=callbacks,
        autocast=resolve_precision(settings.precision, accelerator),
    )
    if module.num_steps_done != plan.num_steps:
        raise TrainingError(
            f"The student stopped after {module.num_steps_done} of {plan.num_steps} steps; run it anew."
        )
    return module.curve


def hear_stored(
    data: BlockData, stored: StoredLogits, blocks: Blocks, weights: DistillationWeights, masking: Masking | None
) -> None:
    """Add to each batch of `data` what was stored of the teacher, as `teacher`.

    Raises:
        ConfigError: when the weights need more than logits, or other blocks, masks or epochs were stored.
    """
    if weights.hidden > 0 or weights.attention > 0:
        raise ConfigError(
            "Stored teachers hold no hidden states and no attention maps: give the teacher itself, or set "
            "distillation.hidden=0 and distillation.attention=0."
        )
    stored.require(blocks, masking, data.plan[-1][0] + 1)
    data.collate = partial(_collate_with_teacher, data.collate, stored)


def _collate_with_teacher(collate: Any, stored: StoredLogits, planned: tuple[int, np.ndarray]) -> Batch:
    epoch, rows = planned
    batch: Batch = collate(planned)
    return batch | {"teacher": torch.cat([stored.log_probabilities(epoch, int(row)) for row in rows])}


def _said(model: nn.Module, batch: Batch, weights: DistillationWeights) -> Outputs:
    """Run a model, and ask for no more than the weights need; its logits are those at the targets, row after row."""
    asked = {"output_hidden_states": weights.hidden > 0, "output_attentions": weights.attention > 0}
    options = {name: True for name, wanted in asked.items() if wanted}
    if not is_bidirectional(model):
        options["use_cache"] = False
    told: Any = model(input_ids=batch["tokens"], attention_mask=batch.get("mask"), **options)
    logits = told.logits[batch["targets"] != NO_TARGET].float()
    return Outputs(logits, told.get("hidden_states"), told.get("attentions"))
