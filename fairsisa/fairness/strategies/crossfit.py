"""Decisions for rows that took no part in fitting them, fold by fold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from fairsisa.errors import ConfigError, DataError
from fairsisa.fairness.strategies.decisions import Derived
from fairsisa.fairness.strategies.guards import ConstantRuleWarning, SmallCellWarning
from fairsisa.fairness.strategies.inputs import read_groups
from fairsisa.tables import Predictions


def cross_fit(
    estimator: Any,
    X: Any,  # noqa: N803
    y: Any,
    *,
    sensitive_features: Any,
    subject_ids: Any = None,
    num_folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Return out-of-fold probabilities of deciding, float64, shape (num_examples, C).

    Each row's come from a clone of `estimator`, a post-processor, that was fitted on the other folds. A subject's rows
    share a fold (`subject_ids`, any hashable values; None makes each row a subject of its own), and folds are alike
    in groups and labels as far as that allows. The folds depend on subjects, groups, labels and `seed` alone.

    Raises:
        DataError: when a fold leaves the others without a group's label, naming both.
        ConfigError: when there are fewer than two folds, or fewer subjects than folds.
    """
    return cross_derive(
        estimator,
        X,
        y,
        sensitive_features=sensitive_features,
        subject_ids=subject_ids,
        num_folds=num_folds,
        seed=seed,
    ).probabilities


def cross_derive(
    estimator: Any,
    X: Any,  # noqa: N803
    y: Any,
    *,
    sensitive_features: Any,
    subject_ids: Any = None,
    num_folds: int = 5,
    seed: int = 0,
) -> Derived:
    """Return what `cross_fit` does, with the unprocessed decisions and the back-offs, as `derive` gives them."""
    folds = fold_rows(np.asarray(y), sensitive_features, subject_ids, num_folds, seed)
    data = {"sensitive_features": sensitive_features, "folds": folds}
    return cross_paths(estimator, X, y, **data, variants=lambda fitted: [fitted])[0]


def cross_paths(
    estimator: Any,
    X: Any,  # noqa: N803
    y: Any,
    *,
    sensitive_features: Any,
    folds: Iterable[tuple[np.ndarray, np.ndarray]],
    variants: Callable[[Any], Sequence[Any]],
    sample_weight: Any = None,
) -> list[Derived]:
    """Return out-of-fold decisions of several variants of an estimator that is fitted once a fold.

    `folds` come from `fold_rows`. `variants` makes of the fitted clone, the same number each time, what decides: say,
    the clone at several tolerances. What a fit warns of is left to a fit on all rows to say: folds are smaller.
    """
    labels, order, parts = np.asarray(y), [], []
    for train, test in folds:
        weights = {} if sample_weight is None else {"sample_weight": np.asarray(sample_weight)[train]}
        features = take_rows(sensitive_features, train)
        with warnings.catch_warnings():
            for kind in (SmallCellWarning, ConstantRuleWarning):
                warnings.simplefilter("ignore", kind)
            fitted = clone(estimator).fit(take_rows(X, train), labels[train], sensitive_features=features, **weights)
            made = variants(fitted)
        inside, features = take_rows(X, test), take_rows(sensitive_features, test)
        parts.append([each.derive(inside, sensitive_features=features) for each in made])
        order.append(test)
    back = np.argsort(np.concatenate(order), kind="stable")
    return [_joined(decided, back) for decided in zip(*parts, strict=True)]


def fold_rows(
    labels: np.ndarray, sensitive_features: Any, subject_ids: Any, num_folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, fold by fold, the rows outside it and the rows inside it.

    See `cross_fit` for how they are dealt, and for what is raised.
    """
    codes, names = read_groups(sensitive_features)
    subjects = subject_codes(subject_ids, len(labels))
    classes, places = np.unique(labels, return_inverse=True)
    cells = codes * len(classes) + places
    folds = assign_folds(subjects, cells, num_folds=num_folds, seed=seed)
    for fold in range(num_folds):
        train = np.flatnonzero(folds != fold)
        gone = np.setdiff1d(cells[codes >= 0], cells[train])
        if len(gone):
            group, label = divmod(int(gone[0]), len(classes))
            raise DataError(
                f"Group {names[group]!r}: every row with label {classes[label]!s} falls into fold {fold + 1} of "
                f"{num_folds}, and leaves none to fit on. Join the group to another, or let the rows belong to "
                "more subjects."
            )
        yield train, np.flatnonzero(folds == fold)


def assign_folds(subjects: np.ndarray, cells: np.ndarray, *, num_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, int64 in 0..num_folds-1, the same for all rows of a subject.

    `subjects` holds subject codes 0..num_subjects-1, `cells` any integer per row. Subjects are dealt to the folds in
    turn, ordered by their rarest cell, then by number of rows, then by chance: each cell's subjects of one size are
    spread within one of evenly, and so are all subjects.
    """
    num_subjects = int(subjects.max()) + 1 if len(subjects) else 0
    if not 2 <= num_folds <= num_subjects:
        raise ConfigError(f"Expected 2 folds or more, and a subject for each; got {num_folds} for {num_subjects}.")
    _, place, sizes = np.unique(cells, return_inverse=True, return_counts=True)
    rarity = np.argsort(np.argsort(sizes, kind="stable"), kind="stable")[place]
    rarest = np.full(num_subjects, len(sizes))
    np.minimum.at(rarest, subjects, rarity)
    chance = np.random.default_rng(seed).permutation(num_subjects)
    order = np.lexsort((chance, -np.bincount(subjects), rarest))
    folds = np.empty(num_subjects, dtype=np.int64)
    folds[order] = np.arange(num_subjects) % num_folds
    return np.asarray(folds[subjects])


def subject_codes(subject_ids: Any, num_rows: int) -> np.ndarray:
    """Return a number 0..num_subjects-1 per row, in the order of the ids; None makes each row its own subject.

    Raises:
        DataError: when there is not one id a row.
    """
    if subject_ids is None:
        return np.arange(num_rows)
    ids = np.asarray(subject_ids).ravel()
    if len(ids) != num_rows:
        raise DataError(f"Expected {num_rows} subject ids, one a row, got {len(ids)}.")
    known = ids if ids.dtype.kind in "iu" else ids.astype(str)
    return np.asarray(np.unique(known, return_inverse=True)[1], dtype=np.int64)


def label_codes(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return each label's place among the fitted classes, int64, shape (num_rows,).

    Raises:
        DataError: when a label is none of them, naming the row.
    """
    places = pd.Index(classes).get_indexer(pd.Index(np.asarray(y)))
    if (places < 0).any():
        row = int(np.argmin(places))
        raise DataError(f"Expected labels of {classes.tolist()}, as fitted; row {row} has {np.asarray(y)[row]!s}.")
    return np.asarray(places, dtype=np.int64)


def take_rows(table: Any, rows: np.ndarray) -> Any:
    """Return some rows of predictions, a frame, a mapping of columns, or anything that an array can be made of."""
    if isinstance(table, Predictions):
        ids = tuple(table.example_ids[row] for row in rows)
        return Predictions(ids, table.constituents, table.scores[rows])
    if isinstance(table, pd.DataFrame | pd.Series):
        return table.iloc[rows]
    if isinstance(table, Mapping):
        return {name: take_rows(column, rows) for name, column in table.items()}
    return np.asarray(table)[rows]


def _joined(folds: Sequence[Derived], back: np.ndarray) -> Derived:
    """Return the folds' decisions in the rows' own order."""
    return Derived(
        probabilities=np.concatenate([each.probabilities for each in folds])[back],
        original=np.concatenate([each.original for each in folds])[back],
        backed_off=np.concatenate([each.backed_off for each in folds])[back],
    )
