"""The Lightning module that trains one slice of one constituent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import nn

from fairsisa.models.network import Batch, logits_of
from fairsisa.settings import TrainerSettings

OPTIMIZER = "optimizer."
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Schedule:
    """The learning-rate factor over `num_steps` steps: a line from `start` to `end`, ramped up over a `warmup` part."""

    num_steps: int
    start: float
    end: float
    warmup: float

    def factor(self, step: int) -> float:
        """Return the factor of step `step`, counted from 0."""
        line = self.start + (self.end - self.start) * step / max(1, self.num_steps)
        ramp = self.warmup * self.num_steps
        return line * min(1.0, (step + 1) / ramp) if ramp >= 1 else line


class Classifier(pl.LightningModule):
    """Cross-entropy training of `network` with AdamW on fp32 master copies of what trains.

    `state` is where training starts: what `trained_state` returned for the parent slice, or `initial_state` of a new
    network. The optimizer starts fresh unless the state brings its moments. A training batch is a list of
    mini-batches, one optimizer step each: where a step takes microseconds, a long list keeps the loop's own cost small.
    """

    def __init__(
        self, network: nn.Module, state: Mapping[str, torch.Tensor], trainer: TrainerSettings, schedule: Schedule
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.settings = trainer
        self.schedule = schedule
        self.num_steps_done = 0
        self.curve: list[tuple[int, float]] = []
        self._losses: list[torch.Tensor] = []
        self._state = dict(state)
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._masters: dict[str, torch.Tensor] = {}
        load_trained(network, state)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW (Loshchilov and Hutter, ICLR 2019) over the masters; only matrices decay."""
        self._masters = {name: self._state[name].to(p.device, copy=True) for name, p in self._trained.items()}
        for master in self._masters.values():
            master.grad = torch.zeros_like(master)
        groups = [
            {"params": [p for p in self._masters.values() if p.ndim > 1], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in self._masters.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=self.settings.learning_rate, fused=True)
        if any(name.startswith(OPTIMIZER) for name in self._state):
            for name, master in self._masters.items():
                moments = {key: self._state[f"{OPTIMIZER}{key}.{name}"] for key in MOMENTS}
                self._adamw.state[master] = {key: value.to(master.device, copy=True) for key, value in moments.items()}
        return self._adamw

    def training_step(self, batch: list[Batch], batch_idx: int) -> None:
        """Take one optimizer step per mini-batch; every so many steps, and at the end, log the mean loss since."""
        self._losses += [self._step(mini_batch) for mini_batch in batch]
        done = self.num_steps_done
        if len(self._losses) >= self.settings.log_every_n_steps or done == self.schedule.num_steps:
            self.curve.append((done, torch.stack(self._losses).mean().item()))
            self._losses.clear()
            if self.logger is not None:
                metrics = {"train_loss": self.curve[-1][1], "learning_rate": self._learning_rate(done - 1)}
                self.logger.log_metrics(metrics, step=done)

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        """Return what a mini-batch costs, a scalar in fp32: the mean cross-entropy of its labels, in nats."""
        return nn.functional.cross_entropy(logits_of(self.network, batch), batch["labels"])

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Return what trained, fp32 on the CPU; with the optimizer's moments where they are to be carried."""
        state = {name: _kept(value) for name, value in self._masters.items()}
        state |= {name: _kept(value) for name, value in _buffers(self.network).items()}
        if self.settings.optimizer_state == "carried":
            for name, master in self._masters.items():
                moments = self._adamw.state[master]  # none before the first step
                state |= {f"{OPTIMIZER}{key}.{name}": _kept(value) for key, value in moments.items()}
        return state

    def _step(self, batch: Batch) -> torch.Tensor:
        loss = self.batch_loss(batch)
        torch.autograd.backward(loss)  # one device, and the number format is ours: a strategy has nothing to add
        masters, parameters = list(self._masters.values()), list(self._trained.values())
        torch._foreach_copy_([_gradient(m) for m in masters], [_gradient(p) for p in parameters])
        if self.settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(masters, self.settings.gradient_clip)
        for group in self._adamw.param_groups:
            group["lr"] = self._learning_rate(self.num_steps_done)
        self._adamw.step()
        torch._foreach_copy_([p.data for p in parameters], masters)
        for parameter in parameters:
            parameter.grad = None
        self.num_steps_done += 1
        return loss.detach()

    def _learning_rate(self, step: int) -> float:
        return self.settings.learning_rate * self.schedule.factor(step)


def initial_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return what would train of a network as it was built, in fp32; call it before any change of number format."""
    trained = {name: _kept(p) for name, p in network.named_parameters() if p.requires_grad}
    return trained | {name: _kept(value) for name, value in _buffers(network).items()}


def load_trained(network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy trained weights and buffers into `network`, in the network's own number format.

    Raises:
        KeyError: when a name of `state` is not in the network; that is a checkpoint of another model.
    """
    own = network.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in state.items():
            if not name.startswith(OPTIMIZER):
                own[name].copy_(value)


def _buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in network.state_dict().items() if name not in parameters}


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _kept(value: torch.Tensor) -> torch.Tensor:
    tensor = value.detach().to("cpu", copy=True).contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor
