"""What happens to a request: events, each sealed by the digest of the one before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fairsisa.lineage import canonical_json

STATES = ("received", "planned", "retraining", "published", "purged", "attested", "failed")
OPEN = tuple(state for state in STATES if state != "attested")
NEXT: Mapping[str | None, frozenset[str]] = {
    None: frozenset({"received"}),
    "received": frozenset({"planned", "failed"}),
    "planned": frozenset({"retraining", "failed"}),
    "retraining": frozenset({"retraining", "published", "failed"}),
    "published": frozenset({"purged", "failed"}),
    "purged": frozenset({"attested", "failed"}),
    "attested": frozenset(),
    "failed": frozenset({"planned", "failed"}),
}
EVENT_TAG, GENESIS_TAG = "fairsisa event 1", "fairsisa ledger 1"


@dataclass(frozen=True)
class LedgerEvent:
    """One row of the ledger: a request reached a state.

    `seq` counts from 1 without gaps and gives the order; `time` (ISO 8601, UTC) never decreases. `previous` is the
    digest of the event before, `digest` the SHA-256 over all of this one.
    """

    seq: int
    request_id: str
    state: str
    time: str
    detail: Mapping[str, Any]
    digest: str
    previous: str


@dataclass(frozen=True)
class Head:
    """The last event of a ledger when one looked; `seq` 0 and the digest of the ledger's own id before the first."""

    seq: int
    digest: str


def may_follow(state: str | None, following: str) -> bool:
    """Return whether a request may go from one state to another; `state` None means it is new."""
    return following in NEXT.get(state, ())


def genesis_digest(ledger_id: str, key_fingerprint: str, version: int) -> str:
    """Return the SHA-256 (hex) that stands before the first event; it binds the chain to one ledger and key."""
    return _digest([GENESIS_TAG, ledger_id, key_fingerprint, version])


def event_digest(previous: str, seq: int, request_id: str, state: str, time: str, *, detail: str) -> str:
    """Return the SHA-256 (hex) of an event; `detail` is the SHA-256 of the canonical JSON of its detail."""
    return _digest([EVENT_TAG, previous, seq, request_id, state, time, detail])


def hashes_digest(hashes: list[str]) -> str:
    """Return one SHA-256 (hex) over sorted hashes, whatever the order they come in."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def received_detail(examples: list[str], subjects: list[str], num_skipped: int, reason: str) -> dict[str, Any]:
    """Return what the first event of a request says: a digest or the value of everything the request holds."""
    return {
        "examples": hashes_digest(examples),
        "num_examples": len(examples),
        "subjects": hashes_digest(subjects),
        "num_subjects": len(subjects),
        "num_skipped": num_skipped,
        "reason": reason,
    }


def later_of(before: str) -> str:
    """Return the time now, or `before` where the clock has gone back behind it."""
    return max(_now().astimezone(UTC).isoformat(timespec="microseconds"), before)


def _now() -> datetime:
    return datetime.now(UTC)


def _digest(fields: list[object]) -> str:
    return hashlib.sha256(canonical_json(fields)).hexdigest()
