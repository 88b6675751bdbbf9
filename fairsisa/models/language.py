"""Causal and masked language models: made, trained on blocks of text, saved."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fairsisa.data.corpus_blocks import NO_TARGET, Blocks, Masking, mask_block, plan_batches
from fairsisa.errors import ConfigError, TrainingError
from fairsisa.lineage import derive_seed
from fairsisa.models.base import (
    LOAD_ERRORS,
    is_bidirectional,
    is_encoder,
    made_config,
    quiet,
    read_config,
    read_network,
    require_weights,
)
from fairsisa.models.classifier import Schedule
from fairsisa.models.network import Batch
from fairsisa.models.training_state import TrainingState, give_moments, taken_moments
from fairsisa.settings import TrainerSettings, nearest
from fairsisa.store.durable import PARTIAL, explained, make_folder, publish


def new_language_model(architecture: str, shape: Mapping[str, Any], seed: int) -> nn.Module:
    """Return a language model of random weights drawn from `seed`, in fp32: masked if the architecture is an encoder.

    `architecture` is a Hugging Face model type such as "gpt2", "llama", "gpt_neox" (Pythia) or "bert"; `shape` holds
    values of its config. Default ids of special tokens that lie outside the vocabulary are left out.

    Raises:
        ConfigError: naming the value, when the architecture or a value of the shape is unknown or does not fit.
    """
    config = language_config(architecture, shape)
    torch.manual_seed(seed)
    try:
        with quiet():
            model: nn.Module = _auto_class(config).from_config(config, attn_implementation="eager").float()
    except LOAD_ERRORS as error:
        raise ConfigError(f"The shape does not fit {architecture}: {error}") from error
    return model


def language_config(architecture: str, shape: Mapping[str, Any]) -> Any:
    """Return the config of a new language model, as `new_language_model` takes it and with what it raises."""
    if architecture not in {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES}:
        known = ("gpt2", "llama", "gpt_neox", "bert") if architecture in CONFIG_MAPPING else CONFIG_MAPPING
        raise ConfigError(f"{architecture!r} is no language model of transformers.{nearest(architecture, known)}")
    default = CONFIG_MAPPING[architecture]()
    names = {*default.to_dict(), *default.attribute_map}
    for key in shape:
        if key not in names:
            raise ConfigError(f"Unknown value {key!r} in the shape of {architecture}.{nearest(key, names)}")
    config = made_config(architecture, dict(shape))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        if name not in shape and isinstance(value, int) and value >= config.vocab_size:
            setattr(config, name, None)
    return config


def load_language_model(folder: Path, *, head_seed: int | None = None) -> nn.Module:
    """Return the language model of a checkpoint folder, in fp32 and evaluation mode; only safetensors are read.

    With `head_seed`, a head that the folder lacks is new, its weights drawn from the seed (its word matrix is that of
    the embeddings, where the architecture ties them): so training can begin from an encoder.

    Raises:
        ModelError: when there is none, or the folder lacks weights that would then be random, such as a head's.
    """
    require_weights(folder)
    config = read_config(folder)
    if head_seed is not None:
        torch.manual_seed(head_seed)

    def is_new(network: Any, weight: str) -> bool:
        return head_seed is not None and not weight.startswith(f"{network.base_model_prefix}.")

    cure = "take a folder with its head, or give an encoder one by `fairsisa pretrain new_head=true`"
    loaded: nn.Module = read_network(
        _auto_class(config), folder, "a language model", is_new=is_new, cure=cure, config=config
    )
    return loaded


class BlockData(pl.LightningDataModule):
    """The planned batches of blocks for one training of `num_steps` steps; with `masking`, for a masked model.

    Of these, the first `num_steps_done` were read by an earlier part of the training, and are left out.

    Raises:
        ConfigError: when blocks or masking do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Blocks,
        *,
        num_steps: int,
        batch_size: int,
        seed: int,
        masking: Masking | None = None,
        num_steps_done: int = 0,
    ) -> None:
        super().__init__()
        require_fit(model, blocks, masking)
        plan = plan_batches(blocks, num_steps=num_steps, batch_size=batch_size, seed=seed)
        self.plan: Any = plan[num_steps_done:]
        self.collate = partial(_collate_planned, blocks, masking)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the batches in order, made into tensors one at a time, in this process."""
        return DataLoader(self.plan, batch_size=None, shuffle=False, num_workers=0, collate_fn=self.collate)


class LanguageModule(pl.LightningModule):
    """Next-token or masked-token cross-entropy training of `model` with AdamW; dropout is drawn from (`seed`, step).

    Of `settings` it reads learning rate, weight decay, gradient clip and how often to log; warm-up and decay are the
    `schedule`'s, whose `num_steps` are optimizer steps. `curve` holds (step, mean loss since the last entry). With
    `start`, what `state` returned when the model had its present weights, training goes on as if it had never stopped.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainerSettings,
        schedule: Schedule,
        *,
        seed: int,
        start: TrainingState | None = None,
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.settings = settings
        self.schedule = schedule
        self.seed = seed
        self.curve: list[tuple[int, float]] = [] if start is None else list(start.curve)
        self._losses: list[torch.Tensor] = [] if start is None else list(start.losses)
        self._start = start

    @property
    def num_steps_done(self) -> int:
        """Optimizer steps since the training began, those of an earlier part included."""
        return self.global_step + (0 if self._start is None else self._start.step)

    def state(self) -> TrainingState:
        """Return where training stands, beside the weights; for after a step, not within."""
        losses = torch.stack([loss.cpu() for loss in self._losses]) if self._losses else torch.zeros(0)
        return TrainingState(self.num_steps_done, tuple(self.curve), losses, taken_moments(self.model, self._adamw))

    def configure_optimizers(self) -> Any:
        """Return AdamW (Loshchilov and Hutter, ICLR 2019), of which only matrices decay, and its schedule by step."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=self.settings.learning_rate, fused=True)
        if self._start is not None:
            give_moments(self.model, self._adamw, self._start.moments)
        first = self.num_steps_done
        by_step = torch.optim.lr_scheduler.LambdaLR(self._adamw, lambda step: self.schedule.factor(first + step))
        return {"optimizer": self._adamw, "lr_scheduler": {"scheduler": by_step, "interval": "step"}}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient's norm as the settings say; the Trainer's own value is not read."""
        if self.settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start the step's dropout from the seed: a step is the same whether or not training stopped before it."""
        torch.manual_seed(derive_seed(self.seed, "step", self.num_steps_done))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the mean cross-entropy over the batch's targets, in nats a token; log the mean every so many steps."""
        total, num_targets = summed_loss(self.model, batch)
        loss = total / max(1, num_targets)
        self._losses.append(loss.detach())
        self._log(self.num_steps_done + 1)
        return loss

    def _log(self, done: int) -> None:
        """Put the mean loss on the curve every so many steps and at the end; stop a training that has diverged."""
        if done % self.settings.log_every_n_steps and done != self.schedule.num_steps:
            return
        self.curve.append((done, torch.stack(self._losses).mean().item()))
        self._losses.clear()
        if not math.isfinite(self.curve[-1][1]):
            raise TrainingError(f"The loss is {self.curve[-1][1]} at step {done}; lower trainer.learning_rate.")
        if self.logger is not None:
            rate = self.settings.learning_rate * self.schedule.factor(done - 1)
            self.logger.log_metrics({"train_loss": self.curve[-1][1], "learning_rate": rate}, step=done)


def save_language_model(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Write a checkpoint folder (safetensors and JSON), which appears under its name only when it is whole on disk.

    Raises:
        StoreError: when it cannot be written.
    """
    partial_folder, old = (folder.with_name(f".{folder.name}{end}") for end in (PARTIAL, ".old"))
    with explained(f"save a language model to {folder}"), quiet():
        make_folder(folder.parent)
        for leftover in (partial_folder, old):
            shutil.rmtree(leftover, ignore_errors=True)
        model.save_pretrained(partial_folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial_folder)
        for path in (*partial_folder.iterdir(), partial_folder):
            _sync(path)
        if folder.exists():
            folder.rename(old)
        publish(partial_folder, folder)
        shutil.rmtree(old, ignore_errors=True)


def summed_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Return the summed cross-entropy (nats) of a batch's targets, a scalar in fp32, and their number."""
    return token_losses(model, batch).sum(), int((batch["targets"] != NO_TARGET).sum())


def token_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy (nats, fp32) at each position of a batch, in the targets' shape; 0 without a target."""
    options = {} if is_bidirectional(model) else {"use_cache": False}
    logits = model(input_ids=batch["tokens"], attention_mask=batch.get("mask"), **options).logits
    targets = batch["targets"]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NO_TARGET, reduction="none"
    )
    return losses.view_as(targets)


def collate_blocks(blocks: Blocks, rows: np.ndarray, *, masking: Masking | None = None, epoch: int = 0) -> Batch:
    """Return blocks as a batch: `tokens` (int64, padded on the right by 0), `targets`, and `mask` if lengths differ.

    `targets`, of the same shape, says what the logits at each position are to predict: the next token of the block,
    or with `masking` the token that was masked there; `NO_TARGET` where nothing is.
    """
    pairs = [_read_and_target(blocks, int(row), masking, epoch) for row in rows]
    lengths = np.array([len(read) for read, _ in pairs])
    width = int(lengths.max())
    tokens = np.zeros((len(pairs), width), dtype=np.int64)
    targets = np.full_like(tokens, NO_TARGET)
    for line, (read, target) in enumerate(pairs):
        tokens[line, : len(read)] = read
        targets[line, : len(read)] = target
    batch = {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)}
    if lengths.min() < width:
        batch["mask"] = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
    return batch


def require_fit(model: nn.Module, blocks: Blocks, masking: Masking | None) -> None:
    """Raise ConfigError unless the model knows every token and position, and is masked exactly when `masking` is."""
    config: Any = model.config
    if is_bidirectional(model) != (masking is not None):
        kind, cure = ("masked", "pass masking=Masking(...)") if masking is None else ("causal", "leave masking out")
        raise ConfigError(f"{config.model_type} is a {kind} language model: {cure}.")
    largest = max(int(blocks.tokens.max()), 0 if masking is None else masking.vocab_size - 1)
    if largest >= config.vocab_size:
        raise ConfigError(
            f"Expected token ids below the model's {config.vocab_size}, got {largest}: another tokenizer?"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and int(blocks.lengths.max()) > positions:
        raise ConfigError(f"Expected blocks of at most {positions} tokens, which the model can read, got longer ones.")


def _read_and_target(blocks: Blocks, row: int, masking: Masking | None, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    if masking is not None:
        return mask_block(blocks, row, masking, epoch=epoch)
    tokens = blocks.block_tokens(row).astype(np.int64)
    return tokens, np.append(tokens[1:], NO_TARGET)


def _collate_planned(blocks: Blocks, masking: Masking | None, planned: tuple[int, np.ndarray]) -> Batch:
    epoch, rows = planned
    return collate_blocks(blocks, rows, masking=masking, epoch=epoch)


def _auto_class(config: Any) -> Any:
    return AutoModelForMaskedLM if is_encoder(config) else AutoModelForCausalLM


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
