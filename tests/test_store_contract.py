from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fairsisa.errors import CorruptArtefactError, MissingArtefactError, StoreError
from fairsisa.store import Store
from store_cases import PLACES, WEIGHTS, contents, lineage, location, put_tree, same, spoil


@pytest.fixture(params=PLACES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(location(request.param, tmp_path))


def test_a_location_leads_back_to_the_store(store):
    name = store.put(lineage(), WEIGHTS)
    assert Store(store.location).location == store.location
    assert same(Store(store.location).get(name), WEIGHTS)


def test_what_is_put_comes_back(store):
    made = lineage(ids=("x", "y"))
    name = store.put(made, WEIGHTS, {"steps": 3, "curve": [[1, 0.5]]}, environment={"torch": "2"})
    artefact = store.get(name)
    assert name == made.name
    assert store.has(name)
    assert artefact.lineage == made
    assert artefact.lineage.examples == ("x", "y")
    assert artefact.metadata == {"steps": 3, "curve": [[1, 0.5]]}
    assert store.manifest(name).environment == {"torch": "2"}
    assert same(artefact, WEIGHTS)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool],
)
def test_every_common_type_survives(store, dtype):
    tensors = {
        "x": torch.tensor([[0, 1], [1, 0]]).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.zeros(0, 3),
    }
    assert same(store.get(store.put(lineage(), tensors)), tensors)


def test_an_artefact_may_have_no_tensors(store):
    parent = store.put(lineage("parent"), WEIGHTS)
    name = store.put(lineage("emptied", (parent,)), {}, {"same_as": parent})
    assert store.has(name)
    assert dict(store.get(name).tensors) == {}
    assert store.get(name).metadata == {"same_as": parent}


def test_tensors_that_share_memory_or_are_views_are_written_in_full(store):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "again": base, "turned": base.T, "row": base[1], "grown": base.requires_grad_()}
    assert same(store.get(store.put(lineage(), tensors)), tensors)


def test_loaded_tensors_may_be_changed(store):
    name = store.put(lineage(), WEIGHTS)
    store.get(name).tensors["bias"].add_(1.0)
    assert same(store.get(name), WEIGHTS)


def test_putting_other_bytes_under_a_name_is_refused(store):
    name = store.put(lineage(), WEIGHTS)
    other = {"weight": WEIGHTS["weight"] + 1e-6, "bias": WEIGHTS["bias"]}
    digest = hashlib.sha256(safetensors.torch.save(other)).hexdigest()
    with pytest.raises(StoreError, match=f"SHA-256 {store.manifest(name).sha256}.*got {digest}.*not deterministic"):
        store.put(lineage(), other)
    assert same(store.get(name), WEIGHTS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": [1.0]}, "'x' to be a dense tensor with values, got list"),
        ({"x": torch.eye(2).to_sparse()}, "'x' to be a dense tensor"),
        ({"x": torch.zeros(2, device="meta")}, "'x' to be a dense tensor with values"),
        ({"x": torch.zeros(2, dtype=torch.complex128)}, "safetensors can hold, got torch.complex128"),
        ({1: torch.zeros(2)}, "names of tensors to be str other than '__metadata__', got 1"),
        ({"__metadata__": torch.zeros(2)}, "got '__metadata__'"),
    ],
)
def test_what_cannot_be_kept_is_refused(store, tensors, message):
    with pytest.raises(ValueError, match=message):
        store.put(lineage(), tensors)
    assert contents(store) == {}


def test_notes_are_plain_json(store):
    with pytest.raises(ValueError, match=r"metadata\['loss'\] to be finite, got nan"):
        store.put(lineage(), {}, {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"environment\['torch'\] to be plain JSON"):
        store.put(lineage(), {}, environment={"torch": torch.float32})


def test_a_parent_must_be_there(store):
    parent = lineage("parent")
    with pytest.raises(
        MissingArtefactError, match=f"Expected parent {parent.name} of checkpoint .* make it again first"
    ):
        store.put(lineage("child", (parent.name,)), WEIGHTS)
    assert contents(store) == {}


def test_what_is_not_there_is_named(store):
    name = lineage().name
    assert not store.has(name)
    for read in (store.get, store.manifest, store.check, store.example_ids):
        with pytest.raises(MissingArtefactError, match=f"Expected an artefact {name} in .*store, found none"):
            read(name)


@pytest.mark.parametrize("name", ["", "a", "../" + "a" * 61, "A" * 64, "a" * 63 + "/", "a" * 64 + "\n", "a" * 65])
def test_names_cannot_leave_the_store(store, name):
    for use in (store.get, store.has, store.manifest, store.check, store.children, lambda name: store.purge([name])):
        with pytest.raises(ValueError, match="64 hexadecimal digits, got"):
            use(name)


def test_a_handle_travels(store):
    name = store.put(lineage(), WEIGHTS)
    assert pickle.loads(pickle.dumps(store)).has(name)  # noqa: S301


def test_listings_give_a_row_an_artefact(store):
    names = put_tree(store)
    assert store.names() == tuple(sorted(names.values()))
    assert store.names("b") == tuple(sorted(names[label] for label in "bce"))
    entry = next(entry for entry in store.entries() if entry.name == names["d"])
    assert (entry.kind, entry.parents, entry.num_examples) == ("c", (names["b"], names["c"]), 1)
    assert entry.num_bytes == len(contents(store)[f"objects/{names['d'][:2]}/{names['d']}.safetensors"])
    assert entry.created.endswith("+00:00")


def test_an_empty_store_answers(store):
    assert store.names() == store.find(["x"]) == store.descendants([lineage().name]) == ()
    assert store.verify() == {}
    assert store.leftovers(older_than=0.0) == ()
    assert store.purge([lineage().name]).names == store.sweep(older_than=0.0).names == ()


def test_the_tree_is_known(store):
    names = put_tree(store)
    assert set(store.children(names["a"])) == {names["b"], names["c"]}
    found = store.descendants([names["a"]])
    assert set(found) == {names[label] for label in "bcde"}
    assert found.index(names["d"]) > max(found.index(names["b"]), found.index(names["c"]))
    assert store.descendants([names["d"], names["f"]]) == (names["e"],)


def test_the_ids_behind_an_artefact_are_its_ancestors_too(store):
    names = put_tree(store)
    assert store.example_ids(names["e"]) == {f"id-{label}" for label in "abcde"}
    assert store.example_ids(names["c"]) == {"id-a", "id-c"}
    assert set(store.find(["id-c"])) == {names[label] for label in "cde"}
    assert set(store.find(["id-a", "id-f"])) == set(names.values())
    assert store.find(["nobody"]) == ()


def test_purge_without_descendants_strands_nobody(store):
    names = put_tree(store)
    with pytest.raises(StoreError, match=f"got {names['e']}: purge that too"):
        store.purge([names["d"]], descendants=False)
    assert store.purge([names["d"], names["e"]], descendants=False).num_bytes > 0
    assert len(store.names()) == 4


def test_a_purged_parent_gets_no_new_children(store):
    parent = store.put(lineage("parent"), WEIGHTS)
    child = lineage("child", (parent,))
    store.purge([parent])
    with pytest.raises(MissingArtefactError, match="it was purged, or never made"):
        store.put(child, WEIGHTS)


def test_purge_spares_what_others_claim(store):
    names = put_tree(store)
    spared = [names[label] for label in "ab"]
    removal = store.purge(names.values(), spare=spared)
    assert set(removal.names) == {names[label] for label in "cdef"}
    assert store.names() == tuple(sorted(spared))
    assert removal.num_bytes > 0


@pytest.mark.parametrize("descendants", [True, False])
def test_purge_refuses_to_take_the_ancestor_of_what_it_spares(store, descendants):
    names = put_tree(store)
    before = contents(store)
    with pytest.raises(StoreError, match=f"made from what is purged, got {names['d']}: purge that too, or spare its"):
        store.purge([names[label] for label in "bef"], spare=[names["d"], names["a"]], descendants=descendants)
    assert contents(store) == before


def test_purge_goes_on_below_what_it_spares(store):
    names = put_tree(store)
    assert set(store.purge([names["a"]], spare=[names["a"], names["c"]]).names) == {names[label] for label in "bde"}
    assert store.names() == tuple(sorted(names[label] for label in "acf"))


def test_a_purge_leaves_nothing_to_sweep(store):
    names = put_tree(store)
    spoil(store, f"objects/{names['b'][:2]}/.{names['b']}.json.0123.partial", b"half")
    removal = store.purge([names["a"]])
    assert {key.partition("/")[2][3:67] for key in contents(store)} == {names["f"]}
    assert set(removal.names) == {names[label] for label in "abcde"}
    assert store.sweep(older_than=0.0).names == ()


def test_the_ids_that_stand_in_manifests_are_known(store):
    names = put_tree(store)
    assert store.known_ids() == {f"id-{label}" for label in "abcdef"}
    assert store.known_ids("b") == {"id-b", "id-c", "id-e"}
    store.drop([names["b"]])
    store.purge([names["f"]])
    assert store.known_ids() == {f"id-{label}" for label in "abcde"}
    assert store.known_ids("predictions") == frozenset()


def test_known_ids_pass_over_no_damage(store):
    names = put_tree(store)
    spoil(store, f"objects/{names['c'][:2]}/{names['c']}.json", b"{}")
    with pytest.raises(CorruptArtefactError, match=f"purge {names['c']}"):
        store.known_ids()


# Dropped payloads


def test_a_dropped_artefact_leaves_its_record(store):
    names = put_tree(store)
    sizes = {key: len(data) for key, data in contents(store).items()}
    removal = store.drop([names["b"], names["b"]])
    payload = f"objects/{names['b'][:2]}/{names['b']}.safetensors"
    assert removal.names == (names["b"],)
    assert removal.num_bytes == sizes[payload]
    assert contents(store).keys() == sizes.keys() - {payload}
    assert not store.has(names["b"])
    assert names["b"] not in store.names()
    assert store.manifest(names["b"]).lineage.examples == ("id-b",)
    rows = {entry.name: entry.kept for entry in store.records()}
    assert rows == {name: name != names["b"] for name in names.values()}
    assert [entry.name for entry in store.records("b")] == sorted(names[label] for label in "bce")


def test_a_record_answers_all_questions_of_a_deletion(store):
    names = put_tree(store)
    found, below = store.find(["id-b"]), store.descendants([names["a"]])
    store.drop([names["b"], names["d"]])
    assert store.find(["id-b"]) == found
    assert store.descendants([names["a"]]) == below
    assert set(store.children(names["b"])) == {names["d"]}
    assert store.example_ids(names["e"]) == {f"id-{label}" for label in "abcde"}
    assert store.verify() == {}
    store.check(names["b"])
    assert store.sweep(older_than=0.0).names == ()
    assert set(store.purge([names["b"]]).names) == {names[label] for label in "bde"}
    assert store.records() == store.entries()


def test_a_dropped_payload_is_missed_with_a_cure(store):
    name = store.put(lineage(), WEIGHTS)
    store.drop([name])
    with pytest.raises(MissingArtefactError, match=f"checkpoint {name} .* retention policy dropped: train again"):
        store.get(name)


def test_the_same_bytes_bring_a_dropped_artefact_back(store):
    name = store.put(lineage(), WEIGHTS)
    child = store.put(lineage("child", (name,)), WEIGHTS)
    store.drop([name])
    with pytest.raises(StoreError, match="not deterministic"):
        store.put(lineage(), {"weight": torch.zeros(2, 3)})
    assert not store.has(name)
    assert store.put(lineage(), WEIGHTS) == name
    assert same(store.get(name), WEIGHTS)
    assert store.has(child)
    assert store.manifest(name).kept


def test_a_dropped_parent_may_get_children(store):
    parent = store.put(lineage("parent", ids=("x",)), WEIGHTS)
    store.drop([parent])
    child = store.put(lineage("child", (parent,), ("y",)), WEIGHTS)
    assert store.has(child)
    assert store.example_ids(child) == {"x", "y"}


def test_dropping_again_or_what_is_gone_changes_nothing(store):
    name = store.put(lineage(), WEIGHTS)
    store.drop([name])
    before = contents(store)
    assert store.drop([name, lineage("never").name]).names == ()
    assert contents(store) == before
    with pytest.raises(ValueError, match="64 hexadecimal digits, got 'x'"):
        store.drop(["x"])


def test_damage_is_not_dropped(store):
    names = put_tree(store)
    spoil(store, f"objects/{names['c'][:2]}/{names['c']}.json", b"{}")
    before = contents(store)
    with pytest.raises(CorruptArtefactError, match=f"purge {names['c']}"):
        store.drop(names.values())
    assert contents(store) == before


def test_a_payload_beside_a_record_is_a_leftover(store):
    name = store.put(lineage(), WEIGHTS)
    key = f"objects/{name[:2]}/{name}.safetensors"
    data = contents(store)[key]
    store.drop([name])
    spoil(store, key, data)
    assert not store.has(name)
    assert store.leftovers(older_than=0.0) == (key,)
    assert store.drop([name]).num_bytes == len(data)
    spoil(store, key, data)
    assert store.sweep(older_than=0.0).names == (key,)
    assert store.verify() == {}


# Damage, wherever the files lie


def test_a_flipped_bit_is_found_and_healed(store):
    name = store.put(lineage(), WEIGHTS)
    key = f"objects/{name[:2]}/{name}.safetensors"
    data = contents(store)[key]
    spoil(store, key, data[:-1] + bytes([data[-1] ^ 1]))
    assert store.has(name)
    with pytest.raises(CorruptArtefactError, match=f"{store.location}/{key} has SHA-256"):
        store.get(name)
    assert set(store.verify()) == {name}
    store.put(lineage(), WEIGHTS)
    assert store.verify() == {}


def test_a_torn_payload_does_not_exist(store):
    name = store.put(lineage(), WEIGHTS)
    key = f"objects/{name[:2]}/{name}.safetensors"
    spoil(store, key, contents(store)[key][:-1])
    assert not store.has(name)
    assert store.records() == ()


def test_a_manifest_that_changed_is_read_again(store):
    name = store.put(lineage(), WEIGHTS)
    assert store.has(name)
    key = f"objects/{name[:2]}/{name}.json"
    spoil(store, key, contents(store)[key].replace(b"checkpoint", b"chockpoint"))
    assert not store.has(name)
