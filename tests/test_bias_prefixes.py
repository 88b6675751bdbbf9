import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.bias.readouts.prefixes import Continuation, score_continuations, score_through_few_bits
from fairsisa.bias.readouts.reading import NO_LIMIT, reader_of
from fairsisa.bias.readouts.trees import LARGEST_TREE, batches_of, grow_trees, lone_trees, seen_by
from fairsisa.errors import ConfigError
from fairsisa.models.cache_scoring import score_through_cache
from fairsisa.models.language import new_language_model

WORDS = 40
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
HALVES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GEMMA = {"head_dim": 8, "num_key_value_heads": 2, "query_pre_attn_scalar": 8, "sliding_window": 6}
SHAPES = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **NO_DROPOUT}),
    "llama": ("llama", {**HALVES, "num_key_value_heads": 2, "max_position_embeddings": 64}),
    "gpt_neox": ("gpt_neox", {**HALVES, "max_position_embeddings": 64}),
    "capped and windowed": (
        "gemma2",
        {**HALVES, **GEMMA, "max_position_embeddings": 64, "final_logit_softcapping": 3.0},
    ),
    "scaled": ("cohere", {**HALVES, "num_key_value_heads": 2, "max_position_embeddings": 64, "logit_scale": 0.1}),
    "without positions": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "recurrent": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}
READS_TREES = ("gpt2", "llama", "gpt_neox", "capped and windowed", "scaled")
IN_STEPS = ("gpt2", "llama", "gpt_neox", "without positions", "recurrent")

tokens = st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=9).map(tuple)


def made(name, **others):
    architecture, shape = SHAPES[name]
    model = new_language_model(architecture, {**shape, "vocab_size": WORDS, "initializer_range": 0.5, **others}, 0)
    return model.eval()


@pytest.fixture(scope="module")
def gpt2():
    return made("gpt2")


@pytest.fixture(scope="module")
def llama():
    return made("llama")


@torch.inference_mode()
def slow_score(network, each):
    """One text, one ordinary pass, the softmax of all its logits in float64."""
    ids = torch.tensor([[*each.prefix, *each.tokens]])
    logits = network(input_ids=ids).logits[0].double()
    places = range(len(each.prefix) - 1, ids.shape[1] - 1)
    pairs = [(logits[place].log_softmax(-1), int(ids[0, place + 1])) for place in places]
    return sum(float(row[token]) for row, token in pairs), all(int(row.argmax()) == token for row, token in pairs)


def some_continuations(seed=0, contexts=6):
    random = np.random.default_rng(seed)
    words = [tuple(random.integers(0, WORDS, random.integers(1, 14)).tolist()) for _ in range(contexts)]
    options = [tuple(random.integers(0, WORDS, random.integers(1, 6)).tolist()) for _ in range(4)]
    return [Continuation(prefix, option, group) for group, prefix in enumerate(words) for option in options]


@pytest.mark.parametrize("name", SHAPES)
def test_scores_are_those_of_one_text_at_a_time(name):
    network, asked = made(name), some_continuations()
    found = score_continuations(network, asked, max_tokens=64)
    expected = [slow_score(network, each) for each in asked]
    assert found.totals == pytest.approx([total for total, _ in expected], abs=2e-4, rel=1e-5)
    assert found.likeliest.tolist() == [likeliest for _, likeliest in expected]
    assert np.isnan(found.outside).all()


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_is_read_in_steps_and_in_trees_only_where_that_gives_its_own_logits(name):
    reader = reader_of(made(name))
    states = reader.body(input_ids=torch.tensor([[1, 2, 3]]))
    assert (states.shape[-1] == 32) == (name in IN_STEPS)
    assert bool(reader.depth) == (name in READS_TREES)
    assert reader.depth == {"capped and windowed": 6}.get(name, NO_LIMIT if reader.depth else 0)


def test_a_model_that_ignores_the_mask_is_not_given_trees(gpt2, monkeypatch):
    plain = gpt2.base_model.forward

    def forgetful(input_ids=None, attention_mask=None, position_ids=None, **others):
        return plain(input_ids=input_ids, position_ids=position_ids, **others)

    monkeypatch.setattr(gpt2.base_model, "forward", forgetful)
    assert reader_of(gpt2).depth == 0


@settings(max_examples=15)
@given(st.data())
def test_order_batches_and_sharing_change_nothing(gpt2, llama, data):
    network = data.draw(st.sampled_from([gpt2, llama]))
    start = data.draw(tokens)
    asked = [
        Continuation(start + prefix, option)
        for prefix in data.draw(st.lists(tokens, min_size=1, max_size=4))
        for option in data.draw(st.lists(tokens, min_size=1, max_size=3))
    ]
    order = data.draw(st.permutations(range(len(asked))))
    max_tokens = data.draw(st.integers(1, 300))
    first = score_continuations(network, asked, max_tokens=4096)
    mixed = score_continuations(network, [asked[each] for each in order], max_tokens=max_tokens)
    alone = score_continuations(network, asked, max_tokens=max_tokens, share=False)
    scale = np.array([len(each.tokens) for each in asked])
    assert np.abs(mixed.totals - first.totals[order]).max() < 1e-5 * 20 * scale.max()
    assert np.abs(alone.totals - first.totals).max() < 1e-5 * 20 * scale.max()
    assert mixed.likeliest.tolist() == first.likeliest[order].tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "recurrent"])
def test_a_score_does_not_depend_on_what_is_beside_it(name):
    network, asked = made(name), some_continuations()
    together = score_continuations(network, asked, max_tokens=4096)
    by_itself = [score_continuations(network, [each], max_tokens=4096).totals[0] for each in asked]
    assert together.totals == pytest.approx(by_itself, abs=1e-4, rel=1e-6)


def test_what_is_shared_is_run_once(llama):
    context = tuple(range(30))
    asked = [Continuation(context, (word, word)) for word in range(4)]
    found = score_continuations(llama, asked, max_tokens=4096)
    assert found.num_run == 30 + 4
    letters = [Continuation(context, (word,)) for word in range(4)]
    assert score_continuations(llama, letters, max_tokens=4096).num_run == 30
    assert score_continuations(llama, letters, max_tokens=4096, share=False).num_run == 120
    assert score_continuations(made("recurrent"), letters, max_tokens=4096).num_run == 30


def test_a_common_start_of_many_items_is_shared_as_far_as_a_tree_goes(llama):
    start = tuple(range(20))
    asked = [Continuation((*start, word, word), (other,)) for word in range(8) for other in range(3)]
    assert score_continuations(llama, asked, max_tokens=4096).num_run == 20 + 2 * 8


@given(st.lists(tokens, min_size=1, max_size=12), st.integers(0, 12), st.sampled_from([1, 32, 768]))
def test_trees_hold_every_sequence_once(sequences, depth, width):
    trees = grow_trees(sequences, depth=depth, width=width)
    held = {number: (tree, nodes) for tree in trees for number, nodes in tree.paths}
    assert sorted(held) == list(range(len(sequences)))
    for number, (tree, nodes) in held.items():
        assert tuple(tree.tokens[nodes]) == sequences[number]
        assert tree.positions[nodes].tolist() == list(range(len(nodes)))
        seen = seen_by([tree])[0]
        for place, node in enumerate(nodes):
            assert sorted(np.flatnonzero(seen[node])) == sorted(nodes[: place + 1])
    for tree in trees:
        branches = len(tree) > tree.depth
        assert not branches or tree.depth <= depth
        assert len(tree) == len({prefix for n, _ in tree.paths for prefix in prefixes(sequences[n])})


def prefixes(sequence):
    return [sequence[:end] for end in range(1, len(sequence) + 1)]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 2000))
def test_batches_are_of_similar_size_and_within_the_limit(lengths, max_tokens):
    batches = [*batches_of(lone_trees([(0,) * length for length in lengths]), max_tokens)]
    assert sorted(len(tree) for batch in batches for tree in batch) == sorted(lengths)
    for batch in batches:
        width = max(len(tree) for tree in batch)
        assert len(batch) == 1 or len(batch) * width <= max_tokens


def test_a_tree_does_not_grow_beyond_its_limit():
    start = tuple(range(1000))
    trees = grow_trees([start + (word,) * 100 for word in range(30)], depth=NO_LIMIT, width=4096)
    assert [len(tree) for tree in trees] == [2000, 2000, 2000]
    assert LARGEST_TREE == 2048


def test_the_mass_outside_is_that_of_the_group_alone(gpt2):
    prefix = (3, 1, 4)
    asked = [Continuation(prefix, (word,), group) for group, words in enumerate([(1, 2, 2), (5,)]) for word in words]
    found = score_continuations(gpt2, asked, max_tokens=64, outside=True)
    logits = gpt2(input_ids=torch.tensor([prefix])).logits[0, -1].detach().double()
    mass = logits.softmax(-1).numpy()
    expected = np.log([1 - mass[1] - mass[2]] * 3 + [1 - mass[5]])
    assert found.outside == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_a_quantised_cache_gives_what_cache_scoring_gives(llama, bits):
    asked = some_continuations()
    found = score_through_few_bits(llama, asked, cache_bits=bits, max_tokens=100, outside=True)
    expected = score_through_cache(
        llama, [each.prefix for each in asked], [each.tokens for each in asked], cache_bits=bits
    )
    assert found.totals == pytest.approx([float(row.sum()) for row in expected], abs=2e-4)
    exact = score_continuations(llama, asked, max_tokens=100, outside=True)
    close = np.abs(found.totals - exact.totals).max() < 1e-3
    assert close == (bits == 16)
    if bits == 16:
        assert found.likeliest.tolist() == exact.likeliest.tolist()
        assert found.outside == pytest.approx(exact.outside, rel=1e-4, abs=1e-5)


def test_nothing_is_asked_of_nothing(gpt2):
    found = score_continuations(gpt2, [], max_tokens=10)
    assert len(found.totals) == found.num_run == 0
    with pytest.raises(ValueError, match="of one token or more"):
        Continuation((), (1,))
    with pytest.raises(ValueError, match="of one token or more"):
        Continuation((1,), ())


def test_what_does_not_fit_the_model_is_refused(gpt2):
    with pytest.raises(ConfigError, match="another tokenizer"):
        score_continuations(gpt2, [Continuation((1,), (WORDS,))], max_tokens=10)
    with pytest.raises(ConfigError, match="reads at most 64 tokens"):
        score_continuations(gpt2, [Continuation((1,) * 64, (1, 1))], max_tokens=10)
    masked = new_language_model("bert", {**HALVES, "vocab_size": WORDS}, 0).eval()
    with pytest.raises(ConfigError, match="causal language model"):
        score_continuations(masked, [Continuation((1,), (1,))], max_tokens=10)
