"""Who is made from whom: questions about the graph of artefacts, from the parents of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from graphlib import TopologicalSorter

Links = Mapping[str, tuple[str, ...]]


def parents_first(names: Collection[str], links: Links) -> list[str]:
    """Return `names`, whether or not `links` knows them, with parents before children."""
    chosen = set(names)
    graph = dict(links) | dict.fromkeys(sorted(chosen - links.keys()), ())
    return [name for name in TopologicalSorter(graph).static_order() if name in chosen]


def below(names: Collection[str], links: Links) -> list[str]:
    """Return all that is made from `names`, directly or not, parents before children, without `names`."""
    reached, found = set(names), []
    for name in TopologicalSorter(links).static_order():
        if name not in reached and not reached.isdisjoint(links.get(name, ())):
            reached.add(name)
            found.append(name)
    return found


def above(names: Collection[str], links: Links) -> frozenset[str]:
    """Return `names` and all that they are made from, as far as `links` tells."""
    reached, waiting = set(names), list(names)
    while waiting:
        parents = set(links.get(waiting.pop(), ())) - reached
        reached |= parents
        waiting += parents
    return frozenset(reached)
