"""Rounding keeps its error bound, int8 is torch's own, and a quantiser that changes nothing is caught."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_model
from torch import nn

from fairsisa.compression.layers import weight_layers
from fairsisa.compression.quantising import (
    num_bytes,
    num_bytes_saved,
    quantise_dynamic_int8,
    quantise_weights,
    round_to_nearest,
)
from fairsisa.errors import ConfigError, ModelError

Quantiser = Callable[[nn.Module], nn.Module]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TINY = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    if draw(st.booleans()):  # Drawn one by one, numbers are too round to show the last bit.
        return torch.randn(rows, columns, generator=torch.Generator().manual_seed(draw(st.integers(0, 9999))))
    numbers = st.floats(-8, 8, width=32) | st.sampled_from([0.0, 0.5, -0.5, 1.5, 2.5, 1e-45, -3e-40, 1e30])
    values = draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values).reshape(rows, columns)


def bert(tied: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
    )
    return transformers.BertForMaskedLM(config).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **TINY)
    return transformers.GPT2LMHeadModel(config).eval()


def torch_int8(model: nn.Module, which: set) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, which, dtype=torch.qint8)


def answers(model: nn.Module) -> torch.Tensor:
    tokens = torch.arange(2 * 8).reshape(2, 8) * 3 % 64
    with torch.no_grad():
        return model(input_ids=tokens).logits


def weights_of(model: nn.Module, name: str) -> torch.Tensor:
    layer = model.get_submodule(name)
    return layer.weight().dequantize() if callable(layer.weight) else layer.weight.detach()


def changes_something(model: nn.Module, quantise: Quantiser) -> bool:
    """Tell whether `quantise` changed every layer that it was to change: the head alone is not enough."""
    after = quantise(model)
    return not any(
        torch.equal(weights_of(model, name), weights_of(after, name))
        for name in weight_layers(model, include_head=False)
    )


def brute_scale(group: torch.Tensor, bits: int, symmetric: bool) -> float:
    values = group.double().tolist()
    if symmetric:
        return max(abs(value) for value in values) / (2 ** (bits - 1) - 1)
    return (max(0.0, *values) - min(0.0, *values)) / (2**bits - 1)


@given(matrices(), st.integers(2, 15), st.none() | st.integers(1, 12), st.booleans())
def test_no_weight_moves_by_more_than_half_a_step_and_levels_are_few(weights, bits, group_size, symmetric):
    rounded = round_to_nearest(weights, bits, group_size=group_size, symmetric=symmetric)
    assert rounded.shape == weights.shape
    assert rounded.dtype == weights.dtype
    for row, rounded_row in zip(weights, rounded, strict=True):
        size = group_size or len(row)
        for group, rounded_group in zip(row.split(size), rounded_row.split(size), strict=True):
            slack = 2**-23 * float(group.abs().max()) + 2e-45
            error = (group.double() - rounded_group.double()).abs().max()
            assert float(error) <= brute_scale(group, bits, symmetric) / 2 + slack
            assert len(set(rounded_group.tolist())) <= 2**bits


@given(matrices(), st.integers(2, 15), st.none() | st.integers(1, 12), st.sampled_from(DTYPES))
def test_symmetric_rounding_is_idempotent_bit_for_bit(weights, bits, group_size, dtype):
    once = round_to_nearest(weights.clamp(-100, 100).to(dtype), bits, group_size=group_size)
    assert torch.equal(round_to_nearest(once, bits, group_size=group_size), once)


@given(matrices(), st.integers(2, 15), st.none() | st.integers(1, 12))
def test_asymmetric_rounding_is_idempotent_up_to_the_number_format(weights, bits, group_size):
    once = round_to_nearest(weights.double(), bits, group_size=group_size, symmetric=False)
    twice = round_to_nearest(once, bits, group_size=group_size, symmetric=False)
    assert torch.allclose(twice, once, rtol=1e-12, atol=0)


@given(matrices(), st.integers(2, 15), st.booleans())
def test_zeros_stay_zero_and_zero_rows_are_safe(weights, bits, symmetric):
    weights[0] = 0.0
    rounded = round_to_nearest(weights, bits, symmetric=symmetric)
    assert torch.equal(rounded[weights == 0], torch.zeros(int((weights == 0).sum())))


@given(matrices(), st.integers(16, 64), st.booleans())
def test_sixteen_bits_are_the_identity_as_a_copy(weights, bits, symmetric):
    rounded = round_to_nearest(weights, bits, symmetric=symmetric)
    assert torch.equal(rounded, weights)
    rounded.fill_(7.5e20)
    assert not torch.equal(rounded, weights)


@given(st.integers(2, 8), st.integers(0, 99), st.booleans())
def test_rounding_equals_torchs_own_fake_quantisation(bits, seed, symmetric):
    weights = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
    low, high = weights.amin(1).clamp(max=0), weights.amax(1).clamp(min=0)
    top = 2 ** (bits - 1) - 1
    scale = weights.abs().amax(1) / top if symmetric else (high - low) / (2**bits - 1)
    zero = torch.zeros(5) if symmetric else (-low / scale).round()
    bottom, top = (-top, top) if symmetric else (0, 2**bits - 1)
    expected = torch.fake_quantize_per_channel_affine(weights, scale, zero.int(), 0, bottom, top)
    assert torch.allclose(round_to_nearest(weights, bits, symmetric=symmetric), expected, atol=1e-6)


def test_groups_have_scales_of_their_own():
    weights = torch.tensor([[1.0, 0.4, 100.0, 40.0, 7.0]])
    assert torch.equal(round_to_nearest(weights, 2, group_size=2), torch.tensor([[1.0, 0.0, 100.0, 0.0, 7.0]]))
    assert torch.equal(round_to_nearest(weights, 2), torch.tensor([[0.0, 0.0, 100.0, 0.0, 0.0]]))


@pytest.mark.parametrize("bits", [1, 0, -3])
def test_too_few_bits_are_refused(bits):
    with pytest.raises(ConfigError, match=rf"bits={bits}, but zero and a sign need at least 2"):
        round_to_nearest(torch.ones(2, 2), bits)
    with pytest.raises(ConfigError, match=rf"bits={bits}"):
        quantise_weights(bert(), bits)


def test_bad_groups_and_bad_weights_are_refused():
    with pytest.raises(ConfigError, match="group_size=0: use 1 or more"):
        round_to_nearest(torch.ones(2, 2), 4, group_size=0)
    for bad in (torch.tensor([[float("nan")]]), torch.ones(3), torch.ones(2, 2, dtype=torch.int8)):
        with pytest.raises(ValueError, match="Expected a matrix of finite"):
            round_to_nearest(bad, 4)


@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_rounded_model_differs_in_its_layers_alone(make):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = quantise_weights(model, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    layers = weight_layers(model)
    for name, value in rounded.state_dict().items():
        assert torch.equal(value, before[name]) == (name.removesuffix(".weight") not in layers), name
    for name, layer in weight_layers(rounded).items():
        assert torch.equal(layer.matrix(), round_to_nearest(layers[name].matrix(), 4)), name
        assert all(len(row.unique()) <= 15 for row in layer.matrix())


def test_conv1d_weights_have_a_scale_per_output_which_is_a_column():
    weight = quantise_weights(gpt2(), 2).get_submodule("transformer.h.0.mlp.c_fc").weight
    assert weight.shape == (16, 64)
    assert all(len(column[column != 0].abs().unique()) == 1 for column in weight.detach().t())


@pytest.mark.parametrize("make", [bert, gpt2])
def test_embeddings_and_their_tied_head_change_only_when_asked(make):
    model = make()
    kept, asked = quantise_weights(model, 3), quantise_weights(model, 3, include_embeddings=True)
    for rounded, same in ((kept, True), (asked, False)):
        table, head = rounded.get_input_embeddings().weight, rounded.get_output_embeddings().weight
        assert table is head
        assert torch.equal(table, model.get_input_embeddings().weight) == same
    assert torch.equal(asked.get_input_embeddings().weight, round_to_nearest(model.get_input_embeddings().weight, 3))


def test_an_untied_head_is_rounded_by_setting():
    model = bert(tied=False)
    for include_head in (True, False):
        head = quantise_weights(model, 4, include_head=include_head).get_output_embeddings().weight
        assert torch.equal(head, model.get_output_embeddings().weight) == (not include_head)


@pytest.mark.parametrize("make", [bert, gpt2])
def test_sixteen_bits_answer_as_the_model_does(make):
    model = make()
    same = quantise_weights(model, 16, include_embeddings=True)
    assert torch.allclose(answers(same), answers(model), atol=1e-6)
    assert not torch.allclose(answers(quantise_weights(model, 3)), answers(model), atol=1e-6)


def test_weights_that_are_not_finite_are_named():
    model = bert()
    model.get_submodule("bert.encoder.layer.1.output.dense").weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"Layer bert\.encoder\.layer\.1\.output\.dense: Expected a matrix of finite"):
        quantise_weights(model, 4)


@pytest.mark.parametrize("tied", [True, False])
def test_dynamic_int8_equals_torchs_own(tied):
    model = bert(tied)
    ours, theirs = quantise_dynamic_int8(model), torch_int8(model, {nn.Linear})
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
    assert not any(type(module) is nn.Linear for module in ours.modules())
    assert torch.equal(answers(ours), answers(theirs))
    assert not torch.equal(answers(ours), answers(model))


@pytest.mark.parametrize("tied", [True, False])
def test_dynamic_int8_without_the_head_equals_torchs_own_on_the_rest(tied):
    model = bert(tied)
    ours = quantise_dynamic_int8(model, include_head=False)
    names = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    theirs = torch_int8(model, names - {"cls.predictions.decoder"})
    assert [name for name, module in ours.named_modules() if type(module) is nn.Linear] == ["cls.predictions.decoder"]
    assert torch.equal(answers(ours), answers(theirs))
    assert not torch.equal(answers(ours), answers(quantise_dynamic_int8(model)))


def test_layers_that_share_weights_are_all_quantised_without_the_head():
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), "classifier": nn.Linear(4, 2)})
    model["second"].weight = model["first"].weight
    quantised = quantise_dynamic_int8(model, include_head=False)
    assert [name for name, module in quantised.items() if type(module) is nn.Linear] == ["classifier"]


def test_layers_that_torch_would_leave_alone_are_named():
    named = r"transformer\.h\.\*\.attn\.c_attn \(x2\), .*c_proj \(x2\), .*c_fc \(x2\), .*c_proj \(x2\), of type Conv1D"
    with pytest.raises(ConfigError, match=named):
        quantise_dynamic_int8(gpt2())
    with pytest.raises(ConfigError, match=r"self_attn\.out_proj.*NonDynamicallyQuantizableLinear"):
        quantise_dynamic_int8(nn.TransformerEncoderLayer(8, 2, 8))
    with pytest.raises(ConfigError, match="alone the model itself"):
        quantise_dynamic_int8(nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="found none"):
        quantise_dynamic_int8(quantise_dynamic_int8(bert()))


def test_other_number_formats_are_refused():
    with pytest.raises(ConfigError, match=r"needs fp32 .* got torch\.bfloat16 on cpu in .*query \(x2\)"):
        quantise_dynamic_int8(bert().bfloat16())


def test_only_the_two_known_notices_of_torch_are_silenced(monkeypatch):
    def with_news(model: nn.Module, *_: object, **__: object) -> nn.Module:
        warnings.warn(
            "torch.ao.quantization is deprecated and will be removed in 2.10.", DeprecationWarning, stacklevel=2
        )
        warnings.warn("fbgemm lost its int8 kernels", news, stacklevel=2)
        return model

    monkeypatch.setattr(torch.ao.quantization, "quantize_dynamic", with_news)
    for news in (DeprecationWarning, UserWarning):
        with pytest.warns(news, match="fbgemm lost") as heard:
            quantise_dynamic_int8(bert())
        assert len(heard) == 1


@pytest.mark.parametrize(
    "quantise",
    [lambda model: quantise_weights(model, 8), lambda model: quantise_weights(model, 2), quantise_dynamic_int8],
)
def test_every_quantiser_changes_something(quantise):
    assert changes_something(bert(), quantise)


def test_a_quantiser_that_changes_nothing_is_caught():
    assert not changes_something(bert(), copy.deepcopy)
    assert not changes_something(bert(), lambda model: quantise_weights(model, 16))
    # Torch's own on GPT-2 quantises the head, so answers change, and leaves every other layer alone.
    assert not torch.equal(answers(torch_int8(gpt2(), {nn.Linear})), answers(gpt2()))
    assert not changes_something(gpt2(), lambda model: torch_int8(model, {nn.Linear}))
    assert changes_something(gpt2(), lambda model: quantise_weights(model, 8))


@pytest.mark.parametrize("make", [bert, gpt2])
def test_bytes_of_a_model_are_those_transformers_counts(make):
    assert num_bytes(make()) == make().get_memory_footprint()
    assert num_bytes(make().bfloat16()) == make().bfloat16().get_memory_footprint()
    assert num_bytes(quantise_weights(make(), 4)) == num_bytes(make())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("include_head", [True, False])
def test_bytes_of_an_int8_model_count_each_packed_weight_once(tied, include_head):
    model = bert(tied)
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    head = linear.pop("cls.predictions.decoder")
    saved = sum(3 * module.weight.numel() for module in linear.values())
    if include_head:
        # A tied head was free and is a copy now; its bias stays with the model around it as well.
        saved += 3 * head.weight.numel() if not tied else -head.weight.numel() - 4 * head.bias.numel()
    assert num_bytes(quantise_dynamic_int8(model, include_head=include_head)) == num_bytes(model) - saved


def test_layers_without_bias_are_counted():
    model = nn.Sequential(nn.Linear(10, 7, bias=False))
    assert num_bytes(model) == 280
    assert num_bytes(quantise_dynamic_int8(model)) == 70


def test_bytes_saved_are_those_of_the_files(tmp_path):
    model = bert()
    save_model(model, str(tmp_path / "model.safetensors"))
    numbers = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert numbers < num_bytes_saved(tmp_path / "model.safetensors") < numbers + 10_000
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "config.json").write_bytes(b"x" * 123)
    assert num_bytes_saved(tmp_path) == num_bytes_saved(tmp_path / "model.safetensors") + 123


def test_a_model_that_was_not_saved_is_no_model_of_zero_bytes(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelError, match="found no file there: save the model first"):
            num_bytes_saved(path)
