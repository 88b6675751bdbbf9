from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from fairsisa.compression.calibration import feature_norms
from fairsisa.compression.layers import weight_layers
from fairsisa.compression.pruning import global_magnitude_masks, magnitude_mask, random_mask, wanda_mask
from fairsisa.errors import ConfigError

SEEDS = st.integers(0, 2**31)
SPARSITIES = st.floats(0.0, 1.0, exclude_max=True)
SIDES = st.integers(1, 9)


def tiny_gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, bos_token_id=1, eos_token_id=2)
    ).eval()


def tiny_llama() -> nn.Module:
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40
    )
    return LlamaForCausalLM(config).eval()


def padded_batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 40, (6, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 9, 2, 5])[:, None]).long()
    full = torch.randint(3, 40, (4, 5), generator=generator)
    return [{"tokens": tokens, "mask": mask}, {"tokens": full}]


def stored_inputs(model: nn.Module, names: list[str]) -> dict[str, np.ndarray]:
    """Every input of the named layers, padding dropped, in double precision: one text at a time, so without any."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, given, _o, name=name: seen[name].append(given[0]))
        for name in names
    ]
    for batch in padded_batches():
        lengths = batch["mask"].sum(1) if "mask" in batch else torch.full((len(batch["tokens"]),), 5)
        for text, length in zip(batch["tokens"], lengths, strict=True):
            with torch.no_grad():
                model(input_ids=text[None, :length])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat([x[0] for x in inputs]).double().numpy() for name, inputs in seen.items()}


def loop_wanda(weights: np.ndarray, inputs: np.ndarray, group: int | None, num_removed: int) -> np.ndarray:
    """Sun et al. (2024): S_ij = |W_ij| * ||X_j||_2; drop the lowest of each row, or of each block in a row."""
    num_rows, num_columns = weights.shape
    kept = np.ones(weights.shape, dtype=bool)
    norms = [math.sqrt(np.dot(inputs[:, j], inputs[:, j])) for j in range(num_columns)]
    width = group or num_columns
    for i in range(num_rows):
        for start in range(0, num_columns, width):
            scores = {j: abs(weights[i, j]) * norms[j] for j in range(start, start + width)}
            for j in sorted(scores, key=scores.__getitem__)[:num_removed]:
                kept[i, j] = False
    return kept


@pytest.mark.parametrize(("make", "conv1d"), [(tiny_gpt2, True), (tiny_llama, False)], ids=["gpt2", "llama"])
@pytest.mark.parametrize("pattern", [None, (2, 4)], ids=["half", "2:4"])
def test_wanda_equals_a_loop_written_from_the_paper(make, conv1d, pattern):
    model = make()
    layers = weight_layers(model)
    assert {isinstance(layer.module, Conv1D) for layer in layers.values()} == {conv1d}
    norms = feature_norms(model, padded_batches(), layers)
    inputs = stored_inputs(model, list(layers))
    for name, layer in layers.items():
        raw = model.get_submodule(name).weight.detach().double().numpy()
        weights = raw.T if conv1d else raw
        if pattern is None:
            mask = wanda_mask(layer.matrix(), norms[name], sparsity=0.5)
            expected = loop_wanda(weights, inputs[name], None, weights.shape[1] // 2)
        else:
            mask = wanda_mask(layer.matrix(), norms[name], pattern=pattern)
            expected = loop_wanda(weights, inputs[name], 4, 2)
        np.testing.assert_array_equal(mask.numpy(), expected, err_msg=name)
        assert not torch.equal(mask, magnitude_mask(layer.matrix(), 0.5))


def test_wanda_by_hand():
    weights = torch.tensor([[1.0, -4.0, 2.0, 3.0], [-5.0, 1.0, 1.0, 2.0]])
    norms = torch.tensor([8.0, 1.0, 1.0, 0.5])
    assert wanda_mask(weights, norms, sparsity=0.5).tolist() == [[True, True, False, False], [True, False, False, True]]
    assert wanda_mask(weights, norms, pattern=(1, 2)).tolist() == [
        [True, False, True, False],
        [True, False, False, True],
    ]


@st.composite
def matrices(draw: st.DrawFn, columns: st.SearchStrategy[int] = SIDES) -> torch.Tensor:
    """Weights with many ties and zeros, or without any."""
    shape = (draw(SIDES), draw(columns))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    if draw(st.booleans()):
        return torch.randint(-2, 3, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


def sorted_mask(scores: list[float], num_removed: int) -> list[bool]:
    """What a stable sort removes: the lowest, of equals the earlier."""
    gone = set(sorted(range(len(scores)), key=lambda place: (scores[place], place))[:num_removed])
    return [place not in gone for place in range(len(scores))]


@given(matrices(), SPARSITIES)
def test_magnitude_equals_a_naive_sort(weights, sparsity):
    mask = magnitude_mask(weights, sparsity)
    expected = sorted_mask([abs(value) for value in weights.flatten().tolist()], int(weights.numel() * sparsity))
    assert mask.dtype == torch.bool
    assert mask.flatten().tolist() == expected
    assert mask.shape == weights.shape


@given(matrices(), SPARSITIES)
def test_a_transposed_view_is_pruned_as_its_copy(weights, sparsity):
    assert torch.equal(magnitude_mask(weights.T, sparsity), magnitude_mask(weights.T.contiguous(), sparsity))


@given(st.lists(matrices(), min_size=1, max_size=4), SPARSITIES)
def test_global_magnitude_equals_a_naive_sort_of_all_weights(weights, sparsity):
    named = {f"layer{number}": matrix for number, matrix in enumerate(weights)}
    masks = global_magnitude_masks(named, sparsity)
    everything = [abs(value) for matrix in weights for value in matrix.flatten().tolist()]
    assert list(masks) == list(named)
    assert [masks[name].shape for name in named] == [matrix.shape for matrix in weights]
    found = [kept for mask in masks.values() for kept in mask.flatten().tolist()]
    assert found == sorted_mask(everything, int(len(everything) * sparsity))


@given(matrices(), SPARSITIES, SEEDS)
def test_wanda_removes_the_exact_count_of_every_row_and_earlier_ties_first(weights, sparsity, seed):
    norms = torch.randint(0, 3, weights.shape[1:], generator=torch.Generator().manual_seed(seed)).float()
    mask = wanda_mask(weights, norms, sparsity)
    count = int(weights.shape[1] * sparsity)
    assert (~mask).sum(dim=1).tolist() == [count] * len(weights)
    scores = (weights.abs() * norms).tolist()
    assert mask.tolist() == [sorted_mask(row, count) for row in scores]


@given(st.data(), st.integers(1, 5), SEEDS)
def test_a_pattern_keeps_its_count_in_every_block(data, block, seed):
    kept = data.draw(st.integers(1, block))
    weights = data.draw(matrices(st.integers(1, 4).map(lambda blocks: blocks * block)))
    norms = torch.rand(weights.shape[1], generator=torch.Generator().manual_seed(seed))
    mask = wanda_mask(weights, norms, pattern=(kept, block))
    assert set(mask.view(-1, block).sum(dim=1).tolist()) == {kept}
    scores = (weights.abs() * norms).view(-1, block).tolist()
    assert mask.view(-1, block).tolist() == [sorted_mask(row, block - kept) for row in scores]


@given(matrices(), st.floats(0.001, 1000.0))
def test_norms_matter_up_to_a_factor_only_and_equal_ones_not_at_all(weights, factor):
    level = torch.full(weights.shape[1:], 2.0 ** round(np.log2(factor)))
    rows = torch.stack([magnitude_mask(row, 0.5) for row in weights])
    assert torch.equal(wanda_mask(weights, level, 0.5), rows)


@given(SIDES, SIDES, SPARSITIES, SEEDS)
def test_a_random_mask_has_the_exact_count_and_is_its_seed(rows, columns, sparsity, seed):
    torch.manual_seed(seed + 1)
    before = torch.get_rng_state()
    mask = random_mask((rows, columns), sparsity, seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert mask.shape == (rows, columns)
    assert int((~mask).sum()) == int(rows * columns * sparsity)
    torch.rand(3)
    assert torch.equal(mask, random_mask((rows, columns), sparsity, seed))


def test_other_seeds_give_other_masks_with_no_favourite_place():
    masks = torch.stack([random_mask((4, 8), 0.5, seed) for seed in range(400)]).float()
    assert bool(((masks.mean(dim=0) - 0.5).abs() < 5 * 0.5 / 20).all())
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 400


@given(matrices())
def test_no_sparsity_keeps_all(weights):
    norms = torch.zeros(weights.shape[1])
    masks = [
        magnitude_mask(weights, 0.0),
        global_magnitude_masks({"one": weights}, 0.0)["one"],
        wanda_mask(weights, norms, sparsity=0.0),
        wanda_mask(weights, norms, pattern=(1, 1)),
        random_mask(tuple(weights.shape), 0.0, seed=0),
    ]
    assert all(bool(mask.all()) for mask in masks)


def test_sixteen_bit_weights_are_scored_in_fp32():
    weights = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    norms = torch.tensor([1.001, 1.0])
    assert wanda_mask(weights, norms, 0.5).tolist() == [[True, False]]


def test_a_dead_input_goes_first_however_large_its_weights():
    assert wanda_mask(torch.tensor([[1e6, 1e-6]]), torch.tensor([0.0, 1e-3]), 0.5).tolist() == [[False, True]]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50, float("nan")])
def test_a_sparsity_that_is_no_share_is_refused(sparsity):
    one = torch.ones(2, 2)
    for prune in (
        lambda: magnitude_mask(one, sparsity),
        lambda: global_magnitude_masks({"one": one}, sparsity),
        lambda: wanda_mask(one, one[0], sparsity),
        lambda: random_mask((2, 2), sparsity, 0),
    ):
        with pytest.raises(ConfigError, match=r"sparsity in \[0, 1\), .*got"):
            prune()


@pytest.mark.parametrize(("sparsity", "pattern"), [(None, None), (0.5, (2, 4))])
def test_wanda_wants_one_of_sparsity_and_pattern(sparsity, pattern):
    with pytest.raises(ConfigError, match="either a sparsity or a pattern"):
        wanda_mask(torch.ones(4, 4), torch.ones(4), sparsity, pattern)


@pytest.mark.parametrize("pattern", [(0, 4), (5, 4), (-1, 2), (0, 0)])
def test_an_impossible_pattern_is_refused(pattern):
    with pytest.raises(ConfigError, match=r"1 <= N <= M"):
        wanda_mask(torch.ones(4, 4), torch.ones(4), pattern=pattern)


def test_a_width_that_the_pattern_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"multiple of 4 for the pattern 2:4, got 6"):
        wanda_mask(torch.ones(4, 6), torch.ones(6), pattern=(2, 4))


@pytest.mark.parametrize("shape", [(6, 4), (4,)])
def test_norms_of_another_width_are_refused(shape):
    with pytest.raises(ValueError, match=r"norms \(in_features,\), got .* with \(6,\)"):
        wanda_mask(torch.ones(shape), torch.ones(6), 0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_model_is_refused(bad):
    with pytest.raises(ConfigError, match="finite weights and norms"):
        magnitude_mask(torch.tensor([[1.0, bad]]), 0.5)
    with pytest.raises(ConfigError, match="finite weights and norms"):
        wanda_mask(torch.ones(1, 2), torch.tensor([1.0, bad]), 0.5)


def test_nothing_to_prune_together_is_refused():
    with pytest.raises(ConfigError, match="one matrix or more"):
        global_magnitude_masks({}, 0.5)
