"""Log-likelihoods of many continuations by a causal language model, which reads what they have in common once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairsisa.bias.readouts.reading import Reader, read_trees, reader_of, whole_reader
from fairsisa.bias.readouts.trees import batches_of, grow_trees, lone_trees
from fairsisa.models.kv_cache import new_cache, pad_rows, read_tokens, require_readable

Tokens = tuple[int, ...]
Place = tuple[int, int, np.ndarray]
"""A row of a batch, a continuation's number, and where in the row its tokens are predicted, in their order."""


@dataclass(frozen=True)
class Continuation:
    """Token ids that are read (`prefix`) and those that follow, whose probability is asked; at least one of each.

    `group` says which continuations are alternatives at their first place.
    """

    prefix: Tokens
    tokens: Tokens
    group: int = 0

    def __post_init__(self) -> None:
        if not self.prefix or not self.tokens:
            raise ValueError(f"Expected a prefix and a continuation of one token or more, got {self}.")

    @property
    def read(self) -> Tokens:
        """What the model has to read: the last token is only predicted."""
        return self.prefix + self.tokens[:-1]


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """What a model says of continuations; arrays of shape (num_continuations,).

    `totals` are sums of log P(token | all before it) in nats, float64. `likeliest` says whether no token of the
    vocabulary was likelier than any of them at its place. `outside` is the log of the mass that the first tokens of a
    group's continuations with this prefix leave to all others, NaN unless it was wanted. `num_run` counts the positions
    that the model computed, padding included.
    """

    totals: np.ndarray
    likeliest: np.ndarray
    outside: np.ndarray
    num_run: int


@torch.inference_mode()
def score_continuations(
    network: Any, asked: Sequence[Continuation], *, max_tokens: int, outside: bool = False, share: bool = True
) -> Likelihoods:
    """Return the log-likelihoods of continuations, in their order, from one pass over batches of at most `max_tokens`.

    A beginning that several have in common is read once where that costs less than to read it again: a row then holds
    a tree of texts, in which a token attends to those before it in its own text alone (`trees`). A single longer text
    is a batch by itself. The head is applied where something is asked; the softmax is that of fp32 logits.

    Raises:
        ConfigError: when the model is no causal language model in evaluation mode, or tokens do not fit it.
    """
    _require_fit(network, asked)
    reader = reader_of(network)
    sequences = [each.read for each in asked]
    width = getattr(network.config, "hidden_size", 1)
    trees = grow_trees(sequences, depth=reader.depth, width=width) if share else lone_trees(sequences)
    found, num_run = _Found.nothing(asked, outside=outside), 0
    for shared in (False, True):
        for batch in batches_of([tree for tree in trees if (tree.depth <= reader.depth) == shared], max_tokens):
            places = [
                (row, number, nodes[len(asked[number].prefix) - 1 :])
                for row, tree in enumerate(batch)
                for number, nodes in tree.paths
            ]
            states = read_trees(network, reader, batch, shared=shared)
            num_run += states.shape[0] * states.shape[1]
            _collect(reader, states, places, found)
    return Likelihoods(found.totals, found.misses == 0, found.outside, num_run)


@torch.inference_mode()
def score_through_few_bits(
    network: Any, asked: Sequence[Continuation], *, cache_bits: int, max_tokens: int, outside: bool = False
) -> Likelihoods:
    """Return the same with all of each prefix but its last token read from a cache quantised to `cache_bits`.

    What is quantised and what stays exact is as in `models.cache_scoring.score_through_cache`, which gives the same
    totals and does not tell what was likeliest. Only what is read alike is shared.

    Raises:
        ConfigError: as `score_continuations`, or when the model's cache cannot be quantised.
    """
    _require_fit(network, asked)
    reader = whole_reader(network)
    found, num_run = _Found.nothing(asked, outside=outside), 0
    alike: dict[tuple[Tokens, Tokens], list[int]] = {}
    for number, each in enumerate(asked):
        alike.setdefault((each.prefix, each.read), []).append(number)
    sharing = [*alike.values()]
    for batch in batches_of(lone_trees([read for _, read in alike]), max_tokens):
        rows = [sharing[row] for tree in batch for row, _ in tree.paths]
        logits, num_held = _logits_from_cache(network, [asked[numbers[0]] for numbers in rows], cache_bits)
        num_run += len(batch) * (num_held + logits.shape[1])
        places = [
            (row, number, np.arange(len(asked[number].tokens)))
            for row, numbers in enumerate(rows)
            for number in numbers
        ]
        _collect(reader, logits, places, found)
    return Likelihoods(found.totals, found.misses == 0, found.outside, num_run)


@dataclass(frozen=True, eq=False)
class _Found:
    """What is known so far of what was asked; `misses` counts the tokens of each that were not the likeliest.

    `rivals` are the different first tokens of what is asked after the same prefix in the same group, where these count.
    """

    asked: Sequence[Continuation]
    rivals: Sequence[Tokens] | None
    totals: np.ndarray
    misses: np.ndarray
    outside: np.ndarray

    @classmethod
    def nothing(cls, asked: Sequence[Continuation], *, outside: bool) -> _Found:
        count = len(asked)
        rivals = _rivals(asked) if outside else None
        return cls(asked, rivals, np.zeros(count), np.zeros(count, dtype=np.int64), np.full(count, np.nan))


@dataclass(frozen=True, eq=False)
class _Wanted:
    """The tokens that a batch is asked for, in the order of states: the state, id and continuation of each.

    `first` says whether it is its continuation's first; all have shape (num_tokens,).
    """

    states: np.ndarray
    tokens: np.ndarray
    owners: np.ndarray
    first: np.ndarray

    def within(self, part: slice) -> _Wanted:
        """Return what is wanted of some states, which are then counted from 0."""
        chosen = slice(*np.searchsorted(self.states, [part.start, part.stop]))
        states = self.states[chosen] - part.start
        return _Wanted(states, self.tokens[chosen], self.owners[chosen], self.first[chosen])


def _collect(reader: Reader, states: Tensor, places: Sequence[Place], found: _Found) -> None:
    """Add to `found` what the states of a batch, shape (num_rows, longest, width), say at some places."""
    width = states.shape[1]
    cells, which = np.unique(np.concatenate([row * width + nodes for row, _, nodes in places]), return_inverse=True)
    owners = np.concatenate([np.full(len(nodes), number) for _, number, nodes in places])
    tokens = np.concatenate([np.asarray(found.asked[number].tokens) for _, number, _ in places])
    first = np.concatenate([np.arange(len(nodes)) == 0 for _, _, nodes in places])
    order = np.argsort(which, kind="stable")
    wanted = _Wanted(which[order], tokens[order], owners[order], first[order])
    chosen = states.flatten(0, 1)[torch.from_numpy(cells).to(states.device)]
    for part, logits in reader.logits(chosen):
        _add(logits, wanted.within(part), found)


def _add(logits: Tensor, wanted: _Wanted, found: _Found) -> None:
    """Add to `found` what logits, fp32 of shape (num_states, vocabulary), say of the tokens wanted of these states."""
    rows = torch.from_numpy(wanted.states).to(logits.device)
    logs = logits.log_softmax(dim=-1)
    values = logs[rows, torch.from_numpy(wanted.tokens).to(logits.device)]
    np.add.at(found.totals, wanted.owners, values.double().cpu().numpy())
    np.add.at(found.misses, wanted.owners, ~(values >= logs.amax(dim=-1)[rows]).cpu().numpy())
    if found.rivals is not None:
        alike: dict[tuple[int, Tokens], list[int]] = {}
        for owner, state in zip(wanted.owners[wanted.first], wanted.states[wanted.first], strict=True):
            alike.setdefault((int(state), found.rivals[owner]), []).append(int(owner))
        for (state, rivals), owned in alike.items():
            # In float64: the log of a mass near 1 is smaller than what fp32 rounds the normaliser by.
            every = logits[state].double()
            others = every.index_fill(0, torch.tensor(rivals, device=every.device), -torch.inf)
            found.outside[owned] = float(others.logsumexp(dim=0) - every.logsumexp(dim=0))


def _rivals(asked: Sequence[Continuation]) -> list[Tokens]:
    """Return for each continuation the different first tokens of those of its group that follow the same prefix."""
    firsts: dict[tuple[int, Tokens], dict[int, None]] = {}
    for each in asked:
        firsts.setdefault((each.group, each.prefix), {})[each.tokens[0]] = None
    return [tuple(firsts[each.group, each.prefix]) for each in asked]


def _logits_from_cache(network: Any, asked: Sequence[Continuation], cache_bits: int) -> tuple[Tensor, int]:
    """Return the logits of each continuation's tokens, (num_rows, longest, vocabulary), and the length of the cache."""
    device = next(network.parameters()).device
    cache = new_cache(network, cache_bits)
    held, held_mask = pad_rows([each.prefix[:-1] for each in asked], "left", device)
    if held.shape[1]:
        read_tokens(network, held, held_mask, cache)
    tokens, mask = pad_rows([(each.prefix[-1], *each.tokens[:-1]) for each in asked], "right", device)
    logits = read_tokens(network, tokens, torch.cat([held_mask, mask], dim=-1), cache, keep=tokens.shape[1])
    return logits, held.shape[1]


def _require_fit(network: Any, asked: Sequence[Continuation]) -> None:
    require_readable(network, [(*each.prefix, *each.tokens) for each in asked], [len(each.read) for each in asked])
