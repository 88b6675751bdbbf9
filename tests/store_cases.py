from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from fsspec.core import url_to_fs

from fairsisa.lineage import Lineage, slice_digest
from fairsisa.store import Artefact, Store

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([0.5, -0.5])}
PLACES = ("local", "file", "memory")


def location(place: str, folder: Path) -> str:
    return {"local": "", "file": "file://", "memory": "memory:/"}[place] + f"{folder}/store"


def contents(store: Store) -> dict[str, bytes]:
    # by another way than the store's own: fsspec alone, on all three places
    system, base = url_to_fs(store.location)
    found = {path[len(base) :].lstrip("/"): path for path in system.find(base)}
    return {key: system.cat_file(path) for key, path in found.items() if not key.endswith(".lock")}


def spoil(store: Store, key: str, data: bytes) -> None:
    system, base = url_to_fs(store.location)
    system.pipe_file(f"{base}/{key}", data)


def lineage(
    label: str = "a", parents: tuple[str, ...] = (), ids: tuple[str, ...] = (), kind: str = "checkpoint"
) -> Lineage:
    contents = slice_digest(ids, [hashlib.sha256(name.encode()).hexdigest() for name in ids])
    return Lineage(
        kind=kind, parents=parents, examples=ids, contents=contents, inputs=(), settings={"label": label, "rate": 0.1}
    )


def put_tree(store: Store) -> dict[str, str]:
    # a - b - d - e, a - c - d, and f alone
    names: dict[str, str] = {}
    for label, parents in {"a": "", "b": "a", "c": "a", "d": "bc", "e": "d", "f": ""}.items():
        made = lineage(label, tuple(names[parent] for parent in parents), (f"id-{label}",), "abc"[len(parents)])
        names[label] = store.put(made, {"x": torch.tensor([float(ord(label))])})
    return names


def path_of(store: Store, name: str, suffix: str) -> Path:
    return store.root / "objects" / name[:2] / (name + suffix)


def files_under(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def same(artefact: Artefact, tensors: dict[str, torch.Tensor]) -> bool:
    return artefact.tensors.keys() == tensors.keys() and all(
        torch.equal(artefact.tensors[key], value) and artefact.tensors[key].dtype == value.dtype
        for key, value in tensors.items()
    )
