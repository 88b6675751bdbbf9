"""Read chosen columns of a user's CSV, JSONL or Parquet file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fairsisa.data.columns import require_known
from fairsisa.errors import DataError


def read_columns(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the wanted columns of a file as objects, each of shape (num_rows,); a missing cell is None.

    A CSV file is UTF-8 with one header line, its cells are text and an empty cell is missing. A JSONL file holds an
    object a line. `wanted` names one column or more.

    Raises:
        DataError: when the file is missing, empty, of unknown kind, not UTF-8, malformed (with the line), or lacks a
            wanted column (with the nearest that exists).
    """
    if not path.is_file():
        raise DataError(f"Expected a data file at {path}; no such file.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a file ending in {', '.join(_READERS)}, got {path.suffix or 'no ending'!r}.")
    columns = reader(path, wanted)
    if not next(iter(columns.values())).size:
        raise DataError(f"{path} holds no rows.")
    return columns


def _read_csv(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    content = _utf8(path)
    header = next(csv.reader(io.StringIO(content, newline="")), [])
    if not header:
        raise DataError(f"{path} is empty: expected a header line with the columns' names.")
    repeated = [column for column, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: the header names column {repeated[0]!r} more than once.")
    require_known(str(path), "column", wanted, header)
    encoded = content.encode()
    try:
        table = pa_csv.read_csv(
            io.BytesIO(encoded),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=min(len(encoded), 2**31 - 1)),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), include_columns=list(wanted)
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not well-formed CSV: {error}") from error
    return {name: _objects(cell or None for cell in table.column(name).to_pylist()) for name in wanted}


def _read_jsonl(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    records = [_record(path, line, text) for line, text in enumerate(_utf8(path).split("\n"), 1) if text.strip()]
    if not records:
        raise DataError(f"{path} holds no rows.")
    require_known(str(path), "column", wanted, {key for record in records for key in record})
    return {name: _objects(record.get(name) for record in records) for name in wanted}


def _read_parquet(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with pq.ParquetFile(path) as file:
            require_known(str(path), "column", wanted, file.schema_arrow.names)
            table = file.read(columns=list(wanted))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    return {name: _objects(table.column(name).to_pylist()) for name in wanted}


_READERS: Mapping[str, Callable[[Path, Sequence[str]], dict[str, np.ndarray]]] = MappingProxyType(
    {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
)


def _utf8(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line} is not UTF-8 (byte {content[error.start]:#04x}). Save the file as UTF-8."
        ) from error


def _record(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {line} is not JSON: {error.msg} at column {error.colno}.") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected a JSON object on line {line}, got {type(record).__name__}.")
    return record


def _objects(cells: Iterable[object]) -> np.ndarray:
    return np.fromiter(cells, dtype=object)
