"""Checkpoints kept along a language model's training, at the steps that were asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from fairsisa.errors import ConfigError
from fairsisa.models.language import LanguageModule, save_language_model
from fairsisa.models.training_state import write_training_state


class StepCheckpoints(pl.Callback):
    """What `keep_at` returns."""

    def __init__(self, steps: Iterable[int], folder: Path, tokenizer: Any, state_file: Path | None) -> None:
        super().__init__()
        self.steps = frozenset(steps)
        self.folder = folder
        self.tokenizer = tokenizer
        self.state_file = state_file
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
        if not pl_module.num_steps_done:
            self._keep(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the model if this step was asked for."""
        self._keep(trainer, pl_module)

    def _keep(self, trainer: pl.Trainer, module: Any) -> None:
        step = module.num_steps_done
        if trainer.is_global_zero and step in self.steps and step not in self._kept:
            self._kept.add(step)
            save_language_model(module.model, self.folder / step_name(step), self.tokenizer)
            if self.state_file is not None:  # after the weights: a state never speaks of what is not there
                write_training_state(self.state_file, module.state())


def keep_at(
    steps: Iterable[int], folder: Path, tokenizer: Any = None, *, state_file: Path | None = None
) -> pl.Callback:
    """Return a Lightning callback that saves `folder/step-000100` once the 100th optimizer step is done, and so on.

    Step 0 is the model before training. With a tokenizer, each checkpoint holds it too. An older checkpoint of the
    same name is replaced. `state_file` gets what is needed to go on from the newest checkpoint, and nothing older.

    Raises:
        ConfigError: here or when training starts, for steps below 0 or after its end.
    """
    return StepCheckpoints(steps, folder, tokenizer, state_file)


def step_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` optimizer steps, such as `step-000100`."""
    return f"step-{step:06d}"
