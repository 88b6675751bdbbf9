from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.data.columns import (
    SPLIT_KEY,
    band_names,
    cell_text,
    cut_into_bands,
    hashed_one_hot,
    keyed_splits,
    keyed_uniform,
    numbers,
    numeric_feature,
    one_hot,
    refuse,
    rename,
    require_known,
)
from fairsisa.errors import DataError

texts = st.text(max_size=8)
IDS = ["a", "b", "c", "d"]


def cells(*values: object) -> np.ndarray:
    return np.fromiter(values, dtype=object)


@given(st.lists(st.text(), min_size=1, max_size=20, unique=True), st.data())
def test_removing_subjects_moves_no_other(subjects: list[str], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(subjects)))
    split_of = dict(zip(subjects, keyed_splits(subjects), strict=True))
    assert keyed_splits(kept).tolist() == [split_of[subject] for subject in kept]


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8")), max_size=10), st.binary(min_size=1, max_size=64))
def test_keyed_numbers_are_those_of_the_hmac_definition(subjects: list[str], key: bytes) -> None:
    expected = []
    for subject in subjects:
        padded = key.ljust(64, b"\0")
        inner = hashlib.sha256(bytes(x ^ 0x36 for x in padded) + subject.encode()).digest()
        outer = hashlib.sha256(bytes(x ^ 0x5C for x in padded) + inner).hexdigest()
        expected.append(int(outer[:12], 16) / 16**12)
    assert keyed_uniform(subjects, key).tolist() == expected


def test_the_published_split_key_never_changes() -> None:
    first = hmac.new(b"fairsisa split v1", b"person-1", "sha256").hexdigest()
    assert keyed_uniform(["person-1"], SPLIT_KEY)[0] == int(first[:12], 16) / 16**12
    numbered = {"train": "0", "calibration": "1", "test": "2"}
    dealt = keyed_splits([f"person-{i}" for i in range(12)])
    assert "".join(numbered[split] for split in dealt) == "002012220200"


def test_shares_of_the_splits_are_as_asked() -> None:
    splits = pd.Series(keyed_splits([str(i) for i in range(20_000)], (0.5, 0.3, 0.2))).value_counts(normalize=True)
    for name, share in (("train", 0.5), ("calibration", 0.3), ("test", 0.2)):
        assert abs(splits[name] - share) < 4 * np.sqrt(share * (1 - share) / 20_000)


@pytest.mark.parametrize("split", [0, 1, 2])
def test_a_fraction_of_one_takes_all(split: int) -> None:
    fractions = [float(index == split) for index in range(3)]
    expected = ("train", "calibration", "test")[split]
    assert set(keyed_splits([str(i) for i in range(500)], fractions)) == {expected}


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.6, 0.1), (1.2, -0.2, 0.0), 0.8])
def test_fractions_that_are_no_shares_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="Expected three fractions for train, calibration, test that sum to 1"):
        keyed_splits(["a"], fractions)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20))
def test_one_hot_is_what_pandas_makes(values: list[str]) -> None:
    made = pd.DataFrame(one_hot("t", "x", cells(*values), ("a", "b", "c"), [str(i) for i in range(len(values))]))
    dummies = pd.get_dummies(pd.Series(pd.Categorical(values, categories=["a", "b", "c"]), name="x"), dtype="float32")
    assert (made.to_numpy() == dummies.to_numpy()).all()
    assert list(made) == ["feature:x=a", "feature:x=b", "feature:x=c"]
    assert set(made.dtypes) == {np.dtype("float32")}


def test_an_unlisted_category_is_named_with_count_and_example() -> None:
    with pytest.raises(DataError, match=r"t: 2 of 4 rows .* column 'x', such as 'z'; the first is example 'b'"):
        one_hot("t", "x", cells("a", "z", "a", None), ("a",), IDS)


@given(st.lists(texts, min_size=1, max_size=20), st.integers(1, 40))
def test_a_bucket_depends_on_its_own_cell_alone(values: list[str], num_buckets: int) -> None:
    together = np.stack(list(hashed_one_hot("x", cells(*values), num_buckets).values()), axis=1)
    assert together.shape == (len(values), num_buckets)
    assert (together.sum(axis=1) == 1).all()
    for row, value in enumerate(values):
        alone = np.stack(list(hashed_one_hot("x", cells(value), num_buckets).values()), axis=1)
        assert (alone[0] == together[row]).all()


def test_buckets_fill_evenly_and_differ_by_column() -> None:
    values = cells(*(str(i) for i in range(8000)))
    first = np.stack(list(hashed_one_hot("x", values, 8).values()), axis=1)
    second = np.stack(list(hashed_one_hot("y", values, 8).values()), axis=1)
    assert (abs(first.sum(axis=0) - 1000) < 4 * np.sqrt(1000 * 7 / 8)).all()
    assert abs((first * second).sum() - 1000) < 4 * np.sqrt(1000 * 7 / 8)


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=20),
    st.lists(st.integers(-50, 50), min_size=1, max_size=4, unique=True),
)
def test_bands_are_those_of_pandas_cut(values: list[float], cuts: list[int]) -> None:
    cuts = sorted(cuts)
    expected = pd.cut(pd.Series(values), [-np.inf, *cuts, np.inf], right=False, labels=band_names(cuts)).tolist()
    assert cut_into_bands(np.asarray(values), cuts).tolist() == expected


def test_bands_have_readable_names_and_keep_the_unknown() -> None:
    bands = cut_into_bands(np.array([24.9, 25, 59.5, 60, np.nan]), (25, 60))
    assert bands.tolist() == ["under 25", "25 to under 60", "25 to under 60", "60 or over", None]


@pytest.mark.parametrize("cuts", [(), (2, 1), (1, 1)])
def test_cuts_must_ascend(cuts: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="at least one cut, in ascending order"):
        band_names(cuts)


@pytest.mark.parametrize("bad", ["", "1,5", "nan", "inf", None, "12 km"])
def test_a_cell_without_finite_number_is_named(bad: object) -> None:
    with pytest.raises(DataError, match=r"t: 1 of 3 rows hold no finite number in column 'x'; .* example 'b'"):
        numbers("t", "x", cells("1", bad, "2"), IDS)


def test_numbers_are_read_as_python_reads_them() -> None:
    written = ["1", "-2.5", "1e3", "0.1", " 7 "]
    assert numbers("t", "x", cells(*written, 3, 2.5), list("abcdefg")).tolist() == [*map(float, written), 3.0, 2.5]


def test_a_feature_beyond_single_precision_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 rows hold a number beyond single precision in column 'x'"):
        numeric_feature("t", "x", cells("1e39", "1"), IDS)
    assert numeric_feature("t", "x", cells("3e38", "0.1"), IDS).tolist() == [np.float32(3e38), np.float32(0.1)]


def test_rename_keeps_the_unknown_and_names_the_unlisted() -> None:
    assert rename("t", "x", cells("1", None, "2"), {"1": "male", "2": "female"}, IDS).tolist() == [
        "male",
        None,
        "female",
    ]
    with pytest.raises(DataError, match=r"t: 1 of 2 rows hold an unlisted value in column 'x', such as '3'; .*'b'"):
        rename("t", "x", cells("1", "3"), {"1": "male"}, IDS)


def test_refuse_counts_rows() -> None:
    refuse("t", IDS, np.zeros(4, dtype=bool), "never")
    with pytest.raises(DataError, match="t: 2 of 4 rows are odd; the first is example 'b'"):
        refuse("t", IDS, np.array([False, True, False, True]), "are odd")


def test_the_nearest_known_word_is_named() -> None:
    require_known("data", "key", ["name"], ["name", "options"])
    with pytest.raises(DataError, match="data: unknown key 'nmae'; did you mean 'name'"):
        require_known("data", "key", ["nmae"], ["name", "options"])
    with pytest.raises(DataError, match="data: unknown key 'zzz'; known: name, options"):
        require_known("data", "key", ["zzz"], ["name", "options"])


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, None), (float("nan"), None), ("", None), ("  ", None), (" a ", "a"), (1, "1"), (1.0, "1"), (1.5, "1.5"),
     (True, "true"), (False, "false"), (0, "0")],
)  # fmt: skip
def test_cells_become_text(cell: object, text: str | None) -> None:
    assert cell_text(cell) == text
