"""Unlearning requests as the ledger holds them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fairsisa.errors import LedgerError, RequestError
from fairsisa.sisa.ledger_check import EVENTS, event_of
from fairsisa.sisa.ledger_events import STATES, LedgerEvent
from fairsisa.sisa.ledger_file import RESTORE

PREFIX = re.compile(r"[0-9a-f]{4,64}")
STANDING = (
    "SELECT number, state, detail FROM requests JOIN events USING (number) WHERE request_id = ? "
    "ORDER BY seq DESC LIMIT 1"
)
STATE_OF_ALL = (
    "SELECT number, (SELECT state FROM events WHERE events.number = requests.number ORDER BY seq DESC LIMIT 1) "
    "FROM requests ORDER BY number"
)


@dataclass(frozen=True)
class ForgetSet:
    """What one person asks to be forgotten, with ids in plain; it is never written down.

    `num_skipped` counts the ids they named that the data do not hold. `reason` is kept in plain: name nobody in it.

    Raises:
        RequestError: when there is no example, or an id is no str.
    """

    example_ids: Collection[str] = field(repr=False)
    subject_ids: Collection[str] = field(default=(), repr=False)
    reason: str = ""
    num_skipped: int = 0

    def __post_init__(self) -> None:
        for name in ("example_ids", "subject_ids"):
            ids = getattr(self, name)
            if isinstance(ids, str) or set(map(type, ids)) - {str}:
                raise RequestError(f"Expected {name} to be a collection of str, got something else.")
            object.__setattr__(self, name, frozenset(ids))
        if not self.example_ids:
            raise RequestError("Expected a request to name at least one example, got none; nothing was received.")
        if not isinstance(self.reason, str):
            raise RequestError(f"Expected the reason to be a str, got {type(self.reason).__name__}.")
        if type(self.num_skipped) is not int or self.num_skipped < 0:
            raise RequestError(f"Expected num_skipped to be an int of at least 0, got {self.num_skipped!r}.")


@dataclass(frozen=True)
class UnlearningRequest:
    """The examples that one person asked us to forget, as keyed hashes; `received` is ISO 8601 in UTC."""

    request_id: str
    example_hashes: frozenset[str]
    subject_hashes: frozenset[str]
    num_skipped: int
    reason: str
    received: str
    state: str


def resolve_request(connection: sqlite3.Connection, request_id: str) -> int:
    """Return the number of the request whose id begins so; LedgerError unless there is exactly one."""
    if not PREFIX.fullmatch(request_id):
        raise LedgerError(f"Expected a request id, or 4 or more of its first hexadecimal digits, got {request_id!r}.")
    span = (request_id, request_id + "g")  # "g" sorts behind every digit
    rows = connection.execute(
        "SELECT number, request_id FROM requests WHERE request_id >= ? AND request_id < ? LIMIT 2", span
    ).fetchall()
    if len(rows) != 1:
        what = f"both {rows[0][1]} and {rows[1][1]}: give more digits" if rows else "none: list the requests"
        raise LedgerError(f"Expected one request whose id begins with {request_id}, got {what}.")
    number: int = rows[0][0]
    return number


def numbers_in(connection: sqlite3.Connection, states: Sequence[str]) -> list[int]:
    """Return the numbers of the requests in any of these states, or of all, in the order of receipt."""
    if set(states) - set(STATES):
        raise ValueError(f"Expected states among {', '.join(STATES)}, got {', '.join(map(repr, states))}.")
    return [number for number, state in connection.execute(STATE_OF_ALL) if not states or state in states]


def events_of(connection: sqlite3.Connection, number: int) -> tuple[LedgerEvent, ...]:
    """Return the events of one request, in order."""
    return tuple(map(event_of, connection.execute(f"{EVENTS} WHERE number = ? ORDER BY seq", (number,))))


def hashes_of(connection: sqlite3.Connection, number: int, kind: str) -> frozenset[str]:
    """Return the hashes of one kind, "example" or "subject", that a request names."""
    query = "SELECT lower(hex(hash)) FROM request_hashes WHERE number = ? AND kind = ?"
    return frozenset(row[0] for row in connection.execute(query, (number, kind)))


def load_request(connection: sqlite3.Connection, number: int) -> UnlearningRequest:
    """Return one request as it stands; LedgerError when it was not received in order."""
    row = connection.execute(f"{EVENTS} WHERE number = ? ORDER BY seq LIMIT 1", (number,)).fetchone()
    if row is None or row[2] != "received":
        raise LedgerError(f"Expected request {number} to begin with a received event, got none: {RESTORE}.")
    first = event_of(row)
    state = connection.execute(STANDING, (first.request_id,)).fetchone()[1]
    return UnlearningRequest(
        first.request_id,
        hashes_of(connection, number, "example"),
        hashes_of(connection, number, "subject"),
        first.detail["num_skipped"],
        first.detail["reason"],
        first.time,
        state,
    )
