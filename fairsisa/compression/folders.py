"""Compressed models on disk, beside those of Hugging Face."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from fairsisa.compression.card import Card
from fairsisa.compression.compressing import Compressed
from fairsisa.compression.foreign import load_foreign
from fairsisa.compression.packing import Packed, pack, unpack
from fairsisa.errors import ModelError
from fairsisa.models.base import named, quiet, read_config, read_network, require_weights
from fairsisa.store.durable import PARTIAL, explained, make_folder, publish

COMPRESSION = "compression.json"
MODEL = "model.safetensors"
CARD = "README.md"
KINDS: tuple[tuple[Any, dict[str, str]], ...] = (
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
)


def save_compressed(compressed: Compressed, folder: Path, tokenizer: Any = None) -> None:
    """Write a compressed model (safetensors, JSON and its card as README.md), whole on disk before it has its name.

    An older folder of that name is replaced. What was pruned or rounded only is an ordinary Hugging Face checkpoint;
    layers in a format are read by `load_compressed` alone.

    Raises:
        ModelError: when it is no causal or masked language model or sequence classifier of transformers.
        StoreError: when it cannot be written.
    """
    model: Any = compressed.model
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"Expected a Hugging Face model, whose config tells how to build it, got {type(model).__name__}: keep it "
            "by `packing.pack`, beside what tells how to build it."
        )
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    _kind_of(config, folder)
    packed = pack(model)
    with explained(f"save a compressed model to {folder}"), quiet(), _whole(folder) as partial:
        config.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        save_file(packed.tensors, partial / MODEL, metadata={"format": "pt"})
        record = {"layout": packed.layout, "card": compressed.card.to_dict()}
        (partial / COMPRESSION).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        page = compressed.card.markdown(bytes_on_disk=(partial / MODEL).stat().st_size)
        (partial / CARD).write_text(page, encoding="utf-8")


def load_compressed(folder: Path) -> Compressed:
    """Return what `save_compressed` wrote: the model in evaluation mode, on the CPU, its outputs equal bit for bit.

    Raises:
        ModelError: when there is none, or it is damaged.
        ConfigError: when the package that made its layers is not installed.
    """
    if not (folder / COMPRESSION).is_file():
        raise ModelError(f"{folder} holds no {COMPRESSION}: read a model that fairsisa did not compress by load_model.")
    config = read_config(folder)
    with quiet(), named(f"{folder} holds no compressed model that can be read"):
        record = json.loads((folder / COMPRESSION).read_text(encoding="utf-8"))
        tensors = load_file(folder / MODEL)
        model = _kind_of(config, folder).from_config(config, attn_implementation="eager")
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        packed, card = Packed(record["layout"], tensors), Card.from_dict(record["card"])
    return Compressed(unpack(model, packed), card)


def load_model(folder: Path) -> nn.Module:
    """Return the model of any folder that we can read, in evaluation mode; only safetensors and JSON are read.

    A compressed model of ours as it was; a causal or masked language model or a sequence classifier of Hugging Face,
    as `architectures` in its config says, in fp32; a GPTQ or AWQ checkpoint with its weights as dense fp32.

    Raises:
        ModelError: when there is none, it is of another kind, or it lacks weights that would then be random.
    """
    if (folder / COMPRESSION).is_file():
        return load_compressed(folder).model
    require_weights(folder)
    config = read_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        return load_foreign(folder)
    kind = _kind_of(config, folder)
    loaded: nn.Module = read_network(kind, folder, f"a {config.architectures[0]}", config=config)
    return loaded


def _kind_of(config: Any, folder: Path) -> Any:
    """Return the class of transformers that loads a model of what the config says it is, and of no other type."""
    architecture = (getattr(config, "architectures", None) or [None])[0]
    for kind, names in KINDS:
        if architecture is not None and names.get(config.model_type) == architecture:
            return kind
    raise ModelError(
        f"Expected {folder} to be a causal or masked language model or a sequence classifier of transformers, got "
        f"architecture {architecture!r} of type {config.model_type!r} in its config."
    )


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a hidden folder to write to, which takes the name of `folder` once all of it is on the disk."""
    partial, old = (folder.with_name(f".{folder.name}{end}") for end in (PARTIAL, ".old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    make_folder(partial)
    yield partial
    for path in (*partial.iterdir(), partial):
        _sync(path)
    if folder.exists():
        folder.rename(old)
    publish(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
