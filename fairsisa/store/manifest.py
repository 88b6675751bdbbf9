"""What is written down about an artefact, as one JSON text that proves itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairsisa.errors import CorruptArtefactError, StoreError
from fairsisa.lineage import Lineage, canonical_json

FORMAT = 1
PAYLOAD, MANIFEST = ".safetensors", ".json"
LINEAGE_FIELDS = ("kind", "parents", "examples", "contents", "inputs", "settings")


@dataclass(frozen=True)
class Manifest:
    """What the store wrote down about an artefact: its lineage, the size and SHA-256 of its payload, and notes.

    `metadata` and `environment` are plain JSON values; they and `created` (ISO 8601, UTC) are no part of the name.
    """

    lineage: Lineage
    num_bytes: int
    sha256: str
    metadata: Mapping[str, Any]
    environment: Mapping[str, Any]
    created: str


def encode(manifest: Manifest) -> bytes:
    """Return the one JSON text of a manifest; its `seal` is a digest of what the artefact's name does not cover."""
    lineage = manifest.lineage
    fields = {
        "format": FORMAT,
        "name": lineage.name,
        "kind": lineage.kind,
        "parents": lineage.parents,
        "examples": lineage.examples,
        "contents": lineage.contents,
        "inputs": lineage.inputs,
        "settings": lineage.settings,
    }
    notes = {
        "payload": {"file": lineage.name + PAYLOAD, "bytes": manifest.num_bytes, "sha256": manifest.sha256},
        "metadata": manifest.metadata,
        "environment": manifest.environment,
        "created": manifest.created,
    }
    seal = hashlib.sha256(canonical_json([lineage.name, notes])).hexdigest()
    return canonical_json(fields | notes | {"seal": seal}, "manifest")


def decode(text: bytes, path: Path) -> Manifest:
    """Return the manifest in `text`, read from `path`, whose stem is the artefact's name.

    Raises:
        CorruptArtefactError: unless the text is, byte for byte, what `encode` gives, and its lineage makes the name.
        StoreError: when another version of fairsisa wrote it.
    """
    try:
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise StoreError(f"{path} has format {fields['format']!r}; this fairsisa reads {FORMAT}: upgrade fairsisa.")
        lineage = Lineage(**{key: fields[key] for key in LINEAGE_FIELDS})
        payload, notes = fields["payload"], {key: fields[key] for key in ("metadata", "environment", "created")}
        manifest = Manifest(lineage, num_bytes=payload["bytes"], sha256=payload["sha256"], **notes)
        whole = lineage.name == path.stem and encode(manifest) == text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise corrupt(path, f"is no manifest ({error})") from error
    if not whole:
        raise corrupt(path, f"does not fit its seal, or its contents make {lineage.name}")
    return manifest


def corrupt(path: Path, problem: str) -> CorruptArtefactError:
    """Return the error that names the damaged file of an artefact, and the cure."""
    return CorruptArtefactError(f"{path} {problem}: purge {path.stem}, and it will be made again when needed.")
