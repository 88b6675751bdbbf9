from __future__ import annotations

import _sqlite3
import ctypes
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fairsisa.errors import LedgerError
from fairsisa.sisa import ledger_file
from fairsisa.sisa.ledger import ForgetSet, Head, Ledger
from fairsisa.sisa.ledger_check import EVENTS
from fairsisa.sisa.ledger_events import event_digest

DRIVER = """
import _sqlite3, ctypes, json, os, shutil, signal, sqlite3, sys
from pathlib import Path
from fairsisa.sisa import ledger as module, ledger_file
from fairsisa.sisa.ledger import Ledger

task, root, kind = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
module.mount_table = lambda: f"1 1 1:1 / / rw - {kind} x rw"

def deadly(function, left):
    def call(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

def kill_at_statement(left):
    tick = deadly(lambda statement: None, left)
    class Watched(sqlite3.Connection):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.set_trace_callback(tick)
        def close(self):
            tick("close")
            super().close()
    connect = sqlite3.connect
    ledger_file.sqlite3.connect = lambda *args, **options: connect(*args, factory=Watched, **options)

WORD = ctypes.c_void_p
class Vfs(ctypes.Structure):  # struct sqlite3_vfs of sqlite3.h, version 3
    _fields_ = [
        ("head", ctypes.c_int * 3), ("next", WORD), ("name", ctypes.c_char_p), ("data", WORD), ("calls", WORD * 13),
        ("set", ctypes.CFUNCTYPE(ctypes.c_int, WORD, ctypes.c_char_p, WORD)),
        ("get", ctypes.CFUNCTYPE(WORD, WORD, ctypes.c_char_p)),
    ]
SHAPES = {  # the calls by which SQLite changes what lies on the disk
    b"pwrite64": (ctypes.c_ssize_t, ctypes.c_int, WORD, ctypes.c_size_t, ctypes.c_int64),
    b"pwrite": (ctypes.c_ssize_t, ctypes.c_int, WORD, ctypes.c_size_t, ctypes.c_int64),
    b"write": (ctypes.c_ssize_t, ctypes.c_int, WORD, ctypes.c_size_t),
    b"ftruncate": (ctypes.c_int, ctypes.c_int, ctypes.c_int64),
    b"unlink": (ctypes.c_int, ctypes.c_char_p),
    b"openDirectory": (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)),
}
kept = []

def kill_at_system_call(left):
    find = ctypes.CDLL(_sqlite3.__file__).sqlite3_vfs_find
    find.restype = ctypes.POINTER(Vfs)
    vfs = find(None).contents
    for name, shape in SHAPES.items():
        original = vfs.get(ctypes.addressof(vfs), name)
        if original:
            made = ctypes.CFUNCTYPE(*shape)
            hook = made(deadly(made(original), left))
            kept.append(hook)
            assert vfs.set(ctypes.addressof(vfs), name, ctypes.cast(hook, WORD)) == 0

def kill_at_file_call(left):
    for name in ("fsync", "link", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name), left))

def tell(line):
    with open(root / "told", "a") as file:
        file.write(line + "\\n")

def work(folder):
    if task == "begin":
        Ledger.begin(folder / "ledger", folder / "keys")
        return
    ledger = Ledger.open(folder / "ledger", folder / "keys")
    for index in range(2):
        request = ledger.receive([f"e{index}", f"f{index}"], subject_ids=[f"s{index}"])
        tell(f"{folder.name} {request.request_id}")
    ledger.advance([request.request_id], "planned", {"slices": 2})
    tell(f"{folder.name} planned")

def kill_at_every(install):
    (root / "start").mkdir()
    if task == "receive":
        Ledger.begin(root / "start" / "ledger", root / "start" / "keys").receive(["before"])
    for count in range(1000):
        folder = root / f"{count:03}"
        shutil.copytree(root / "start", folder)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                install([count])
                work(folder)
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        yield os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
        if not os.WIFSIGNALED(status):
            return

print(json.dumps(list(kill_at_every(globals()[sys.argv[4]]))))
"""


def drive(*words: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", DRIVER, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


# A Python that has SQLite built in hides its system calls; there, statements are the only boundaries.
SYSTEM_CALLS = hasattr(ctypes.CDLL(getattr(_sqlite3, "__file__", None)), "sqlite3_vfs_find")
BOUNDARIES = ("kill_at_statement", *(["kill_at_system_call"] if SYSTEM_CALLS and hasattr(_sqlite3, "__file__") else []))


@pytest.mark.parametrize("disk", ["ext4", "nfs"])
@pytest.mark.parametrize("install", BOUNDARIES)
def test_a_killed_command_loses_nothing_it_had_received(tmp_path, install, disk):
    ends = drive("receive", str(tmp_path), disk, install)
    assert len(ends) > 20
    assert ends == [*[signal.SIGKILL] * (len(ends) - 1), 0]
    told: dict[str, list[str]] = {}
    for line in (tmp_path / "told").read_text().splitlines():
        told.setdefault(line.split()[0], []).append(line.split()[1])
    lengths = []
    for folder in sorted(tmp_path.glob("[0-9]*")):
        ledger = Ledger.open(folder / "ledger", folder / "keys")
        ledger.check()
        requests = ledger.requests()
        expected = told.get(folder.name, [])
        assert {request.request_id for request in requests[1:]} >= set(expected) - {"planned"}
        assert "planned" not in expected or requests[-1].state == "planned"
        assert len(requests) - 1 - len(set(expected) - {"planned"}) <= 1  # the one it died in, whole or not at all
        assert all(len(request.example_hashes) == 2 for request in requests[1:])
        lengths.append(ledger.head.seq)
        again = ledger.receive_many(ForgetSet([f"e{index}", f"f{index}"], [f"s{index}"]) for index in range(2))
        ledger.advance([again[-1].request_id], "planned", {"slices": 2})
        ledger.check([Head(4, ledger.history()[-1].digest)])
    assert lengths == sorted(lengths)
    assert set(lengths) == {1, 2, 3, 4}


@pytest.mark.parametrize("install", ["kill_at_file_call", *BOUNDARIES])
def test_a_killed_begin_leaves_a_ledger_with_its_key_or_none(tmp_path, install):
    ends = drive("begin", str(tmp_path), "ext4", install)
    assert len(ends) > 5
    assert ends == [*[signal.SIGKILL] * (len(ends) - 1), 0]
    there = []
    for folder in sorted(tmp_path.glob("[0-9]*")):
        there.append((folder / "ledger").exists())
        if there[-1]:
            Ledger.open(folder / "ledger", folder / "keys").check()
        ledger = Ledger.begin(folder / "ledger", folder / "keys")
        ledger.receive(["a"])
        ledger.check()
    assert there == sorted(there)
    assert set(there) == {False, True}


def test_a_log_that_a_power_cut_tore_anywhere_holds_whole_requests(tmp_path):
    ledger = Ledger.begin(tmp_path / "ledger", tmp_path / "keys")
    kept = tmp_path / "kept"
    with ledger._opened():  # what lies there before the log is written back into the file
        made = [request.request_id for request in ledger.receive_many(ForgetSet([f"{i}"]) for i in range(5))]
        shutil.copytree(tmp_path, kept, ignore=shutil.ignore_patterns("*-shm"))
    log = (kept / "ledger-wal").read_bytes()
    lengths = []
    for size in range(0, len(log) + 1, 1373):
        torn = tmp_path / "torn" / f"{size}"
        shutil.copytree(kept, torn)
        (torn / "ledger-wal").write_bytes(log[:size])
        found = Ledger.open(torn / "ledger", torn / "keys")
        found.check()
        lengths.append(len(found.requests()))
        assert [request.request_id for request in found.requests()] == made[: lengths[-1]]
    assert lengths == sorted(lengths)
    assert set(lengths) >= {0, 1, 2, 3, 4}


# Damage


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.begin(tmp_path / "ledger", tmp_path / "keys")
    first = ledger.receive(["a", "b"], subject_ids=["s"], reason="Art. 17")
    second = ledger.receive(["c"], num_skipped=1)
    ledger.advance([first.request_id, second.request_id], "planned", {"slices": [1, 2]})
    ledger.advance([first.request_id], "retraining", {"shard": 0})
    return ledger


def told_by(ledger: Ledger) -> object:
    return ledger.requests(), ledger.history(), ledger.forgotten("abcd"), ledger.hashes("planned"), ledger.head


def tamper(ledger: Ledger, *changes: str) -> None:
    with closing(sqlite3.connect(ledger.path)) as raw, raw:
        raw.execute("PRAGMA foreign_keys=OFF")
        triggers = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            raw.execute(f"DROP TRIGGER {name}")
        for change in changes:
            assert raw.execute(change).rowcount > 0
        for _, trigger in triggers:
            raw.execute(trigger)


def test_every_flipped_byte_that_tells_something_is_found(ledger):
    whole, truth = ledger.path.read_bytes(), told_by(ledger)
    found = 0
    for place in range(0, len(whole), 211):
        ledger.path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            again = Ledger(ledger.path, ledger.key)
            again.check()
        except LedgerError:
            found += 1
        else:
            assert told_by(again) == truth, place  # free space, or a number that SQLite does not read
        for left in ("-wal", "-shm"):
            ledger.path.with_name(ledger.path.name + left).unlink(missing_ok=True)
    assert found > 20
    ledger.path.write_bytes(whole)
    ledger.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE events SET state = 'failed' WHERE seq = 4", "Event 4 .* its digest is .*, its contents give"),
        ("UPDATE events SET time = '2020-01-01' WHERE seq = 2", "Event 2 .* its digest is"),
        ("UPDATE events SET number = 2 WHERE seq = 3", "Event 3 .* its digest is"),
        ("UPDATE events SET previous = digest WHERE seq = 3", "Event 3 .* it names .* as the digest before"),
        ("UPDATE events SET digest = previous WHERE seq = 3", "Event 3 .* its digest is"),
        ("UPDATE events SET detail = (SELECT detail FROM events WHERE seq = 5) WHERE seq = 4", "Event 4 .* its digest"),
        ("UPDATE events SET seq = 9 WHERE seq = 5", "Event 5 .* it is missing, event 9 comes in its place"),
        ("UPDATE events SET state = x'ff' WHERE seq = 5", "Could not decode to UTF-8|Event 5"),
        ("DELETE FROM events WHERE seq = 3", "Event 3 .* it is missing, event 4 comes in its place"),
        (
            "UPDATE details SET body = '{}' WHERE CAST(body AS TEXT) LIKE '%Art%'",
            "Event 1 .* its detail has another digest",
        ),
        (
            "UPDATE details SET body = x'00ff' WHERE CAST(body AS TEXT) LIKE '%shard%'",
            "Event 5 .* its detail has another digest",
        ),
        ("DELETE FROM details WHERE CAST(body AS TEXT) LIKE '%slices%'", "Event 3 .* its detail has another digest"),
        ("INSERT INTO details VALUES ('x', 'y')", "Expected no details without an event .* got 1"),
        ("UPDATE requests SET request_id = 'x' WHERE number = 2", "Event 2 .* its digest is"),
        ("UPDATE requests SET number = 7 WHERE number = 1", "Event 1 .* its digest is"),
        ("DELETE FROM requests WHERE number = 2", "Event 2 .* its digest is"),
        ("INSERT INTO requests VALUES (8, 'x')", "Expected no requests without an event .* got 1"),
        ("DELETE FROM request_hashes WHERE number = 2", "Event 2 .* examples is '.*' in the event, .* rows give '"),
        ("UPDATE request_hashes SET hash = x'00' WHERE number = 2", "Event 2 .* examples is"),
        ("UPDATE request_hashes SET kind = 'example' WHERE kind = 'subject'", "Event 1 .* examples is"),
        ("UPDATE request_hashes SET number = 1 WHERE number = 2", "Event 1 .* examples is"),
        ("INSERT INTO request_hashes VALUES (1, 'subject', x'00')", "Event 1 .* subjects is"),
        ("INSERT INTO request_hashes VALUES (6, 'subject', x'00')", "received event for request 6 of table"),
    ],
)
def test_an_edited_row_is_found_and_named(ledger, change, message):
    ledger.check()
    tamper(ledger, change)
    with pytest.raises(LedgerError, match=f"{message}.*"):
        ledger.check()


def test_tampering_without_a_change_passes(ledger):
    tamper(ledger, "UPDATE events SET state = 'planned' WHERE seq = 3")  # what it was: the control of the test above
    ledger.check()


def test_dropped_triggers_are_found(ledger):
    with closing(sqlite3.connect(ledger.path)) as raw, raw:
        raw.execute("DROP TRIGGER events_refuse_delete")
    with pytest.raises(LedgerError, match="Expected the tables and triggers of a ledger, got others"):
        ledger.check()


def test_a_state_that_cannot_follow_is_found_in_a_sound_chain(ledger):
    with closing(sqlite3.connect(ledger.path)) as raw, raw:
        seq, request_id, _, time, _, detail, previous, _, number = raw.execute(f"{EVENTS} WHERE seq = 5").fetchone()
        digest = event_digest(previous, seq + 1, request_id, "attested", time, detail=detail)
        row = (seq + 1, number, "attested", time, detail, previous, digest)
        raw.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    with pytest.raises(LedgerError, match=r"Event 6 .* 'attested' at .* cannot follow 'retraining'"):
        ledger.check()


def test_a_cut_end_shows_by_a_quoted_head_alone(ledger):
    heads = [ledger.head]
    ledger.advance([ledger.requests()[1].request_id], "failed", {"why": "disk"})
    heads.append(ledger.head)
    ledger.check(heads)
    tamper(ledger, "DELETE FROM events WHERE seq = 6", "DELETE FROM details WHERE CAST(body AS TEXT) LIKE '%disk%'")
    ledger.check()
    ledger.check(heads[:1])
    with pytest.raises(LedgerError, match="Expected event 6, which is quoted elsewhere, got a ledger of 5 events"):
        ledger.check(heads)
    ledger.advance([ledger.requests()[1].request_id], "failed", {"why": "another"})
    with pytest.raises(LedgerError, match=r"Event 6 .* its digest is .*, elsewhere it is quoted as"):
        ledger.check(heads)
    with pytest.raises(LedgerError, match="Expected event -1"):
        ledger.check([Head(-1, heads[0].digest)])


# A file that is none, a disk that refuses


@pytest.mark.parametrize("garbage", [b"", b"garbage" * 1000, b"SQLite format 3\0" + b"\7" * 4096])
def test_garbage_is_refused_and_never_begun_anew(ledger, tmp_path, garbage):
    ledger.path.write_bytes(garbage)
    for use in (
        ledger.check,
        lambda: ledger.receive(["z"]),
        ledger.history,
        lambda: Ledger.open(ledger.path, tmp_path / "keys"),
        lambda: Ledger.begin(ledger.path, tmp_path / "keys"),
    ):
        with pytest.raises(LedgerError, match=r"ledger.*(not a database|holds none).*; restore the file|: restore"):
            use()
    assert ledger.path.read_bytes() == garbage


@pytest.mark.parametrize("size", [1, 100, 4096, 4097, 20_000])
def test_a_torn_file_is_refused(ledger, size):
    ledger.path.write_bytes(ledger.path.read_bytes()[:size])
    with pytest.raises(LedgerError, match=r"restore the file from a backup|Event"):
        ledger.check()


def test_another_ledger_in_its_place_is_refused(ledger, tmp_path):
    other = Ledger.begin(tmp_path / "other", tmp_path / "keys")
    other.path.replace(ledger.path)
    with pytest.raises(LedgerError, match="is another ledger than the one that was opened"):
        ledger.receive(["z"])


def test_a_ledger_that_is_gone_is_not_made_anew(ledger):
    ledger.path.unlink()
    with pytest.raises(LedgerError, match="unable to open database file; look whether the file is there"):
        ledger.receive(["z"])
    assert not ledger.path.exists()


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    connect = sqlite3.connect

    def patch(statement: str = "", **options: str) -> None:
        def opened(address: str, **given: object) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(
                address.replace("mode=rw", options.get("mode", "mode=rw")), **given
            )
            connection.execute(statement)
            return connection

        monkeypatch.setattr(ledger_file.sqlite3, "connect", opened)

    yield patch
    monkeypatch.undo()


def test_a_full_disk_is_explained_and_takes_nothing(ledger, patched, monkeypatch):
    truth = told_by(ledger)
    with closing(sqlite3.connect(ledger.path)) as raw:
        pages = raw.execute("PRAGMA page_count").fetchone()[0]
    patched(f"PRAGMA max_page_count={pages}")
    with pytest.raises(LedgerError, match=f"{ledger.path}: database or disk is full; free disk space, then run it"):
        ledger.receive([f"{index}" for index in range(2000)])
    monkeypatch.undo()
    assert told_by(ledger) == truth
    ledger.check()
    ledger.receive([f"{index}" for index in range(2000)])


def test_a_ledger_that_may_only_be_read_is_read(ledger, patched):
    truth = told_by(ledger)
    patched("SELECT 1", mode="mode=ro")
    with pytest.raises(LedgerError, match=f"{ledger.path}: attempt to write a readonly database; give this user the"):
        ledger.receive(["z"])
    assert told_by(ledger) == truth
    ledger.check()


@pytest.mark.parametrize("disk", ["ext4", "nfs"])
def test_a_lock_held_too_long_is_explained(ledger, monkeypatch, disk):
    monkeypatch.setattr("fairsisa.sisa.ledger.mount_table", lambda: f"1 1 1:1 / / rw - {disk} x rw")
    hasty = Ledger(ledger.path, ledger.key, patience=0.05)
    truth = told_by(hasty)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as raw:
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="database is locked; another command holds it; wait for that to end"):
            hasty.receive(["z"])
        assert told_by(hasty) == truth
        raw.execute("ROLLBACK")
    hasty.receive(["z"])
    assert len(hasty.requests()) == 3
