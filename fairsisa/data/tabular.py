"""Build the examples table of a published table from its specification."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fairsisa.data.columns import (
    cut_into_bands,
    keyed_splits,
    numbers,
    numeric_feature,
    one_hot,
    refuse,
    rename,
    require_known,
)
from fairsisa.data.sources import read_source
from fairsisa.data.tabular_specs import SensitiveColumn, TableFile, TableSpec
from fairsisa.tables import FEATURE, SENSITIVE, Examples


def load_tabular(spec: TableSpec, *, root: Path | None = None, cache: Path, drop_sensitive: bool = False) -> Examples:
    """Load one published table.

    A row's `example_id` is its file and row number (`adult-train-00001`), its `subject_id` the same or the person's
    number in the file. An official test file is the test split; all else is dealt by a keyed hash of the subject id.
    Numbers are left as they are, categories are one-hot by the list in `spec`. `drop_sensitive` leaves out the
    features read off the columns of the sensitive features; features that go with them (`relationship=Wife`) remain.

    Raises:
        DataError: when a row does not fit the specification, or a file is not to be had.
        ChecksumError: when a file is not the recorded one.
    """
    contents = [read_source(file.source, root=root, cache=cache) for file in spec.files]
    return build_examples(spec, contents, drop_sensitive=drop_sensitive)


def build_examples(spec: TableSpec, contents: Sequence[bytes], *, drop_sensitive: bool = False) -> Examples:
    """Return the examples table of the files' contents, given in the order of `spec.files`.

    Raises:
        DataError: naming the column, the number of rows that do not fit and one example id.
    """
    parts = [_read_file(spec, file, content) for file, content in zip(spec.files, contents, strict=True)]
    raw = pd.concat(parts, ignore_index=True)
    ids = raw["example_id"].to_numpy(dtype=object)
    hidden = {rule.column for rule in spec.sensitive.values()} if drop_sensitive else set()
    columns = {
        "example_id": ids,
        "subject_id": raw["subject_id"].to_numpy(dtype=object),
        "label": _labels(spec, raw, ids),
        "split": raw["split"].to_numpy(dtype=object),
    }
    columns |= _features(spec, raw, ids, hidden)
    columns |= {SENSITIVE + name: _groups(spec, rule, raw, ids) for name, rule in spec.sensitive.items()}
    return Examples(spec.name, pd.DataFrame(columns), spec.classes)


def _read_file(spec: TableSpec, file: TableFile, content: bytes) -> pd.DataFrame:
    frame = pd.read_csv(
        io.BytesIO(content),
        names=list(spec.header) or None,
        header=None if spec.header else 0,
        skiprows=file.skip_lines,
        skipinitialspace=True,
        dtype=str,
        keep_default_na=False,
    )
    required = [*spec.numeric, *spec.categorical, spec.label, *([] if spec.subject is None else [spec.subject])]
    require_known(spec.name, "column in the specification", required, frame.columns)
    stem = "-".join(part for part in (spec.name, file.part) if part)
    ids = np.asarray([f"{stem}-{row:05d}" for row in range(1, len(frame) + 1)], dtype=object)
    subjects = ids if spec.subject is None else frame[spec.subject].to_numpy(dtype=object)
    splits = keyed_splits(subjects, file.fractions)
    frame = frame.assign(example_id=ids, subject_id=subjects, split=splits)
    return frame if spec.keep is None else frame[spec.keep(frame)]


def _labels(spec: TableSpec, raw: pd.DataFrame, ids: np.ndarray) -> np.ndarray:
    values = raw[spec.label].map(dict(spec.labels))
    known = ", ".join(spec.labels)
    refuse(spec.name, ids, values.isna().to_numpy(), f"have a label other than {known} in column {spec.label!r}")
    return values.to_numpy(dtype=np.int64)


def _features(spec: TableSpec, raw: pd.DataFrame, ids: np.ndarray, hidden: set[str]) -> dict[str, np.ndarray]:
    features: dict[str, np.ndarray] = {}
    for column in spec.numeric:
        if column not in hidden:
            features[FEATURE + column] = numeric_feature(spec.name, column, raw[column].to_numpy(dtype=object), ids)
    for column, categories in spec.categorical.items():
        if column not in hidden:
            features |= one_hot(spec.name, column, raw[column].to_numpy(dtype=object), categories, ids)
    return features


def _groups(spec: TableSpec, rule: SensitiveColumn, raw: pd.DataFrame, ids: np.ndarray) -> np.ndarray:
    cells = raw[rule.column].to_numpy(dtype=object)
    if rule.cuts:
        return cut_into_bands(numbers(spec.name, rule.column, cells, ids), rule.cuts)
    names = rule.names or {value: value for value in spec.categorical[rule.column]}
    return rename(spec.name, rule.column, cells, names, ids)
