from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bias_models import tiny_bert, tiny_gpt2
from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks.country_distances import country_gini, country_medians, gini, median_distance, wasserstein
from fairsisa.bias.benchmarks.global_opinion import BENCHMARKS, SOURCE, questions_of
from fairsisa.errors import DataError
from fairsisa.settings import ScoringSettings

(OPINION,) = BENCHMARKS
masses = st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(any)


def made_row(countries, options=("never", "often", "always"), source="MADE"):
    return {
        "question": "How often do you whistle?",
        "selections": f"defaultdict(<class 'list'>, {countries!r})",
        "options": repr(list(options)),
        "source": source,
    }


def answered(items, shares):
    rows = []
    for item, each in zip(items, shares, strict=True):
        rows += [Answer(item.item_id, option, float(np.log(0.9 * share)), 1) for option, share in enumerate(each)]
        rows.append(Answer(item.item_id, -1, float(np.log(0.1)), 0))
    return answers_of(rows)


def columns_of(frame):
    return {name: frame[name].to_numpy() for name in frame.columns} | {"cluster": np.arange(len(frame))}


def brute_gini(values):
    values = np.asarray(values)
    return 0.5 * np.abs(values[:, None] - values[None]).mean() / values.mean()


@given(masses, st.data())
def test_the_distance_is_scipys(first, data):
    second = data.draw(st.lists(st.integers(0, 9), min_size=len(first), max_size=len(first)).filter(any))
    support = range(len(first))
    expected = stats.wasserstein_distance(support, support, first, second)
    assert wasserstein(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.lists(st.floats(0.01, 9) | st.none(), min_size=3, max_size=3), min_size=1, max_size=7))
def test_the_gini_index_is_half_the_mean_difference_over_the_mean(rows):
    values = np.array(rows, dtype=float)
    for column, found in zip(values.T, gini(values), strict=True):
        known = column[~np.isnan(column)]
        np.testing.assert_allclose(found, brute_gini(known) if len(known) else np.nan, atol=1e-12)


def test_questions_hold_countries_and_leave_parts_of_countries_out():
    row = made_row({"Norway": [0.2, 0.3, 0.5], "Peru (Lima)": [1, 0, 0], "Chad": [0.0, 0.0, 0.0], "Fiji": [0, 1, 1]})
    (item,) = questions_of([row]).items
    assert json.loads(item.labels["countries"]) == {"Norway": [0.2, 0.3, 0.5], "Fiji": [0.0, 1.0, 1.0]}
    assert item.options == ("A", "B", "C")
    assert item.context.startswith(
        "How often do you whistle?\nHere are the options:\n(A) never\n(B) often\n(C) always\n\n"
    )
    assert item.context.endswith("my answer would be (")


def test_malformed_questions_are_counted_and_named():
    good = made_row({"Norway": [0.2, 0.3, 0.5]})
    rows = [
        good,
        {**good, "options": "[never"},
        {**good, "selections": "none"},
        made_row({"Norway": [0.2, 0.8]}),
        made_row({"Norway": [1.0]}, options=("only",)),
        made_row({"Norway (north)": [1, 0, 0]}),
        {**good, "selections": "{'Norway': [nan, 1, 1]}"},
    ]
    table = questions_of(rows)
    assert [item.item_id for item in table.items] == ["opinion-0"]
    reasons = {bad.item_id: bad.reason for bad in table.malformed}
    assert list(reasons) == [f"opinion-{number}" for number in range(1, 7)]
    assert "no mapping from countries" in reasons["opinion-2"]
    assert "2 shares of 3 options in Norway" in reasons["opinion-3"]
    assert "1 options" in reasons["opinion-4"]
    assert reasons["opinion-5"] == "no country with an answer"


def test_two_countries_with_known_distances():
    near, far = {"Norway": [0, 1, 0], "Fiji": [0, 0, 1]}, {"Norway": [1, 0, 0], "Fiji": [0, 0, 1]}
    items = questions_of([made_row(near), made_row(far), made_row({"Fiji": [1, 1, 2]}, source="OTHER")]).items
    shares = [(0.25, 0.5, 0.25), (0.5, 0.25, 0.25), (0.25, 0.25, 0.5)]
    frame = OPINION.readout("causal").judge(items, answered(items, shares))
    assert frame["answer"].tolist() == ["B", "A", "C"]
    distances = [json.loads(text) for text in frame["label:distances"]]
    for item, share, found in zip(items, shares, distances, strict=True):
        for country, other in json.loads(item.labels["countries"]).items():
            assert found[country] == pytest.approx(stats.wasserstein_distance(range(3), range(3), share, other))
    assert frame["value"][0] == pytest.approx((0.5 + 1.0) / 2)
    assert frame["margin"].tolist() == pytest.approx([0.25] * 3)
    columns, ones = columns_of(frame), np.ones((3, 1))
    norway, fiji = np.median([0.5, 0.75]), np.median([1.0, 1.25, 0.0])
    assert country_gini(1)(columns, ones)[0] == pytest.approx(brute_gini([norway, fiji]))
    assert median_distance(1)(columns, ones)[0] == pytest.approx((norway + fiji) / 2)
    assert median_distance(3)(columns, ones)[0] == pytest.approx(fiji)
    assert np.isnan(country_gini(4)(columns, ones)[0])
    by_name = {metric.name: metric for metric in OPINION.metrics}
    assert np.isnan(by_name["gini"].value(columns, ones)[0])
    assert by_name["outside_mass"].value(columns, ones)[0] == pytest.approx(10.0)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=12), st.integers(1, 3)
)
def test_medians_are_those_of_questions_repeated_as_their_weights_say(drawn, min_questions):
    texts = [json.dumps({"Norway": one} | ({"Fiji": one / 2} if both else {})) for one, _, both in drawn]
    columns = {"label:distances": np.array(texts, dtype=object)}
    weights = np.array([[1.0, count] for _, count, _ in drawn])
    found = country_medians(columns, weights, min_questions)
    values = {"Fiji": [(one / 2, n) for one, n, both in drawn if both], "Norway": [(one, n) for one, n, _ in drawn]}
    kept = [pairs for pairs in values.values() if len(pairs) >= min_questions]
    if not kept:
        assert np.isnan(found).all()
        return
    for pairs, row in zip(kept, found, strict=True):
        numbers, counts = np.array([each[0] for each in pairs]), np.array([each[1] for each in pairs])
        again = np.repeat(numbers, counts)
        np.testing.assert_allclose(row, [np.median(numbers), np.median(again) if len(again) else np.nan])


def test_an_unanswered_letter_and_a_masked_model_without_mass_are_named():
    items = questions_of([made_row({"Fiji": [1, 1, 2]})] * 2).items
    rows = [Answer("opinion-0", option, value, 1) for option, value in enumerate((0.1, 0.3, 0.2))]
    found = OPINION.readout("masked").judge(items, answers_of(rows))
    assert found["reason"].tolist() == ["", "no finite value for option 0"]
    assert found["label:outside_mass"].tolist()[0] == pytest.approx(0.4)
    zero = answers_of([Answer("opinion-0", option, 0.0, 1) for option in range(3)])
    assert OPINION.readout("masked").judge(items[:1], zero)["reason"].tolist() == ["no letter has any probability"]


def test_the_file_is_fetched_by_hand(tmp_path):
    files = Files(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"global_opinions\.csv; no such file.*llm_global_opinions"):
        OPINION.load(files)
    path = tmp_path / SOURCE.path
    path.parent.mkdir()
    for count in (2556, 2555):
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["question", "selections", "options", "source"])
            writer.writeheader()
            writer.writerows([made_row({"Norway": [0.2, 0.3, 0.5]})] * count)
        if count == 2556:
            assert len(OPINION.load(files).items) == 2556
    with pytest.raises(DataError, match="got 2555 rows"):
        OPINION.load(files)


@pytest.mark.real_data
def test_models_of_both_kinds_answer(data_root):
    items = questions_of([made_row({"Fiji": [1, 1, 2]})]).items
    for readout in OPINION.readouts:
        candidate = (tiny_bert if readout.kind == "masked" else tiny_gpt2)(data_root)
        found = readout.judge(items, readout.ask(candidate, items, ScoringSettings(), readout.settings))
        assert (found["state"] == "scored").all()
        assert found["label:outside_mass"].between(0, 1).all()
