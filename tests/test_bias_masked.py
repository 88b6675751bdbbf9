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
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bias_models import bert_tokenizer, roberta_tokenizer, tiny_bert, tiny_roberta
from bias_references import crows_masked, crows_nangia, pseudo_likelihood, stereoset_masked
from fairsisa.bias.answers import Answers
from fairsisa.bias.benchmark import by_item
from fairsisa.bias.candidate import MASKED, Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.masked import ask_blank, ask_fill, ask_modified, ask_pseudo_likelihood, ask_unmodified
from fairsisa.bias.readouts.masked_network import MaskedNetwork, masked_network, trimmed_encoder, vocabulary_head
from fairsisa.bias.readouts.masked_questions import (
    NO_DIFFERENCE,
    align,
    lowers_case,
    marks_word_starts,
    modified_questions,
    unmodified_questions,
)
from fairsisa.bias.readouts.masked_rows import MaskedRow, Sight, batches_of, log_probabilities, num_positions
from fairsisa.bias.readouts.near_ties import rescore_near_ties
from fairsisa.errors import ConfigError, ModelError
from fairsisa.models.language import new_language_model
from fairsisa.settings import ScoringSettings

FP32 = ScoringSettings()
FAST = ScoringSettings(precision="fast")
CPU = torch.device("cpu")
WITHIN = 1e-5
MODELS = {"bert": tiny_bert, "roberta": tiny_roberta}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
SAMPLED = {"bert": 60, "roberta": 30}
BERT_LIKE = ("bert", "roberta", "electra", "mpnet", "deberta-v2")
SHAPES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "electra": {**SMALL, "embedding_size": 8},
    "albert": {**SMALL, "embedding_size": 8},
    "mpnet": SMALL,
    "deberta-v2": SMALL,
    "modernbert": {**SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60},
}


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


def adversarial(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pairs of options that differ by 0.01, half of which low precision turns round."""
    exact = [np.array([-3.0, -3.01]) for _ in range(count)]
    signs = np.where(np.random.default_rng(0).random(count) < 0.5, -1.0, 1.0)
    coarse = [values + np.array([sign * 0.02, 0.0]) for values, sign in zip(exact, signs, strict=True)]
    return coarse, exact


def preferences(options: Any) -> list[int]:
    return [int(np.argmax(values)) for values in options]


def test_near_ties_are_scored_again_and_without_a_threshold_preferences_change():
    coarse, exact = adversarial(100)
    found = rescore_near_ties(coarse, lambda numbers: [exact[number] for number in numbers], seed=0)
    assert preferences(found.values) == preferences(exact)
    assert len(found.rescored) == 100
    assert (found.largest_error, found.threshold) == pytest.approx((0.02, 0.04))
    careless = rescore_near_ties(coarse, lambda numbers: [exact[number] for number in numbers], seed=0, safety=0.0)
    assert preferences(careless.values) != preferences(exact)
    assert len(careless.rescored) == 16


@given(
    st.lists(st.lists(st.floats(-5, 0), min_size=1, max_size=4), min_size=1, max_size=40),
    st.floats(0.001, 0.5),
    st.integers(0, 9),
)
def test_no_preference_changes_where_no_error_exceeds_the_threshold(options, size, seed):
    exact = [np.array(each) for each in options]
    noise = np.random.default_rng(seed)
    coarse = [each + noise.uniform(-size, size, len(each)) for each in exact]
    found = rescore_near_ties(coarse, lambda numbers: [exact[number] for number in numbers], seed=seed)
    for number, (value, truth) in enumerate(zip(found.values, exact, strict=True)):
        error = np.ptp(coarse[number] - truth)
        if number in found.rescored:
            assert value is truth
            assert error <= found.largest_error
        elif error < found.threshold:
            assert np.argsort(-value, kind="stable").tolist() == np.argsort(-truth, kind="stable").tolist()
        if len(truth) < 2:
            assert number not in found.rescored


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_head_alone_gives_the_networks_own_logits(architecture):
    network = new_language_model(architecture, SHAPES[architecture], seed=1).eval()
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = network.base_model(input_ids=ids)[0]
        torch.testing.assert_close(vocabulary_head(network)(hidden[:, 4]), network(ids).logits[:, 4])
        parts = masked_network(network)
        at = torch.tensor([4, 0, 8])
        rows = parts.encode(ids, at)
        torch.testing.assert_close(parts.head(rows), network(ids).logits[torch.arange(3), at])
        trimmed = trimmed_encoder(network.base_model)
        assert (trimmed is not None) == (architecture in BERT_LIKE)
        if trimmed is not None:
            torch.testing.assert_close(trimmed(ids, at), rows)
    assert rows.shape == (3, 16)


def test_a_last_layer_that_needs_all_of_its_attention_is_not_trimmed():
    network = new_language_model("bert", SMALL, seed=1).eval()
    ids = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    last = network.bert.encoder.layer[-1]
    plain = type(last).forward

    class Outer(type(last)):
        def forward(self, hidden_states: torch.Tensor, *inputs: Any, **others: Any) -> torch.Tensor:
            return plain(self, hidden_states, *inputs, **others) + hidden_states

    last.__class__ = Outer
    with torch.no_grad():
        parts = masked_network(network)
        rows = parts.encode(ids, torch.tensor([3, 5]))
        torch.testing.assert_close(parts.head(rows), network(ids).logits[torch.arange(2), torch.tensor([3, 5])])
    assert rows.shape == (2, 16)


class Doubled(nn.Module):
    """A compressed layer: not a Linear, but in the place of one."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("halved", layer.weight.detach() / 2)
        self.register_buffer("shift", layer.bias.detach())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states @ (2 * self.halved).T + self.shift


def test_a_head_of_compressed_layers_runs_as_it_is():
    network = new_language_model("bert", SMALL, seed=1).eval()
    ids = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    network.cls.predictions.decoder = Doubled(network.cls.predictions.decoder)
    with torch.no_grad():
        expected = network(ids).logits[:, 3]
        parts = masked_network(network)
        rows = parts.encode(ids, torch.tensor([3, 3]))
        torch.testing.assert_close(parts.head(rows), expected)
    assert rows.shape == (2, 16)


def test_a_network_that_scales_its_logits_by_hand_is_run_whole():
    network = new_language_model("bert", SMALL, seed=1).eval()
    ids = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    plain = network.bert.forward

    class Wrapper(nn.Module):
        base_model_prefix = "bert"

        def __init__(self) -> None:
            super().__init__()
            self.bert, self.cls = network.bert, network.cls
            self.base_model = self.bert

        def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> Any:
            out = network(input_ids=input_ids) if input_ids is not None else network(inputs_embeds=inputs_embeds)
            out.logits = out.logits * (1 if inputs_embeds is None else 2)
            return out

    parts = masked_network(Wrapper())
    with torch.no_grad():
        rows = parts.encode(ids, torch.tensor([3, 3]))
        torch.testing.assert_close(rows, network(ids).logits[:, 3])
        assert parts.head(rows) is rows
    assert network.bert.forward == plain


def test_equal_sights_are_put_once_and_batches_hold_one_length():
    calls: list[tuple[int, ...]] = []

    def encode(ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(ids.shape))
        return ids[torch.arange(len(ids)), at].float().unsqueeze(1)

    network = MaskedNetwork(encode, lambda hidden: hidden * torch.tensor([[0.0, 1.0, 2.0]]))
    short, long = Sight((1, 1), 1), Sight((1, 0, 2), 2)
    rows = [MaskedRow(short, 0), MaskedRow(long, 1), MaskedRow(short, 2), MaskedRow(short, 0)]
    found = log_probabilities(rows, network, max_tokens=100, device=CPU)
    assert sorted(calls) == [(1, 2), (1, 3)]
    one, two = np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0])
    logs = [numbers - np.log(np.exp(numbers).sum()) for numbers in (one, two)]
    assert found == pytest.approx([logs[0][0], logs[1][1], logs[0][2], logs[0][0]])
    assert log_probabilities([], network, max_tokens=100, device=CPU).shape == (0,)


@given(st.lists(st.integers(1, 6), max_size=30), st.integers(1, 20))
@settings(max_examples=50)
def test_batches_hold_every_sight_once_and_no_more_tokens_than_allowed(lengths, max_tokens):
    sights = [Sight(tuple([number] * length), 0) for number, length in enumerate(lengths)]
    batches = [*batches_of(sights, max_tokens)]
    assert sorted(sight for batch in batches for sight in batch) == sorted(sights)
    for batch in batches:
        assert len({len(sight.ids) for sight in batch}) == 1
        assert len(batch) == 1 or len(batch) * len(batch[0].ids) <= max_tokens


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_alignment_covers_every_token_once_and_shares_equal_ones(first, second):
    found = align(first, second)
    for side, ids in enumerate((first, second)):
        assert sorted(found.modified[side] + found.shared[side]) == [*range(len(ids))]
    assert [first[place] for place in found.shared[0]] == [second[place] for place in found.shared[1]]


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
