from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from bias_models import tiny_bert, tiny_gpt2
from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks.holistic_bias import BENCHMARKS, holistic_bias
from fairsisa.bias.benchmarks.holistic_sentences import Selection, sentences_of
from fairsisa.bias.items import Malformed
from fairsisa.errors import ConfigError, DataError
from fairsisa.settings import ScoringSettings

(HOLISTIC,) = BENCHMARKS
DESCRIPTORS = {
    "height": {"tall": ["tall", {"descriptor": "upright", "article": "a"}], "short": ["short"]},
    "mood": {"any": [{"descriptor": "merry", "gender": "male", "preference": "reviewed"}, "idle"]},
}
NOUNS = {"female": [["aunt", "aunts"], ["queen", "queens"]], "male": [["uncle", "uncles"]], "neutral": [["ox", "oxen"]]}
TEMPLATES = [
    "Here is {noun_phrase}.",
    "No slot.",
    "Look, {plural_noun_phrase}!",
    "{noun_phrase} or {plural_noun_phrase}",
]
EVERYTHING = Selection(None, None)


def value_of(name, frame, weights=None):
    scored = frame[frame["state"] == "scored"].reset_index(drop=True)
    columns = {column: scored[column].to_numpy() for column in scored.columns}
    _, codes = np.unique(columns["cluster"], return_inverse=True)
    weights = np.ones((len(scored), 1)) if weights is None else weights
    metric = next(metric for metric in HOLISTIC.metrics if metric.name == name)
    return metric.value(columns | {"cluster": codes}, weights)


def test_sentences_are_templates_filled_with_descriptor_and_noun():
    table = sentences_of(DESCRIPTORS, NOUNS, TEMPLATES, EVERYTHING)
    texts = {item.item_id: item.options[0] for item in table.items}
    assert texts["holistic-height-tall-aunt-0"] == "Here is a tall aunt."
    assert texts["holistic-height-upright-ox-0"] == "Here is a upright ox."
    assert texts["holistic-mood-idle-ox-0"] == "Here is an idle ox."
    assert texts["holistic-mood-idle-ox-2"] == "Look, idle oxen!"
    assert len(texts) == 2 * (4 * 4 + 1)
    assert {item.cluster for item in table.items} == {f"height/{word}" for word in ("tall", "upright", "short")} | {
        "mood/merry",
        "mood/idle",
    }
    assert table.malformed == tuple(
        Malformed(f"holistic-template-{number}", "the template has not one slot for a noun phrase") for number in (1, 3)
    )


def test_a_selection_takes_nouns_of_each_gender_in_turn_and_draws_templates():
    table = sentences_of(DESCRIPTORS, NOUNS, TEMPLATES, Selection(num_templates=1, num_nouns=3, seed=1))
    tall = [item.options[0] for item in table.items if item.labels["descriptor"] == "tall"]
    assert [text.rstrip(".!").split()[-1].rstrip("sen") for text in tall] == ["aunt", "uncl", "ox"]
    assert len({item.labels["template"] for item in table.items}) == 1
    assert sentences_of(DESCRIPTORS, NOUNS, TEMPLATES, Selection(1, 3, 1)).digest == table.digest
    drawn = {sentences_of(DESCRIPTORS, NOUNS, TEMPLATES, Selection(1, 1, seed)).digest for seed in range(8)}
    assert len(drawn) == 2
    with pytest.raises(ConfigError, match="num_nouns"):
        Selection(num_nouns=0)
    with pytest.raises(ConfigError, match="num_templates"):
        Selection(num_templates=0)


def world(seed):
    """Three descriptors of one axis, two of another, with 6 values in each of 2 templates, some shifted."""
    descriptors = {"height": {"all": ["tall", "short", "round"]}, "mood": {"all": ["merry", "idle"]}}
    nouns = {"any": [[f"n{number}", f"n{number}s"] for number in range(6)]}
    items = sentences_of(descriptors, nouns, ["A {noun_phrase}", "B {plural_noun_phrase}"], EVERYTHING).items
    rng = np.random.default_rng(seed)
    shift = {"tall": 0.0, "short": 1.5, "round": 0.2, "merry": 0.0, "idle": 3.0}
    rows = [Answer(item.item_id, 0, 2 * float(rng.normal() + shift[item.labels["descriptor"]]), 2) for item in items]
    return items, HOLISTIC.readout("causal").judge(items, answers_of(rows))


def brute_force(frame, repeats):
    """The two metrics with each descriptor as often as `repeats` says, pair by pair."""
    shares, spreads = [], []
    for _, cell in frame.groupby(["label:axis", "label:template"]):
        values = {name: rows["value"].to_numpy() for name, rows in cell.groupby("cluster")}
        copies = [name for name in values for _ in range(repeats.get(name, 1))]
        pairs = [pair for pair in combinations(copies, 2) if pair[0] != pair[1]]
        if pairs:
            tests = [stats.mannwhitneyu(values[one], values[two]).pvalue < 0.05 for one, two in pairs]
            shares.append(np.mean(tests))
        if copies:
            spreads.append(np.std([values[name].mean() for name in copies]))
    return 100 * np.mean(shares), np.mean(spreads)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_all_pairs_one_by_one(seed):
    _, frame = world(seed)
    expected = brute_force(frame, {})
    assert value_of("likelihood_bias", frame)[0] == pytest.approx(expected[0])
    assert value_of("spread", frame)[0] == pytest.approx(expected[1])
    assert 0 < expected[0] < 100
    repeats = {"height/tall": 2, "height/short": 0, "mood/merry": 3}
    weights = np.array([[repeats.get(name, 1)] for name in frame["cluster"]], dtype=float)
    expected = brute_force(frame, repeats)
    assert value_of("likelihood_bias", frame, weights)[0] == pytest.approx(expected[0])
    assert value_of("spread", frame, weights)[0] == pytest.approx(expected[1])


def test_a_metric_without_two_descriptors_is_undefined_and_an_unscored_sentence_counts_nowhere():
    items, _ = world(0)
    rows = [Answer(items[0].item_id, 0, -4.0, 2), Answer(items[1].item_id, 0, np.nan, 0, reason="too long")]
    frame = HOLISTIC.readout("masked").judge(items[:2], answers_of(rows))
    assert frame["value"].tolist()[0] == -2.0
    assert frame["reason"].tolist() == ["", "too long"]
    assert np.isnan(value_of("likelihood_bias", frame))[0]
    assert value_of("log_probability", frame)[0] == -2.0
    assert np.isnan(value_of("likelihood_bias", frame.iloc[:0]))[0]


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        HOLISTIC.load(Files(tmp_path, tmp_path))


@pytest.mark.real_data
def test_the_real_sentences(data_root):
    table = HOLISTIC.load(Files(data_root, data_root))
    assert len(table.items) == 583 * 2 * 6
    assert not table.malformed
    counts = Counter(item.labels["axis"] for item in table.items)
    assert len(counts) == 13
    assert counts["body_type"] == 144 * 12
    whole = holistic_bias(Selection(num_templates=None, num_nouns=1)).load(Files(data_root, data_root))
    assert len(whole.items) == 583 * 26
    for readout in HOLISTIC.readouts:
        candidate = (tiny_bert if readout.kind == "masked" else tiny_gpt2)(data_root)
        some = table.items[:3]
        found = readout.judge(some, readout.ask(candidate, some, ScoringSettings(), readout.settings))
        assert (found["state"] == "scored").all()
