"""Answers: what a model said to items, as kept in a store and as judged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from fairsisa.errors import DataError

ANSWERS = ("item_id", "option", "value", "num_tokens", "text", "reason")
TEXTS = ("item_id", "text", "reason")


@dataclass(frozen=True)
class Answer:
    """What a model said to one option of one item.

    `option` is the option's place, the number of a continuation, or a class; -1 is what no option covers. `value` is a
    log-likelihood in nats, a log-probability or a probability, as the readout says, NaN where there is none, and then
    `reason` says why. `num_tokens` is how many tokens the value sums over, `text` what was written.
    """

    item_id: str
    option: int
    value: float
    num_tokens: int = 0
    text: str = ""
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said to some items: `frame` has the columns `ANSWERS`, a row an answer.

    `vectors`, float32 of shape (num_rows, width), holds embeddings where a readout gives them.

    Raises:
        DataError: when a column is missing or the vectors do not fit the rows.
    """

    frame: pd.DataFrame
    vectors: np.ndarray | None = None

    def __post_init__(self) -> None:
        missing = [name for name in ANSWERS if name not in self.frame.columns]
        if missing:
            raise DataError(f"Expected answers with columns {', '.join(ANSWERS)}; {', '.join(missing)} not found.")
        if self.vectors is not None and len(self.vectors) != len(self.frame):
            raise DataError(f"Expected a vector for each of {len(self.frame)} answers, got {len(self.vectors)}.")

    def __len__(self) -> int:
        return len(self.frame)


def answers_of(rows: Iterable[Answer], vectors: np.ndarray | None = None) -> Answers:
    """Return answers as a table."""
    return Answers(pd.DataFrame([vars(row) for row in rows], columns=list(ANSWERS)), vectors)


def joined(parts: Sequence[Answers]) -> Answers:
    """Return the answers of several parts as one, in their order."""
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    with_vectors = [part.vectors for part in parts if part.vectors is not None]
    return Answers(frame, np.concatenate(with_vectors) if with_vectors else None)


def to_tensors(answers: Answers) -> dict[str, torch.Tensor]:
    """Return answers as tensors, which a store keeps; `from_tensors` gives back the same."""
    frame = answers.frame
    texts = {name: frame[name].tolist() for name in TEXTS}
    tensors = {
        "option": torch.from_numpy(frame["option"].to_numpy(dtype=np.int64).copy()),
        "value": torch.from_numpy(frame["value"].to_numpy(dtype=np.float64).copy()),
        "num_tokens": torch.from_numpy(frame["num_tokens"].to_numpy(dtype=np.int64).copy()),
        "texts": torch.from_numpy(np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8).copy()),
    }
    if answers.vectors is not None:
        tensors["vectors"] = torch.from_numpy(np.ascontiguousarray(answers.vectors, dtype=np.float32))
    return tensors


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> Answers:
    """Return the answers that `to_tensors` made into tensors."""
    columns = json.loads(tensors["texts"].numpy().tobytes())
    columns |= {name: tensors[name].numpy() for name in ("option", "value", "num_tokens")}
    vectors = tensors["vectors"].numpy() if "vectors" in tensors else None
    return Answers(pd.DataFrame(columns, columns=list(ANSWERS)), vectors)
