"""What is on record of a compressed model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from fairsisa.compression.layers import LayerWeight
from fairsisa.compression.packing import format_layers, format_named
from fairsisa.errors import ModelError
from fairsisa.settings.steps import Step, plain_steps, read_steps

NO_SPEED = "Zeros promise no speed: they are stored and multiplied like any other number, unless a runtime skips them."


@dataclass(frozen=True)
class LayerCard:
    """One compressed layer, counted: `shape` is (out_features, in_features), `num_zeros` counts its weights at zero.

    `bits` is how many tell a weight's levels apart, `stored_bits` how many it takes in memory: weights rounded in place
    to 4 bits are stored as before.
    """

    name: str
    shape: tuple[int, int]
    num_zeros: int
    bits: int
    stored_bits: int

    @property
    def num_weights(self) -> int:
        """How many weights the layer has, zeros included."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """The share of its weights that are zero."""
        return self.num_zeros / max(1, self.num_weights)


@dataclass(frozen=True)
class Card:
    """What a model was compressed from, by which steps, and what came of it.

    `parents` and `calibration_digest` are hex digests; the latter is None, and no calibration text counted, when no
    step reads any. `layers` are those that a step changes, or may. `num_parameters` counts all weights and biases,
    zeros included; bytes are those of numbers in memory, a shared one counted once.
    """

    steps: tuple[Step, ...]
    parents: tuple[str, ...] = ()
    calibration_digest: str | None = None
    num_calibration_texts: int = 0
    layers: tuple[LayerCard, ...] = field(default=(), repr=False)
    num_parameters: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights of all layers of the card."""
        return sum(each.num_zeros for each in self.layers) / max(1, sum(each.num_weights for each in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON; `from_dict` gives it back, and needs no `sparsity`, which is for readers."""
        layers = [{**asdict(each), "shape": list(each.shape), "sparsity": each.sparsity} for each in self.layers]
        return {
            "steps": plain_steps(self.steps),
            "parents": list(self.parents),
            "calibration_digest": self.calibration_digest,
            "num_calibration_texts": self.num_calibration_texts,
            "layers": layers,
            "sparsity": self.sparsity,
            "num_parameters": self.num_parameters,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """Return the card that `to_dict` wrote.

        Raises:
            ModelError: when something lacks or is of another kind.
        """
        try:
            return cls(
                steps=read_steps(values["steps"]) if values["steps"] else (),
                parents=tuple(values["parents"]),
                calibration_digest=values["calibration_digest"],
                num_calibration_texts=int(values["num_calibration_texts"]),
                layers=tuple(_read_layer(each) for each in values["layers"]),
                num_parameters=int(values["num_parameters"]),
                bytes_before=int(values["bytes_before"]),
                bytes_after=int(values["bytes_after"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"A compressed model's card is damaged: {type(error).__name__}: {error}") from error

    def markdown(self, *, bytes_on_disk: int | None = None) -> str:
        """Return the card as a page; with the size of the weights' file, if it is known."""
        sizes = [f"- in memory: {self.bytes_after:,} bytes, {self.bytes_before:,} before"]
        if bytes_on_disk is not None:
            sizes.append(f"- on disk: {bytes_on_disk:,} bytes of weights")
        blocks = [
            "# Compressed model",
            *self._made_by(),
            "## Made from",
            "\n".join([_listed("parents", self.parents), self._calibration()]),
            "## Size",
            "\n".join([*sizes, f"- parameters: {self.num_parameters:,}, zeros included"]),
            "## Layers",
            f"{self.sparsity:.2%} of the weights of these layers are zero. {NO_SPEED}",
            _table(self.layers),
            "Counted from the weights themselves. Read it with `fairsisa.compression.folders.load_compressed`.",
        ]
        return "\n\n".join(blocks) + "\n"

    def _made_by(self) -> list[str]:
        if not self.steps:
            return ["A student: it was trained on what its teacher says, and taken through no step of compression."]
        steps = "\n".join(f"{number}. {step.label}" for number, step in enumerate(self.steps, 1))
        return ["Made by these steps, in order:", steps]

    def _calibration(self) -> str:
        if not self.num_calibration_texts:
            return "- calibration: none of the steps reads any"
        return f"- calibration: {self.num_calibration_texts:,} texts, digest {self.calibration_digest or 'not given'}"


def count_layers(
    model: nn.Module, dense: Collection[str], rounded: Mapping[str, int] | None = None
) -> tuple[LayerCard, ...]:
    """Return the record of the layers named in `dense` and of all in a format, counted, in the model's order.

    `rounded` says to how many bits a dense layer's weights were rounded, where they were.
    """
    found = format_layers(model)
    cards = []
    for name, module in model.named_modules():
        if name in found:
            cards.append(_count_format(name, found[name][0], module))
        elif name in dense:
            weights = LayerWeight(name, module).matrix()
            bits = 8 * weights.element_size()
            cards.append(_count(name, weights, min(bits, (rounded or {}).get(name, bits)), bits))
    return tuple(cards)


def count_parameters(model: nn.Module) -> int:
    """Return how many weights and biases a model has, a shared one counted once, whatever format they are in."""
    outside = _outside(model, list(model.named_parameters()))
    counts = [_weight_count(layer) + _bias_count(kind, layer) for kind, layer in format_layers(model).values()]
    return sum(value.numel() for value in outside) + sum(counts)


def bytes_in_memory(model: nn.Module) -> int:
    """Return the bytes that a model's numbers take, a shared one counted once, scales of a format included."""
    found = format_layers(model)
    held = _outside(model, [*model.named_parameters(), *model.named_buffers()])
    inside = [value for kind, layer in found.values() for value in format_named(kind).take(layer)[0].values()]
    return sum(value.numel() * value.element_size() for value in [*held, *inside])


def _count_format(name: str, kind: str, layer: nn.Module) -> LayerCard:
    integers = [value for value in format_named(kind).take(layer)[0].values() if not value.is_floating_point()]
    largest = max(value.numel() * value.element_size() for value in integers)
    bits = round(8 * largest / max(1, _weight_count(layer)))
    return _count(name, _answering_weights(layer), bits, bits)


@torch.no_grad()
def _answering_weights(layer: Any) -> torch.Tensor:
    """Return the weights that a layer of any format answers with: what it makes of unit vectors, less its bias."""
    weight = layer.weight
    typed = isinstance(weight, torch.Tensor)
    dtype = weight.dtype if typed and weight.is_floating_point() else torch.float32
    units = torch.eye(layer.in_features, dtype=dtype, device=weight.device if typed else "cpu")
    answers: torch.Tensor = layer(units) - layer(torch.zeros_like(units[:1]))
    return answers.t()


def _weight_count(layer: Any) -> int:
    return int(layer.in_features * layer.out_features)


def _bias_count(kind: str, layer: nn.Module) -> int:
    bias = format_named(kind).take(layer)[0].get("bias")
    return 0 if bias is None else bias.numel()


def _count(name: str, weights: torch.Tensor, bits: int, stored_bits: int) -> LayerCard:
    num_outputs, num_inputs = weights.shape
    num_zeros = weights.numel() - int(torch.count_nonzero(weights))
    return LayerCard(name, (num_outputs, num_inputs), num_zeros, bits, stored_bits)


def _outside(model: nn.Module, values: Sequence[tuple[str, torch.Tensor]]) -> list[torch.Tensor]:
    """Return those of named tensors that stand in no layer of a format."""
    inside = tuple(f"{name}." for name in format_layers(model))
    return [value for name, value in values if not name.startswith(inside)]


def _read_layer(values: Mapping[str, Any]) -> LayerCard:
    num_outputs, num_inputs = (int(size) for size in values["shape"])
    counts = [int(values[name]) for name in ("num_zeros", "bits", "stored_bits")]
    return LayerCard(str(values["name"]), (num_outputs, num_inputs), *counts)


def _listed(what: str, digests: Sequence[str]) -> str:
    return f"- {what}: {', '.join(f'`{digest}`' for digest in digests) or 'not given'}"


def _table(layers: Sequence[LayerCard]) -> str:
    head = "| Layer | Outputs x inputs | Zero | Bits | Bits stored |\n|---|---|---|---|---|"
    rows = [
        f"| {each.name} | {each.shape[0]} x {each.shape[1]} | {each.sparsity:.2%} | {each.bits} | {each.stored_bits} |"
        for each in layers
    ]
    return "\n".join([head, *rows])
