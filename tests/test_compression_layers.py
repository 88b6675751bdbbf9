from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from fairsisa.compression.layers import LayerWeight, tied_layers, weight_layers
from fairsisa.errors import ConfigError

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2}
GPT2_BODY = {
    f"transformer.h.{block}.{part}": shape
    for block in range(2)
    for part, shape in {
        "attn.c_attn": (48, 16),
        "attn.c_proj": (16, 16),
        "mlp.c_fc": (64, 16),
        "mlp.c_proj": (16, 64),
    }.items()
}


def test_every_conv1d_of_gpt2_is_found_as_outputs_by_inputs():
    layers = weight_layers(GPT2LMHeadModel(GPT2Config(**GPT2)))
    assert {name: tuple(layer.matrix().shape) for name, layer in layers.items()} == GPT2_BODY
    assert all(layer.name == name for name, layer in layers.items())


@pytest.mark.parametrize("module", [nn.Linear(5, 3), Conv1D(3, 5)])
def test_the_matrix_is_what_the_layer_multiplies_by(module):
    inputs = torch.randn(7, 5)
    expected = inputs @ LayerWeight("one", module).matrix().T + module.bias
    torch.testing.assert_close(module(inputs), expected)


@pytest.mark.parametrize("module", [nn.Linear(5, 3), Conv1D(3, 5)])
def test_what_is_written_is_read_back_in_the_same_parameter(module):
    layer, parameter, matrix = LayerWeight("one", module), module.weight, torch.randn(3, 5)
    layer.write(matrix)
    assert torch.equal(layer.matrix(), matrix)
    assert module.weight is parameter
    assert parameter.requires_grad
    torch.testing.assert_close(module(torch.eye(5)) - module.bias, matrix.T)


def test_writing_keeps_the_number_format_of_the_layer():
    layer = LayerWeight("one", nn.Linear(5, 3).to(torch.bfloat16))
    layer.write(torch.full((3, 5), 0.5))
    assert layer.matrix().dtype == torch.bfloat16
    assert bool((layer.matrix() == 0.5).all())


@pytest.mark.parametrize("module", [nn.Linear(5, 3), Conv1D(3, 5)])
def test_a_transposed_matrix_is_refused_by_name(module):
    with pytest.raises(ValueError, match=r"shape \(3, 5\) for the\.layer, got .*5, 3"):
        LayerWeight("the.layer", module).write(torch.zeros(5, 3))


def test_a_tied_head_is_left_out_unless_asked_for():
    model = GPT2LMHeadModel(GPT2Config(**GPT2))
    assert tied_layers(model) == {"lm_head": "transformer.wte"}
    assert "lm_head" not in weight_layers(model)
    asked = weight_layers(model, include_tied=True)
    assert list(asked)[-1] == "lm_head"
    asked["lm_head"].write(torch.zeros(40, 16))
    assert not model.transformer.wte.weight.any()
    assert "lm_head" not in weight_layers(model, include_head=False, include_tied=True)


def test_the_head_of_a_masked_language_model_is_tied_but_its_transform_is_a_layer():
    model = BertForMaskedLM(BertConfig(**SMALL))
    assert tied_layers(model) == {"cls.predictions.decoder": "bert.embeddings.word_embeddings"}
    assert "cls.predictions.transform.dense" in weight_layers(model)


def test_an_untied_head_is_a_layer_like_others():
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    assert tied_layers(model) == {}
    with_head, without = weight_layers(model), weight_layers(model, include_head=False)
    assert set(with_head) - set(without) == {"lm_head"}
    assert len(without) == 2 * 7


def test_of_layers_that_share_weights_the_first_stands_for_all_and_an_embedding_before_it():
    first, second = nn.Linear(4, 6), nn.Linear(4, 6)
    embedding, third, head = nn.Embedding(8, 4), nn.Linear(4, 8), nn.Linear(4, 8)
    second.weight, third.weight, head.weight = first.weight, embedding.weight, embedding.weight
    model = nn.ModuleDict({"first": first, "third": third, "emb": embedding, "second": second, "head": head})
    assert tied_layers(model) == {"second": "first", "third": "emb", "head": "emb"}
    assert list(weight_layers(model)) == ["first"]


def test_a_module_under_two_names_is_one_layer():
    shared = nn.Linear(4, 4)
    assert list(weight_layers(nn.Sequential(shared, nn.ReLU(), shared))) == ["0"]


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (BertForSequenceClassification(BertConfig(**SMALL)), {"classifier"}),
        (RobertaForSequenceClassification(RobertaConfig(**SMALL)), {"classifier.dense", "classifier.out_proj"}),
        (GPT2ForSequenceClassification(GPT2Config(**GPT2, pad_token_id=0)), {"score"}),
    ],
    ids=["bert", "roberta", "gpt2"],
)
def test_a_classification_head_is_known_by_its_name(model, head):
    assert set(weight_layers(model)) - set(weight_layers(model, include_head=False)) == head


def test_a_model_without_such_layers_is_refused_by_naming_its_layer_types():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(4), nn.GELU())
    named = r"left out none, .*activation\.GELU.*conv\.Conv2d.*normalization\.LayerNorm"
    with pytest.raises(ConfigError, match=named):
        weight_layers(model)


def test_a_model_of_nothing_but_its_head_is_refused_by_naming_the_head():
    model = nn.ModuleDict({"body": nn.Embedding(3, 4), "score": nn.Linear(4, 2)})
    with pytest.raises(ConfigError, match=r"left out \['score'\], .*sparse\.Embedding"):
        weight_layers(model, include_head=False)


def test_a_model_quantised_by_torch_is_refused_by_the_full_names_of_its_layers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, torch.qint8)
    with pytest.raises(ConfigError, match=r"types are \['torch\.ao\.nn\.quantized\."):
        weight_layers(quantised)


def test_a_linear_layer_that_holds_integers_is_refused_by_name():
    packed = nn.Linear(4, 4)
    packed.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"integers in \['1'\]: quantise last"):
        weight_layers(nn.Sequential(nn.Linear(4, 4), packed))


def test_a_head_that_the_model_names_itself_needs_no_name_of_ours():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "last": nn.Linear(4, 2)})
    model.get_output_embeddings = lambda: model["last"]
    assert list(weight_layers(model, include_head=False)) == ["body"]
