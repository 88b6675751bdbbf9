from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairsisa.data.encoding import Inputs
from fairsisa.errors import ModelError
from fairsisa.models.base import find_base
from fairsisa.models.batching import collate, run_batched
from fairsisa.models.classifier import OPTIMIZER, initial_state, load_trained
from fairsisa.models.network import build_encoder, build_network, feature_width, logits_of, pooled_features
from fairsisa.models.whole import EncoderWithHead, NetworkSpec, whole_network
from fairsisa.settings import ModelSettings
from makers import TINY_SHAPES, gpt2_folder, tokenizer_folder

LOUD = {"initializer_range": 0.3}  # small weights would hide what tokens say
ROWS = [[5, 6, 7], [8, 9, 10], [11, 12, 13, 14, 15], [4], [9, 3, 7, 7]]
TABULAR = ModelSettings(kind="mlp", hidden=(6,))
every_architecture = pytest.mark.parametrize("architecture", list(TINY_SHAPES))


@pytest.fixture(scope="module")
def folders(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("whole")
    bert = tokenizer_folder(data_root, tmp)
    return {"bert": bert, "gpt2": gpt2_folder(data_root, tmp), "llama": bert}


def spec_of(folders: Mapping[str, Path], architecture: str, trains: str) -> NetworkSpec:
    asked = ModelSettings(
        base=str(folders[architecture]),
        architecture=architecture,
        shape={**TINY_SHAPES[architecture], **LOUD},
        trains=trains,
    )
    return NetworkSpec(asked, find_base(asked), 16 if trains == "head" else 0, num_classes=3, seed=5)


def built(spec: NetworkSpec) -> Any:
    return build_network(
        spec.model, spec.base, num_features=spec.num_features, num_classes=spec.num_classes, seed=spec.seed
    )


def trained(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a state as training leaves it: moved away from the start, with the optimizer's moments."""
    generator = torch.Generator().manual_seed(1)
    moved = {}
    for name, value in initial_state(network).items():
        moved[name] = value + 0.2 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
    return moved | {f"{OPTIMIZER}exp_avg.{name}": torch.full_like(value, 9.0) for name, value in moved.items()}


def texts() -> Inputs:
    names = tuple(f"e{row}" for row in range(len(ROWS)))
    offsets = np.cumsum([0, *map(len, ROWS)])
    return Inputs(names, names, np.zeros(len(ROWS), dtype=np.int64), np.concatenate(ROWS).astype(np.int32), offsets)


def probabilities(network: torch.nn.Module, inputs: Inputs) -> np.ndarray:
    return run_batched(lambda batch: logits_of(network, batch).softmax(1), inputs, width=3, device="cpu")


def padded_probabilities(network: Any, inputs: Inputs) -> np.ndarray:
    batch = collate(inputs, np.arange(len(inputs)), pad_id=network.config.pad_token_id)
    assert "mask" in batch
    with torch.no_grad():
        return logits_of(network, batch).softmax(1).numpy()


@pytest.mark.real_data
@every_architecture
@pytest.mark.parametrize("trains", ["full", "lora"])
def test_a_whole_classifier_says_what_the_trained_one_says(folders, architecture, trains):
    spec = spec_of(folders, architecture, trains)
    apart = built(spec).eval()
    state = trained(apart)
    untrained = probabilities(apart, texts())
    load_trained(apart, state)
    whole = whole_network(spec, state)
    expected = probabilities(apart, texts())
    assert np.abs(expected - untrained).max() > 1e-3
    assert probabilities(whole, texts()) == pytest.approx(expected, abs=1e-6)
    assert padded_probabilities(whole, texts()) == pytest.approx(expected, abs=1e-6)
    assert not [name for name, _ in whole.named_modules() if "lora" in name]
    assert "ForSequenceClassification" in type(whole).__name__


@pytest.mark.real_data
@every_architecture
def test_a_whole_head_is_encoder_then_features_then_head(folders, architecture):
    spec = spec_of(folders, architecture, "head")
    head, encoder = built(spec), build_encoder(spec.model, spec.base)
    assert feature_width(encoder) == spec.num_features
    features = run_batched(lambda batch: pooled_features(encoder, batch), texts(), width=16, device="cpu")
    head[0].fit(torch.from_numpy(features))
    state = trained(head)
    load_trained(head, state)
    expected = probabilities(head, texts().with_features(features))
    whole = whole_network(spec, state)
    assert isinstance(whole, EncoderWithHead)
    assert whole.base_model is whole.encoder
    assert whole.config.model_type == architecture
    assert probabilities(whole, texts()) == pytest.approx(expected, abs=1e-6)
    assert padded_probabilities(whole, texts()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.real_data
def test_a_whole_head_hands_on_what_its_encoder_is_asked_for(folders):
    spec = spec_of(folders, "bert", "head")
    whole = whole_network(spec, initial_state(built(spec)))
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        told = whole(tokens, output_hidden_states=True, output_attentions=True)
        plain = whole(tokens)
    assert (len(told.hidden_states), len(told.attentions)) == (3, 2)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert torch.equal(told.logits, plain.logits)


@pytest.mark.real_data
@pytest.mark.parametrize("trains", ["full", "lora", "head"])
def test_a_whole_network_computes_in_fp32_without_dropout(folders, trains):
    spec = spec_of(folders, "bert", trains)
    whole = whole_network(spec, initial_state(built(spec)))
    assert {value.dtype for value in whole.parameters()} == {torch.float32}
    assert not any(module.training for module in whole.modules())


def test_a_whole_tabular_network_reads_features():
    spec = NetworkSpec(TABULAR, None, num_features=4, num_classes=3, seed=2)
    apart = built(spec)
    features = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    apart[0].fit(torch.from_numpy(features))
    state = trained(apart)
    load_trained(apart, state)
    names = tuple(f"e{row}" for row in range(7))
    inputs = Inputs(names, names, np.zeros(7, dtype=np.int64), features=features)
    assert np.array_equal(probabilities(whole_network(spec, state), inputs), probabilities(apart, inputs))


def test_a_state_that_does_not_fit_is_refused():
    spec = NetworkSpec(TABULAR, None, num_features=4, num_classes=3, seed=2)
    state = initial_state(built(spec))
    part = {name: value for name, value in state.items() if name != "0.mean"}
    with pytest.raises(ModelError, match=r"1 parts lack, 0\.mean first"):
        whole_network(spec, part)
    with pytest.raises(ModelError, match="state is that of another network"):
        whole_network(spec, state | {"9.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="state is that of another network"):
        whole_network(spec, state | {"0.mean": torch.zeros(3)})
