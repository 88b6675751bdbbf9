"""From probabilities of deciding to decisions: one uniform per example, always the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fairsisa.fairness.derived.solution import WHOLE
from fairsisa.fairness.strategies.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Derived:
    """What a post-processor makes of each example.

    `probabilities` holds P(D=c), float64, shape (num_examples, C); `original` the class index of the unprocessed
    decision and `backed_off` whether the example's state was unknown, so that a coarser one decided, both of shape
    (num_examples,).
    """

    probabilities: np.ndarray
    original: np.ndarray
    backed_off: np.ndarray

    @cached_property
    def randomised(self) -> np.ndarray:
        """Whether the decision is left to chance, bool, shape (num_examples,)."""
        return ~certain(self.probabilities)

    @cached_property
    def override_probability(self) -> np.ndarray:
        """The probability that the decision differs from the unprocessed one, shape (num_examples,)."""
        return np.asarray(1.0 - np.take_along_axis(self.probabilities, self.original[:, None], axis=1)[:, 0])


def certain(probabilities: np.ndarray) -> np.ndarray:
    """Return whether nothing is left to chance, bool, shape (n,); `probabilities` have shape (n, C)."""
    if probabilities.shape[1] == 2:
        second = probabilities[:, 1]
        return np.asarray((second <= WHOLE) | (second >= 1.0 - WHOLE))
    return np.asarray(probabilities.max(axis=1) >= 1.0 - WHOLE)


def keyed_uniforms(ids: Iterable[bytes], seed: int) -> np.ndarray:
    """Return one number in [0, 1) per id, float64: the keyed BLAKE2b hash of the id, the key derived from `seed`.

    The same id and seed give the same number, in any order, batch or process; over ids the numbers are uniform.
    """
    key = hashlib.blake2b(f"fairsisa decisions {int(seed)}".encode()).digest()
    start = hashlib.blake2b(key=key, digest_size=8)
    digests = bytearray()
    for each in ids:
        hashed = start.copy()
        hashed.update(each)
        digests += hashed.digest()
    return np.asarray((np.frombuffer(bytes(digests), dtype="<u8") >> np.uint64(11)) * 2.0**-53)


def identities(inputs: Inputs, groups: np.ndarray, names: Sequence[str]) -> Iterator[bytes]:
    """Yield what tells each row from others: its id, or else its content and the name of its group."""
    if inputs.example_ids is not None:
        yield from (str(each).encode() for each in inputs.example_ids)
        return
    content = inputs.values if inputs.content is None else inputs.content
    for group, row in zip(groups, content, strict=True):
        yield names[group].encode() + b"\0" + _bytes(row)


def decide(probabilities: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Return the class that a uniform falls on, int64, shape (n,); `probabilities` (n, C) are laid end to end.

    Where nothing is left to chance the uniform is not looked at.
    """
    if probabilities.shape[1] == 2:
        first = probabilities[:, 0]
        drawn: np.ndarray = np.asarray(uniforms >= first, dtype=np.int64)
        drawn[first <= WHOLE] = 1
        drawn[first >= 1.0 - WHOLE] = 0
        return drawn
    ends = np.cumsum(probabilities[:, :-1], axis=1)
    drawn = np.sum(uniforms[:, None] >= ends, axis=1)
    return np.where(certain(probabilities), probabilities.argmax(axis=1), drawn)


def rounded(probabilities: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Return the likeliest decision as certain, shape (n, C); a tie goes to the original decision where it is in it.

    Other ties go to the lower class.
    """
    likeliest = probabilities.max(axis=1, keepdims=True)
    tied = probabilities >= likeliest - WHOLE
    chosen = np.where(tied[np.arange(len(original)), original], original, tied.argmax(axis=1))
    return one_hot(chosen, probabilities.shape[1])


def one_hot(decisions: np.ndarray, num_classes: int) -> np.ndarray:
    """Return class indices as certain probabilities, float64, shape (n, C)."""
    probabilities = np.zeros((len(decisions), num_classes))
    probabilities[np.arange(len(decisions)), decisions] = 1.0
    return probabilities


def _bytes(row: object) -> bytes:
    """Return a row's content in a form that does not depend on the width of its numbers."""
    values = np.asarray(row.tolist() if isinstance(row, np.ndarray) else row)
    return values.astype("<f8").tobytes() if values.dtype.kind in "biuf" else repr(values.tolist()).encode()
