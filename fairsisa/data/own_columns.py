"""Say which column of the user's file holds what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from types import MappingProxyType
from typing import Any

from fairsisa.data.columns import DEFAULT_FRACTIONS, cell_text, require_known
from fairsisa.errors import DataError
from fairsisa.tables import SPLITS

UNSET = (None, "???")


@dataclass(frozen=True)
class OwnColumns:
    """Which column of the user's file holds what; see `load_own`."""

    label: str
    example_id: str | None = None
    subject_id: str | None = None
    text: str | None = None
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    num_buckets: int = 32
    positive: str | None = None
    classes: tuple[str, ...] = ()
    sensitive: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    split: str | None = None
    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    risk: str | None = None

    def __post_init__(self) -> None:
        has_features = bool(self.numeric or self.categorical)
        if (self.text is not None) == has_features:
            raise DataError(
                f"columns: expected either text, or numeric and categorical, got "
                f"{'both' if has_features else 'neither'}. Set data.columns.text, or data.columns.numeric."
            )
        require_known("columns.categories", "column", self.categories, self.categorical)
        both = sorted(set(self.numeric) & set(self.categorical))
        if both:
            raise DataError(f"columns: {both[0]!r} is both numeric and categorical. Name it once.")
        if self.num_buckets < 1:
            raise DataError(f"columns: expected num_buckets of at least 1, got {self.num_buckets}.")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Every column to read, once each."""
        single = (self.label, self.example_id, self.subject_id, self.text, self.split, self.risk)
        named = [column for column in single if column is not None]
        return tuple(dict.fromkeys([*named, *self.numeric, *self.categorical, *self.sensitive]))


def parse_columns(columns: Mapping[str, Any]) -> OwnColumns:
    """Return the mapping's checked form.

    Raises:
        DataError: when a key is unknown, `label` is absent, or a value is of the wrong kind.
    """
    given = {str(key): value for key, value in columns.items() if value not in UNSET}
    require_known("columns", "key", given, [key.name for key in fields(OwnColumns)])
    if "label" not in given:
        raise DataError("columns: expected the name of the label's column. Set data.columns.label.")
    return OwnColumns(**{key: _parse(key, value) for key, value in given.items()})


def _parse(key: str, value: Any) -> Any:
    parser: Callable[[str, Any], Any] = _PARSERS.get(key, _name)
    return parser(key, value)


def _name(key: str, value: Any) -> str:
    text = cell_text(value)
    if text is None:
        raise DataError(f"columns.{key}: expected a name, got {value!r}.")
    return text


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"columns.{key}: expected a list, got {value!r}. Write [{value}].")
    return tuple(_name(key, entry) for entry in value)


def _categories(key: str, value: Any) -> dict[str, tuple[str, ...]]:
    return {column: _names(f"{key}.{column}", listed) for column, listed in _mapping(key, value).items()}


def _sensitive(key: str, value: Any) -> dict[str, tuple[float, ...]]:
    entries = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    cuts: dict[str, tuple[float, ...]] = {}
    for entry in entries:
        named = entry if isinstance(entry, Mapping) else {_name(key, entry): None}
        cuts |= {str(column): () if at is None else _cuts(f"{key}.{column}", at) for column, at in named.items()}
    return cuts


def _cuts(key: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(_is_number(cut) for cut in value):
        raise DataError(f"columns.{key}: expected a list of numbers to cut at, got {value!r}.")
    return tuple(float(cut) for cut in value)


def _fractions(key: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, Mapping):
        return _cuts(key, value)
    require_known(f"columns.{key}", "split", value, SPLITS)
    return _cuts(key, [value.get(split, 0.0) for split in SPLITS])


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"columns.{key}: expected a whole number, got {value!r}.")
    return value


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"columns.{key}: expected a mapping from column to list, got {value!r}.")
    return {str(column): listed for column, listed in value.items() if listed is not None}


_PARSERS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "numeric": _names,
        "categorical": _names,
        "classes": _names,
        "categories": _categories,
        "sensitive": _sensitive,
        "fractions": _fractions,
        "num_buckets": _count,
    }
)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
