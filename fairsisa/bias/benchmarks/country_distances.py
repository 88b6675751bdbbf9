"""Distances between a model's answers and those of countries, over many survey questions."""

from __future__ import annotations

import json

import numpy as np

from fairsisa.bias.benchmark import LABEL, Columns, Value
from fairsisa.bias.metrics import ratio

DISTANCES = f"{LABEL}distances"
MIN_QUESTIONS = 50


def wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """Return the first Wasserstein distance of two masses on 0..n-1, shape (n,); each is made to sum to 1."""
    difference = np.cumsum(first / first.sum()) - np.cumsum(second / second.sum())
    return float(np.abs(difference[:-1]).sum())


def country_gini(min_questions: int = MIN_QUESTIONS) -> Value:
    """Return the metric that is the Gini index over countries of each country's median distance.

    Countries with fewer than `min_questions` questions among the rows are left out (Kirsten et al. 2025).
    """

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        return gini(country_medians(columns, weights, min_questions))

    return value


def median_distance(min_questions: int = MIN_QUESTIONS) -> Value:
    """Return the metric that is the mean over countries of each country's median distance; see `country_gini`."""

    def value(columns: Columns, weights: np.ndarray) -> np.ndarray:
        medians = country_medians(columns, weights, min_questions)
        return ratio(np.nansum(medians, axis=0), (~np.isnan(medians)).sum(axis=0))

    return value


def country_medians(columns: Columns, weights: np.ndarray, min_questions: int) -> np.ndarray:
    """Return each country's median distance, shape (num_countries, num_replicates), countries in order of name.

    Weights count how often a question is drawn; NaN where none of a country's is.
    """
    places: dict[str, list[int]] = {}
    distances: dict[str, list[float]] = {}
    for place, text in enumerate(columns[DISTANCES]):
        for country, distance in json.loads(str(text)).items():
            places.setdefault(country, []).append(place)
            distances.setdefault(country, []).append(distance)
    kept = sorted(country for country, rows in places.items() if len(rows) >= min_questions)
    if not kept:
        return np.full((1, weights.shape[1]), np.nan)
    return np.stack([_medians(np.array(distances[country]), weights[places[country]]) for country in kept])


def gini(values: np.ndarray) -> np.ndarray:
    """Return the Gini index of each column, shape (num_columns,): half the mean absolute difference over the mean.

    `values` has shape (n, num_columns); NaNs are left out. With x_(1) <= ... <= x_(n), the index is
    sum_i (2i - n - 1) x_(i) / (n sum_i x_i).
    """
    ordered = np.sort(values, axis=0)
    counts = (~np.isnan(values)).sum(axis=0)
    ranks = np.arange(1, len(values) + 1)[:, None]
    return ratio(np.nansum((2 * ranks - counts - 1) * ordered, axis=0), counts * np.nansum(ordered, axis=0))


def _medians(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the median of values, each repeated as often as a column of counts says, for each column."""
    order = np.argsort(values, kind="stable")
    ordered = np.append(values[order], np.nan)
    cumulated = np.cumsum(counts[order], axis=0)
    total = cumulated[-1]
    low, high = np.floor((total - 1) / 2), np.floor(total / 2)
    middle: np.ndarray = (ordered[(cumulated <= low).sum(axis=0)] + ordered[(cumulated <= high).sum(axis=0)]) / 2
    return np.where(total > 0, middle, np.nan)
