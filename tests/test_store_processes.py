from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from fairsisa.store import Store
from store_cases import WEIGHTS, files_under, lineage, path_of, same

ROOT = lineage("root", kind="root")
CHILD = lineage("child", (ROOT.name,))
GRANDCHILD = lineage("grandchild", (CHILD.name,))
TWIN, LONELY = lineage("twin"), lineage("lonely")
DRIVER = """
import json, os, signal, sys
from pathlib import Path
from fairsisa.store import Store
sys.path.insert(0, sys.argv[2])
from store_cases import WEIGHTS, lineage
from test_store_processes import TASKS, prepare

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

def kill_at_every_call(task, place):
    for count in range(100):
        folder = Path(place) / f"{count:02}"
        (folder / "run").mkdir(parents=True)
        store = Store(folder / "store")
        prepare(task, store)
        def work():
            left = [count]
            for name in ("fsync", "replace", "unlink", "mkdir", "link"):
                setattr(os, name, deadly(getattr(os, name), left))
            TASKS[task](store)
        status = os.waitpid(fork(work), 0)[1]
        yield os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
        if not os.WIFSIGNALED(status):
            return

def put_together(place):
    store = Store(place)
    def work():
        for index in range(6):
            store.put(lineage(str(index)), WEIGHTS)
    pids = [fork(work) for _ in range(4)]
    return [os.waitpid(pid, 0)[1] for pid in pids]

places = json.loads(sys.argv[1])
ends = {task: list(kill_at_every_call(task, place)) for task, place in places.items() if task in TASKS}
print(json.dumps(ends | {task: put_together(place) for task, place in places.items() if task not in TASKS}))
"""
TOGETHER = {"together on a disk": "", "together behind a URL": "file://"}


def prepare(task: str, store: Store) -> None:
    store.put(ROOT, WEIGHTS)
    if task in ("purge", "drop", "collect"):
        store.put(CHILD, WEIGHTS)
        store.put(GRANDCHILD, WEIGHTS)
    if task in ("claim", "collect"):
        store.claim(run_of(store), [CHILD.name])
    if task == "restore":
        store.put(CHILD, WEIGHTS)
        store.drop([ROOT.name])
    if task == "collect":
        store.drop([ROOT.name])
        store.put(TWIN, WEIGHTS)
        store.put(LONELY, WEIGHTS)
        store.claim(run_of(store), [CHILD.name, TWIN.name])


def run_of(store: Store) -> Path:
    return store.root.parent / "run"


TASKS: dict[str, Callable[[Store], Any]] = {
    "put": lambda store: store.put(CHILD, WEIGHTS),
    "purge": lambda store: store.purge([ROOT.name]),
    "drop": lambda store: store.drop([ROOT.name, CHILD.name]),
    "restore": lambda store: store.put(ROOT, WEIGHTS),
    "claim": lambda store: store.claim(run_of(store), [ROOT.name]),
    "collect": lambda store: store.collect(older_than=0.0),
}


@dataclass(frozen=True)
class Driven:
    """Where each task left its stores, and how its processes ended: 0, or the signal that killed them."""

    places: dict[str, str]
    ends: dict[str, list[int]]

    def states(self, task: str, least: int) -> Iterator[Store]:
        # one store for each call at which the task was killed, and at last one where it was not
        ends = self.ends[task]
        assert len(ends) > least
        assert ends == [*[signal.SIGKILL] * (len(ends) - 1), 0]
        for folder in sorted(Path(self.places[task]).iterdir()):
            yield Store(folder / "store")


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Driven:
    root = tmp_path_factory.mktemp("killed")
    places = {task: TOGETHER.get(task, "") + str(root / task.replace(" ", "-")) for task in (*TASKS, *TOGETHER)}
    command = [sys.executable, "-c", DRIVER, json.dumps(places), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Driven(places, json.loads(done.stdout))


def test_a_killed_put_leaves_all_or_nothing(driven):
    digest = hashlib.sha256(safetensors.torch.save(WEIGHTS)).hexdigest()
    there = []
    for store in driven.states("put", least=6):  # at least two files and their folder are synced, and both files moved
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


def test_a_killed_purge_is_completed_by_the_next(driven):
    left = []
    for store in driven.states("purge", least=7):  # six files are deleted, and their folders synced
        left.append(len(store.names()))
        assert store.verify() == {}
        assert all(set(entry.parents) <= set(store.names()) for entry in store.entries())
        store.purge([ROOT.name])
        assert files_under(store.root) == set()
    assert left == sorted(left, reverse=True)
    assert set(left) == {0, 1, 2, 3}


def test_a_killed_drop_is_completed_by_the_next(driven):
    kept = set()
    for store in driven.states("drop", least=7):  # two manifests rewritten, then two payloads deleted
        kept.add(len(store.names()))
        assert len(store.records()) == 3
        assert store.verify() == {}
        assert store.example_ids(GRANDCHILD.name) == frozenset()
        store.drop([ROOT.name, CHILD.name])
        store.sweep(older_than=0.0)
        assert store.names() == (GRANDCHILD.name,)
        assert len(files_under(store.root)) == 4
    assert kept == {1, 2, 3}


def test_a_killed_restoring_leaves_the_record_or_the_artefact(driven):
    there = []
    for store in driven.states("restore", least=4):
        there.append(store.has(ROOT.name))
        assert {entry.name for entry in store.records()} == {ROOT.name, CHILD.name}
        assert store.verify() == {}
        store.put(ROOT, WEIGHTS)
        store.sweep(older_than=0.0)
        assert same(store.get(ROOT.name), WEIGHTS)
        assert len(files_under(store.root)) == 4
    assert there == sorted(there)
    assert set(there) == {False, True}


def test_a_killed_claim_leaves_the_old_or_the_new(driven):
    claimed = []
    for store in driven.states("claim", least=2):
        claimed.append(store.claims()[str(run_of(store))])
        store.claim(run_of(store), [ROOT.name])
        assert store.claims() == {str(run_of(store)): {ROOT.name}}
        store.sweep(older_than=0.0)
        assert len(files_under(store.root)) == 3
    assert set(claimed) == {frozenset([CHILD.name]), frozenset([ROOT.name])}
    assert claimed == sorted(claimed, key=lambda names: ROOT.name in names)


def test_a_killed_collection_is_completed_by_the_next(driven):
    purged, shared = set(), set()
    for store in driven.states("collect", least=8):
        purged.add(len(store.records()))
        shared.add(links_of(store))
        assert store.verify() == {}
        assert {ROOT.name, CHILD.name, TWIN.name} <= {entry.name for entry in store.records()}
        store.collect(older_than=0.0)
        assert {entry.name: entry.kept for entry in store.records()} == {
            ROOT.name: False,
            CHILD.name: True,
            TWIN.name: True,
        }
        assert links_of(store) == 2
        assert store.leftovers(older_than=0.0) == ()
        assert len(files_under(store.root)) == 6
        assert same(store.get(TWIN.name), WEIGHTS)
    assert purged == {3, 4, 5}
    assert shared >= {1, 2}


def links_of(store: Store) -> int:
    return path_of(store, CHILD.name, ".safetensors").stat().st_nlink


@pytest.mark.parametrize("task", TOGETHER)
def test_many_may_put_the_same_at_once(driven, task):
    assert driven.ends[task] == [0, 0, 0, 0]
    store = Store(driven.places[task])
    assert len(store.names()) == 6
    assert store.verify() == {}
    assert store.leftovers(older_than=0.0) == ()
