"""Products in bf16, everything else in fp32: by hand on single layers, and against a network wholly in bf16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fairsisa.errors import ModelError
from fairsisa.models.language import new_language_model
from fairsisa.models.low_precision import with_bf16_products

SHAPES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 32},
    "llama": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
}
IDS = torch.randint(4, 300, (8, 12), generator=torch.Generator().manual_seed(0))


def network_of(architecture: str) -> nn.Module:
    """A network whose logits are as far apart as a trained one's."""
    network = new_language_model(architecture, {**SHAPES[architecture], "vocab_size": 300}, 0).eval()
    with torch.no_grad():
        for each in network.parameters():
            each.mul_(4.0) if each.dim() == 2 else None
    return network


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), Conv1D(3, 5)])
def test_a_layer_multiplies_in_bf16_and_gives_fp32(layer):
    inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.3, -0.7, 1.1]))
        weight = layer.weight.t() if isinstance(layer, nn.Linear) else layer.weight
        exact = inputs.bfloat16().double() @ weight.bfloat16().double() + layer.bias.bfloat16().double()
        found = with_bf16_products(nn.Sequential(layer))(inputs)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)
        assert (found == found.bfloat16().float()).all()
        assert (layer(inputs) != found).any()


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_error_is_smaller_than_that_of_a_network_wholly_in_bf16(architecture):
    network = network_of(architecture)
    with torch.no_grad():
        exact, wholly = network(IDS).logits, copy.deepcopy(network).to(torch.bfloat16)(IDS).logits.float()
        found = with_bf16_products(network)(IDS).logits
    assert found.dtype == torch.float32
    error, of_bf16 = ((each - exact).square().mean().sqrt() for each in (found, wholly))
    assert 0 < error < 0.9 * of_bf16


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_network_stays_as_it_was_and_shares_what_is_not_multiplied(architecture):
    network = network_of(architecture)
    with torch.no_grad():
        before = network(IDS).logits
        low = with_bf16_products(network)
        assert torch.equal(network(IDS).logits, before)
    assert {each.dtype for each in network.parameters()} == {torch.float32}
    assert low.get_input_embeddings().weight is network.get_input_embeddings().weight
    products = {name for name, each in low.named_modules() if type(each) in (nn.Linear, Conv1D)}
    for name, each in low.named_parameters():
        assert each.dtype == (torch.bfloat16 if name.rpartition(".")[0] in products else torch.float32), name
    assert products


def test_a_network_without_products_is_refused():
    with pytest.raises(ModelError, match="Embedding has no linear layer"):
        with_bf16_products(nn.Embedding(3, 2))
