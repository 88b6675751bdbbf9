"""What a teacher says at each token of a corpus, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fairsisa.data.corpus_blocks import NO_TARGET, Blocks, Masking
from fairsisa.errors import ConfigError, DataError
from fairsisa.models.base import is_bidirectional
from fairsisa.models.language import collate_blocks, require_fit
from fairsisa.models.network import Batch
from fairsisa.settings import one_of
from fairsisa.store.durable import PARTIAL, explained, make_folder, publish

OFFSETS, ROWS, CORPUS, EPOCHS = "offsets", "log_probabilities", "corpus", "num_epochs"
FORMATS = {"float16": ("F16", torch.float16), "float32": ("F32", torch.float32)}
MAX_BYTES = 8 * 2**30


class StoredLogits:
    """A handle on a file that `store_logits` wrote; only what is asked for is read.

    Raises:
        DataError: when the file is missing or is none of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file: Any = safe_open(path, framework="pt")  # maps the file into memory
            self._offsets = file.get_tensor(OFFSETS).tolist()
            self._rows = file.get_slice(ROWS)
            self._corpus = file.metadata()[CORPUS]
            self.num_epochs = int(file.metadata()[EPOCHS])
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise DataError(f"{path} holds no stored teacher ({error}); store it anew.") from error

    def log_probabilities(self, epoch: int, block: int) -> torch.Tensor:
        """Return the teacher's log-probabilities at the targets of one block, fp32, shape (num_targets, vocabulary)."""
        place = epoch % self.num_epochs * ((len(self._offsets) - 1) // self.num_epochs) + block
        rows: torch.Tensor = self._rows[self._offsets[place] : self._offsets[place + 1]]
        return rows.float()

    def require(self, blocks: Blocks, masking: Masking | None, num_epochs: int) -> None:
        """Raise ConfigError unless this is of the same blocks and masking, and of so many epochs of masks."""
        if self._corpus != _digest(blocks, masking):
            raise ConfigError(f"{self.path} is of other blocks, or of another masking; store the teacher anew.")
        if masking is not None and num_epochs > self.num_epochs:
            raise ConfigError(
                f"{self.path} holds the masks of {self.num_epochs} epochs, but training takes {num_epochs}: "
                f"store the teacher with num_epochs={num_epochs}."
            )


def store_logits(
    path: Path,
    teacher: nn.Module,
    blocks: Blocks,
    *,
    batch_size: int,
    masking: Masking | None = None,
    num_epochs: int = 1,
    kept_as: str = "float16",
    max_bytes: int = MAX_BYTES,
) -> StoredLogits:
    """Write the log-probabilities of a teacher at every target of `blocks` into a file of safetensors.

    Causal models have a target at each token but a block's last, the same in every epoch; masked models where `masking`
    hides a token, which differs by epoch, so that `num_epochs` of them are kept. `kept_as` is "float16" or "float32".
    The teacher is put into evaluation mode, and runs on its own device. One batch of logits is held at a time, and
    the file appears under its name only when it is whole.

    Raises:
        ConfigError: when blocks or masking do not fit the teacher, or the file would exceed `max_bytes`.
        StoreError: when it cannot be written.
    """
    one_of("kept_as", kept_as, FORMATS)
    require_fit(teacher, blocks, masking)
    teacher.eval()
    code, dtype = FORMATS[kept_as]
    epochs = num_epochs if masking is not None else 1
    counts = [_num_targets(blocks, row, masking, epoch) for epoch in range(epochs) for row in range(len(blocks))]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")
    vocabulary = _log_probabilities(teacher, collate_blocks(blocks, np.array([0]), masking=masking)).shape[1]
    num_bytes = int(offsets[-1]) * vocabulary * dtype.itemsize
    if num_bytes > max_bytes:
        raise ConfigError(
            f"What the teacher says takes {num_bytes} bytes ({offsets[-1]} targets of {vocabulary} tokens), more than "
            f"max_bytes={max_bytes}: give the teacher itself, which then runs beside the student "
            "(teacher_outputs=live); or use fewer blocks, kept_as=float16, or a higher max_bytes."
        )
    notes = {CORPUS: _digest(blocks, masking), EPOCHS: str(epochs)}
    with _appearing(path) as file:
        file.write(_header(offsets, (code, vocabulary, num_bytes), notes) + offsets.tobytes())
        for batch in _batches(blocks, masking, epochs, batch_size):
            file.write(_log_probabilities(teacher, batch).to(dtype).numpy().tobytes())
    return StoredLogits(path)


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that has its name only when it is whole and on the disk."""
    hidden = path.with_name(f".{path.name}{PARTIAL}")
    with explained(f"store what a teacher says in {path}"):
        make_folder(path.parent)
        try:
            with hidden.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            publish(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)


@torch.inference_mode()
def _log_probabilities(teacher: nn.Module, batch: Batch) -> torch.Tensor:
    """Return what a teacher says at the targets of a batch, fp32, row after row."""
    device = next(teacher.parameters()).device
    tokens, mask = (None if value is None else value.to(device) for value in (batch["tokens"], batch.get("mask")))
    options = {} if is_bidirectional(teacher) else {"use_cache": False}
    logits = teacher(input_ids=tokens, attention_mask=mask, **options).logits
    return torch.log_softmax(logits[(batch["targets"] != NO_TARGET).to(device)].float(), dim=-1).cpu()


def _batches(blocks: Blocks, masking: Masking | None, num_epochs: int, batch_size: int) -> Iterator[Batch]:
    for epoch in range(num_epochs):
        for start in range(0, len(blocks), batch_size):
            rows = np.arange(start, min(start + batch_size, len(blocks)))
            yield collate_blocks(blocks, rows, masking=masking, epoch=epoch)


def _num_targets(blocks: Blocks, row: int, masking: Masking | None, epoch: int) -> int:
    targets = collate_blocks(blocks, np.array([row]), masking=masking, epoch=epoch)["targets"]
    return int((targets != NO_TARGET).sum())


def _header(offsets: np.ndarray, rows: tuple[str, int, int], notes: dict[str, str]) -> bytes:
    """Return how a file of safetensors begins that is written piece by piece: its library writes whole tensors."""
    code, vocabulary, num_bytes = rows
    start = offsets.nbytes
    described = {
        "__metadata__": notes,
        OFFSETS: {"dtype": "I64", "shape": [len(offsets)], "data_offsets": [0, start]},
        ROWS: {"dtype": code, "shape": [int(offsets[-1]), vocabulary], "data_offsets": [start, start + num_bytes]},
    }
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(blocks: Blocks, masking: Masking | None) -> str:
    hidden = None
    if masking is not None:
        special = sorted(masking.special_ids)
        hidden = [masking.mask_id, masking.vocab_size, special, masking.seed, masking.share]
    total = hashlib.sha256(json.dumps([blocks.length, hidden]).encode())
    total.update(blocks.tokens.astype("<i4").tobytes())
    return total.hexdigest()
