"""What the store gives back to its callers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fairsisa.lineage import Lineage


@dataclass(frozen=True)
class Artefact:
    """An artefact as it came back from disk, its bytes verified; an emptied slice has no tensors."""

    lineage: Lineage
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One row of a listing; `num_examples` counts the artefact's own examples, without its ancestors'.

    `kept` is false for a record: the payload of `num_bytes` was dropped on purpose.
    """

    name: str
    kind: str
    parents: tuple[str, ...]
    num_examples: int
    num_bytes: int
    created: str
    kept: bool = True


@dataclass(frozen=True)
class Removal:
    """What was deleted: names of artefacts or files, and the bytes they took."""

    names: tuple[str, ...]
    num_bytes: int


@dataclass(frozen=True)
class Collected:
    """What a garbage collection did, or would do.

    `purged` are the artefacts that no claim needs, `swept` the files of unfinished work, and `shared` the artefacts
    whose payload became one file with that of another, with the bytes which that saved.
    """

    purged: Removal
    swept: Removal
    shared: Removal
