"""The SQLite file that a ledger lies in."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fairsisa.errors import LedgerError
from fairsisa.sisa.once import explained

VERSION = 1
MOUNTS = Path("/proc/self/mountinfo")
# WAL needs memory that all who open the file share, so it is for file systems of one host. Elsewhere, also on what
# is not known here (nfs, cifs, lustre, gpfs, ceph, fuse.*, 9p, virtiofs, ...), a rollback journal is slower and safe.
LOCAL = frozenset(("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "tmpfs", "xfs", "zfs"))
TABLES = {
    "meta": "singleton INTEGER PRIMARY KEY CHECK (singleton = 1), version INTEGER NOT NULL, "
    "ledger_id TEXT NOT NULL, key_fingerprint TEXT NOT NULL",
    "requests": "number INTEGER PRIMARY KEY, request_id TEXT NOT NULL UNIQUE",
    "request_hashes": "number INTEGER NOT NULL REFERENCES requests, kind TEXT NOT NULL "
    "CHECK (kind IN ('example', 'subject')), hash BLOB NOT NULL, PRIMARY KEY (number, kind, hash)",
    "details": "digest TEXT PRIMARY KEY NOT NULL, body BLOB NOT NULL",
    "events": "seq INTEGER PRIMARY KEY, number INTEGER NOT NULL REFERENCES requests, state TEXT NOT NULL, "
    "time TEXT NOT NULL, detail TEXT NOT NULL REFERENCES details, previous TEXT NOT NULL, digest TEXT NOT NULL",
}
INDEXES = ("requests_by_hash ON request_hashes (kind, hash)", "events_by_request ON events (number, seq)")
SCHEMA = (
    *(f"CREATE TABLE {name} ({body})" + " WITHOUT ROWID" * (name == "request_hashes") for name, body in TABLES.items()),
    *(f"CREATE INDEX {index}" for index in INDEXES),
    *(
        f"CREATE TRIGGER {name}_refuse_{act.lower()} BEFORE {act} ON {name} "
        f"BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for name in TABLES
        for act in ("UPDATE", "DELETE")
    ),
)
CURES = {
    sqlite3.SQLITE_BUSY: "another command holds it; wait for that to end, then run it again",
    sqlite3.SQLITE_LOCKED: "another command holds it; wait for that to end, then run it again",
    sqlite3.SQLITE_FULL: "free disk space, then run it again",
    sqlite3.SQLITE_READONLY: "give this user the right to write the file and its folder",
    sqlite3.SQLITE_PERM: "give this user the right to write the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "look whether the file is there, and may be read and written together with its folder",
    sqlite3.SQLITE_IOERR: "look after the disk, then run it again",
}
RESTORE = "restore the file from a backup, then receive again what came since"


@dataclass(frozen=True)
class Meta:
    """What a ledger says of itself."""

    version: int
    ledger_id: str
    key_fingerprint: str


def blank_file(meta: Meta, journal: str) -> bytes:
    """Return the bytes of a ledger without requests."""
    with explained("make a ledger in a temporary folder"), TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        with translated(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA journal_mode={journal}")
            with transaction(connection):
                for statement in SCHEMA:
                    connection.execute(statement)
                row = (meta.version, meta.ledger_id, meta.key_fingerprint)
                connection.execute("INSERT INTO meta VALUES (1, ?, ?, ?)", row)
        return path.read_bytes()


@contextmanager
def connected(path: Path, *, journal: str, patience: float) -> Iterator[tuple[sqlite3.Connection, Meta]]:
    """Open the file and read what it says of itself; close it in the end. Each commit is on the disk at once.

    Raises:
        LedgerError: when there is no such file or it is no ledger, neither of which it makes one; and in place of
            every error of SQLite, also of the caller's own statements.
    """
    address = f"{path.absolute().as_uri()}?mode=rw"
    with (
        translated(path),
        closing(sqlite3.connect(address, uri=True, timeout=patience, isolation_level=None)) as connection,
    ):
        meta = read_meta(connection, path)  # before anything below could turn an empty file into a database
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        mode = connection.execute(f"PRAGMA journal_mode={journal}").fetchone()[0]
        if mode == "wal" != journal:
            raise LedgerError(f"Expected {path} to leave WAL mode on a network disk, and it did not: copy it locally.")
        yield connection, meta


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Commit all that is executed within, or nothing: `kind` "IMMEDIATE" to write, "DEFERRED" to read one state."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an error of SQLite into a LedgerError that names the file, what came and the cure."""
    try:
        yield
    except sqlite3.Error as error:
        cure = CURES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, RESTORE)
        raise LedgerError(f"Could not use the ledger {path}: {error}; {cure}.") from error


def read_meta(connection: sqlite3.Connection, path: Path) -> Meta:
    """Return what the ledger says of itself.

    Raises:
        LedgerError: when the file is no ledger, or one of another version of fairsisa.
    """
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'").fetchone()
    row = connection.execute("SELECT version, ledger_id, key_fingerprint FROM meta").fetchone() if found else None
    if row is None:
        raise LedgerError(f"Expected a ledger in {path}, got a file that holds none: {RESTORE}.")
    meta = Meta(*row)
    if meta.version != VERSION:
        raise LedgerError(
            f"Expected {path} to be a ledger of version {VERSION}, got {meta.version!r}: "
            "use the fairsisa that wrote it."
        )
    if not re.fullmatch(r"[0-9a-f]{32}", str(meta.ledger_id)):
        raise LedgerError(f"Expected {path} to name itself by 32 hexadecimal digits, got something else: {RESTORE}.")
    return meta


def journal_mode(path: Path, mounts: str) -> str:
    """Return "wal" where the path is on a file system of this host, else "delete".

    `mounts` is a mount table, as /proc/self/mountinfo holds it (proc_pid_mountinfo(5)). The path is resolved first.
    """
    place, found = path.resolve(), (-1, "")
    for line in mounts.splitlines():
        left, dash, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if dash and kind and len(fields) > 4:
            root = Path(_unescaped(fields[4]))
            if place.is_relative_to(root) and len(root.parts) >= found[0]:  # of two on one place, the later hides
                found = (len(root.parts), kind[0])
    return "wal" if found[1] in LOCAL else "delete"


def mount_table() -> str:
    """Return this process's mount table; nothing on a system that has none."""
    try:
        return MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux, or hidden: `journal_mode` then takes the safe one
        return ""


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), text)
