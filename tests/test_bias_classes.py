from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TextClassificationPipeline,
)

from fairsisa.bias.candidate import CLASSIFIER, ENCODER, Candidate
from fairsisa.bias.items import Item
from fairsisa.bias.readouts.classes import ask_classes, classify_with
from fairsisa.errors import ConfigError
from fairsisa.models.base import quiet
from fairsisa.models.language import language_config
from fairsisa.settings import ScoringSettings

TEXTS = (
    "the soup was cold",
    "what a lovely garden",
    "no",
    "the garden was lovely and the soup was cold and so was the rain",
    "rain and soup",
    "the the rain was cold what a garden no soup",
)
WORDS = sorted({word for text in TEXTS for word in text.split()})
SPECIAL = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BERT |= {"initializer_range": 0.5, "max_position_embeddings": 12}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.5}
GPT2 |= {"bos_token_id": None, "eos_token_id": None}
NAMES = ("bad", "fair", "good")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def tokenizer() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    unknown = {"unk_token": "[UNK]"}
    inner = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, **unknown))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)


@cache
def network_of(architecture: str, num_labels: int = 3, problem: str | None = None, pads: bool = True) -> Any:
    shape = {**(GPT2 if architecture == "gpt2" else BERT), "vocab_size": len(tokenizer())}
    config = language_config(architecture, shape)
    config.num_labels, config.problem_type = num_labels, problem
    config.pad_token_id = 0 if pads else None
    torch.manual_seed(0)
    with quiet():
        return AutoModelForSequenceClassification.from_config(config).eval()


def by_pipeline(network: Any) -> np.ndarray:
    """What transformers' own pipeline says, one text at a time; its positions are the tokenizer's business."""
    limit = network.config.max_position_embeddings
    pipeline = TextClassificationPipeline(model=network, tokenizer=tokenizer(), device="cpu", top_k=None)
    labels = [network.config.id2label[place] for place in range(network.config.num_labels)]
    rows = [
        {each["label"]: each["score"] for each in pipeline([text], truncation=True, max_length=limit)[0]}
        for text in TEXTS
    ]
    return np.array([[row[label] for label in labels] for row in rows])


def candidate(network: Any = None, classes: tuple[str, ...] = NAMES) -> Candidate:
    network = network_of("bert") if network is None else network
    classify = classify_with(network, tokenizer(), 64)
    return Candidate("judge", "0" * 64, CLASSIFIER, network, tokenizer(), classify, classes)


def items_of(texts: Any) -> list[Item]:
    return [Item(str(number), text, (), "all") for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("architecture", "num_labels", "problem", "total"),
    [
        ("bert", 3, None, 1),
        ("bert", 2, "single_label_classification", 1),
        ("bert", 3, "multi_label_classification", None),
        ("bert", 1, None, None),
        ("gpt2", 3, None, 1),
    ],
)
def test_probabilities_are_those_of_the_pipeline(
    architecture: str, num_labels: int, problem: str | None, total: int | None
) -> None:
    network = network_of(architecture, num_labels, problem)
    found = classify_with(network, tokenizer(), 64)(TEXTS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_pipeline(network), atol=1e-6)
    assert np.ptp(found) > 0.05
    if total is not None:
        np.testing.assert_allclose(found.sum(axis=1), total, atol=1e-12)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(TEXTS), max_size=12), st.sampled_from([1, 12, 4096]), st.booleans())
def test_a_text_s_probabilities_are_its_own(texts: list[str], max_tokens: int, pads: bool) -> None:
    architecture = "bert" if pads else "gpt2"
    network = network_of(architecture, pads=pads)
    found = classify_with(network, tokenizer(), max_tokens)(texts)
    alone = {text: classify_with(network, tokenizer(), 64)([text])[0] for text in set(texts)}
    expected = np.array([alone[text] for text in texts]).reshape(-1, 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_long_text_is_cut_off_where_the_network_ends() -> None:
    classify = classify_with(network_of("bert"), tokenizer(), 64)
    cut = " ".join(["rain"] * 10)
    np.testing.assert_allclose(classify([cut + " soup"]), classify([cut]), atol=1e-12)


def test_an_item_has_an_answer_a_class() -> None:
    frame = ask_classes(candidate(), items_of(TEXTS), ScoringSettings(), {}).frame
    assert frame["item_id"].tolist() == [str(number) for number in range(len(TEXTS)) for _ in NAMES]
    assert frame["option"].tolist() == [0, 1, 2] * len(TEXTS)
    assert frame["text"].tolist() == [*NAMES] * len(TEXTS)
    expected = classify_with(network_of("bert"), tokenizer(), 64)(TEXTS)
    np.testing.assert_allclose(frame["value"].to_numpy().reshape(-1, 3), expected, atol=1e-9)


def test_a_text_is_classified_once_and_an_empty_one_not_at_all() -> None:
    asked: list[str] = []

    def classify(texts: Any) -> np.ndarray:
        asked.extend(texts)
        return np.full((len(texts), 2), 0.5)

    judge = Candidate("judge", "0" * 64, CLASSIFIER, classify=classify, classes=("no", "yes"))
    frame = ask_classes(judge, items_of(["rain", " ", "soup", "rain"]), ScoringSettings(), {}).frame
    assert asked == ["rain", "soup"]
    assert frame["reason"].tolist() == ["", "", *["the text is empty"] * 2, *[""] * 4]
    assert frame["value"].isna().tolist() == [False, False, True, True, *[False] * 4]
    assert ask_classes(judge, items_of([""]), ScoringSettings(), {}).frame["value"].isna().all()


def test_what_does_not_classify_is_refused() -> None:
    with pytest.raises(ConfigError, match="Expected encoder to be a classifier, got a model of kind encoder"):
        ask_classes(Candidate("encoder", "0" * 64, ENCODER), items_of(TEXTS), ScoringSettings(), {})
    with pytest.raises(ConfigError, match=r"names the classes no, yes, and gives .* shape \(6, 3\) for 6 texts"):
        ask_classes(candidate(classes=("no", "yes")), items_of(TEXTS), ScoringSettings(), {})
    with pytest.raises(ConfigError, match="BertForSequenceClassification for regression: it has no classes"):
        classify_with(network_of("bert", 1, "regression"), tokenizer(), 64)
    with pytest.raises(ConfigError, match=r"Unknown setting classes\.x"):
        ask_classes(candidate(), items_of(TEXTS), ScoringSettings(), {"x": 1})
