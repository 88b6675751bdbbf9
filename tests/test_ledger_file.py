from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairsisa.sisa.ledger import Ledger
from fairsisa.sisa.ledger_file import journal_mode


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.begin(tmp_path / "ledger", tmp_path / "keys")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.frozensets(st.uuids().map(str), min_size=1, max_size=5))
def test_no_id_in_plain_is_in_any_file(tmp_path, names):
    ledger = Ledger.begin(tmp_path / "ledger", tmp_path / "keys")
    with ledger._opened():  # so that the files beside it stay
        request = ledger.receive(names, subject_ids=names, reason="Art. 17")
        ledger.advance([request.request_id], "planned", {"slices": 3})
        ledger.forgotten(names)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {"ledger", "ledger-wal", "ledger-shm"} <= {path.name for path in files}
        stored = b"".join(path.read_bytes() + path.name.encode() for path in files)
    stored += ledger.path.read_bytes()
    assert b"Art. 17" in stored
    for name in names:
        assert name.encode() not in stored
        assert bytes.fromhex(name.replace("-", "")) not in stored
        assert hashlib.sha256(name.encode()).digest() not in stored
    assert ledger.key.secret not in ledger.path.read_bytes()
    assert ledger.key.secret.hex().encode() not in ledger.path.read_bytes()


def test_the_file_refuses_updates_and_deletions(ledger):
    ledger.advance([ledger.receive(["a"]).request_id], "planned")
    ledger.receive(["b"], subject_ids=["s"])
    with closing(sqlite3.connect(ledger.path)) as raw:
        tables = [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert len(tables) == 5
        for table in tables:
            column = raw.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchone()[0]  # noqa: S608
            for change in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = {column}"):  # noqa: S608
                with pytest.raises(sqlite3.IntegrityError, match="the ledger is append-only"):
                    raw.execute(change)


@pytest.mark.parametrize("kind", ["ext4", "nfs"])
def test_every_commit_goes_onto_the_disk(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("fairsisa.sisa.ledger.mount_table", lambda: f"1 1 1:1 / / rw - {kind} x rw")
    with Ledger.begin(tmp_path / "ledger", tmp_path / "keys")._opened() as connection:
        settings_now = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "foreign_keys")]
    assert settings_now == [2, 1]  # 2 is FULL (sqlite.org/pragma.html#pragma_synchronous)


MOUNT_TABLE = """
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw shared:2 master:3 - nfs4 server:/home rw,vers=4.2
31 30 0:41 / /home/my\\040disk rw - xfs /dev/sdb1 rw
32 22 0:42 / /scratch rw - lustre ost rw
33 22 0:43 / /cloud rw - fuse.sshfs host: rw
34 22 0:44 / /over rw - ext4 /dev/sdc1 rw
35 34 0:45 / /over rw - cifs //server/share rw
36 22 0:46 / /odd rw - newfs none rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/data/ledger", "wal"),
        ("/home/ann/ledger", "delete"),
        ("/homely/ledger", "wal"),
        ("/home/my disk/ledger", "wal"),
        ("/scratch/x/y/z", "delete"),
        ("/cloud/ledger", "delete"),
        ("/over/ledger", "delete"),
        ("/odd/ledger", "delete"),
        ("/scratch/../data/ledger", "wal"),
    ],
)
def test_the_journal_fits_the_file_system(path, mode):
    assert journal_mode(Path(path), MOUNT_TABLE) == mode


def test_an_unknown_mount_table_is_taken_for_a_network():
    assert journal_mode(Path("/data"), "") == "delete"
    assert journal_mode(Path("/data"), "1 2 3 - ") == "delete"


@pytest.mark.parametrize("kinds", [("ext4", "nfs"), ("nfs", "ext4")])
def test_a_ledger_may_move_between_file_systems(tmp_path, monkeypatch, kinds):
    modes = {"ext4": "wal", "nfs": "delete"}
    for index, kind in enumerate(kinds):
        monkeypatch.setattr("fairsisa.sisa.ledger.mount_table", lambda kind=kind: f"1 1 1:1 / / rw - {kind} x rw")
        ledger = Ledger.begin(tmp_path / "ledger", tmp_path / "keys")
        ledger.advance([ledger.receive([f"{index}"]).request_id], "failed")
        ledger.check()
        with closing(sqlite3.connect(ledger.path)) as raw:
            assert raw.execute("PRAGMA journal_mode").fetchone() == (modes[kind],)
    assert len(ledger.requests()) == 2


WRITER = """
import sys
from pathlib import Path
from fairsisa.sisa.ledger import ForgetSet, Ledger
ledger = Ledger.open(Path(sys.argv[1]), Path(sys.argv[2]))
def asked():
    yield ForgetSet(["first"])
    print("begun", flush=True)
    for index in range(150):
        yield ForgetSet([f"{sys.argv[3]}-{index}"])
    with_lock = input()
    yield ForgetSet([f"{sys.argv[3]}-last"])
ledger.receive_many(asked())
"""


def writer(ledger: Ledger, keys: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(ledger.path), str(keys), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_history_is_read_while_another_process_writes(ledger, tmp_path):
    with writer(ledger, tmp_path / "keys", "w") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        lengths = []
        while not lengths or lengths[-1] < 151:
            events = ledger.history()
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            ledger.check()
            lengths.append(len(events))
        other.communicate("go on\n")
    assert other.returncode == 0
    assert lengths == sorted(lengths)
    assert len(ledger.history()) == 152


def test_two_processes_that_receive_at_once_lose_nothing(ledger, tmp_path):
    with writer(ledger, tmp_path / "keys", "x") as x, writer(ledger, tmp_path / "keys", "y") as y:
        for index in range(50):
            ledger.receive([f"here-{index}"])
        x.communicate("go on\n"), y.communicate("go on\n")
    assert (x.returncode, y.returncode) == (0, 0)
    expected = {"first", *(f"{who}-{index}" for who in "xy" for index in [*range(150), "last"])}
    expected |= {f"here-{index}" for index in range(50)}
    assert ledger.forgotten(expected).keys() == expected
    assert len(ledger.requests()) == len(expected)
    ledger.check()


def test_many_may_begin_the_same_ledger_at_once(tmp_path):
    begin = (
        "import sys; from pathlib import Path; from fairsisa.sisa.ledger import Ledger; import time, json\n"
        "time.sleep(max(0, float(sys.argv[3]) - time.time()))\n"
        "ledger = Ledger.begin(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(json.dumps([ledger.ledger_id, ledger.receive([sys.argv[4]]).request_id]))"
    )
    start = str(datetime.now(UTC).timestamp() + 1.5)
    command = [sys.executable, "-c", begin, str(tmp_path / "ledger"), str(tmp_path / "keys"), start]
    started = [subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, text=True) for index in range(4)]
    told = [json.loads(process.communicate()[0]) for process in started]
    assert len({ledger_id for ledger_id, _ in told}) == 1
    ledger = Ledger.open(tmp_path / "ledger", tmp_path / "keys")
    assert {request.request_id for request in ledger.requests()} == {request_id for _, request_id in told}
    assert [path.name for path in (tmp_path / "keys").iterdir()] == [f"{ledger.ledger_id}.key"]


def test_no_deep_learning_is_loaded():
    probe = "import sys, fairsisa.sisa.ledger as it; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
