"""Garbage collection: a store keeps what its claims need, once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from fairsisa.errors import CorruptArtefactError, StoreError
from fairsisa.store.catalogue import Catalogue, key_of, owner_of
from fairsisa.store.claims import read_claims
from fairsisa.store.links import above, parents_first
from fairsisa.store.manifest import PAYLOAD, Manifest
from fairsisa.store.removing import belongings, erase, leftovers
from fairsisa.store.values import Collected, Removal


def collect(catalogue: Catalogue, *, older_than: float, without_claims: bool, dry_run: bool) -> Collected:
    """Do what `Store.collect` promises; the caller holds the lock."""
    doomed = _unneeded(catalogue, without_claims)
    manifests, others = belongings(catalogue, doomed)
    stale = sorted(set(leftovers(catalogue, older_than)) - set(others))
    if dry_run:
        purged, swept = _sizes(catalogue, [*manifests, *others]), _sizes(catalogue, stale)
    else:
        purged, swept = erase(catalogue, doomed, orphans=False), catalogue.files.delete(stale)
    shared = _share(catalogue, set(catalogue.names()) - set(doomed), dry_run)
    return Collected(
        purged=Removal(tuple(dict.fromkeys(map(owner_of, purged))), sum(purged.values())),
        swept=Removal(tuple(swept), sum(swept.values())),
        shared=Removal(tuple(shared), sum(shared.values())),
    )


def _unneeded(catalogue: Catalogue, without_claims: bool) -> list[str]:
    links, claims = catalogue.links(), read_claims(catalogue)
    if links and not claims and not without_claims:
        raise StoreError(
            f"Expected a claim in {catalogue.files.location}, found none that stands, which would make all of its "
            f"{len(links)} artefacts garbage: let each run that uses the store claim what it needs, or ask for "
            "without_claims=True to delete them all."
        )
    needed = above({name for claim in claims for name in claim.names}, links)
    return parents_first(links.keys() - needed, links)[::-1]


def _sizes(catalogue: Catalogue, keys: Iterable[str]) -> dict[str, int]:
    found = ((key, catalogue.files.status(key)) for key in keys)
    return {key: status.num_bytes for key, status in found if status is not None}


def _share(catalogue: Catalogue, names: Collection[str], dry_run: bool) -> dict[str, int]:
    files, saved = catalogue.files, {}
    for twins in _twins(catalogue, names):
        for target in twins[1:]:
            keys = key_of(twins[0].lineage.name, PAYLOAD), key_of(target.lineage.name, PAYLOAD)
            if files.shareable(*keys) and (dry_run or files.share(*keys)):
                saved[target.lineage.name] = target.num_bytes
    return saved


def _twins(catalogue: Catalogue, names: Collection[str]) -> list[list[Manifest]]:
    sizes, twins = defaultdict(list), defaultdict(list)
    for row in filter(None, map(catalogue.record, sorted(names))):
        if row.kept:
            sizes[row.num_bytes].append(row.name)
    for alike in sizes.values():
        for manifest in map(catalogue.manifest, alike if len(alike) > 1 else ()):
            twins[manifest.sha256].append(manifest)
    return [_sound(catalogue, alike) for alike in twins.values() if _are_apart(catalogue, alike)]


def _are_apart(catalogue: Catalogue, alike: list[Manifest]) -> bool:
    first, *others = (key_of(manifest.lineage.name, PAYLOAD) for manifest in alike)
    return any(catalogue.files.shareable(first, other) for other in others)


def _sound(catalogue: Catalogue, alike: list[Manifest]) -> list[Manifest]:
    # a size and digest on record are no proof: a damaged payload stays as it is, to be found and made again
    sound = []
    for manifest in alike:
        try:
            catalogue.payload(manifest)
        except CorruptArtefactError:
            continue
        sound.append(manifest)
    return sound
