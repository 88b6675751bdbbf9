"""The card counts what is there, says what it was made from, and promises nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compressor_contract import make_batches, make_model
from fairsisa.compression.card import NO_SPEED, Card, LayerCard, bytes_in_memory, count_layers, count_parameters
from fairsisa.compression.compressing import compress
from fairsisa.compression.quantising import num_bytes
from fairsisa.errors import ModelError
from fairsisa.settings.steps import PRESETS, Step, read_steps

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
layer_cards = st.builds(
    lambda name, rows, columns, share, bits: LayerCard(
        name, (rows, columns), int(rows * columns * share), bits, max(bits, 8)
    ),
    st.text(max_size=12),
    st.integers(1, 50),
    st.integers(1, 50),
    st.floats(0, 1),
    st.integers(2, 32),
)
cards = st.builds(
    Card,
    steps=st.lists(st.sampled_from([step for name, step in PRESETS.items() if step.sparsity]), min_size=1).map(tuple),
    parents=st.lists(digests, max_size=3).map(tuple),
    calibration_digest=st.none() | digests,
    num_calibration_texts=st.integers(0, 999),
    layers=st.lists(layer_cards, max_size=4).map(tuple),
    num_parameters=st.integers(0, 10**12),
    bytes_before=st.integers(0, 10**12),
    bytes_after=st.integers(0, 10**12),
)


@given(cards)
def test_a_card_comes_back_from_json(card):
    told = json.loads(json.dumps(card.to_dict(), allow_nan=False))
    assert Card.from_dict(told) == card
    zeros = sum(layer["sparsity"] * layer["shape"][0] * layer["shape"][1] for layer in told["layers"])
    total = sum(layer["shape"][0] * layer["shape"][1] for layer in told["layers"])
    assert told["sparsity"] == pytest.approx(zeros / total if total else 0.0)


@pytest.mark.parametrize(
    "change",
    [{"steps": ["nonsense"]}, {"layers": [{"name": "a"}]}, {"layers": [{"shape": [1]}]}, {"bytes_after": "many"}],
)
def test_a_damaged_card_is_told(change):
    told = Card(steps=(Step("random"),)).to_dict()
    with pytest.raises(ModelError, match="card is damaged"):
        Card.from_dict(told | change)
    with pytest.raises(ModelError, match="KeyError: 'parents'"):
        Card.from_dict({"steps": told["steps"]})


def test_layers_are_counted_one_by_one():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3).bfloat16())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1, -0.0, 2], [0, 0, 3, 4]]))
        model[1].weight.fill_(1)
    first, second = count_layers(model, ["0", "1"], {"0": 4, "1": 16})
    assert first == LayerCard("0", (2, 4), 4, 4, 32)
    assert second == LayerCard("1", (3, 2), 0, 16, 16)
    assert (first.sparsity, first.num_weights) == (0.5, 8)
    assert Card(steps=(), layers=(first, second)).sparsity == 4 / 14
    assert [each.name for each in count_layers(model, ["1"])] == ["1"]


@pytest.mark.parametrize("architecture", ["llama", "masked"])
def test_bytes_and_parameters_of_int8_are_counted_as_torch_holds_them(architecture):
    model = make_model(architecture)
    num_parameters = sum(p.numel() for p in model.parameters())
    assert bytes_in_memory(model) == num_bytes(model)
    assert count_parameters(model) == num_parameters
    made = compress(model, [Step("int8_dynamic")])
    scales = 16 * len(made.card.layers)
    assert made.card.bytes_after == num_bytes(made.model) + scales
    assert made.card.bytes_before == num_bytes(make_model(architecture))
    # The masked model's head unties: its weights count anew, as does the bias that two places shared.
    untied = 0 if architecture == "llama" else 64 * 64 + 64
    assert made.card.num_parameters == num_parameters + untied


@pytest.mark.parametrize("head", [True, False])
def test_the_head_is_on_the_card_if_a_step_takes_it(head):
    steps = read_steps([{"method": "magnitude", "include_head": head}, "wanda"])
    made = compress(make_model("llama"), steps, make_batches())
    assert ("lm_head" in {each.name for each in made.card.layers}) == head
    assert 0.5 <= made.card.sparsity < 0.6


def test_bits_are_the_fewest_a_layer_was_rounded_to_and_sixteen_round_nothing():
    steps = read_steps(["round_to_nearest_4", {"method": "round_to_nearest", "bits": 8, "include_head": False}])
    made = compress(make_model("llama"), steps)
    bits = {each.name: each.bits for each in made.card.layers}
    assert bits["lm_head"] == 4
    whole = compress(make_model("llama"), [Step("round_to_nearest", bits=16)]).card.layers
    assert {each.bits for each in whole} == {32}
    rounded_less = compress(make_model("llama"), [steps[0], Step("round_to_nearest", bits=16)]).card.layers
    assert {each.bits for each in rounded_less} == {4}


def test_the_page_says_what_when_from_what_and_promises_no_speed():
    steps = read_steps(["wanda_2to4", "int8_dynamic"])
    parent, digest = "ab" * 32, "cd" * 32
    made = compress(make_model("llama"), steps, make_batches(), parents=(parent,), calibration_digest=digest)
    page = made.card.markdown(bytes_on_disk=1234567)
    for told in (
        "1. wanda 2:4\n2. int8_dynamic\n",
        f"parents: `{parent}`",
        f"6 texts, digest {digest}",
        f"in memory: {made.card.bytes_after:,} bytes, {made.card.bytes_before:,} before",
        "on disk: 1,234,567 bytes",
        "| model.layers.1.mlp.up_proj | 128 x 64 | 5",
        f"{made.card.sparsity:.2%} of the weights",
        NO_SPEED,
    ):
        assert told in page
    assert "faster" not in page
    free = compress(make_model("llama"), [Step("random")], make_batches(), calibration_digest=digest).card.markdown()
    assert "none of the steps reads any" in free
    assert digest not in free
    assert "on disk" not in free
