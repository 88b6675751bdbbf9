"""What a store's manifests say, read through a memory of those that have not changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection

from fairsisa.errors import CorruptArtefactError, MissingArtefactError
from fairsisa.store.durable import PARTIAL, explained
from fairsisa.store.files import Files
from fairsisa.store.links import Links
from fairsisa.store.manifest import MANIFEST, PAYLOAD, Manifest, corrupt, decode
from fairsisa.store.values import Entry

NAME = re.compile(r"[0-9a-f]{64}")
OBJECT = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})(\.json|\.safetensors)")
OBJECTS, CLAIMS = "objects", "claims"


def key_of(name: str, suffix: str) -> str:
    """Return the key of an artefact's payload or manifest; ValueError unless the name is 64 hexadecimal digits."""
    if not NAME.fullmatch(name):
        raise ValueError(f"Expected an artefact's name, 64 hexadecimal digits, got {name!r}.")
    return f"{OBJECTS}/{name[:2]}/{name}{suffix}"


def owner_of(key: str) -> str:
    """Return the name of the artefact that a file belongs to, or would belong to were it finished."""
    return key.rpartition("/")[2].removeprefix(".").partition(".")[0]


class Catalogue:
    """A handle on the manifests among `files`; StoreError when those cannot be reached."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._seen: dict[str, tuple[tuple[object, ...], Entry]] = {}

    def manifest(self, name: str) -> Manifest:
        """Return a manifest; MissingArtefactError where there is none, CorruptArtefactError if it is damaged."""
        key = key_of(name, MANIFEST)
        with explained(f"read {self.place(key)}"):
            try:
                text = self.files.read(key)
            except FileNotFoundError:
                raise self._missing(name) from None
        return decode(text, self.place(key))

    def payload(self, manifest: Manifest) -> bytes:
        """Return the bytes that a manifest describes; CorruptArtefactError when they are missing or others."""
        key = key_of(manifest.lineage.name, PAYLOAD)
        with explained(f"read {self.place(key)}"):
            try:
                payload = self.files.read(key)
            except FileNotFoundError:
                raise corrupt(self.place(key), "is missing, though its manifest is there") from None
        digest = hashlib.sha256(payload).hexdigest()
        if digest != manifest.sha256:
            raise corrupt(self.place(key), f"has SHA-256 {digest}, its manifest says {manifest.sha256}")
        return payload

    def entry(self, name: str) -> Entry:
        """Return the row of a manifest, whatever became of its payload; raises as `manifest` does."""
        key = key_of(name, MANIFEST)
        with explained(f"look for {name} in {self.files.location}"):
            status = self.files.status(key)
        if status is None:
            raise self._missing(name)
        if name not in self._seen or self._seen[name][0] != status.signature:
            self._seen[name] = (status.signature, _row(self.manifest(name)))
        return self._seen[name][1]

    def record(self, name: str) -> Entry | None:
        """Return the row of an artefact that exists or was dropped on purpose, else None."""
        try:
            entry = self.entry(name)
        except (MissingArtefactError, CorruptArtefactError):
            return None
        if not entry.kept:
            return entry
        with explained(f"look for {name} in {self.files.location}"):
            status = self.files.status(key_of(name, PAYLOAD))
        return entry if status is not None and status.num_bytes == entry.num_bytes else None

    def names(self) -> list[str]:
        """Return the names of all manifests, damaged ones included, in order."""
        found = map(OBJECT.fullmatch, self.keys(OBJECTS))
        return [match[2] for match in found if match is not None and match[3] == MANIFEST]

    def links(self, spare: Collection[str] = ()) -> Links:
        """Return the parents of all artefacts; CorruptArtefactError for a damaged manifest that is not in `spare`."""
        links: dict[str, tuple[str, ...]] = {}
        for name in self.names():
            try:
                links[name] = self.entry(name).parents
            except MissingArtefactError:  # purged by another process since the listing
                continue
            except CorruptArtefactError:
                if name not in spare:
                    raise
        return links

    def unowned(self) -> list[str]:
        """Return the keys of payloads that no manifest wants: it is missing, or says that they were dropped."""
        keys = self.keys(OBJECTS)
        manifests = {owner_of(key) for key in keys if key.endswith(MANIFEST)}
        return [
            key
            for key in keys
            if key.endswith(PAYLOAD) and (owner_of(key) not in manifests or self._is_dropped(owner_of(key)))
        ]

    def partials(self) -> list[str]:
        """Return the keys of files that were never moved to their names."""
        return [key for folder in (OBJECTS, CLAIMS) for key in self.keys(folder) if key.endswith(PARTIAL)]

    def keys(self, folder: str) -> list[str]:
        """Return the keys of all files below a folder of the store."""
        with explained(f"list {self.files.location}"):
            return self.files.keys(folder)

    def place(self, key: str) -> str:
        """Return where a file is, for a person to read."""
        return f"{self.files.location}/{key}"

    def _is_dropped(self, name: str) -> bool:
        row = self.record(name) if NAME.fullmatch(name) else None
        return row is not None and not row.kept

    def _missing(self, name: str) -> MissingArtefactError:
        return MissingArtefactError(f"Expected an artefact {name} in {self.files.location}, found none.")


def _row(manifest: Manifest) -> Entry:
    lineage = manifest.lineage
    rest = (manifest.num_bytes, manifest.created, manifest.kept)
    return Entry(lineage.name, lineage.kind, lineage.parents, len(lineage.examples), *rest)
