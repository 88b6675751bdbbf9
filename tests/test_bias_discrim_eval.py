from __future__ import annotations

import hashlib
import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bias_models import tiny_bert, tiny_gpt2
from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks.discrim_contrasts import TERMS, contrasts
from fairsisa.bias.benchmarks.discrim_eval import BENCHMARKS, SOURCE, decisions_of
from fairsisa.errors import ChecksumError, DataError
from fairsisa.settings import ScoringSettings

(DISCRIM,) = BENCHMARKS
AGES, GENDERS = (20, 60, 100), ("male", "female", "non-binary")
RACES = ("white", "Black", "Asian", "Hispanic", "Native American")
ALL_AGES = range(20, 101, 10)


def made_rows(num_scenarios, ages=AGES):
    return [
        {
            "filled_template": f"May a {age}-year-old {race} {gender} person borrow book {scenario}?",
            "decision_question_id": scenario,
            "age": float(age),
            "gender": gender,
            "race": race,
        }
        for scenario in range(num_scenarios)
        for age, gender, race in product(ages, GENDERS, RACES)
    ]


def answered(items, log_odds):
    """Answers whose two options hold 80 % of the mass, at the given log-odds."""
    rows = []
    for item, odds in zip(items, log_odds, strict=True):
        yes = 1 / (1 + np.exp(-odds))
        rows += [Answer(item.item_id, option, float(np.log(0.8 * p)), 1) for option, p in enumerate((yes, 1 - yes))]
        rows.append(Answer(item.item_id, -1, float(np.log(0.2)), 0))
    return answers_of(rows)


def columns_of(frame):
    scored = frame[frame["state"] == "scored"].reset_index(drop=True)
    _, codes = np.unique(scored["cluster"], return_inverse=True)
    return {name: scored[name].to_numpy() for name in scored.columns} | {"cluster": codes}


def value_of(name, frame, weights=None):
    columns = columns_of(frame)
    weights = np.ones((len(columns["cluster"]), 1)) if weights is None else weights
    return next(metric for metric in DISCRIM.metrics if metric.name == name).value(columns, weights)


def made_world(seed, num_scenarios=6):
    """Log-odds with an effect of each group, an intercept and slopes of each scenario, and noise."""
    rng = np.random.default_rng(seed)
    items = decisions_of(made_rows(num_scenarios)).items
    effects = {"female": 0.5, "non-binary": -0.3, "Black": 0.8, "Asian": 0.1, "Hispanic": -0.2, "Native American": 0.4}
    intercepts, slopes = rng.normal(size=num_scenarios) * 2, rng.normal(size=num_scenarios) * 0.3
    odds = [
        intercepts[int(item.cluster)]
        + sum(effects.get(item.labels[name], 0.0) for name in ("gender", "race"))
        + slopes[int(item.cluster)] * (item.labels["gender"] == "female")
        + 0.02 * (item.labels["age"] - 60)
        + rng.normal() * 0.2
        for item in items
    ]
    return items, np.array(odds), DISCRIM.readout("causal").judge(items, answered(items, odds))


def test_a_prompt_ends_where_the_answer_is_read():
    table = decisions_of([*made_rows(1), {"filled_template": "May they?", "age": 20.0}])
    first = table.items[0]
    assert first.item_id == "discrim-0-20-male-white"
    assert first.context.startswith("May a 20-year-old white male person borrow book 0?\n\nPlease answer")
    assert first.context.endswith('my answer would be "')
    assert (first.options, first.cluster, first.labels["age"]) == (("yes", "no"), "0", 20)
    assert [(bad.item_id, bad.reason) for bad in table.malformed] == [("discrim-row-45", "no decision_question_id")]


@settings(max_examples=20)
@given(st.lists(st.floats(-8, 8), min_size=45, max_size=45))
def test_p_yes_leaves_out_what_is_neither_yes_nor_no(odds):
    items = decisions_of(made_rows(1)).items
    found = DISCRIM.readout("causal").judge(items, answered(items, odds))
    expected = 1 / (1 + np.exp(-np.array(odds)))
    np.testing.assert_allclose(found["value"], expected, atol=1e-12)
    np.testing.assert_allclose(found["label:log_odds"], odds, atol=1e-9)
    assert value_of("outside_mass", found)[0] == pytest.approx(20.0)
    assert value_of("max_min_difference", found)[0] == pytest.approx(expected.max() - expected.min())
    assert set(found["answer"]) <= {"yes", "no"}
    for row, odd in zip(found.itertuples(), odds, strict=True):
        assert abs(odd) < 1e-12 or (row.answer == "yes") == (odd > 0) == (row.outcome == 0.0)


def test_masked_answers_are_probabilities():
    items = decisions_of(made_rows(1)).items[:3]
    rows = [Answer(items[0].item_id, 0, 0.3, 1), Answer(items[0].item_id, 1, 0.1, 1)]
    rows += [Answer(items[1].item_id, option, 0.0, 1) for option in (0, 1)]
    found = DISCRIM.readout("masked").judge(items, answers_of(rows))
    assert found["value"].tolist()[0] == pytest.approx(0.75)
    assert found["label:outside_mass"].tolist()[0] == pytest.approx(0.6)
    assert found["label:log_odds"].tolist()[0] == pytest.approx(np.log(3))
    assert found["reason"].tolist()[1:] == ["neither answer has any probability", "no finite value for option 0"]


@pytest.mark.parametrize("seed", range(2))
def test_contrasts_are_least_squares_with_an_effect_for_each_scenario(seed):
    items, odds, frame = made_world(seed)
    order = np.random.default_rng(seed).permutation(len(items))[: len(items) - 40]
    frame, odds = frame.iloc[order], odds[order]
    scenarios = frame["cluster"].to_numpy()
    groups = [("gender", "female"), ("gender", "non-binary"), *(("race", race) for race in RACES[1:])]
    design = [frame[f"label:{name}"].to_numpy() == level for name, level in groups]
    design += [(frame["label:age"].to_numpy() - 60) / 10, *(scenarios == each for each in np.unique(scenarios))]
    expected = np.linalg.lstsq(np.array(design, dtype=float).T, odds, rcond=None)[0][: len(TERMS)]
    for name, number in zip(TERMS, expected, strict=True):
        assert value_of(f"contrast_{name}", frame)[0] == pytest.approx(number, abs=1e-8)
    counts = np.random.default_rng(seed).integers(0, 3, size=6)
    times = counts[scenarios.astype(int)]
    repeated = np.repeat(np.arange(len(odds)), times)
    expected = np.linalg.lstsq(np.array(design, dtype=float).T[repeated], odds[repeated], rcond=None)[0]
    found = contrasts(columns_of(frame), times[:, None].astype(float))[:, 0]
    np.testing.assert_allclose(found, expected[: len(TERMS)], atol=1e-8)


def test_in_a_balanced_design_a_contrast_is_a_difference_of_means():
    _, odds, frame = made_world(0)
    for name, level in (("female", "female"), ("non_binary", "non-binary")):
        own = frame["label:gender"].to_numpy()
        expected = odds[own == level].mean() - odds[own == "male"].mean()
        assert value_of(f"contrast_{name}", frame)[0] == pytest.approx(expected, abs=1e-9)
    men = frame[frame["label:gender"] == "male"]
    assert np.isnan(value_of("contrast_female", men))[0]
    assert value_of("contrast_black", men)[0] == pytest.approx(0.8, abs=0.2)


def test_extremes_and_their_chance_level():
    _, odds, frame = made_world(1)
    table = (1 / (1 + np.exp(-odds))).reshape(6, 45)
    assert value_of("max_min_difference", frame)[0] == pytest.approx((table.max(axis=1) - table.min(axis=1)).mean())
    means = table.mean(axis=0)
    assert value_of("systematic_difference", frame)[0] == pytest.approx(means.max() - means.min())
    rng = np.random.default_rng(5)
    shuffled = [rng.permuted(table, axis=1).mean(axis=0) for _ in range(2000)]
    expected = np.mean([each.max() - each.min() for each in shuffled])
    chance = value_of("chance_difference", frame)[0]
    assert chance == pytest.approx(expected, rel=0.05)
    excess = value_of("excess_difference", frame)[0]
    assert excess == pytest.approx(means.max() - means.min() - chance)
    assert excess > 0.05  # the made world does favour some people
    weights = (frame["cluster"].to_numpy() == "2").astype(float)[:, None] * [1.0, 3.0]
    alone = table[2].max() - table[2].min()
    for name in ("max_min_difference", "systematic_difference", "chance_difference"):
        np.testing.assert_allclose(value_of(name, frame, weights), alone)
    fewer = frame.drop(index=[0, 50])
    first = np.delete(table[0], 0)
    assert value_of("max_min_difference", fewer[fewer["cluster"] == "0"])[0] == pytest.approx(first.max() - first.min())
    assert np.isfinite(value_of("systematic_difference", fewer)[0])


def test_the_file_is_fetched_by_hand_and_checked(tmp_path):
    files = Files(tmp_path, tmp_path)
    with pytest.raises(
        DataError, match=r"explicit\.jsonl; no such file.*huggingface.co/datasets/Anthropic/discrim-eval"
    ):
        DISCRIM.load(files)
    path = tmp_path / SOURCE.path
    path.parent.mkdir()
    rows = made_rows(70, ALL_AGES)
    text = "\n".join(map(json.dumps, rows))
    path.write_text(text)
    assert len(DISCRIM.load(files).items) == 9450
    assert len(DISCRIM.load(Files(None, tmp_path)).items) == 9450
    beside = path.with_name("explicit.jsonl.sha256")
    beside.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  explicit.jsonl\n")
    assert len(DISCRIM.load(files).items) == 9450
    beside.write_text("")
    with pytest.raises(ChecksumError, match="expected content with sha256:, got sha256"):
        DISCRIM.load(files)
    beside.write_text("0" * 64)
    with pytest.raises(ChecksumError, match="expected content with sha256:0000"):
        DISCRIM.load(files)
    beside.unlink()
    path.write_text("\n".join(map(json.dumps, rows[1:])))
    with pytest.raises(DataError, match="got 9449 rows of 70 scenarios"):
        DISCRIM.load(files)


@pytest.mark.real_data
def test_models_of_both_kinds_answer(data_root):
    items = decisions_of(made_rows(1)).items[:3]
    for readout in DISCRIM.readouts:
        candidate = (tiny_bert if readout.kind == "masked" else tiny_gpt2)(data_root)
        found = readout.judge(items, readout.ask(candidate, items, ScoringSettings(), readout.settings))
        assert (found["state"] == "scored").all()
        assert found["label:outside_mass"].between(0, 1).all()
