from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from fairsisa.errors import CorruptArtefactError, StoreError
from fairsisa.store import Removal, Store
from store_cases import PLACES, WEIGHTS, contents, lineage, location, path_of, put_tree, same, spoil

NONE = Removal((), 0)


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(location(request.param, tmp_path))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def objects(store: Store) -> dict[str, bytes]:
    return {key: data for key, data in contents(store).items() if key.startswith("objects/")}


def test_what_no_claim_needs_goes(store, run):
    names = put_tree(store)
    store.claim(run, [names["c"], lineage("planned").name])
    spoil(store, f"objects/{names['f'][:2]}/.{names['f']}.json.0123.partial", b"half")
    before = objects(store)
    would = store.collect(older_than=3600.0, dry_run=True)
    assert objects(store) == before
    done = store.collect(older_than=3600.0)
    assert done == would
    assert set(done.purged.names) == {names[label] for label in "bdef"}
    assert done.purged.num_bytes == sum(map(len, before.values())) - sum(map(len, objects(store).values()))
    assert store.names() == tuple(sorted(names[label] for label in "ac"))
    assert (done.swept, done.shared) == (NONE, NONE)
    assert store.collect(older_than=0.0).purged == NONE


def test_records_are_needed_or_not_as_artefacts_are(store, run):
    names = put_tree(store)
    store.drop([names["a"], names["f"]])
    store.claim(run, [names["b"]])
    assert set(store.collect(older_than=0.0).purged.names) == {names[label] for label in "cdef"}
    assert {entry.name: entry.kept for entry in store.records()} == {names["a"]: False, names["b"]: True}


def test_a_store_that_nobody_claims_is_not_emptied_by_accident(store, run):
    names = put_tree(store)
    assert store.collect(older_than=0.0, without_claims=True, dry_run=True).purged.num_bytes > 0
    store.claim(run, [names["a"]])
    shutil.rmtree(run)
    with pytest.raises(StoreError, match=r"none that stands, .* all of its 6 artefacts garbage: let each run .* claim"):
        store.collect(older_than=0.0)
    assert len(store.names()) == 6
    assert set(store.collect(older_than=0.0, without_claims=True).purged.names) == set(names.values())
    assert objects(store) == {}
    assert store.collect(older_than=0.0).purged == NONE


def test_a_claim_of_nothing_is_a_claim(store, run):
    put_tree(store)
    store.claim(run, [])
    assert len(store.collect(older_than=0.0).purged.names) == 6


def test_damage_stops_a_collection(store, run):
    names = put_tree(store)
    store.claim(run, [names["e"]])
    spoil(store, f"objects/{names['d'][:2]}/{names['d']}.json", b"{}")
    before = contents(store)
    with pytest.raises(CorruptArtefactError, match=f"purge {names['d']}"):
        store.collect(older_than=0.0)
    assert contents(store) == before


def test_leftovers_go_by_age(local, run):
    name = local.put(lineage(), WEIGHTS)
    local.claim(run, [name])
    old, young = (path_of(local, name, ".json").with_name(f".{name}.json.{age}.partial") for age in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    an_hour_ago = time.time() - 3600
    os.utime(old, (an_hour_ago, an_hour_ago))
    would = local.collect(older_than=60.0, dry_run=True)
    assert local.collect(older_than=60.0) == would
    assert would.swept == Removal((str(old.relative_to(local.root)),), 4)
    assert young.exists()
    assert local.collect(older_than=0.0).swept.num_bytes == 4
    assert local.has(name)


def test_equal_payloads_become_one_file(local, run):
    other = {"weight": WEIGHTS["weight"] + 1, "bias": WEIGHTS["bias"]}  # as many bytes
    names = [local.put(lineage(str(index)), WEIGHTS if index < 3 else other) for index in range(4)]
    local.claim(run, names)
    size = path_of(local, names[0], ".safetensors").stat().st_size
    would = local.collect(older_than=0.0, dry_run=True)
    assert {path_of(local, name, ".safetensors").stat().st_nlink for name in names} == {1}
    done = local.collect(older_than=0.0)
    assert done == would
    assert done.shared.num_bytes == 2 * size
    assert set(done.shared.names) < set(names[:3])
    assert len({path_of(local, name, ".safetensors").stat().st_ino for name in names}) == 2
    assert local.collect(older_than=0.0).shared == NONE
    assert all(same(local.get(name), WEIGHTS if index < 3 else other) for index, name in enumerate(names))


def test_artefacts_that_share_a_file_stay_apart(local, run):
    names = [local.put(lineage(str(index)), WEIGHTS) for index in range(3)]
    local.claim(run, names)
    local.collect(older_than=0.0)
    local.purge([names[0]])
    local.drop([names[1]])
    assert not local.has(names[0])
    assert same(local.get(names[2]), WEIGHTS)
    local.put(lineage("1"), WEIGHTS)
    assert path_of(local, names[1], ".safetensors").stat().st_nlink == 1
    assert local.verify() == {}


def test_payloads_on_the_way_out_are_not_shared(local, run):
    names = [local.put(lineage(str(index)), WEIGHTS) for index in range(3)]
    local.claim(run, names[:1])
    would = local.collect(older_than=0.0, dry_run=True)
    assert local.collect(older_than=0.0) == would
    assert would.shared == NONE


def test_damaged_payloads_are_never_shared(local, run):
    names = sorted(local.put(lineage(str(index)), WEIGHTS) for index in range(4))
    local.claim(run, names)
    for damaged in (names[0], names[2]):
        path = path_of(local, damaged, ".safetensors")
        path.write_bytes(path.read_bytes()[:-1] + b"\0" if damaged == names[0] else path.read_bytes()[:-1] + b"\1")
    would = local.collect(older_than=0.0, dry_run=True)
    assert local.collect(older_than=0.0) == would
    assert would.shared.names == (names[3],)
    assert set(local.verify()) == {names[0], names[2]}
    assert len({path_of(local, name, ".safetensors").stat().st_ino for name in names}) == 3


@pytest.mark.parametrize("code", ["EPERM", "EMLINK"])
def test_a_disk_without_links_keeps_payloads_twice(local, run, monkeypatch, code):
    def refuse(*paths: object) -> None:
        raise OSError(getattr(errno, code), "no links")

    names = [local.put(lineage(str(index)), WEIGHTS) for index in range(2)]
    local.claim(run, names)
    monkeypatch.setattr(os, "link", refuse)
    assert local.collect(older_than=0.0).shared == NONE
    assert local.verify() == {}
    assert local.leftovers(older_than=0.0) == ()


def test_services_know_no_links(store, run):
    names = [store.put(lineage(str(index)), {"x": torch.zeros(2)}) for index in range(2)]
    store.claim(run, names)
    shared = store.collect(older_than=0.0).shared
    assert len(shared.names) == (0 if "://" in store.location else 1)
    assert store.verify() == {}
