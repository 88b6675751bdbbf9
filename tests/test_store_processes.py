from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import safetensors.torch

from fairsisa.store import Store
from store_cases import WEIGHTS, files_under, lineage, same

ROOT = lineage("root", kind="root")
CHILD = lineage("child", (ROOT.name,))
DRIVER = """
import json, os, signal, sys
from pathlib import Path
from fairsisa.store import Store
sys.path.insert(0, sys.argv[3])
from store_cases import WEIGHTS, lineage
from test_store_processes import CHILD, ROOT

task, root = sys.argv[1], Path(sys.argv[2])

def deadly(function, left):
    def call(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

def fork(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid

def prepare(store):
    store.put(ROOT, WEIGHTS)
    if task == "purge":
        store.put(CHILD, WEIGHTS)
        store.put(lineage("grandchild", (CHILD.name,)), WEIGHTS)

def kill_at_every_call():
    for count in range(100):
        store = Store(root / f"{count:02}")
        prepare(store)
        def work():
            left = [count]
            for name in ("fsync", "replace", "unlink", "mkdir"):
                setattr(os, name, deadly(getattr(os, name), left))
            store.put(CHILD, WEIGHTS) if task == "put" else store.purge([ROOT.name])
        status = os.waitpid(fork(work), 0)[1]
        yield os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
        if not os.WIFSIGNALED(status):
            return

def put_together():
    store = Store(root)
    def work():
        for index in range(6):
            store.put(lineage(str(index)), WEIGHTS)
    pids = [fork(work) for _ in range(4)]
    return [os.waitpid(pid, 0)[1] for pid in pids]

print(json.dumps(put_together() if task == "together" else list(kill_at_every_call())))
"""


def drive(task: str, root: Path) -> list[int]:
    command = [sys.executable, "-c", DRIVER, task, str(root), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


def test_a_killed_put_leaves_all_or_nothing(tmp_path):
    ends = drive("put", tmp_path)
    assert len(ends) > 6  # at least two files and their folder are synced, and both files moved
    assert ends == [*[signal.SIGKILL] * (len(ends) - 1), 0]
    digest = hashlib.sha256(safetensors.torch.save(WEIGHTS)).hexdigest()
    there = []
    for folder in sorted(tmp_path.iterdir()):
        store = Store(folder)
        there.append(store.has(CHILD.name))
        assert store.verify() == {}
        assert set(store.names()) - {CHILD.name} == {ROOT.name}
        store.put(CHILD, WEIGHTS)
        assert same(store.get(CHILD.name), WEIGHTS)
        assert store.manifest(CHILD.name).sha256 == digest
        store.sweep(older_than=0.0)
        assert len(files_under(store.root)) == 4
    assert there == sorted(there)
    assert set(there) == {False, True}


def test_a_killed_purge_is_completed_by_the_next(tmp_path):
    ends = drive("purge", tmp_path)
    assert len(ends) > 7  # six files are deleted, and their folders synced
    assert ends == [*[signal.SIGKILL] * (len(ends) - 1), 0]
    left = []
    for folder in sorted(tmp_path.iterdir()):
        store = Store(folder)
        left.append(len(store.names()))
        assert store.verify() == {}
        assert all(set(entry.parents) <= set(store.names()) for entry in store.entries())
        store.purge([ROOT.name])
        assert files_under(store.root) == set()
    assert left == sorted(left, reverse=True)
    assert set(left) == {0, 1, 2, 3}


def test_many_may_put_the_same_at_once(tmp_path):
    assert drive("together", tmp_path) == [0, 0, 0, 0]
    store = Store(tmp_path)
    assert len(store.names()) == 6
    assert store.verify() == {}
    assert store.leftovers(older_than=0.0) == ()
