"""One contract for every compressor: what each check demands, whatever the model and whoever compressed it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from fairsisa.compression.compressing import Compressed, compress
from fairsisa.compression.folders import load_compressed, save_compressed
from fairsisa.compression.packing import pack
from fairsisa.errors import ConfigError
from fairsisa.settings.steps import CALIBRATED, PRESETS, PRUNING, Step

VOCABULARY = 64
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
}
GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
AUTO = {
    "gpt2": (transformers.AutoModelForCausalLM, lambda: transformers.GPT2Config(**GPT2, **SPECIAL)),
    "llama": (transformers.AutoModelForCausalLM, lambda: transformers.LlamaConfig(**SMALL, **SPECIAL)),
    "classifier": (transformers.AutoModelForSequenceClassification, lambda: transformers.BertConfig(**SMALL)),
    "masked": (transformers.AutoModelForMaskedLM, lambda: transformers.BertConfig(**SMALL)),
}
PARENTS = ("ab" * 32, "cd" * 32)
DIGEST = "ef" * 32

Batches = Sequence[dict[str, torch.Tensor]]
Run = Callable[..., Compressed]


def make_model(name: str) -> nn.Module:
    """Return a tiny model of random weights, eager attention, biases and norms random too."""
    auto, config = AUTO[name]
    torch.manual_seed(7)
    model = auto.from_config(config(), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_texts(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in (12, 5, 9, 12, 7, 10)]


def make_batches(seed: int = 0) -> Batches:
    """Return the texts in two batches, one of them padded."""
    texts = make_texts(seed)
    batches = []
    for rows in ([texts[0], texts[3]], [texts[n] for n in (1, 2, 4, 5)]):
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        batches.append({"tokens": tokens, "mask": (torch.arange(tokens.shape[1]) < lengths[:, None]).long()})
    batches[0].pop("mask")
    return batches


@torch.no_grad()
def answers(model: nn.Module) -> list[torch.Tensor]:
    return [model(input_ids=b["tokens"], attention_mask=b.get("mask")).logits for b in make_batches(5)]


@dataclass(frozen=True)
class Compressor:
    """One step with what makes, saves and loads it: fairsisa's own, or a broken one's."""

    step: Step
    run: Run = compress
    save: Callable[[Compressed, Path], None] = save_compressed
    load: Callable[[Path], Compressed] = load_compressed

    @property
    def calibrated(self) -> bool:
        return self.step.method in CALIBRATED

    def apply(self, model: nn.Module, step: Step | None = None, batches: Any = None) -> Compressed:
        given = (make_batches() if self.calibrated else ()) if batches is None else batches
        made = copy.deepcopy(model)
        return self.run(made, (step or self.step,), given, parents=PARENTS, calibration_digest=DIGEST)


class Untouchable(Sequence):
    """Calibration that may not be looked at, not even for its length."""

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("A step that needs no calibration read it.")

    def __len__(self) -> int:
        raise AssertionError("A step that needs no calibration asked for its size.")

    def __bool__(self) -> bool:
        raise AssertionError("A step that needs no calibration asked whether there is any.")

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("A step that needs no calibration read it.")


@dataclass(frozen=True)
class Saved:
    """What a compressor left on disk, read without fairsisa."""

    tensors: dict[str, torch.Tensor]
    made: Compressed
    loaded: Compressed
    original: nn.Module

    def shape(self, layer: str) -> tuple[int, int]:
        weight = self.original.get_submodule(layer).weight
        return tuple(weight.t().shape if isinstance(self.original.get_submodule(layer), Conv1D) else weight.shape)

    def levels(self, layer: str) -> torch.Tensor | None:
        """The weights as numbers or as int8 levels around zero, (out, in); None where the file packs them otherwise."""
        if f"{layer}.values" in self.tensors:
            return self.tensors[f"{layer}.values"].int() - self.tensors[f"{layer}.zero_point"].int()
        weight = self.tensors.get(f"{layer}.weight")
        if weight is None or not weight.is_floating_point():
            return None
        return weight.t() if isinstance(self.original.get_submodule(layer), Conv1D) else weight

    def bits(self, layer: str) -> float:
        """How many bits a weight of the layer takes in the file."""
        parts = {k: v for k, v in self.tensors.items() if k.startswith(f"{layer}.") and k != f"{layer}.bias"}
        whole = [v for v in parts.values() if not v.is_floating_point()] or list(parts.values())
        rows, columns = self.shape(layer)
        return 8 * max(v.numel() * v.element_size() for v in whole) / (rows * columns)


@lru_cache(maxsize=2)
def saved(compressor: Compressor, model: nn.Module) -> Saved:
    """Compress a copy of `model`, save it, and read what lies there."""
    made = compressor.apply(model)
    with tempfile.TemporaryDirectory() as folder:
        compressor.save(made, Path(folder) / "m")
        tensors = load_file(Path(folder) / "m" / "model.safetensors")
        return Saved(tensors, made, compressor.load(Path(folder) / "m"), model)


def targets(model: nn.Module, step: Step) -> list[str]:
    """Return the layers that a step is to change, told from the architecture alone; int8_dynamic unties a head."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    heads = {"lm_head", "classifier", "cls.predictions.decoder"}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (step.include_head or name not in heads)
        and (step.method == "int8_dynamic" or id(module.weight) not in tables)
    ]


def check_really_there(compressor: Compressor, model: nn.Module) -> None:
    """Sparsity and bits are in the file, in each layer, as the step says and as the card tells."""
    step, file = compressor.step, saved(compressor, model)
    cards = {each.name: each for each in file.made.card.layers}
    wanted = targets(model, step)
    assert sorted(cards) == sorted(wanted), "the card lists other layers than the step changes"
    num_zeros = 0
    for name in wanted:
        levels = file.levels(name)
        assert cards[name].shape == file.shape(name)
        if levels is not None:
            zeros = int((levels == 0).sum())
            num_zeros += zeros
            assert cards[name].num_zeros == zeros, f"the card counts other zeros in {name} than the file holds"
            _check_zeros(step, levels)
        _check_bits(step, file, name, cards[name])
    if step.method in PRUNING:
        asked = sum(_asked_zeros(step, file.shape(name)) for name in wanted)
        assert abs(num_zeros - asked) <= len(wanted), f"asked for {asked} zeros, found {num_zeros}"


def _asked_zeros(step: Step, shape: tuple[int, int]) -> int:
    if step.pattern is not None:
        kept, block = (int(number) for number in step.pattern.split(":"))
        return shape[0] * shape[1] * (block - kept) // block
    return int(shape[0] * shape[1] * step.sparsity)


def _check_zeros(step: Step, levels: torch.Tensor) -> None:
    if step.pattern is not None:
        kept, block = (int(number) for number in step.pattern.split(":"))
        assert ((levels != 0).reshape(-1, block).sum(1) <= kept).all(), f"more than {kept} of {block} are kept"
    elif step.method == "wanda":
        per_row = (levels == 0).sum(1)
        assert (per_row == int(levels.shape[1] * step.sparsity)).all(), "rows lose different numbers of weights"
    elif step.method in PRUNING and step.pool != "model":
        assert abs(int((levels == 0).sum()) - int(levels.numel() * step.sparsity)) <= 1, "a layer misses its sparsity"


def _check_bits(step: Step, file: Saved, name: str, card: Any) -> None:
    if step.method == "round_to_nearest":
        levels = file.levels(name)
        size = step.group_size or levels.shape[1]
        most = max(len(group.unique()) for row in levels for group in row.split(size))
        assert most <= 2**step.bits, f"{name} has {most} levels a group, asked were {step.bits} bits"
        assert (card.bits, card.stored_bits) == (step.bits, 32)
    else:
        asked = {"int8_dynamic": 8, "bitsandbytes": step.bits, "torchao": 4 if "int4" in str(step.scheme) else 8}
        wanted = asked.get(step.method, 32)
        assert file.bits(name) == wanted, f"{name} takes {file.bits(name)} bits a weight on disk, asked were {wanted}"
        assert (card.bits, card.stored_bits) == (wanted, wanted)


def check_rest_untouched(compressor: Compressor, model: nn.Module) -> None:
    """Whatever the step is not to change lies in the file with its very bits."""
    file, changed = saved(compressor, model), {f"{name}.weight" for name in targets(model, compressor.step)}
    held = file.loaded.model.state_dict()
    for key, value in model.state_dict().items():
        if key not in changed:  # the model has what the file holds once for several places
            kept = file.tensors[key] if key in file.tensors else held[key]
            assert torch.equal(kept, value), f"{key} changed"


def check_round_trip(compressor: Compressor, model: nn.Module) -> None:
    """Saved and loaded, it gives the same answers bit for bit, and has the same card; saved again, the same file."""
    file = saved(compressor, model)
    for ours, theirs in zip(answers(file.made.model), answers(file.loaded.model), strict=True):
        assert torch.equal(ours, theirs), "answers changed by saving and loading"
    assert file.loaded.card == file.made.card
    assert not file.loaded.model.training
    assert _equal(pack(file.loaded.model).tensors, file.tensors)


def check_changes_answers(compressor: Compressor, model: nn.Module) -> None:
    """It does something: the answers of every text change, and stay finite."""
    for before, after in zip(answers(model), answers(saved(compressor, model).loaded.model), strict=True):
        assert after.isfinite().all()
        assert ((before - after).abs().flatten(1).amax(1) > 0).all(), "nothing changed"


def check_recorded(compressor: Compressor, model: nn.Module) -> None:
    """Parents and step are on the card, and of calibration what was read, no more."""
    card = saved(compressor, model).loaded.card
    assert (card.parents, card.steps) == (PARENTS, (compressor.step,))
    read = (DIGEST, len(make_texts())) if compressor.calibrated else (None, 0)
    assert (card.calibration_digest, card.num_calibration_texts) == read, "calibration is recorded wrongly"


def check_deterministic(compressor: Compressor, model: nn.Module) -> None:
    """The same step gives the same bits, wherever the global generator stands; another seed gives others."""
    tensors = saved(compressor, model).tensors
    torch.manual_seed(int(torch.initial_seed()) + 1)
    assert _equal(tensors, pack(compressor.apply(model).model).tensors), "the same step gave other bits"
    if compressor.step.seed is not None:
        other = compressor.apply(model, replace(compressor.step, seed=compressor.step.seed + 1))
        assert not _equal(tensors, pack(other.model).tensors), "another seed gave the same bits"


def check_calibration(compressor: Compressor, model: nn.Module) -> None:
    """A step without need of calibration never looks at it; one in need asks for it, and minds what it is."""
    if not compressor.calibrated:
        compressor.apply(model, batches=Untouchable())
        return
    with _refusing("calibrat"):
        compressor.apply(model, batches=())
    other = pack(compressor.apply(model, batches=make_batches(1)).model).tensors
    assert not _equal(saved(compressor, model).tensors, other), "other calibration gave the same bits"


def check_identity(compressor: Compressor, model: nn.Module) -> None:
    """Nothing removed, or 16 bits, is the model itself to 1e-6."""
    step = compressor.step
    if step.method not in (*PRUNING, "round_to_nearest"):
        return
    nothing = replace(step, bits=16) if step.bits else replace(step, sparsity=0.0, pattern=None)
    for before, after in zip(answers(model), answers(compressor.apply(model, nothing).model), strict=True):
        assert (before - after).abs().max() <= 1e-6, "asked for no change, the answers changed"


def check_refuses(compressor: Compressor, model: nn.Module, *names: str) -> None:
    """On layers that it cannot compress it raises, naming them."""
    for name in names:
        with _refusing(name):
            compressor.apply(model)


CHECKS = (
    check_really_there,
    check_rest_untouched,
    check_round_trip,
    check_changes_answers,
    check_recorded,
    check_deterministic,
    check_calibration,
    check_identity,
)


@contextmanager
def _refusing(match: str) -> Iterator[None]:
    try:
        with pytest.raises(ConfigError, match=match):
            yield
    except pytest.fail.Exception as error:
        raise AssertionError(str(error)) from error


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def fitting(name: str, architecture: str) -> Step | None:
    """Return a preset as it fits an architecture, or None where it must refuse."""
    step = PRESETS[name]
    if architecture == "gpt2" and step.method in ("int8_dynamic", "torchao", "bitsandbytes"):
        return None
    if architecture == "classifier" and step.scheme == "int4_weight_only":
        return replace(step, include_head=False)
    return step
