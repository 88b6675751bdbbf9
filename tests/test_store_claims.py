from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path

import pytest

from fairsisa.errors import CorruptArtefactError, StoreError
from fairsisa.store import Store
from store_cases import PLACES, contents, lineage, location, put_tree, spoil


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(location(request.param, tmp_path))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "run-1", tmp_path / "run-2"
    for folder in folders:
        folder.mkdir()
    return folders


def file_of(owner: Path) -> str:
    return f"claims/{hashlib.sha256(str(owner).encode()).hexdigest()}.json"


def test_claims_are_kept_by_owner_and_replaced(store, runs):
    made, planned = store.put(lineage(), {}), lineage("planned").name
    store.claim(runs[0], [planned])
    store.claim(str(runs[0]), iter([made, planned, made]))
    store.claim(runs[1], [])
    assert store.claims() == {str(runs[0]): {made, planned}, str(runs[1]): frozenset()}
    assert {key for key in contents(store) if key.startswith("claims/")} == {file_of(run) for run in runs}
    assert Store(store.location).claims() == store.claims()


def test_an_owner_is_one_directory_however_it_is_written(store, runs, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(runs[0])
    for owner in ("run-1", runs[1] / ".." / "run-1", tmp_path / "link"):
        store.claim(owner, [lineage(str(owner)).name])
    assert store.claims() == {str(runs[0]): {lineage(str(tmp_path / "link")).name}}
    assert store.claimed_by_others("run-1") == frozenset()


def test_an_empty_store_has_no_claims(store, runs):
    assert store.claims() == {}
    assert store.claimed_by_others(runs[0]) == frozenset()
    store.unclaim(runs[0])


def test_a_claim_ends_with_its_owner(store, runs):
    store.claim(runs[0], [lineage().name])
    store.claim(runs[1], [lineage().name])
    shutil.rmtree(runs[0])
    assert store.claims().keys() == {str(runs[1])}
    store.unclaim(runs[0])
    store.unclaim(runs[1])
    assert store.claims() == contents(store) == {}


def test_a_claim_from_another_machine_stands(store, runs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        store.claim(runs[0], [lineage().name])
    shutil.rmtree(runs[0])
    assert store.claims() == {str(runs[0]): {lineage().name}}


def test_what_others_claim_comes_with_its_ancestors(store, runs):
    names = put_tree(store)
    planned = lineage("planned").name
    store.drop([names["a"]])
    store.claim(runs[0], [names["f"]])
    store.claim(runs[1], [names["d"], planned])
    assert store.claimed_by_others(runs[0]) == {planned, *(names[label] for label in "abcd")}
    assert store.claimed_by_others(runs[1]) == {names["f"]}
    assert store.claimed_by_others(runs[1].parent) == {planned, *(names[label] for label in "abcdf")}
    store.purge(names.values(), spare=store.claimed_by_others(runs[0]))
    assert {entry.name for entry in store.records()} == {names[label] for label in "abcd"}


def test_a_claim_needs_an_owner_that_exists_and_names(store, runs):
    with pytest.raises(ValueError, match=r"directory of a run as owner of a claim, got .*nowhere: make it first"):
        store.claim(runs[0] / "nowhere", [])
    with pytest.raises(ValueError, match="64 hexadecimal digits, got 'x'"):
        store.claim(runs[0], ["x"])
    assert contents(store) == {}


def test_every_bit_of_a_claim_counts(store, runs):
    store.claim(runs[0], [lineage().name])
    key = file_of(runs[0])
    whole = contents(store)[key]
    for index in range(len(whole)):
        spoil(store, key, whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with pytest.raises(StoreError, match=f"{key} (is no claim|does not fit|has format)"):
            store.claims()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"{}", b'{"format":1}', b"[" * 100_000, b"\xff"])
def test_a_damaged_claim_is_named_and_mended_by_claiming_again(store, runs, text):
    store.put(lineage(), {})
    store.claim(runs[0], [lineage().name])
    key = file_of(runs[0])
    spoil(store, key, text)
    for ask in (
        store.claims,
        lambda: store.claimed_by_others(runs[1]),
        lambda: store.collect(older_than=0.0, without_claims=True),
    ):
        with pytest.raises(CorruptArtefactError, match=f"{store.location}/{key} is no claim .* claim again"):
            ask()
    assert store.has(lineage().name)
    store.claim(runs[0], [lineage().name])
    assert store.claims() == {str(runs[0]): {lineage().name}}


def test_a_claim_under_another_owner_is_refused(store, runs):
    store.claim(runs[0], [lineage().name])
    spoil(store, file_of(runs[1]), contents(store)[file_of(runs[0])])
    with pytest.raises(CorruptArtefactError, match=f"{file_of(runs[1])} does not fit its seal or its owner"):
        store.claims()


def test_a_claim_of_a_later_format_asks_for_an_upgrade(store, runs):
    store.claim(runs[0], [])
    key = file_of(runs[0])
    spoil(store, key, json.dumps(json.loads(contents(store)[key]) | {"format": 2}).encode())
    with pytest.raises(StoreError, match="has format 2; this fairsisa reads 1: upgrade fairsisa"):
        store.claims()


def test_an_unfinished_claim_is_a_leftover(store, runs):
    store.claim(runs[0], [])
    partial = "claims/." + file_of(runs[1]).removeprefix("claims/") + ".0123.partial"
    spoil(store, partial, b"half")
    assert store.claims() == {str(runs[0]): frozenset()}
    assert store.sweep(older_than=0.0).names == (partial,)
    assert contents(store).keys() == {file_of(runs[0])}
