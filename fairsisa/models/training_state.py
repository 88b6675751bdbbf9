"""Where the training of a language model stands beside its weights, as a file of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fairsisa.errors import ModelError
from fairsisa.store.durable import explained, write_durably

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
LOSSES, RECORD = "losses", "training"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What a training needs, beside the weights after `step` optimizer steps, to go on as if it had never stopped.

    `curve` holds (step, mean loss) so far, `losses` those of the steps since its last entry, shape (num_losses,), and
    `moments` AdamW's state under "<moment>.<name of the parameter>"; a frozen parameter has none.
    """

    step: int
    curve: tuple[tuple[int, float], ...]
    losses: torch.Tensor
    moments: Mapping[str, torch.Tensor]


def write_training_state(path: Path, state: TrainingState) -> None:
    """Write a state, which replaces that of an earlier step at once or not at all.

    Raises:
        StoreError: when it cannot be written.
    """
    record = json.dumps({"step": state.step, "curve": state.curve})
    content = save({LOSSES: state.losses, **state.moments}, metadata={RECORD: record})
    with explained(f"save the state of training to {path}"):
        write_durably(path, content)


def read_training_state(path: Path) -> TrainingState:
    """Return the state that `write_training_state` wrote.

    Raises:
        ModelError: when the file is missing or is no such state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            record = json.loads(file.metadata()[RECORD])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is no saved state of training ({error}); delete it, and train anew.") from error
    losses = tensors.pop(LOSSES)
    return TrainingState(record["step"], tuple((step, loss) for step, loss in record["curve"]), losses, tensors)


def taken_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return AdamW's moments by parameter, copied to the CPU; none before the first step."""
    moments = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{key}.{name}"] = value.detach().to("cpu", copy=True)
    return moments


def give_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, torch.Tensor]) -> None:
    """Put moments that `taken_moments` returned into a new AdamW over the same model.

    Raises:
        ModelError: when they are of another model.
    """
    rest = dict(moments)
    for name, parameter in model.named_parameters():
        own = {key: rest.pop(f"{key}.{name}") for key in MOMENTS if f"{key}.{name}" in rest}
        if own and (len(own) < len(MOMENTS) or own["exp_avg"].shape != parameter.shape):
            raise ModelError(f"The saved state of training does not fit parameter {name}; delete it, and train anew.")
        if own:
            optimizer.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in own.items()}
    if rest:
        raise ModelError(f"The saved state of training is of another model: {min(rest)} is not in this one.")
