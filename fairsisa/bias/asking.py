"""Put items to a model, part by part, each part kept in a store before the next is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fairsisa.bias.answers import Answers, from_tensors, joined, to_tensors
from fairsisa.bias.benchmark import Readout
from fairsisa.bias.candidate import Candidate
from fairsisa.bias.items import Item, items_digest
from fairsisa.execution.local import computing_threads
from fairsisa.lineage import Lineage
from fairsisa.models.device import numeric_environment
from fairsisa.settings import ScoringSettings, plain
from fairsisa.store import Store

ANSWERS_KIND = "answers"
ASKING_VERSION = 2
"""Raised whenever a change of code changes what models answer; it is part of every answer's name."""
Tell = Callable[[int, int], None]
"""Told how many items are answered, and how many there are."""


def ask_items(
    candidate: Candidate,
    items: Sequence[Item],
    readout: Readout,
    scoring: ScoringSettings,
    *,
    store: Store,
    tell: Tell = lambda done, total: None,
) -> Answers:
    """Return what a model answers to items, rows in the order of the items; what the store has is not asked again.

    Items are asked by length, `readout.chunk` at a time; each part is an artefact whose name covers the model's
    digest, the items, the readout and how it was asked. So the same command goes on where it was killed, nothing is
    asked twice, and what a model of a run said is purged together with that model.

    Raises:
        FairsisaError: of the kind that fits, when the readout or the store refuses.
    """
    parts, done = list[Answers](), 0
    with computing_threads(scoring.threads):
        for chunk in chunks_of(items, readout.chunk):
            lineage = answers_lineage(candidate, chunk, readout, scoring)
            kept = _kept(store, lineage)
            parts.append(_asked(candidate, chunk, readout, scoring, (store, lineage)) if kept is None else kept)
            done += len(chunk)
            tell(done, len(items))
    return _in_order(joined(parts), items)


def answers_lineage(candidate: Candidate, items: Sequence[Item], readout: Readout, scoring: ScoringSettings) -> Lineage:
    """Return the lineage of what a model answers to some items."""
    precision = "fp32" if scoring.precision == "fp32" else "bf16"
    return Lineage(
        kind=ANSWERS_KIND,
        parents=candidate.parents,
        examples=(),
        inputs=(candidate.digest, items_digest(items)),
        settings={
            "version": ASKING_VERSION,
            "ask": f"{readout.ask.__module__}.{readout.ask.__qualname__}",
            "settings": dict(readout.settings),
            "scoring": plain(scoring),
            "numerics": dict(numeric_environment(scoring.accelerator, precision, scoring.threads)),
        },
    )


def chunks_of(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items by the length of what they ask, `size` at a time; the longest first, for memory's sake."""
    ordered = sorted(items, key=lambda item: (-_length(item), item.item_id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _asked(
    candidate: Candidate,
    chunk: Sequence[Item],
    readout: Readout,
    scoring: ScoringSettings,
    place: tuple[Store, Lineage],
) -> Answers:
    store, lineage = place
    answers = readout.ask(candidate, chunk, scoring, readout.settings)
    environment: Mapping[str, Any] = lineage.settings["numerics"]
    store.put(lineage, to_tensors(answers), {"candidate": candidate.name}, environment=dict(environment))
    return answers


def _kept(store: Store, lineage: Lineage) -> Answers | None:
    return from_tensors(store.get(lineage.name).tensors) if store.has(lineage.name) else None


def _in_order(answers: Answers, items: Sequence[Item]) -> Answers:
    """Return answers by the order of their items, those of one item in their own order."""
    places = {item.item_id: place for place, item in enumerate(items)}
    rows = answers.frame["item_id"].map(places).argsort(kind="stable").to_numpy()
    vectors = None if answers.vectors is None else answers.vectors[rows]
    return Answers(answers.frame.iloc[rows].reset_index(drop=True), vectors)


def _length(item: Item) -> int:
    return len(item.context) + sum(map(len, item.options))
