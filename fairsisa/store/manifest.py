"""What is written down about an artefact, as one JSON text that proves itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fairsisa.errors import CorruptArtefactError, StoreError
from fairsisa.lineage import Lineage, canonical_json

KEPT, DROPPED = 1, 2  # formats: the first has no field `kept`, so that an older fairsisa reads what it can use
PAYLOAD, MANIFEST = ".safetensors", ".json"
LINEAGE_FIELDS = ("kind", "parents", "examples", "contents", "inputs", "settings")


@dataclass(frozen=True)
class Manifest:
    """What the store wrote down about an artefact: its lineage, the size and SHA-256 of its payload, and notes.

    `metadata` and `environment` are plain JSON values; they and `created` (ISO 8601, UTC) are no part of the name.
    `kept` is false once the payload was dropped on purpose, so that only this record is left.
    """

    lineage: Lineage
    num_bytes: int
    sha256: str
    metadata: Mapping[str, Any]
    environment: Mapping[str, Any]
    created: str
    kept: bool = True


def encode(manifest: Manifest) -> bytes:
    """Return the one JSON text of a manifest; its `seal` is a digest of what the artefact's name does not cover."""
    lineage = manifest.lineage
    fields = {
        "format": KEPT if manifest.kept else DROPPED,
        "name": lineage.name,
        "kind": lineage.kind,
        "parents": lineage.parents,
        "examples": lineage.examples,
        "contents": lineage.contents,
        "inputs": lineage.inputs,
        "settings": lineage.settings,
    }
    notes: dict[str, Any] = {
        "payload": {"file": lineage.name + PAYLOAD, "bytes": manifest.num_bytes, "sha256": manifest.sha256},
        "metadata": manifest.metadata,
        "environment": manifest.environment,
        "created": manifest.created,
    }
    if not manifest.kept:
        notes["kept"] = False
    seal = hashlib.sha256(canonical_json([lineage.name, notes])).hexdigest()
    return canonical_json(fields | notes | {"seal": seal}, "manifest")


def decode(text: bytes, place: str) -> Manifest:
    """Return the manifest in `text`, read from `place`, a path or URL whose stem is the artefact's name.

    Raises:
        CorruptArtefactError: unless the text is, byte for byte, what `encode` gives, and its lineage makes the name.
        StoreError: when another version of fairsisa wrote it.
    """
    try:
        fields = json.loads(text)
        if fields["format"] not in (KEPT, DROPPED):
            raise StoreError(
                f"{place} has format {fields['format']!r}; this fairsisa reads {KEPT} and {DROPPED}: upgrade fairsisa."
            )
        lineage = Lineage(**{key: fields[key] for key in LINEAGE_FIELDS})
        payload, notes = fields["payload"], {key: fields[key] for key in ("metadata", "environment", "created")}
        kept = fields["format"] == KEPT
        manifest = Manifest(lineage, num_bytes=payload["bytes"], sha256=payload["sha256"], kept=kept, **notes)
        whole = lineage.name == PurePosixPath(place).stem and encode(manifest) == text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise corrupt(place, f"is no manifest ({error})") from error
    if not whole:
        raise corrupt(place, f"does not fit its seal, or its contents make {lineage.name}")
    return manifest


def corrupt(place: str, problem: str) -> CorruptArtefactError:
    """Return the error that names the damaged file of an artefact, and the cure."""
    name = PurePosixPath(place).stem
    return CorruptArtefactError(f"{place} {problem}: purge {name}, and it will be made again when needed.")
