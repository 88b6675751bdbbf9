import copy
import gzip
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bias_models import tiny_gpt2, tiny_llama
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.causal import (
    ask_continuations,
    ask_joint,
    ask_next_tokens,
    ask_sentences,
    bare_token,
    encode_pair,
    questions_of,
)
from fairsisa.bias.readouts.causal_questions import score_questions
from fairsisa.errors import ConfigError
from fairsisa.settings import ScoringSettings

pytestmark = pytest.mark.real_data
FP32 = ScoringSettings(max_tokens=512)
ITEMS = [
    Item("a", "The bird sat on the", (" branch", " roof of the house", " cup."), "c"),
    Item("b", "We bought apples, pears and  ", ("plums", "a boat"), "c"),
    Item("c", "", ("It rained all day.", "It rained all night.", "He left."), "c"),
    Item("d", "The bird sat on the", (" branch",), "c"),
    Item("e", "Why not", ("", " go home"), "c"),
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama])
def candidate(request, data_root):
    return request.param(data_root)


def first_token(candidate):
    tokenizer = candidate.tokenizer
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


@torch.inference_mode()
def slow_log_probabilities(candidate, ids):
    """One text, one ordinary pass: the log-probabilities of all words after each of its tokens."""
    return candidate.network(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(dim=-1)


def slow_likelihood(candidate, prefix, tokens):
    rows = slow_log_probabilities(candidate, [*prefix, *tokens])[len(prefix) - 1 : -1]
    values = [float(row[token]) for row, token in zip(rows, tokens, strict=True)]
    return sum(values), all(int(row.argmax()) == token for row, token in zip(rows, tokens, strict=True))


def in_harness_words(candidate, context, option):
    """The harness's `_encode_pair`, and what its `loglikelihood` does without a context, written from its text."""
    encode, begin = candidate.tokenizer.encode, first_token(candidate)
    if context == "":
        return [begin], encode(option, add_special_tokens=False)
    while context.endswith(" "):
        context, option = context[:-1], " " + option
    before = encode(context)
    return before, encode(context + option)[len(before) :]


def rows_of(answers):
    return {(row.item_id, row.option): row for row in answers.frame.itertuples()}


def test_continuations_are_those_of_one_at_a_time(candidate):
    found = rows_of(ask_continuations(candidate, ITEMS, FP32, {}))
    assert list(found) == [(item.item_id, option) for item in ITEMS for option in range(len(item.options))]
    for item in ITEMS:
        for option, text in enumerate(item.options):
            row = found[item.item_id, option]
            prefix, tokens = in_harness_words(candidate, item.context, text)
            if not tokens:
                assert (row.reason, row.num_tokens) == ("the option has no token of its own", 0)
                assert math.isnan(row.value)
                continue
            expected, likeliest = slow_likelihood(candidate, prefix, tokens)
            assert row.value == pytest.approx(expected, abs=1e-3, rel=1e-5)
            assert (row.num_tokens, row.text) == (len(tokens), "likeliest" if likeliest else "")


def test_what_is_likeliest_is_told(candidate):
    prompt = candidate.tokenizer.encode("Once upon a time")
    step = int(slow_log_probabilities(candidate, prompt)[-1].argmax())
    context = candidate.tokenizer.decode(prompt, skip_special_tokens=True)
    option = candidate.tokenizer.decode([*prompt, step], skip_special_tokens=True)[len(context) :]
    found = ask_continuations(candidate, [Item("a", context, (option, " xx"), "c")], FP32, {})
    assert found.frame["text"].tolist() == ["likeliest", ""]


def test_sentences_count_their_first_token(candidate):
    items = [replace(item, context="") for item in ITEMS[:3]]
    found = rows_of(ask_sentences(candidate, items, FP32, {}))
    for (item_id, option), row in found.items():
        text = next(item for item in items if item.item_id == item_id).options[option]
        tokens = candidate.tokenizer.encode(text, add_special_tokens=False)
        expected, _ = slow_likelihood(candidate, [first_token(candidate)], tokens)
        assert row.value == pytest.approx(expected, abs=1e-3)
        assert row.num_tokens == len(tokens)


def test_joint_reads_the_start_token_for_the_first_word_only(candidate):
    items = [Item("a", "not read", ("It rained all day.", "!", ""), "c")]
    found = ask_joint(candidate, items, FP32, {}).frame
    tokens = candidate.tokenizer.encode("It rained all day.", add_special_tokens=False)
    first = slow_log_probabilities(candidate, [first_token(candidate)])[0, tokens[0]]
    rest, _ = slow_likelihood(candidate, tokens[:1], tokens[1:])
    assert found["value"][0] == pytest.approx(float(first) + rest, abs=1e-3)
    assert found["num_tokens"].tolist()[0] == len(tokens)
    assert math.isfinite(found["value"][1])
    assert found["reason"].tolist() == ["", "", "the option has no token of its own"]


def test_next_tokens_and_the_mass_outside(data_root):
    gpt2 = tiny_gpt2(data_root)
    items = [
        Item("a", "Yes or no? (", ("yes", "no", "yes"), "c"),
        Item("b", "Yes or no? (", ("A", "absolutely not"), "c"),
    ]
    found = rows_of(ask_next_tokens(gpt2, items, FP32, {}))
    logs = slow_log_probabilities(gpt2, gpt2.tokenizer.encode("Yes or no? ("))[-1].numpy()
    yes, no, letter = (gpt2.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no", "A"))
    assert [found["a", option].value for option in (0, 1, 2)] == pytest.approx(logs[[yes, no, yes]], abs=1e-4)
    assert found["a", -1].value == pytest.approx(math.log1p(-np.exp(logs[[yes, no]]).sum()), abs=1e-6)
    assert found["b", -1].value == pytest.approx(math.log1p(-np.exp(logs[letter])), abs=1e-6)
    assert found["b", 1].reason == "the option is not one token of the vocabulary"
    none = ask_next_tokens(gpt2, [Item("c", "So", ("absolutely not",), "c")], FP32, {}).frame
    assert none["option"].tolist() == [0, -1]
    assert (none["reason"] == "the option is not one token of the vocabulary").all()


def test_a_bare_token_has_no_space_before_it(data_root):
    gpt2, llama = tiny_gpt2(data_root).tokenizer, tiny_llama(data_root).tokenizer
    assert gpt2.convert_ids_to_tokens([bare_token(gpt2, "yes"), bare_token(gpt2, " yes")]) == ["yes", "Ġyes"]
    assert llama.convert_ids_to_tokens([bare_token(llama, "he"), bare_token(llama, "A")]) == ["he", "A"]
    assert llama.convert_ids_to_tokens(llama.encode("he", add_special_tokens=False)) == [" he"]
    # "é" is one byte of two in GPT-2's alphabet, which is what that alphabet calls another letter.
    assert gpt2.decode([bare_token(gpt2, "é")]) == "é"
    assert bare_token(gpt2, "zzzxq") is None


def test_a_first_token_is_there_once(data_root):
    llama = tiny_llama(data_root)
    begin = llama.tokenizer.bos_token_id
    assert encode_pair(llama, "<s>It", " was")[0].count(begin) == 1
    assert encode_pair(llama, "It", " was")[0][0] == begin
    assert encode_pair(llama, "", "<s>It was")[0] == (begin,)
    assert encode_pair(llama, "", "<s>It was")[1].count(begin) == 0
    assert encode_pair(llama, "   ", "It") == encode_pair(llama, "", "   It")


def test_what_is_too_long_has_a_reason_and_leaves_the_others_alone(candidate):
    limit = candidate.network.config.max_position_embeddings
    long = Item("z", "one two " * limit, ("a",), "c")
    for ask in (ask_continuations, ask_next_tokens):
        found = rows_of(ask(candidate, [long, ITEMS[0]], FP32, {}))
        alone = rows_of(ask(candidate, [ITEMS[0]], FP32, {}))
        assert found["z", 0].reason.startswith("too long: ")
        assert math.isnan(found["z", 0].value)
        assert {key: row.value for key, row in found.items() if key[0] == "a"} == pytest.approx(
            {key: row.value for key, row in alone.items()}, abs=1e-4, nan_ok=True
        )
    begin = first_token(candidate)
    word = candidate.tokenizer.encode(" a", add_special_tokens=False)[-1]
    fits = candidate.tokenizer.decode([word] * limit).strip()
    tokens = candidate.tokenizer.encode(fits, add_special_tokens=False)
    assert begin not in tokens
    answer = ask_sentences(candidate, [Item("y", "", (fits,), "c")], FP32, {}).frame.iloc[0]
    assert (answer["reason"] == "") == (len(tokens) <= limit)


def test_a_chat_template_is_put_around_the_context(data_root):
    llama = tiny_llama(data_root)
    with pytest.raises(ConfigError, match="no chat template"):
        ask_continuations(llama, ITEMS, replace(FP32, chat_template=True), {})
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = TEMPLATE
    chatting = replace(llama, tokenizer=tokenizer)
    (question,) = questions_of(chatting, [Item("a", "Hi", (" Ho",), "c")], chat=True)
    (part,) = question.parts
    assert tokenizer.decode(part.prefix).replace(" ", "") == "<s><user>Hi<answer>"
    assert part.prefix.count(tokenizer.bos_token_id) == 1
    assert part.tokens == tuple(tokenizer.encode("Ho", add_special_tokens=False))


def test_a_quantised_cache_shows_in_answers(data_root):
    llama = tiny_llama(data_root)
    exact = ask_continuations(llama, ITEMS, FP32, {}).frame
    for bits, low, high in ((16, 0.0, 1e-3), (2, 0.5, 50.0)):
        found = ask_continuations(llama, ITEMS, replace(FP32, cache_bits=bits), {}).frame
        assert low <= np.nanmax(np.abs(found["value"] - exact["value"])) <= high
    joint = ask_joint(llama, ITEMS[2:3], replace(FP32, cache_bits=16), {}).frame
    assert joint["value"].to_numpy() == pytest.approx(ask_joint(llama, ITEMS[2:3], FP32, {}).frame["value"], abs=1e-3)


def read_piqa(data_root, count):
    with gzip.open(data_root / "mcq" / "piqa_validation.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:count]
    return [Item(str(n), row["goal"], (" " + row["sol1"], " " + row["sol2"]), "c") for n, row in enumerate(rows)]


def test_fast_precision_decides_as_fp32_does(data_root):
    llama, items = tiny_llama(data_root), read_piqa(data_root, 40)
    tables = {
        name: ask_continuations(llama, items, ScoringSettings(precision=name), {}).frame
        for name in ("fp32", "bf16", "fast")
    }
    for name in ("bf16", "fast"):
        change = (tables[name]["value"] - tables["fp32"]["value"]).abs()
        assert 0 < change.max() < 5.0
    per_token = {name: table["value"] / table["num_tokens"] for name, table in tables.items()}
    for values in ({name: table["value"] for name, table in tables.items()}, per_token):
        choices = {name: row.to_numpy().reshape(-1, 2).argmax(axis=1) for name, row in values.items()}
        assert choices["fast"].tolist() == choices["fp32"].tolist()
    assert (tables["fast"]["value"] == tables["fp32"]["value"]).any()


def test_a_chunk_of_real_items_costs_little_more_than_what_must_be_read(data_root):
    """The optimum reads each context once, and of each option all but its last token."""
    llama, items = tiny_llama(data_root), read_piqa(data_root, 100)
    questions = questions_of(llama, items, chat=False)
    assert all(question.parts for question in questions)
    run = score_questions(llama, questions, ScoringSettings()).num_run
    contexts = sum(len(question.parts[0].prefix) for question in questions if question.option == 0)
    optimum = contexts + sum(question.num_tokens - 1 for question in questions)
    assert run / optimum < 1.3


def test_no_finite_likelihood_is_a_reason(data_root, monkeypatch):
    gpt2 = tiny_gpt2(data_root)

    def broken(*args, **kwargs):
        values = score_questions(*args, **kwargs)
        return replace(values, totals=np.full_like(values.totals, -np.inf))

    monkeypatch.setattr("fairsisa.bias.readouts.causal.score_questions", broken)
    found = ask_continuations(gpt2, ITEMS[:1], FP32, {}).frame
    assert (found["reason"] == "the model gives it no finite log-likelihood").all()
    assert found["value"].isna().all()


def test_settings_that_are_not_known_are_refused(data_root):
    for ask in (ask_continuations, ask_joint, ask_next_tokens, ask_sentences):
        with pytest.raises(ConfigError, match="top_k"):
            ask(tiny_gpt2(data_root), ITEMS[:1], FP32, {"top_k": 3})


def test_a_tokenizer_without_a_first_token_is_refused(data_root):
    llama = tiny_llama(data_root)
    bare = copy.deepcopy(llama.tokenizer)
    bare.bos_token = bare.eos_token = None
    with pytest.raises(ConfigError, match="no token that begins or ends a text"):
        ask_joint(replace(llama, tokenizer=bare), ITEMS[:1], FP32, {})
