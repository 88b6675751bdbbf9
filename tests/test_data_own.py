from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairsisa.data.columns import CATEGORY_KEY, keyed_splits, keyed_uniform
from fairsisa.data.own import load_own
from fairsisa.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"id": "a", "who": "p1", "age": 20, "job": "clerk", "sex": "f", "paid": "no", "part": "Train", "note": "fine, so"},
    {"id": "b", "who": "p1", "age": 30, "job": "cook", "sex": None, "paid": "yes", "part": "train", "note": 'a "good"'},
    {"id": "c", "who": "p2", "age": 61.5, "job": None, "sex": "m", "paid": "no", "part": "dev", "note": "two\nlines"},
    {"id": "d", "who": "p3", "age": 25, "job": "clerk", "sex": "m", "paid": "yes", "part": "test", "note": "ün 🙂"},
]  # fmt: skip
TABLE = {"example_id": "id", "label": "paid", "numeric": ["age"]}
TEXT = {"example_id": "id", "label": "paid", "text": "note", "split": "part"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "people.csv", ROWS)


def changed(row: int, **cells: Any) -> list[dict[str, Any]]:
    return [record | (cells if index == row else {}) for index, record in enumerate(ROWS)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_table(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"people.{kind}", ROWS)
    mapping = TABLE | {
        "subject_id": "who",
        "categorical": ["job"],
        "categories": {"job": ["clerk", "cook"]},
        "positive": "no",
        "sensitive": ["sex", {"age": [25, 60]}],
        "split": "part",
        "risk": None,
    }
    examples = load_own(path, columns=mapping)
    assert (examples.name, examples.classes) == ("people", ("yes", "no"))
    assert examples.frame.drop(columns=["sensitive:sex"]).to_dict("list") == {
        "example_id": ["a", "b", "c", "d"],
        "subject_id": ["p1", "p1", "p2", "p3"],
        "label": [1, 0, 1, 0],
        "split": ["train", "train", "calibration", "test"],
        "feature:age": [20.0, 30.0, 61.5, 25.0],
        "feature:job=clerk": [1.0, 0.0, 0.0, 1.0],
        "feature:job=cook": [0.0, 1.0, 0.0, 0.0],
        "feature:job=(missing)": [0.0, 0.0, 1.0, 0.0],
        "sensitive:age": ["under 25", "25 to under 60", "60 or over", "25 to under 60"],
    }
    assert examples.sensitive("sex").tolist() == ["f", None, "m", "m"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_texts_are_kept_as_they_are(kind: str, tmp_path: Path) -> None:
    examples = load_own(write(tmp_path / f"notes.{kind}", ROWS), columns=TEXT, name="notes")
    assert examples.frame["text"].tolist() == [row["note"] for row in ROWS]
    assert examples.is_text


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1).filter(str.strip),
        min_size=2,
        max_size=6,
    )
)
def test_any_text_survives_a_csv_written_by_pandas(tmp_path: Path, notes: list[str]) -> None:
    rows = [{"note": note, "paid": ("no", "yes")[index % 2], "part": "train"} for index, note in enumerate(notes)]
    path = write(tmp_path / "notes.csv", rows)
    examples = load_own(path, columns={"label": "paid", "text": "note", "split": "part"})
    assert examples.frame["text"].tolist() == notes


def test_without_ids_rows_are_numbered_and_own_themselves(table: Path) -> None:
    frame = load_own(table, columns={"label": "paid", "numeric": ["age"], "split": "part"}).frame
    assert frame["example_id"].tolist() == [f"people-{row:06d}" for row in range(1, 5)]
    assert (frame["subject_id"] == frame["example_id"]).all()


def test_without_split_subjects_are_dealt_by_hash(tmp_path: Path) -> None:
    rows = [{"n": row, "who": f"u{row // 3}", "y": row % 2} for row in range(600)]
    path = write(tmp_path / "many.csv", rows)
    mapping = {"label": "y", "numeric": ["n"], "subject_id": "who"}
    frame = load_own(path, columns=mapping).frame
    assert (frame["split"] == keyed_splits(frame["subject_id"].tolist(), (0.6, 0.2, 0.2))).all()
    assert frame.groupby("subject_id")["split"].nunique().max() == 1
    halves = load_own(path, columns=mapping | {"fractions": {"train": 0.5, "test": 0.5}}).frame
    assert (halves["split"] == keyed_splits(frame["subject_id"].tolist(), (0.5, 0.0, 0.5))).all()


def test_categories_without_list_are_hashed_not_learnt(tmp_path: Path) -> None:
    rows = [{"city": city, "y": row % 2} for row, city in enumerate(["Ulm", "Bern", "Ulm", None, "Graz", "Bern"])]
    mapping = {"label": "y", "categorical": ["city"], "num_buckets": 5, "fractions": [1, 0, 0]}
    hot = load_own(write(tmp_path / "t.csv", rows), columns=mapping).features()
    expected = [int(5 * keyed_uniform([f"city\0{row['city'] or '(missing)'}"], CATEGORY_KEY)[0]) for row in rows]
    assert hot.shape == (6, 5)
    assert hot.argmax(axis=1).tolist() == expected
    fewer = load_own(write(tmp_path / "fewer.csv", rows[:2]), columns=mapping).features()
    assert (fewer == hot[:2]).all()
    wide = load_own(tmp_path / "t.csv", columns=mapping | {"num_buckets": None})
    assert wide.features().shape == (6, 32)
    assert wide.feature_names[0] == "city#00"


@pytest.mark.parametrize(
    ("labels", "extra", "classes"),
    [
        (["no", "yes"], {}, ("no", "yes")),
        (["no", "yes"], {"positive": "no"}, ("yes", "no")),
        ([0, 1], {"positive": 0}, ("1", "0")),
        ([1.0, 2.0], {"positive": 1}, ("2", "1")),
        ([True, False], {"positive": True}, ("false", "true")),
        ([10, 9], {}, ("9", "10")),
        (["b", 2, 10], {}, ("2", "10", "b")),
        (["low", "high"], {"classes": ["low", "middle", "high"]}, ("low", "middle", "high")),
        (["low", "high"], {"classes": ["low", "high"], "positive": "low"}, ("high", "low")),
    ],
)
def test_classes(labels: list[Any], extra: dict[str, Any], classes: tuple[str, ...], tmp_path: Path) -> None:
    rows = [{"n": row, "y": label, "part": "train"} for row, label in enumerate(labels)]
    path = write(tmp_path / "t.jsonl", rows)
    examples = load_own(path, columns={"label": "y", "numeric": ["n"], "split": "part"} | extra)
    assert examples.classes == classes
    names = [str(label).lower().removesuffix(".0") for label in labels]
    assert [examples.classes[code] for code in examples.labels] == names


def test_sensitive_as_one_mapping_or_one_name(table: Path) -> None:
    mapping = TABLE | {"split": "part"}
    both = load_own(table, columns=mapping | {"sensitive": {"age": [30], "sex": None}})
    assert both.sensitive_names == ("age", "sex")
    assert both.sensitive("age").tolist() == ["under 30", "30 or over", "30 or over", "under 30"]
    assert load_own(table, columns=mapping | {"sensitive": "sex"}).sensitive_names == ("sex",)


def test_an_unmeasured_sensitive_number_is_an_unknown_group(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [row | {"score": score} for row, score in zip(ROWS, [1, None, 3, 4], strict=True)])
    examples = load_own(path, columns=TABLE | {"split": "part", "sensitive": {"score": [2]}})
    assert examples.sensitive("score").tolist() == ["under 2", None, "2 or over", "2 or over"]


def test_risk_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [row | {"risk": risk} for row, risk in zip(ROWS, [0, 0.5, 1, 0.25], strict=True)])
    frame = load_own(path, columns=TABLE | {"split": "part", "risk": "risk"}).frame
    assert frame["risk"].tolist() == [0.0, 0.5, 1.0, 0.25]
    with pytest.raises(DataError, match=r"rows have a risk outside \[0, 1\]"):
        load_own(path, columns=TABLE | {"split": "part", "risk": "age"})


@pytest.mark.parametrize("synonym", ["val", "VALID", "validation", "dev", "calibration", "cal"])
def test_synonyms_of_calibration(synonym: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", changed(2, part=synonym))
    assert load_own(path, columns=TABLE | {"split": "part"}).frame["split"].iloc[2] == "calibration"


@pytest.mark.parametrize(
    ("row", "cells", "mapping", "message"),
    [
        (2, {"id": "a"}, TABLE, r"people: 1 of 4 rows repeat an earlier id in column 'id'; the first is example 'a'"),
        (2, {"id": None}, TABLE, r"people: 1 of 4 rows hold nothing in column 'id'; .*'people-000003'"),
        (1, {"paid": None}, TABLE, r"people: 1 of 4 rows hold nothing in column 'paid'; .*'b'"),
        (1, {"age": None}, TABLE, r"people: 1 of 4 rows hold no finite number in column 'age'; .*'b'"),
        (1, {"age": "1e60"}, TABLE, r"people: 1 of 4 rows hold a number beyond single precision .*'b'"),
        (1, {"note": None}, TEXT, r"people: 1 of 4 rows hold no text in column 'note'; .*'b'"),
        (1, {"note": "   "}, TEXT, r"people: 1 of 4 rows hold no text in column 'note'; .*'b'"),
        (3, {"part": "later"}, TEXT, r"people: 1 of 4 rows hold something other than train.*'part'; .*'d'"),
        (3, {"who": None}, TABLE | {"subject_id": "who"}, r"people: 1 of 4 rows hold nothing in column 'who'; .*'d'"),
        (3, {"sex": "x"}, TABLE | {"sensitive": {"sex": [1]}}, r"people: 3 of 3 rows hold no finite number .*'sex'"),
        (3, {"job": "spy"}, TABLE | {"categorical": ["job"], "categories": {"job": ["clerk", "cook"]}},
         r"people: 1 of 4 rows hold an unlisted category in column 'job', such as 'spy'; .*'d'"),
        (3, {"paid": "maybe"}, TABLE | {"classes": ["no", "yes"]},
         r"people: 1 of 4 rows have a label outside no, yes in column 'paid'; .*'d'"),
        (3, {"paid": "maybe"}, TABLE | {"positive": "yes"}, r"to be one of two labels, got 'yes' .*data\.columns"),
        (3, {}, TABLE | {"positive": "Yes"}, r"positive to be one of two labels, got 'Yes' for the labels no, yes"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(
    row: int, cells: dict[str, Any], mapping: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load_own(write(tmp_path / "people.csv", changed(row, **cells)), columns=mapping)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"numeric": ["age"]}, r"expected the name of the label's column\. Set data\.columns\.label"),
        ({"label": "???", "numeric": ["age"]}, r"Set data\.columns\.label"),
        ({"label": "paid"}, "expected either text, or numeric and categorical, got neither"),
        (TABLE | {"text": "note"}, "expected either text, or numeric and categorical, got both"),
        (TABLE | {"lable": "paid"}, "columns: unknown key 'lable'; did you mean 'label'"),
        (TABLE | {"label": "payd"}, r"people\.csv: unknown column 'payd'; did you mean 'paid'"),
        (TABLE | {"numeric": "age"}, r"columns\.numeric: expected a list, got 'age'\. Write \[age\]"),
        (TABLE | {"numeric": ["age", ""]}, r"columns\.numeric: expected a name, got ''"),
        (TABLE | {"categorical": ["age"]}, "'age' is both numeric and categorical"),
        (TABLE | {"categories": {"job": ["a"]}}, r"columns\.categories: unknown column 'job'; known: none"),
        (TABLE | {"categories": ["a"]}, r"columns\.categories: expected a mapping from column to list"),
        (TABLE | {"num_buckets": 0}, "expected num_buckets of at least 1, got 0"),
        (TABLE | {"num_buckets": "8"}, r"columns\.num_buckets: expected a whole number, got '8'"),
        (TABLE | {"sensitive": {"age": 25}}, r"columns\.sensitive\.age: expected a list of numbers to cut at, got 25"),
        (TABLE | {"sensitive": {"age": [60, 25]}}, "at least one cut, in ascending order"),
        (TABLE | {"fractions": [0.5, 0.1, 0.1]}, "three fractions for train, calibration, test that sum to 1"),
        (TABLE | {"fractions": {"train": 1, "tset": 0}}, r"fractions: unknown split 'tset'; did you mean 'test'"),
    ],
)  # fmt: skip
def test_bad_mappings_are_named(mapping: dict[str, Any], message: str, table: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_own(table, columns=mapping)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is empty: expected a header line"),
        ("t.csv", b"id,n,y\n", "t.csv holds no rows"),
        ("t.csv", b"id,n,y\na,1,0\nb,2\n", r"t.csv is not well-formed CSV: .*Row #3: Expected 3 columns, got 2"),
        ("t.csv", b"id,n,n\na,1,0\n", "the header names column 'n' more than once"),
        ("t.csv", "id,n,y\na,1,0\nb,2,caf\u00e9\n".encode("latin-1"), r"t.csv: line 3 is not UTF-8 \(byte 0xe9\)"),
        (
            "t.csv",
            "id,n,y\na,1,0\n".encode("utf-16"),
            r"t.csv: line 1 is not UTF-8 \(byte 0xff\)\. Save the file as UTF-8",
        ),
        ("t.csv", b"id,n,y\na,1,no\nb,2,no\n", r"expected two labels or more in column 'y', got \['no'\]"),
        ("t.jsonl", b'{"id": "a", "n": 1, "y": 0}\n{"id": \n', "t.jsonl: line 2 is not JSON: .* at column"),
        ("t.jsonl", b'{"id": "a", "n": 1, "y": 0}\n\n[1]\n', "expected a JSON object on line 3, got list"),
        ("t.jsonl", b"\n\n", "t.jsonl holds no rows"),
        ("t.jsonl", b'{"id": ["a"], "n": 1, "y": 0}', r"1 of 1 rows hold a list, an object or bytes in column 'id'"),
        ("t.parquet", b"PAR1 not", "t.parquet is not a readable Parquet file"),
        ("t.xlsx", b"", r"expected a file ending in \.csv, \.jsonl, \.parquet, got '\.xlsx'"),
        ("t", b"", "expected a file ending in .*, got 'no ending'"),
    ],
)
def test_bad_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_own(tmp_path / name, columns={"example_id": "id", "numeric": ["n"], "label": "y"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected a data file at .*none\.csv; no such file"):
        load_own(tmp_path / "none.csv", columns=TABLE)


def test_a_parquet_file_without_the_column_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown column 'ages'; did you mean 'age'"):
        load_own(write(tmp_path / "t.parquet", ROWS), columns=TABLE | {"numeric": ["ages"]})


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(line_end: str, tmp_path: Path) -> None:
    lines = ["id,n,y,part", "a,1,no,train", "b,2,yes,train", ""]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + line_end.join(lines).encode())
    frame = load_own(
        tmp_path / "t.csv", columns={"example_id": "id", "numeric": ["n"], "label": "y", "split": "part"}
    ).frame
    assert frame["example_id"].tolist() == ["a", "b"]
    assert frame["split"].tolist() == ["train", "train"]


def test_a_very_long_text_is_read(tmp_path: Path) -> None:
    rows = [{"note": "long " * 500_000, "y": 0, "part": "train"}, {"note": "short", "y": 1, "part": "train"}]
    path = write(tmp_path / "t.csv", rows)
    texts = load_own(path, columns={"text": "note", "label": "y", "split": "part"}).frame["text"]
    assert [len(text) for text in texts] == [2_500_000, 5]


def test_blanks_around_ids_are_no_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,n,y,part\n a ,1,no,train\nb,2, yes,train \n")
    examples = load_own(path, columns={"example_id": "id", "numeric": ["n"], "label": "y", "split": "part"})
    assert examples.example_ids == ["a", "b"]
    assert examples.classes == ("no", "yes")
    path.write_text("id,n,y,part\na ,1,no,train\na,2, yes,train \n")
    with pytest.raises(DataError, match="repeat an earlier id"):
        load_own(path, columns={"example_id": "id", "numeric": ["n"], "label": "y", "split": "part"})


def test_whole_numbers_with_gaps_stay_whole_in_parquet(tmp_path: Path) -> None:
    rows = [{"id": 7, "n": 1, "y": 0, "g": 3}, {"id": 8, "n": 2, "y": 1, "g": None}]
    path = write(tmp_path / "t.parquet", rows)
    mapping = {"example_id": "id", "numeric": ["n"], "label": "y", "sensitive": ["g"], "fractions": [1, 0, 0]}
    examples = load_own(path, columns=mapping)
    assert examples.example_ids == ["7", "8"]
    assert examples.sensitive("g").tolist() == ["3", None]
    assert examples.features().dtype == np.float32
