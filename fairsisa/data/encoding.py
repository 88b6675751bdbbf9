"""What a network reads of the examples: ragged token ids, or a matrix of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from fairsisa.errors import DataError
from fairsisa.lineage import example_digests
from fairsisa.tables import Examples


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that encoding needs."""

    def __call__(
        self, text: list[str], *, truncation: bool, max_length: int, padding: bool
    ) -> dict[str, list[list[int]]]:
        """Return token ids under the key `input_ids`."""
        ...


@dataclass(frozen=True)
class Inputs:
    """Examples as arrays, in the order of `example_ids`; `contents` holds each one's content digest.

    Either `tokens` (int32, all rows end to end) with `offsets` (int64, shape (num_examples + 1,)), or `features`
    (float32, shape (num_examples, num_features)). `labels` is int64, shape (num_examples,). `targets`, what a teacher
    says of each example, is float32, shape (num_examples, num_classes), or None.
    """

    example_ids: tuple[str, ...]
    contents: tuple[str, ...]
    labels: np.ndarray
    tokens: np.ndarray | None = None
    offsets: np.ndarray | None = None
    features: np.ndarray | None = None
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, or 1 for features; int64, shape (num_examples,)."""
        if self.offsets is None:
            return np.ones(len(self), dtype=np.int64)
        return np.diff(self.offsets)

    def row_tokens(self, row: int) -> np.ndarray:
        """Return the token ids of one row."""
        if self.tokens is None or self.offsets is None:
            raise DataError("Expected inputs that hold tokens, got features.")
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: Sequence[int] | np.ndarray) -> Inputs:
        """Return the given rows, in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        ids = tuple(self.example_ids[row] for row in rows)
        contents = tuple(self.contents[row] for row in rows)
        targets = None if self.targets is None else self.targets[rows]
        if self.features is not None:
            return Inputs(ids, contents, self.labels[rows], features=self.features[rows], targets=targets)
        pieces = [self.row_tokens(row) for row in rows]
        tokens = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
        offsets = _offsets([len(piece) for piece in pieces])
        return Inputs(ids, contents, self.labels[rows], tokens, offsets, targets=targets)

    def with_features(self, features: np.ndarray) -> Inputs:
        """Return the same examples with `features`, shape (num_examples, num_features), in place of tokens."""
        features = np.ascontiguousarray(features, dtype=np.float32)
        return replace(self, tokens=None, offsets=None, features=features)

    def with_targets(self, targets: np.ndarray) -> Inputs:
        """Return the same examples with what a teacher says of each, shape (num_examples, num_classes).

        Raises:
            DataError: when `targets` are not one row of finite numbers an example.
        """
        targets = np.ascontiguousarray(targets, dtype=np.float32)
        if targets.ndim != 2 or len(targets) != len(self) or not np.isfinite(targets).all():
            raise DataError(
                f"Expected a row of finite targets for each of {len(self)} examples, got shape {targets.shape}"
                f"{'' if np.isfinite(targets).all() else ' with NaN or infinity'}: score the same examples anew."
            )
        return replace(self, targets=targets)


def encode_examples(examples: Examples, tokenizer: Tokenizer | None, max_length: int) -> Inputs:
    """Return every row of `examples` as arrays, in table order; each text is tokenised once, here.

    Raises:
        DataError: for a text corpus without a tokenizer, or a text that becomes no token.
    """
    contents = example_digests(examples)
    ids, labels = tuple(contents), examples.labels
    if not examples.is_text:
        return Inputs(ids, tuple(contents.values()), labels, features=examples.features())
    if tokenizer is None:
        raise DataError(f"{examples.name} holds texts: choose a text model, e.g. model=minilm.")
    texts = examples.frame["text"].tolist()
    rows = tokenizer(texts, truncation=True, max_length=max_length, padding=False)["input_ids"]
    empty = [example for example, row in zip(ids, rows, strict=True) if not row]
    if empty:
        raise DataError(f"{len(empty)} texts become no token at all; the first is example {empty[0]!r}.")
    tokens = np.fromiter((token for row in rows for token in row), dtype=np.int32)
    return Inputs(ids, tuple(contents.values()), labels, tokens, _offsets([len(row) for row in rows]))


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
