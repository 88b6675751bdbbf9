from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from fairsisa.store import Store
from store_cases import WEIGHTS, files_under, lineage, path_of, put_tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# What is kept


def test_files_are_where_the_documentation_says(store):
    name = store.put(lineage(), WEIGHTS)
    payload, manifest = path_of(store, name, ".safetensors"), path_of(store, name, ".json")
    assert files_under(store.root) == {payload, manifest}
    assert safetensors.torch.load_file(payload).keys() == WEIGHTS.keys()
    fields = json.loads(manifest.read_text())
    digest = hashlib.sha256(payload.read_bytes()).hexdigest()
    assert fields["payload"] == {"file": payload.name, "bytes": payload.stat().st_size, "sha256": digest}
    assert fields["name"] == name
    assert fields["settings"] == {"label": "a", "rate": 0.1}


def test_order_of_tensors_does_not_change_the_bytes(store, tmp_path):
    other = Store(tmp_path / "other")
    name = store.put(lineage(), WEIGHTS)
    other.put(lineage(), dict(reversed(WEIGHTS.items())))
    assert store.manifest(name).sha256 == other.manifest(name).sha256


@pytest.fixture
def disk_steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    steps: list[str] = []

    def name_of(path: Path) -> str:
        return "payload" if ".safetensors" in path.name else "manifest" if ".json" in path.name else "folder"

    def record(call: str, path_of_call: Callable[..., Path]) -> None:
        function = getattr(os, call)

        def recorded(*args: Any, **options: Any) -> Any:
            steps.append(f"{call} {name_of(path_of_call(*args))}")
            return function(*args, **options)

        monkeypatch.setattr(os, call, recorded)

    record("fsync", lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink())
    record("replace", lambda partial, path: Path(path))
    record("unlink", Path)
    return steps


def test_put_moves_bytes_that_are_on_the_disk_and_the_payload_first(store, disk_steps):
    store.purge([store.put(lineage(), WEIGHTS)])  # so that no folder is new
    disk_steps.clear()
    store.put(lineage(), WEIGHTS)
    steps = [step for step in disk_steps if "unlink" not in step]
    assert sorted(steps[:2]) == ["fsync manifest", "fsync payload"]
    assert steps[2:] == ["replace payload", "fsync folder", "replace manifest", "fsync folder"]


def test_purge_deletes_manifests_for_good_before_payloads(store, disk_steps):
    name = store.put(lineage(), WEIGHTS)
    disk_steps.clear()
    store.purge([name])
    assert disk_steps == ["unlink manifest", "fsync folder", "unlink payload", "fsync folder"]


def test_putting_the_same_again_changes_nothing(store):
    name = store.put(lineage(), WEIGHTS, {"seconds": 1.0})
    before = {path: path.stat().st_mtime_ns for path in files_under(store.root)}
    assert store.put(lineage(), WEIGHTS, {"seconds": 2.0}) == name
    assert {path: path.stat().st_mtime_ns for path in files_under(store.root)} == before
    assert store.get(name).metadata == {"seconds": 1.0}


# Listings and lineage


# Purging


def test_purge_takes_descendants_and_nothing_else(store):
    names = put_tree(store)
    before = sum(path.stat().st_size for path in files_under(store.root))
    removal = store.purge([names["b"]])
    assert set(removal.names) == {names[label] for label in "bde"}
    assert store.names() == tuple(sorted(names[label] for label in "acf"))
    assert removal.num_bytes == before - sum(path.stat().st_size for path in files_under(store.root))
    assert {path.name[:64] for path in files_under(store.root)} == {names[label] for label in "acf"}
    assert store.purge([names["b"]]).names == ()


def test_purge_takes_children_before_parents(store, monkeypatch):
    names = put_tree(store)
    gone: list[str] = []
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", lambda path, **options: (gone.append(Path(path).name), unlink(path, **options)))
    store.purge([names["a"], names["e"]])
    manifests = [name.removesuffix(".json") for name in gone if name.endswith(".json")]
    places = {label: manifests.index(names[label]) for label in "abcde"}
    assert places["e"] < places["d"] < min(places["b"], places["c"])
    assert places["a"] == 4
    assert gone.index(manifests[-1] + ".json") < min(gone.index(name + ".safetensors") for name in manifests)


def test_purge_takes_unfinished_files_of_its_names_too(store):
    name = store.put(lineage(), WEIGHTS)
    other = store.put(lineage("other"), WEIGHTS)
    partial = path_of(store, name, ".safetensors").with_name(f".{name}.safetensors.0123.partial")
    partial.write_bytes(b"half")
    assert store.purge([name]).names == (name,)
    assert {path.name[:64] for path in files_under(store.root)} == {other}


def test_sweep_takes_what_nobody_owns(store):
    name, gone = store.put(lineage(), WEIGHTS), store.put(lineage("gone"), WEIGHTS)
    path_of(store, gone, ".json").unlink()
    orphan = path_of(store, gone, ".safetensors")
    partial = orphan.with_name(f".{orphan.name}.0123.partial")
    partial.write_bytes(b"half")
    an_hour_ago = time.time() - 3600
    os.utime(orphan, (an_hour_ago, an_hour_ago))
    assert not store.has(gone)
    assert store.leftovers(older_than=60.0) == (str(orphan.relative_to(store.root)),)
    assert {store.root / key for key in store.leftovers(older_than=0.0)} == {orphan, partial}
    removal = store.sweep(older_than=60.0)
    assert removal.names == (str(orphan.relative_to(store.root)),)
    assert store.sweep(older_than=0.0).num_bytes == 4
    assert {path.name[:64] for path in files_under(store.root)} == {name}


def test_a_clock_that_went_backwards_hides_no_leftover(store):
    partial = path_of(store, store.put(lineage(), {}), ".json").with_name(".x.partial")
    partial.write_bytes(b"half")
    tomorrow = time.time() + 86_400
    os.utime(partial, (tomorrow, tomorrow))
    assert store.sweep(older_than=0.0).num_bytes == 4
