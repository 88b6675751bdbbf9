from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import VerificationError
from fairsisa.sisa.merkle import AbsenceProof, Neighbour, absence_holds, merkle_root, prove_absence, prove_absences

digests = st.integers(0, 2**256 - 1).map("{:064x}".format)
near_digests = st.integers(0, 40).map("{:064x}".format)
leaf_sets = st.sets(digests | near_digests, max_size=40)


def hex_of(number: int) -> str:
    return f"{number:064x}"


def tree_hash(leaves: list[str]) -> bytes:
    """RFC 6962, section 2.1, as it is written there: split at the largest power of two below the size."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + bytes.fromhex(leaves[0])).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + tree_hash(leaves[:split]) + tree_hash(leaves[split:])).digest()


def audit_path(position: int, leaves: list[str]) -> list[str]:
    """PATH(m, D[n]) of RFC 6962, section 2.1.1."""
    if len(leaves) <= 1:
        return []
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    if position < split:
        return [*audit_path(position, leaves[:split]), tree_hash(leaves[split:]).hex()]
    return [*audit_path(position - split, leaves[split:]), tree_hash(leaves[:split]).hex()]


def plain_root(leaves: list[str]) -> str:
    return hashlib.sha256(b"\2" + len(leaves).to_bytes(8, "big") + tree_hash(leaves)).hexdigest()


@given(leaf_sets, st.data())
def test_root_is_that_of_the_standard_whatever_the_order_and_repeats(leaves, data):
    shuffled = data.draw(st.permutations(sorted(leaves)))
    again = data.draw(st.lists(st.sampled_from(shuffled), max_size=5)) if leaves else []
    assert merkle_root([*shuffled, *again]) == plain_root(sorted(leaves))


def test_root_of_nothing_is_fixed():
    empty = hashlib.sha256().hexdigest()
    assert merkle_root([]) == hashlib.sha256(bytes.fromhex("02" + "00" * 8 + empty)).hexdigest()


@given(leaf_sets, digests | near_digests)
def test_every_absent_leaf_has_a_proof_that_holds_after_json(leaves, leaf):
    leaves.discard(leaf)
    proof = prove_absence(leaves, leaf)
    root = merkle_root(leaves)
    assert absence_holds(root, leaf, proof)
    assert AbsenceProof.from_dict(json.loads(json.dumps(proof.as_dict()))) == proof
    assert AbsenceProof.from_dict(proof.as_dict()) == proof
    assert not absence_holds(merkle_root(leaves | {leaf}), leaf, proof)


@given(leaf_sets, digests | near_digests)
def test_paths_are_those_of_the_standard(leaves, leaf):
    leaves.discard(leaf)
    proof, ordered = prove_absence(leaves, leaf), sorted(leaves)
    assert proof.num_leaves == len(ordered)
    assert (proof.left is None) == (not ordered or leaf < ordered[0])
    assert (proof.right is None) == (not ordered or leaf > ordered[-1])
    for side in (proof.left, proof.right):
        if side is not None:
            assert ordered[side.position] == side.leaf
            assert list(side.path) == audit_path(side.position, ordered)


@given(leaf_sets.filter(bool), st.data())
def test_a_present_leaf_has_no_proof(leaves, data):
    leaf = data.draw(st.sampled_from(sorted(leaves)))
    with pytest.raises(ValueError, match="cannot be proven"):
        prove_absence(leaves, leaf)
    for other in prove_absences(leaves - {leaf}, [leaf]):
        assert not absence_holds(merkle_root(leaves), leaf, other)


def every_neighbour(leaves: list[str]) -> list[Neighbour | None]:
    """Every leaf of a tree at every position, with every true path and every true path cut short or made longer."""
    paths = [tuple(audit_path(position, leaves)) for position in range(len(leaves))]
    paths += [path[:-1] for path in paths if path] + [(*path, hex_of(0)) for path in paths]
    inner = [tree_hash(leaves[low:high]).hex() for low, high in combinations(range(len(leaves) + 1), 2)]
    places = range(len(leaves) + 2)
    return [None, *(Neighbour(*each) for each in product([*leaves, *inner], places, set(paths)))]


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_no_proof_of_a_small_tree_hides_a_present_leaf(size):
    leaves = [hex_of(2 * number + 2) for number in range(size)]
    root, sides = merkle_root(leaves), every_neighbour(leaves)
    for num_leaves, left, right in product(range(size + 2), sides, sides):
        proof = AbsenceProof(num_leaves, left, right)
        assert not any(absence_holds(root, leaf, proof) for leaf in leaves)


@pytest.mark.parametrize("size", range(12))
def test_a_proof_holds_for_exactly_the_gap_it_was_made_for(size):
    leaves = [hex_of(2 * number + 2) for number in range(size)]
    root, asked = merkle_root(leaves), [hex_of(number) for number in range(1, 2 * size + 4)]
    gaps = [leaf for leaf in asked if leaf not in leaves]
    for gap in gaps:
        proof = prove_absence(leaves, gap)
        between = {leaf for leaf in gaps if sum(known < leaf for known in leaves) == sum(k < gap for k in leaves)}
        assert {leaf for leaf in asked if absence_holds(root, leaf, proof)} == between


@given(st.sets(near_digests, min_size=1, max_size=20), near_digests, st.data())
def test_no_changed_proof_holds(leaves, leaf, data):
    """The proof of a gap is unique, so a proof with any field changed proves nothing."""
    leaves.discard(leaf)
    proof, root = prove_absence(leaves, leaf), merkle_root(leaves)
    changed = data.draw(changes_of(proof))
    if changed != proof:
        assert not absence_holds(root, leaf, changed)
        assert not any(absence_holds(root, present, changed) for present in leaves)


@st.composite
def changes_of(draw, proof):
    size = st.integers(0, 2**64 - 1) | st.integers(0, 24)
    if draw(st.booleans()):
        proof = replace(proof, num_leaves=draw(size))
    for name in draw(st.sets(st.sampled_from(["left", "right"]))):
        side = getattr(proof, name)
        if side is None or draw(st.integers(0, 4)) == 0:
            proof = replace(proof, **{name: None})
            continue
        hashes = st.sampled_from([*side.path, side.leaf]) | near_digests
        path = draw(
            st.just(side.path) | st.permutations(side.path).map(tuple) | st.lists(hashes, max_size=6).map(tuple)
        )
        leaf, place = draw(st.just(side.leaf) | hashes), draw(st.just(side.position) | size)
        proof = replace(proof, **{name: Neighbour(leaf, place, path)})
    return proof if draw(st.integers(0, 4)) else replace(proof, left=proof.right, right=proof.left)


def test_a_node_does_not_pass_for_a_leaf():
    leaves = [hex_of(number) for number in (1, 2, 3, 4)]
    forged = [hashlib.sha256(b"\1" + tree_hash(leaves[:2]) + tree_hash(leaves[2:])).hexdigest()]
    assert merkle_root(forged) != merkle_root(leaves)
    assert merkle_root([tree_hash(leaves[:2]).hex(), tree_hash(leaves[2:]).hex()]) != merkle_root(leaves)


@pytest.mark.parametrize("bad", ["", "ab", "A" * 64, "g" * 64, "0" * 65, "0" * 63 + "\n", 7])
def test_hashes_of_another_form_are_refused(bad):
    good = hex_of(5)
    for call in (
        lambda: merkle_root([good, bad]),
        lambda: prove_absence([good], bad),
        lambda: absence_holds(bad, good, AbsenceProof(0, None, None)),
        lambda: absence_holds(good, bad, AbsenceProof(0, None, None)),
        lambda: Neighbour(bad, 0, ()),
        lambda: Neighbour(good, 0, (bad,)),
    ):
        with pytest.raises(ValueError, match="64 lower-case hexadecimal digits"):
            call()


@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, True, "1", None])
def test_counts_of_another_form_are_refused(bad):
    with pytest.raises(ValueError, match="position of a neighbour to be a whole number"):
        Neighbour(hex_of(1), bad, ())
    with pytest.raises(ValueError, match="num_leaves to be a whole number"):
        AbsenceProof(bad, None, None)


def test_parts_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="path of a neighbour to be a tuple"):
        Neighbour(hex_of(1), 0, [])
    with pytest.raises(ValueError, match="left and right to be neighbours"):
        AbsenceProof(1, "left", None)


NEIGHBOUR = {"leaf": hex_of(1), "position": 0, "path": []}
WRONG = [
    None,
    [],
    {},
    {"num_leaves": 1, "left": None},
    {"num_leaves": 1, "left": None, "right": None, "more": 1},
    {"num_leaves": "1", "left": None, "right": None},
    {"num_leaves": 1, "left": {}, "right": None},
    {"num_leaves": 1, "left": NEIGHBOUR | {"path": "ab"}, "right": None},
    {"num_leaves": 1, "left": NEIGHBOUR | {"path": [1]}, "right": None},
    {"num_leaves": 1, "left": NEIGHBOUR | {"leaf": "x"}, "right": None},
    {"num_leaves": 1, "left": NEIGHBOUR | {"position": 0.0}, "right": None},
]


@pytest.mark.parametrize("values", WRONG)
def test_json_of_another_form_is_refused(values):
    with pytest.raises(VerificationError, match=r"Expected|not of its form"):
        AbsenceProof.from_dict(values)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 9])
def test_a_path_too_long_or_too_short_proves_nothing(size):
    leaves = [hex_of(2 * number + 2) for number in range(size)]
    root = merkle_root(leaves)
    for gap in (hex_of(2 * number + 1) for number in range(size + 1)):
        proof = prove_absence(leaves, gap)
        for name in ("left", "right"):
            side = getattr(proof, name)
            if side is not None:
                paths = [(*side.path, hex_of(0)), (hex_of(0), *side.path), *([side.path[:-1]] if side.path else [])]
                others = [replace(proof, **{name: replace(side, path=path)}) for path in paths]
                assert not any(absence_holds(root, gap, other) for other in others)
