from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairsisa.data.corpora import CORPORA, list_corpora, load_corpus
from fairsisa.errors import DataError
from fairsisa.tables import read_examples, write_examples

CONF = Path(__file__).resolve().parents[1] / "conf" / "data"
YAMLS = sorted(CONF.glob("*.yaml"))
EXPECTED = {
    "hatexplain", "hatexplain_three_class", "adult", "compas", "german_credit", "bank_marketing", "law_school",
    "dutch_census", "credit_card_default", "own_table", "own_text", "synthetic_text", "synthetic_tabular",
    "toxicity", "regard",
}  # fmt: skip


def config_of(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_a_config_is_shipped_for_every_corpus() -> None:
    assert {path.stem for path in YAMLS} == EXPECTED
    assert {config_of(path)["name"] for path in YAMLS} == set(CORPORA)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_config_opens_with_a_sentence_and_lists_every_option(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")
    config = config_of(path)
    assert set(config.get("options", {})) == set(CORPORA[config["name"]].options)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "path", [path for path in YAMLS if not path.stem.startswith("own_")], ids=lambda path: path.stem
)
def test_a_shipped_config_loads(path: Path, data_root: Path, tmp_path: Path) -> None:
    config = config_of(path)
    examples = load_corpus(config, root=data_root, cache=tmp_path)
    info = CORPORA[config["name"]]
    assert examples.name == info.name
    assert examples.is_text == (info.kind == "text")
    assert info.num_examples in (None, len(examples))
    assert set(examples.frame["split"]) == {"train", "calibration", "test"}
    assert len(examples.sensitive_names) >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["hatexplain", "german_credit"])
def test_a_corpus_survives_the_way_to_disk(name: str, data_root: Path, tmp_path: Path) -> None:
    examples = load_corpus({"name": name}, root=data_root, cache=tmp_path)
    write_examples(examples, tmp_path / "examples.parquet")
    again = read_examples(tmp_path / "examples.parquet")
    assert (again.name, again.classes, again.example_ids) == (examples.name, examples.classes, examples.example_ids)
    for sensitive in examples.sensitive_names:
        assert again.sensitive(sensitive).tolist() == examples.sensitive(sensitive).tolist()


@pytest.mark.parametrize("stem", ["own_table", "own_text"])
def test_the_users_own_file_loads_by_filling_in_the_shipped_config(stem: str, tmp_path: Path) -> None:
    with (tmp_path / "mine.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["person", "n", "words", "answer", "part", "sex"])
        writer.writerows([i // 2, i, f"text {i}", i % 2, "train" if i < 8 else "test", "fm"[i % 2]] for i in range(12))
    config = config_of(CONF / f"{stem}.yaml")
    config["path"] = str(tmp_path / "mine.csv")
    config["columns"] |= {"label": "answer", "subject_id": "person", "sensitive": ["sex"], "split": "part"}
    config["columns"] |= {"text": "words"} if stem == "own_text" else {"numeric": ["n"]}
    examples = load_corpus(config, cache=tmp_path / "cache")
    assert (examples.name, len(examples), examples.is_text) == ("mine", 12, stem == "own_text")
    assert examples.frame["subject_id"].tolist() == [str(i // 2) for i in range(12)]


@pytest.mark.parametrize("stem", ["own_table", "own_text"])
def test_an_unfilled_config_says_what_to_fill_in(stem: str, tmp_path: Path) -> None:
    config = config_of(CONF / f"{stem}.yaml")
    with pytest.raises(DataError, match=r"data\.path: expected the path .*Set data\.path"):
        load_corpus(config, cache=tmp_path)
    with pytest.raises(DataError, match=r"Set data\.columns\.label"):
        load_corpus(config | {"path": "mine.csv"}, cache=tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "adults"}, r"data\.name: unknown corpus 'adults'; did you mean 'adult'"),
        ({}, r"data\.name: unknown corpus 'None'; known: adult"),
        ({"name": "adult", "option": {}}, "data: unknown key 'option'; did you mean 'options'"),
        (
            {"name": "adult", "options": {"drop_sensitiv": True}},
            "data.options of adult: unknown option 'drop_sensitiv'; did",
        ),
        ({"name": "adult", "options": {"spec": 1}}, "unknown option 'spec'"),
        ({"name": "adult", "options": {"root": "/"}}, "unknown option 'root'"),
        ({"name": "adult", "options": {"drop_sensitive": "no"}}, r"drop_sensitive of adult: expected bool, got 'no'"),
        ({"name": "adult", "options": ["a"]}, r"data\.options: expected a mapping, got \['a'\]"),
        ({"name": "adult", "path": "a.csv"}, r"data\.path: only the corpus 'own' takes it, not 'adult'"),
        ({"name": "adult", "columns": {"label": "x"}}, r"data\.columns: only the corpus 'own' takes it"),
        ({"name": "synthetic_text", "options": {"seed": True}}, r"seed of synthetic_text: expected int, got True"),
        ({"name": "synthetic_text", "options": {"repeat_share": "x"}}, r"repeat_share .*: expected float, got 'x'"),
        ({"name": "hatexplain", "options": {"task": "toxic"}}, "expected a task of binary, three_class, got 'toxic'"),
        ({"name": "own", "path": "none.csv", "columns": {"label": "y", "text": "t"}}, r"none\.csv; no such file"),
    ],
)
def test_a_wrong_config_is_named(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_corpus(config, cache=tmp_path)


def test_options_reach_the_loader(tmp_path: Path) -> None:
    options = {"num_examples": 300, "seed": 1, "repeat_share": 0, "fractions": [0.5, 0.25, 0.25], "world": None}
    examples = load_corpus({"name": "synthetic_tabular", "options": options}, cache=tmp_path)
    assert len(examples) == 300
    assert examples.frame["subject_id"].is_unique


def test_the_list_has_a_row_per_corpus() -> None:
    rows = list_corpora()
    assert [row["name"] for row in rows] == list(CORPORA)
    assert all(row[key] for row in rows for key in ("kind", "examples", "licence", "summary"))
    assert {row["examples"] for row in rows if row["name"] == "adult"} == {"48,842"}
    assert all(info.citation for info in CORPORA.values())


def test_loading_corpora_needs_no_torch() -> None:
    code = "import sys, fairsisa.data.corpora; print(sorted({'torch', 'hydra', 'omegaconf'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
