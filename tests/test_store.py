from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fairsisa.errors import MissingArtefactError, StoreError
from fairsisa.store import Store
from store_cases import WEIGHTS, files_under, lineage, path_of, put_tree, same


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# What is kept


def test_what_is_put_comes_back(store):
    made = lineage(ids=("x", "y"))
    name = store.put(made, WEIGHTS, {"steps": 3, "curve": [[1, 0.5]]}, environment={"torch": "2"})
    artefact = store.get(name)
    assert name == made.name
    assert store.has(name)
    assert artefact.lineage == made
    assert artefact.lineage.examples == ("x", "y")
    assert artefact.metadata == {"steps": 3, "curve": [[1, 0.5]]}
    assert store.manifest(name).environment == {"torch": "2"}
    assert same(artefact, WEIGHTS)


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


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool],
)
def test_every_common_type_survives(store, dtype):
    tensors = {
        "x": torch.tensor([[0, 1], [1, 0]]).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.zeros(0, 3),
    }
    assert same(store.get(store.put(lineage(), tensors)), tensors)


def test_an_artefact_may_have_no_tensors(store):
    parent = store.put(lineage("parent"), WEIGHTS)
    name = store.put(lineage("emptied", (parent,)), {}, {"same_as": parent})
    assert store.has(name)
    assert dict(store.get(name).tensors) == {}
    assert store.get(name).metadata == {"same_as": parent}


def test_tensors_that_share_memory_or_are_views_are_written_in_full(store):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "again": base, "turned": base.T, "row": base[1], "grown": base.requires_grad_()}
    assert same(store.get(store.put(lineage(), tensors)), tensors)


def test_order_of_tensors_does_not_change_the_bytes(store, tmp_path):
    other = Store(tmp_path / "other")
    name = store.put(lineage(), WEIGHTS)
    other.put(lineage(), dict(reversed(WEIGHTS.items())))
    assert store.manifest(name).sha256 == other.manifest(name).sha256


def test_loaded_tensors_may_be_changed(store):
    name = store.put(lineage(), WEIGHTS)
    store.get(name).tensors["bias"].add_(1.0)
    assert same(store.get(name), WEIGHTS)


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


def test_putting_other_bytes_under_a_name_is_refused(store):
    name = store.put(lineage(), WEIGHTS)
    other = {"weight": WEIGHTS["weight"] + 1e-6, "bias": WEIGHTS["bias"]}
    digest = hashlib.sha256(safetensors.torch.save(other)).hexdigest()
    with pytest.raises(StoreError, match=f"SHA-256 {store.manifest(name).sha256}.*got {digest}.*not deterministic"):
        store.put(lineage(), other)
    assert same(store.get(name), WEIGHTS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": [1.0]}, "'x' to be a dense tensor with values, got list"),
        ({"x": torch.eye(2).to_sparse()}, "'x' to be a dense tensor"),
        ({"x": torch.zeros(2, device="meta")}, "'x' to be a dense tensor with values"),
        ({"x": torch.zeros(2, dtype=torch.complex128)}, "safetensors can hold, got torch.complex128"),
        ({1: torch.zeros(2)}, "names of tensors to be str other than '__metadata__', got 1"),
        ({"__metadata__": torch.zeros(2)}, "got '__metadata__'"),
    ],
)
def test_what_cannot_be_kept_is_refused(store, tensors, message):
    with pytest.raises(ValueError, match=message):
        store.put(lineage(), tensors)
    assert files_under(store.root) == set()


def test_notes_are_plain_json(store):
    with pytest.raises(ValueError, match=r"metadata\['loss'\] to be finite, got nan"):
        store.put(lineage(), {}, {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"environment\['torch'\] to be plain JSON"):
        store.put(lineage(), {}, environment={"torch": torch.float32})


def test_a_parent_must_be_there(store):
    parent = lineage("parent")
    with pytest.raises(
        MissingArtefactError, match=f"Expected parent {parent.name} of checkpoint .* make it again first"
    ):
        store.put(lineage("child", (parent.name,)), WEIGHTS)
    assert files_under(store.root) == set()


def test_what_is_not_there_is_named(store):
    name = lineage().name
    assert not store.has(name)
    for read in (store.get, store.manifest, store.check, store.example_ids):
        with pytest.raises(MissingArtefactError, match=f"Expected an artefact {name} in .*store, found none"):
            read(name)


@pytest.mark.parametrize("name", ["", "a", "../" + "a" * 61, "A" * 64, "a" * 63 + "/", "a" * 64 + "\n", "a" * 65])
def test_names_cannot_leave_the_store(store, name):
    for use in (store.get, store.has, store.manifest, store.check, store.children, lambda name: store.purge([name])):
        with pytest.raises(ValueError, match="64 hexadecimal digits, got"):
            use(name)


def test_a_handle_travels(store):
    name = store.put(lineage(), WEIGHTS)
    assert pickle.loads(pickle.dumps(store)).has(name)  # noqa: S301


# Listings and lineage


def test_listings_give_a_row_an_artefact(store):
    names = put_tree(store)
    assert store.names() == tuple(sorted(names.values()))
    assert store.names("b") == tuple(sorted(names[label] for label in "bce"))
    entry = next(entry for entry in store.entries() if entry.name == names["d"])
    assert (entry.kind, entry.parents, entry.num_examples) == ("c", (names["b"], names["c"]), 1)
    assert entry.num_bytes == path_of(store, names["d"], ".safetensors").stat().st_size
    assert entry.created.endswith("+00:00")


def test_an_empty_store_answers(store):
    assert store.names() == store.find(["x"]) == store.descendants([lineage().name]) == ()
    assert store.verify() == {}
    assert store.leftovers(older_than=0.0) == ()
    assert store.purge([lineage().name]).names == store.sweep(older_than=0.0).names == ()


def test_the_tree_is_known(store):
    names = put_tree(store)
    assert set(store.children(names["a"])) == {names["b"], names["c"]}
    found = store.descendants([names["a"]])
    assert set(found) == {names[label] for label in "bcde"}
    assert found.index(names["d"]) > max(found.index(names["b"]), found.index(names["c"]))
    assert store.descendants([names["d"], names["f"]]) == (names["e"],)


def test_the_ids_behind_an_artefact_are_its_ancestors_too(store):
    names = put_tree(store)
    assert store.example_ids(names["e"]) == {f"id-{label}" for label in "abcde"}
    assert store.example_ids(names["c"]) == {"id-a", "id-c"}
    assert set(store.find(["id-c"])) == {names[label] for label in "cde"}
    assert set(store.find(["id-a", "id-f"])) == set(names.values())
    assert store.find(["nobody"]) == ()


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


def test_purge_without_descendants_strands_nobody(store):
    names = put_tree(store)
    with pytest.raises(StoreError, match=f"got {names['e']}: purge that too"):
        store.purge([names["d"]], descendants=False)
    assert store.purge([names["d"], names["e"]], descendants=False).num_bytes > 0
    assert len(store.names()) == 4


def test_a_purged_parent_gets_no_new_children(store):
    parent = store.put(lineage("parent"), WEIGHTS)
    child = lineage("child", (parent,))
    store.purge([parent])
    with pytest.raises(MissingArtefactError, match="it was purged, or never made"):
        store.put(child, WEIGHTS)


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
    assert store.leftovers(older_than=60.0) == (orphan,)
    assert set(store.leftovers(older_than=0.0)) == {orphan, partial}
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
