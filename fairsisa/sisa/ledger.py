"""The durable record of who asked to be forgotten, and how far that has come."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fairsisa.errors import LedgerError
from fairsisa.lineage import canonical_json
from fairsisa.sisa.keys import Key, key_path, open_key
from fairsisa.sisa.ledger_check import EVENTS, check_all, event_of
from fairsisa.sisa.ledger_events import (
    OPEN,
    STATES,
    Head,
    LedgerEvent,
    event_digest,
    genesis_digest,
    later_of,
    may_follow,
    received_detail,
)
from fairsisa.sisa.ledger_file import (
    VERSION,
    Meta,
    blank_file,
    connected,
    journal_mode,
    mount_table,
    transaction,
)
from fairsisa.sisa.ledger_requests import (
    STANDING,
    ForgetSet,
    UnlearningRequest,
    events_of,
    hashes_of,
    load_request,
    numbers_in,
    resolve_request,
)
from fairsisa.sisa.once import create_once, explained

__all__ = ["OPEN", "STATES", "ForgetSet", "Head", "Ledger", "LedgerEvent", "UnlearningRequest"]

PATIENCE = 60.0
NO_DETAIL: Mapping[str, Any] = MappingProxyType({})
FIRST_NAMING = (
    "SELECT request_id FROM request_hashes JOIN requests USING (number) WHERE kind = ? AND hash = ? "
    "ORDER BY number LIMIT 1"
)


class Ledger:
    """A handle on the append-only file of unlearning requests, in which ids stand as keyed hashes only.

    What a method has written survives a power cut once it returns. Any number of processes may use one ledger, also
    across a fork: each call opens the file anew. Readers see what is committed; writers wait for each other up to
    `patience` seconds. Events are ordered by `seq`; where the clock has gone back, an event bears the time of the
    one before it.

    Raises:
        LedgerError: from every method, naming file and cure, when the file is damaged, locked or belongs to another
            key, or the disk refuses; what was received before is kept.
    """

    def __init__(self, path: Path, key: Key, *, patience: float = PATIENCE) -> None:
        self.path, self.key, self.patience = Path(path).absolute(), key, patience
        self._journal = journal_mode(self.path, mount_table())
        with connected(self.path, journal=self._journal, patience=patience) as (_, meta):
            self._meta = meta
        if self._meta.key_fingerprint != key.fingerprint:
            raise LedgerError(
                f"{self.path} was begun with another key: expected fingerprint {self._meta.key_fingerprint}, got "
                f"{key.fingerprint}; open it with the key {self.ledger_id}.key."
            )
        self._genesis = genesis_digest(self.ledger_id, key.fingerprint, VERSION)

    @classmethod
    def begin(cls, path: Path, keys: Path) -> Ledger:
        """Open the ledger at `path`; where none is, make one, and before it a new key in the folder `keys`.

        Killed at any point, it leaves a whole ledger with its key, or none.
        """
        with explained(f"look for {path}"):
            missing = not path.exists()
        if missing:
            ledger_id = secrets.token_hex(16)
            key = open_key(keys, ledger_id, create=True)
            blank = blank_file(Meta(VERSION, ledger_id, key.fingerprint), journal_mode(path, mount_table()))
            if not create_once(path, blank):  # another process was faster, so this key opens nothing
                with explained(f"delete the unused key of {path}"):
                    key_path(keys, ledger_id).unlink(missing_ok=True)
        return cls.open(path, keys)

    @classmethod
    def open(cls, path: Path, keys: Path) -> Ledger:
        """Open a ledger with its key, `<keys>/<ledger_id>.key`."""
        with connected(path, journal=journal_mode(path, mount_table()), patience=PATIENCE) as (_, meta):
            key = open_key(keys, meta.ledger_id, create=False)
        return cls(path, key)

    @property
    def ledger_id(self) -> str:
        """The ledger's own random name, 32 hexadecimal digits."""
        return self._meta.ledger_id

    @property
    def head(self) -> Head:
        """The last event now; `check` can prove later that it is still there."""
        with self._opened() as connection:
            seq, digest, _ = self._tip(connection)
        return Head(seq, digest)

    def receive(
        self, example_ids: Collection[str], *, subject_ids: Collection[str] = (), reason: str = "", num_skipped: int = 0
    ) -> UnlearningRequest:
        """Write a request down; return it once it is durable.

        Its id is a keyed hash of the examples, with the subjects where some are named: the same set twice is one
        request, and the first one is returned, in whatever state it is by now, with the reason given first.

        Raises:
            RequestError: when no example is named; nothing was received.
        """
        return self.receive_many([ForgetSet(example_ids, subject_ids, reason, num_skipped)])[0]

    def receive_many(self, requests: Iterable[ForgetSet]) -> tuple[UnlearningRequest, ...]:
        """Receive requests one after the other, each durable before the next is taken from `requests`."""
        found = []
        with self._opened() as connection:
            for request in requests:
                with transaction(connection):
                    found.append(self._receive(connection, request))
        return tuple(found)

    def advance(self, request_ids: Sequence[str], state: str, detail: Mapping[str, Any] = NO_DETAIL) -> None:
        """Note that requests have reached a state, all of them or none; `detail` is plain JSON, and kept in plain.

        received -> planned -> retraining -> published -> purged -> attested; any but attested -> failed, and
        failed -> planned. More details may be noted in retraining and failed; the state and detail that a request
        has already are not noted again.

        Raises:
            LedgerError: when a request is unknown, or may not go from its state to this one.
            ValueError: naming the key, when `detail` is not plain JSON.
        """
        if isinstance(request_ids, str) or not isinstance(detail, Mapping):
            raise ValueError("Expected a sequence of request ids and a mapping, got something else.")
        if state not in STATES:
            raise LedgerError(f"Expected one of the states {', '.join(STATES)}, got {state!r}; nothing was noted.")
        body = canonical_json(detail, "detail")
        digest = hashlib.sha256(body).hexdigest()
        with self._opened() as connection, transaction(connection):
            moving = []
            for request_id in dict.fromkeys(request_ids):
                number, before, last = self._standing(connection, request_id)
                if (before, last) != (state, digest):
                    _refuse_leap(request_id, before, state)
                    moving.append((number, request_id))
            self._append(connection, moving, state, body)

    def request(self, request_id: str) -> UnlearningRequest:
        """Return the request with this id, or the one whose id begins so (4 digits or more)."""
        with self._opened() as connection, transaction(connection, "DEFERRED"):
            return load_request(connection, resolve_request(connection, request_id))

    def requests(self, *states: str) -> tuple[UnlearningRequest, ...]:
        """Return the requests in any of these states, or all, in the order of receipt."""
        with self._opened() as connection, transaction(connection, "DEFERRED"):
            return tuple(load_request(connection, number) for number in numbers_in(connection, states))

    def history(self, request_id: str | None = None) -> tuple[LedgerEvent, ...]:
        """Return the events of one request, or all, in order."""
        with self._opened() as connection, transaction(connection, "DEFERRED"):
            if request_id is None:
                return tuple(map(event_of, connection.execute(f"{EVENTS} ORDER BY seq")))
            return events_of(connection, resolve_request(connection, request_id))

    def hashes(self, *states: str) -> frozenset[str]:
        """Return the hashes of all examples that requests in any of these states name, or all requests."""
        with self._opened() as connection, transaction(connection, "DEFERRED"):
            if not states:
                rows = connection.execute("SELECT lower(hex(hash)) FROM request_hashes WHERE kind = 'example'")
                return frozenset(row[0] for row in rows)
            named = (hashes_of(connection, number, "example") for number in numbers_in(connection, states))
            return frozenset().union(*named)

    def forgotten(self, example_ids: Iterable[str]) -> dict[str, str]:
        """Return those of the given ids that a request names, each with the id of the first such request."""
        return self._named("example", example_ids)

    def subject_requests(self, subject_ids: Iterable[str]) -> dict[str, str]:
        """Return those of the given subjects that a request names, each with the id of the first such request."""
        return self._named("subject", subject_ids)

    def check(self, heads: Iterable[Head] = ()) -> None:
        """Read all of the ledger, and prove that it is what was written and holds every head quoted in `heads`.

        The loss of the last rows shows only by a head that was quoted elsewhere, such as in a certificate. A passing
        check means that each row, in every table, has the contents that its event's digest covers.

        Raises:
            LedgerError: naming the first event that differs, and what differs.
        """
        with self._opened() as connection, transaction(connection, "DEFERRED"):
            check_all(connection, self._genesis, heads)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with connected(self.path, journal=self._journal, patience=self.patience) as (connection, meta):
            if meta != self._meta:
                raise LedgerError(f"{self.path} is another ledger than the one that was opened: open it again.")
            yield connection

    def _receive(self, connection: sqlite3.Connection, request: ForgetSet) -> UnlearningRequest:
        request_id = self._request_id(request)
        known = connection.execute(STANDING, (request_id,)).fetchone()
        if known is not None:
            return load_request(connection, known[0])
        examples = self.key.hide_all("example", request.example_ids)
        subjects = self.key.hide_all("subject", request.subject_ids)
        detail = received_detail(examples, subjects, request.num_skipped, request.reason)
        number = self._tip(connection)[0] + 1  # a request bears the number of its first event
        connection.execute("INSERT INTO requests VALUES (?, ?)", (number, request_id))
        rows = [(number, "example", value) for value in map(bytes.fromhex, sorted(examples))]
        rows += [(number, "subject", value) for value in map(bytes.fromhex, sorted(subjects))]
        connection.executemany("INSERT INTO request_hashes VALUES (?, ?, ?)", rows)
        time = self._append(connection, [(number, request_id)], "received", canonical_json(detail, "detail"))
        kept = (frozenset(examples), frozenset(subjects), request.num_skipped, request.reason)
        return UnlearningRequest(request_id, *kept, time, "received")

    def _request_id(self, request: ForgetSet) -> str:
        examples, subjects = sorted(request.example_ids), sorted(request.subject_ids)
        named = {"examples": examples, "subjects": subjects} if subjects else examples
        return self.key.hide("request", canonical_json(named, "ids").decode())

    def _append(self, connection: sqlite3.Connection, moving: list[tuple[int, str]], state: str, body: bytes) -> str:
        seq, previous, before = self._tip(connection)
        time, detail = later_of(before), hashlib.sha256(body).hexdigest()
        if moving:
            connection.execute("INSERT OR IGNORE INTO details VALUES (?, ?)", (detail, body))
        for number, request_id in moving:
            seq += 1
            digest = event_digest(previous, seq, request_id, state, time, detail=detail)
            row = (seq, number, state, time, detail, previous, digest)
            connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            previous = digest
        return time

    def _tip(self, connection: sqlite3.Connection) -> tuple[int, str, str]:
        row = connection.execute("SELECT seq, digest, time FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return row or (0, self._genesis, "")

    def _standing(self, connection: sqlite3.Connection, request_id: str) -> tuple[int, str, str]:
        row: tuple[int, str, str] | None = connection.execute(STANDING, (request_id,)).fetchone()
        if row is None:
            raise LedgerError(f"Expected a request that {self.path} holds, got {request_id!r}; nothing was noted.")
        return row

    def _named(self, kind: str, identifiers: Iterable[str]) -> dict[str, str]:
        found = {}
        with self._opened() as connection, transaction(connection, "DEFERRED"):
            held = connection.execute("SELECT 1 FROM request_hashes WHERE kind = ? LIMIT 1", (kind,)).fetchone()
            names = list(identifiers) if held else []
            for name, value in zip(names, self.key.hide_all(kind, names), strict=True):
                row = connection.execute(FIRST_NAMING, (kind, bytes.fromhex(value))).fetchone()
                if row is not None:
                    found[name] = row[0]
        return found


def _refuse_leap(request_id: str, before: str, state: str) -> None:
    if not may_follow(before, state):
        ways = [following for following in STATES if may_follow(before, following)]
        raise LedgerError(
            f"Expected request {request_id}, which is {before}, to go to {' or '.join(ways) or 'no other state'}, "
            f"got {state}; nothing was noted."
        )
