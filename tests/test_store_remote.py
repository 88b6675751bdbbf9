from __future__ import annotations

import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from fairsisa.errors import StoreError
from fairsisa.store import Store
from store_cases import WEIGHTS, contents, lineage, put_tree, same


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store/")


def test_a_remote_store_has_a_location_and_no_root(store, tmp_path):
    assert store.location == f"file://{tmp_path}/store"
    with pytest.raises(StoreError, match=r"a store on a local disk, got file://.*/store: ask for its location"):
        _ = store.root
    assert Store(tmp_path / "x").location == str(Store(tmp_path / "x").root) == str(tmp_path / "x")


def test_the_files_are_those_of_a_local_store(store, tmp_path):
    names = put_tree(store)
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"objects"}
    local = Store(tmp_path / "store")
    assert local.names() == tuple(sorted(names.values()))
    assert local.verify() == {}
    assert same(local.get(store.put(lineage("g"), WEIGHTS)), WEIGHTS)


def test_a_handle_travels_to_another_process(store):
    name = store.put(lineage(), WEIGHTS)
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).has(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, name], input=pickle.dumps(store), capture_output=True, check=True
    )
    assert done.stdout == b"True\n"


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:secret@bucket/x",
        "sftp://me:12345@host/x",
        "simplecache::s3://bucket/x",
        "s3:/bucket",
        "S3://bucket",
        "memory://",
        "file:///",
        "abfs://box/x?sig=secret",
    ],
)
def test_urls_are_plain_and_passwords_are_not_told(url):
    with pytest.raises(ValueError, match=r"Expected a URL such as s3://bucket/prefix, without a password") as caught:
        Store(url)
    assert "secret" not in str(caught.value)
    assert "12345" not in str(caught.value)


def test_a_url_that_became_a_path_is_refused():
    with pytest.raises(ValueError, match=r"URL of a store as str, got the Path s3:/bucket/x, which has lost a slash"):
        Store(Path("s3://bucket/x"))


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match=r"a URL whose protocol fsspec knows, got carrier-pigeon://x: .*not known"):
        Store("carrier-pigeon://x")


@pytest.mark.parametrize(("url", "packages"), [("s3://bucket/x", "fsspec s3fs"), ("gs://bucket/x", "fsspec gcsfs")])
def test_a_missing_package_is_named_with_its_cure(monkeypatch, url, packages):
    monkeypatch.setitem(sys.modules, packages.partition(" ")[2], None)
    with pytest.raises(StoreError, match=f"Could not open the store {url}: .*; pip install {packages}, then run it"):
        Store(url)


def test_only_remote_stores_need_fsspec(tmp_path, monkeypatch):
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert same(Store(tmp_path).get(Store(tmp_path).put(lineage(), WEIGHTS)), WEIGHTS)
    with pytest.raises(StoreError, match=r"No module named 'fsspec.core'; pip install fsspec, then run it again"):
        Store(f"file://{tmp_path}")


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("throttled"), "RuntimeError: throttled"), (PermissionError(13, "denied"), "denied.*give this user")],
)
def test_a_service_that_refuses_is_explained(store, monkeypatch, error, told):
    fired = []

    def refuse(*args: Any, **options: Any) -> None:
        fired.append(args)
        raise error

    put_tree(store)
    before = contents(store)
    for call in ("pipe_file", "mv", "cat_file", "ls", "info"):
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, call, refuse)
            with pytest.raises(StoreError, match=f"Could not .*{told}.*then run it again"):
                store.put(lineage("g"), WEIGHTS) if call in ("pipe_file", "mv", "cat_file") else store.find(["id-a"])
        assert fired.pop()
    assert contents(store) == before


def test_links_below_a_file_url_are_refused(store, tmp_path):
    name = store.put(lineage(), WEIGHTS)
    folder = tmp_path / "store" / "objects" / name[:2]
    for linked in (folder, folder / f"{name}.json"):
        linked.rename(tmp_path / "elsewhere")
        linked.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match=f"{re.escape(str(linked))} is a symbolic link"):
            store.names()
        linked.unlink()
        (tmp_path / "elsewhere").rename(linked)
    assert store.names() == (name,)
