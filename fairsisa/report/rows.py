"""Rows of a table as plain dictionaries, one by one or by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

Row = dict[str, Any]
METRIC_KEY = ("predictor", "sensitive_feature", "metric")


def records(table: pd.DataFrame) -> list[Row]:
    """Return a table's rows in order, each as a dictionary by column name."""
    names = [str(name) for name in table.columns]
    return [dict(zip(names, values, strict=True)) for values in table.itertuples(index=False, name=None)]


def by_key(table: pd.DataFrame, columns: Sequence[str] = METRIC_KEY) -> dict[tuple[Any, ...], Row]:
    """Return a table's rows by the values of some columns; of rows with equal keys, the last."""
    return {tuple(row[name] for name in columns): row for row in records(table)}
