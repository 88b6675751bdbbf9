"""Metrics over scores tables under many weights at once, so that estimate and replicates are one computation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from fairsisa.bias.benchmark import LABEL, Columns, Value


def mean_of(column: str, *, scale: float = 1.0) -> Value:
    """Return the mean of a column over the rows where it is a number, times `scale`."""

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        numbers = np.asarray(columns[column], dtype=np.float64)
        there = ~np.isnan(numbers)
        return ratio(numbers[there] @ weights[there], weights[there].sum(axis=0)) * scale

    return value


def macro_mean_of(column: str, *, scale: float = 1.0) -> Value:
    """Return the mean over clusters of each cluster's mean of a column, times `scale`.

    Weights are equal within a cluster, as a bootstrap over clusters draws them.
    """

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        means, of_clusters = cluster_means(columns, weights, column)
        return ratio(means @ of_clusters, of_clusters.sum(axis=0)) * scale

    return value


def cluster_means(columns: Columns, weights: np.ndarray, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a column's mean in each cluster that has a number, (num_clusters,), and the clusters' weights."""
    numbers = np.asarray(columns[column], dtype=np.float64)
    there = np.flatnonzero(~np.isnan(numbers))
    _, first, codes = np.unique(columns["cluster"][there], return_index=True, return_inverse=True)
    counts = np.bincount(codes)
    means: np.ndarray = np.bincount(codes, weights=numbers[there]) / counts if len(there) else np.zeros(0)
    return means, weights[there][first]


def by_replicate(function: Callable[[Columns], float]) -> Value:
    """Return a metric that is computed anew for each replicate, from rows repeated as their weights say.

    For what is no ratio of sums, such as a median. A cluster that was drawn twice counts as two clusters, if the
    function tells clusters apart by `cluster`.
    """

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        return np.array([function(_repeated(columns, times)) for times in weights.T.astype(np.int64)])

    return value


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return a ratio, NaN where the denominator is zero."""
    out: np.ndarray = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=np.asarray(denominator) != 0)
    return out


def difference_between(column: str, label: str, *, within: str | None = None) -> Value:
    """Return the largest minus the smallest of the groups' means of a column.

    `label` tells the groups; rows without one are left out. With `within`, groups are compared in each of its parts,
    and the differences are averaged. NaN where fewer than two groups have a number.
    """

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        numbers = np.asarray(columns[column], dtype=np.float64)
        groups = np.asarray(columns[f"{LABEL}{label}"], dtype=object)
        parts = np.zeros(len(numbers)) if within is None else np.asarray(columns[f"{LABEL}{within}"], dtype=object)
        there = ~np.isnan(numbers) & np.array([not (pd.isna(group) or group == "") for group in groups], dtype=bool)
        found = [np.full(weights.shape[1], np.nan)]
        for part in dict.fromkeys(parts[there]):
            rows = np.flatnonzero(there & (parts == part))
            found.append(_spread(numbers[rows], groups[rows], weights[rows]))
        return mean_of_defined(np.stack(found))

    return value


def mean_of_defined(rows: np.ndarray) -> np.ndarray:
    """Return the mean of each column over the rows that are numbers, NaN where none is."""
    defined = ~np.isnan(rows)
    return ratio(np.where(defined, rows, 0.0).sum(axis=0), defined.sum(axis=0))


def _repeated(columns: Columns, times: np.ndarray) -> Columns:
    rows = np.repeat(np.arange(len(times)), times)
    copies = np.concatenate([np.arange(count) for count in times[times > 0]]) if len(rows) else rows
    most = int(times.max(initial=1)) + 1
    repeated = {name: column[rows] for name, column in columns.items()}
    return repeated | {"cluster": columns["cluster"][rows] * most + copies}


def _spread(numbers: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    names = list(dict.fromkeys(groups))
    means = np.stack(
        [
            ratio(numbers[groups == name] @ weights[groups == name], weights[groups == name].sum(axis=0))
            for name in names
        ]
    )
    defined = ~np.isnan(means)
    largest = np.where(defined, means, -np.inf).max(axis=0)
    smallest = np.where(defined, means, np.inf).min(axis=0)
    enough = defined.sum(axis=0) > 1
    return np.where(enough, np.where(enough, largest, 0.0) - np.where(enough, smallest, 0.0), np.nan)
