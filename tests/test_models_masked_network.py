from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fairsisa.bias.readouts.masked_questions import align
from fairsisa.bias.readouts.masked_rows import MaskedRow, Sight, batches_of, log_probabilities
from fairsisa.bias.readouts.near_ties import rescore_near_ties
from fairsisa.models.language import new_language_model
from fairsisa.models.masked_network import MaskedNetwork, masked_network, trimmed_encoder, vocabulary_head

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
BERT_LIKE = ("bert", "roberta", "electra", "mpnet", "deberta-v2")
SHAPES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "electra": {**SMALL, "embedding_size": 8},
    "albert": {**SMALL, "embedding_size": 8},
    "mpnet": SMALL,
    "deberta-v2": SMALL,
    "modernbert": {**SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60},
}


def adversarial(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pairs of options that differ by 0.01, half of which low precision turns round."""
    exact = [np.array([-3.0, -3.01]) for _ in range(count)]
    signs = np.where(np.random.default_rng(0).random(count) < 0.5, -1.0, 1.0)
    coarse = [values + np.array([sign * 0.02, 0.0]) for values, sign in zip(exact, signs, strict=True)]
    return coarse, exact


def preferences(options: Any) -> list[int]:
    return [int(np.argmax(values)) for values in options]


def test_near_ties_are_scored_again_and_without_a_threshold_preferences_change():
    coarse, exact = adversarial(100)
    found = rescore_near_ties(coarse, lambda numbers: [exact[number] for number in numbers], seed=0)
    assert preferences(found.values) == preferences(exact)
    assert len(found.rescored) == 100
    assert (found.largest_error, found.threshold) == pytest.approx((0.02, 0.04))
    careless = rescore_near_ties(coarse, lambda numbers: [exact[number] for number in numbers], seed=0, safety=0.0)
    assert preferences(careless.values) != preferences(exact)
    assert len(careless.rescored) == 16


@given(
    st.lists(st.lists(st.floats(-5, 0), min_size=1, max_size=4), min_size=1, max_size=40),
    st.floats(0.001, 0.5),
    st.integers(0, 9),
)
def test_no_preference_changes_where_no_error_exceeds_the_threshold(options, size, seed):
    exact = [np.array(each) for each in options]
    noise = np.random.default_rng(seed)
    coarse = [each + noise.uniform(-size, size, len(each)) for each in exact]
    found = rescore_near_ties(coarse, lambda numbers: [exact[number] for number in numbers], seed=seed)
    for number, (value, truth) in enumerate(zip(found.values, exact, strict=True)):
        error = np.ptp(coarse[number] - truth)
        if number in found.rescored:
            assert value is truth
            assert error <= found.largest_error
        elif error < found.threshold:
            assert np.argsort(-value, kind="stable").tolist() == np.argsort(-truth, kind="stable").tolist()
        if len(truth) < 2:
            assert number not in found.rescored


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_head_alone_gives_the_networks_own_logits(architecture):
    network = new_language_model(architecture, SHAPES[architecture], seed=1).eval()
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = network.base_model(input_ids=ids)[0]
        torch.testing.assert_close(vocabulary_head(network)(hidden[:, 4]), network(ids).logits[:, 4])
        parts = masked_network(network)
        at = torch.tensor([4, 0, 8])
        rows = parts.encode(ids, at)
        torch.testing.assert_close(parts.head(rows), network(ids).logits[torch.arange(3), at])
        trimmed = trimmed_encoder(network.base_model)
        assert (trimmed is not None) == (architecture in BERT_LIKE)
        if trimmed is not None:
            torch.testing.assert_close(trimmed(ids, at), rows)
    assert rows.shape == (3, 16)


def test_a_last_layer_that_needs_all_of_its_attention_is_not_trimmed():
    network = new_language_model("bert", SMALL, seed=1).eval()
    ids = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    last = network.bert.encoder.layer[-1]
    plain = type(last).forward

    class Outer(type(last)):
        def forward(self, hidden_states: torch.Tensor, *inputs: Any, **others: Any) -> torch.Tensor:
            return plain(self, hidden_states, *inputs, **others) + hidden_states

    last.__class__ = Outer
    with torch.no_grad():
        parts = masked_network(network)
        rows = parts.encode(ids, torch.tensor([3, 5]))
        torch.testing.assert_close(parts.head(rows), network(ids).logits[torch.arange(2), torch.tensor([3, 5])])
    assert rows.shape == (2, 16)


class Doubled(nn.Module):
    """A compressed layer: not a Linear, but in the place of one."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("halved", layer.weight.detach() / 2)
        self.register_buffer("shift", layer.bias.detach())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states @ (2 * self.halved).T + self.shift


def test_a_head_of_compressed_layers_runs_as_it_is():
    network = new_language_model("bert", SMALL, seed=1).eval()
    ids = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    network.cls.predictions.decoder = Doubled(network.cls.predictions.decoder)
    with torch.no_grad():
        expected = network(ids).logits[:, 3]
        parts = masked_network(network)
        rows = parts.encode(ids, torch.tensor([3, 3]))
        torch.testing.assert_close(parts.head(rows), expected)
    assert rows.shape == (2, 16)


def test_a_network_that_scales_its_logits_by_hand_is_run_whole():
    network = new_language_model("bert", SMALL, seed=1).eval()
    ids = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    plain = network.bert.forward

    class Wrapper(nn.Module):
        base_model_prefix = "bert"

        def __init__(self) -> None:
            super().__init__()
            self.bert, self.cls = network.bert, network.cls
            self.base_model = self.bert

        def forward(self, input_ids: Any = None, inputs_embeds: Any = None) -> Any:
            out = network(input_ids=input_ids) if input_ids is not None else network(inputs_embeds=inputs_embeds)
            out.logits = out.logits * (1 if inputs_embeds is None else 2)
            return out

    parts = masked_network(Wrapper())
    with torch.no_grad():
        rows = parts.encode(ids, torch.tensor([3, 3]))
        torch.testing.assert_close(rows, network(ids).logits[:, 3])
        assert parts.head(rows) is rows
    assert network.bert.forward == plain


def test_equal_sights_are_put_once_and_batches_hold_one_length():
    calls: list[tuple[int, ...]] = []

    def encode(ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(ids.shape))
        return ids[torch.arange(len(ids)), at].float().unsqueeze(1)

    network = MaskedNetwork(encode, lambda hidden: hidden * torch.tensor([[0.0, 1.0, 2.0]]))
    short, long = Sight((1, 1), 1), Sight((1, 0, 2), 2)
    rows = [MaskedRow(short, 0), MaskedRow(long, 1), MaskedRow(short, 2), MaskedRow(short, 0)]
    found = log_probabilities(rows, network, max_tokens=100, device=CPU)
    assert sorted(calls) == [(1, 2), (1, 3)]
    one, two = np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0])
    logs = [numbers - np.log(np.exp(numbers).sum()) for numbers in (one, two)]
    assert found == pytest.approx([logs[0][0], logs[1][1], logs[0][2], logs[0][0]])
    assert log_probabilities([], network, max_tokens=100, device=CPU).shape == (0,)


@given(st.lists(st.integers(1, 6), max_size=30), st.integers(1, 20))
@settings(max_examples=50)
def test_batches_hold_every_sight_once_and_no_more_tokens_than_allowed(lengths, max_tokens):
    sights = [Sight(tuple([number] * length), 0) for number, length in enumerate(lengths)]
    batches = [*batches_of(sights, max_tokens)]
    assert sorted(sight for batch in batches for sight in batch) == sorted(sights)
    for batch in batches:
        assert len({len(sight.ids) for sight in batch}) == 1
        assert len(batch) == 1 or len(batch) * len(batch[0].ids) <= max_tokens


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_alignment_covers_every_token_once_and_shares_equal_ones(first, second):
    found = align(first, second)
    for side, ids in enumerate((first, second)):
        assert sorted(found.modified[side] + found.shared[side]) == [*range(len(ids))]
    assert [first[place] for place in found.shared[0]] == [second[place] for place in found.shared[1]]
