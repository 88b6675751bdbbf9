from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from fairsisa.compression.calibration import feature_norms
from fairsisa.compression.layers import LayerWeight, weight_layers
from fairsisa.errors import ConfigError

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}
LENGTHS = [9, 4, 7, 9, 2, 5]


GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
    "masked": lambda: BertForMaskedLM(BertConfig(**SMALL)),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def texts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 40, (length,), generator=generator) for length in LENGTHS]


def batch_of(rows: list[torch.Tensor], pad_id: int = 0) -> dict[str, torch.Tensor]:
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    return {"tokens": tokens, "mask": (torch.arange(tokens.shape[1]) < torch.tensor([[len(r)] for r in rows])).long()}


def stored(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """The root mean square of all stored inputs, from each text alone: there is no padding to leave out."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, given, _o, name=name: seen[name].append(given[0]))
        for name in names
    ]
    with torch.no_grad():
        for text in texts():
            model(input_ids=text[None])
    for hook in hooks:
        hook.remove()
    flat = {name: torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double() for name, inputs in seen.items()}
    return {name: rows.square().mean(dim=0).sqrt().float() for name, rows in flat.items()}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("pad_id", [0, 17])
def test_norms_equal_those_of_stored_activations_and_padding_is_left_out(name, pad_id):
    model = make(name).eval()
    layers = weight_layers(model)
    rows = texts()
    found = feature_norms(model, [batch_of(rows[:4], pad_id), batch_of(rows[4:], pad_id)], layers)
    expected = stored(model, list(layers))
    assert list(found) == list(layers)
    for layer, norms in found.items():
        assert norms.dtype == torch.float32
        assert norms.shape == layers[layer].matrix().shape[1:]
        assert not norms.requires_grad
        torch.testing.assert_close(norms, expected[layer], rtol=1e-5, atol=1e-6)


def test_how_the_rows_are_batched_does_not_matter():
    model = make("llama")
    layers, rows = weight_layers(model), texts()
    one = feature_norms(model, [batch_of(rows)], layers)
    many = feature_norms(model, (batch_of([row]) for row in rows), layers)
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-6)


def test_a_pooled_layer_counts_texts_not_tokens():
    model = make("bert").eval()
    layers = {name: weight_layers(model)[name] for name in ("bert.pooler.dense", "classifier")}
    found = feature_norms(model, [batch_of(texts())], layers)
    torch.testing.assert_close(found, stored(model, list(layers)), rtol=1e-5, atol=1e-6)


def test_features_of_a_table_are_inputs_like_any_other():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    features = torch.randn(11, 3)
    labels = torch.zeros(11, dtype=torch.int64)
    found = feature_norms(model, [{"features": features, "labels": labels}], weight_layers(model))
    torch.testing.assert_close(found["0"], features.square().mean(0).sqrt())
    torch.testing.assert_close(found["2"], model[0](features).relu().square().mean(0).sqrt().detach())


def test_half_precision_inputs_are_summed_in_fp32():
    model = nn.Sequential(nn.Linear(2, 2)).to(torch.bfloat16)
    features = torch.full((4000, 2), 1.0, dtype=torch.bfloat16)
    norms = feature_norms(model, [{"features": features}] * 3, weight_layers(model))["0"]
    torch.testing.assert_close(norms, torch.ones(2))


def test_nothing_is_kept_of_the_activations():
    model = make("gpt2")
    layers = weight_layers(model)
    alive: list[int] = []
    seen: list[weakref.ref[torch.Tensor]] = []

    def remember(_module: nn.Module, given: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        seen.append(weakref.ref(given[0]))
        alive.append(sum(one() is not None for one in seen))

    watching = [layer.module.register_forward_hook(remember) for layer in layers.values()]
    feature_norms(model, [batch_of(texts())] * 3, layers)
    for hook in watching:
        hook.remove()
    gc.collect()
    assert len(seen) == 3 * len(layers)
    assert [one for one in seen if one() is not None] == []
    assert max(alive) <= 2
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_no_cache_and_no_logits_are_made_where_the_head_is_no_layer():
    model = make("llama")
    outputs: list[Any] = []
    model.model.register_forward_hook(lambda _m, _given, output: outputs.append(output.past_key_values))
    model.lm_head.register_forward_hook(lambda *_: outputs.append("logits"))
    feature_norms(model, [batch_of(texts())], weight_layers(model, include_head=False))
    assert outputs == [None]
    feature_norms(model, [batch_of(texts())], weight_layers(model))
    assert outputs == [None, None, "logits"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = make("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [batch_of(texts())]
    if fails:
        with pytest.raises(IndexError, match="index out of range"):
            feature_norms(model, [{"tokens": torch.tensor([[99]])}], weight_layers(model))
    else:
        feature_norms(model, batches, weight_layers(model))
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is True
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_dropout_is_off():
    model = make("gpt2").train()
    first, second = (feature_norms(model, [batch_of(texts())], weight_layers(model)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_no_batches_are_refused():
    model = make("gpt2")
    with pytest.raises(ConfigError, match=r"nothing reached \['transformer\.h\.0\.attn\.c_attn'"):
        feature_norms(model, [], weight_layers(model))


def test_batches_of_padding_alone_are_refused():
    model = make("gpt2")
    batch = {"tokens": torch.zeros(1, 3, dtype=torch.int64), "mask": torch.zeros(1, 3, dtype=torch.int64)}
    with pytest.raises(ConfigError, match="nothing reached"):
        feature_norms(model, [batch], weight_layers(model))


def test_a_layer_that_is_never_run_is_named():
    model = nn.Sequential(nn.Linear(3, 3))
    layers = weight_layers(model) | {"spare": LayerWeight("spare", nn.Linear(3, 3))}
    with pytest.raises(ConfigError, match=r"nothing reached \['spare'\]"):
        feature_norms(model, [{"features": torch.ones(2, 3)}], layers)


class Routed(nn.Module):
    """A stand-in for experts: the inner layer sees three of a batch's tokens, in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 4)
        self.expert = nn.Linear(4, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        return self.expert(self.embedding(input_ids).flatten(0, 1)[:3])


def test_rows_that_are_neither_tokens_nor_texts_are_refused_only_when_padded():
    model = Routed()
    layers = weight_layers(model)
    with pytest.raises(ConfigError, match="Expected expert to see the 18 tokens of a batch or its 2 texts, got 3 rows"):
        feature_norms(model, [batch_of([torch.ones(9, dtype=torch.int64), torch.ones(4, dtype=torch.int64)])], layers)
    found = feature_norms(model, [{"tokens": torch.ones(2, 9, dtype=torch.int64)}], layers)
    torch.testing.assert_close(found["expert"], model.embedding.weight[1].abs().detach())
