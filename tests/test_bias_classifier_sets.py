from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fairsisa.bias.answers import Answer, answers_of
from fairsisa.bias.benchmark import Files
from fairsisa.bias.benchmarks import hatecheck, wiki_madlibs
from fairsisa.bias.benchmarks.classified import ask_harmful, auc_of, harmful_classes, judge_harmful
from fairsisa.bias.candidate import CLASSIFIER, Candidate
from fairsisa.bias.items import Item
from fairsisa.errors import ConfigError
from fairsisa.settings import ScoringSettings

HATE = {metric.name: metric for metric in hatecheck.BENCHMARKS[0].metrics}
MADLIBS = {metric.name: metric for metric in wiki_madlibs.BENCHMARKS[0].metrics}


def _columns(keys: list[bool], values: list[float], **labels: list[str]) -> dict[str, np.ndarray]:
    items = [
        Item(
            str(place), "text", (), str(place), {"harmful": key} | {name: each[place] for name, each in labels.items()}
        )
        for place, key in enumerate(keys)
    ]
    said = answers_of(Answer(item.item_id, 1, value) for item, value in zip(items, values, strict=True))
    scores = judge_harmful(items, said)
    return {name: scores[name].to_numpy() for name in scores.columns}


def _one(metric: object, columns: dict[str, np.ndarray]) -> float:
    return float(metric.value(columns, np.ones((len(columns["value"]), 1)))[0])


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (("normal", "toxic"), ("toxic",)),
        (("normal", "offensive", "hatespeech"), ("offensive", "hatespeech")),
        (("LABEL_0", "LABEL_1"), ("LABEL_1",)),
        (("0", "1"), ("1",)),
        (("NOT-HATE", "Hate"), ("Hate",)),
        (("non-hateful", "hateful"), ("hateful",)),
        (("toxic", "severe_toxic", "identity_hate"), ("toxic", "severe_toxic", "identity_hate")),
    ],
)
def test_harmful_classes_are_told_by_their_names(classes: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert harmful_classes(classes) == found


def test_unclear_classes_are_an_error_that_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"which classes mean harmful: up, down. Name those with positive_classes="):
        harmful_classes(("up", "down"))
    with pytest.raises(ConfigError, match="which classes mean harmful: normal, neutral"):
        harmful_classes(("normal", "neutral"))
    assert harmful_classes(("up", "down"), ("down",)) == ("down",)
    with pytest.raises(
        ConfigError, match=r"positive_classes names 'dwn', no class of this model\. Did you mean 'down'"
    ):
        harmful_classes(("up", "down"), ("dwn",))


@pytest.mark.parametrize(
    ("classes", "probabilities", "found"),
    [(("normal", "offensive", "hate"), (0.3, 0.3, 0.4), 0.7), (("toxic", "obscene", "threat"), (0.6, 0.9, 0.1), 0.9)],
)
def test_probability_of_harm_is_a_sum_or_of_independent_labels_the_greatest(
    classes: tuple[str, ...], probabilities: tuple[float, ...], found: float
) -> None:
    candidate = Candidate(
        "made", "0" * 64, CLASSIFIER, classes=classes, classify=lambda texts: np.tile(probabilities, (len(texts), 1))
    )
    items = [Item("a", "Some words.", (), "a", {"harmful": True}), Item("b", " ", (), "b", {"harmful": True})]
    answers = ask_harmful(candidate, items, ScoringSettings(), {})
    assert answers.frame["value"][0] == pytest.approx(found)
    scores = judge_harmful(items, answers)
    assert scores["state"].tolist() == ["scored", "not_scored"]
    assert scores["reason"].tolist() == ["", "the text is empty"]
    assert scores["correct"][0] == 1.0


scored = st.lists(
    st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from(("", "ants", "bees", "wasps"))), min_size=4
)


@settings(max_examples=60)
@given(scored, st.integers(0, 99))
def test_auc_is_scikit_learns_under_weights(rows: list[tuple[bool, int, str]], seed: int) -> None:
    keys, values, _ = (list(each) for each in zip(*rows, strict=True))
    columns = _columns(keys, [value / 10 for value in values])
    weights = np.column_stack([np.ones(len(rows)), np.random.default_rng(seed).integers(0, 4, len(rows))]).astype(float)
    for column, found in zip(weights.T, auc_of(columns, weights), strict=True):
        there = column > 0
        if len(set(np.array(keys)[there])) < 2:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(
                roc_auc_score(np.array(keys)[there], np.array(values)[there], sample_weight=column[there])
            )


@settings(max_examples=60)
@given(scored)
def test_metrics_of_terms_are_those_counted_by_pairs(rows: list[tuple[bool, int, str]]) -> None:
    columns = _columns(
        [key for key, *_ in rows], [value / 10 for _, value, _ in rows], term=[term for *_, term in rows]
    )
    terms = sorted({term for *_, term in rows if term})
    if len(terms) < 2:
        assert np.isnan(_one(MADLIBS["lowest_bpsn_auc"], columns))
        return

    def auc(upper: list[int], lower: list[int]) -> float:
        wins = [(one > two) + (one == two) / 2 for one in upper for two in lower]
        return sum(wins) / len(wins) if wins else np.nan

    def values(toxic: bool, own: bool, term: str) -> list[int]:
        return [value for key, value, named in rows if key == toxic and (named == term) == own]

    weights = np.ones((len(rows), 1))
    for function, upper, lower in (
        (wiki_madlibs.subgroup_aucs, (True, True), (False, True)),
        (wiki_madlibs.bpsn_aucs, (True, False), (False, True)),
        (wiki_madlibs.bnsp_aucs, (True, True), (False, False)),
    ):
        expected = [auc(values(*upper, term), values(*lower, term)) for term in terms]
        np.testing.assert_allclose(function(columns, weights)[:, 0], expected)
    called = [value > 5 for _, value, _ in rows]

    def rate(toxic: bool, term: str | None) -> float:
        wrong = [
            call != key
            for (key, _, named), call in zip(rows, called, strict=True)
            if key == toxic and term in (None, named)
        ]
        return sum(wrong) / len(wrong) if wrong else np.nan

    for toxic, name in ((False, "false_positive_equality_difference"), (True, "false_negative_equality_difference")):
        some = sorted({term for key, _, term in rows if key == toxic and term})
        total = sum(abs(rate(toxic, None) - rate(toxic, term)) for term in some) if len(some) > 1 else np.nan
        np.testing.assert_allclose(_one(MADLIBS[name], columns), total, atol=1e-12)


def test_hatecheck_differences_are_between_target_groups() -> None:
    columns = _columns(
        [False, False, False, False, True, True, True],
        [0.9, 0.1, 0.2, 0.8, 0.9, 0.1, 0.9],
        target=["ants", "ants", "bees", "", "ants", "ants", "bees"],
        functionality=["f"] * 7,
    )
    assert _one(HATE["false_positive_rate_difference"], columns) == 0.5
    assert _one(HATE["false_negative_rate_difference"], columns) == 0.5
    assert _one(HATE["accuracy"], columns) == pytest.approx(4 / 7)
    np.testing.assert_array_equal(columns["outcome"], [1, 0, 0, 1, np.nan, np.nan, np.nan])


def test_hatecheck_differences_are_between_the_groups_that_a_draw_has() -> None:
    columns = _columns(
        [False] * 6,
        [0.9, 0.1, 0.2, 0.1, 0.9, 0.9],
        target=["ants", "ants", "bees", "bees", "wasps", ""],
        functionality=["f"] * 6,
    )
    # The draws: all; no wasps; ants twice and wasps; bees alone; nothing of a group.
    weights = np.array(
        [[1, 1, 2, 0, 0], [1, 1, 2, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 1]]
    ).astype(float)
    found = HATE["false_positive_rate_difference"].value(columns, weights)
    np.testing.assert_allclose(found, [1 - 0, 1 / 2 - 0, 1 - 1 / 2, np.nan, np.nan])
    missing = HATE["false_negative_rate_difference"].value(columns, weights)
    assert np.isnan(missing).all()


def test_terms_are_found_by_the_template_that_varies_nothing_else() -> None:
    texts = [
        "Being tall is nice.",
        "Being very tall is odd.",
        "Ann is a nice very tall.",
        "Ann is a nice cook.",
        "Bo is tall.",
    ]
    find = wiki_madlibs.term_finder(texts)
    assert [find(text) for text in texts] == ["tall", "very tall", "very tall", "", "tall"]
    assert wiki_madlibs.term_finder(["Bo is tall."])("Bo is tall.") == ""


@pytest.mark.real_data
def test_published_sets_load(data_root: Path, tmp_path: Path) -> None:
    files = Files(data_root, tmp_path)
    cases = hatecheck.load(files)
    assert (len(cases.items), len(cases.malformed)) == (3728, 0)
    assert sum(bool(item.labels["harmful"]) for item in cases.items) == 2563
    assert len({item.labels["functionality"] for item in cases.items}) == 29
    assert len({item.labels["target"] for item in cases.items} - {""}) == 7
    texts = wiki_madlibs.load(files)
    assert (len(texts.items), len(texts.malformed)) == (74_972, 0)
    named = [str(item.labels["term"]) for item in texts.items]
    # Dixon et al. 2018 fill their templates with 50 terms; 864 texts name an occupation instead.
    assert len(set(named) - {""}) == 50
    assert named.count("") == 864
