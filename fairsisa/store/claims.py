"""What each run needs of a store that it shares with others."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fairsisa.errors import CorruptArtefactError, StoreError
from fairsisa.lineage import canonical_json
from fairsisa.store.catalogue import CLAIMS, Catalogue, key_of
from fairsisa.store.files import write
from fairsisa.store.manifest import MANIFEST

FORMAT = 1


@dataclass(frozen=True)
class Claim:
    """The names that a run directory needs; `host` is the machine that can tell whether the directory still exists."""

    owner: str
    host: str
    names: tuple[str, ...]

    @property
    def stands(self) -> bool:
        """Whether the owner is there, or lies where this machine cannot look."""
        return self.host != socket.gethostname() or Path(self.owner).is_dir()


def claim_by(owner: Path | str, names: Iterable[str]) -> Claim:
    """Return the claim of a run directory on this machine; ValueError when there is no such directory."""
    path = Path(owner).resolve()
    if not path.is_dir():
        raise ValueError(f"Expected the directory of a run as owner of a claim, got {path}: make it first.")
    names = set(names)
    for name in names:
        key_of(name, MANIFEST)
    return Claim(str(path), socket.gethostname(), tuple(sorted(names)))


def claim_key(owner: Path | str) -> str:
    """Return the key of an owner's claim."""
    return f"{CLAIMS}/{hashlib.sha256(str(Path(owner).resolve()).encode()).hexdigest()}{MANIFEST}"


def write_claim(catalogue: Catalogue, claim: Claim) -> None:
    """Replace an owner's claim."""
    write(catalogue.files, claim_key(claim.owner), _encode(claim))


def read_claims(catalogue: Catalogue) -> list[Claim]:
    """Return the claims that stand; CorruptArtefactError when one is damaged, StoreError for a later format."""
    claims = []
    for key in catalogue.keys(CLAIMS):
        if key.endswith(MANIFEST):
            try:
                text = catalogue.files.read(key)
            except FileNotFoundError:  # withdrawn by its owner since the listing
                continue
            claims.append(_decode(text, key, catalogue.place(key)))
    return [claim for claim in claims if claim.stands]


def _encode(claim: Claim) -> bytes:
    fields = {"owner": claim.owner, "host": claim.host, "names": claim.names}
    seal = hashlib.sha256(canonical_json(fields)).hexdigest()
    return canonical_json(fields | {"format": FORMAT, "seal": seal}, "claim")


def _decode(text: bytes, key: str, place: str) -> Claim:
    try:
        fields = json.loads(text)
        if fields["format"] != FORMAT:
            raise StoreError(
                f"{place} has format {fields['format']!r}; this fairsisa reads {FORMAT}: upgrade fairsisa."
            )
        claim = Claim(fields["owner"], fields["host"], tuple(fields["names"]))
        whole = _encode(claim) == text and claim_key(claim.owner) == key
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(place, f"is no claim ({error})") from error
    if not whole:
        raise _damaged(place, "does not fit its seal or its owner")
    return claim


def _damaged(place: str, problem: str) -> CorruptArtefactError:
    return CorruptArtefactError(
        f"{place} {problem}, so nobody knows what its run needs: let every run that uses the store claim again, then "
        "delete the file if it is still damaged."
    )
