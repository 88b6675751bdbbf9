from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers import LlamaForCausalLM as Llama

from fairsisa.compression import outside, torchao_format
from fairsisa.compression.layers import weight_layers
from fairsisa.compression.torchao_format import find, give, quantise, take
from fairsisa.errors import ConfigError, ModelError
from fairsisa.settings.steps import Step

pytest.importorskip("torchao", exc_type=ImportError)

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 48,
}
STEPS = {
    "weight": Step("torchao", scheme="int8_weight_only"),
    "grouped": Step("torchao", scheme="int8_weight_only", group_size=16),
    "dynamic": Step("torchao", scheme="int8_dynamic"),
    "int4": Step("torchao", scheme="int4_weight_only", include_head=False),
}


def llama(*, tied: bool = False) -> Any:
    torch.manual_seed(0)
    return Llama(LlamaConfig(**SHAPE, tie_word_embeddings=tied)).eval()


def classifier() -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SHAPE, num_labels=3)).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=48, bos_token_id=1, eos_token_id=2)
    ).eval()


def answers(model: Any) -> torch.Tensor:
    tokens = torch.randint(3, 48, (3, 7), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(input_ids=tokens).logits


def through_a_file(layer: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, description = take(layer)
    return load(save(tensors)), json.loads(json.dumps(description))


def rebuilt(model: Any, fresh: Any) -> Any:
    """`fresh` with the layers of `model` put in, all else copied."""
    layers = find(model)
    own = {name: value for name, value in model.state_dict().items() if name.rpartition(".")[0] not in layers}
    fresh.load_state_dict(own, strict=False)
    for name, layer in layers.items():
        give(fresh, name, *through_a_file(layer))
    return fresh


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("make", [llama, classifier])
def test_every_layer_is_quantised_and_the_rest_is_kept(make, step):
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = set(weight_layers(model, include_head=step.include_head))
    exact = answers(model.eval())
    assert quantise(model.train(), step) is model
    assert not model.training
    assert set(find(model)) == expected
    for name, value in model.state_dict().items():
        if name.removesuffix(".weight") not in expected:
            assert torch.equal(value, before[name]), name
    found = answers(model)
    assert not torch.equal(found, exact)
    assert float((found - exact).norm() / exact.norm()) < (0.3 if "int4" in step.scheme else 0.03)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("make", [llama, classifier])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_come_back_from_plain_tensors_bit_for_bit(make, step, dtype):
    model = quantise(make().to(dtype), step)
    fresh = make().to(dtype)
    nn.init.zeros_(next(iter(weight_layers(fresh).values())).module.weight)
    again = rebuilt(model, fresh)
    assert torch.equal(answers(again), answers(model))
    assert list(find(again)) == list(find(model))
    for name, layer in find(again).items():
        theirs = find(model)[name].weight
        assert type(layer.weight) is type(theirs)
        assert layer.weight.__tensor_flatten__()[1] == theirs.__tensor_flatten__()[1]
        assert take(layer)[1] == take(find(model)[name])[1]
        assert not layer.weight.requires_grad


@pytest.mark.parametrize("name", ["weight", "grouped", "dynamic"])
def test_int8_weights_are_rounded_to_nearest_by_their_own_scales(name):
    model = llama()
    plain = {layer: weight_layers(model)[layer].matrix().clone() for layer in weight_layers(model)}
    size = STEPS[name].group_size
    for layer, module in find(quantise(model, STEPS[name])).items():
        tensors, _ = take(module)
        assert tensors["qdata"].dtype == torch.int8
        groups = plain[layer].double().reshape(len(plain[layer]), -1, size or plain[layer].shape[1])
        scale = groups.abs().amax(-1) / 127.5
        expected = (groups / scale[..., None]).round().clamp(-128, 127)
        distance = (tensors["qdata"].double().reshape(groups.shape) - expected).abs()
        assert float(distance.max()) <= 1.0
        assert float(distance.mean()) < 0.05  # The largest of a group is a tie.
        found = torchao_format.weights(module)
        assert found.shape == plain[layer].shape
        assert float((found.double().reshape(groups.shape) - groups).abs().max()) <= 0.51 * float(scale.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_weights_are_near_and_few(dtype):
    model = llama().to(dtype)
    plain = {name: layer.matrix().clone() for name, layer in weight_layers(model, include_head=False).items()}
    for name, module in find(quantise(model, STEPS["int4"])).items():
        found = torchao_format.weights(module)
        assert found.shape == plain[name].shape
        groups, exact = found.float().reshape(-1, 32), plain[name].float().reshape(-1, 32)
        assert all(len(row.unique()) <= 16 for row in groups)
        width = exact.amax(1, keepdim=True) - exact.amin(1, keepdim=True)
        assert bool(((groups - exact).abs() <= 0.55 * width / 15 + (1e-6 if dtype == torch.float32 else 0.01)).all())
        assert take(module)[0]["qdata"].numel() * 2 == plain[name].numel()


def test_a_tied_head_stays_and_an_untied_one_goes_by_setting():
    tied = quantise(llama(tied=True), STEPS["dynamic"])
    assert "lm_head" not in find(tied)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert "lm_head" in find(quantise(llama(), STEPS["dynamic"]))
    assert "lm_head" not in find(quantise(llama(), Step("torchao", scheme="int8_dynamic", include_head=False)))


def test_the_group_size_of_int4_is_the_largest_that_fits_every_layer():
    model = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 64), nn.Linear(64, 16))
    for part, size in ((model[:2], 128), (model[1:], 64)):
        step = Step("torchao", scheme="int4_weight_only")
        layers = find(quantise(copy.deepcopy(part), step))
        assert {take(layer)[1]["group_size"] for layer in layers.values()} == {size}
    with pytest.raises(ConfigError, match=r"Expected group_size to divide .* got 32 for 0 \(48 inputs\)"):
        quantise(nn.Sequential(nn.Linear(48, 16)), Step("torchao", scheme="int4_weight_only"))


@pytest.mark.parametrize("make", [gpt2, lambda: nn.Linear(32, 32), lambda: nn.TransformerEncoderLayer(32, 2, 32)])
def test_layers_torchao_would_leave_alone_are_named(make):
    with pytest.raises(
        ConfigError, match=r"torchao quantises plain nn\.Linear .*(c_attn|the model itself|out_proj).* of type"
    ):
        quantise(make(), STEPS["weight"])


def test_quantising_twice_is_refused():
    with pytest.raises(ConfigError, match=r"quantises plain nn\.Linear .* quantise once"):
        quantise(quantise(llama(), STEPS["weight"]), STEPS["dynamic"])


def test_what_does_not_fit_a_scheme_is_named_with_the_cure():
    with pytest.raises(ConfigError, match="int8_dynamic has one scale a row: leave out group_size=16"):
        quantise(llama(), Step("torchao", scheme="int8_dynamic", group_size=16))
    with pytest.raises(ConfigError, match="int4_weight_only to be 32, 64 or 128, got 16"):
        quantise(llama(), Step("torchao", scheme="int4_weight_only", group_size=16))
    with pytest.raises(
        ConfigError, match=r"multiple of 16 outputs, unlike classifier \(3 outputs\): with include_head="
    ):
        quantise(classifier(), Step("torchao", scheme="int4_weight_only"))
    with pytest.raises(ConfigError, match=r"got 24 for model\.layers\.0\.self_attn\.q_proj \(32 inputs\)"):
        quantise(llama(), Step("torchao", scheme="int8_weight_only", group_size=24))
    with pytest.raises(ConfigError, match="for models on the CPU here, this one is on meta"):
        quantise(llama().to("meta"), Step("torchao", scheme="int4_weight_only"))


def test_a_library_that_changes_nothing_is_caught(monkeypatch):
    quantisation = outside.load_tool("torchao.quantization")
    monkeypatch.setattr(quantisation, "quantize_", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=r"torchao left alone lm_head, model\.layers"):
        quantise(llama(), STEPS["weight"])


def test_a_layer_of_another_shape_is_refused():
    tensors, description = take(find(quantise(llama(), STEPS["weight"]))["lm_head"])
    with pytest.raises(ModelError, match=r"Expected lm_head to be an nn\.Linear of shape \(48, 32\), found Linear"):
        give(Llama(LlamaConfig(**(SHAPE | {"vocab_size": 50}))), "lm_head", tensors, description)
    with pytest.raises(ModelError, match=r"to be an nn\.Linear of shape \(48, 32\), found Embedding"):
        give(llama(), "model.embed_tokens", tensors, description)


def test_a_missing_package_is_named_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match=r"needs torchao, .*pip install 'fairsisa\[low-bit\]'"):
        quantise(llama(), STEPS["weight"])


def test_a_model_without_such_layers_does_not_wait_for_torchao():
    code = (
        "import sys; sys.modules['torchao'] = None\n"
        "from torch import nn; from fairsisa.compression import torchao_format\n"
        "assert torchao_format.find(nn.Sequential(nn.Linear(2, 2))) == {}"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", ["weight", "dynamic"])
def test_int8_answers_on_a_gpu_as_on_the_cpu(name):
    make: Callable[[], Any] = lambda: quantise(llama(), STEPS[name])  # noqa: E731
    tokens = torch.randint(3, 48, (3, 20))
    with torch.no_grad():
        near = make().cuda()(input_ids=tokens.cuda()).logits.cpu() - make()(input_ids=tokens).logits
    assert float(near.abs().max()) < 0.05
