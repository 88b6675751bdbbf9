"""Token blocks of one length, cut from the documents of a text corpus."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fairsisa.data.batches import training_batches
from fairsisa.errors import DataError
from fairsisa.lineage import derive_seed

END_OF_TEXT = "<|endoftext|>"
NO_TARGET = -100
"""The target of a position that is not scored, as in PyTorch's cross-entropy."""
MASKED, RANDOM = 0.8, 0.1
"""Of the chosen tokens, the shares that become the mask or a random token; the others stay as they are."""


class PlainTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that blocks need."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]:
        """Return token ids under the key `input_ids`."""
        ...


@dataclass(frozen=True)
class Document:
    """One text of a corpus, known by its id."""

    document_id: str
    text: str


@dataclass(frozen=True, eq=False)
class Blocks:
    """Documents end to end, each followed by the end-of-text token, cut every `length` tokens.

    `tokens` is int32, shape (num_tokens,); document d is `tokens[offsets[d] : offsets[d + 1]]`, its end token
    included, so `offsets` is int64, shape (num_documents + 1,). The last block may be shorter. Where a document
    starts depends on all before it: without one document, later blocks are cut elsewhere, so that whoever forgets a
    document cuts the blocks anew.
    """

    document_ids: tuple[str, ...]
    offsets: np.ndarray
    tokens: np.ndarray
    length: int

    def __len__(self) -> int:
        return math.ceil(len(self.tokens) / self.length)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each block; int64, shape (num_blocks,)."""
        starts = np.arange(len(self), dtype=np.int64) * self.length
        return np.minimum(len(self.tokens) - starts, self.length)

    def block_tokens(self, block: int) -> np.ndarray:
        """Return the token ids of one block, int32, shape (its length,)."""
        return self.tokens[block * self.length : (block + 1) * self.length]

    def block_documents(self, block: int) -> tuple[str, ...]:
        """Return the ids of the documents of which the block holds a token (the end token is the document's own)."""
        start, stop = block * self.length, min((block + 1) * self.length, len(self.tokens))
        first = int(np.searchsorted(self.offsets, start, side="right")) - 1
        last = int(np.searchsorted(self.offsets, stop, side="left"))
        return self.document_ids[first:last]


@dataclass(frozen=True)
class Masking:
    """Which tokens a masked language model must guess (Devlin et al., NAACL 2019, section 3.1).

    Of a block's tokens that are not in `special_ids`, `share` are chosen (rounded, at least one); of these 80 %
    become `mask_id`, 10 % a uniformly drawn id below `vocab_size`, 10 % stay. A pure function of (`seed`, block,
    epoch).
    """

    mask_id: int
    vocab_size: int
    special_ids: frozenset[int]
    seed: int
    share: float = 0.15

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"Expected a share of tokens to mask above 0 and at most 1, got {self.share}.")
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(f"Expected mask_id below vocab_size={self.vocab_size}, got {self.mask_id}.")


def read_documents(
    path: Path, *, name: str, separator: str = END_OF_TEXT, keep_last: bool = True
) -> tuple[Document, ...]:
    """Return the documents of a UTF-8 text file (or the same as `.gz`), in file order, without blanks at their ends.

    A document's id is `<name>-<position in the file>`; empty documents are left out and keep their number. With
    `keep_last` False the last piece is dropped: that of a file which was cut off.

    Raises:
        DataError: when the file cannot be read, is not UTF-8 or holds no document.
    """
    if not separator:
        raise ValueError("Expected a separator of at least one character, got ''.")
    pieces = _content(path).split(separator.encode())
    pieces = pieces if keep_last else pieces[:-1]
    try:
        texts = [piece.decode("utf-8").strip() for piece in pieces]
    except UnicodeDecodeError as error:
        cure = "Convert the file; if it was cut off inside a character, read it with keep_last=False."
        raise DataError(f"Expected {path} to be UTF-8: {error.reason}. {cure}") from error
    documents = tuple(Document(f"{name}-{number}", text) for number, text in enumerate(texts) if text)
    if not documents:
        raise DataError(f"Expected documents separated by {separator!r} in {path}, found none.")
    return documents


def encode_blocks(documents: Sequence[Document], tokenizer: PlainTokenizer, *, length: int, end_id: int) -> Blocks:
    """Return the documents as blocks of `length` tokens; each text is tokenised once, without special tokens.

    Raises:
        DataError: as `pack_blocks` does.
    """
    rows = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    return pack_blocks([document.document_id for document in documents], rows, length=length, end_id=end_id)


def pack_blocks(
    document_ids: Sequence[str], rows: Sequence[Sequence[int] | np.ndarray], *, length: int, end_id: int
) -> Blocks:
    """Return tokenised documents as blocks, in the order given; `rows` holds one sequence of token ids a document.

    Raises:
        DataError: when there is no document, an id repeats, or a document has no token or holds the end token.
    """
    if length < 2:
        raise ValueError(f"Expected blocks of at least 2 tokens, got length={length}.")
    if len(document_ids) != len(rows):
        raise ValueError(f"Expected one row of tokens for each of {len(document_ids)} documents, got {len(rows)}.")
    _require_distinct(document_ids)
    pieces = [np.asarray(row, dtype=np.int32) for row in rows]
    _require_packable(pieces, end_id)
    sizes = [len(piece) + 1 for piece in pieces]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    tokens = np.full(offsets[-1], end_id, dtype=np.int32)
    for start, piece in zip(offsets, pieces, strict=False):
        tokens[start : start + len(piece)] = piece
    return Blocks(tuple(document_ids), offsets, tokens, length)


def plan_batches(blocks: Blocks, *, num_steps: int, batch_size: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """Return the epoch and the block numbers of each of `num_steps` batches; a pure function of its arguments.

    Epochs follow one another, each a permutation of all blocks from (seed, epoch), as in `training_batches`.
    """
    if num_steps < 0 or batch_size < 1:
        raise ValueError(f"Expected num_steps >= 0 and batch_size >= 1, got {num_steps} and {batch_size}.")
    per_epoch = -(-len(blocks) // batch_size)
    num_epochs = -(-num_steps // per_epoch)
    batches = training_batches(blocks.lengths, num_epochs * len(blocks), batch_size=batch_size, seed=seed)
    return [(step // per_epoch, rows) for step, rows in enumerate(batches[:num_steps])]


def mask_block(blocks: Blocks, block: int, masking: Masking, *, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what a masked language model reads of a block, and the true ids where it must guess, else `NO_TARGET`.

    Both are int64, shape (its length,). A block of special tokens only has nothing to guess.
    """
    tokens = blocks.block_tokens(block).astype(np.int64)
    targets = np.full_like(tokens, NO_TARGET)
    ordinary = np.flatnonzero(~np.isin(tokens, list(masking.special_ids)))
    if not len(ordinary):
        return tokens, targets
    generator = np.random.Generator(np.random.PCG64(derive_seed(masking.seed, "mask", int(epoch), int(block))))
    chosen = generator.permutation(ordinary)[: max(1, round(masking.share * len(ordinary)))]
    draws = generator.random(len(chosen))
    words = generator.integers(masking.vocab_size, size=len(chosen))
    targets[chosen] = tokens[chosen]
    tokens[chosen[draws < MASKED]] = masking.mask_id
    replaced = (draws >= MASKED) & (draws < MASKED + RANDOM)
    tokens[chosen[replaced]] = words[replaced]
    return tokens, targets


def _content(path: Path) -> bytes:
    try:
        stored = path.read_bytes()
        return gzip.decompress(stored) if path.suffix == ".gz" else stored
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"Cannot read documents from {path}: {error}. Check the path, or copy the file anew."
        ) from error


def _require_distinct(document_ids: Sequence[str]) -> None:
    if not document_ids:
        raise DataError("Expected at least one document, got none.")
    repeated = len(document_ids) - len(set(document_ids))
    if repeated:
        raise DataError(f"Expected every document to have its own id, got {repeated} repeated ids; rename them.")


def _require_packable(pieces: Sequence[np.ndarray], end_id: int) -> None:
    for number, piece in enumerate(pieces):
        if not len(piece):
            raise DataError(f"Document number {number} becomes no token at all; leave it out.")
        if (piece == end_id).any():
            cure = "take the end-of-text mark out of the text, or split the document there"
            raise DataError(f"Document number {number} holds the end-of-text token {end_id} itself; {cure}.")
