"""Causal and masked language models, from their making to their perplexity."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fairsisa.data.corpus_blocks import NO_TARGET, Blocks, Masking, mask_block, plan_batches
from fairsisa.errors import ConfigError, ModelError, TrainingError
from fairsisa.models.base import LOAD_ERRORS, WEIGHTS, is_bidirectional
from fairsisa.models.classifier import Schedule
from fairsisa.models.network import Batch
from fairsisa.settings import TrainerSettings, nearest
from fairsisa.store.durable import PARTIAL, explained, make_folder, publish

LARGEST_EXPONENT = math.log(float(np.finfo(np.float64).max))


def new_language_model(architecture: str, shape: Mapping[str, Any], seed: int) -> nn.Module:
    """Return a language model of random weights drawn from `seed`, in fp32: masked if the architecture is an encoder.

    `architecture` is a Hugging Face model type such as "gpt2", "llama", "gpt_neox" (Pythia) or "bert"; `shape` holds
    values of its config. Default ids of special tokens that lie outside the vocabulary are left out.

    Raises:
        ConfigError: naming the value, when the architecture or a value of the shape is unknown or does not fit.
    """
    config = _made_config(architecture, shape)
    torch.manual_seed(seed)
    try:
        with _quiet():
            model: nn.Module = _auto_class(config).from_config(config, attn_implementation="eager").float()
    except LOAD_ERRORS as error:
        raise ConfigError(f"The shape does not fit {architecture}: {error}") from error
    return model


def load_language_model(folder: Path) -> nn.Module:
    """Return the language model of a checkpoint folder, in fp32 and evaluation mode; only safetensors are read.

    Raises:
        ModelError: when there is none, or the folder lacks weights that would then be random, such as a head's.
    """
    if not list(folder.glob("*" + WEIGHTS)):
        raise ModelError(f"{folder} holds no {WEIGHTS} file: fairsisa loads no pickled weights; convert them first.")
    places: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder, **places)
            model, info = _auto_class(config).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                output_loading_info=True,
                **places,
            )
    except LOAD_ERRORS as error:
        raise ModelError(f"{folder} cannot be loaded as a language model: {error}") from error
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise ModelError(
            f"{folder} lacks {len(lacking)} weights of a language model, {lacking[0]} first: not its head?"
        )
    loaded: nn.Module = model.eval()
    return loaded


class BlockData(pl.LightningDataModule):
    """The planned batches of blocks for one training of `num_steps` steps; with `masking`, for a masked model.

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
    ) -> None:
        super().__init__()
        require_fit(model, blocks, masking)
        self.plan: Any = plan_batches(blocks, num_steps=num_steps, batch_size=batch_size, seed=seed)
        self.collate = partial(_collate_planned, blocks, masking)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the batches in order, made into tensors one at a time, in this process."""
        return DataLoader(self.plan, batch_size=None, shuffle=False, num_workers=0, collate_fn=self.collate)


class LanguageModule(pl.LightningModule):
    """Next-token or masked-token cross-entropy training of `model` with AdamW; dropout is drawn from `seed`.

    Of `settings` it reads learning rate, weight decay, gradient clip and how often to log; warm-up and decay are the
    `schedule`'s, whose `num_steps` are optimizer steps. `curve` holds (step, mean loss since the last entry).
    """

    def __init__(self, model: nn.Module, settings: TrainerSettings, schedule: Schedule, *, seed: int) -> None:
        super().__init__()
        self.model = model.train()
        self.settings = settings
        self.schedule = schedule
        self.seed = seed
        self.curve: list[tuple[int, float]] = []
        self._losses: list[torch.Tensor] = []

    def configure_optimizers(self) -> Any:
        """Return AdamW (Loshchilov and Hutter, ICLR 2019), of which only matrices decay, and its schedule by step."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=self.settings.learning_rate, fused=True)
        by_step = torch.optim.lr_scheduler.LambdaLR(adamw, self.schedule.factor)
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": by_step, "interval": "step"}}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient's norm as the settings say; the Trainer's own value is not read."""
        if self.settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)

    def on_train_start(self) -> None:
        """Start the model's dropout from the seed."""
        torch.manual_seed(self.seed)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the mean cross-entropy over the batch's targets, in nats a token."""
        total, num_targets = summed_loss(self.model, batch)
        loss = total / max(1, num_targets)
        self._losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the mean loss every so many steps and at the end; stop a training that has diverged."""
        done = self.global_step
        if done % self.settings.log_every_n_steps and done != self.schedule.num_steps:
            return
        if not self._losses:
            return
        self.curve.append((done, torch.stack(self._losses).mean().item()))
        self._losses.clear()
        if not math.isfinite(self.curve[-1][1]):
            raise TrainingError(f"The loss is {self.curve[-1][1]} at step {done}; lower trainer.learning_rate.")
        if self.logger is not None:
            rate = self.settings.learning_rate * self.schedule.factor(done - 1)
            self.logger.log_metrics({"train_loss": self.curve[-1][1], "learning_rate": rate}, step=done)


class StepCheckpoints(pl.Callback):
    """What `keep_at` returns."""

    def __init__(self, steps: Iterable[int], folder: Path, tokenizer: Any) -> None:
        super().__init__()
        self.steps = frozenset(steps)
        self.folder = folder
        self.tokenizer = tokenizer
        self._kept: set[int] = set()
        if not self.steps or min(self.steps) < 0:
            raise ConfigError(f"Expected steps of at least 0 at which to keep a checkpoint, got {sorted(self.steps)}.")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse steps that training will not reach, and keep the start if asked."""
        if not isinstance(pl_module, LanguageModule):
            raise TypeError(f"Expected a LanguageModule, got {type(pl_module).__name__}.")
        last = pl_module.schedule.num_steps
        if max(self.steps) > last:
            raise ConfigError(f"Expected steps up to {last}, where training ends, got {max(self.steps)}.")
        self._kept.clear()
        self._keep(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the model if this step was asked for."""
        self._keep(trainer, pl_module)

    def _keep(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        step = trainer.global_step
        if trainer.is_global_zero and step in self.steps and step not in self._kept:
            self._kept.add(step)
            save_language_model(module.model, self.folder / step_name(step), self.tokenizer)


def keep_at(steps: Iterable[int], folder: Path, tokenizer: Any = None) -> StepCheckpoints:
    """Return a Lightning callback that saves `folder/step-000100` once the 100th optimizer step is done, and so on.

    Step 0 is the model before training. With a tokenizer, each checkpoint holds it too. An older checkpoint of the
    same name is replaced.

    Raises:
        ConfigError: here or when training starts, for steps below 0 or after its end.
    """
    return StepCheckpoints(steps, folder, tokenizer)


def step_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` optimizer steps, such as `step-000100`."""
    return f"step-{step:06d}"


def save_language_model(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Write a checkpoint folder (safetensors and JSON), which appears under its name only when it is whole on disk.

    Raises:
        StoreError: when it cannot be written.
    """
    partial_folder, old = (folder.with_name(f".{folder.name}{end}") for end in (PARTIAL, ".old"))
    with explained(f"save a language model to {folder}"), _quiet():
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
    options = {} if is_bidirectional(model) else {"use_cache": False}
    logits = model(input_ids=batch["tokens"], attention_mask=batch.get("mask"), **options).logits
    targets = batch["targets"]
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    return total, int((targets != NO_TARGET).sum())


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


@torch.inference_mode()
def perplexity(model: nn.Module, blocks: Blocks, batch_size: int, *, masking: Masking | None = None) -> float:
    """Return exp of the mean negative log-likelihood (nats) over all targets, every token weighing the same.

    A causal model predicts all tokens of a block but its first, from that block alone; a masked model the tokens that
    `masking` hides in epoch 0 (a pseudo-perplexity, not comparable with a causal model's). One batch of logits is
    held at a time. Infinite when the mean exceeds what a float's exponent holds.

    Raises:
        ConfigError: when blocks or masking do not fit the model, or nothing is to be predicted.
    """
    require_fit(model, blocks, masking)
    device = next(model.parameters()).device
    total, num_targets = 0.0, 0
    with _evaluating(model):
        for start in range(0, len(blocks), batch_size):
            rows = np.arange(start, min(start + batch_size, len(blocks)))
            batch = collate_blocks(blocks, rows, masking=masking)
            loss, count = summed_loss(model, {key: value.to(device) for key, value in batch.items()})
            total, num_targets = total + loss.item(), num_targets + count
    if not num_targets:
        raise ConfigError("Expected blocks with something to predict, got single or special tokens only.")
    mean = total / num_targets
    return math.inf if mean > LARGEST_EXPONENT else math.exp(mean)


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


def _made_config(architecture: str, shape: Mapping[str, Any]) -> Any:
    if architecture not in {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES}:
        known = ("gpt2", "llama", "gpt_neox", "bert") if architecture in CONFIG_MAPPING else CONFIG_MAPPING
        raise ConfigError(f"{architecture!r} is no language model of transformers.{nearest(architecture, known)}")
    default = CONFIG_MAPPING[architecture]()
    names = {*default.to_dict(), *default.attribute_map}
    for key in shape:
        if key not in names:
            raise ConfigError(f"Unknown value {key!r} in the shape of {architecture}.{nearest(key, names)}")
    try:
        config = AutoConfig.for_model(architecture, **shape)
    except LOAD_ERRORS as error:
        raise ConfigError(f"The shape does not fit {architecture}: {error}") from error
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        if name not in shape and isinstance(value, int) and value >= config.vocab_size:
            setattr(config, name, None)
    return config


def _auto_class(config: Any) -> Any:
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return AutoModelForMaskedLM if masked else AutoModelForCausalLM


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back load reports and progress bars: what is missing is raised, not printed."""
    before, bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bar:
            transformers.logging.enable_progress_bar()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
