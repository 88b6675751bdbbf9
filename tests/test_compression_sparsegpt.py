from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fairsisa.compression.calibration import feature_norms
from fairsisa.compression.layers import LayerWeight, weight_layers
from fairsisa.compression.pruning import magnitude_mask, wanda_mask
from fairsisa.compression.sparsegpt import input_products, sparsegpt
from fairsisa.errors import ConfigError
from test_compression_calibration import batch_of, make, texts


def correlated(num_inputs: int, seed: int, num_tokens: int = 400) -> torch.Tensor:
    """Inputs (num_tokens, num_inputs) of few common causes, of unlike sizes."""
    draw = torch.Generator().manual_seed(seed)
    causes = torch.randn(num_tokens, max(2, num_inputs // 3), generator=draw)
    mixed = causes @ torch.randn(causes.shape[1], num_inputs, generator=draw)
    return (mixed + 0.2 * torch.randn(num_tokens, num_inputs, generator=draw)) * (
        0.2 + torch.rand(num_inputs, generator=draw)
    )


def problem(seed: int, num_rows: int = 12, num_inputs: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    inputs = correlated(num_inputs, seed)
    return torch.randn(num_rows, num_inputs), inputs, inputs.t() @ inputs


def plain_sparsegpt(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    block: int,
    *,
    sparsity: float = 0.0,
    pattern: tuple[int, int] | None = None,
    damping: float = 0.01,
) -> torch.Tensor:
    """Algorithm 1 of Frantar and Alistarh (2023), number by number in fp64: no lazy updates, no vectors."""
    work, num_inputs = weights.double().clone(), weights.shape[1]
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(num_inputs)
    inverse = torch.linalg.inv(damped)
    kept = torch.ones_like(work, dtype=torch.bool)
    for column in range(num_inputs):
        # Row and column of what was passed are eliminated: the inverse of the rest of H (their equation 4).
        if column:
            passed = column - 1
            inverse = inverse - torch.outer(inverse[:, passed], inverse[passed]) / inverse[passed, passed]
        width = block if pattern is None else pattern[1]
        if column % width == 0:
            stop = min(column + width, num_inputs)
            choose(kept, work, damped, (column, stop), (sparsity, pattern))
        for row in range(len(work)):
            if not kept[row, column]:
                error = work[row, column] / inverse[column, column]
                work[row, column:] -= error * inverse[column, column:]
                work[row, column] = 0.0
    return work


def choose(kept: Any, work: Any, damped: Any, columns: tuple[int, int], how: tuple[float, Any]) -> None:
    """Mark the lowest w^2 / [H^-1]_cc, where H^-1 is that of the columns from c on."""
    (start, stop), (sparsity, pattern) = columns, how
    diagonal = [torch.linalg.inv(damped[c:, c:])[0, 0] for c in range(start, stop)]
    scores = work[:, start:stop] ** 2 / torch.stack(diagonal)
    if pattern is not None:
        for row in range(len(work)):
            for place in scores[row].argsort()[: pattern[1] - pattern[0]]:
                kept[row, start + place] = False
        return
    count = int(len(work) * stop * sparsity) - int(len(work) * start * sparsity)
    for place in scores.flatten().argsort()[:count].tolist():
        kept[place // (stop - start), start + place % (stop - start)] = False


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [5, 8, 24, 128])
def test_it_equals_the_papers_algorithm_written_number_by_number(seed, block):
    weights, _, hessian = problem(seed)
    expected = plain_sparsegpt(weights, hessian, block, sparsity=0.5)
    found = sparsegpt(weights, hessian, sparsity=0.5, block=block)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 3)])
@pytest.mark.parametrize("block", [1, 10, 128])
def test_patterns_equal_the_papers_algorithm_whatever_the_block(pattern, block):
    weights, _, hessian = problem(3)
    expected = plain_sparsegpt(weights, hessian, block, pattern=pattern)
    found = sparsegpt(weights, hessian, pattern=pattern, block=block)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)
    assert ((found.view(-1, pattern[1]) != 0).sum(1) == pattern[0]).all()


@given(st.integers(0, 10_000), st.floats(0, 0.95), st.integers(1, 40))
def test_exactly_as_many_weights_go_as_were_asked_for(seed, sparsity, block):
    weights, _, hessian = problem(seed, num_rows=7, num_inputs=19)
    pruned = sparsegpt(weights, hessian, sparsity=sparsity, block=block)
    assert int((pruned == 0).sum()) == int(weights.numel() * sparsity)
    assert pruned.dtype == weights.dtype
    assert pruned.isfinite().all()


@given(st.integers(0, 10_000), st.sampled_from([None, (2, 4)]))
def test_answers_move_less_than_by_magnitude_or_wanda(seed, pattern):
    weights, inputs, hessian = problem(seed, num_rows=64, num_inputs=48)
    norms = inputs.square().mean(0).sqrt()
    how: dict[str, Any] = {"sparsity": 0.5} if pattern is None else {"pattern": pattern}
    wanda = weights * wanda_mask(weights, norms, **how)
    by_size = weights * (
        magnitude_mask(weights, 0.5) if pattern is None else wanda_mask(weights, torch.ones(48), pattern=pattern)
    )
    ours = sparsegpt(weights, hessian, **how)
    error = [float(((pruned - weights) @ inputs.t()).norm()) for pruned in (ours, wanda, by_size)]
    assert error[0] < min(error[1:])


@given(st.integers(0, 10_000), st.sampled_from([2.0**-20, 4.0, 2.0**20]))
def test_only_the_hessians_shape_matters(seed, factor):
    weights, _, hessian = problem(seed)
    hessian[5], hessian[:, 5] = 0.0, 0.0
    first, second = (sparsegpt(weights, h, sparsity=0.6) for h in (hessian, hessian * factor))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_independent_inputs_leave_the_other_weights_as_they_are():
    weights = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    sizes = torch.arange(1.0, 9.0)
    pruned = sparsegpt(weights, torch.diag(sizes**2), sparsity=0.5, damping=1e-9)
    lowest = (weights.abs() * sizes).flatten().argsort()[:24]
    assert set(lowest.tolist()) == set((pruned.flatten() == 0).nonzero().flatten().tolist())
    torch.testing.assert_close(pruned[pruned != 0], weights[pruned != 0])


@pytest.mark.parametrize("how", [{"sparsity": 0.0}, {"sparsity": 0.003}, {"pattern": (4, 4)}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_removing_nothing_is_the_identity_as_a_copy(how, dtype):
    weights, _, hessian = problem(0)
    weights = weights.to(dtype)
    same = sparsegpt(weights, hessian, **how)
    assert torch.equal(same, weights)
    assert same.data_ptr() != weights.data_ptr()


@pytest.mark.parametrize("how", [{"sparsity": 0.25}, {"pattern": (3, 4)}])
def test_dead_inputs_go_first_and_move_nothing(how):
    weights, inputs, _ = problem(1, num_inputs=16)
    dead = [1, 6, 8, 15]
    inputs[:, dead] = 0.0
    pruned = sparsegpt(weights, inputs.t() @ inputs, **how)
    assert torch.equal(pruned, weights.index_fill(1, torch.tensor(dead), 0.0))


def test_dead_inputs_beyond_the_sparsity_keep_their_weights():
    weights, inputs, _ = problem(1, num_rows=1, num_inputs=16)
    inputs[:, 4:] = 0.0
    pruned = sparsegpt(weights, inputs.t() @ inputs, sparsity=0.5)
    assert int((pruned == 0).sum()) == 8
    assert torch.equal(pruned[pruned != 0], weights[pruned != 0])
    assert torch.equal(sparsegpt(weights, torch.zeros(16, 16), sparsity=0.5)[0, 8:], weights[0, 8:])


def test_weights_that_were_pruned_already_go_before_others():
    weights, _, hessian = problem(2)
    weights[:, ::3] = 0.0
    pruned = sparsegpt(weights, hessian, sparsity=1 / 3, block=24)
    torch.testing.assert_close(pruned, weights)


def test_bad_arguments_are_refused():
    weights, _, hessian = problem(0)
    with pytest.raises(ValueError, match=r"Expected weights \(out_features, in_features\) with a Hessian"):
        sparsegpt(weights, hessian[1:, 1:], sparsity=0.5)
    with pytest.raises(ConfigError, match="Expected either a sparsity or a pattern"):
        sparsegpt(weights, hessian)
    with pytest.raises(ConfigError, match="Expected either a sparsity or a pattern"):
        sparsegpt(weights, hessian, sparsity=0.5, pattern=(2, 4))
    with pytest.raises(ConfigError, match=r"Expected a sparsity in \[0, 1\)"):
        sparsegpt(weights, hessian, sparsity=1.0)
    with pytest.raises(ConfigError, match="multiple of 5 for the pattern 2:5"):
        sparsegpt(weights, hessian, pattern=(2, 5))
    with pytest.raises(ConfigError, match="block of at least 1 and damping above 0"):
        sparsegpt(weights, hessian, sparsity=0.5, damping=0.0)
    with pytest.raises(ConfigError, match="block of at least 1"):
        sparsegpt(weights, hessian, sparsity=0.5, block=0)
    with pytest.raises(ConfigError, match="finite Hessian"):
        sparsegpt(weights, hessian * torch.nan, sparsity=0.5)
    with pytest.raises(ConfigError, match="finite weights"):
        sparsegpt(weights * torch.inf, hessian, sparsity=0.5)


def stored(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """The mean outer product of all stored inputs, from each text alone: there is no padding to leave out."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _m, given, _o, name=name: seen[name].append(given[0]))
    with torch.no_grad():
        for text in texts():
            model(input_ids=text[None])
    flat = {name: torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double() for name, inputs in seen.items()}
    return {name: (rows.t() @ rows / len(rows)).float() for name, rows in flat.items()}


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("pad_id", [0, 17])
def test_products_equal_those_of_stored_activations_and_padding_is_left_out(name, pad_id):
    model = make(name).eval()
    layers = weight_layers(model)
    rows = texts()
    found = input_products(model, [batch_of(rows[:4], pad_id), batch_of(rows[4:], pad_id)], layers)
    norms = feature_norms(model, [batch_of(rows)], layers)
    expected = stored(model, list(layers))
    assert list(found) == list(layers)
    for layer, product in found.items():
        assert product.dtype == torch.float32
        torch.testing.assert_close(product, expected[layer], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(product.diagonal().sqrt(), norms[layer], rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was_and_unseen_layers_are_named():
    model = make("gpt2").train()
    input_products(model, [batch_of(texts())] * 2, weight_layers(model))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ConfigError, match=r"nothing reached \['spare'\]"):
        input_products(model, [batch_of(texts())], {"spare": LayerWeight("spare", nn.Linear(3, 3))})


def test_a_models_layer_answers_more_nearly_than_by_magnitude_on_its_own_inputs():
    model = make("llama").eval()
    layers = weight_layers(model, include_head=False)
    generator = torch.Generator().manual_seed(1)
    batches = [{"tokens": torch.randint(3, 40, (8, 16), generator=generator)} for _ in range(4)]
    products = input_products(model, batches, layers)
    name, layer = next(iter(layers.items()))
    before = layer.matrix().clone()
    ours = sparsegpt(before, products[name], sparsity=0.5)
    plain = before * magnitude_mask(before, 0.5)
    error = [torch.einsum("oi,ij,oj->", d, products[name], d) for d in (ours - before, plain - before)]
    assert error[0] < error[1]
