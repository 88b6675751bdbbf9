"""Load the user's own table by a mapping of its columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.data.columns import (
    cell_text,
    cut_into_bands,
    hashed_one_hot,
    keyed_splits,
    numbers,
    numeric_feature,
    one_hot,
    refuse,
)
from fairsisa.data.own_columns import OwnColumns, parse_columns
from fairsisa.data.own_files import read_columns
from fairsisa.errors import DataError
from fairsisa.tables import CALIBRATION, FEATURE, SENSITIVE, TEST, TRAIN, Examples

MISSING = "(missing)"
SPLIT_SYNONYMS = MappingProxyType(
    dict.fromkeys(("train", "training"), TRAIN)
    | dict.fromkeys(("calibration", "cal", "val", "valid", "validation", "dev"), CALIBRATION)
    | dict.fromkeys(("test", "testing", "eval", "holdout"), TEST)
)


def load_own(path: str | Path, *, columns: Mapping[str, Any], name: str | None = None) -> Examples:
    """Load a CSV, JSONL or Parquet file; `columns` says what its columns are. Keys that are null count as absent.

    - `label` (required). The classes are the labels in sorted order, or `classes`; of two, `positive` is the second.
    - `text`; or `numeric`, a list, and `categorical`, a list. `categories` maps a categorical column to the list of
      its values, which become one-hot features; a column without list is hashed into `num_buckets` features by a keyed
      hash, so that nothing is learnt from the data. A missing category is a category of its own.
    - `example_id`, unique (else rows are numbered, and the ids hold only while the file's rows keep their places);
      `subject_id`, who an example belongs to (else each is its own).
    - `sensitive`: a list of columns, or a mapping from a column to the ascending numbers at which it is cut into bands
      (null: taken as it is). A missing value is an unknown group.
    - `split`: train, calibration or test, with the usual synonyms (val, valid, validation, dev: calibration); else
      subjects are dealt in `fractions` (default 0.6, 0.2, 0.2) by a keyed hash of their id.
    - `risk`: the probability in [0, 1] that the example's deletion is asked for.

    `name` names the corpus; by default, the file's name without ending.

    Raises:
        DataError: when a key, a column, a cell or the file is not as it must be; the message names the culprit, with
            the number of bad rows and one example id.
    """
    path = Path(path)
    layout = parse_columns(columns)
    raw = read_columns(path, layout.wanted)
    name = path.stem if name is None else name
    ids = _example_ids(name, layout, raw)
    subjects = ids if layout.subject_id is None else _required(name, layout.subject_id, raw, ids)
    labels, classes = _labels(name, layout, raw, ids)
    table: dict[str, np.ndarray] = {"example_id": ids, "subject_id": subjects, "label": labels}
    table["split"] = _splits(name, layout, raw, ids, subjects)
    table |= _inputs(name, layout, raw, ids)
    table |= {SENSITIVE + column: _groups(name, column, cuts, raw, ids) for column, cuts in layout.sensitive.items()}
    if layout.risk is not None:
        table["risk"] = numbers(name, layout.risk, raw[layout.risk], ids)
    return Examples(name, pd.DataFrame(table), classes)


def _texts(name: str, column: str, cells: np.ndarray, ids: np.ndarray) -> np.ndarray:
    nested = np.asarray([isinstance(cell, list | dict | bytes) for cell in cells], dtype=bool)
    refuse(name, ids, nested, f"hold a list, an object or bytes in column {column!r}, not a value")
    return np.fromiter((cell_text(cell) for cell in cells), dtype=object, count=len(cells))


def _required(name: str, column: str, raw: Mapping[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    values = _texts(name, column, raw[column], ids)
    refuse(name, ids, _is_missing(values), f"hold nothing in column {column!r}")
    return values


def _is_missing(values: np.ndarray) -> np.ndarray:
    return np.asarray([value is None for value in values], dtype=bool)


def _example_ids(name: str, layout: OwnColumns, raw: Mapping[str, np.ndarray]) -> np.ndarray:
    rows = range(1, len(raw[layout.label]) + 1)
    numbered = np.asarray([f"{name}-{row:06d}" for row in rows], dtype=object)
    if layout.example_id is None:
        return numbered
    ids = _required(name, layout.example_id, raw, numbered)
    refuse(name, ids, pd.Series(ids).duplicated().to_numpy(), f"repeat an earlier id in column {layout.example_id!r}")
    return ids


def _labels(
    name: str, layout: OwnColumns, raw: Mapping[str, np.ndarray], ids: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    values = _required(name, layout.label, raw, ids)
    classes = layout.classes or tuple(sorted(set(values), key=_sort_key))
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise DataError(f"{name}: expected two labels or more in column {layout.label!r}, got {list(classes)}.")
    if layout.positive is not None:
        classes = _positive_last(name, classes, layout.positive)
    codes = pd.Index(list(classes), dtype=object).get_indexer(pd.Index(values, dtype=object))
    refuse(name, ids, codes < 0, f"have a label outside {', '.join(classes)} in column {layout.label!r}")
    return codes.astype(np.int64), classes


def _positive_last(name: str, classes: tuple[str, ...], positive: str) -> tuple[str, ...]:
    if len(classes) != 2 or positive not in classes:
        raise DataError(
            f"{name}: expected positive to be one of two labels, got {positive!r} for the labels {', '.join(classes)}. "
            "Set data.columns.positive, or data.columns.classes for more than two."
        )
    return (*(label for label in classes if label != positive), positive)


def _sort_key(label: str) -> tuple[bool, float, str]:
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (False, number, label) if math.isfinite(number) else (True, 0.0, label)


def _splits(
    name: str, layout: OwnColumns, raw: Mapping[str, np.ndarray], ids: np.ndarray, subjects: np.ndarray
) -> np.ndarray:
    if layout.split is None:
        return keyed_splits(subjects, layout.fractions)
    values = _required(name, layout.split, raw, ids)
    splits = np.fromiter((SPLIT_SYNONYMS.get(value.lower()) for value in values), dtype=object, count=len(values))
    known = ", ".join(SPLIT_SYNONYMS)
    refuse(name, ids, _is_missing(splits), f"hold something other than {known} in column {layout.split!r}")
    return splits


def _inputs(name: str, layout: OwnColumns, raw: Mapping[str, np.ndarray], ids: np.ndarray) -> dict[str, np.ndarray]:
    if layout.text is not None:
        return {"text": _plain_texts(name, layout.text, raw[layout.text], ids)}
    features = {FEATURE + column: numeric_feature(name, column, raw[column], ids) for column in layout.numeric}
    for column in layout.categorical:
        values = _texts(name, column, raw[column], ids)
        cells = np.where(_is_missing(values), MISSING, values)
        if column in layout.categories:
            features |= one_hot(name, column, cells, (*layout.categories[column], MISSING), ids)
        else:
            features |= hashed_one_hot(column, cells, layout.num_buckets)
    return features


def _plain_texts(name: str, column: str, cells: np.ndarray, ids: np.ndarray) -> np.ndarray:
    bad = np.asarray([not isinstance(cell, str) or not cell.strip() for cell in cells], dtype=bool)
    refuse(name, ids, bad, f"hold no text in column {column!r}")
    return cells


def _groups(
    name: str, column: str, cuts: tuple[float, ...], raw: Mapping[str, np.ndarray], ids: np.ndarray
) -> np.ndarray:
    values = _texts(name, column, raw[column], ids)
    if not cuts:
        return values
    known = ~_is_missing(values)
    measured = np.full(len(values), np.nan)
    if known.any():
        measured[known] = numbers(name, column, values[known], ids[known])
    return cut_into_bands(measured, cuts)
