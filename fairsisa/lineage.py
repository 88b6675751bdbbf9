"""Names for whatever is made from data: one fingerprint over all that went into it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pandas as pd

HEXADECIMAL = re.compile(r"[0-9a-f]*")
SCALARS = {str, int, bool, type(None)}
KIND = re.compile(r"[a-z][a-z0-9_-]*")
TEXT_TAG, FEATURES_TAG, SLICE_TAG, SEED_TAG, NAME_TAG = (
    f"fairsisa {what} 1" for what in ("text", "features", "slice", "seed", "lineage")
)
NOTHING = "5f0b55a5f440c086e7412049fc9a2c5f3f08d131c0acb3abd31a593f3964d283"  # slice_digest((), ())


class ExampleTable(Protocol):
    """What a digest reads of an examples table; `fairsisa.tables.Examples` is one."""

    @property
    def frame(self) -> pd.DataFrame:
        """The rows; a table of texts has the column `text`."""

    @property
    def example_ids(self) -> list[str]:
        """The example ids, in row order."""

    @property
    def labels(self) -> np.ndarray:
        """Labels as integers, shape (num_examples,)."""

    @property
    def is_text(self) -> bool:
        """Whether a row's input is a text."""

    def features(self) -> np.ndarray:
        """Return float32 features, shape (num_examples, num_features)."""


def content_digest(content: str | np.ndarray, label: int) -> str:
    """Return the SHA-256 (hex) of one example as the trainer sees it: its text or float32 features, and its label.

    `content` is a text, or features of shape (num_features,). Sensitive features are no part: training sees none.
    """
    if isinstance(content, str):
        return next(_digests(TEXT_TAG, [_text_bytes(content)], np.asarray([label])))
    return next(_digests(FEATURES_TAG, _row_bytes(content[np.newaxis]), np.asarray([label])))


def example_digests(examples: ExampleTable) -> dict[str, str]:
    """Return the `content_digest` of every example, by example id, in row order."""
    if examples.is_text:
        found = _digests(TEXT_TAG, map(_text_bytes, examples.frame["text"].tolist()), examples.labels)
    else:
        found = _digests(FEATURES_TAG, _row_bytes(examples.features()), examples.labels)
    return dict(zip(examples.example_ids, found, strict=True))


def slice_digest(ids: Sequence[str], digests: Sequence[str]) -> str:
    """Return one SHA-256 (hex) over ordered pairs of example id and content digest, shape (num_examples,) each.

    Raises:
        ValueError: when the two differ in length, an id is no text or a digest is not 64 hexadecimal digits.
    """
    if len(ids) != len(digests):
        raise ValueError(f"Expected one content digest for each of {len(ids)} ids, got {len(digests)}.")
    _check_digests("content digests", digests)
    parts = (SLICE_TAG.encode(), _compact(_ids(ids)), "".join(digests).encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class Lineage:
    """What one artefact is made from; its name is a digest of all of it.

    `kind` is a word such as "checkpoint", "features" or "predictions". `parents` are the names of the artefacts it
    is made from. `examples` are the ids of the examples that enter here for the first time, in the order of use (an
    ancestor's ids are the ancestor's), and `contents` is their `slice_digest`. `inputs` are the SHA-256 digests of
    everything else that is read here: the digests of earlier slices, the base model's digest. `settings` are plain
    JSON values: all resolved settings, the seed and the version of the code; they are copied and frozen.
    Two lineages are equal when their names are.

    Raises:
        ValueError: naming the field, when a value is not of its form, when an id repeats, or when `examples` come
            without `contents`.
    """

    kind: str
    parents: tuple[str, ...]
    examples: tuple[str, ...]
    contents: str = NOTHING
    inputs: tuple[str, ...]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not KIND.fullmatch(self.kind):
            raise ValueError(f"Expected kind to be a lower-case word, got {self.kind!r}.")
        for field in ("parents", "examples", "inputs"):
            object.__setattr__(self, field, tuple(_ids(getattr(self, field), field)))
        object.__setattr__(self, "settings", _frozen(plain(self.settings, "settings")))
        _check_digests("parents", self.parents)
        _check_digests("inputs", self.inputs)
        _check_digests("contents", (self.contents,))
        self._check_examples()

    @cached_property
    def name(self) -> str:
        """The fingerprint: 64 hexadecimal digits."""
        return fingerprint(
            self.kind, self.parents, self.inputs, self.settings, examples=self.examples, contents=self.contents
        )

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, Lineage) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[partial[Lineage], tuple[()]]:
        fields = {field: getattr(self, field) for field in ("kind", "parents", "examples", "contents", "inputs")}
        return partial(Lineage, **fields, settings=plain(self.settings, "settings")), ()

    def _check_examples(self) -> None:
        if len(set(self.examples)) != len(self.examples):
            raise ValueError(f"Expected {len(self.examples)} different ids in examples, got one more than once.")
        if bool(self.examples) != (self.contents != NOTHING):
            raise ValueError(
                f"Expected contents to be the slice_digest of {len(self.examples)} examples, "
                f"got {'that of none' if self.contents == NOTHING else self.contents}."
            )


def fingerprint(
    kind: str,
    parents: Sequence[str],
    inputs: Sequence[str],
    settings: Mapping[str, object],
    *,
    examples: Sequence[str] = (),
    contents: str = NOTHING,
) -> str:
    """Return the SHA-256 (hex) of canonical JSON over the fields of a `Lineage`.

    Keys are sorted, so their order does not matter; the order of parents, inputs and examples does. An integer, a
    float and a truth value are never the same: 1, 1.0 and true differ.

    Raises:
        ValueError: naming the key, when `settings` hold something other than finite, plain JSON values.
    """
    fields = {
        "tag": NAME_TAG,
        "kind": kind,
        "parents": _ids(parents, "parents"),
        "inputs": _ids(inputs, "inputs"),
        "examples": _ids(examples, "examples"),
        "contents": contents,
        "settings": plain(settings, "settings"),
    }
    return hashlib.sha256(_compact(fields)).hexdigest()


def derive_seed(seed: int, *parts: str | int) -> int:
    """Return a seed in [0, 2**63) for one purpose, such as `derive_seed(seed, "slice", shard, slice)`.

    Raises:
        ValueError: when the seed or a part is something other than a Python int or str.
    """
    for part in (seed, *parts):
        if type(part) not in (int, str):
            raise ValueError(f"Expected a seed made from ints and strs, got {part!r} of type {type(part).__name__}.")
    digest = hashlib.sha256(_compact([SEED_TAG, seed, *parts])).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def canonical_json(value: object, where: str = "value") -> bytes:
    """Return the one JSON text (UTF-8, sorted keys) of a value; `where` names it in errors.

    Raises:
        ValueError: naming the key, when something in it is not finite, plain JSON.
    """
    return _compact(plain(value, where))


def plain(value: object, where: str) -> Any:
    """Return a private copy of a value as dict, list, str, int, float, bool or None; `where` names it in errors.

    Raises:
        ValueError: naming the key, when something in it is not finite, plain JSON.
    """
    if type(value) in SCALARS:
        return value
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise ValueError(f"Expected {where} to be finite, got {value!r}.")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"Expected the keys of {where} to be str, got {key!r}.")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        if set(map(type, value)) <= SCALARS:
            return list(value)
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"Expected {where} to be plain JSON, got {type(value).__name__}: convert it first.")


def _compact(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.end]
        raise ValueError(f"Expected valid Unicode, got a lone surrogate at the end of {around!r}.") from error


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _ids(values: Sequence[str], what: str = "ids") -> list[str]:
    if isinstance(values, str):
        raise ValueError(f"Expected {what} to be a sequence of str, got the single str {values!r}.")
    if set(map(type, values)) - {str}:
        culprit = next(value for value in values if type(value) is not str)
        raise ValueError(f"Expected {what} to be str, got {culprit!r} of type {type(culprit).__name__}.")
    return list(values)


def _check_digests(what: str, values: Sequence[str]) -> None:
    if set(map(len, _ids(values, what))) <= {64} and HEXADECIMAL.fullmatch("".join(values)):
        return
    culprit = next(value for value in values if len(value) != 64 or not HEXADECIMAL.fullmatch(value))
    raise ValueError(f"Expected {what} to be 64 hexadecimal digits, got {culprit!r}: hash it, or use settings.")


def _text_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _row_bytes(features: np.ndarray) -> Iterator[bytes]:
    return (row.tobytes() for row in features.astype("<f4"))


def _digests(tag: str, contents: Iterable[bytes], labels: np.ndarray) -> Iterator[str]:
    start = hashlib.sha256(tag.encode() + b"\0")
    for label, content in zip(labels.tolist(), contents, strict=True):
        state = start.copy()
        state.update(label.to_bytes(8, "little", signed=True))
        state.update(content)
        yield state.hexdigest()
