from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from fairsisa.errors import CorruptArtefactError, MissingArtefactError, StoreError
from fairsisa.store import Store
from fairsisa.store.durable import write_durably
from store_cases import WEIGHTS, files_under, lineage, path_of, put_tree, same


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# Damage


def flip(path: Path, index: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(bytes(data))


def test_a_flipped_bit_in_the_payload_is_found(store):
    name = store.put(lineage(), WEIGHTS)
    path = path_of(store, name, ".safetensors")
    flip(path)
    assert store.has(name)  # its size is right; only reading it tells
    message = f"{path} has SHA-256 .*, its manifest says .*: purge {name}, and it will be made again"
    for read in (store.get, store.check):
        with pytest.raises(CorruptArtefactError, match=message):
            read(name)
    assert set(store.verify()) == {name}


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink])
def test_a_torn_or_missing_payload_does_not_exist(store, damage: Callable[[Path], Any]):
    name = store.put(lineage(), WEIGHTS)
    damage(path_of(store, name, ".safetensors"))
    assert not store.has(name)
    assert store.names() == ()
    with pytest.raises(CorruptArtefactError, match=f"{name}.safetensors (has SHA-256|is missing).*purge {name}"):
        store.get(name)


@pytest.mark.parametrize("kept", [True, False])
def test_every_bit_of_a_manifest_counts(store, kept):
    made = lineage(ids=("x",))
    name = store.put(made, WEIGHTS, {"same_as": "y"}, environment={"torch": "2"})
    store.drop([] if kept else [name])
    path = path_of(store, name, ".json")
    whole = path.read_bytes()
    for index in range(len(whole)):
        path.write_bytes(whole)
        flip(path, index)
        with pytest.raises(StoreError, match=f"{name}.json (is no manifest|does not fit|has format)"):
            store.manifest(name)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{}", '{"format": 1}', "[" * 100_000, "\xff"])
def test_a_truncated_or_foreign_manifest_does_not_exist(store, text):
    name = store.put(lineage(), WEIGHTS)
    path_of(store, name, ".json").write_text(text, encoding="latin-1")
    assert not store.has(name)
    assert set(store.verify()) == {name}
    with pytest.raises(CorruptArtefactError, match=f"{name}.json is no manifest .*: purge {name}"):
        store.get(name)


def test_a_manifest_under_another_name_is_refused(store):
    name, other = store.put(lineage(), WEIGHTS), store.put(lineage("other"), WEIGHTS)
    path_of(store, other, ".json").write_bytes(path_of(store, name, ".json").read_bytes())
    assert not store.has(other)
    with pytest.raises(CorruptArtefactError, match=f"{other}.json does not fit its seal, or its contents make {name}"):
        store.get(other)


def test_a_record_cannot_pass_for_an_artefact(store):
    name = store.put(lineage(), WEIGHTS)
    path = path_of(store, name, ".json")
    whole = path.read_text()
    store.drop([name])
    record = path.read_text()
    assert (record.count('"format":2'), record.count('"kept":false')) == (1, 1)
    assert "kept" not in whole  # an earlier fairsisa reads this
    for forged in (
        record.replace('"format":2', '"format":1'),
        record.replace("false", "true"),
        record.replace('"kept":false,', ""),
        whole.replace('"format":1', '"format":2'),
    ):
        path.write_text(forged)
        with pytest.raises(CorruptArtefactError, match=f"{name}.json (is no manifest|does not fit its seal)"):
            store.manifest(name)


def test_a_manifest_from_before_there_were_records_is_read(store):
    name = "261f09fc3e86366018cc63547aad3105f9790db837705606b433597c70b67f5f"
    contents = "1c1f1e964015fc8f5216fbf5503ec25b4720e0db287d01bc3c70127923fc75fc"
    payload = {"bytes": 1, "file": f"{name}.safetensors", "sha256": hashlib.sha256(b"x").hexdigest()}
    notes = {
        "created": "2026-01-01T00:00:00+00:00",
        "environment": {},
        "metadata": {"same_as": "y"},
        "payload": payload,
    }
    seal = hashlib.sha256(json.dumps([name, notes], sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    text = (
        f'{{"contents":"{contents}","created":"2026-01-01T00:00:00+00:00","environment":{{}},"examples":["x"],"format":1,'
        f'"inputs":[],"kind":"checkpoint","metadata":{{"same_as":"y"}},"name":"{name}","parents":[],'
        f'"payload":{{"bytes":1,"file":"{name}.safetensors","sha256":"{payload["sha256"]}"}},"seal":"{seal}",'
        '"settings":{"label":"a","rate":0.1}}'
    )
    path_of(store, name, ".json").parent.mkdir(parents=True)
    path_of(store, name, ".json").write_text(text)
    path_of(store, name, ".safetensors").write_bytes(b"x")
    assert store.has(name)
    assert store.manifest(name).kept
    assert store.example_ids(name) == {"x"}
    assert store.verify() == {}


def test_a_manifest_of_a_later_format_asks_for_an_upgrade(store):
    name = store.put(lineage(), WEIGHTS)
    path = path_of(store, name, ".json")
    path.write_text(path.read_text().replace('"format":1', '"format":3'))
    with pytest.raises(StoreError, match="has format 3; this fairsisa reads 1 and 2: upgrade fairsisa"):
        store.has(name)


def test_a_payload_that_is_no_safetensors_file_is_refused(store, monkeypatch):
    monkeypatch.setattr("fairsisa.store.directory.to_bytes", lambda tensors: b"junk")
    name = store.put(lineage(), WEIGHTS)
    with pytest.raises(CorruptArtefactError, match="is no safetensors file"):
        store.get(name)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_making_it_again_heals_a_damaged_artefact(store, suffix):
    parent = store.put(lineage("parent"), WEIGHTS)
    store.put(lineage("child", (parent,)), WEIGHTS)
    flip(path_of(store, parent, suffix), 60)
    assert set(store.verify()) == {parent}
    store.put(lineage("parent"), WEIGHTS)
    assert store.verify() == {}
    assert same(store.get(parent), WEIGHTS)


def test_damage_hides_nothing_from_a_deletion(store):
    names = put_tree(store)
    path_of(store, names["c"], ".json").write_text("{}")
    for ask in (
        lambda: store.find(["id-a"]),
        lambda: store.descendants([names["a"]]),
        lambda: store.purge([names["a"]]),
    ):
        with pytest.raises(CorruptArtefactError, match=f"purge {names['c']}, and"):
            ask()
    assert set(store.purge([names["c"]]).names) == {names[label] for label in "cde"}
    assert set(store.find(["id-a"])) == {names["a"], names["b"]}


def test_a_lost_ancestor_is_not_passed_over(store):
    names = put_tree(store)
    for suffix in (".json", ".safetensors"):
        path_of(store, names["b"], suffix).unlink()
    with pytest.raises(CorruptArtefactError, match=f"names a parent that is not in the store: purge {names['d']}"):
        store.find(["id-f"])
    with pytest.raises(MissingArtefactError, match=f"Expected an artefact {names['b']}"):
        store.example_ids(names["e"])


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_symbolic_links_are_refused(store, tmp_path, depth):
    name = store.put(lineage(), WEIGHTS)
    path = path_of(store, name, ".json")
    linked = [path, *path.parents][depth]
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"{linked} is a symbolic link, and the store follows none"):
        store.get(name)


# A disk that refuses


class Refusing:
    def __init__(self, code: int, allowed: int = 0) -> None:
        self.code, self.allowed, self.fired = code, allowed, False

    def __call__(self, *args: Any, **options: Any) -> None:
        self.allowed -= 1
        if self.allowed < 0:
            self.fired = True
            raise OSError(self.code, os.strerror(self.code), "the disk")


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
@pytest.mark.parametrize(
    ("code", "cure"), [(errno.ENOSPC, "free disk space"), (errno.EROFS, "mount the file system for writing")]
)
def test_a_refusing_disk_is_explained_and_leaves_nothing_half_visible(store, monkeypatch, call, code, cure):
    refusing = Refusing(code)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refusing)
        with pytest.raises(
            StoreError, match=f"Could not put checkpoint .*{os.strerror(code)}.*; {cure}, then run it again"
        ):
            store.put(lineage(), WEIGHTS)
    assert refusing.fired
    assert not store.has(lineage().name)
    assert files_under(store.root) == set()
    assert same(store.get(store.put(lineage(), WEIGHTS)), WEIGHTS)


@pytest.mark.parametrize("allowed", range(3))
def test_a_disk_that_fills_up_on_the_way_leaves_nothing_half_visible(store, monkeypatch, allowed):
    store.put(lineage("first"), WEIGHTS)
    refusing = Refusing(errno.ENOSPC, allowed)
    replace = os.replace
    with monkeypatch.context() as patch:
        # the 1st and 2nd call move payload and manifest into place, the 3rd never comes
        patch.setattr(os, "replace", lambda *paths: (refusing(), replace(*paths)))
        if allowed < 2:
            with pytest.raises(StoreError, match=r"Could not put .* free disk space") as caught:
                store.put(lineage(), WEIGHTS)
            assert isinstance(caught.value.__cause__, OSError)
        else:
            store.put(lineage(), WEIGHTS)
    assert refusing.fired == (allowed < 2)
    assert store.has(lineage().name) == (allowed == 2)
    assert store.verify() == {}
    assert [path for path in files_under(store.root) if path.suffix == ".partial"] == []


def test_no_manifest_ever_stands_beside_the_payload_of_another(store, monkeypatch):
    name = store.put(lineage(), WEIGHTS)
    flip(path_of(store, name, ".safetensors"))
    refusing, replace = Refusing(errno.ENOSPC, allowed=1), os.replace
    other = {key: value + 1.0 for key, value in WEIGHTS.items()}  # as many bytes, which size alone cannot tell
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (refusing(), replace(*paths)))
        with pytest.raises(StoreError, match="Could not put"):
            store.put(lineage(), other)
    assert refusing.fired
    assert not store.has(name)


def test_a_folder_that_cannot_be_read_is_no_empty_folder(store, monkeypatch):
    names = put_tree(store)
    refusing = Refusing(errno.EACCES)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        with pytest.raises(StoreError, match=r"Could not .*Permission denied.*give this user the right"):
            store.find(["id-a"])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refusing)
        with pytest.raises(StoreError, match=r"Could not read .*json: .*Permission denied"):
            store.get(names["a"])
    assert refusing.fired


def test_a_root_that_is_a_file_is_explained(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match=r"Not a directory.*; move away the file that stands where a folder should"):
        Store(tmp_path / "store").put(lineage(), WEIGHTS)


def test_a_store_in_use_is_explained(store):
    name = store.put(lineage(), WEIGHTS)
    waiting = Store(store.root, patience=0.05)
    with FileLock(store.root / ".lock"), pytest.raises(StoreError, match=r"another command has been at it for 0\.05 s"):
        waiting.purge([name])
    assert waiting.purge([name]).names == (name,)


def test_write_durably_replaces_whole_files(tmp_path, monkeypatch):
    path = tmp_path / "new" / "pointer.json"
    write_durably(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Refusing(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    write_durably(path, b"new")
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == b"new"


def test_puts_that_race_with_other_bytes_leave_one_whole_artefact(store, monkeypatch):
    rival = Store(store.root)
    other = {"weight": torch.zeros(2, 3)}
    keeps = Store._keeps
    answers: list[bool] = []

    def late(self: Store, manifest: Any) -> bool:
        answers.append(keeps(self, manifest))
        if len(answers) == 1:  # the name was free a moment ago; now somebody else takes it
            rival.put(lineage(), other)
        return answers[0] if len(answers) == 1 else answers[-1]

    monkeypatch.setattr(Store, "_keeps", late)
    with pytest.raises(StoreError, match="not deterministic"):
        store.put(lineage(), WEIGHTS)
    assert same(store.get(lineage().name), other)
    assert store.verify() == {}


@pytest.mark.parametrize("task", ["drop", "claim", "collect"])
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink", "link"])
def test_a_disk_that_refuses_at_any_call_is_explained_and_the_same_again_ends_well(tmp_path, monkeypatch, task, call):
    (tmp_path / "run").mkdir()
    fired = 0
    for allowed in range(20):
        store = Store(tmp_path / f"{task}-{allowed}")
        names = put_tree(store)
        twin = store.put(lineage("twin"), {"x": torch.tensor([float(ord("b"))])})  # the payload of b, again
        store.claim(tmp_path / "run", [names["b"], twin])
        work = {
            "drop": lambda store=store, names=names: store.drop([names["b"], names["d"]]),
            "claim": lambda store=store, names=names: store.claim(tmp_path / "run", [names["f"]]),
            "collect": lambda store=store: store.collect(older_than=0.0),
        }[task]
        refusing, real = Refusing(errno.ENOSPC, allowed), getattr(os, call)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, lambda *args, r=refusing, f=real, **options: (r(), f(*args, **options))[1])
            try:
                work()
            except StoreError as error:
                assert re.search("Could not .*No space left.*; free disk space, then run it again", str(error))  # noqa: PT017
        assert store.verify() == {}
        work()
        store.sweep(older_than=0.0)
        kept = {entry.name: entry.kept for entry in store.records()}
        labels = {
            "drop": kept == {name: name not in (names["b"], names["d"]) for name in [*names.values(), twin]},
            "claim": store.claims() == {str(tmp_path / "run"): {names["f"]}} and all(kept.values()),
            "collect": kept == dict.fromkeys([names["a"], names["b"], twin], True),
        }
        assert labels[task]
        if not refusing.fired:
            break
        fired += 1
    calls = {"claim": {"fsync": 2, "replace": 1}, "drop": {"fsync": 5, "replace": 2, "unlink": 2, "link": 0}}
    assert not refusing.fired
    assert fired >= calls.get(task, {"link": 1, "replace": 1, "unlink": 8, "fsync": 3}).get(call, 0)
