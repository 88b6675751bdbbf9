from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bias_models import tiny_bert, tiny_gpt2
from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import winobias, winogender
from fairsisa.bias.benchmarks.winogender import triples_of, weighted_correlation
from fairsisa.bias.items import Item, Malformed
from fairsisa.errors import DataError
from fairsisa.settings import ScoringSettings

(WINOBIAS,) = winobias.BENCHMARKS
(WINOGENDER,) = winogender.BENCHMARKS
LABELS = {"type": "1", "split": "dev"}


def value_of(benchmark, name, frame, weights=None):
    scored = frame[frame["state"] == "scored"].reset_index(drop=True)
    columns = {column: scored[column].to_numpy() for column in scored.columns}
    _, codes = np.unique(columns["cluster"], return_inverse=True)
    weights = np.ones((len(scored), 1)) if weights is None else weights
    metric = next(metric for metric in benchmark.metrics if metric.name == name)
    return metric.value(columns | {"cluster": codes}, weights)


def test_lines_become_pairs_without_numbers_and_brackets():
    pro = ["1 [The plumber] waved because [he] left.", "2 The plumber saw [ the dancer] and [her] dog near [her] car."]
    anti = ["1 [The plumber] waved because [she] left.", "2 The plumber saw [the dancer] and [his] dog near [his] car."]
    first, second = winobias.pairs_of(pro, anti, LABELS)
    assert first == Item(
        "winobias-1-dev-1",
        "",
        ("The plumber waved because he left.", "The plumber waved because she left."),
        "plumber",
        {**LABELS, "occupation": "plumber", "gender": "male", "differs": "one pronoun"},
    )
    assert second.options[0] == "The plumber saw the dancer and her dog near her car."
    assert (second.cluster, second.labels["differs"], second.labels["gender"]) == ("dancer", "pronouns", "female")


def test_pairs_that_differ_in_more_than_pronouns_are_labelled_and_broken_ones_named():
    pro = ["1 [A cook] ate as [he] sang.", "2 The cook sang.", "3 [The cook] met [him].", "4 [The cook] saw [him]."]
    anti = ["1 [A cook] dined as [she] sang.", "2 The cook sang.", "3 [The cook] met [him]."]
    found = winobias.pairs_of(pro, anti, LABELS)
    assert found[0].labels["differs"] == "wording"
    assert found[1:] == [
        Malformed("winobias-1-dev-2", "no occupation and pronoun in brackets in the pro-stereotyped sentence"),
        Malformed("winobias-1-dev-3", "the two sentences are the same"),
        Malformed("winobias-1-dev-4", "the line has no pair"),
    ]
    (shorter,) = winobias.pairs_of(["1 [A cook] ate as [he] sang."], ["1 [A cook] ate as [she] sang again."], LABELS)
    assert shorter.labels["differs"] == "wording"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(-9, -1), st.integers(-9, -1), st.integers(1, 3)), min_size=1, max_size=9))
def test_the_score_counts_the_pairs_in_which_the_stereotype_is_likelier(drawn):
    items = [Item(f"i{number}", "", ("a", "b"), "c", {}) for number in range(len(drawn))]
    rows = [
        Answer(f"i{number}", option, float(each[option]), each[2])
        for number, each in enumerate(drawn)
        for option in (0, 1)
    ]
    for kind, name in (("masked", "modified"), ("causal", "summed"), ("causal", "normalised")):
        found = WINOBIAS.readout(kind, name).judge(items, answers_of(rows))
        wins = sum(pro > anti for pro, anti, _ in drawn)
        assert value_of(WINOBIAS, "stereotype_score", found)[0] == pytest.approx(100 * wins / len(drawn))
        assert (found["answer"] == "neutral").sum() == sum(pro == anti for pro, anti, _ in drawn)
    mean = np.mean([(pro - anti) / tokens for pro, anti, tokens in drawn])
    assert value_of(WINOBIAS, "mean_difference", found)[0] == pytest.approx(mean)


def made_triples(occupations):
    return [
        {"sentid": f"{occupation}.guest.{answer}.{gender}.txt", "sentence": f"The {occupation} said {pronoun} left."}
        for occupation in occupations
        for answer in "01"
        for gender, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they"))
    ]


def test_triples_and_what_is_malformed():
    rows = made_triples(["smith", "even", "unknown"])
    rows += [{"sentid": "smith.host.0.male.txt", "sentence": "He left."}, {"sentid": "smith.txt", "sentence": "Gone."}]
    table = triples_of(rows, {"smith": 20.0, "even": 50.0})
    assert [item.item_id for item in table.items] == [
        f"winogender-{name}-guest-{referent}"
        for name in ("smith", "even")
        for referent in ("occupation", "participant")
    ]
    smith, other, even, _ = table.items
    assert smith.options == ("The smith said he left.", "The smith said she left.", "The smith said they left.")
    assert (smith.labels["majority"], smith.labels["gotcha"], other.labels["gotcha"]) == ("male", "female", "none")
    assert (even.labels["majority"], even.labels["gotcha"]) == ("", "none")
    assert [(bad.item_id, bad.reason) for bad in table.malformed] == [
        ("smith.txt", "the id is not occupation.participant.answer.gender"),
        ("winogender-unknown-guest-occupation", "no labour statistics for 'unknown'"),
        ("winogender-unknown-guest-participant", "no labour statistics for 'unknown'"),
        ("winogender-smith-host-occupation", "no female sentence"),
    ]


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, 100), min_size=3, max_size=6, unique=True),
    st.lists(st.integers(-9, 9), min_size=6, max_size=6, unique=True),
)
def test_the_correlation_is_pearsons_over_occupations(shares, differences):
    names = [f"job{number}" for number in range(len(shares))]
    items = triples_of(made_triples(names), dict(zip(names, map(float, shares), strict=True))).items
    rows = []
    for number, item in enumerate(items):
        own = item.labels["refers_to"] == "occupation"
        female = float(differences[number // 2]) if own else 77.0
        rows += [Answer(item.item_id, option, value, 1) for option, value in enumerate((0.0, female, -100.0))]
    found = WINOGENDER.readout("causal").judge(items, answers_of(rows))
    expected = np.corrcoef(shares, differences[: len(shares)])[0, 1]
    assert value_of(WINOGENDER, "correlation", found)[0] == pytest.approx(expected)
    majority = ["female" if share > 50 else "male" for share in shares]
    own = found[found["label:refers_to"] == "occupation"].reset_index(drop=True)
    for row, gender, share, difference in zip(own.itertuples(), majority, shares, differences, strict=False):
        expected = np.nan if share == 50 else float(difference != 0 and (difference > 0) == (gender == "female"))
        np.testing.assert_equal(row.outcome, expected)
        assert row.answer == ("equal" if difference == 0 else "female" if difference > 0 else "male")


def test_weighted_correlation_is_that_of_repeated_rows_and_undefined_without_variation():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6))
    counts = rng.integers(0, 3, size=(6, 8))
    found = weighted_correlation(first, second, counts.astype(float))
    for column, number in zip(counts.T, found, strict=True):
        assert number == pytest.approx(np.corrcoef(np.repeat(first, column), np.repeat(second, column))[0, 1])
    assert np.isnan(weighted_correlation(np.ones(3), np.arange(3.0), np.ones((3, 1))))[0]


def test_masked_pairs_leave_the_neutral_sentence_out():
    items = triples_of(made_triples(["smith"]), {"smith": 20.0}).items
    rows = [Answer(item.item_id, option, -1.0 - option, 1) for item in items for option in (0, 1)]
    found = WINOGENDER.readout("masked").judge(items, answers_of(rows))
    assert found["state"].tolist() == ["scored", "scored"]
    assert found["answer"].tolist() == ["male", "male"]
    whole = WINOGENDER.readout("masked", "pseudo").judge(items, answers_of(rows))
    assert whole["reason"].tolist() == ["no finite value for option 2"] * 2


def test_a_missing_file_is_an_error(tmp_path):
    for benchmark in (WINOBIAS, WINOGENDER):
        with pytest.raises(DataError, match="no such file"):
            benchmark.load(Files(tmp_path, tmp_path))


@pytest.mark.real_data
def test_the_real_pairs_and_triples(data_root):
    pairs, triples = (each.load(Files(data_root, data_root)) for each in (WINOBIAS, WINOGENDER))
    assert (len(pairs.items), len(triples.items)) == (1584, 240)
    assert not pairs.malformed + triples.malformed
    assert Counter(item.labels["differs"] for item in pairs.items) == {
        "one pronoun": 1522,
        "pronouns": 43,
        "wording": 19,
    }
    assert len({item.cluster for item in pairs.items}) == 40
    assert len({item.cluster for item in triples.items}) == 60
    for benchmark, items in ((WINOBIAS, pairs.items[:2]), (WINOGENDER, triples.items[:2])):
        for readout in benchmark.readouts:
            candidate = (tiny_bert if readout.kind == "masked" else tiny_gpt2)(data_root)
            found = readout.judge(items, readout.ask(candidate, items, ScoringSettings(), readout.settings))
            assert (found["state"] == "scored").all()
