"""The store: artefacts under the names their lineages give them, each there whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from fairsisa.errors import CorruptArtefactError, MissingArtefactError, StoreError
from fairsisa.lineage import Lineage, plain
from fairsisa.store.catalogue import Catalogue, key_of, owner_of
from fairsisa.store.claims import claim_by, claim_key, read_claims, write_claim
from fairsisa.store.collecting import collect
from fairsisa.store.durable import explained
from fairsisa.store.files import Files
from fairsisa.store.links import above, below, parents_first
from fairsisa.store.local import LocalFiles
from fairsisa.store.manifest import MANIFEST, PAYLOAD, Manifest, corrupt, encode
from fairsisa.store.payload import to_bytes
from fairsisa.store.remote import RemoteFiles, is_url
from fairsisa.store.removing import doomed_by, drop, erase, leftovers, mend
from fairsisa.store.values import Artefact, Collected, Entry, Removal

NO_VALUES: Mapping[str, Any] = MappingProxyType({})


class Store:
    """A handle on a directory of artefacts, `objects/<first two digits>/<name>.safetensors` with `<name>.json`.

    `root` is a folder, or a URL that fsspec knows, such as "s3://bucket/prefix".

    An artefact exists when its manifest is whole, belongs to its name and records the size of its payload. While it
    exists, so do its ancestors, or at least the records that `drop` leaves of them: `put` wants the parents in place,
    and `purge` takes children before parents. Hence the ids behind an artefact can always be told. Any number of
    processes may use one store; those that change it wait for each other up to `patience` seconds. A remote store has
    no locks and syncs nothing: any number may read and put, also the same names, but `purge`, `drop`, `sweep`,
    `collect` and `claim` are for one command at a time, and all but the last for when nobody puts. Names are 64
    hexadecimal digits; anything else is a ValueError.

    Raises:
        StoreError: from every method, when the disk refuses, a symbolic link stands in the way, or the wait is over.
    """

    def __init__(self, root: Path | str, *, patience: float = 60.0) -> None:
        self.patience = patience
        self._files = _files_at(root)
        self._catalogue = Catalogue(self._files)

    @property
    def location(self) -> str:
        """The absolute path or URL of the store; `Store(location)` is the same store, in any process."""
        return self._files.location

    @property
    def root(self) -> Path:
        """The absolute path of a local store; StoreError for a remote one, which has none."""
        if not isinstance(self._files, LocalFiles):
            raise StoreError(f"Expected a store on a local disk, got {self.location}: ask for its location instead.")
        return self._files.root

    def put(
        self,
        lineage: Lineage,
        tensors: Mapping[str, torch.Tensor],
        metadata: Mapping[str, Any] = NO_VALUES,
        *,
        environment: Mapping[str, Any] = NO_VALUES,
    ) -> str:
        """Keep an artefact under its lineage's name; return the name once it would survive a power cut.

        `tensors` may be empty; each is written out in full, also where two share memory. Needs a second copy of the
        tensors in memory. Where the same bytes exist nothing changes, metadata included; a damaged copy is replaced,
        and what was dropped is there again.

        Raises:
            MissingArtefactError: when a parent is not in the store, or no longer, not even as a record.
            StoreError: when the name exists, or did, with other bytes: its making is not deterministic.
            ValueError: naming the key, when a tensor cannot be kept, or a note is not plain JSON.
        """
        payload = to_bytes(tensors)
        notes = {"metadata": plain(metadata, "metadata"), "environment": plain(environment, "environment")}
        digest, now = hashlib.sha256(payload).hexdigest(), datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(lineage, num_bytes=len(payload), sha256=digest, created=now, **notes)
        with explained(f"put {lineage.kind} {lineage.name} into {self.location}"):
            if not self._keeps(manifest):
                self._publish(manifest, payload)
        return lineage.name

    def get(self, name: str) -> Artefact:
        """Return an artefact, its payload checked against the SHA-256 on record; needs twice its size in memory.

        Raises:
            MissingArtefactError: when there is no such artefact, or only the record of one that was dropped.
            CorruptArtefactError: when its manifest or payload is damaged.
        """
        manifest = self.manifest(name)
        if not manifest.kept:
            raise MissingArtefactError(
                f"Expected {manifest.lineage.kind} {name} in {self.location} with its payload, which a retention "
                "policy dropped: train again, and it will be there again."
            )
        payload = self._catalogue.payload(manifest)
        try:
            tensors = safetensors.torch.load(payload)
        except SafetensorError as error:
            place = self._catalogue.place(key_of(name, PAYLOAD))
            raise corrupt(place, f"is no safetensors file ({error})") from error
        return Artefact(manifest.lineage, tensors, manifest.metadata)

    def has(self, name: str) -> bool:
        """Return whether the artefact exists; its payload's size is checked, its bytes are not (`get` does)."""
        found = self._catalogue.record(name)
        return found is not None and found.kept

    def manifest(self, name: str) -> Manifest:
        """Return what is on record about an artefact, also about one that was dropped.

        Raises:
            MissingArtefactError: when there is no such manifest.
            CorruptArtefactError: when the manifest is damaged or belongs to another name.
        """
        return self._catalogue.manifest(name)

    def records(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Return a row for every artefact that exists or was dropped, or for those of one kind, ordered by name."""
        found = map(self._catalogue.record, self._catalogue.names())
        return tuple(entry for entry in found if entry is not None and kind in (None, entry.kind))

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Return a row for every artefact that exists, or for those of one kind, ordered by name."""
        return tuple(entry for entry in self.records(kind) if entry.kept)

    def names(self, kind: str | None = None) -> tuple[str, ...]:
        """Return the names of the artefacts that exist, or of those of one kind, in order."""
        return tuple(entry.name for entry in self.entries(kind))

    def children(self, name: str) -> tuple[str, ...]:
        """Return the artefacts that have `name` as a parent; CorruptArtefactError when a manifest is damaged."""
        key_of(name, MANIFEST)
        return tuple(child for child, parents in self._catalogue.links().items() if name in parents)

    def descendants(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return all that is made from `names`, directly or not, parents before children, without `names`.

        The names themselves need not exist (any more).

        Raises:
            CorruptArtefactError: when a damaged manifest hides what an artefact is made from.
        """
        return tuple(below(_checked(names), self._catalogue.links()))

    def example_ids(self, name: str) -> frozenset[str]:
        """Return the ids of all examples behind an artefact: its own and its ancestors'.

        Raises:
            MissingArtefactError: when the artefact or an ancestor does not exist.
            CorruptArtefactError: when a manifest on the way is damaged.
        """
        ids: set[str] = set()
        waiting, met = [name], {name}
        while waiting:
            lineage = self.manifest(waiting.pop()).lineage
            ids.update(lineage.examples)
            waiting += set(lineage.parents) - met
            met.update(lineage.parents)
        return frozenset(ids)

    def known_ids(self, kind: str | None = None) -> frozenset[str]:
        """Return the ids of all examples that enter at any artefact or record, or at those of one kind.

        Reads every manifest.

        Raises:
            CorruptArtefactError: when a damaged manifest hides which examples an artefact is made from.
        """
        ids: set[str] = set()
        for name in self._catalogue.names():
            try:
                lineage = self.manifest(name).lineage
            except MissingArtefactError:  # purged by another process since the listing
                continue
            if kind in (None, lineage.kind):
                ids.update(lineage.examples)
        return frozenset(ids)

    def find(self, example_ids: Iterable[str]) -> tuple[str, ...]:
        """Return the names of all artefacts and records with any of the examples behind them, parents first.

        Reads every manifest.

        Raises:
            CorruptArtefactError: when an artefact's manifest or ancestors cannot be read, so that nobody can tell.
        """
        wanted = frozenset(example_ids)
        with explained(f"search {self.location}"), self._locked():
            links = self._catalogue.links()
            for child, parents in links.items():
                if not links.keys() >= set(parents):
                    place = self._catalogue.place(key_of(child, MANIFEST))
                    raise corrupt(place, "names a parent that is not in the store")
            holding = [name for name in links if not wanted.isdisjoint(self.manifest(name).lineage.examples)]
        return tuple(parents_first([*holding, *below(holding, links)], links))

    def purge(self, names: Iterable[str], *, descendants: bool = True, spare: Collection[str] = ()) -> Removal:
        """Delete artefacts, damaged ones and unfinished files of theirs included; a name that is gone is no error.

        All that is made from `names` goes with them, except `spare`: what others claim, which comes with its
        ancestors (`claimed_by_others`). A payload without a manifest goes as well, so that a purge that was killed is
        completed by the next one.

        Raises:
            StoreError: when something that stays is made from what goes: it is spared, or `descendants` is false.
            CorruptArtefactError: when the manifest of another artefact is damaged, which may descend from `names`.
        """
        wanted, spared = _checked(names), _checked(spare)
        with explained(f"purge from {self.location}"), self._locked():
            links = self._catalogue.links(spare=wanted - spared)
            doomed = doomed_by(wanted, links, spared, descendants=descendants)
            sizes = erase(self._catalogue, doomed, orphans=True)
        return Removal(tuple(dict.fromkeys(map(owner_of, sizes))), sum(sizes.values()))

    def drop(self, names: Iterable[str]) -> Removal:
        """Delete payloads and keep the manifests as records, so that descendants know all examples behind them.

        Putting the same bytes again brings an artefact back. A name that is gone or dropped already is no error.

        Raises:
            CorruptArtefactError: when a manifest is damaged; nothing was dropped.
        """
        with explained(f"drop from {self.location}"), self._locked():
            return drop(self._catalogue, _checked(names))

    def mend(self, names: Iterable[str]) -> Removal:
        """Delete those of the artefacts whose bytes are not those on record, and nothing made from them.

        What is deleted is missing from then on: make it again at once, since its descendants want it in place.
        """
        with explained(f"mend {self.location}"), self._locked():
            return mend(self._catalogue, _checked(names))

    def claim(self, owner: Path | str, names: Iterable[str]) -> None:
        """Write down, in place of an earlier claim, that a run directory needs these names and their ancestors.

        The names need not exist yet: claim first, then make. The claim is void once the directory is gone.

        Raises:
            ValueError: when there is no such directory.
        """
        made = claim_by(owner, names)
        with explained(f"claim for {made.owner} in {self.location}"), self._locked():
            write_claim(self._catalogue, made)

    def unclaim(self, owner: Path | str) -> None:
        """Withdraw the claim of a run directory, which may be gone; no claim is no error."""
        with explained(f"withdraw the claim of {owner} in {self.location}"), self._locked():
            self._files.delete([claim_key(owner)])

    def claims(self) -> Mapping[str, frozenset[str]]:
        """Return the claimed names by owner, for owners that exist or lie on another machine.

        Raises:
            CorruptArtefactError: naming the file, when a claim is damaged: a guess would delete somebody's work.
        """
        with explained(f"read the claims in {self.location}"):
            found = read_claims(self._catalogue)
        return {claim.owner: frozenset(claim.names) for claim in found}

    def claimed_by_others(self, owner: Path | str) -> frozenset[str]:
        """Return what all owners but this one claim, and the ancestors of that, as far as they are in the store.

        Raises:
            CorruptArtefactError: when a claim or a manifest is damaged.
        """
        own = str(Path(owner).resolve())
        needed = {name for other, names in self.claims().items() if other != own for name in names}
        return above(needed, self._catalogue.links())

    def collect(self, *, older_than: float, without_claims: bool = False, dry_run: bool = False) -> Collected:
        """Purge what no claim needs, sweep leftovers, and keep payloads of equal bytes once, by hard links.

        Leftovers were last written at least `older_than` seconds ago. Artefacts that share a file stay apart for
        all else; the bytes are free when the last of them is purged. With `dry_run`, nothing changes.

        Raises:
            StoreError: when artefacts exist but no claim stands, unless `without_claims` says to purge them all.
            CorruptArtefactError: when a claim or a manifest is damaged, so that nobody can tell what is needed.
        """
        with explained(f"collect garbage in {self.location}"), self._locked():
            return collect(self._catalogue, older_than=older_than, without_claims=without_claims, dry_run=dry_run)

    def verify(self) -> dict[str, str]:
        """Return what is wrong with each damaged artefact, by name, after reading every byte of the store."""
        found = {}
        for name in self._catalogue.names():
            try:
                self.check(name)
            except CorruptArtefactError as error:
                found[name] = str(error)
        return found

    def check(self, name: str) -> None:
        """Read an artefact's every byte; raise MissingArtefactError or CorruptArtefactError unless it is whole.

        Of one that was dropped, the record is all there is to read.
        """
        manifest = self.manifest(name)
        if manifest.kept:
            self._catalogue.payload(manifest)

    def leftovers(self, *, older_than: float) -> tuple[str, ...]:
        """Return files that no artefact owns, relative to the root, last written at least `older_than` seconds ago."""
        with explained(f"look through {self.location}"):
            return tuple(leftovers(self._catalogue, older_than))

    def sweep(self, *, older_than: float) -> Removal:
        """Delete the leftovers; while others write, `older_than` must exceed the seconds that one `put` takes."""
        with explained(f"sweep {self.location}"), self._locked():
            sizes = self._files.delete(leftovers(self._catalogue, older_than))
        return Removal(tuple(sizes), sum(sizes.values()))

    def _keeps(self, manifest: Manifest) -> bool:
        name = manifest.lineage.name
        try:
            kept = self.manifest(name)
            if kept.kept:
                self._catalogue.payload(kept)
        except (MissingArtefactError, CorruptArtefactError):
            return False
        if kept.sha256 != manifest.sha256:
            raise StoreError(
                f"Expected {manifest.lineage.kind} {name} to have SHA-256 {kept.sha256} as when it was first made, "
                f"got {manifest.sha256}: its making is not deterministic. Put what differs (device, threads, library "
                "versions) into its settings, so that the names differ too."
            )
        return kept.kept

    def _publish(self, manifest: Manifest, payload: bytes) -> None:
        lineage, text = manifest.lineage, encode(manifest)
        first, second = key_of(lineage.name, PAYLOAD), key_of(lineage.name, MANIFEST)
        with (
            self._files.staged(first, payload) as publish_payload,
            self._files.staged(second, text) as publish_manifest,
            self._locked(),
        ):
            self._expect_parents(lineage)
            if not self._keeps(manifest):
                if self._is_damaged(lineage.name):  # no manifest may ever stand beside another's payload
                    self._files.delete([second])
                publish_payload()
                publish_manifest()

    def _is_damaged(self, name: str) -> bool:
        try:
            self.check(name)
        except MissingArtefactError:
            return False
        except CorruptArtefactError:
            return True
        return False

    def _expect_parents(self, lineage: Lineage) -> None:
        for parent in lineage.parents:
            if self._catalogue.record(parent) is None:
                raise MissingArtefactError(
                    f"Expected parent {parent} of {lineage.kind} {lineage.name} in {self.location}, found none: "
                    "it was purged, or never made; make it again first."
                )

    def _locked(self) -> AbstractContextManager[None]:
        return self._files.locked(self.patience)


def _files_at(root: Path | str) -> Files:
    if not is_url(root):
        return LocalFiles(Path(root).resolve())
    if isinstance(root, Path):
        raise ValueError(f"Expected the URL of a store as str, got the Path {root}, which has lost a slash.")
    return RemoteFiles(root)


def _checked(names: Iterable[str]) -> set[str]:
    wanted = set(names)
    for name in wanted:
        key_of(name, MANIFEST)
    return wanted
