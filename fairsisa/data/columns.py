"""Turn a column's raw cells into what an examples table holds."""

from __future__ import annotations

import difflib
import hmac
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from fairsisa.errors import DataError
from fairsisa.tables import FEATURE, SPLITS

SPLIT_KEY = b"fairsisa split v1"
CATEGORY_KEY = b"fairsisa category v1"
DEFAULT_FRACTIONS = (0.6, 0.2, 0.2)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a half sentence that names the known word most like `word`, or lists the known ones."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices) or 'none'}."


def require_known(where: str, what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise DataError for the first of `given` that is not `known`, naming the nearest."""
    choices = set(known)
    for word in given:
        if word not in choices:
            raise DataError(f"{where}: unknown {what} {word!r}; {nearest(word, choices)}")


def refuse(name: str, ids: Sequence[str] | np.ndarray, bad: np.ndarray, what: str) -> None:
    """Raise DataError if any row is `bad`, with the number of rows and the first one's example id."""
    if bad.any():
        first = str(ids[int(bad.argmax())])
        raise DataError(f"{name}: {int(bad.sum())} of {len(bad)} rows {what}; the first is example {first!r}.")


def cell_text(cell: object) -> str | None:
    """Return a cell as text without blanks around it; None where it is missing."""
    if cell is None or cell != cell:  # noqa: PLR0124 - NaN, of whatever type, is what differs from itself
        return None
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip() or None


def numbers(name: str, column: str, cells: np.ndarray, ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return a column's cells as finite float64 numbers, shape (num_examples,).

    Raises:
        DataError: naming the column, the number of rows without a finite number and one example id.
    """
    values = pd.to_numeric(pd.Series(cells), errors="coerce").to_numpy(dtype=np.float64)
    refuse(name, ids, ~np.isfinite(values), f"hold no finite number in column {column!r}")
    return values


def numeric_feature(name: str, column: str, cells: np.ndarray, ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return a column's cells as finite float32 numbers, shape (num_examples,).

    Raises:
        DataError: as `numbers` does, and where a number is too large for float32.
    """
    values = numbers(name, column, cells, ids)
    too_large = np.abs(values) > np.finfo(np.float32).max
    refuse(name, ids, too_large, f"hold a number beyond single precision in column {column!r}")
    return values.astype(np.float32)


def one_hot(
    name: str, column: str, cells: np.ndarray, categories: Sequence[str], ids: Sequence[str] | np.ndarray
) -> dict[str, np.ndarray]:
    """Return one float32 column `feature:<column>=<category>` for each of the given categories.

    The categories are fixed beforehand: none is learnt from the cells.

    Raises:
        DataError: naming the first cell that is in no category, the number of such rows and one example id.
    """
    codes = pd.Index(list(categories), dtype=object).get_indexer(pd.Index(cells, dtype=object))
    unlisted = codes < 0
    if unlisted.any():
        value = cells[int(unlisted.argmax())]
        refuse(name, ids, unlisted, f"hold an unlisted category in column {column!r}, such as {value!r}")
    return {f"{FEATURE}{column}={value}": (codes == code).astype(np.float32) for code, value in enumerate(categories)}


def hashed_one_hot(column: str, cells: np.ndarray, num_buckets: int) -> dict[str, np.ndarray]:
    """Return float32 columns `feature:<column>#<bucket>`, a category's bucket drawn by a keyed SHA-256 hash.

    Two categories may share a bucket; a bucket never depends on any other row.
    """
    texts = np.asarray([f"{column}\0{'' if cell is None else cell}" for cell in cells], dtype=object)
    buckets = np.floor(keyed_uniform(texts, CATEGORY_KEY) * num_buckets).astype(np.int64)
    width = len(str(num_buckets - 1))
    return {f"{FEATURE}{column}#{b:0{width}d}": (buckets == b).astype(np.float32) for b in range(num_buckets)}


def band_names(cuts: Sequence[float]) -> list[str]:
    """Name the half-open intervals between ascending cuts: `under 25`, `25 to under 60`, `60 or over`."""
    ordered = all(low < high for low, high in itertools.pairwise(cuts))
    if not cuts or not ordered:
        raise DataError(f"Expected at least one cut, in ascending order, got {list(cuts)}.")
    between = [f"{low:g} to under {high:g}" for low, high in itertools.pairwise(cuts)]
    return [f"under {cuts[0]:g}", *between, f"{cuts[-1]:g} or over"]


def cut_into_bands(values: np.ndarray, cuts: Sequence[float]) -> np.ndarray:
    """Return the band name of each number, as objects; None where the number is NaN."""
    names = np.asarray([*band_names(cuts), None], dtype=object)
    bands = np.searchsorted(np.asarray(cuts, dtype=np.float64), values, side="right")
    return names[np.where(np.isnan(values), len(cuts) + 1, bands)]


def rename(
    name: str, column: str, cells: np.ndarray, names: Mapping[str, str], ids: Sequence[str] | np.ndarray
) -> np.ndarray:
    """Return each cell's name in `names`, as objects; None stays None.

    Raises:
        DataError: naming the first cell without a name, the number of such rows and one example id.
    """
    renamed = np.asarray([None if cell is None else names.get(cell) for cell in cells], dtype=object)
    nameless = np.asarray([new is None and old is not None for new, old in zip(renamed, cells, strict=True)])
    if nameless.any():
        value = cells[int(nameless.argmax())]
        refuse(name, ids, nameless, f"hold an unlisted value in column {column!r}, such as {value!r}")
    return renamed


def keyed_uniform(texts: Sequence[str] | np.ndarray, key: bytes) -> np.ndarray:
    """Return one number in [0, 1) per text, from its HMAC-SHA-256 under `key`; shape (len(texts),)."""
    heads = {
        text: int.from_bytes(hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256")[:6], "big")
        for text in texts
    }
    return np.asarray([heads[text] for text in texts], dtype=np.float64) / 2.0**48


def keyed_splits(subject_ids: Sequence[str] | np.ndarray, fractions: Sequence[float] = DEFAULT_FRACTIONS) -> np.ndarray:
    """Deal subjects to train, calibration and test by a keyed hash of their id, as objects.

    A subject's split depends on nothing but its own id, so removing anyone moves nobody else. `fractions` are the
    expected shares in that order; they sum to one.

    Raises:
        DataError: when `fractions` are not three shares.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or (shares < 0).any() or abs(shares.sum() - 1.0) > 1e-9:
        raise DataError(f"Expected three fractions for {', '.join(SPLITS)} that sum to 1, got {fractions}.")
    inner = np.cumsum(shares)[:2]
    parts = np.searchsorted(inner, keyed_uniform(subject_ids, SPLIT_KEY), side="right")
    return np.asarray(SPLITS, dtype=object)[parts]
