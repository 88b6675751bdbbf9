"""Bootstrap replicates over subjects, as weights, and the intervals they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_CELLS = 4_000_000
INTERVAL_COLUMNS = ("value", "low", "high", "standard_error", "num_undefined")


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: `num_replicates` draws of subjects, an interval of coverage `level`, a seed."""

    num_replicates: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_replicates < 2:
            raise ValueError(f"Expected at least 2 bootstrap replicates, got {self.num_replicates}; 1000 is usual.")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"Expected a level between 0 and 1, such as 0.95, got {self.level}.")


BOOTSTRAP = Bootstrap()


def weight_chunks(subjects: np.ndarray, bootstrap: Bootstrap, *, rows: int = 0) -> Iterator[np.ndarray]:
    """Yield example weights, chunk by chunk: the observed examples first, then the bootstrap replicates.

    `subjects` holds subject indices 0..num_subjects-1, int64, shape (num_examples,). A replicate draws as many
    subjects as there are, with replacement; a subject brings all its examples (the cluster bootstrap: Field and
    Welsh, JRSS B 2007). The chunks, float64 of shape (num_examples, width), hold together 1 + `num_replicates`
    columns; the first is all ones, so that estimate and replicates come out of one computation. No chunk has more
    than `MAX_CELLS` cells per `rows` (or num_examples, if larger); the draws do not depend on the chunks.
    """
    num_subjects = int(subjects.max()) + 1
    width = max(1, MAX_CELLS // max(rows, len(subjects)))
    rng = np.random.default_rng(bootstrap.seed)
    yield np.ones((len(subjects), 1))
    for start in range(0, bootstrap.num_replicates, width):
        columns = min(width, bootstrap.num_replicates - start)
        drawn = rng.integers(num_subjects, size=(columns, num_subjects))
        cells = drawn * columns + np.arange(columns)[:, None]
        counts = np.bincount(cells.ravel(), minlength=num_subjects * columns).reshape(num_subjects, columns)
        yield counts.astype(np.float64)[subjects]


def summarise(replicates: np.ndarray, level: float) -> dict[str, np.ndarray]:
    """Return estimate, percentile interval, standard error and number of undefined replicates, row by row.

    `replicates` has shape (..., 1 + num_replicates), the estimate first, NaN where a replicate left the quantity
    undefined. The interval runs between the (1 - level)/2 and (1 + level)/2 quantiles of the defined replicates
    (Efron and Tibshirani 1993, section 13.3), the standard error is their standard deviation; both are NaN where
    fewer than two replicates are defined. The keys are `INTERVAL_COLUMNS`, the shapes (...).
    """
    drawn = np.sort(replicates[..., 1:], axis=-1)
    defined = (~np.isnan(drawn)).sum(axis=-1)
    tail = (1.0 - level) / 2.0
    return {
        "value": replicates[..., 0],
        "low": _quantile(drawn, defined, tail),
        "high": _quantile(drawn, defined, 1.0 - tail),
        "standard_error": _standard_error(drawn, defined),
        "num_undefined": drawn.shape[-1] - defined,
    }


def _quantile(ordered: np.ndarray, defined: np.ndarray, share: float) -> np.ndarray:
    """Interpolate a quantile of each row's first `defined` values, which are in order; NaN below two of them."""
    place = share * np.maximum(defined - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.ceil(place).astype(np.int64)
    low = np.take_along_axis(ordered, below[..., None], axis=-1)[..., 0]
    high = np.take_along_axis(ordered, above[..., None], axis=-1)[..., 0]
    return np.where(defined > 1, low + (place - below) * (high - low), np.nan)


def _standard_error(drawn: np.ndarray, defined: np.ndarray) -> np.ndarray:
    enough = defined > 1
    mean = np.nansum(drawn, axis=-1) / np.maximum(defined, 1)
    squares = np.nansum((drawn - mean[..., None]) ** 2, axis=-1)
    return np.where(enough, np.sqrt(squares / np.maximum(defined - 1, 1)), np.nan)
