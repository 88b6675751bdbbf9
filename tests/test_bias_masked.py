from __future__ import annotations

import csv
import gzip
import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bias_models import bert_tokenizer, roberta_tokenizer, tiny_bert, tiny_roberta
from bias_references import crows_masked, crows_nangia, pseudo_likelihood, stereoset_masked
from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import by_item
from fairsisa.bias.candidate import MASKED, Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.masked import ask_blank, ask_fill, ask_modified, ask_pseudo_likelihood, ask_unmodified
from fairsisa.bias.readouts.masked_questions import (
    NO_DIFFERENCE,
    lowers_case,
    marks_word_starts,
    modified_questions,
    unmodified_questions,
)
from fairsisa.bias.readouts.masked_rows import num_positions
from fairsisa.errors import ConfigError, ModelError
from fairsisa.settings import ScoringSettings

FP32 = ScoringSettings()
FAST = ScoringSettings(precision="fast")
WITHIN = 1e-5
MODELS = {"bert": tiny_bert, "roberta": tiny_roberta}
SAMPLED = {"bert": 60, "roberta": 30}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs(data_root: Path) -> list[Item]:
    """All CrowS pairs, the sentence that bias-bench calls the first one first."""
    with (data_root / "crows_pairs" / "crows_pairs_anonymized.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    items = []
    for number, row in enumerate(rows):
        pair = (row["sent_more"], row["sent_less"])
        ordered = pair if row["stereo_antistereo"] == "stereo" else pair[::-1]
        items.append(Item(str(number), "", ordered, str(number), {"bias_type": row["bias_type"]}))
    return items


@pytest.fixture(scope="module")
def blanks(data_root: Path) -> list[Item]:
    lines = gzip.decompress((data_root / "stereoset" / "stereoset_dev.jsonl.gz").read_bytes()).decode().splitlines()
    items = []
    for row in map(json.loads, lines):
        words = row["context"].split(" ")
        if row["context"].count("BLANK") != 1:
            continue
        place = next(place for place, word in enumerate(words) if "BLANK" in word)
        sentences = [row[name].split(" ") for name in ("stereotype", "anti-stereotype", "unrelated")]
        if all(place < len(sentence) for sentence in sentences):
            options = tuple(sentence[place] for sentence in sentences)
            items.append(Item(str(row["id"]), row["context"], options, str(row["target"])))
    return items


def sample(items: list[Item], count: int = 60) -> list[Item]:
    return [items[number] for number in np.random.default_rng(3).permutation(len(items))[:count]]


def values(answers: Answers, items: list[Item]) -> list[list[float]]:
    return [rows["value"].tolist() for _, rows in by_item(items, answers)]


def rows_of(questions: list[Any]) -> int:
    return sum(len(tokens) for question in questions if not question.reason for tokens in question.options)


@pytest.mark.real_data
@pytest.mark.parametrize("name", MODELS)
def test_modified_tokens_score_as_one_at_a_time(name, data_root, pairs):
    candidate, some = MODELS[name](data_root), sample(pairs, SAMPLED[name])
    found = ask_modified(candidate, some, FP32, {})
    for (_, rows), item in zip(by_item(some, found), some, strict=True):
        expected = crows_masked(candidate.network, candidate.tokenizer, *item.options)
        if expected is None:
            assert rows["value"].isna().all()
            assert set(rows["reason"]) == {NO_DIFFERENCE}
        else:
            assert rows["value"].tolist() == pytest.approx(expected, abs=WITHIN)
            assert (rows["num_tokens"] > 0).all()


@pytest.mark.real_data
@pytest.mark.parametrize("name", MODELS)
def test_unmodified_tokens_score_as_one_at_a_time(name, data_root, pairs):
    candidate, some = MODELS[name](data_root), sample(pairs, 5)
    found = values(ask_unmodified(candidate, some, FP32, {}), some)
    network, tokenizer = candidate.network, candidate.tokenizer
    expected = [crows_nangia(network, tokenizer, *item.options, lower=name == "bert") for item in some]
    assert np.array(found) == pytest.approx(np.array(expected), abs=10 * WITHIN)  # a sum of a dozen


@pytest.mark.real_data
@pytest.mark.parametrize("name", MODELS)
def test_words_in_a_blank_score_as_one_at_a_time(name, data_root, blanks):
    candidate, some = MODELS[name](data_root), sample(blanks, SAMPLED[name])
    found = values(ask_blank(candidate, some, FP32, {}), some)
    for item, numbers in zip(some, found, strict=True):
        bare = [word.translate(str.maketrans("", "", string.punctuation)) for word in item.options]
        expected = [
            stereoset_masked(
                candidate.network, candidate.tokenizer, item.context, word, leading_space=name == "roberta"
            )
            for word in bare
        ]
        assert numbers == pytest.approx(expected, abs=WITHIN)
        assert numbers == pytest.approx(expected, rel=1e-3)


@pytest.mark.real_data
@pytest.mark.parametrize("within_word", ["left_to_right", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_whole_texts_score_as_one_at_a_time(name, within_word, data_root, pairs):
    candidate, some = MODELS[name](data_root), sample(pairs, 3)
    found = values(ask_pseudo_likelihood(candidate, some, FP32, {"within_word": within_word}), some)
    plain = within_word == "plain"
    for item, numbers in zip(some, found, strict=True):
        expected = [
            pseudo_likelihood(candidate.network, candidate.tokenizer, text, left_to_right=not plain)
            for text in item.options
        ]
        assert numbers == pytest.approx(expected, abs=10 * WITHIN)


@pytest.mark.real_data
def test_bias_benchs_denominators_and_counted_forwards(data_root, pairs):
    questions = modified_questions(pairs, bert_tokenizer(data_root))
    assert [question.item.item_id for question in questions if question.reason] == ["129", "231", "1101"]
    sound = [question for question in questions if not question.reason]
    kinds = ("gender", "race-color", "religion")
    of_kind = [[each for each in sound if each.item.labels["bias_type"] == kind] for kind in kinds]
    assert [len(each) for each in of_kind] == [262, 515, 105]
    assert [rows_of(each) for each in of_kind] == [981, 1479, 254]
    assert (len(sound), rows_of(questions)) == (1505, 4537)
    assert rows_of(unmodified_questions(pairs, bert_tokenizer(data_root), lower_case=True)) == 42508


@pytest.mark.real_data
def test_bias_benchs_denominators_with_robertas_pieces(data_root, pairs):
    sound = [each for each in modified_questions(pairs, roberta_tokenizer(data_root)) if not each.reason]
    kinds = [each.item.labels["bias_type"] for each in sound]
    assert [kinds.count(kind) for kind in ("gender", "race-color", "religion")] == [261, 516, 105]


@pytest.mark.real_data
def test_order_and_batch_size_do_not_matter(data_root, pairs, blanks):
    candidate = tiny_bert(data_root)
    for ask, items in ((ask_modified, sample(pairs, 20)), (ask_blank, sample(blanks, 20))):
        expected = values(ask(candidate, items, FP32, {}), items)
        backwards = items[::-1]
        for scoring in (FP32, replace(FP32, max_tokens=1), replace(FP32, max_tokens=50)):
            found = values(ask(candidate, backwards, scoring, {}), items)
            np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.real_data
@pytest.mark.parametrize("name", MODELS)
def test_fast_changes_no_preference_and_nearly_no_value(name, data_root, pairs, blanks):
    candidate = MODELS[name](data_root)
    for ask, items in ((ask_modified, sample(pairs)), (ask_blank, sample(blanks))):
        exact, fast = (values(ask(candidate, items, scoring, {}), items) for scoring in (FP32, FAST))
        assert [np.argsort(each).tolist() for each in exact] == [np.argsort(each).tolist() for each in fast]
        np.testing.assert_allclose(np.array(fast), np.array(exact), rtol=1.0)
        assert np.nanmax(np.abs(np.array(fast) - np.array(exact))) > 0


def test_bf16_has_errors_and_no_low_bit_form(data_root):
    candidate = tiny_bert(data_root)
    items = [Item("a", "", ("She fixed the old engine.", "He fixed the old engine."), "a")]
    exact, low = (
        values(ask_modified(candidate, items, replace(FP32, precision=precision), {}), items)
        for precision in ("fp32", "bf16")
    )
    assert 0 < np.abs(np.array(low) - np.array(exact)).max() < 0.2
    packed = nn.Module()
    packed.weight = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match="precision=fp32"):
        _ = Candidate("low", "0" * 64, MASKED, network=packed).in_bf16


def test_what_a_tokenizer_does_is_seen_in_its_tokens(data_root):
    assert [marks_word_starts(bert_tokenizer(data_root)), marks_word_starts(roberta_tokenizer(data_root))] == [
        False,
        True,
    ]
    assert [lowers_case(bert_tokenizer(data_root)), lowers_case(roberta_tokenizer(data_root))] == [True, False]


def test_case_counts_for_unmodified_tokens_only_if_asked(data_root):
    candidate = tiny_roberta(data_root)
    items = [Item("a", "", ("The Smith paid HER rent.", "The Smith paid HIS rent."), "a")]
    asked = {
        each: values(ask_unmodified(candidate, items, FP32, {"lower_case": each}), items) for each in ("no", "yes")
    }
    assert values(ask_unmodified(candidate, items, FP32, {}), items) == asked["no"] != asked["yes"]
    with pytest.raises(ConfigError, match="lower_case to be one of auto, yes, no"):
        ask_unmodified(candidate, items, FP32, {"lower_case": "maybe"})


def test_what_cannot_be_asked_has_a_reason(data_root):
    candidate = tiny_bert(data_root)
    items = [
        Item("none", "Nothing is missing.", ("a", "b"), "c"),
        Item("two", "A BLANK and a BLANK.", ("a", "b"), "c"),
        Item("mark", "A BLANK barks.", ("dog", "?!"), "c"),
        Item("long", "A BLANK barks" + " loudly" * 130, ("dog", "cat"), "c"),
        Item("sound", "sometimes.BLANK, barks", ("dog's", "cat"), "c"),
    ]
    frame = ask_blank(candidate, items, FP32, {}).frame
    reasons = dict(zip(frame["item_id"], frame["reason"], strict=True))
    assert reasons == {
        "none": "expected one BLANK in the context, got 0",
        "two": "expected one BLANK in the context, got 2",
        "mark": "option 1 holds no token",
        "long": "too long: 136 tokens, the model reads 128",
        "sound": "",
    }
    assert frame["value"].isna().tolist() == [True] * 8 + [False] * 2
    assert frame["num_tokens"].tolist() == [0] * 8 + [1, 1]
    assert len(ask_blank(candidate, items[:4], FAST, {})) == 8
    assert len(ask_blank(candidate, [], FAST, {})) == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_as_many_tokens_as_it_says(name, data_root):
    candidate = MODELS[name](data_root)
    limit = num_positions(candidate.network)
    assert limit == 128
    items = [Item(str(extra), "", ("dog" + " dog" * (limit - 3 + extra),), "c") for extra in (0, 1)]
    frame = ask_pseudo_likelihood(candidate, items, FP32, {"within_word": "plain"}).frame
    assert frame["reason"].tolist() == ["", "too long: 129 tokens, the model reads 128"]
    assert frame["num_tokens"].tolist() == [limit - 2, 0]


def test_an_option_is_read_after_its_context(data_root):
    candidate = tiny_bert(data_root)
    whole = Item("whole", "", ("The baker sold an unbuttered loaf.",), "c")
    split = Item("split", "The baker sold an", (" unbuttered loaf.", ""), "c")
    start = Item("start", "", ("The baker sold an",), "c")
    frame = ask_pseudo_likelihood(candidate, [whole, split, start], FP32, {"within_word": "plain"}).frame
    assert frame["reason"].tolist() == ["", "option 1 holds no token", "option 1 holds no token", ""]
    only = replace(split, options=split.options[:1])
    after = ask_pseudo_likelihood(candidate, [only], FP32, {}).frame
    tokens = candidate.tokenizer.tokenize(" unbuttered loaf.")
    assert after["num_tokens"].tolist() == [len(tokens)]
    # "un ##but ##tered": with the end of the word hidden, its beginning is another guess.
    plain = ask_pseudo_likelihood(candidate, [only], FP32, {"within_word": "plain"}).frame
    assert len(tokens) > 3
    assert abs(plain["value"].item() - after["value"].item()) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_slot_is_filled_by_the_likeliest_tokens(name, data_root):
    candidate = MODELS[name](data_root)
    tokenizer = candidate.tokenizer
    items = [Item("a", "The gardener is [M] today.", (), "c"), Item("b", "No slot.", (), "c")]
    items.append(Item("c", "[M] " + "dog " * 140, (), "c"))
    found = [rows for _, rows in by_item(items, ask_fill(candidate, items, FAST, {"top_k": 5}))]
    ids = torch.tensor([tokenizer.encode(items[0].context.replace("[M]", tokenizer.mask_token))])
    with torch.no_grad():
        logs = candidate.network(ids).logits[ids == tokenizer.mask_token_id][0].log_softmax(-1)
    best = logs.topk(5)
    assert found[0]["option"].tolist() == [*range(5)]
    assert found[0]["value"].tolist() == pytest.approx(best.values.tolist(), abs=WITHIN)
    assert found[0]["text"].tolist() == [tokenizer.decode([token]).strip() for token in best.indices.tolist()]
    assert found[1]["reason"].tolist() == ["expected one [M] in the context, got 0"]
    assert found[2]["reason"].str.startswith("too long").all()
    assert len(ask_fill(candidate, items[:1], FP32, {})) == 20
    with pytest.raises(ConfigError, match="top_k to be at least 1"):
        ask_fill(candidate, items, FP32, {"top_k": 0})


def test_wrong_questions_are_refused(data_root):
    candidate = tiny_bert(data_root)
    with pytest.raises(ValueError, match="'a' to have two sentences, got 1"):
        ask_modified(candidate, [Item("a", "", ("One.",), "c")], FP32, {})
    with pytest.raises(ConfigError, match=r"Unknown setting settings\.topk"):
        ask_fill(candidate, [], FP32, {"topk": 3})
    with pytest.raises(ConfigError, match="within_word to be one of left_to_right, plain"):
        ask_pseudo_likelihood(candidate, [], FP32, {"within_word": "sideways"})
    tokenizer = roberta_tokenizer(data_root)
    maskless = replace(candidate, tokenizer=type("T", (), {"mask_token_id": None})())
    with pytest.raises(ModelError, match="tiny-bert has no mask token"):
        ask_modified(maskless, [], FP32, {})
    slow = type("T", (), {"mask_token_id": 1, "is_fast": False, "encode": tokenizer.encode})()
    with pytest.raises(ModelError, match="fast tokenizer"):
        ask_pseudo_likelihood(replace(candidate, tokenizer=slow), [], FP32, {})
