from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from fairsisa.bias.candidate import CAUSAL, CLASSIFIER, ENCODER, MASKED, Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.vectors import ask_vectors, sentence_vectors
from fairsisa.errors import ConfigError
from fairsisa.models.base import quiet
from fairsisa.models.language import language_config, new_language_model
from fairsisa.settings import ScoringSettings

SENTENCES = (
    "this is a lamp",
    "these are lamps",
    "he is here",
    "a",
    "this is a lamp and these are lamps and he is here",
    "she was there",
    "lamps are here",
)
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
SPECIAL = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SHAPE |= {"initializer_range": 0.5, "max_position_embeddings": 16}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def tokenizer(special: bool = True) -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    unknown = {"unk_token": "[UNK]"}
    inner = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, **unknown))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)


@cache
def candidate(kind: str, architecture: str = "bert") -> Candidate:
    tokens = tokenizer(architecture != "llama")
    shape = {**SHAPE, "vocab_size": len(tokens)}
    if kind in (MASKED, CAUSAL):
        network = new_language_model(architecture, shape, seed=0)
    else:
        auto = AutoModel if kind == ENCODER else AutoModelForSequenceClassification
        torch.manual_seed(0)
        with quiet():
            network = auto.from_config(language_config(architecture, shape))
    return Candidate(kind, "0" * 64, kind, network.eval(), tokens)


CASES = [(MASKED, "bert"), (MASKED, "roberta"), (CAUSAL, "llama"), (CLASSIFIER, "bert"), (ENCODER, "bert")]
cases = pytest.mark.parametrize(("kind", "architecture"), CASES)


def items_of(sentences: Any) -> list[Item]:
    return [Item(str(number), "", (sentence,), "all") for number, sentence in enumerate(sentences)]


def one_at_a_time(model: Candidate, sentence: str) -> np.ndarray:
    """As bias-bench encodes: autograd on, a mean over dimension 1 of the last hidden state, divided by its norm."""
    inputs = model.tokenizer(sentence, return_tensors="pt", padding=True, truncation=True)
    whole = model.network(input_ids=inputs["input_ids"], output_hidden_states=True)
    states = whole.hidden_states[-1]
    encoding = states.mean(dim=1).detach().view(-1).numpy()
    return encoding / np.linalg.norm(encoding)


@cases
def test_a_vector_is_bias_bench_s(kind: str, architecture: str) -> None:
    model = candidate(kind, architecture)
    answers = ask_vectors(model, items_of(SENTENCES), ScoringSettings(), {})
    expected = np.stack([one_at_a_time(model, sentence) for sentence in SENTENCES])
    assert answers.vectors is not None
    assert answers.vectors.dtype == np.float32
    np.testing.assert_allclose(answers.vectors, expected, atol=2e-6)
    assert answers.frame["num_tokens"].tolist() == [len(model.tokenizer(s)["input_ids"]) for s in SENTENCES]
    assert (answers.frame["value"] == 0.0).all()
    assert np.ptp(expected, axis=0).max() > 0.05


@settings(max_examples=20)
@given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=12), st.sampled_from([1, 10, 4096]))
def test_vectors_do_not_depend_on_order_batches_or_repeats(sentences: list[str], max_tokens: int) -> None:
    model = candidate(MASKED)
    answers = ask_vectors(model, items_of(sentences), ScoringSettings(max_tokens=max_tokens), {})
    known = ask_vectors(model, items_of(SENTENCES), ScoringSettings(), {}).vectors
    assert answers.vectors is not None
    assert known is not None
    expected = known[[SENTENCES.index(sentence) for sentence in sentences]]
    np.testing.assert_allclose(answers.vectors, expected, atol=1e-6)
    assert answers.frame["item_id"].tolist() == [str(number) for number in range(len(sentences))]


@pytest.mark.parametrize(("pooling", "place"), [("cls", 0), ("last", -1)])
def test_a_vector_may_be_that_of_one_token(pooling: str, place: int) -> None:
    model = candidate(MASKED)
    answers = ask_vectors(model, items_of(SENTENCES), ScoringSettings(), {"pooling": pooling})
    assert answers.vectors is not None
    for sentence, vector in zip(SENTENCES, answers.vectors, strict=True):
        inputs = model.tokenizer(sentence, return_tensors="pt")
        token = model.network.bert(inputs["input_ids"]).last_hidden_state[0, place].detach().numpy()
        np.testing.assert_allclose(vector, token / np.linalg.norm(token), atol=2e-6)


def test_a_sentence_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(network: Any, sentences: Any, **given: Any) -> np.ndarray:
        seen.extend(sentences)
        return sentence_vectors(network, sentences, **given)

    monkeypatch.setattr("fairsisa.bias.readouts.vectors.sentence_vectors", noted)
    ask_vectors(candidate(MASKED), items_of(SENTENCES[:2] * 3), ScoringSettings(), {})
    assert len(seen) == 2


def test_each_option_of_an_item_has_a_vector() -> None:
    pair = [Item("pair", "", SENTENCES[:2], "all")]
    answers = ask_vectors(candidate(MASKED), pair, ScoringSettings(), {})
    expected = ask_vectors(candidate(MASKED), items_of(SENTENCES[:2]), ScoringSettings(), {}).vectors
    assert answers.frame["option"].tolist() == [0, 1]
    np.testing.assert_allclose(answers.vectors, expected, atol=1e-6)


def test_bf16_is_near_and_not_equal() -> None:
    exact = ask_vectors(candidate(MASKED), items_of(SENTENCES), ScoringSettings(), {}).vectors
    coarse = ask_vectors(candidate(MASKED), items_of(SENTENCES), ScoringSettings(precision="bf16"), {}).vectors
    assert exact is not None
    assert coarse is not None
    assert 0 < np.abs(exact - coarse).max() < 0.1


@pytest.mark.parametrize(("kind", "architecture", "limit"), [(MASKED, "bert", 16), (MASKED, "roberta", 14)])
def test_what_cannot_be_read_is_named_and_the_rest_is_read(kind: str, architecture: str, limit: int) -> None:
    fits, long = " ".join(["lamp"] * (limit - 2)), " ".join(["lamp"] * (limit - 1))
    answers = ask_vectors(candidate(kind, architecture), items_of(["", fits, "  ", long]), ScoringSettings(), {})
    exceeds = f"the text's {limit + 1} tokens exceed the model's {limit} positions"
    assert answers.frame["reason"].tolist() == ["the text is empty", "", "the text is empty", exceeds]
    assert [math.isnan(value) for value in answers.frame["value"]] == [True, False, True, True]
    assert answers.vectors is not None
    assert np.isnan(answers.vectors).any(axis=1).tolist() == [True, False, True, True]


def test_no_item_gives_no_vector() -> None:
    answers = ask_vectors(candidate(MASKED), [], ScoringSettings(), {})
    assert answers.vectors is not None
    assert answers.vectors.shape == (0, 32)


def test_what_has_no_network_is_refused() -> None:
    ensemble = Candidate("shards", "0" * 64, CLASSIFIER)
    with pytest.raises(ConfigError, match="shards has no network of its own"):
        ask_vectors(ensemble, items_of(SENTENCES), ScoringSettings(), {})


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="pooling to be one of mean, cls, last, got 'max'"):
        ask_vectors(candidate(MASKED), items_of(SENTENCES), ScoringSettings(), {"pooling": "max"})
    with pytest.raises(ConfigError, match=r"setting vectors\.pool\. Did you mean 'pooling'"):
        ask_vectors(candidate(MASKED), items_of(SENTENCES), ScoringSettings(), {"pool": "mean"})
