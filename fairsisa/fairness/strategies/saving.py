"""Post-processors as JSON: written whole, read only when intact."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fairsisa.errors import DataError

if TYPE_CHECKING:
    from fairsisa.fairness.strategies.base import Postprocessor

FORMAT, VERSION = "fairsisa.postprocessor", 1
HOME = "fairsisa.fairness.strategies"
DERIVED = "fairsisa.fairness.derived"
CLASSES = {
    "AggregateThenPostprocess": f"{HOME}.aggregate",
    "AutoPostprocess": f"{HOME}.auto",
    "EnsemblePostprocess": f"{HOME}.ensemble",
    "GroupBlindPostprocess": f"{HOME}.linear",
    "PostprocessThenAggregate": f"{HOME}.members",
    "ScoreThresholdPostprocess": f"{HOME}.score",
    "Unprocessed": f"{HOME}.score",
}
"""The estimators that a document may name, and their modules."""
VALUES = {
    "BlindSolution": f"{DERIVED}.blind",
    "Chain": f"{DERIVED}.hulls",
    "Criterion": f"{DERIVED}.criteria",
    "Joint": f"{DERIVED}.joint",
    "LinearRule": f"{DERIVED}.blind",
    "RowCoder": f"{HOME}.ensemble",
    "ScoreChain": f"{DERIVED}.thresholds",
    "Solution": f"{DERIVED}.solution",
    "Table": f"{HOME}.lookup",
    "ThresholdRule": f"{HOME}.score",
}
"""The dataclasses that a document may hold, and their modules."""
COMMON = (
    "classes_",
    "groups_",
    "n_features_in_",
    "feature_names_in_",
    "num_constituents_",
    "criteria_",
    "costs_",
    "label_counts_",
    "row_counts_",
    "loss_",
    "rates_",
    "achieved_",
    "determinism_cost_",
    "warnings_",
)
"""Fitted attributes of every post-processor, where it has them."""
KIND = "$"


def to_document(postprocessor: Postprocessor) -> dict[str, Any]:
    """Return a fitted post-processor as plain JSON values: what it is, its parameters, its fitted attributes."""
    name = type(postprocessor).__name__
    if name not in CLASSES:
        raise DataError(f"Expected a post-processor of {', '.join(CLASSES)} to save, got {name}.")
    parameters = {key: value for key, value in postprocessor.get_params(deep=False).items() if key != "estimator"}
    fitted = {key: value for key, value in vars(postprocessor).items() if key in (*COMMON, *postprocessor.RULE)}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "class": name,
        "parameters": encode(parameters),
        "fitted": encode(fitted),
    }
    return {**document, "digest": _digest(document)}


def save_document(document: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a document to a file, whole or not at all."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(_text(document), encoding="utf-8")
    partial.replace(target)


def load_postprocessor(source: str | os.PathLike[str] | Mapping[str, Any], *, estimator: Any = None) -> Postprocessor:
    """Return the fitted post-processor of a file or document; it predicts what the saved one did.

    `estimator` is not part of a document: give it again where X is raw.

    Raises:
        DataError: when there is no such file, or it is damaged, foreign or of another version.
    """
    document = source if isinstance(source, Mapping) else _read(Path(source))
    _check_document(document)
    try:
        parameters, fitted = decode(document["parameters"]), decode(document["fitted"])
        postprocessor: Postprocessor = _known(CLASSES, document["class"])(**parameters, estimator=estimator)
        wanted = {*COMMON, *postprocessor.RULE}
        if not set(fitted) <= wanted or "classes_" not in fitted:
            raise DataError(f"Expected the fitted attributes of {document['class']}, got {', '.join(sorted(fitted))}.")
        for name, value in fitted.items():
            setattr(postprocessor, name, value)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"Expected a post-processor saved by fairsisa, but it is damaged: {error}") from error
    return postprocessor


def encode(value: Any) -> Any:
    """Return a value as plain JSON values; `decode` gives it back with its types and bits.

    Raises:
        DataError: for a value of a class that is not listed in `VALUES`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {KIND: "float", "value": repr(value)}
    if isinstance(value, list):
        return [encode(item) for item in value]
    return _encode_whole(value)


def decode(value: Any) -> Any:
    """Return what `encode` was given.

    Raises:
        DataError: when a value names a kind that no document may hold.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value[KIND] in _READERS:
        return _READERS[value[KIND]](value)
    return _known(VALUES, value[KIND])(**{name: decode(item) for name, item in value["fields"].items()})


def _encode_whole(value: Any) -> dict[str, Any]:
    """Encode what has parts; each kind has its reader in `_READERS`."""
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, pd.DataFrame):
        return {KIND: "frame", "columns": [[str(name), _encode_array(value[name].to_numpy())] for name in value]}
    if isinstance(value, tuple):
        return {KIND: "tuple", "items": [encode(item) for item in value]}
    if isinstance(value, Mapping):
        return {KIND: "dict", "items": [[encode(key), encode(item)] for key, item in value.items()]}
    return _encode_object(value)


def _encode_object(value: Any) -> dict[str, Any]:
    name = type(value).__name__
    if name in CLASSES:
        return {KIND: "postprocessor", "document": to_document(value)}
    if not is_dataclass(value) or name not in VALUES:
        raise DataError(f"A {name} cannot be saved as JSON; expected plain values, arrays or {', '.join(VALUES)}.")
    return {KIND: name, "fields": {field.name: encode(getattr(value, field.name)) for field in fields(value)}}


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in "biufUO":
        raise DataError(f"An array of {array.dtype} cannot be saved as JSON; expected numbers, booleans or text.")
    flat = array.ravel().tolist()
    plain = array.dtype.kind in "biuU" or (array.dtype.kind == "f" and bool(np.isfinite(array).all()))
    data = flat if plain else [encode(item) for item in flat]
    return {KIND: "array", "dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _decode_array(value: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(value["dtype"])
    if value[KIND] != "array" or dtype.kind not in "biufUO":
        raise DataError(f"Expected an array of numbers or text, got {value['dtype']!r}.")
    flat = np.empty(len(value["data"]), dtype=dtype)
    flat[:] = [decode(item) for item in value["data"]]
    return flat.reshape(value["shape"])


def _known(allowed: Mapping[str, str], name: Any) -> Any:
    """Return the class of a listed name; nothing else is ever imported."""
    if not isinstance(name, str) or name not in allowed:
        raise DataError(f"Expected one of {', '.join(allowed)}, got {name!r}.")
    return getattr(importlib.import_module(allowed[name]), name)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"Expected a saved post-processor at {path}; no such file.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"Expected a post-processor as JSON, {path} is damaged or something else: {error}") from error


def _check_document(document: Any) -> None:
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise DataError(f"Expected a document of format {FORMAT!r}: this was not saved by fairsisa.")
    if document.get("version") != VERSION:
        raise DataError(f"Expected version {VERSION} of the format, got {document.get('version')!r}: fit again.")
    rest = {key: value for key, value in document.items() if key != "digest"}
    if document.get("digest") != _digest(rest):
        raise DataError("The saved post-processor is damaged: its content does not have the digest on record.")


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, allow_nan=False)


def _digest(document: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(document, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DataError(f"Expected a document of plain JSON values: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()


_READERS: dict[Any, Callable[[Mapping[str, Any]], Any]] = {
    "float": lambda value: float(value["value"]),
    "array": _decode_array,
    "frame": lambda value: pd.DataFrame({name: _decode_array(column) for name, column in value["columns"]}),
    "tuple": lambda value: tuple(decode(item) for item in value["items"]),
    "dict": lambda value: {decode(key): decode(item) for key, item in value["items"]},
    "postprocessor": lambda value: load_postprocessor(value["document"]),
}
