from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers.cache_utils import QuantizedCache, QuantizedLayer

from fairsisa.errors import ConfigError
from fairsisa.models.cache_scoring import first_token_log_probabilities, score_through_cache
from fairsisa.models.generating import Sampling, generate
from fairsisa.models.kv_cache import FEW_BITS, CacheLayout, decode_states, encode_states, new_cache
from fairsisa.models.language import new_language_model

WORDS = 40
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": WORDS}
WIDE |= {"intermediate_size": 48, "max_position_embeddings": 32}
# No end token: the model's own `generate`, the second path of these tests, would stop at it.
ENDLESS = {"bos_token_id": None, "eos_token_id": None}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": WORDS, **ENDLESS},
    "llama": {**WIDE, "num_key_value_heads": 2, **ENDLESS},
    "gpt_neox": {**WIDE, **ENDLESS},
}
PROMPTS = [[7], [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8, 9, 7], [2, 7, 1]]
TAILS = [[1, 2, 3, 4], [5], [6, 7], [8, 9, 10, 11, 12, 13]]
LATE = CacheLayout(residual_length=100)
shapes = pytest.mark.parametrize("architecture", SHAPES)
few_bits = pytest.mark.parametrize("bits", FEW_BITS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def tiny(architecture: str) -> Any:
    """A random model that is sure of what it says: as made, its logits are almost flat."""
    model = new_language_model(architecture, SHAPES[architecture], seed=0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    return model


@torch.inference_mode()
def one_pass(model: Any, prompt: list[int], tail: list[int]) -> torch.Tensor:
    """The log-probabilities of all tokens at each place of the tail, by one ordinary pass without padding."""
    logits = model(input_ids=torch.tensor([prompt + tail])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=-1)


def of_tail(log_probabilities: torch.Tensor, tail: list[int]) -> torch.Tensor:
    return log_probabilities[range(len(tail)), tail]


def hugging_face(model: Any, prompt: list[int], num_tokens: int, cache: Any = None) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and their logits by the model's own `generate`, one prompt at a time."""
    tokens = torch.tensor([prompt])
    made = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=num_tokens,
        do_sample=False,
        past_key_values=cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, len(prompt) :].tolist(), torch.cat(made.logits)


# The quantiser

states = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.sampled_from([4, 6, 16])),
    elements=st.floats(-1e4, 1e4, width=32),
)


@given(states, st.sampled_from(FEW_BITS), st.sampled_from([None, 2, "all"]))
def test_each_number_goes_to_the_nearest_level_of_its_group(values: np.ndarray, bits: int, size: Any) -> None:
    size = values.shape[-1] if size == "all" else size
    decoded = decode_states(encode_states(torch.from_numpy(values), bits, size)).numpy()
    groups = values.reshape(-1, size or values.shape[-1]).astype(np.float64)
    levels = np.linspace(groups.min(1), groups.max(1), 2**bits, axis=1)
    nearest = np.abs(groups[:, :, None] - levels[:, None]).min(axis=2)
    found = np.abs(groups - decoded.reshape(groups.shape))
    assert decoded.shape == values.shape
    assert np.allclose(found, nearest, atol=1e-6 * np.abs(values).max())


@given(states, st.sampled_from(FEW_BITS), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_quantising_again_changes_nothing(values: np.ndarray, bits: int, dtype: torch.dtype) -> None:
    once = decode_states(encode_states(torch.from_numpy(values).to(dtype), bits))
    again = decode_states(encode_states(once, bits))
    assert once.dtype == dtype
    assert torch.equal(once, again)


@few_bits
def test_extremes_stay_exact_so_that_nothing_drifts(bits: int) -> None:
    values = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    once = decode_states(encode_states(values, bits))
    assert torch.equal(once.amin(dim=-1), values.amin(dim=-1))
    assert torch.equal(once.amax(dim=-1), values.amax(dim=-1))
    assert torch.equal(decode_states(encode_states(once, bits)), once)


@few_bits
def test_a_quantised_number_takes_its_bits(bits: int) -> None:
    few = encode_states(torch.randn(2, 3, 5, 64), bits)
    assert few.packed.dtype == torch.uint8
    assert few.packed.numel() * 8 == 2 * 3 * 5 * 64 * bits
    assert few.low.shape == few.high.shape == (2, 3, 5, 1, 1)


@pytest.mark.parametrize(("width", "size"), [(128, 64), (96, 48), (80, 40), (8, 8), (67, 1)])
def test_a_group_is_the_largest_divisor_up_to_64(width: int, size: int) -> None:
    assert encode_states(torch.randn(1, 1, 1, width), 4).low.shape[-2] == width // size


def test_a_group_that_does_not_fit_the_head_is_named() -> None:
    with pytest.raises(ConfigError, match="group_size=3 does not divide the head dimension, 8"):
        generate(tiny("gpt2"), [[1, 2]], max_new_tokens=2, cache_bits=4, layout=CacheLayout(group_size=3))


@pytest.mark.parametrize("name", ["group_size", "residual_length"])
def test_a_layout_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} to be 1 or more, got 0"):
        CacheLayout(**{name: 0})


@shapes
@pytest.mark.parametrize("bits", [2, 4])
def test_generates_what_the_quanto_cache_of_transformers_generates(
    architecture: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optimum.quanto")
    from optimum.quanto.tensor.packed import PackedTensor

    def unpacked(few: Any) -> torch.Tensor:
        parts = [(few._data >> shift) & (2**few._bits - 1) for shift in range(0, 8, few._bits)]
        return torch.cat(parts)[: few.shape[0]]

    # Its own would compile C++ into the installation.
    monkeypatch.setattr(PackedTensor, "unpack", unpacked)
    model, layout = tiny(architecture), CacheLayout(group_size=4, residual_length=3)
    # Not the prompt of one token: quanto cannot group an axis of one row by its length.
    for prompt in PROMPTS[1:]:
        theirs = QuantizedCache("quanto", model.config, nbits=bits, q_group_size=4, residual_length=3)
        expected, expected_logits = hugging_face(model, prompt, 8, theirs)
        found, logits = hugging_face(model, prompt, 8, new_cache(model, bits, layout))
        assert found == expected
        torch.testing.assert_close(logits, expected_logits, atol=1e-3, rtol=0)


# Generation


@shapes
@pytest.mark.parametrize("bits", [None, 16])
def test_an_exact_cache_generates_what_hugging_face_generates(architecture: str, bits: int | None) -> None:
    model = tiny(architecture)
    found = generate(model, PROMPTS, max_new_tokens=8, cache_bits=bits, batch_size=3)
    assert found.shape == (4, 1, 8)
    assert found[:, 0].tolist() == [hugging_face(model, prompt, 8)[0] for prompt in PROMPTS]


@shapes
@few_bits
def test_a_padded_batch_through_few_bits_generates_what_each_prompt_does_alone(architecture: str, bits: int) -> None:
    model = tiny(architecture)
    found = generate(model, PROMPTS, max_new_tokens=8, cache_bits=bits)
    assert found[:, 0].tolist() == [hugging_face(model, p, 8, new_cache(model, bits))[0] for p in PROMPTS]


@shapes
def test_two_bits_change_what_is_generated_after_the_first_token(architecture: str) -> None:
    many = np.random.default_rng(0).integers(0, WORDS, size=(12, 8)).tolist()
    exact = generate(tiny(architecture), many, max_new_tokens=8)
    coarse = generate(tiny(architecture), many, max_new_tokens=8, cache_bits=2)
    assert torch.equal(exact[..., 0], coarse[..., 0])
    assert not torch.equal(exact, coarse)


@shapes
def test_what_is_gathered_exact_is_not_yet_quantised(architecture: str) -> None:
    model = tiny(architecture)
    late, soon = (
        hugging_face(model, PROMPTS[0], 8, new_cache(model, 2, layout))[1] for layout in (LATE, CacheLayout())
    )
    torch.testing.assert_close(late[1], soon[1])
    assert (late[3:] - soon[3:]).abs().mean() > 1e-3


@few_bits
def test_sampling_twice_gives_equal_tokens_in_any_batches(bits: int) -> None:
    sample = partial(generate, tiny("llama"), max_new_tokens=6, cache_bits=bits)
    first = sample(PROMPTS, sampling=Sampling(seed=5, num_continuations=3))
    assert first.shape == (4, 3, 6)
    assert torch.equal(first, sample(PROMPTS, sampling=Sampling(seed=5, num_continuations=3)))
    assert torch.equal(first, sample(PROMPTS, sampling=Sampling(seed=5, num_continuations=3), batch_size=2))
    assert torch.equal(first[:2], sample(PROMPTS[:2], sampling=Sampling(seed=5, num_continuations=3)))
    assert not torch.equal(first, sample(PROMPTS, sampling=Sampling(seed=6, num_continuations=3)))
    assert not torch.equal(first[:, 0], first[:, 1])


def test_sampling_leaves_torch_s_own_generator_alone() -> None:
    before = torch.random.get_rng_state()
    generate(tiny("gpt2"), PROMPTS, max_new_tokens=3, sampling=Sampling(seed=0))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_tokens_are_drawn_with_the_model_s_probabilities(temperature: float) -> None:
    model, num = tiny("gpt2"), 4000
    sampling = Sampling(seed=1, num_continuations=num, temperature=temperature)
    drawn = generate(model, [PROMPTS[1]], max_new_tokens=1, sampling=sampling, batch_size=num)
    expected = (one_pass(model, PROMPTS[1], [0])[0] / temperature).softmax(dim=-1).numpy()
    share = np.bincount(drawn.flatten().numpy(), minlength=WORDS) / num
    assert np.all(np.abs(share - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / num) + 1e-4)
    assert expected.max() < 0.9


def test_the_likeliest_alone_are_drawn() -> None:
    model = tiny("gpt2")
    ordered = one_pass(model, PROMPTS[1], [0])[0].argsort(descending=True).tolist()
    total = one_pass(model, PROMPTS[1], [0])[0].exp()[ordered[:3]].sum().item()
    for limits in ({"top_k": 3}, {"top_p": total - 1e-4}):
        sampling = Sampling(seed=1, num_continuations=500, temperature=1.0, **limits)
        drawn = generate(model, [PROMPTS[1]], max_new_tokens=1, sampling=sampling, batch_size=500)
        assert set(drawn.flatten().tolist()) == set(ordered[:3])
    one = Sampling(seed=1, top_k=1)
    assert torch.equal(
        generate(model, PROMPTS, max_new_tokens=5, sampling=one), generate(model, PROMPTS, max_new_tokens=5)
    )


@pytest.mark.parametrize("bits", [None, 4])
def test_a_continuation_stops_at_its_end(bits: int | None) -> None:
    free = generate(tiny("llama"), PROMPTS, max_new_tokens=8, cache_bits=bits)[:, 0].tolist()
    ends = [free[1][2], free[2][5]]
    found = generate(tiny("llama"), PROMPTS, max_new_tokens=8, cache_bits=bits, end_ids=ends)[:, 0].tolist()
    for before, after in zip(free, found, strict=True):
        place = next((number for number, token in enumerate(before) if token in ends), 7)
        assert after == before[: place + 1] + [ends[0]] * (7 - place)


def test_no_prompt_gives_no_continuation() -> None:
    for sampling in (None, Sampling(seed=0, num_continuations=3)):
        assert generate(tiny("gpt2"), [], max_new_tokens=4, sampling=sampling).shape[-1] == 4
    assert score_through_cache(tiny("gpt2"), [], []) == []


# Scoring


@shapes
@pytest.mark.parametrize("bits", [None, 16])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_an_exact_cache_scores_as_one_pass_does(architecture: str, bits: int | None, batch_size: int) -> None:
    model = tiny(architecture)
    scores = score_through_cache(model, PROMPTS, TAILS, cache_bits=bits, batch_size=batch_size)
    for score, prompt, tail in zip(scores, PROMPTS, TAILS, strict=True):
        torch.testing.assert_close(score, of_tail(one_pass(model, prompt, tail), tail), atol=1e-5, rtol=0)
    first = first_token_log_probabilities(model, PROMPTS, cache_bits=bits, batch_size=batch_size)
    expected = torch.cat([one_pass(model, prompt, [0]) for prompt in PROMPTS])
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=0)


@shapes
@few_bits
def test_a_score_through_few_bits_does_not_depend_on_its_batch(architecture: str, bits: int) -> None:
    model = tiny(architecture)
    together = score_through_cache(model, PROMPTS, TAILS, cache_bits=bits)
    alone = score_through_cache(model, PROMPTS, TAILS, cache_bits=bits, batch_size=1)
    for first, second in zip(together, alone, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


@shapes
def test_more_bits_are_nearer_to_exact(architecture: str) -> None:
    rng = np.random.default_rng(1)
    prompts, tails = rng.integers(0, WORDS, size=(8, 16)).tolist(), rng.integers(0, WORDS, size=(8, 8)).tolist()
    score = partial(score_through_cache, tiny(architecture), prompts, tails)
    exact = torch.cat(score())
    errors = {bits: (torch.cat(score(cache_bits=bits)) - exact).abs().mean().item() for bits in FEW_BITS}
    assert 0 < 4 * errors[8] < errors[4]
    assert 2 * errors[4] < errors[2]


@shapes
@few_bits
def test_one_token_shows_few_bits_in_the_second_pass_alone(architecture: str, bits: int) -> None:
    """What transformers reads at once it reads exact: the ordinary path cannot change a one-token score."""
    model, prompt = tiny(architecture), PROMPTS[2]
    exact = hugging_face(model, prompt, 1)[1]
    ordinary = hugging_face(model, prompt, 1, new_cache(model, bits))[1]
    assert torch.equal(ordinary, exact)
    assert torch.equal(
        generate(model, PROMPTS, max_new_tokens=1, cache_bits=bits), generate(model, PROMPTS, max_new_tokens=1)
    )
    through = first_token_log_probabilities(model, [prompt], cache_bits=bits)
    assert (through - exact.log_softmax(dim=-1)).abs().max() > 1e-4


@shapes
@few_bits
def test_scoring_and_generating_read_the_same_cache(architecture: str, bits: int) -> None:
    """From the second token on, generation reads the prompt from its cache, and so does scoring with one token more."""
    model = tiny(architecture)
    for prompt in PROMPTS:
        tokens, logits = hugging_face(model, prompt, 7, new_cache(model, bits, LATE))
        expected = of_tail(logits.log_softmax(dim=-1)[1:], tokens[1:])
        (found,) = score_through_cache(model, [prompt + tokens[:1]], [tokens[1:]], cache_bits=bits)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_first_score_is_that_of_the_first_token_s_distribution() -> None:
    model = tiny("llama")
    scores = score_through_cache(model, PROMPTS, TAILS, cache_bits=2)
    first = first_token_log_probabilities(model, PROMPTS, cache_bits=2)
    assert first.shape == (4, WORDS)
    torch.testing.assert_close(first.exp().sum(dim=-1), torch.ones(4))
    for row, (score, tail) in enumerate(zip(scores, TAILS, strict=True)):
        torch.testing.assert_close(score[0], first[row, tail[0]], atol=1e-5, rtol=0)


def test_smaller_groups_are_nearer_to_exact() -> None:
    prompts, tails = [[3] * 4 + list(range(12))], [list(range(8))]
    score = partial(score_through_cache, tiny("gpt_neox"), prompts, tails)
    exact = score()[0]
    errors = [
        (score(cache_bits=2, layout=CacheLayout(group_size=size))[0] - exact).abs().mean().item() for size in (2, 8)
    ]
    assert errors[0] < errors[1] / 2


def test_an_empty_continuation_has_no_scores() -> None:
    scores = score_through_cache(tiny("gpt2"), PROMPTS[:2], [[], [1, 2]], cache_bits=4)
    assert [len(score) for score in scores] == [0, 2]


def test_bf16_models_are_scored_in_fp32() -> None:
    model = new_language_model("llama", SHAPES["llama"], seed=0).eval().to(torch.bfloat16)
    (score,) = score_through_cache(model, PROMPTS[1:2], TAILS[1:2], cache_bits=4)
    assert score.dtype == torch.float32
    assert generate(model, PROMPTS, max_new_tokens=3, cache_bits=4, sampling=Sampling(seed=0)).shape == (4, 1, 3)


# What is refused


def masked() -> Any:
    return new_language_model("bert", WIDE, seed=0).eval()


@pytest.mark.parametrize("bits", [None, 4])
def test_a_model_without_a_cache_is_refused(bits: int | None) -> None:
    for call in (
        partial(generate, masked(), PROMPTS, max_new_tokens=2),
        partial(score_through_cache, masked(), PROMPTS, TAILS),
        partial(first_token_log_probabilities, masked(), PROMPTS),
        partial(new_cache, masked()),
    ):
        with pytest.raises(ConfigError, match=r"Expected a causal language model.*BertForMaskedLM keeps none"):
            call(cache_bits=bits)


def test_sliding_windows_are_not_quantised() -> None:
    model = new_language_model("mistral", {**SHAPES["llama"], "sliding_window": 4}, seed=0).eval()
    with pytest.raises(ConfigError, match="mistral also keeps DynamicSlidingWindowLayer"):
        generate(model, PROMPTS, max_new_tokens=2, cache_bits=4)
    scores = score_through_cache(model, PROMPTS, TAILS)
    for score, prompt, tail in zip(scores, PROMPTS, TAILS, strict=True):
        torch.testing.assert_close(score, of_tail(one_pass(model, prompt, tail), tail), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [0, 1, 3, 32])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"cache_bits={bits}: use 2, 4 or 8"):
        new_cache(tiny("gpt2"), bits)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "got an empty one"),
        ([[1, WORDS]], "Expected token ids from 0 to 39, got 1 to 40"),
        ([[-1]], "got -1 to -1"),
        ([[1] * 32], "reads at most 32 tokens, prompt and all, got 33"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(tiny("gpt2"), prompts, max_new_tokens=2)
    with pytest.raises(ConfigError, match=message):
        score_through_cache(tiny("gpt2"), prompts, [[1, 1]] * len(prompts))


def test_as_many_tokens_as_there_are_positions_are_read() -> None:
    assert generate(tiny("gpt2"), [[1] * 31], max_new_tokens=2, cache_bits=4).shape == (1, 1, 2)
    assert len(score_through_cache(tiny("gpt2"), [[1] * 31], [[1, 1]], cache_bits=4)[0]) == 2


def test_continuations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="a continuation for each prompt, got 1 for 2"):
        score_through_cache(tiny("gpt2"), [[1], [2]], [[1]])
    with pytest.raises(ConfigError, match="Expected token ids from 0 to 39, got 40 to 40"):
        score_through_cache(tiny("gpt2"), [[1]], [[40]])
    with pytest.raises(ConfigError, match="at least one prompt"):
        first_token_log_probabilities(tiny("gpt2"), [])


def test_a_training_model_is_refused() -> None:
    model = new_language_model("gpt2", SHAPES["gpt2"], seed=0).train()
    with pytest.raises(ConfigError, match=r"call model\.eval"):
        generate(model, PROMPTS, max_new_tokens=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_continuations": 0}, "num_continuations to be 1 or more, got 0"),
        ({"top_k": 0}, "top_k to be 1 or more, got 0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_sampling_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(seed=0, **values)


def test_nothing_is_generated_in_empty_batches() -> None:
    with pytest.raises(ConfigError, match="got 0, 16"):
        generate(tiny("gpt2"), PROMPTS, max_new_tokens=0)
    with pytest.raises(ConfigError, match="got 2, 0"):
        generate(tiny("gpt2"), PROMPTS, max_new_tokens=2, batch_size=0)
    with pytest.raises(ConfigError, match="batch_size=0"):
        score_through_cache(tiny("gpt2"), PROMPTS, TAILS, batch_size=0)


def test_transformers_still_asks_a_layer_for_what_ours_gives() -> None:
    """`FewBitLayer` fills in two private methods; a transformers that renames them must fail here, by name."""
    source = inspect.getsource(QuantizedLayer)
    assert "self._quantize(" in source
    assert "self._dequantize(" in source


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@few_bits
def test_a_gpu_scores_as_the_cpu_does_and_repeats_itself(bits: int) -> None:
    on_cpu = torch.cat(score_through_cache(tiny("llama"), PROMPTS, TAILS, cache_bits=bits))
    model = new_language_model("llama", SHAPES["llama"], seed=0).eval()
    model.load_state_dict(tiny("llama").state_dict())
    model.cuda()
    on_gpu = torch.cat(score_through_cache(model, PROMPTS, TAILS, cache_bits=bits))
    # A state that lies between two levels may go to either; few do.
    assert (on_gpu - on_cpu).abs().median() < 1e-3
    sample = partial(generate, model, PROMPTS, max_new_tokens=6, cache_bits=bits, sampling=Sampling(seed=3))
    assert sample().device.type == "cpu"
    assert torch.equal(sample(), sample())
