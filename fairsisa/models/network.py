"""The network inside a constituent: built for what trains, and run on a batch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from fairsisa.errors import ConfigError
from fairsisa.models.base import Base, is_bidirectional, load_classifier, load_encoder
from fairsisa.settings import ModelSettings

Batch = dict[str, torch.Tensor]


class Standardizer(nn.Module):
    """Centre and scale features by means and deviations that were fitted once, on a chain's first examples."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    def fit(self, features: torch.Tensor) -> None:
        """Take mean and deviation of `features`, shape (num_examples, num_features); a constant keeps scale 1."""
        wide = features.double()
        deviation = wide.std(dim=0, correction=0)
        self.mean.copy_(wide.mean(dim=0))
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the standardised features, same shape."""
        return (features - self.mean) / self.scale


def build_network(
    settings: ModelSettings, base: Base | None, *, num_features: int, num_classes: int, seed: int
) -> nn.Module:
    """Return the network that trains, random parts drawn from `seed`; parameters that stay need no gradient.

    With kind "mlp" or "logistic", or a frozen encoder's features (`trains` "head"), it reads `num_features` numbers;
    else it reads tokens.

    Raises:
        ConfigError: when `frozen_layers` or `lora_targets` do not fit the base.
    """
    if base is None or settings.trains == "head":
        return _tabular_network(settings.hidden, num_features, num_classes, seed)
    model = load_classifier(base, settings, num_classes, seed)
    if settings.trains == "lora":
        return _with_lora(model, settings, seed)
    freeze_lowest(model, settings)
    return model


def freeze_lowest(model: nn.Module, settings: ModelSettings) -> None:
    """Freeze what stands before the stack of layers (the embeddings), and the stack's lowest layers, as set.

    Raises:
        ConfigError: when `frozen_layers` are more than there are.
    """
    body = model.base_model
    if not isinstance(body, nn.Module):
        raise TypeError(f"Expected a Hugging Face model, got {type(model).__name__}.")
    stacks = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.ModuleList)]
    stack_name, stack = max(stacks, key=lambda found: len(found[1]))
    if settings.frozen_layers > len(stack):
        raise ConfigError(f"model.frozen_layers={settings.frozen_layers}, but the base has {len(stack)} layers.")
    for name, parameter in body.named_parameters():
        if name.startswith(f"{stack_name}.") or not settings.freeze_embeddings:
            break
        parameter.requires_grad_(False)
    for layer in list(stack)[: settings.frozen_layers]:
        layer.requires_grad_(False)


def logits_of(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Return class logits in fp32, shape (num_examples, num_classes)."""
    if "features" in batch:
        logits: torch.Tensor = network(batch["features"])
    else:
        logits = network(input_ids=batch["tokens"], attention_mask=batch.get("mask")).logits
    return logits.float()


def build_encoder(settings: ModelSettings, base: Base) -> nn.Module:
    """Return the frozen encoder whose pooled output is the features of `trains` "head"."""
    return load_encoder(base, settings, seed=0).requires_grad_(False).eval()


def pooled_features(encoder: nn.Module, batch: Batch) -> torch.Tensor:
    """Return one vector a text in fp32, shape (num_examples, width): the mean token, or the last of a decoder.

    The texts of the batch are equally long.
    """
    hidden = encoder(input_ids=batch["tokens"], attention_mask=batch.get("mask")).last_hidden_state
    pooled: torch.Tensor = hidden.float().mean(dim=1) if is_bidirectional(encoder) else hidden[:, -1].float()
    return pooled


def feature_width(encoder: nn.Module) -> int:
    """Return the number of features that `pooled_features` gives."""
    config: Any = encoder.config
    return int(config.hidden_size)


def _tabular_network(hidden: tuple[int, ...], num_features: int, num_classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [Standardizer(num_features)]
    width = num_features
    for next_width in hidden:
        layers += [nn.Linear(width, next_width), nn.ReLU()]
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def _with_lora(model: nn.Module, settings: ModelSettings, seed: int) -> nn.Module:
    import peft  # noqa: PLC0415 - it looks for every library of low-bit weights, which takes seconds

    torch.manual_seed(seed)
    config = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.dropout or 0.0,
        target_modules=list(settings.lora_targets) or None,
        fan_in_fan_out=_has_conv1d(model),
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            wrapped: nn.Module = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"model.lora_targets={list(settings.lora_targets)} do not fit this base: {error}") from error
    return wrapped


def _has_conv1d(model: nn.Module) -> bool:
    return any(type(module).__name__ == "Conv1D" for module in model.modules())
