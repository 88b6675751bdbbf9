from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.lineage import (
    NOTHING,
    Lineage,
    canonical_json,
    content_digest,
    derive_seed,
    example_digests,
    fingerprint,
    plain,
    slice_digest,
)
from fairsisa.tables import Examples

GOLDEN_NAME = "9e257fca2694e89cbaf606a353e71bce377c1fae6cd621cdcac44b4d722f45e7"
GOLDEN_SEED = 1726236359551782682
PRINT_GOLDEN = """
from fairsisa.lineage import Lineage, content_digest, derive_seed, slice_digest
ids = ("a", "b")
contents = slice_digest(ids, [content_digest("some text", 1), content_digest("ünïcode", 0)])
made = Lineage(kind="checkpoint", parents=("0" * 64,), examples=ids, contents=contents, inputs=("f" * 64,),
               settings={"rate": 0.1, "layers": [2, {"deep": None}], "on": True})
print(made.name, derive_seed(3, "slice", 1, 2))
"""

texts = st.text(max_size=8) | st.sampled_from(["\ud83d\ude00", "\U0001f600", "\ud83d"])  # half a character is text too
id_lists = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), unique=True, max_size=6)
words = st.sampled_from(["checkpoint", "features", "predictions"])
hexes = st.integers(0, 2**256 - 1).map("{:064x}".format)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars |= st.text(st.characters(codec="utf-8"), max_size=4)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
)
json_settings = st.dictionaries(st.text("abcd", max_size=3), json_values, max_size=4)


def digests_of(ids: list[str]) -> list[str]:
    return [hashlib.sha256(name.encode()).hexdigest() for name in ids]


def lineage_of(ids: list[str], **changes: Any) -> Lineage:
    fields: dict[str, Any] = {
        "kind": "checkpoint",
        "parents": ("1" * 64,),
        "examples": tuple(ids),
        "contents": slice_digest(ids, digests_of(ids)),
        "inputs": ("2" * 64,),
        "settings": {"rate": 0.5},
    }
    return Lineage(**(fields | changes))


def tabular(values: list[list[float]], labels: list[int]) -> Examples:
    frame = pd.DataFrame(np.asarray(values, dtype=np.float32), columns=["feature:x", "feature:y"])
    frame = frame.assign(example_id=[f"e{i}" for i in range(len(labels))], label=labels, split="train")
    return Examples("tiny", frame.assign(subject_id=frame["example_id"]), ("no", "yes"))


def test_digest_of_a_text_follows_its_definition():
    expected = hashlib.sha256(b"fairsisa text 1\0" + (1).to_bytes(8, "little") + "hät".encode()).hexdigest()
    assert content_digest("hät", 1) == expected


def test_digest_of_features_follows_its_definition():
    row = np.array([1.5, -2.0], dtype=np.float32)
    raw = b"\x00\x00\xc0\x3f" + b"\x00\x00\x00\xc0"  # IEEE 754 single, little-endian
    expected = hashlib.sha256(b"fairsisa features 1\0" + bytes(8) + raw).hexdigest()
    assert content_digest(row, 0) == expected
    assert content_digest(row.astype(">f8"), 0) == expected


@given(st.tuples(texts, st.integers(0, 3)), st.tuples(texts, st.integers(0, 3)))
def test_content_digests_are_equal_exactly_when_text_and_label_are(one, two):
    assert (content_digest(*one) == content_digest(*two)) == (one == two)


def test_table_of_texts_gets_the_digests_of_its_examples():
    rows = {"a": ("first", 0), "b": ("second", 1), "c": ("first", 1)}
    frame = pd.DataFrame(
        {
            "example_id": list(rows),
            "subject_id": "s",
            "label": [label for _, label in rows.values()],
            "split": "train",
            "text": [text for text, _ in rows.values()],
            "sensitive:sex": ["f", "m", None],
        }
    )
    found = example_digests(Examples("tiny", frame, ("no", "yes")))
    assert found == {name: content_digest(*row) for name, row in rows.items()}
    assert list(found) == list(rows)
    blind = example_digests(Examples("tiny", frame.drop(columns="sensitive:sex"), ("no", "yes")))
    assert blind == found


def test_table_of_features_gets_the_digests_of_its_examples():
    values, labels = [[1.0, 2.0], [0.1, -3.0], [0.0, -0.0]], [0, 1, 1]
    found = example_digests(tabular(values, labels))
    rows = np.asarray(values, dtype=np.float32)
    assert list(found.values()) == [content_digest(row, label) for row, label in zip(rows, labels, strict=True)]


def test_features_are_digested_as_the_float32_that_trains():
    coarse, fine = [[0.1, 1.0], [2.0, 3.0]], [[0.1 + 1e-12, 1.0], [2.0, 3.0]]
    assert example_digests(tabular(coarse, [0, 1])) == example_digests(tabular(fine, [0, 1]))
    changed = [[0.1 + 1e-7, 1.0], [2.0, 3.0]]
    assert example_digests(tabular(coarse, [0, 1])) != example_digests(tabular(changed, [0, 1]))


@given(id_lists, id_lists)
def test_slice_digests_are_equal_exactly_when_ids_and_contents_are(one, two):
    same = slice_digest(one, digests_of(one)) == slice_digest(two, digests_of(two))
    assert same == (one == two)


def test_slice_digest_is_not_fooled_by_framing():
    contents = ["0" * 64, "1" * 64]
    found = {slice_digest(ids, contents) for ids in (["ab", "c"], ["a", "bc"], ['a","b', "c"], ["a", 'b","c'])}
    assert len(found) == 4


@given(id_lists.filter(bool), st.data())
def test_slice_digest_covers_every_content(ids, data):
    before = digests_of(ids)
    index = data.draw(st.integers(0, len(ids) - 1))
    after = [*before]
    after[index] = "0" * 64
    assert slice_digest(ids, before) != slice_digest(ids, after)


def test_digest_of_nothing_is_what_it_says():
    assert slice_digest((), ()) == NOTHING


@pytest.mark.parametrize(
    ("ids", "digests", "message"),
    [
        (["a"], [], "one content digest for each of 1 ids, got 0"),
        (["a"], ["x"], "content digests to be 64 hexadecimal digits, got 'x'"),
        (["a"], ["A" * 64], "64 hexadecimal digits"),
        (["a", "b"], ["0" * 63, "0" * 65], "64 hexadecimal digits, got '0{63}'"),
        ([1], ["0" * 64], "ids to be str, got 1 of type int"),
        ("a", ["0" * 64], "ids to be a sequence of str, got the single str 'a'"),
        (["\ud800"], ["0" * 64], "lone surrogate"),
    ],
)
def test_slice_digest_refuses(ids, digests, message):
    with pytest.raises(ValueError, match=message):
        slice_digest(ids, digests)


@given(id_lists, json_settings)
def test_lineage_is_equal_to_its_copies(ids, values):
    made = lineage_of(ids, settings=values)
    again = lineage_of(ids, settings=json.loads(json.dumps(values)))
    for other in (again, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):  # noqa: S301
        assert other == made
        assert other.name == made.name
        assert hash(other) == hash(made)


CHANGES: dict[str, Any] = {
    "kind": "features",
    "parents": ("3" * 64,),
    "examples": ("a", "c"),
    "contents": "4" * 64,
    "inputs": ("2" * 64, "2" * 64),
    "settings": {"rate": 0.25},
}


@pytest.mark.parametrize("field", list(CHANGES))
def test_every_field_is_in_the_name(field):
    before = lineage_of(["a", "b"])
    after = lineage_of(["a", "b"], **{field: CHANGES[field]})
    assert after.name != before.name
    assert after != before


def test_a_value_moved_from_one_field_to_another_changes_the_name():
    digest = "5" * 64
    as_parent = lineage_of([], parents=(digest,), inputs=())
    as_input = lineage_of([], parents=(), inputs=(digest,))
    assert as_parent.name != as_input.name


@pytest.mark.parametrize("field", ["parents", "examples", "inputs"])
def test_order_is_in_the_name(field):
    values = ("6" * 64, "7" * 64)
    forth, back = lineage_of(["a", "b"], **{field: values}), lineage_of(["a", "b"], **{field: values[::-1]})
    assert forth.name != back.name


@given(json_settings, st.randoms())
def test_order_of_keys_is_not_in_the_name(values, random):
    keys = list(values)
    random.shuffle(keys)
    assert lineage_of(["a"], settings=values).name == lineage_of(["a"], settings={k: values[k] for k in keys}).name


@given(json_settings, json_settings)
@settings(max_examples=300)
def test_settings_are_told_apart_as_json_tells_them(one, two):
    texts = [json.dumps(values, sort_keys=True) for values in (one, two)]
    assert (lineage_of(["a"], settings=one) == lineage_of(["a"], settings=two)) == (texts[0] == texts[1])


def test_numbers_of_different_types_differ():
    names = {
        lineage_of([], settings={"x": value}).name for value in (1, 1.0, True, "1", [1], None, 0, 0.0, -0.0, False)
    }
    assert len(names) == 10


def test_a_tuple_in_settings_is_a_list():
    assert lineage_of([], settings={"x": (1, (2,))}) == lineage_of([], settings={"x": [1, [2]]})


def test_settings_cannot_be_changed_afterwards():
    given_settings: dict[str, Any] = {"model": {"layers": [1, 2]}}
    made = lineage_of([], settings=given_settings)
    name = made.name
    given_settings["model"]["layers"].append(3)
    assert lineage_of([], settings=made.settings).name == name
    assert made.settings["model"]["layers"] == (1, 2)
    assert isinstance(made.settings, Mapping)
    for inner in (made.settings, made.settings["model"]):
        with pytest.raises(TypeError, match="does not support item assignment"):
            inner["x"] = 1


def test_fingerprint_is_the_name():
    made = lineage_of(["a"])
    parts = (made.kind, made.parents, made.inputs, made.settings)
    assert fingerprint(*parts, examples=made.examples, contents=made.contents) == made.name
    assert fingerprint(*parts) != made.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "Check point"}, "kind to be a lower-case word, got 'Check point'"),
        ({"kind": ""}, "kind to be a lower-case word"),
        ({"parents": ("abc",)}, "parents to be 64 hexadecimal digits, got 'abc'"),
        ({"parents": "0" * 64}, "parents to be a sequence of str"),
        ({"inputs": ("some/path",)}, "inputs to be 64 hexadecimal digits, got 'some/path': hash it"),
        ({"examples": ("a", 2)}, "examples to be str, got 2 of type int"),
        ({"examples": ("a", "a")}, "2 different ids in examples"),
        ({"contents": NOTHING}, "slice_digest of 1 examples, got that of none"),
        ({"examples": ()}, "slice_digest of 0 examples"),
        ({"contents": "x"}, "contents to be 64 hexadecimal digits, got 'x'"),
        ({"settings": {"a": {"b": float("nan")}}}, r"settings\['a'\]\['b'\] to be finite, got nan"),
        ({"settings": {"a": [1, float("inf")]}}, r"settings\['a'\]\[1\] to be finite, got inf"),
        ({"settings": {"a": np.int64(1)}}, r"settings\['a'\] to be plain JSON, got int64: convert it first"),
        ({"settings": {"a": [{1}]}}, r"settings\['a'\]\[0\] to be plain JSON, got set"),
        ({"settings": {"a": b"x"}}, r"settings\['a'\] to be plain JSON, got bytes"),
        ({"settings": {"a": {1: 2}}}, r"keys of settings\['a'\] to be str, got 1"),
    ],
)
def test_lineage_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        lineage_of(["a"], **changes)


def test_text_that_is_no_unicode_has_no_name():
    with pytest.raises(ValueError, match="lone surrogate at the end of"):
        _ = lineage_of([], settings={"x": "\ud800"}).name


def test_contents_cannot_be_forgotten():
    with pytest.raises(ValueError, match="Expected contents to be the slice_digest of 1 examples"):
        Lineage(kind="checkpoint", parents=(), examples=("a",), inputs=(), settings={})
    assert Lineage(kind="summary", parents=(), examples=(), inputs=(), settings={}).contents == NOTHING


@given(json_values)
def test_canonical_json_reads_back_as_the_plain_value(value):
    assert json.dumps(json.loads(canonical_json(value))) == json.dumps(plain(value, "value"), sort_keys=True)


def test_plain_gives_a_private_copy():
    inner = [1, [2]]
    copied = plain({"x": inner}, "value")
    inner[1].append(3)
    assert copied == {"x": [1, [2]]}


@given(st.integers(), st.lists(st.text(st.characters(codec="utf-8"), max_size=3) | st.integers(), max_size=3))
def test_seeds_are_in_range_and_depend_on_every_part(seed, parts):
    found = derive_seed(seed, *parts)
    assert 0 <= found < 2**63
    assert found == derive_seed(seed, *parts)
    assert found != derive_seed(seed + 1, *parts)
    assert found != derive_seed(seed, *parts, 0)


def test_seeds_are_not_fooled_by_framing():
    seeds = [derive_seed(0, *parts) for parts in (("ab", "c"), ("a", "bc"), ("a", 1), ("a", "1"), ("a", 11), ("a1", 1))]
    assert len(set(seeds)) == len(seeds)


def test_seeds_use_all_their_bits():
    bits = np.array([[derive_seed(0, index) >> bit & 1 for bit in range(63)] for index in range(2000)])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.06  # five standard errors


@pytest.mark.parametrize("part", [1.0, True, None, np.int64(3)])
def test_seeds_come_from_ints_and_strs_alone(part):
    with pytest.raises(ValueError, match="Expected a seed made from ints and strs, got"):
        derive_seed(0, part)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_names_are_the_same_in_every_process(hash_seed):
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", PRINT_GOLDEN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [GOLDEN_NAME, str(GOLDEN_SEED)]
