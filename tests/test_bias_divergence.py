import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import rel_entr, softmax

from fairsisa.bias.divergence import block_divergences, option_divergence
from fairsisa.data.corpus_blocks import Masking, pack_blocks
from fairsisa.errors import ConfigError
from fairsisa.models.language import collate_blocks, new_language_model

WORDS, LENGTH = 60, 12
HALVES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CAPPED = {"head_dim": 8, "num_key_value_heads": 2, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPES = {"llama": HALVES, "gemma2": {**HALVES, **CAPPED}, "bert": {**HALVES, **NO_DROPOUT}}
MASKING = Masking(mask_id=1, vocab_size=WORDS, special_ids=frozenset({0, 1}), seed=0, share=0.4)
KINDS = [("llama", None), ("gemma2", None), ("bert", MASKING)]


def made(name, seed=0, **others):
    shape = {**SHAPES[name], "vocab_size": WORDS, "max_position_embeddings": 32, "initializer_range": 0.4}
    return new_language_model(name, {**shape, **others}, seed).eval()


@pytest.fixture(scope="module")
def blocks():
    random = np.random.default_rng(0)
    rows = [random.integers(2, WORDS, size) for size in (5, 30, 17, 14)]
    return pack_blocks([f"d{number}" for number in range(4)], rows, length=LENGTH, end_id=0)


@torch.inference_mode()
def brute_force(base, other, blocks, masking):
    """One block at a time, the softmax of all logits in float64, scipy's sum."""
    found = []
    for row in range(len(blocks)):
        batch = collate_blocks(blocks, np.array([row]), masking=masking)
        places = batch["targets"][0] >= 0
        targets = batch["targets"][0][places].numpy()
        logits = [model(input_ids=batch["tokens"]).logits[0][places].double().numpy() for model in (base, other)]
        ours, theirs = (softmax(each, axis=1) for each in logits)
        at = np.arange(len(targets)), targets
        same = (ours.argmax(1) == theirs.argmax(1)).sum()
        difference = (np.log(theirs[at]) - np.log(ours[at])).sum()
        found.append((len(targets), rel_entr(ours, theirs).sum(), rel_entr(theirs, ours).sum(), same, difference))
    return np.array(found).T


@pytest.mark.parametrize(("name", "masking"), KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_divergences_are_those_of_all_probabilities(blocks, name, masking, batch_size):
    base, other = made(name), made(name, seed=1)
    found = block_divergences(base, other, blocks, batch_size, masking=masking)
    number, forward, backward, same, difference = brute_force(base, other, blocks, masking)
    assert found.num_targets.tolist() == number.tolist()
    assert found.forward == pytest.approx(forward, rel=1e-5, abs=1e-5)
    assert found.backward == pytest.approx(backward, rel=1e-5, abs=1e-5)
    assert found.same_top.tolist() == same.tolist()
    assert found.difference == pytest.approx(difference, rel=1e-5, abs=1e-4)
    assert forward.sum() > 1
    assert not np.allclose(forward, backward, rtol=0.01)


@pytest.mark.parametrize(("name", "masking"), KINDS)
def test_a_model_does_not_differ_from_itself(blocks, name, masking):
    found = block_divergences(made(name), made(name), blocks, 2, masking=masking)
    assert max(found.forward.max(), found.backward.max(), np.abs(found.difference).max()) < 1e-6
    assert found.same_top.tolist() == found.num_targets.tolist()


def test_the_two_directions_change_places_with_the_models(blocks):
    one, other = made("llama"), made("llama", seed=1)
    there, back = block_divergences(one, other, blocks, 2), block_divergences(other, one, blocks, 2)
    assert there.forward == pytest.approx(back.backward, rel=1e-6)
    assert there.difference == pytest.approx(-back.difference, rel=1e-6)


def test_a_small_change_is_resolved(blocks):
    base, other = made("llama"), made("llama")
    with torch.no_grad():
        other.lm_head.weight += 1e-3 * torch.randn(other.lm_head.weight.shape, generator=torch.manual_seed(0))
    found = block_divergences(base, other, blocks, 4)
    _, forward, backward, _, _ = brute_force(base, other, blocks, None)
    assert 0 < found.forward.sum() < 1e-2
    assert found.forward == pytest.approx(forward, rel=0.05)
    assert found.backward == pytest.approx(backward, rel=0.05)


def test_models_that_cannot_be_compared_are_refused(blocks):
    with pytest.raises(ConfigError, match="one vocabulary, got 60 and 64 tokens"):
        block_divergences(made("llama"), made("llama", vocab_size=64), blocks, 2)
    with pytest.raises(ConfigError, match="bert is a masked language model"):
        block_divergences(made("llama"), made("bert"), blocks, 2)
    with pytest.raises(ConfigError, match="evaluation mode"):
        block_divergences(made("llama"), made("llama").train(), blocks, 2)
    single = pack_blocks(["d"], [[3, 4]], length=2, end_id=0)
    special = Masking(mask_id=1, vocab_size=WORDS, special_ids=frozenset(range(WORDS)), seed=0)
    with pytest.raises(ConfigError, match="something to predict"):
        block_divergences(made("bert"), made("bert"), single, 2, masking=special)


likelihoods = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-60, 0))


@given(likelihoods, st.integers(0, 10))
def test_option_divergence_is_scipys_of_the_softmax(base, seed):
    other = base + np.random.default_rng(seed).normal(0, 3, base.shape)
    forward, backward = option_divergence(base, other)
    ours, theirs = softmax(base, axis=1), softmax(other, axis=1)
    assert forward == pytest.approx(rel_entr(ours, theirs).sum(axis=1), rel=1e-6, abs=1e-9)
    assert backward == pytest.approx(rel_entr(theirs, ours).sum(axis=1), rel=1e-6, abs=1e-9)
    assert option_divergence(base, base - 5.0) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.0, abs=1e-12))


def test_options_that_are_not_there_or_impossible():
    nan, inf = np.nan, np.inf
    base = np.array([[-1.0, -2.0, nan], [nan, nan, nan], [-1.0, nan, -3.0], [-1.0, -inf, -1.0], [0.0, 0.0, -inf]])
    other = np.array([[-2.0, -1.0, nan], [nan, nan, nan], [-1.0, -2.0, nan], [-1.0, -1.0, -1.0], [0.0, 0.0, -inf]])
    forward, backward = option_divergence(base, other)
    share = 1 / (1 + np.exp(-1))
    expected = share * 1 + (1 - share) * -1
    assert forward == pytest.approx([expected, nan, nan, np.log(1.5), 0.0], nan_ok=True)
    assert backward == pytest.approx([expected, nan, nan, inf, 0.0], nan_ok=True)
    with pytest.raises(ValueError, match="two tables"):
        option_divergence(base, base[:2])
