"""Model folders, outside any run: compressed, each with a card that names what it was made from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairsisa.compression.card import Card
from fairsisa.compression.compressing import compress
from fairsisa.compression.folders import load_model, save_compressed
from fairsisa.data.corpus_blocks import Blocks, encode_blocks
from fairsisa.data.texts import find_text
from fairsisa.errors import ConfigError, DataError, RunError
from fairsisa.lineage import slice_digest
from fairsisa.models.base import digest_of, folder_of, read_tokenizer
from fairsisa.models.network import Batch
from fairsisa.models.text_tokenizers import end_of
from fairsisa.settings import CalibrationSettings, Step
from fairsisa.settings.steps import CALIBRATED


@dataclass(frozen=True)
class Places:
    """Where corpora are looked for: a folder of local data sets, if any, and where downloads are kept."""

    root: Path | None
    cache: Path


def compress_folder(
    model: str,
    out: Path,
    steps: tuple[Step, ...],
    *,
    calibration: CalibrationSettings,
    places: Places,
    revision: str | None = None,
) -> Card:
    """Compress a Hugging Face model, a folder or hub id, into another folder; return its card.

    Methods that need it are calibrated on blocks of `calibration.corpus`, drawn by its seed. An older folder at `out`
    is replaced. No deletion reaches a folder: its card names the digest of what it was made from.

    Raises:
        ConfigError: when a step does not fit the model's layers, or lacks a corpus to calibrate on.
        ModelError: when the model cannot be had or read.
        RunError: when `out` is the model's own folder.
    """
    folder = folder_of(model, revision)
    if out.resolve() == folder.resolve():
        raise RunError(f"Expected out to be another folder than the model's own, {folder}: nothing was written.")
    tokenizer, network = read_tokenizer(folder), load_model(folder)
    batches, digest = list[Batch](), None
    if any(step.method in CALIBRATED for step in steps):
        _require_fit(network, calibration)
        blocks, chosen = calibration_blocks(tokenizer, calibration, places)
        batches = [_batch(blocks, row) for row in chosen]
        digest = slice_digest([str(row) for row in chosen], [_digest_of_block(blocks, row) for row in chosen])
    made = compress(network, steps, batches, parents=(digest_of(folder),), calibration_digest=digest)
    save_compressed(made, out, tokenizer)
    return made.card


def calibration_blocks(
    tokenizer: Any, calibration: CalibrationSettings, places: Places
) -> tuple[Blocks, tuple[int, ...]]:
    """Return a corpus as blocks of tokens, and the numbers of those that were drawn, in the order of their draw.

    Raises:
        DataError: when it cannot be had, or is shorter than a block.
    """
    documents = find_text(str(calibration.corpus), root=places.root, cache=places.cache).documents
    blocks = encode_blocks(documents, tokenizer, length=calibration.block_length, end_id=end_of(tokenizer))
    whole = np.flatnonzero(blocks.lengths == calibration.block_length)
    if not len(whole):
        raise DataError(
            f"Expected {calibration.corpus} to fill a block of {calibration.block_length} tokens, got "
            f"{len(blocks.tokens)} tokens in all: set calibration.block_length lower, or name a longer text."
        )
    order = np.random.Generator(np.random.PCG64(calibration.seed)).permutation(whole)
    return blocks, tuple(int(row) for row in order[: calibration.num_examples])


def _require_fit(network: Any, calibration: CalibrationSettings) -> None:
    """Raise ConfigError unless a corpus is named, in blocks that the model can read."""
    if calibration.corpus is None:
        raise ConfigError("Set calibration.corpus to the text to calibrate on, such as wikitext2_validation or a path.")
    longest = getattr(network.config, "max_position_embeddings", None)
    if longest is not None and calibration.block_length > longest:
        raise ConfigError(
            f"Expected calibration.block_length of at most {longest}, which is all that the model reads at once, got "
            f"{calibration.block_length}."
        )


def _batch(blocks: Blocks, row: int) -> Batch:
    return {"tokens": torch.from_numpy(blocks.block_tokens(row).astype(np.int64))[None]}


def _digest_of_block(blocks: Blocks, row: int) -> str:
    return hashlib.sha256(blocks.block_tokens(row).astype("<i4").tobytes()).hexdigest()
