"""What a post-processor is given, read into arrays: votes or scores of an ensemble, and groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from fairsisa.errors import DataError
from fairsisa.tables import Predictions

UNPROCESSED, ERROR = "unprocessed", "error"
SUM_TOLERANCE = 1e-3
BLOCK = 1 << 17
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What each of K constituents says of each of N examples; `read_inputs` makes and checks it.

    `values` holds votes as class indices (unsigned integers, shape (N, K)), scores of the positive one of two classes
    (floats, shape (N, K)) or scores of all classes (floats, shape (N, K, C)). `content` tells examples apart where
    there are no `example_ids`: a row an example.
    """

    values: np.ndarray
    num_classes: int
    example_ids: np.ndarray | None = None
    content: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_constituents(self) -> int:
        """The number of constituents K."""
        return int(self.values.shape[1])

    @property
    def has_scores(self) -> bool:
        """Whether scores are known, not votes alone."""
        return self.values.dtype.kind == "f"

    @cached_property
    def votes(self) -> np.ndarray:
        """The class index each constituent votes for, unsigned, shape (N, K); a tie goes to the lower class."""
        if not self.has_scores:
            return self.values
        if self.values.ndim == 2:
            return np.asarray((self.values > 0.5).view(np.uint8))
        if self.num_classes == 2:
            return np.asarray((self.values[:, :, 1] > self.values[:, :, 0]).view(np.uint8))
        return np.asarray(self.values.argmax(axis=2).astype(_index_type(self.num_classes)))

    @property
    def scores(self) -> np.ndarray | None:
        """The score of every class, shape (N, K, C), or None where only votes are known."""
        if not self.has_scores:
            return None
        return self.values if self.values.ndim == 3 else np.stack([1.0 - self.values, self.values], axis=2)

    @cached_property
    def mean_scores(self) -> np.ndarray:
        """Class scores averaged over constituents, float64, shape (N, C).

        Raises:
            DataError: when there are votes alone.
        """
        mean = self._mean(self.values)
        return mean if mean.ndim == 2 else np.stack([1.0 - mean, mean], axis=1)

    @cached_property
    def mean_positive(self) -> np.ndarray:
        """The mean score of class 1 of two, float64, shape (N,); errors as for `mean_scores`."""
        return self._mean(self.values if self.values.ndim == 2 else self.values[:, :, 1])

    def _mean(self, scores: np.ndarray) -> np.ndarray:
        if not self.has_scores:
            raise DataError("Expected scores, got votes: give class probabilities, or choose a strategy over votes.")
        return np.asarray(np.add.reduce(scores, axis=1, dtype=np.float64) / self.num_constituents)

    def take(self, rows: np.ndarray | slice) -> Inputs:
        """Return the given rows (indices, a mask or a slice)."""
        ids, content = self.example_ids, self.content
        return Inputs(
            self.values[rows],
            self.num_classes,
            None if ids is None else ids[rows],
            None if content is None else content[rows],
        )


def read_inputs(X: Any, estimator: Any = None, *, classes: np.ndarray | None = None) -> Inputs:  # noqa: N803
    """Return votes or scores, checked, from any of the forms that a post-processor takes.

    `X` is a Predictions table; votes (integers, strings or booleans) of shape (N, K) or (N,); scores of the positive
    class (floats in [0, 1]) of the same shapes; or scores of all classes, shape (N, K, C). With an `estimator`, that is
    a fitted ensemble with `predict_scores(X)` of shape (N, K, C) or a fitted classifier with `predict_proba`, `X` is
    what that takes. Votes are labels of `classes`, or class indices where `classes` is None.

    Raises:
        DataError: when a score is not finite or no probability, a vote no label, or the shapes do not fit.
    """
    if isinstance(X, Predictions) and estimator is None:
        scores = np.ascontiguousarray(X.scores)
        return _class_scores(scores, classes, np.asarray(X.example_ids, dtype=object))
    if estimator is not None:
        return _estimated(X, estimator, classes)
    if scipy.sparse.issparse(X):
        raise DataError("Expected dense votes or scores, got a sparse matrix: give its toarray().")
    values = _array(X)
    if values.ndim not in (1, 2, 3):
        raise DataError(f"Expected votes or scores with 1 to 3 dimensions, got {values.ndim}.")
    if values.ndim == 3:
        return _class_scores(values, classes)
    table = np.ascontiguousarray(values.reshape(-1, 1) if values.ndim == 1 else values)
    if table.shape[1] == 0:
        raise DataError("Expected votes of at least one constituent, got none (an array without columns).")
    if table.dtype.kind == "f":
        return _positive_scores(table, classes)
    return Inputs(_class_indices(table, classes), 2 if classes is None else len(classes))


def read_groups(sensitive_features: Any) -> tuple[np.ndarray, list[str]]:
    """Return each example's group, int64, -1 where unknown (None or NaN), and the groups' names, sorted.

    `sensitive_features` is a vector, an array of shape (N, F), a DataFrame or a mapping of columns. Values become text
    (whole floats as integers); of several columns every observed combination is a group, its name joined by " & ", and
    one unknown value makes it unknown.

    Raises:
        ValueError: when nothing is given.
        DataError: when the columns are no vectors of equal length.
    """
    if sensitive_features is None:
        raise ValueError(
            "Expected sensitive_features, one or more values for each row of X, got None; a scikit-learn "
            "meta-estimator passes them on once set_fit_request(sensitive_features=True) and its like are called."
        )
    columns = _columns(sensitive_features)
    if not columns:
        raise DataError("Expected at least one sensitive feature, got no column.")
    codes, names = _factorize(columns[0])
    for column in columns[1:]:
        others, other_names = _factorize(column)
        if len(others) != len(codes):
            raise DataError(f"Expected sensitive features of equal length, got {len(codes)} and {len(others)} rows.")
        codes, names = _crossed((codes, names), (others, other_names))
    return codes, names


def match_groups(codes: np.ndarray, names: Sequence[str], fitted: Sequence[str], unknown: str) -> np.ndarray:
    """Return the numbers among `fitted` of groups read from new rows, -1 for rows to be left unprocessed.

    `codes` and `names` come from `read_groups`; `unknown` says what of rows without a group, or of another one:
    "error", "unprocessed", or the fitted group whose number they get.

    Raises:
        DataError: naming the group, where `unknown` is "error".
    """
    place = {name: number for number, name in enumerate(fitted)}
    unseen = [name for name in names if name not in place]
    missing = int((codes < 0).sum())
    if (unseen or missing) and unknown == ERROR:
        found = f"group {unseen[0]!r}" if unseen else f"{missing} rows without a group"
        raise DataError(
            f"Expected the groups of fit ({', '.join(fitted)}), got {found}; unknown_group={UNPROCESSED!r}, or a "
            "group's name, says how to decide for such rows."
        )
    other = place.get(unknown, -1)
    move = np.array([place.get(name, other) for name in names] + [other], dtype=np.int64)
    return np.asarray(move[codes])


def blocks(num_rows: int) -> Iterator[slice]:
    """Yield slices of at most `BLOCK` rows, so that what is computed on the way stays small."""
    for start in range(0, num_rows, BLOCK):
        yield slice(start, min(start + BLOCK, num_rows))


def majority(votes: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the class with most votes, int64, shape (N,); a tie goes to the lower class, of two the negative one."""
    if num_classes == 2:
        return np.asarray(2 * count_positive(votes) > votes.shape[1], dtype=np.int64)
    return np.asarray(count_votes(votes, num_classes).argmax(axis=1))


def count_positive(votes: np.ndarray) -> np.ndarray:
    """Return the number of votes for class 1 of two, int64, shape (N,)."""
    packed = np.bitwise_count(np.packbits(votes.astype(np.uint8, copy=False), axis=1))
    total = packed[:, 0].astype(np.int64)
    for place in range(1, packed.shape[1]):
        total += packed[:, place]
    return total


def count_votes(votes: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the number of votes for each class, int64, shape (N, C)."""
    return np.stack([count_positive(votes == c) for c in range(num_classes)], axis=1)


def _array(data: Any) -> np.ndarray:
    """Return `data` as a numpy array, columns of one DataFrame side by side; floats of half precision are widened."""
    values = data.to_numpy() if isinstance(data, pd.DataFrame | pd.Series) else np.asarray(data)
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return np.asarray(values)


def _estimated(X: Any, estimator: Any, classes: np.ndarray | None) -> Inputs:  # noqa: N803
    own = getattr(estimator, "classes_", None)
    if own is not None and classes is not None and not np.array_equal(np.asarray(own), classes):
        raise DataError(
            f"Expected labels of the estimator's classes {list(own)}, got {classes.tolist()}; "
            "every class must occur among the labels that the post-processor is fitted on."
        )
    if hasattr(estimator, "predict_scores"):
        scores = np.asarray(estimator.predict_scores(X))
    elif hasattr(estimator, "predict_proba"):
        scores = np.asarray(estimator.predict_proba(X))[:, None, :]
    else:
        raise DataError(f"Expected an estimator with predict_scores or predict_proba, got {type(estimator).__name__}.")
    if isinstance(X, Predictions):
        return _class_scores(scores, classes, np.asarray(X.example_ids, dtype=object))
    read = _class_scores(scores, classes)
    content = _array(X) if hasattr(X, "__array__") else np.asarray(X, dtype=object)
    return Inputs(read.values, read.num_classes, None, content if np.shape(content)[:1] == (len(scores),) else None)


def _class_scores(scores: np.ndarray, classes: np.ndarray | None, example_ids: np.ndarray | None = None) -> Inputs:
    if scores.ndim != 3 or scores.shape[1] == 0 or scores.dtype.kind != "f":
        raise DataError(f"Expected float scores of shape (rows, constituents, classes), got {_shape(scores)}.")
    if classes is not None and scores.shape[2] != len(classes):
        raise DataError(
            f"Expected scores of {len(classes)} classes, as there are labels ({classes.tolist()}), got "
            f"{scores.shape[2]}: every class must occur among the labels that the post-processor is fitted on."
        )
    _require_finite(scores)
    wrong = (np.abs(scores.sum(axis=2) - 1.0) > SUM_TOLERANCE) | (scores.min(axis=2) < 0.0)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise DataError(f"Expected class probabilities that sum to 1, row {row} holds {scores[row].tolist()}.")
    return Inputs(scores, int(scores.shape[2]), example_ids)


def _positive_scores(scores: np.ndarray, classes: np.ndarray | None) -> Inputs:
    if classes is not None and len(classes) != 2:
        raise DataError(
            f"Scores of the positive class say nothing of {len(classes)} classes: give scores of shape "
            "(rows, constituents, classes), or votes as integers."
        )
    _require_finite(scores)
    if len(scores) and (scores.min() < 0.0 or scores.max() > 1.0):
        row = int(np.argwhere((scores < 0.0) | (scores > 1.0))[0][0])
        raise DataError(
            f"Expected scores in [0, 1], row {row} holds {scores[row].tolist()}; votes must be integers or text."
        )
    return Inputs(scores, 2)


def _require_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        row = int(np.argwhere(~np.isfinite(scores))[0][0])
        raise DataError(f"Scores hold NaN or infinity, first in row {row}: leave such rows out or repair them.")


def _class_indices(votes: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return votes as indices into `classes`, in the smallest unsigned type."""
    known = np.arange(2) if classes is None else classes
    small = _index_type(len(known))
    if not votes.size:
        return votes.astype(small)
    if votes.dtype.kind in "iu" and known.dtype.kind in "iu":
        low, high = int(known[0]), int(known[-1])
        if votes.min() < low or votes.max() > high:
            _refuse_vote(votes, (votes < low) | (votes > high), known)
        if high - low + 1 == len(known):
            shifted = votes if low == 0 else votes - votes.dtype.type(low)
            return np.asarray(
                shifted.view(small) if shifted.dtype.itemsize == small.itemsize else shifted.astype(small)
            )
    codes, names = pd.factorize(votes.ravel())
    place = pd.Index(known).get_indexer(pd.Index(names)) if len(names) else np.zeros(0, dtype=np.int64)
    indices = np.where(codes >= 0, place[codes], -1).reshape(votes.shape)
    if (indices < 0).any():
        _refuse_vote(votes, indices < 0, known)
    return np.asarray(indices.astype(small))


def _refuse_vote(votes: np.ndarray, wrong: np.ndarray, known: np.ndarray) -> None:
    row, constituent = np.argwhere(wrong)[0]
    raise DataError(
        f"Expected votes among the labels {known.tolist()}, got {votes[row, constituent]!r} in row {row}, "
        f"constituent {constituent}."
    )


def _index_type(num_classes: int) -> np.dtype[Any]:
    return np.dtype(np.min_scalar_type(num_classes - 1))


def _shape(values: np.ndarray) -> str:
    return f"{values.dtype} of shape {values.shape}"


def _columns(sensitive_features: Any) -> list[Any]:
    if isinstance(sensitive_features, pd.DataFrame):
        return [sensitive_features.iloc[:, place] for place in range(sensitive_features.shape[1])]
    if isinstance(sensitive_features, Mapping):
        return list(sensitive_features.values())
    if isinstance(sensitive_features, pd.Series | pd.Categorical | pd.Index):
        return [sensitive_features]
    values = sensitive_features if isinstance(sensitive_features, np.ndarray) else _objects(sensitive_features)
    if values.ndim == 2:
        return [values[:, place] for place in range(values.shape[1])]
    return [values]


def _objects(values: Any) -> np.ndarray:
    """Return a list as an array that keeps None and NaN apart from the texts "None" and "nan"."""
    return np.asarray(values, dtype=object)


def _factorize(column: Any) -> tuple[np.ndarray, list[str]]:
    """Return the codes and sorted names of one sensitive feature."""
    values = column if isinstance(column, np.ndarray | pd.Series | pd.Categorical | pd.Index) else _objects(column)
    if np.ndim(values) != 1:
        raise DataError(f"Expected a sensitive feature as a vector, got {np.ndim(values)} dimensions.")
    text = isinstance(values, np.ndarray) and values.dtype.kind == "U" and values.dtype.itemsize
    codes, found = _factorize_text(np.ascontiguousarray(values)) if text else pd.factorize(values)
    names = [_name(value) for value in found]
    known = sorted(set(names))
    place = {name: number for number, name in enumerate(known)}
    move = np.array([place[name] for name in names] + [-1], dtype=np.int64)
    return move[codes], known


def _factorize_text(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `np.unique` would, by hashing the characters; where two texts' hashes agree, by sorting."""
    letters = values.view(np.uint32).reshape(len(values), -1)
    hashes = np.zeros(len(values), dtype=np.uint64)
    for place in range(letters.shape[1]):
        hashes *= MULTIPLIER
        hashes += letters[:, place]
        hashes ^= hashes >> np.uint64(29)
    codes, found = pd.factorize(hashes)
    first = np.zeros(len(found), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(values) - 1, -1, -1)
    if all(np.array_equal(letters[first, place][codes], letters[:, place]) for place in range(letters.shape[1])):
        return codes, values[first]
    names, places = np.unique(values, return_inverse=True)
    return places, names


def _name(value: object) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _crossed(one: tuple[np.ndarray, list[str]], other: tuple[np.ndarray, list[str]]) -> tuple[np.ndarray, list[str]]:
    """Return the groups of two features together, of those combinations that occur."""
    pairs = np.where((one[0] < 0) | (other[0] < 0), -1, one[0] * len(other[1]) + other[0])
    found = np.unique(pairs[pairs >= 0])
    names = [f"{one[1][pair // len(other[1])]} & {other[1][pair % len(other[1])]}" for pair in found]
    if len(set(names)) < len(names):
        raise DataError("Two combinations of sensitive values have one name: rename values that hold ' & '.")
    order = np.argsort(np.asarray(names, dtype=object), kind="stable")
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    move = np.full(len(one[1]) * len(other[1]) + 1, -1, dtype=np.int64)
    move[found] = rank
    return move[pairs], [names[place] for place in order]
