from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fairsisa.data.columns import SPLIT_KEY, keyed_uniform
from fairsisa.data.sources import SourceFile
from fairsisa.data.tabular import build_examples, load_tabular
from fairsisa.data.tabular_specs import (
    ADULT,
    COMPAS,
    GERMAN_CREDIT,
    SPECS,
    SensitiveColumn,
    TableFile,
    TableSpec,
    drop_identifying_columns,
)
from fairsisa.errors import ChecksumError, DataError
from fairsisa.tables import Examples

SPEC_OF = {spec.name: spec for spec in SPECS}
IDENTIFYING = ("name", "first", "last", "dob", "c_case_number", "r_case_number", "vr_case_number")
ROWS = {
    "adult": 32_561 + 16_281, "compas": 6_172, "german_credit": 1_000, "bank_marketing": 40_004, "law_school": 20_798,
    "dutch_census": 60_420, "credit_card_default": 30_000,
}  # fmt: skip
POSITIVE = {
    "adult": lambda row: row["income"].startswith(">50K"),
    "compas": lambda row: row["two_year_recid"] == "1",
    "german_credit": lambda row: row["credit"] == "1",
    "bank_marketing": lambda row: row["y"] == "yes",
    "law_school": lambda row: float(row["pass_bar"]) == 1,
    "dutch_census": lambda row: row["occupation"] == "1",
    "credit_card_default": lambda row: row["default payment"] == "1",
}
SEX: dict[str, Callable[[dict[str, str]], str]] = {
    "adult": lambda row: row["sex"],
    "compas": lambda row: row["sex"],
    "german_credit": lambda row: "female" if row["personal_status"] in ("A92", "A95") else "male",
    "law_school": lambda row: "male" if float(row["male"]) else "female",
    "dutch_census": lambda row: row["sex"],
    "credit_card_default": lambda row: ["male", "female"][int(row["SEX"]) - 1],
}


@pytest.fixture(scope="module", params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def examples(name: str, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return load_tabular(SPEC_OF[name], root=data_root, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def rows(name: str, data_root: Path) -> list[dict[str, str]]:
    return [row for file in SPEC_OF[name].files for row in read_by_hand(name, data_root / file.source.path)]


def read_by_hand(name: str, path: Path) -> list[dict[str, str]]:
    stored = path.read_bytes()
    text = (gzip.decompress(stored) if path.suffix == ".gz" else stored).decode("ascii")
    lines = text.splitlines()
    if name == "adult":
        cells = [line.replace(", ", ",").split(",") for line in lines if line and not line.startswith("|")]
        return [dict(zip(ADULT.header, row, strict=True)) for row in cells]
    found = list(csv.DictReader(io.StringIO(text)))
    if name != "compas":
        return found
    screened = [
        row for row in found if row["days_b_screening_arrest"] and abs(int(row["days_b_screening_arrest"])) <= 30
    ]
    return [
        row for row in screened
        if row["is_recid"] != "-1" and row["c_charge_degree"] != "O" and row["score_text"] != "N/A"
    ]  # fmt: skip


@pytest.mark.real_data
def test_rows_and_base_rates_agree_with_a_second_reader(
    name: str, examples: Examples, rows: list[dict[str, str]]
) -> None:
    assert len(examples) == len(rows) == ROWS[name] == SPEC_OF[name].num_examples
    assert examples.labels.tolist() == [int(POSITIVE[name](row)) for row in rows]
    if name in SEX:
        assert examples.sensitive("sex").tolist() == [SEX[name](row) for row in rows]


@pytest.mark.real_data
def test_features_agree_with_a_second_reader(name: str, examples: Examples, rows: list[dict[str, str]]) -> None:
    spec, frame = SPEC_OF[name], examples.frame
    for column in spec.numeric:
        assert (frame[f"feature:{column}"] == np.asarray([float(row[column]) for row in rows], dtype=np.float32)).all()
    for column, categories in spec.categorical.items():
        hot = frame[[f"feature:{column}={value}" for value in categories]].to_numpy()
        assert (hot.sum(axis=1) == 1).all()
        assert np.asarray(categories)[hot.argmax(axis=1)].tolist() == [row[column] for row in rows]
    num_features = len(spec.numeric) + sum(map(len, spec.categorical.values()))
    assert examples.features().shape == (len(rows), num_features)


@pytest.mark.real_data
def test_splits_are_official_or_by_the_keyed_hash(name: str, examples: Examples) -> None:
    draw = keyed_uniform(examples.frame["subject_id"].tolist(), SPLIT_KEY)
    expected = np.select([draw < 0.6, draw < 0.8], ["train", "calibration"], "test")
    if name == "adult":
        in_test_file = np.arange(len(examples)) >= 32_561
        expected = np.where(in_test_file, "test", np.where(draw < 0.8, "train", "calibration"))
    assert (examples.frame["split"] == expected).all()


@pytest.mark.real_data
def test_sensitive_columns_can_be_kept_from_the_model(
    name: str, examples: Examples, data_root: Path, tmp_path: Path
) -> None:
    hidden = load_tabular(SPEC_OF[name], root=data_root, cache=tmp_path, drop_sensitive=True)
    columns = {rule.column for rule in SPEC_OF[name].sensitive.values()}
    gone = set(examples.feature_names) - set(hidden.feature_names)
    assert {feature.split("=")[0] for feature in gone} == columns & {f.split("=")[0] for f in examples.feature_names}
    assert {feature.split("=")[0] for feature in hidden.feature_names}.isdisjoint(columns)
    assert hidden.sensitive_names == examples.sensitive_names


@pytest.mark.real_data
def test_education_says_nothing_beyond_its_number(data_root: Path) -> None:
    rows = [row for file in ADULT.files for row in read_by_hand("adult", data_root / file.source.path)]
    pairs = {(row["education"], row["education-num"]) for row in rows}
    assert len(pairs) == len({text for text, _ in pairs}) == len({number for _, number in pairs}) == 16


@pytest.mark.real_data
def test_groups_of_compas_and_german_credit(data_root: Path, tmp_path: Path) -> None:
    compas = load_tabular(COMPAS, root=data_root, cache=tmp_path)
    assert Counter(compas.sensitive("race")) == {
        "African-American": 3_175, "Caucasian": 2_103, "Hispanic": 509, "Other": 343 + 31 + 11,
    }  # fmt: skip
    assert compas.frame["subject_id"].is_unique
    assert compas.frame["subject_id"].iloc[:3].tolist() == ["1", "3", "4"]
    german = load_tabular(GERMAN_CREDIT, root=data_root, cache=tmp_path)
    assert Counter(german.sensitive("age")) == {"under 25": 149, "25 or over": 851}
    assert german.example_ids[0] == "german_credit-00001"


@pytest.mark.real_data
def test_example_ids_name_file_and_row(data_root: Path, tmp_path: Path) -> None:
    ids = load_tabular(ADULT, root=data_root, cache=tmp_path).example_ids
    assert (ids[0], ids[32_560], ids[32_561], ids[-1]) == (
        "adult-train-00001", "adult-train-32561", "adult-test-00001", "adult-test-16281",
    )  # fmt: skip
    compas = load_tabular(COMPAS, root=data_root, cache=tmp_path)
    assert compas.example_ids[-1] == "compas-07214"


@pytest.mark.real_data
def test_the_identifying_columns_of_compas_are_dropped_byte_for_byte(data_root: Path) -> None:
    kept = gzip.decompress((data_root / COMPAS.files[0].source.path).read_bytes())
    rows = list(csv.reader(io.StringIO(kept.decode(), newline="")))
    for offset, column in enumerate(IDENTIFYING):
        for number, row in enumerate(rows):
            row.insert(1 + 5 * offset, 'de "la" Cruz, J.' if number else column)
    upstream = io.StringIO(newline="")
    csv.writer(upstream, lineterminator="\n").writerows(rows)
    assert upstream.getvalue().encode() != kept
    assert drop_identifying_columns(upstream.getvalue().encode()) == kept
    assert drop_identifying_columns(kept) == kept


@pytest.mark.real_data
def test_compas_is_read_from_its_original_file_too(data_root: Path, tmp_path: Path) -> None:
    kept = gzip.decompress((data_root / COMPAS.files[0].source.path).read_bytes()).decode()
    original = tmp_path / "compas" / "compas-scores-two-years.csv"
    original.parent.mkdir()
    head, *lines = kept.splitlines()
    original.write_text("\n".join(["name," + head, *("jane roe," + line for line in lines), ""]))
    with_names, without = (load_tabular(COMPAS, root=root, cache=tmp_path) for root in (tmp_path, data_root))
    assert with_names.frame.equals(without.frame)
    original.write_text(original.read_text() + "jane roe,1\n")
    with pytest.raises(ChecksumError, match=r"compas-scores-two-years\.csv: expected content with sha256:a5e5c34b"):
        load_tabular(COMPAS, root=tmp_path, cache=tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b'a,b\n"c'])
def test_what_is_no_table_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="compas: the file is no CSV table"):
        drop_identifying_columns(content)
    assert drop_identifying_columns(b"") == b""


MADE = TableSpec(
    name="made",
    files=(
        TableFile(
            SourceFile("made.csv", "https://example.org/made.csv", "sha256:" + "0" * 64), fractions=(1.0, 0.0, 0.0)
        ),
    ),
    numeric=("age",),
    categorical={"job": ("clerk", "?")},
    label="paid",
    labels={"no": 0, "yes": 1},
    classes=("no", "yes"),
    sensitive={"sex": SensitiveColumn("sex", {"1": "male", "2": "female"}), "age": SensitiveColumn("age", cuts=(30,))},
    num_examples=2,
)
GOOD = b"age,job,sex,paid\n20,clerk,1,no\n40,?,2,yes\n"


def test_a_made_table_in_full() -> None:
    examples = build_examples(MADE, [GOOD])
    assert examples.frame.to_dict("list") == {
        "example_id": ["made-00001", "made-00002"],
        "subject_id": ["made-00001", "made-00002"],
        "label": [0, 1],
        "split": ["train", "train"],
        "feature:age": [20.0, 40.0],
        "feature:job=clerk": [1.0, 0.0],
        "feature:job=?": [0.0, 1.0],
        "sensitive:sex": ["male", "female"],
        "sensitive:age": ["under 30", "30 or over"],
    }
    assert build_examples(MADE, [GOOD], drop_sensitive=True).feature_names == ("job=clerk", "job=?")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            b"clerk",
            b"baker",
            r"made: 1 of 2 rows hold an unlisted category in column 'job', such as 'baker'; .*made-00001",
        ),
        (
            b"40",
            b"forty",
            r"made: 1 of 2 rows hold no finite number in column 'age'; the first is example 'made-00002'",
        ),
        (b"yes", b"maybe", r"made: 1 of 2 rows have a label other than no, yes in column 'paid'; .*made-00002"),
        (b"?,2", b"?,3", r"made: 1 of 2 rows hold an unlisted value in column 'sex', such as '3'; .*made-00002"),
        (b"job", b"jobs", r"made: unknown column in the specification 'job'; did you mean 'jobs'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_examples(MADE, [GOOD.replace(old, new)])


def test_nothing_is_learnt_from_other_rows() -> None:
    alone = build_examples(replace(MADE, labels={"no": 0, "yes": 1}), [GOOD]).frame.iloc[:1]
    more = build_examples(MADE, [GOOD + b"90,clerk,2,yes\n" * 50]).frame.iloc[:1]
    assert alone.equals(more)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_specifications_are_consistent(spec: TableSpec) -> None:
    assert not set(spec.numeric) & set(spec.categorical)
    assert spec.label not in {*spec.numeric, *spec.categorical}
    assert set(spec.labels.values()) == {0, 1}
    for categories in spec.categorical.values():
        assert len(set(categories)) == len(categories)
    for rule in spec.sensitive.values():
        assert rule.cuts or rule.column in spec.categorical
        assert not rule.names or set(rule.names) == set(spec.categorical[rule.column])
    for file in spec.files:
        assert file.source.url.startswith("https://raw.githubusercontent.com/")
        assert file.source.path.split("/")[0] == spec.name
