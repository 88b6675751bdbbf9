from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fairsisa.bias.candidate import CAUSAL, MASKED, Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.texts import ask_texts, continuation, end_tokens, prompt_tokens
from fairsisa.errors import ConfigError
from fairsisa.models.generating import Sampling, generate
from fairsisa.models.language import new_language_model
from fairsisa.models.text_tokenizers import train_tokenizer
from fairsisa.settings import ScoringSettings

PROMPTS = (
    "A clerk went home.",
    "Rain",
    "The old boat lay on the sand, and",
    "Two cooks sang",
    "My neighbour said that the garden was",
)
UNKNOWN = {"unk_token": "<unk>"}
WORDS = sorted({word.strip(".,") for prompt in PROMPTS for word in prompt.split()})
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
SAMPLED = ScoringSettings(temperature=1.0, num_continuations=2, max_new_tokens=5, seed=3)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def gpt2() -> Candidate:
    """A byte-level tokenizer that puts no token of its own."""
    tokenizer = train_tokenizer(PROMPTS, 320)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": len(tokenizer)}
    shape |= {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.5}
    network = new_language_model("gpt2", shape, seed=0).eval()
    return Candidate("tiny", "0" * 64, CAUSAL, network, tokenizer)


def llama_tokenizer(*, adds_end: bool = False, template: str | None = None) -> Any:
    """As Llama's: a token begins each text, and words carry the space before them, which decoding drops in front."""
    pieces = ["<unk>", "<s>", "</s>", *(f"▁{word}" for word in WORDS), *"abcdefghijklmnopqrstuvwxyz[]▁.,ARTM"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.WordLevel(vocabulary, **UNKNOWN))
    inner.normalizer = normalizers.Replace(".", "")
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    around = "<s> $A </s>" if adds_end else "<s> $A"
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", **UNKNOWN}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **special)
    tokenizer.chat_template = template
    return tokenizer


@cache
def llama(template: str | None = None) -> Candidate:
    tokenizer = llama_tokenizer(template=template)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    network = new_language_model("llama", shape | {"initializer_range": 0.5}, seed=0).eval()
    return Candidate("tiny llama", "1" * 64, CAUSAL, network, tokenizer)


def items_of(prompts: Sequence[str]) -> list[Item]:
    return [Item(f"item-{prompt}", prompt, (), "all") for prompt in prompts]


def texts_of(candidate: Candidate, prompts: Sequence[str], scoring: ScoringSettings, **given: Any) -> dict[str, Any]:
    frame = ask_texts(candidate, items_of(prompts), scoring, given).frame
    assert (frame["reason"] == "").all()
    assert (frame["value"] == 0.0).all()
    return {(row.item_id, row.option): (row.text, row.num_tokens) for row in frame.itertuples()}


# What is written


@pytest.mark.parametrize("candidate", [gpt2, llama])
def test_greedy_is_what_hugging_face_writes(candidate: Any) -> None:
    model = candidate()
    found = texts_of(model, PROMPTS, ScoringSettings(max_new_tokens=8))
    for prompt in PROMPTS:
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        whole = model.network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        text = model.tokenizer.decode(whole[0], skip_special_tokens=True)
        head = model.tokenizer.decode(ids[0], skip_special_tokens=True)
        assert head + found[f"item-{prompt}", 0][0] == text
        new = whole[0, ids.shape[1] :].tolist()
        ends = end_tokens(model.network, model.tokenizer)
        assert found[f"item-{prompt}", 0][1] == len([token for token in new if token not in ends])


@settings(max_examples=15)
@given(st.permutations(PROMPTS), st.integers(1, 5), st.sampled_from([1, 60, 4096]), st.sampled_from([0.0, 1.0]))
def test_texts_do_not_depend_on_order_chunk_or_batch(
    order: list[str], size: int, max_tokens: int, temperature: float
) -> None:
    given_ = {"temperature": temperature, "num_continuations": 2 if temperature else 1, "max_new_tokens": 4}
    expected = texts_of(gpt2(), PROMPTS, ScoringSettings(**given_))
    found: dict[Any, Any] = {}
    for start in range(0, len(order), size):
        found |= texts_of(gpt2(), order[start : start + size], ScoringSettings(**given_, max_tokens=max_tokens))
    assert found == expected


def test_rows_follow_items_and_their_continuations() -> None:
    frame = ask_texts(gpt2(), items_of(PROMPTS), SAMPLED, {}).frame
    assert frame["item_id"].tolist() == [f"item-{prompt}" for prompt in PROMPTS for _ in range(2)]
    assert frame["option"].tolist() == [0, 1] * len(PROMPTS)
    assert frame["text"].nunique() > len(PROMPTS)


def test_an_item_s_draws_are_its_own() -> None:
    same = [Item(name, PROMPTS[0], (), "all") for name in ("one", "two")]
    first, second = ask_texts(gpt2(), same, SAMPLED, {}).frame.groupby("item_id")["text"].apply(list)
    assert first != second
    alone = ask_texts(gpt2(), same[1:], SAMPLED, {}).frame["text"].tolist()
    assert alone == second
    other = ScoringSettings(temperature=1.0, num_continuations=2, max_new_tokens=5, seed=4)
    assert ask_texts(gpt2(), same[1:], other, {}).frame["text"].tolist() != second


def test_a_prompt_s_own_seed_gives_what_it_gives_alone() -> None:
    prompts, network = [[5, 6, 7], [8], [9, 10]], gpt2().network
    seeds = (11, 12, 13)
    together = generate(network, prompts, max_new_tokens=6, sampling=Sampling(0, 3, prompt_seeds=seeds))
    for prompt, seed, rows in zip(prompts, seeds, together, strict=True):
        alone = generate(network, [prompt], max_new_tokens=6, sampling=Sampling(seed, 3))
        assert torch.equal(alone[0], rows)


def test_prompts_and_seeds_of_other_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="a seed for each of 2 prompts, got 1"):
        generate(gpt2().network, [[1], [2]], max_new_tokens=2, sampling=Sampling(0, prompt_seeds=(1,)))


def test_the_settings_of_scoring_go_before_the_benchmark_s() -> None:
    of_benchmark = texts_of(gpt2(), PROMPTS[:1], ScoringSettings(), max_new_tokens=3)
    of_user = texts_of(gpt2(), PROMPTS[:1], ScoringSettings(max_new_tokens=2), max_new_tokens=3)
    assert [n for _, n in [*of_benchmark.values(), *of_user.values()]] == [3, 2]


def test_a_stop_cuts_the_text_at_its_first_place() -> None:
    scoring = ScoringSettings(max_new_tokens=8)
    ((whole, count),) = texts_of(gpt2(), PROMPTS[:1], scoring).values()
    stops = [whole[4:6], whole[2:4], "not there"]
    ((cut, same),) = texts_of(gpt2(), PROMPTS[:1], scoring, stop=stops).values()
    assert cut == whole[: min(whole.find(stop) for stop in stops[:2])]
    assert same == count


def test_a_text_ends_at_an_end_of_the_model_or_the_tokenizer() -> None:
    model = gpt2()
    prompt = model.tokenizer(PROMPTS[2])["input_ids"]
    free = generate(model.network, [prompt], max_new_tokens=6)[0, 0].tolist()
    place = next(n for n, token in enumerate(free) if n > 0 and token not in free[:n])
    before = model.network.generation_config.eos_token_id
    model.network.generation_config.eos_token_id = [free[place], 0]
    try:
        ((text, count),) = texts_of(model, PROMPTS[2:3], ScoringSettings(max_new_tokens=6)).values()
    finally:
        model.network.generation_config.eos_token_id = before
    assert count == place
    assert text == model.tokenizer.decode(free[:place])


@pytest.mark.parametrize(
    ("of_model", "of_tokenizer", "expected"), [(None, None, ()), (7, 3, (3, 7)), ([4, 3], 3, (3, 4)), ([4], None, (4,))]
)
def test_ends_are_the_tokenizer_s_then_the_model_s(of_model: Any, of_tokenizer: Any, expected: Any) -> None:
    network = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=of_model))
    assert end_tokens(network, SimpleNamespace(eos_token_id=of_tokenizer)) == expected
    assert end_tokens(SimpleNamespace(), SimpleNamespace(eos_token_id=5)) == (5,)


def test_few_bits_change_what_is_written() -> None:
    exact = texts_of(gpt2(), PROMPTS, ScoringSettings(max_new_tokens=8))
    assert texts_of(gpt2(), PROMPTS, ScoringSettings(max_new_tokens=8, cache_bits=16)) == exact
    assert texts_of(gpt2(), PROMPTS, ScoringSettings(max_new_tokens=8, cache_bits=2)) != exact


@pytest.mark.parametrize(("precision", "products"), [("fp32", "fp32"), ("fast", "fp32"), ("bf16", "bf16")])
def test_a_precision_is_that_of_the_network(precision: str, products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()

    def noted(network: Any, prompts: Any, **given: Any) -> torch.Tensor:
        used.update(each.dtype for each in network.parameters())
        return generate(network, prompts, **given)

    monkeypatch.setattr("fairsisa.bias.readouts.texts.generate", noted)
    texts_of(gpt2(), PROMPTS[:1], ScoringSettings(max_new_tokens=2, precision=precision))
    assert used == ({torch.float32, torch.bfloat16} if products == "bf16" else {torch.float32})


def test_the_space_before_a_first_word_stays() -> None:
    tokenizer = llama_tokenizer()
    prompt, tokens = tokenizer("The old")["input_ids"], [tokenizer.convert_tokens_to_ids("▁boat")]
    assert tokenizer.decode(tokens) == "boat"
    assert continuation(tokenizer, prompt, tokens) == " boat"
    assert continuation(tokenizer, [1], tokens) == "boat"


# Prompts


@pytest.mark.parametrize("text", ["The old boat", "<s> The old boat", "", "<s>"])
@pytest.mark.parametrize("adds_end", [False, True])
def test_a_raw_prompt_begins_with_one_first_token_and_has_no_end(text: str, adds_end: bool) -> None:
    candidate = Candidate("x", "0" * 64, CAUSAL, None, llama_tokenizer(adds_end=adds_end))
    tokens = prompt_tokens(candidate, text, chat=False)
    assert tokens.count(1) == 1
    assert tokens[0] == 1
    assert 2 not in tokens
    if "boat" in text:
        assert tokens[-1] == candidate.tokenizer.convert_tokens_to_ids("▁boat")


def test_an_end_that_the_text_itself_has_stays() -> None:
    candidate = Candidate("x", "0" * 64, CAUSAL, None, llama_tokenizer())
    assert prompt_tokens(candidate, "The boat</s>", chat=False)[-1] == 2


def test_a_tokenizer_without_a_first_token_puts_none_unless_there_is_nothing() -> None:
    tokens = prompt_tokens(gpt2(), "Rain", chat=False)
    assert tokens == gpt2().tokenizer("Rain")["input_ids"]
    assert prompt_tokens(gpt2(), "", chat=False) == [0]


def test_raw_puts_what_the_system_says_before_the_prompt() -> None:
    tokens = prompt_tokens(gpt2(), "Rain", chat=False, system="Be brief.")
    assert gpt2().tokenizer.decode(tokens) == "Be brief.\n\nRain"


def test_a_chat_prompt_is_the_template_filled_in_with_one_first_token() -> None:
    candidate = Candidate("x", "0" * 64, CAUSAL, None, llama_tokenizer(template=TEMPLATE))
    tokens = prompt_tokens(candidate, "The old boat", chat=True)
    rendered = "<s>[user] The old boat [assistant]"
    assert tokens == candidate.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    # What tokenising a rendered template a second time gives.
    assert candidate.tokenizer(rendered)["input_ids"] == [1, *tokens]
    assert tokens.count(1) == 1


def test_chat_gives_the_system_a_turn_of_its_own() -> None:
    candidate = Candidate("x", "0" * 64, CAUSAL, None, llama_tokenizer(template=TEMPLATE))
    with_turn = prompt_tokens(candidate, "Rain", chat=True, system="My garden")
    expected = "<s>[system] My garden [user] Rain [assistant]"
    assert with_turn == candidate.tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_a_template_without_a_system_gets_it_before_the_user_s_text() -> None:
    candidate = Candidate("x", "0" * 64, CAUSAL, None, llama_tokenizer(template=NO_SYSTEM))
    found = prompt_tokens(candidate, "Rain", chat=True, system="My garden")
    assert found == prompt_tokens(candidate, "My garden\n\nRain", chat=True)


def test_a_chat_is_continued() -> None:
    candidate = llama(TEMPLATE)
    found = texts_of(candidate, PROMPTS[1:2], ScoringSettings(chat_template=True, max_new_tokens=4))
    raw = texts_of(candidate, ["[user] Rain [assistant]"], ScoringSettings(max_new_tokens=4))
    assert [*found.values()] == [*raw.values()]


# What is refused, and what is not scored


def test_a_prompt_that_does_not_fit_is_named_and_others_are_written() -> None:
    long = " ".join(["boat"] * 27)
    frame = ask_texts(llama(), items_of([long, "Rain"]), ScoringSettings(max_new_tokens=6), {}).frame
    assert frame["reason"].tolist() == ["the prompt's 28 tokens and 6 new ones exceed the model's 32 positions", ""]
    assert math.isnan(frame["value"][0])
    assert (frame["text"][0], frame["num_tokens"][1]) == ("", 6)
    assert texts_of(llama(), [long], ScoringSettings(max_new_tokens=5))


def test_a_prompt_without_a_token_is_named() -> None:
    tokenizer = train_tokenizer(PROMPTS, 320)
    tokenizer.eos_token = None
    candidate = Candidate("x", "0" * 64, CAUSAL, gpt2().network, tokenizer)
    frame = ask_texts(candidate, items_of([""]), ScoringSettings(), {"max_new_tokens": 2}).frame
    assert frame["reason"].tolist() == ["the prompt holds no token"]


def test_no_item_gives_no_answer() -> None:
    assert len(ask_texts(gpt2(), [], SAMPLED, {})) == 0


def test_several_texts_without_chance_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_continuations=5 texts would be the same: set temperature=1\.0"):
        ask_texts(gpt2(), items_of(PROMPTS), ScoringSettings(num_continuations=5), {})


def test_a_tokenizer_without_a_template_is_named() -> None:
    with pytest.raises(ConfigError, match="The tokenizer of tiny has no chat template: set chat_template=false"):
        ask_texts(gpt2(), items_of(PROMPTS), ScoringSettings(chat_template=True), {})


def test_a_template_that_fails_is_named() -> None:
    candidate = Candidate("x", "0" * 64, CAUSAL, None, llama_tokenizer(template="{{ raise_exception('odd turns') }}"))
    for system in ("", "My garden"):
        with pytest.raises(ConfigError, match="chat template of x cannot be filled in: odd turns"):
            prompt_tokens(candidate, "Rain", chat=True, system=system)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"setting texts\.stops\. Did you mean 'stop'"):
        ask_texts(gpt2(), items_of(PROMPTS), ScoringSettings(), {"stops": []})


def test_a_masked_model_writes_nothing() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    network = new_language_model("bert", shape | {"vocab_size": 400}, seed=0).eval()
    candidate = Candidate("x", "0" * 64, MASKED, network, gpt2().tokenizer)
    with pytest.raises(ConfigError, match="Expected a causal language model"):
        ask_texts(candidate, items_of(PROMPTS), ScoringSettings(max_new_tokens=2), {})
