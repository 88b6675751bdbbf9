"""Artefacts taken out of a store, each step such that a kill leaves nothing half there."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from fairsisa.errors import CorruptArtefactError, MissingArtefactError, StoreError
from fairsisa.store.catalogue import Catalogue, key_of, owner_of
from fairsisa.store.files import write
from fairsisa.store.links import Links, below, parents_first
from fairsisa.store.manifest import MANIFEST, PAYLOAD, encode
from fairsisa.store.values import Removal


def doomed_by(wanted: Collection[str], links: Links, spare: Collection[str], *, descendants: bool) -> list[str]:
    """Return `wanted`, with `descendants` also all made from it, without `spare`; children before parents.

    Raises:
        StoreError: when something that stays is made from what goes.
    """
    doomed = {*wanted, *(below(wanted, links) if descendants else ())} - frozenset(spare)
    stranded = below(doomed, links)
    if stranded:
        raise StoreError(
            f"Expected nothing that stays to be made from what is purged, got {stranded[0]}: purge that too, or "
            "spare its ancestors."
        )
    return parents_first(doomed, links)[::-1]


def belongings(catalogue: Catalogue, names: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the keys of the artefacts' manifests, in the order of `names`, and of their payloads and partial files."""
    chosen = frozenset(names)
    partials = [key for key in catalogue.partials() if owner_of(key) in chosen]
    return [key_of(name, MANIFEST) for name in names], [*(key_of(name, PAYLOAD) for name in names), *partials]


def erase(catalogue: Catalogue, doomed: Sequence[str], *, orphans: bool) -> dict[str, int]:
    """Delete artefacts in this order, with `orphans` also every payload that no manifest wants; return the sizes.

    The manifests are gone for good before the first payload goes, so that no manifest stands without its payload.
    """
    manifests, others = belongings(catalogue, doomed)
    sizes = catalogue.files.delete(manifests)
    return sizes | catalogue.files.delete(dict.fromkeys([*others, *(catalogue.unowned() if orphans else ())]))


def drop(catalogue: Catalogue, names: Iterable[str]) -> Removal:
    """Mark the manifests as records first, then delete the payloads; names without a manifest are passed over."""
    records = []
    for name in sorted(set(names)):
        try:
            records.append(catalogue.manifest(name))
        except MissingArtefactError:
            continue
    marked = [record for record in records if record.kept]
    for record in marked:
        write(catalogue.files, key_of(record.lineage.name, MANIFEST), encode(replace(record, kept=False)))
    sizes = catalogue.files.delete(key_of(record.lineage.name, PAYLOAD) for record in records)
    gone = {record.lineage.name for record in marked} | set(map(owner_of, sizes))
    return Removal(tuple(sorted(gone)), sum(sizes.values()))


def mend(catalogue: Catalogue, names: Iterable[str]) -> Removal:
    """Delete the payloads that are not what their manifests record, and damaged manifests with their payloads."""
    sizes: dict[str, int] = {}
    for name in sorted(set(names)):
        try:
            manifest = catalogue.manifest(name)
        except MissingArtefactError:
            continue
        except CorruptArtefactError:
            sizes |= erase(catalogue, [name], orphans=False)
            continue
        try:
            if manifest.kept:
                catalogue.payload(manifest)
        except CorruptArtefactError:
            sizes |= catalogue.files.delete([key_of(name, PAYLOAD)])
    return Removal(tuple(dict.fromkeys(map(owner_of, sizes))), sum(sizes.values()))


def leftovers(catalogue: Catalogue, older_than: float) -> list[str]:
    """Return the keys of files that no artefact owns, last written at least `older_than` seconds ago, in order."""
    unowned = sorted([*catalogue.unowned(), *catalogue.partials()])
    ages = {key: written for key in unowned if (written := catalogue.files.modified(key)) is not None}
    now = time.time()
    return [key for key, written in ages.items() if max(now - written, 0.0) >= older_than]
