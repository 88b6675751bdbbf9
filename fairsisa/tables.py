"""The tables that travel between rooms: their columns, and the checks at the door."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fairsisa.errors import DataError

TRAIN, CALIBRATION, TEST = "train", "calibration", "test"
SPLITS = (TRAIN, CALIBRATION, TEST)
FEATURE, SENSITIVE = "feature:", "sensitive:"
REQUIRED = ("example_id", "subject_id", "label", "split")


@dataclass(frozen=True)
class Examples:
    """One corpus as a table: a row an example, checked once when it is made.

    `frame` has the columns `example_id` (str, unique), `subject_id` (str), `label` (int64, an index into
    `classes`), `split` (train, calibration or test); then either `text` (str) or numeric columns
    `feature:<name>` (float32); any number of `sensitive:<name>` columns (str, or None where unknown); and,
    where known, `risk` (float64 in [0, 1], the probability that the example's deletion is asked for).
    For two classes, the second is the positive one.

    Raises:
        DataError: naming the column, the number of bad rows and one example id.
    """

    name: str
    frame: pd.DataFrame
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_examples(self.name, self.frame, self.classes)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def is_text(self) -> bool:
        """Whether a row's input is a text rather than numeric features."""
        return "text" in self.frame.columns

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the numeric features, without prefix; empty for text."""
        return _suffixes(self.frame.columns, FEATURE)

    @property
    def sensitive_names(self) -> tuple[str, ...]:
        """Names of the sensitive features, without prefix."""
        return _suffixes(self.frame.columns, SENSITIVE)

    @property
    def example_ids(self) -> list[str]:
        """The example ids, in row order."""
        return self.frame["example_id"].tolist()

    @property
    def labels(self) -> np.ndarray:
        """Labels as int64, shape (num_examples,)."""
        return self.frame["label"].to_numpy(dtype=np.int64)

    def features(self) -> np.ndarray:
        """Return the numeric features as float32, shape (num_examples, num_features)."""
        columns = [FEATURE + name for name in self.feature_names]
        return np.ascontiguousarray(self.frame[columns].to_numpy(dtype=np.float32))

    def sensitive(self, name: str) -> np.ndarray:
        """Return one sensitive feature as objects (str, or None where unknown), shape (num_examples,)."""
        if name not in self.sensitive_names:
            known = ", ".join(self.sensitive_names) or "none"
            raise DataError(f"Expected a sensitive feature of {self.name!r} ({known}), got {name!r}.")
        column = self.frame[SENSITIVE + name].astype(object)
        values: np.ndarray = column.where(column.notna(), None).to_numpy(dtype=object)
        return values

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of one split, in table order."""
        if name not in SPLITS:
            raise DataError(f"Expected a split of {', '.join(SPLITS)}, got {name!r}.")
        return self.frame[self.frame["split"] == name]

    def keep(self, mask: np.ndarray) -> Examples:
        """Return the rows where `mask`, shape (num_examples,), is true."""
        return Examples(self.name, self.frame[mask].reset_index(drop=True), self.classes)


@dataclass(frozen=True)
class Predictions:
    """What each constituent says of each example.

    `scores` holds class probabilities as float32, shape (num_examples, num_constituents, num_classes), rows in
    the order of `example_ids`.
    """

    example_ids: tuple[str, ...]
    constituents: tuple[str, ...]
    scores: np.ndarray

    def __post_init__(self) -> None:
        expected = (len(self.example_ids), len(self.constituents))
        if self.scores.ndim != 3 or self.scores.shape[:2] != expected:
            raise DataError(f"Expected scores of shape {(*expected, 'classes')}, got {self.scores.shape}.")
        if not np.isfinite(self.scores).all():
            row = int(np.argwhere(~np.isfinite(self.scores))[0][0])
            raise DataError(f"Scores hold NaN or infinity, first for example {self.example_ids[row]!r}.")

    @property
    def votes(self) -> np.ndarray:
        """The class each constituent scores highest, int64, shape (num_examples, num_constituents)."""
        return np.asarray(self.scores.argmax(axis=2), dtype=np.int64)

    def frame(self) -> pd.DataFrame:
        """Return the long table: example_id, constituent, vote, score:<class index>."""
        rows, members, num_classes = self.scores.shape
        flat = self.scores.reshape(rows * members, num_classes)
        columns = {
            "example_id": np.repeat(np.asarray(self.example_ids, dtype=object), members),
            "constituent": np.tile(np.asarray(self.constituents, dtype=object), rows),
            "vote": self.votes.reshape(-1),
        }
        return pd.DataFrame(columns | {f"score:{c}": flat[:, c] for c in range(num_classes)})


def check_examples(name: str, frame: pd.DataFrame, classes: Sequence[str]) -> None:
    """Raise DataError unless `frame` is an examples table; the message names rows and an example id."""
    missing = [column for column in REQUIRED if column not in frame.columns]
    if missing:
        raise DataError(f"{name}: expected columns {', '.join(REQUIRED)}; {', '.join(missing)} not found.")
    _check_ids(name, frame)
    _check_labels(name, frame, classes)
    bad = ~frame["split"].isin(SPLITS)
    _refuse(name, frame, bad, f"have a split other than {', '.join(SPLITS)}")
    _check_inputs(name, frame)
    _check_sensitive(name, frame)


def require_trainable(examples: Examples) -> Examples:
    """Return `examples`; a corpus must begin with two classes, though deletions may leave fewer, or no row at all.

    Raises:
        DataError: when the train split holds fewer than two classes.
    """
    train = examples.labels[(examples.frame["split"] == TRAIN).to_numpy()]
    if len(np.unique(train)) < 2:
        found = f"only {examples.classes[int(train[0])]!r}" if len(train) else "no row"
        raise DataError(
            f"{examples.name}: expected two classes or more in the train split, got {found} ({len(train)} rows)."
        )
    return examples


def write_examples(examples: Examples, path: Path) -> None:
    """Write the table to a Parquet file, classes and name in its metadata."""
    table = pa.Table.from_pandas(examples.frame, preserve_index=False)
    header = {b"fairsisa": json.dumps({"name": examples.name, "classes": examples.classes}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **header}), partial)
    partial.replace(path)


def read_examples(path: Path) -> Examples:
    """Read a table that `write_examples` wrote.

    Raises:
        DataError: when the file is missing or was not written by fairsisa.
    """
    if not path.is_file():
        raise DataError(f"Expected an examples table at {path}; no such file.")
    table = pq.read_table(path)
    header = (table.schema.metadata or {}).get(b"fairsisa")
    if header is None:
        raise DataError(f"{path} is not an examples table of fairsisa: map its columns with data=own.")
    meta = json.loads(header)
    return Examples(meta["name"], table.to_pandas(), tuple(meta["classes"]))


def _suffixes(columns: Iterable[str], prefix: str) -> tuple[str, ...]:
    return tuple(column.removeprefix(prefix) for column in columns if column.startswith(prefix))


def _refuse(name: str, frame: pd.DataFrame, bad: pd.Series | np.ndarray, what: str) -> None:
    mask = np.asarray(bad, dtype=bool)
    if mask.any():
        first = frame["example_id"].iloc[int(mask.argmax())]
        raise DataError(f"{name}: {int(mask.sum())} of {len(frame)} rows {what}; the first is example {first!r}.")


def _check_ids(name: str, frame: pd.DataFrame) -> None:
    for column in ("example_id", "subject_id"):
        bad = frame[column].map(lambda value: not isinstance(value, str) or not value)
        _refuse(name, frame, bad, f"have no {column}, or one that is not text")
    _refuse(name, frame, frame["example_id"].duplicated(), "repeat the example_id of an earlier row")


def _check_labels(name: str, frame: pd.DataFrame, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(f"{name}: expected at least two classes, got {list(classes)}; nothing can be learnt.")
    _refuse(name, frame, frame["label"].isna(), "have no label")
    bad = ~frame["label"].isin(range(len(classes)))
    _refuse(name, frame, bad, f"have a label outside 0..{len(classes) - 1}")


def _check_inputs(name: str, frame: pd.DataFrame) -> None:
    features = [column for column in frame.columns if column.startswith(FEATURE)]
    if ("text" in frame.columns) == bool(features):
        raise DataError(
            f"{name}: expected either a text column or feature columns, got {len(features)} features"
            f"{' and a text' if 'text' in frame.columns else ' and no text'}."
        )
    if not features:
        bad = frame["text"].map(lambda value: not isinstance(value, str) or not value.strip())
        _refuse(name, frame, bad, "have an empty text")
    for column in features:
        values = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64)
        _refuse(name, frame, ~np.isfinite(values), f"have no finite number in {column!r}")


def _check_sensitive(name: str, frame: pd.DataFrame) -> None:
    for column in frame.columns:
        if column.startswith(SENSITIVE):
            is_text = [isinstance(value, str) for value in frame[column]]
            bad = frame[column].notna().to_numpy() & ~np.asarray(is_text, dtype=bool)
            _refuse(name, frame, bad, f"hold something other than text in {column!r}")
    if "risk" in frame.columns:
        risk = pd.to_numeric(frame["risk"], errors="coerce")
        _refuse(name, frame, ~risk.between(0.0, 1.0), "have a risk outside [0, 1]")
