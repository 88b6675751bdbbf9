"""Artefacts on disk under the names their lineages give them: each is there whole, or not at all."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fairsisa.errors import CorruptArtefactError, MissingArtefactError, StoreError
from fairsisa.lineage import Lineage, plain
from fairsisa.store.durable import PARTIAL, delete, explained, files_in, make_folder, publish, staged, status_of
from fairsisa.store.manifest import MANIFEST, PAYLOAD, Manifest, corrupt, decode, encode
from fairsisa.store.payload import to_bytes

NAME, FOLDER = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{2}")
NO_VALUES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Artefact:
    """An artefact as it came back from disk, its bytes verified; an emptied slice has no tensors."""

    lineage: Lineage
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One row of a listing; `num_examples` counts the artefact's own examples, without its ancestors'."""

    name: str
    kind: str
    parents: tuple[str, ...]
    num_examples: int
    num_bytes: int
    created: str


@dataclass(frozen=True)
class Removal:
    """What was deleted: names of artefacts or files, and the bytes they took."""

    names: tuple[str, ...]
    num_bytes: int


class Store:
    """A handle on a directory of artefacts, `objects/<first two digits>/<name>.safetensors` with `<name>.json`.

    An artefact exists when its manifest is whole, belongs to its name and records the size of its payload. While it
    exists, so do its ancestors: `put` wants the parents in place, and `purge` takes children before parents. Hence
    the ids behind an artefact can always be told. Any number of processes may use one store; those that change it
    wait for each other up to `patience` seconds. Names are 64 hexadecimal digits; anything else is a ValueError.

    Raises:
        StoreError: from every method, when the disk refuses, a symbolic link stands in the way, or the wait is over.
    """

    def __init__(self, root: Path | str, *, patience: float = 60.0) -> None:
        self.root = Path(root).resolve()
        self.patience = patience
        self._seen: dict[str, tuple[tuple[int, ...], Entry]] = {}

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
        tensors in memory. Where the same bytes exist nothing changes, metadata included; a damaged copy is replaced.

        Raises:
            MissingArtefactError: when a parent is not in the store, or no longer.
            StoreError: when the name exists with other bytes: its making is not deterministic.
            ValueError: naming the key, when a tensor cannot be kept, or a note is not plain JSON.
        """
        payload = to_bytes(tensors)
        notes = {"metadata": plain(metadata, "metadata"), "environment": plain(environment, "environment")}
        digest, now = hashlib.sha256(payload).hexdigest(), datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(lineage, num_bytes=len(payload), sha256=digest, created=now, **notes)
        with explained(f"put {lineage.kind} {lineage.name} into {self.root}"):
            if not self._keeps(manifest):
                self._publish(manifest, payload)
        return lineage.name

    def get(self, name: str) -> Artefact:
        """Return an artefact, its payload checked against the SHA-256 on record; needs twice its size in memory.

        Raises:
            MissingArtefactError: when there is no such artefact.
            CorruptArtefactError: when its manifest or payload is damaged.
        """
        manifest = self.manifest(name)
        payload = self._payload(manifest)
        try:
            tensors = safetensors.torch.load(payload)
        except SafetensorError as error:
            raise corrupt(self._path(name, PAYLOAD), f"is no safetensors file ({error})") from error
        return Artefact(manifest.lineage, tensors, manifest.metadata)

    def has(self, name: str) -> bool:
        """Return whether the artefact exists; its payload's size is checked, its bytes are not (`get` does)."""
        return self._sound(name) is not None

    def manifest(self, name: str) -> Manifest:
        """Return what is on record about an artefact.

        Raises:
            MissingArtefactError: when there is no such manifest.
            CorruptArtefactError: when the manifest is damaged or belongs to another name.
        """
        path = self._path(name, MANIFEST)
        with explained(f"read {path}"):
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                raise _missing(name, self.root) from None
        return decode(text, path)

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Return a row for every artefact that exists, or for those of one kind, ordered by name."""
        found = (self._sound(name) for name in self._scan())
        return tuple(entry for entry in found if entry is not None and kind in (None, entry.kind))

    def names(self, kind: str | None = None) -> tuple[str, ...]:
        """Return the names of the artefacts that exist, or of those of one kind, in order."""
        return tuple(entry.name for entry in self.entries(kind))

    def children(self, name: str) -> tuple[str, ...]:
        """Return the artefacts that have `name` as a parent; CorruptArtefactError when a manifest is damaged."""
        self._path(name, MANIFEST)
        return tuple(child for child, parents in self._links().items() if name in parents)

    def descendants(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return all that is made from `names`, directly or not, parents before children, without `names`.

        The names themselves need not exist (any more).

        Raises:
            CorruptArtefactError: when a damaged manifest hides what an artefact is made from.
        """
        return tuple(_below({self._checked(name) for name in names}, self._links()))

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

    def find(self, example_ids: Iterable[str]) -> tuple[str, ...]:
        """Return the names of all artefacts that any of the examples stands behind, parents before children.

        Reads every manifest.

        Raises:
            CorruptArtefactError: when an artefact's manifest or ancestors cannot be read, so that nobody can tell.
        """
        wanted = frozenset(example_ids)
        with explained(f"search {self.root}"), self._locked():
            links = self._links()
            for child, parents in links.items():
                if not links.keys() >= set(parents):
                    raise corrupt(self._path(child, MANIFEST), "names a parent that is not in the store")
            holding = [name for name in links if not wanted.isdisjoint(self.manifest(name).lineage.examples)]
        return tuple(_parents_first([*holding, *_below(holding, links)], links))

    def purge(self, names: Iterable[str], *, descendants: bool = True) -> Removal:
        """Delete artefacts, damaged ones and unfinished files of theirs included; a name that is gone is no error.

        A payload without a manifest goes as well, so that a purge that was killed is completed by the next one.

        Raises:
            StoreError: when `descendants` is false and something else in the store is made from `names`.
            CorruptArtefactError: when the manifest of another artefact is damaged, which may descend from `names`.
        """
        wanted = {self._checked(name) for name in names}
        with explained(f"purge from {self.root}"), self._locked():
            links = self._links(spare=wanted)
            below = _below(wanted, links)
            if below and not descendants:
                raise StoreError(f"Expected nothing to be made from what is purged, got {below[0]}: purge that too.")
            doomed = _parents_first([*wanted, *below], links)[::-1]
            sizes = delete(self._path(name, MANIFEST) for name in doomed)
            partials = [path for path in self._files() if path.suffix == PARTIAL and _owner(path) in doomed]
            sizes |= delete([*self._orphans(), *partials])
        return Removal(tuple(dict.fromkeys(map(_owner, sizes))), sum(sizes.values()))

    def verify(self) -> dict[str, str]:
        """Return what is wrong with each damaged artefact, by name, after reading every byte of the store."""
        found = {}
        for name in self._scan():
            try:
                self.check(name)
            except CorruptArtefactError as error:
                found[name] = str(error)
        return found

    def check(self, name: str) -> None:
        """Read an artefact's every byte; raise MissingArtefactError or CorruptArtefactError unless it is whole."""
        self._payload(self.manifest(name))

    def leftovers(self, *, older_than: float) -> tuple[Path, ...]:
        """Return files of unfinished work that no artefact owns, last written at least `older_than` seconds ago."""
        with explained(f"look through {self.root}"):
            unowned = [*self._orphans(), *(path for path in self._files() if path.suffix == PARTIAL)]
            known = {path: status for path in sorted(unowned) if (status := status_of(path)) is not None}
        now = time.time()
        return tuple(path for path, status in known.items() if max(now - status.st_mtime, 0.0) >= older_than)

    def sweep(self, *, older_than: float) -> Removal:
        """Delete the leftovers; while others write, `older_than` must exceed the seconds that one `put` takes."""
        with explained(f"sweep {self.root}"), self._locked():
            sizes = delete(self.leftovers(older_than=older_than))
        return Removal(tuple(str(path.relative_to(self.root)) for path in sizes), sum(sizes.values()))

    def _checked(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"Expected an artefact's name, 64 hexadecimal digits, got {name!r}.")
        return name

    def _path(self, name: str, suffix: str) -> Path:
        path = self.root / "objects" / self._checked(name)[:2] / (name + suffix)
        for part in (path, path.parent, path.parent.parent):
            if part.is_symlink():
                raise StoreError(f"{part} is a symbolic link, and the store follows none: replace it by what it names.")
        return path

    def _files(self) -> list[Path]:
        with explained(f"list {self.root}"):
            folders = [path for path in files_in(self.root / "objects") if FOLDER.fullmatch(path.name)]
            return [path for folder in folders for path in files_in(folder)]

    def _orphans(self) -> list[Path]:
        files = self._files()
        owned = {path.stem for path in files if path.suffix == MANIFEST}
        return [path for path in files if path.suffix == PAYLOAD and path.stem not in owned]

    def _scan(self) -> list[str]:
        return [path.stem for path in self._files() if path.suffix == MANIFEST and NAME.fullmatch(path.stem)]

    def _links(self, spare: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
        links: dict[str, tuple[str, ...]] = {}
        for name in self._scan():
            try:
                links[name] = self._entry(name).parents
            except MissingArtefactError:  # purged by another process since the scan
                continue
            except CorruptArtefactError:
                if name not in spare:
                    raise
        return links

    def _entry(self, name: str) -> Entry:
        with explained(f"look for {name} in {self.root}"):
            status = status_of(self._path(name, MANIFEST))
        if status is None:
            raise _missing(name, self.root)
        signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        if name not in self._seen or self._seen[name][0] != signature:
            manifest = self.manifest(name)
            lineage = manifest.lineage
            rest = (lineage.kind, lineage.parents, len(lineage.examples), manifest.num_bytes, manifest.created)
            self._seen[name] = (signature, Entry(name, *rest))
        return self._seen[name][1]

    def _sound(self, name: str) -> Entry | None:
        try:
            entry = self._entry(name)
        except (MissingArtefactError, CorruptArtefactError):
            return None
        with explained(f"look for {name} in {self.root}"):
            status = status_of(self._path(name, PAYLOAD))
        return entry if status is not None and status.st_size == entry.num_bytes else None

    def _payload(self, manifest: Manifest) -> bytes:
        path = self._path(manifest.lineage.name, PAYLOAD)
        with explained(f"read {path}"):
            try:
                payload = path.read_bytes()
            except FileNotFoundError:
                raise corrupt(path, "is missing, though its manifest is there") from None
        digest = hashlib.sha256(payload).hexdigest()
        if digest != manifest.sha256:
            raise corrupt(path, f"has SHA-256 {digest}, its manifest says {manifest.sha256}")
        return payload

    def _keeps(self, manifest: Manifest) -> bool:
        name = manifest.lineage.name
        try:
            kept = self.manifest(name)
            self._payload(kept)
        except (MissingArtefactError, CorruptArtefactError):
            return False
        if kept.sha256 != manifest.sha256:
            raise StoreError(
                f"Expected {manifest.lineage.kind} {name} to have SHA-256 {kept.sha256} as when it was first made, "
                f"got {manifest.sha256}: its making is not deterministic. Put what differs (device, threads, library "
                "versions) into its settings, so that the names differ too."
            )
        return True

    def _publish(self, manifest: Manifest, payload: bytes) -> None:
        lineage = manifest.lineage
        paths = self._path(lineage.name, PAYLOAD), self._path(lineage.name, MANIFEST)
        make_folder(paths[0].parent)
        with staged(paths[0], payload) as first, staged(paths[1], encode(manifest)) as second, self._locked():
            for parent in lineage.parents:
                if not self.has(parent):
                    raise MissingArtefactError(
                        f"Expected parent {parent} of {lineage.kind} {lineage.name} in {self.root}, found none: "
                        "it was purged, or never made; make it again first."
                    )
            if not self._keeps(manifest):
                delete([paths[1]])  # of a damaged copy: no manifest may ever stand beside another's payload
                publish(first, paths[0])
                publish(second, paths[1])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self.root)
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=self.patience)
        except Timeout as error:
            raise StoreError(
                f"Expected to be the only one to change {self.root}; another command has been at it for "
                f"{self.patience:g} s: wait for it to end, then run this one again."
            ) from error
        try:
            yield
        finally:
            lock.release()


def _owner(path: Path) -> str:
    return path.name.removeprefix(".").partition(".")[0]


def _parents_first(names: Collection[str], links: Mapping[str, tuple[str, ...]]) -> list[str]:
    chosen = set(names)
    graph = dict(links) | dict.fromkeys(sorted(chosen - links.keys()), ())
    return [name for name in TopologicalSorter(graph).static_order() if name in chosen]


def _below(names: Collection[str], links: Mapping[str, tuple[str, ...]]) -> list[str]:
    reached, found = set(names), []
    for name in TopologicalSorter(links).static_order():
        if name not in reached and not reached.isdisjoint(links.get(name, ())):
            reached.add(name)
            found.append(name)
    return found


def _missing(name: str, root: Path) -> MissingArtefactError:
    return MissingArtefactError(f"Expected an artefact {name} in {root}, found none.")
