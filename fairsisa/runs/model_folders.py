"""Model folders as they are named, told apart and weighed beside each other."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from fairsisa.compression.card import count_layers, count_parameters
from fairsisa.compression.layers import tied_layers
from fairsisa.compression.packing import format_layers
from fairsisa.errors import ModelError
from fairsisa.models.base import WEIGHTS
from fairsisa.models.text_tokenizers import find_tokenizer, holds_tokenizer
from fairsisa.runs.pretrained import CHECKPOINTS, STEP, Pretrained


def model_names(folders: Sequence[Path]) -> list[str]:
    """Return what tells the folders apart: their paths below the deepest folder that holds them all."""
    whole = [folder.expanduser().resolve() for folder in folders]
    common = Path(os.path.commonpath([folder.parent for folder in whole]))
    return [folder.relative_to(common).as_posix().replace(f"{CHECKPOINTS}/", "") for folder in whole]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return what tells the folders apart: of each path the shortest end that no other has, without "checkpoints".

    A checkpoint called step-000100 keeps the folder above it, which says what was trained. A folder that is there twice
    has one name.
    """
    known: dict[Path, tuple[str, ...]] = {folder: _told(folder) for folder in folders}
    parts = list(dict.fromkeys(known.values()))
    lengths = [2 if STEP.fullmatch(each[-1]) else 1 for each in parts]
    while True:
        names = [str(Path(*each[-length:])) for each, length in zip(parts, lengths, strict=True)]
        longer = [
            length + 1 if names.count(name) > 1 and length < len(each) else length
            for each, length, name in zip(parts, lengths, names, strict=True)
        ]
        if longer == lengths:
            found = dict(zip(parts, names, strict=True))
            return [found[known[folder]] for folder in folders]
        lengths = longer


def _told(folder: Path) -> tuple[str, ...]:
    return tuple(part for part in folder.expanduser().absolute().parts if part != CHECKPOINTS)


def models_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a pretraining's directory; any other folder is one model."""
    return [*Pretrained(folder).checkpoints.values()] if Pretrained(folder).exists else [folder]


def tokenizer_of(folder: Path, fallback: str | None) -> Any:
    """Return the tokenizer in a folder, else that which `fallback` names.

    Raises:
        ModelError: when there is neither.
    """
    if holds_tokenizer(folder):
        return find_tokenizer(str(folder))
    if fallback is None:
        raise ModelError(f"{folder} holds no tokenizer: set tokenizer=..., such as the folder that it was made from.")
    return find_tokenizer(fallback)


def family_of(name: str, folder: Path) -> dict[str, Any]:
    """Return the family and step of a checkpoint called step-000100; any other model is a family of its own."""
    found = STEP.fullmatch(folder.name)
    if found is None:
        return {"family": name, "step": math.nan}
    holder = folder.resolve().parent
    holder = holder.parent if holder.name == CHECKPOINTS else holder
    return {"family": name.rpartition("/")[0] or holder.name, "step": float(found[1])}


def sizes_of(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Return the number of parameters, bytes of weights on disk, and the share of zeros in the layers with a matrix."""
    tied, packed = tied_layers(model), format_layers(model)
    matrices = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    layers = count_layers(model, [name for name in matrices if name not in tied and name not in packed])
    weights = sum(layer.num_weights for layer in layers)
    return {
        "num_parameters": count_parameters(model),
        "bytes_on_disk": sum(path.stat().st_size for path in folder.glob("*" + WEIGHTS)),
        "sparsity": sum(layer.num_zeros for layer in layers) / weights if weights else math.nan,
    }
