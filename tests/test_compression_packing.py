"""What is packed comes back bit for bit, and what is damaged is told."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao.nn import quantized

from compressor_contract import answers, make_batches, make_model
from fairsisa.compression import int8_format
from fairsisa.compression.compressing import compress
from fairsisa.compression.packing import Packed, pack, unpack
from fairsisa.errors import ModelError
from fairsisa.models.network import Standardizer
from fairsisa.models.whole import EncoderWithHead
from fairsisa.settings.steps import Step, read_steps


def other_weights(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    return other


def tabular() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(Standardizer(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[0].fit(torch.randn(50, 6))
    return model


def encoder_with_head() -> nn.Module:
    head = nn.Sequential(Standardizer(64), nn.Linear(64, 2))
    return EncoderWithHead(make_model("classifier").bert, head).eval()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_format_comes_back_whole(architecture, dtype):
    fresh = make_model(architecture)
    model = make_model(architecture).to(dtype)
    packed = pack(model)
    back = unpack(other_weights(fresh), Packed(json.loads(json.dumps(packed.layout)), packed.tensors))
    for one, other in zip(answers(model), answers(back), strict=True):
        assert torch.equal(one, other)
    assert {p.dtype for p in back.parameters()} == {dtype}


@pytest.mark.parametrize("architecture", ["gpt2", "masked"])
def test_shared_weights_are_stored_once_and_shared_again(architecture):
    model = make_model(architecture)
    packed = pack(model)
    assert sum(value.numel() for value in packed.tensors.values()) == sum(p.numel() for p in model.parameters())
    back = unpack(other_weights(model), packed)
    assert back.get_output_embeddings().weight is back.get_input_embeddings().weight
    assert len(list(back.parameters())) == len(list(model.parameters()))


def test_packed_tensors_are_dense_and_their_own():
    model = compress(make_model("masked"), [Step("int8_dynamic")]).model
    tensors = pack(model).tensors
    assert len({value.untyped_storage().data_ptr() for value in tensors.values()}) == len(tensors)
    for value in tensors.values():
        assert value.is_contiguous()
        assert not value.is_quantized
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_a_part_of_a_larger_tensor_takes_its_own_bytes_along_alone():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.arange(100.0).reshape(50, 2)[:2])
    packed = pack(model)
    assert packed.tensors["0.weight"].untyped_storage().nbytes() == 16
    assert torch.equal(unpack(nn.Sequential(nn.Linear(2, 2)), packed)[0].weight, model[0].weight)


@pytest.mark.parametrize("steps", [["int8_dynamic"], ["magnitude"], ["wanda", "round_to_nearest_4"]])
def test_a_tabular_network_comes_back(steps):
    features = torch.randn(20, 6)
    model = compress(tabular(), read_steps(steps), [{"features": features}]).model
    back = unpack(other_weights(tabular()), pack(model))
    assert torch.equal(back(features), model(features))


def test_a_frozen_encoder_with_its_head_comes_back_shallower():
    model = encoder_with_head()
    steps = read_steps([{"method": "drop_layers", "num_layers": 1}, "wanda", "round_to_nearest_8"])
    made = compress(copy.deepcopy(model), steps, make_batches())
    assert {each.name for each in made.card.layers} >= {"encoder.encoder.layer.0.output.dense", "head.1"}
    back = unpack(other_weights(model), pack(made.model))
    assert back.config.num_hidden_layers == len(back.encoder.encoder.layer) == 1
    for one, other in zip(answers(made.model), answers(back), strict=True):
        assert torch.equal(one, other)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    scale=st.floats(2.0**-100, 2.0**100, width=32),
    zero_point=st.integers(-128, 127),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_an_int8_layer_comes_back_whatever_its_scale(shape, scale, zero_point, bias, seed):
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    tensors = {"values": values, "scale": torch.tensor(scale, dtype=torch.float64)}
    tensors["zero_point"] = torch.tensor(zero_point)
    if bias:
        tensors["bias"] = torch.randn(rows, generator=generator)
    model = nn.Sequential(nn.Linear(columns, rows))
    int8_format.give(model, "0", tensors, {})
    [(name, layer)] = int8_format.find(model).items()
    taken, description = int8_format.take(layer)
    assert (name, description) == ("0", {})
    assert taken.keys() == tensors.keys()
    assert all(torch.equal(taken[key], tensors[key]) for key in tensors)
    assert taken["values"].element_size() == 1


def test_int8_layers_answer_as_before_to_large_and_small_batches():
    model = compress(make_model("llama"), [Step("int8_dynamic")]).model
    layer = model.get_submodule("model.layers.0.mlp.down_proj")
    other = nn.Sequential(nn.Linear(128, 64))
    int8_format.give(other, "0", *int8_format.take(layer))
    for rows in (1, 3, 64):
        inputs = 10 * torch.randn(rows, 128)
        assert torch.equal(other(inputs), layer(inputs))


def test_layers_of_an_unknown_format_are_not_lost_in_silence():
    with pytest.raises(ModelError, match=r"state is tensors, got others under \['0._packed_params.dtype'"):
        pack(nn.Sequential(quantized.Linear(2, 3)))
    half = nn.Sequential(quantized.dynamic.Linear(4, 4, dtype=torch.float16))
    with pytest.raises(ModelError, match="Expected int8 weights with one scale"):
        pack(half)


def damaged(packed: Packed, **layout: object) -> Packed:
    return Packed(packed.layout | layout, packed.tensors)


def test_damage_is_told():
    model = make_model("llama")
    packed = pack(compress(copy.deepcopy(model), [Step("int8_dynamic", include_head=False)]).model)
    tensors, layers = packed.tensors, packed.layout["layers"]
    key = "model.layers.1.mlp.up_proj.values"
    cases = [
        (Packed(packed.layout, {k: v for k, v in tensors.items() if k != "lm_head.weight"}), "lacks .*lm_head.weight"),
        (Packed(packed.layout, tensors | {"extra": torch.ones(1)}), "has 1 tensors, extra first more"),
        (Packed(packed.layout, {k: v for k, v in tensors.items() if k != key}), "KeyError: 'values'"),
        (Packed(packed.layout, tensors | {"lm_head.weight": torch.ones(2, 2)}), "size mismatch for lm_head.weight"),
        (damaged(packed, layers={each: {"format": "pickle"} for each in layers}), "among int8_dynamic, .*pickle"),
        (damaged(packed, num_layers=7), "is damaged or another model's"),
        (damaged(packed, tied={"a": "b"}), "KeyError: 'b'"),
        (Packed({}, tensors), "KeyError: 'layers'"),
    ]
    for broken, message in cases:
        with pytest.raises(ModelError, match=message):
            unpack(copy.deepcopy(model), broken)
    with pytest.raises(ModelError, match=r"lacks|damaged"):
        unpack(make_model("gpt2"), packed)
