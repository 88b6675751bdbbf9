from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bias_models import tiny_bert, tiny_gpt2
from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import crows_pairs
from fairsisa.bias.benchmarks.crows_pairs import BENCHMARKS, pairs_of
from fairsisa.errors import ChecksumError, DataError
from fairsisa.settings import ScoringSettings

(CROWS,) = BENCHMARKS
METRICS = {metric.name: metric for metric in CROWS.metrics}


def made_rows(directions):
    return [
        {
            "": str(number),
            "sent_more": f"The tall neighbour number {number} sings badly.",
            "sent_less": f"The short neighbour number {number} sings badly.",
            "stereo_antistereo": direction,
            "bias_type": "height",
        }
        for number, direction in enumerate(directions)
    ]


def columns_of(frame):
    scored = frame[frame["state"] == "scored"]
    columns = {name: scored[name].to_numpy() for name in scored.columns}
    return columns | {"cluster": np.arange(len(scored))}


def value_of(name, frame):
    columns = columns_of(frame)
    return METRICS[name].value(columns, np.ones((len(columns["cluster"]), 1)))[0]


pairs = st.lists(
    st.tuples(
        st.sampled_from(["stereo", "antistereo"]),
        st.floats(-30, -0.1),
        st.floats(-30, -0.1) | st.none(),
        st.integers(1, 9),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=12,
)


def answered(items, drawn):
    rows = []
    for item, (direction, more, less, num_more, num_less) in zip(items, drawn, strict=True):
        both = [(more, num_more), (more if less is None else less, num_more if less is None else num_less)]
        if direction == "antistereo":
            both.reverse()
        rows += [Answer(item.item_id, option, *both[option]) for option in (1, 0)]
    return answers_of(rows)


@settings(max_examples=30)
@given(pairs)
def test_the_score_counts_pairs_as_the_published_programs_do(drawn):
    items = pairs_of(made_rows([each[0] for each in drawn])).items
    answers = answered(items, drawn)
    found = CROWS.readout("masked").judge(items, answers)
    hits = neutral = 0
    for _, more, other, _, _ in drawn:
        less = more if other is None else other
        neutral += round(more, 3) == round(less, 3)
        hits += round(more, 3) > round(less, 3)
    assert value_of("stereotype_score", found) == pytest.approx(100 * hits / len(drawn))
    assert (found["answer"] == "neutral").sum() == neutral
    assert found["outcome"].sum() == hits
    summed = CROWS.readout("causal", "summed").judge(items, answers)
    differences = [more - (more if less is None else less) for _, more, less, _, _ in drawn]
    assert value_of("mean_difference", summed) == pytest.approx(np.mean(differences), abs=1e-9)
    assert value_of("likelihood_difference", summed) == pytest.approx(np.mean(np.abs(differences)), abs=1e-9)
    assert (summed["margin"] >= 0).all()


@settings(max_examples=30)
@given(pairs)
def test_causal_readouts_compare_geometric_means_of_token_probabilities(drawn):
    items = pairs_of(made_rows([each[0] for each in drawn])).items
    found = CROWS.readout("causal").judge(items, answered(items, drawn))
    hits = 0
    for _, more, less, num_more, num_less in drawn:
        hits += less is not None and more / num_more > less / num_less
    assert found["outcome"].sum() == hits
    assert CROWS.readout("causal").name == "joint"
    assert CROWS.readout("masked").name == "modified"


def test_a_pair_without_a_value_is_named_and_counts_nowhere():
    items = pairs_of(made_rows(["stereo", "stereo"])).items
    why = "no token differs on one side"
    rows = [Answer("crows-0", option, math.nan, reason=why) for option in (0, 1)]
    rows += [Answer("crows-1", 0, -1.0, 2), Answer("crows-1", 1, -2.0, 2)]
    found = CROWS.readout("masked").judge(items, answers_of(rows))
    assert found["state"].tolist() == ["not_scored", "scored"]
    assert found["reason"].tolist() == [why, ""]
    assert value_of("stereotype_score", found) == 100.0
    assert value_of("log_probability", found) == -1.5
    nothing = CROWS.readout("masked").judge(items, answers_of(rows[2:3]))
    assert nothing["reason"].tolist() == ["no finite value for option 0", "no finite value for option 1"]


def test_malformed_rows_are_counted_and_named():
    rows = made_rows(["stereo", "sideways", "antistereo", "stereo"])
    rows[2]["sent_less"] = " "
    rows[3]["sent_less"] = rows[3]["sent_more"]
    table = pairs_of(rows)
    assert [item.item_id for item in table.items] == ["crows-0"]
    assert [bad.item_id for bad in table.malformed] == ["crows-1", "crows-2", "crows-3"]
    assert "sideways" in table.malformed[0].reason


def test_options_stand_in_the_order_of_the_published_programs():
    stereo, anti = pairs_of(made_rows(["stereo", "antistereo"])).items
    assert "tall" in stereo.options[0]
    assert "short" in anti.options[0]


def test_a_missing_or_changed_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        CROWS.load(Files(tmp_path, tmp_path))
    changed = tmp_path / crows_pairs.SOURCE.path
    changed.parent.mkdir()
    changed.write_text(",sent_more\n")
    with pytest.raises(ChecksumError, match="expected content with sha256:dfb36986"):
        CROWS.load(Files(tmp_path, tmp_path))


@pytest.mark.real_data
def test_the_real_pairs(data_root):
    table = CROWS.load(Files(data_root, data_root))
    assert len(table.items) == 1508
    assert not table.malformed
    assert Counter(item.labels["direction"] for item in table.items) == {"stereo": 1290, "antistereo": 218}
    counts = Counter(item.labels["bias_type"] for item in table.items)
    assert (counts["race-color"], counts["gender"], counts["disability"]) == (516, 262, 60)


@pytest.mark.real_data
def test_three_real_pairs_have_no_differing_token_on_one_side(data_root):
    items = CROWS.load(Files(data_root, data_root)).items
    some = [items[row] for row in (0, 129, 231, 1101)]
    for readout in CROWS.readouts:
        candidate = (tiny_bert if readout.kind == "masked" else tiny_gpt2)(data_root)
        found = readout.judge(some, readout.ask(candidate, some, ScoringSettings(), readout.settings))
        expected = ["scored"] + ["not_scored" if readout.name == "modified" else "scored"] * 3
        assert found["state"].tolist() == expected
