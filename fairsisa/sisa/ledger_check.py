"""Find out whether a ledger is still what was written, every row of it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from typing import Any

from fairsisa.errors import LedgerError
from fairsisa.sisa.ledger_events import Head, LedgerEvent, event_digest, may_follow, received_detail
from fairsisa.sisa.ledger_file import RESTORE, SCHEMA

# LEFT JOIN and CAST: a row that was tampered with must come out here, and fail by its digest.
EVENTS = (
    "SELECT seq, CAST(request_id AS TEXT), CAST(state AS TEXT), CAST(time AS TEXT), CAST(body AS BLOB), "
    "CAST(detail AS TEXT), CAST(events.digest AS TEXT), CAST(previous AS TEXT), number FROM events "
    "LEFT JOIN requests USING (number) LEFT JOIN details ON details.digest = events.detail"
)
HASHES = "SELECT number, kind, lower(hex(hash)) FROM request_hashes ORDER BY number, kind, hash"
NO_HASHES: tuple[list[str], list[str]] = ([], [])
Row = tuple[Any, ...]


def event_of(row: Row) -> LedgerEvent:
    """Return the event in a row of EVENTS.

    Raises:
        LedgerError: naming its seq, when its detail is not the one it was written with.
    """
    seq, request_id, state, time, body, detail, digest, previous, _ = row
    if body is None or hashlib.sha256(body).hexdigest() != detail:
        raise _differs(seq, "its detail has another digest than the event names")
    try:
        return LedgerEvent(seq, request_id, state, time, dict(json.loads(body)), digest, previous)
    except (ValueError, TypeError) as error:
        raise _differs(seq, f"its detail is no JSON object ({error})") from error


def check_all(connection: sqlite3.Connection, genesis: str, heads: Iterable[Head]) -> None:
    """Read every row; `genesis` is the digest before the first event. Wants a transaction, to see one state.

    Raises:
        LedgerError: naming the first event that differs, or the table; or a head that is not on the chain.
    """
    digests = [genesis, *_check_chain(connection, genesis)]
    _check_rest(connection)
    for head in heads:
        if not 0 <= head.seq < len(digests):
            raise LedgerError(
                f"Expected event {head.seq}, which is quoted elsewhere, got a ledger of {len(digests) - 1} events: "
                f"its end was cut off; {RESTORE}."
            )
        if digests[head.seq] != head.digest:
            raise _differs(head.seq, f"its digest is {digests[head.seq]}, elsewhere it is quoted as {head.digest}")


def _check_chain(connection: sqlite3.Connection, genesis: str) -> Iterator[str]:
    states: dict[int, str] = {}
    hashes = dict(_hashes(connection))
    previous, before = genesis, ""
    for expected, row in enumerate(connection.execute(f"{EVENTS} ORDER BY seq"), start=1):
        if row[0] != expected:
            raise _differs(expected, f"it is missing, event {row[0]} comes in its place")
        event, number = event_of(row), row[-1]
        _check_seal(event, row[5], previous)
        if event.time < before or not may_follow(states.get(number), event.state):
            raise _differs(event.seq, f"{event.state!r} at {event.time} cannot follow {states.get(number)!r}, {before}")
        if event.state == "received":
            _check_received(event, number, hashes.pop(number, NO_HASHES))
        states[number], previous, before = event.state, event.digest, event.time
        yield previous
    if hashes:
        raise LedgerError(
            f"Expected a received event for request {next(iter(hashes))} of table request_hashes, got none."
        )


def _check_seal(event: LedgerEvent, detail: str, previous: str) -> None:
    if event.previous != previous:
        raise _differs(event.seq, f"it names {event.previous} as the digest before, which is {previous}")
    fields = (event.previous, event.seq, event.request_id, event.state, event.time)
    digest = event_digest(*fields, detail=detail)
    if digest != event.digest:
        raise _differs(event.seq, f"its digest is {event.digest}, its contents give {digest}")


def _check_received(event: LedgerEvent, number: int, hashes: tuple[list[str], list[str]]) -> None:
    if number != event.seq:
        raise _differs(event.seq, f"its request has number {number}")
    said = event.detail
    found = received_detail(*hashes, said.get("num_skipped", 0), said.get("reason", ""))
    for name, value in found.items():
        if said.get(name) != value:
            raise _differs(event.seq, f"{name} is {said.get(name)!r} in the event, the request's rows give {value!r}")


def _hashes(connection: sqlite3.Connection) -> Iterator[tuple[int, tuple[list[str], list[str]]]]:
    for number, rows in groupby(connection.execute(HASHES), key=itemgetter(0)):
        kinds: dict[str, list[str]] = {"example": [], "subject": []}
        for _, kind, value in rows:
            kinds.setdefault(kind, []).append(value)
        yield number, (kinds["example"], kinds["subject"])


def _check_rest(connection: sqlite3.Connection) -> None:
    counts = {
        "requests without an event": "SELECT COUNT(*) FROM requests WHERE number NOT IN (SELECT number FROM events)",
        "details without an event": "SELECT COUNT(*) FROM details WHERE digest NOT IN (SELECT detail FROM events)",
        "rows that name no request": "SELECT COUNT(*) FROM pragma_foreign_key_check",
    }
    for what, query in counts.items():
        count = connection.execute(query).fetchone()[0]
        if count:
            raise LedgerError(f"Expected no {what} in the ledger, got {count}: {RESTORE}.")
    with closing(sqlite3.connect(":memory:")) as fresh:
        for statement in SCHEMA:
            fresh.execute(statement)
        if _schema(fresh) != _schema(connection):
            raise LedgerError(f"Expected the tables and triggers of a ledger, got others: {RESTORE}.")
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise LedgerError(f"Expected a sound file, got: {found}; {RESTORE}.")


def _schema(connection: sqlite3.Connection) -> set[Row]:
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
    return {row for row in found if not row[1].startswith("sqlite_stat")}


def _differs(seq: int, how: str) -> LedgerError:
    return LedgerError(f"Event {seq} of the ledger is not what was written: {how}; {RESTORE}.")
