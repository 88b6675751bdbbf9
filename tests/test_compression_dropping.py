"""Dropping layers leaves the others as they are, wherever the stack stands."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compressor_contract import SMALL, answers, make_model
from fairsisa.compression.dropping import drop_layers, num_layers_of
from fairsisa.compression.students import kept_layers, truncated_student
from fairsisa.errors import ConfigError
from fairsisa.models.whole import EncoderWithHead

STACKS = {"gpt2": "transformer.h", "llama": "model.layers", "gpt_neox": "gpt_neox.layers"}


def deep(name: str) -> nn.Module:
    """A model of four layers, its weights drawn from one seed."""
    torch.manual_seed(3)
    small = {**SMALL, "num_hidden_layers": 4}
    configs = {
        "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=4, n_head=2, vocab_size=64, n_positions=32),
        "llama": lambda: transformers.LlamaConfig(**small),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**small),
        "bert": lambda: transformers.BertConfig(**small),
    }
    kind = transformers.AutoModelForSequenceClassification if name == "bert" else transformers.AutoModelForCausalLM
    config = configs[name]()
    if name in ("gpt2",):
        config.bos_token_id, config.eos_token_id = 1, 2
    return kind.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "bert"])
@pytest.mark.parametrize(("num_layers", "keep"), [(2, "alternate"), (3, "first"), (2, (1, 2)), (4, "first")])
def test_answers_are_those_of_a_copy_truncated_and_of_the_layers_run_by_hand(name, num_layers, keep):
    model = deep(name)
    student = truncated_student(model, num_layers, keep).eval()
    addresses = {id(p) for p in model.parameters()}
    dropped = drop_layers(model, num_layers, keep)
    assert dropped is model
    for one, other in zip(answers(dropped), answers(student), strict=True):
        assert torch.equal(one, other)
    assert {id(p) for p in model.parameters()} <= addresses
    assert num_layers_of(model) == model.config.num_hidden_layers == num_layers


@given(num_layers=st.integers(1, 4), keep=st.sampled_from(["alternate", "first"]))
def test_layers_that_stay_are_the_very_modules(num_layers, keep):
    model = deep("llama")
    layers = list(model.model.layers)
    outside = {name: p for name, p in model.named_parameters() if "layers" not in name}
    drop_layers(model, num_layers, keep)
    assert list(model.model.layers) == [layers[number] for number in kept_layers(4, num_layers, keep)]
    assert {name: p for name, p in model.named_parameters() if "layers" not in name} == outside
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(num_layers))


def test_a_bare_encoder_and_one_with_a_head_of_its_own_are_the_same_stack():
    alone = deep("bert").bert
    held = EncoderWithHead(copy.deepcopy(alone), nn.Linear(64, 2)).eval()
    drop_layers(alone, 2)
    drop_layers(held, 2)
    assert held.config.num_hidden_layers == alone.config.num_hidden_layers == 2
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        inside = held.encoder(input_ids=tokens).last_hidden_state
        assert torch.equal(alone(input_ids=tokens).last_hidden_state, inside)
    assert num_layers_of(held) == 2


def test_generation_goes_on_with_the_cache_of_fewer_layers():
    model = drop_layers(deep("llama"), 2)
    tokens = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(tokens, attention_mask=torch.ones_like(tokens), use_cache=True, **options)
    plain = model.generate(tokens, attention_mask=torch.ones_like(tokens), use_cache=False, **options)
    assert torch.equal(cached, plain)


def test_what_has_no_stack_is_refused():
    assert num_layers_of(nn.Linear(2, 2)) is None
    with pytest.raises(ConfigError, match=r"type bert, .*gpt_neox, .* got Linear"):
        drop_layers(nn.Linear(2, 2), 1)
    other = transformers.T5Model(transformers.T5Config(vocab_size=8, d_model=8, num_layers=1, num_heads=1, d_ff=8))
    with pytest.raises(ConfigError, match="got T5Model"):
        drop_layers(other, 1)
    with pytest.raises(ConfigError, match="num_layers to be at most 2"):
        drop_layers(make_model("llama"), 3)


def test_attention_scaled_by_the_layers_number_may_lose_its_last_layers_alone():
    model = deep("gpt2")
    model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(ConfigError, match='would change by moving: set keep="first"'):
        drop_layers(model, 2)
    assert num_layers_of(model) == 4
    assert num_layers_of(drop_layers(model, 2, "first")) == 2
