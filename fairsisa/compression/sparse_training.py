"""Zeros of a pruned network that stay zero while the rest trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fairsisa.compression.layers import weight_layers
from fairsisa.errors import ConfigError, TrainingError


def zero_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return, for each layer's weights that have a zero, True where they have none; by parameter name and shape.

    Ask right after pruning: what an adapter or a new head begins at zero is no different from what was pruned.
    """
    names = [f"{name}.weight" if name else "weight" for name in weight_layers(model)]
    masks = {name: model.get_parameter(name).detach() != 0 for name in names}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


class KeepZeros(pl.Callback):
    """Keep weights at zero where `masks` is False while a Lightning module trains on.

    `masks`, as `zero_masks` returns them, name parameters of the module or of a network directly in it. The gradient
    of a removed weight is zero, so that clipping and moments see the sparse network alone. AdamW and its like then
    leave a zero where it is, in parameters and in fp32 masters of them alike; this is checked when training ends.

    Raises:
        ConfigError: when training starts, if the masks fit no network in the module, or a weight they remove is not 0.
        TrainingError: after the first batch or at the end, if a removed weight moved: an optimizer that began with
            the moments of dense training does so.
    """

    def __init__(self, masks: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.masks = dict(masks)
        self._kept: dict[str, tuple[nn.Parameter, torch.Tensor]] = {}
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the parameters and watch their gradients."""
        parameters = _parameters_of(pl_module, self.masks)
        self._kept = {name: (p, self.masks[name].to(p.device)) for name, p in parameters.items()}
        moved = self._moved()
        if moved:
            raise ConfigError(f"Expected zeros where the masks remove weights of {moved}: prune what training loads.")
        self._hooks = [_watched(p, mask) for p, mask in self._kept.values() if p.requires_grad]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        """Check once that the optimizer does what we think it does."""
        if trainer.global_step <= 1 or batch[-1] == 0:
            self._check()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that every zero is still there, and let go of the gradients."""
        self._release()
        self._check()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let go of the gradients."""
        self._release()

    def _check(self) -> None:
        moved = self._moved()
        if moved:
            raise TrainingError(
                f"Removed weights of {moved} moved from zero: start the optimizer fresh after pruning "
                "(trainer.optimizer_state=fresh)."
            )

    def _moved(self) -> list[str]:
        return [name for name, (p, mask) in self._kept.items() if bool(p.detach()[~mask].any())]

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _parameters_of(module: nn.Module, masks: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """Return the masked parameters of the first network that has all of them and trains; a teacher does not."""
    for network in (module, *module.children()):
        found = {name: p for name, p in network.named_parameters(remove_duplicate=False) if name in masks}
        fits = all(name in found and found[name].shape == mask.shape for name, mask in masks.items())
        if fits and any(p.requires_grad for p in found.values()):
            return found
    raise ConfigError(
        f"Expected a network that trains and has weights of these names and shapes: {sorted(masks)}; "
        f"found none in {type(module).__name__}."
    )


def _watched(parameter: Any, mask: torch.Tensor) -> RemovableHandle:
    """Make the gradient of removed weights zero; NaN, too, which a product would leave."""
    handle: RemovableHandle = parameter.register_hook(lambda gradient: gradient.masked_fill(~mask, 0.0))
    return handle
