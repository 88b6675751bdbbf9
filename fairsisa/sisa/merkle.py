"""Proofs that an example is not among those behind a checkpoint."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from fairsisa.errors import VerificationError

DIGEST = re.compile(r"[0-9a-f]{64}")
LEAF, NODE, ROOT = b"\x00", b"\x01", b"\x02"
MOST_LEAVES = 2**64


@dataclass(frozen=True)
class Neighbour:
    """A leaf next to the absent one: its position from 0, and the hashes on its way to the root, lowest first.

    Raises:
        ValueError: when a hash is not 64 hexadecimal digits or the position is no whole number from 0.
    """

    leaf: str
    position: int
    path: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.path, tuple):
            raise ValueError(f"Expected the path of a neighbour to be a tuple, got {type(self.path).__name__}.")
        for value in (self.leaf, *self.path):
            _check_digest("each hash of a neighbour", value)
        _check_count("the position of a neighbour", self.position)


@dataclass(frozen=True)
class AbsenceProof:
    """What shows that a leaf is missing from a sorted tree: the two that stand next to each other around its place.

    `left` is None when the absent leaf is smaller than all, `right` when it is larger than all, both in an empty tree.

    Raises:
        ValueError: when a field is not of its form.
    """

    num_leaves: int
    left: Neighbour | None
    right: Neighbour | None

    def __post_init__(self) -> None:
        _check_count("num_leaves", self.num_leaves)
        for side in (self.left, self.right):
            if side is not None and not isinstance(side, Neighbour):
                raise ValueError(f"Expected left and right to be neighbours or None, got {type(side).__name__}.")

    def as_dict(self) -> dict[str, Any]:
        """Return the proof as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> AbsenceProof:
        """Return the proof that `as_dict` gave, whether or not JSON was in between.

        Raises:
            VerificationError: when the values are not of that form.
        """
        read = _fields(values, cls)
        try:
            return cls(read["num_leaves"], _neighbour(read["left"]), _neighbour(read["right"]))
        except ValueError as error:
            raise VerificationError(f"A proof of absence is not of its form. {error}") from error


def merkle_root(leaves: Iterable[str]) -> str:
    """Return the root (64 hexadecimal digits) of the tree over a set of keyed hashes, sorted and without repeats.

    The tree is that of RFC 6962, section 2.1: a leaf is hashed after the byte 0, a node after the byte 1, so that no
    node passes for a leaf. RFC 6962 signs the number of leaves beside the root; here the root covers it:
    SHA-256(2, number as 8 bytes, tree hash). The empty set has the tree hash SHA-256().

    Raises:
        ValueError: when a leaf is not 64 hexadecimal digits.
    """
    ordered = _sorted_leaves(leaves)
    return _root(len(ordered), _levels(ordered)[-1][0])


def prove_absence(leaves: Iterable[str], leaf: str) -> AbsenceProof:
    """Return the proof that `leaf` is not among `leaves`; it holds against `merkle_root(leaves)`.

    Raises:
        ValueError: when it is among them, or a hash is not 64 hexadecimal digits.
    """
    return prove_absences(leaves, [leaf])[0]


def prove_absences(leaves: Iterable[str], absent: Sequence[str]) -> tuple[AbsenceProof, ...]:
    """Return a proof for each of several leaves, building the tree once; else as `prove_absence`."""
    ordered = _sorted_leaves(leaves)
    levels = _levels(ordered)
    return tuple(_prove(ordered, levels, leaf) for leaf in absent)


def absence_holds(root: str, leaf: str, proof: AbsenceProof) -> bool:
    """Return whether `proof` shows that `leaf` is missing from the sorted tree with that root.

    Nothing in the proof is believed: not the number of leaves, which the root covers, nor the neighbours' order,
    positions or paths. What the proof cannot show is that the maker of the root sorted the leaves; for that,
    recompute `merkle_root` from the ids.

    Raises:
        ValueError: when the root or the leaf is not 64 hexadecimal digits.
    """
    _check_digest("root", root)
    _check_digest("leaf", leaf)
    left, right, size = proof.left, proof.right, proof.num_leaves
    if left is None and right is None:
        return size == 0 and root == _root(0, hashlib.sha256().digest())
    below = -1 if left is None else left.position
    above = size if right is None else right.position
    ordered = (left is None or left.leaf < leaf) and (right is None or leaf < right.leaf)
    return ordered and below + 1 == above and all(_leads_to(root, side, size) for side in (left, right) if side)


def _prove(ordered: list[str], levels: list[list[bytes]], leaf: str) -> AbsenceProof:
    _check_digest("leaf", leaf)
    place = bisect_left(ordered, leaf)
    if place < len(ordered) and ordered[place] == leaf:
        raise ValueError("Expected a leaf that is not in the tree; this one is, so its absence cannot be proven.")
    sides = [
        Neighbour(ordered[position], position, _path(levels, position)) if 0 <= position < len(ordered) else None
        for position in (place - 1, place)
    ]
    return AbsenceProof(len(ordered), *sides)


def _levels(ordered: Sequence[str]) -> list[list[bytes]]:
    """Return the hashes of every level, leaves first; a last node without a partner moves up as it is (RFC 6962)."""
    sha256 = hashlib.sha256
    level = [sha256(LEAF + bytes.fromhex(leaf)).digest() for leaf in ordered] or [sha256().digest()]
    levels = [level]
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [_node(left, right) for left, right in pairs] + level[len(level) & ~1 :]
        levels.append(level)
    return levels


def _path(levels: Sequence[Sequence[bytes]], position: int) -> tuple[str, ...]:
    siblings = ((level, (position >> height) ^ 1) for height, level in enumerate(levels))
    return tuple(level[sibling].hex() for level, sibling in siblings if sibling < len(level))


def _leads_to(root: str, side: Neighbour, size: int) -> bool:
    """Return whether the path from a leaf at that position of a tree of that size ends in the root."""
    if not side.position < size < MOST_LEAVES:
        return False
    value, position, width, path = hashlib.sha256(LEAF + bytes.fromhex(side.leaf)).digest(), side.position, size, 0
    while width > 1:
        if position ^ 1 < width:
            if path == len(side.path):
                return False
            sibling = bytes.fromhex(side.path[path])
            value = _node(sibling, value) if position & 1 else _node(value, sibling)
            path += 1
        position, width = position >> 1, (width + 1) >> 1
    return path == len(side.path) and _root(size, value) == root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE + left + right).digest()


def _root(num_leaves: int, tree_hash: bytes) -> str:
    return hashlib.sha256(ROOT + num_leaves.to_bytes(8, "big") + tree_hash).hexdigest()


def _sorted_leaves(leaves: Iterable[str]) -> list[str]:
    ordered = list(leaves)
    for leaf in ordered:
        _check_digest("each leaf", leaf)
    ordered.sort()
    return ordered[:1] + [after for before, after in pairwise(ordered) if before != after]


def _neighbour(values: object) -> Neighbour | None:
    if values is None:
        return None
    read = _fields(values, Neighbour)
    if not isinstance(read["path"], list | tuple):
        raise VerificationError(f"Expected the path of a proof to be a list, got {type(read['path']).__name__}.")
    return Neighbour(read["leaf"], read["position"], tuple(read["path"]))


def _fields(values: object, kind: type[AbsenceProof | Neighbour]) -> Mapping[str, Any]:
    names = {field.name for field in fields(kind)}
    if not isinstance(values, Mapping) or set(values) != names:
        raise VerificationError(f"Expected a {kind.__name__} to hold {', '.join(sorted(names))}; it does not.")
    return values


def _check_digest(what: str, value: object) -> None:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise ValueError(f"Expected {what} to be 64 lower-case hexadecimal digits, got something else: hash the ids.")


def _check_count(what: str, value: object) -> None:
    if type(value) is not int or not 0 <= value < MOST_LEAVES:
        raise ValueError(f"Expected {what} to be a whole number in [0, 2**64), got {value!r}.")
