"""Token sequences merged by their common beginnings into trees, which a model reads in one row each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_TREE = 2048
"""A tree grows to so many tokens at most: what attention keeps of it grows with the square of them."""
SAVING = 0.95
"""A tree is grown where that takes at most this share of the arithmetic of another row."""
FEW_TOKENS, PADDING = 512, 0.1
"""A batch of so many tokens is closed before it is full where another row would make more than this share padding."""

Sequences = Sequence[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Tree:
    """Sequences with their common beginnings merged: a token is one node, whose parent is the token before it.

    `tokens` and `positions` (places in a sequence, from 0) have shape (num_nodes,); a node comes after its parent.
    `paths` are pairs of a sequence's number and its nodes.
    """

    tokens: np.ndarray
    positions: np.ndarray
    paths: tuple[tuple[int, np.ndarray], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """The number of tokens of the longest sequence."""
        return int(self.positions.max()) + 1


def grow_trees(sequences: Sequences, *, depth: int, width: int) -> list[Tree]:
    """Return trees that hold each sequence once, in which neighbours in alphabetical order share their beginning.

    A sequence joins the tree of the one before it where that takes less arithmetic than a row of its own. Those of more
    than `depth` tokens share only if one is the beginning of the other, which needs no branch. `width` is the model's.
    """
    groups: list[list[tuple[int, int]]] = []
    last: tuple[int, ...] = ()
    size = deepest = 0
    for number in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[number]
        shared = _num_shared(last, sequence)
        new, deepest = len(sequence) - shared, max(deepest, len(sequence))
        extends = bool(groups) and size == shared
        if extends or (shared and deepest <= depth and _pays(size, new, len(sequence), width)):
            groups[-1].append((number, shared))
            size += new
        else:
            groups.append([(number, 0)])
            size = deepest = len(sequence)
        last = sequence
    return [_tree(sequences, group) for group in groups]


def lone_trees(sequences: Sequences) -> list[Tree]:
    """Return a tree for each sequence, without any branch."""
    return [_tree(sequences, [(number, 0)]) for number in range(len(sequences))]


def batches_of(trees: Sequence[Tree], max_tokens: int) -> Iterator[list[Tree]]:
    """Yield trees of similar size, at most `max_tokens` with padding, or one longer tree; little of it is padding."""
    batch: list[Tree] = []
    held = 0
    for tree in sorted(trees, key=len):
        cells = (len(batch) + 1) * len(tree)
        padding = cells - held - len(tree)
        if batch and (cells > max_tokens or (held >= FEW_TOKENS and padding > PADDING * cells)):
            yield batch
            batch, held = [], 0
        batch.append(tree)
        held += len(tree)
    if batch:
        yield batch


def seen_by(trees: Sequence[Tree]) -> np.ndarray:
    """Return which nodes (last axis) each node attends to: itself and those before it in its texts.

    The shape is (num_trees, longest, longest), bool; what fills a row up sees itself alone.
    """
    width = max(len(tree) for tree in trees)
    seen = np.zeros((len(trees), width, width), dtype=bool)
    seen[:, np.arange(width), np.arange(width)] = True
    for row, tree in zip(seen, trees, strict=True):
        for _, nodes in tree.paths:
            row[np.ix_(nodes, nodes)] |= np.tri(len(nodes), dtype=bool)
    return seen


def _tree(sequences: Sequences, group: Sequence[tuple[int, int]]) -> Tree:
    """Return the tree of some sequences, each with how many nodes it shares with the one before it."""
    tokens: list[int] = []
    positions: list[int] = []
    paths = []
    path = np.zeros(0, dtype=np.int64)
    for number, shared in group:
        fresh = sequences[number][shared:]
        path = np.concatenate([path[:shared], np.arange(len(tokens), len(tokens) + len(fresh))])
        tokens.extend(fresh)
        positions.extend(range(shared, shared + len(fresh)))
        paths.append((number, path))
    return Tree(np.array(tokens), np.array(positions), tuple(paths))


def _pays(size: int, new: int, length: int, width: int) -> bool:
    """Return whether `new` more nodes in a tree of `size` take less arithmetic than a row of `length` tokens.

    For each token a layer multiplies 12 * width**2 numbers by its weights, and 2 * width with each token of the row.
    """
    if size + new > LARGEST_TREE:
        return False
    return new * (6 * width + 2 * size + new) < SAVING * length * (6 * width + length)


def _num_shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    count = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        count += 1
    return count
