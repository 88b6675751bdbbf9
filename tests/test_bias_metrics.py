"""Metrics over weights equal the same metrics over repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.bias.benchmark import Metric
from fairsisa.bias.metrics import by_replicate, macro_mean_of, mean_of, ratio

numbers = st.one_of(st.floats(-5, 5), st.just(float("nan")))
rows = st.lists(st.tuples(st.integers(0, 3), numbers), min_size=1, max_size=12)


def columns_of(rows: list[tuple[int, float]]) -> dict[str, np.ndarray]:
    codes = np.unique([cluster for cluster, _ in rows], return_inverse=True)[1]
    return {"cluster": codes, "value": np.array([value for _, value in rows])}


def drawn(columns: dict[str, np.ndarray], seed: int, count: int = 5) -> np.ndarray:
    times = np.random.default_rng(seed).integers(0, 3, size=(int(columns["cluster"].max()) + 1, count))
    return times[columns["cluster"]].astype(np.float64)


def slow_mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")


@given(rows, st.integers(0, 99))
def test_a_mean_under_weights_is_the_mean_of_repeated_rows(rows: list[tuple[int, float]], seed: int) -> None:
    columns = columns_of(rows)
    weights = drawn(columns, seed)
    found = mean_of("value", scale=2.0)(columns, weights)
    slow = [2.0 * slow_mean(np.repeat(columns["value"], times.astype(int))) for times in weights.T]
    np.testing.assert_allclose(found, slow, atol=1e-12)


@given(rows, st.integers(0, 99))
def test_a_macro_mean_counts_a_cluster_as_often_as_it_was_drawn(rows: list[tuple[int, float]], seed: int) -> None:
    columns = columns_of(rows)
    weights = drawn(columns, seed)

    def slow(some: dict[str, np.ndarray]) -> float:
        means = [slow_mean(some["value"][some["cluster"] == code]) for code in np.unique(some["cluster"])]
        return slow_mean(np.array(means))

    found = macro_mean_of("value")(columns, weights)
    np.testing.assert_allclose(found, by_replicate(slow)(columns, weights), atol=1e-12)


def test_a_replicate_tells_copies_of_a_cluster_apart() -> None:
    columns = {"cluster": np.array([0, 0, 1]), "value": np.array([1.0, 2.0, 3.0])}
    weights = np.array([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    seen = []
    by_replicate(lambda some: seen.append((some["value"].tolist(), len(np.unique(some["cluster"])))) or 0.0)(
        columns, weights
    )
    assert seen == [([1.0, 2.0, 3.0], 2), ([1.0, 1.0, 2.0, 2.0], 2), ([], 0)]


def test_a_ratio_over_nothing_is_undefined() -> None:
    np.testing.assert_array_equal(ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0])), [0.5, np.nan])


def test_an_unknown_aspect_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected an aspect of bias"):
        Metric("a", mean_of("value"), "harm", "more")
