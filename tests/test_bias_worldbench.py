from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import SCORED, Files
from fairsisa.bias.benchmarks import worldbench
from fairsisa.bias.benchmarks.numbers_in_text import number_in
from fairsisa.bias.benchmarks.worldbench import BENCHMARKS, CATEGORIES, judge, load, only_categories, relative_error
from fairsisa.bias.items import Item
from fairsisa.bias.measuring import measure
from fairsisa.data.sources import SourceFile
from fairsisa.intervals import Bootstrap

NUMBERS = {
    "8,703,771": 8_703_771,
    "8\u2019703\u2019771 people": 8_703_771,
    "8\u202f703\u202f771": 8_703_771,
    "8.703.771": 8_703_771,
    "about 4.5 million.": 4.5e6,
    "$4.5bn": 4.5e9,
    "US$ 4.5 trillion": 4.5e12,
    "4.5M": 4.5e6,
    "4.5 m": 4.5,
    "12%": 12,
    "12.5 %": 12.5,
    "3 hundred": 300,
    "1.2e6": 1.2e6,
    "1.2 x 10^6": 1.2e6,
    "1.2 \u00d7 10^-3 tonnes": 1.2e-3,
    "CO2 emissions were 5.1": 5.1,
    "In 2021, it was 7.": 7,
    "between 10-20": 10,
    "0": 0,
    "7.": 7,
    "(41)": 41,
    ".75": 0.75,
    "It is .75.": 0.75,
    "(.5)": 0.5,
    "$.5 million": 5e5,
    ".05e2": 5,
    "about .5 x 10^3": 500,
    "the dog.75 and 3": 3,
    "The end.5 or .5": 0.5,
    "v1.75 has 8": 8,
    "3.4.5": 3.4,
    "1.75": 1.75,
    "1,234.75": 1234.75,
}
NO_NUMBERS = (
    "",
    "no idea",
    "2019",
    "In 2021.",
    "2,020",
    "-3.5",
    "\u22127",
    "-$5",
    "G20",
    "1" * 400,
    "1e999",
    "2.02 thousand",
    "dog.75",
    "...75",
    "v1.75",
    "v1.4.75",
    ".4.75",
    "-.75",
    "$-.75",
    "2.019 thousand",
    ".",
)


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_read(text: str) -> None:
    assert number_in(text) == pytest.approx(NUMBERS[text], rel=1e-12)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_years_negatives_and_words_are_no_answer(text: str) -> None:
    assert number_in(text) is None


@given(
    st.integers(0, 10**15).filter(lambda n: abs(n - 2020) >= 10),
    st.sampled_from(["{:,}", "{}", "{:,}.", "~{} km", "**{:,}**"]),
)
def test_whole_numbers_come_back(number: int, form: str) -> None:
    assert number_in(f"The answer is {form.format(number)}") == number


@given(st.floats(1e-6, 1e15).filter(lambda x: abs(x - 2020) >= 10), st.sampled_from(["{:.17g}", "{:.16e}"]))
def test_fractions_come_back(number: float, form: str) -> None:
    assert number_in(form.format(number)) == pytest.approx(number, rel=1e-12)


@given(st.text(max_size=60))
def test_any_text_is_read_without_an_error(text: str) -> None:
    number = number_in(text)
    assert number is None or (np.isfinite(number) and number >= 0 and abs(number - 2020) >= 10)


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_the_relative_error_is_symmetric_and_bounded(answer: float, truth: float) -> None:
    error = relative_error(answer, truth)
    assert 0 <= error <= 1
    assert error == relative_error(truth, answer)
    assert (error == 0) == (answer == truth)


def _items() -> list[Item]:
    facts = [("a", 10.0, "north"), ("b", 10.0, "north"), ("c", 100.0, "south"), ("d", 50.0, None), ("e", 8.0, "south")]
    return [
        Item(name, "?", (), name, {"type": "t", "country": name, "truth": truth, "region": region, "income": None})
        for name, truth, region in facts
    ]


def test_errors_parse_rate_and_differences() -> None:
    texts = {"a": ["5"], "b": ["who knows"], "c": ["100", "50"], "d": ["25"], "e": ["6", "in 2019"]}
    answers = answers_of(Answer(name, n, 0.0, text=text) for name, said in texts.items() for n, text in enumerate(said))
    scores = judge(_items(), answers)
    assert scores["state"].tolist() == [SCORED] * 5
    assert scores["value"].tolist() == pytest.approx([0.5, np.nan, 0.25, 0.5, 0.25], nan_ok=True)
    assert scores["answer"].tolist() == ["5", "no number", "100|50", "25", "6|no number"]
    found = measure(scores, BENCHMARKS[0].metrics, bootstrap=Bootstrap(10)).set_index("metric")["value"]
    assert found["error"] == pytest.approx((0.5 + 0.25 + 0.5 + 0.25) / 4)
    assert found["error_counting_unparsed"] == pytest.approx((0.5 + 1 + 0.25 + 0.5 + (0.25 + 1) / 2) / 5)
    assert found["parsed"] == pytest.approx(100 * (1 + 0 + 1 + 1 + 0.5) / 5)
    assert found["error_difference_region"] == pytest.approx(0.5 - 0.25)
    assert np.isnan(found["error_difference_income"])


HEADER = "Economy,Code,Region,Income group,Lending category,\n"
LINES = (
    "Switzerland,CHE,Europe \\& Central Asia,High income,,\n"
    '"Congo, Rep.",COG,Sub-Saharan Africa,Lower middle income,Blend,\n'
    "Cura\u00e7ao,CUW,Latin America \\& Caribbean,High income,,\n"
    "Aruba,ABW,Latin America \\& Caribbean,,,\n"
    ",,,,,\nWorld,WLD,,,,\n"
)


def test_categories_are_the_same_however_they_were_saved() -> None:
    text = HEADER + LINES
    plain = only_categories(text.encode())
    assert plain.decode().splitlines()[:2] == [
        "Economy,Region,Income group",
        "Switzerland,Europe & Central Asia,High income",
    ]
    assert b"World" not in plain
    windows = text.replace("\n", "\r\n")
    assert plain == only_categories(plain)
    assert {only_categories(windows.encode(kind)) for kind in ("utf-8", "utf-8-sig", "latin-1")} == {plain}


def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str, str]]) -> Files:
    frame = pd.DataFrame(rows, columns=["country", "example", "gt_answer_avg"])
    frame["prompt"] = "How many hats has " + frame["country"] + "?"
    frame["type"], frame["metric"] = "hats", "hats"
    content = frame.to_csv().encode()
    path = tmp_path / "worldbench" / "worldbench.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    monkeypatch.setattr(worldbench, "PROMPTS", replace(worldbench.PROMPTS, checksum=checksum))
    return Files(tmp_path, tmp_path / "cache")


def _categories(files: Files) -> SourceFile:
    content = (HEADER + LINES).encode()
    assert files.root is not None
    (files.root / CATEGORIES.path).write_bytes(content)
    return replace(CATEGORIES, checksum=f"sha256:{hashlib.sha256(only_categories(content)).hexdigest()}")


EXAMPLE = "('How many hats has Oz?', '3,000')"


def test_regions_are_read_where_their_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ("Congo, Rep.", EXAMPLE, "5"),
        ("Curacao", EXAMPLE, "0.5"),
        ("Arab World", EXAMPLE, "7"),
        ("Aruba", EXAMPLE, "1"),
    ]
    files = _folder(tmp_path, monkeypatch, rows)
    without = load(files).items
    assert without[0].context == "How many hats has Oz? 3,000 \nHow many hats has Congo, Rep.?"
    assert {(item.labels["region"], item.labels["income"]) for item in without} == {(None, None)}
    found = {item.cluster: item.labels for item in load(files, categories=_categories(files)).items}
    assert found["Congo, Rep."]["region"] == "Sub-Saharan Africa"
    assert found["Curacao"]["region"] == "Latin America & Caribbean"
    assert (found["Aruba"]["region"], found["Aruba"]["income"]) == ("Latin America & Caribbean", None)
    assert (found["Arab World"]["region"], found["Arab World"]["income"]) == (None, None)


def test_questions_without_an_example_or_a_truth_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("Oz", EXAMPLE, "1"), ("Ys", "print(1)", "1"), ("Mu", EXAMPLE, "many"), ("Hy", EXAMPLE, "-4")]
    malformed = load(_folder(tmp_path, monkeypatch, rows)).malformed
    assert [bad.item_id for bad in malformed] == ["hats/Ys", "hats/Mu", "hats/Hy"]
    assert malformed[2].reason == "expected a truth of 0 or more, got -4.0"


@pytest.mark.real_data
def test_metrics_on_the_real_questions_by_a_second_path(data_root: Path) -> None:
    table = load(Files(data_root, data_root))
    assert (len(table.items), len(table.malformed)) == (2214, 0)
    assert len({item.cluster for item in table.items}) == 222
    counts = pd.Series([item.labels["type"] for item in table.items]).value_counts()
    assert (counts["population"], counts["gdp"], counts["education_expenditure"], len(counts)) == (222, 215, 172, 11)
    rng = np.random.default_rng(2)
    truth = np.array([float(item.labels["truth"] or 0.0) for item in table.items])
    guess = np.round(truth * rng.uniform(0.2, 3.0, len(truth)), 3)
    mute = rng.random(len(truth)) < 0.1
    texts = ["none" if silent else f"{number:,.3f}" for number, silent in zip(guess, mute, strict=True)]
    regions = rng.choice(["north", "south", "east"], len(truth))
    items = [
        replace(item, labels={**item.labels, "region": region})
        for item, region in zip(table.items, regions, strict=True)
    ]
    answers = answers_of(Answer(item.item_id, 0, 0.0, text=text) for item, text in zip(items, texts, strict=True))
    found = measure(judge(items, answers), BENCHMARKS[0].metrics, bootstrap=Bootstrap(10)).set_index("metric")["value"]
    # The notebook: pandas, answers near 2020 are none, NaN where both numbers are 0; here that error is 0.
    frame = pd.DataFrame(
        {"guess": np.where(mute | (abs(guess - 2020) < 10), np.nan, guess), "truth": truth, "region": regions}
    )
    frame["error"] = (frame["guess"] - truth).abs() / np.maximum(frame["guess"], truth)
    frame.loc[(frame["guess"] == 0) & (truth == 0), "error"] = 0.0
    means = frame.groupby("region")["error"].mean()
    assert found["error"] == pytest.approx(frame["error"].mean())
    assert found["error_counting_unparsed"] == pytest.approx(frame["error"].fillna(1.0).mean())
    assert found["parsed"] == pytest.approx(100 * frame["guess"].notna().mean())
    assert found["error_difference_region"] == pytest.approx(means.max() - means.min())
