"""Items: what a benchmark asks, one prompt, pair or text each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fairsisa.errors import DataError
from fairsisa.lineage import canonical_json

Label = str | int | float | bool | None


@dataclass(frozen=True)
class Item:
    """One thing that is asked of a model.

    `context` is what comes first: a prompt, a context with a blank, or nothing. `options` are the alternatives that
    are scored, in the benchmark's order; an open prompt has none. `cluster` says which items belong together when
    intervals are drawn (a target term, a scenario, a template). `labels` hold what a judgement or a break-down needs:
    groups, the key, the direction of a stereotype; plain JSON values.
    """

    item_id: str
    context: str
    options: tuple[str, ...]
    cluster: str
    labels: Mapping[str, Label] = field(default_factory=dict)


@dataclass(frozen=True)
class Malformed:
    """A row of the source that cannot be asked, and why; it is counted and named, never dropped in silence."""

    item_id: str
    reason: str


@dataclass(frozen=True)
class ItemTable:
    """The items of a benchmark, and the rows of its source that cannot be asked.

    Raises:
        DataError: when there is no item, or an id occurs twice.
    """

    items: tuple[Item, ...]
    malformed: tuple[Malformed, ...] = ()

    def __post_init__(self) -> None:
        if not self.items:
            first = f"; the first of {len(self.malformed)}: {self.malformed[0].reason}" if self.malformed else ""
            raise DataError(f"Expected a benchmark to hold an item that can be asked, got none{first}.")
        repeated = _first_repeated([*(item.item_id for item in self.items), *(bad.item_id for bad in self.malformed)])
        if repeated is not None:
            raise DataError(f"Expected every item to have an id of its own, got {repeated!r} twice.")

    @property
    def digest(self) -> str:
        """A SHA-256 over all items, in order."""
        return items_digest(self.items)


def items_digest(items: Sequence[Item]) -> str:
    """Return a SHA-256 over items: all that they ask and how they are judged."""
    total = hashlib.sha256()
    for item in items:
        total.update(
            canonical_json([item.item_id, item.context, list(item.options), item.cluster, dict(item.labels)]) + b"\n"
        )
    return total.hexdigest()


def _first_repeated(ids: Iterable[str]) -> str | None:
    seen = set[str]()
    for each in ids:
        if each in seen:
            return each
        seen.add(each)
    return None
