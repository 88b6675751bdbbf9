from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.preprocessing import StandardScaler

from fairsisa.data.encoding import Inputs
from fairsisa.errors import ConfigError
from fairsisa.models.base import find_base, load_classifier, load_tokenizer
from fairsisa.models.batching import collate
from fairsisa.models.network import (
    Standardizer,
    build_encoder,
    build_network,
    feature_width,
    logits_of,
    pooled_features,
)
from fairsisa.settings import ModelSettings
from makers import TINY_SHAPES, gpt2_folder, tokenizer_folder

WIDTH = 16
LOUD = {"initializer_range": 0.3}  # small weights would hide what tokens say
SHAPES = {architecture: {**shape, **LOUD} for architecture, shape in TINY_SHAPES.items()}
EMBEDDINGS = {
    "bert": ("bert.embeddings.",),
    "gpt2": ("transformer.wte.", "transformer.wpe."),
    "llama": ("model.embed",),
}
LAYER = {"bert": "bert.encoder.layer.{}.", "gpt2": "transformer.h.{}.", "llama": "model.layers.{}."}
HEAD = {"bert": "classifier", "gpt2": "score", "llama": "score"}
TEXTS = ["the cat sat on the mat", "no", "they were never going to be on time for it", "a dog", "x y z"]

every_architecture = pytest.mark.parametrize("architecture", list(SHAPES))
pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def folders(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("network")
    bert = tokenizer_folder(data_root, tmp)
    return {"bert": bert, "gpt2": gpt2_folder(data_root, tmp), "llama": bert}


def made(folders: dict[str, Path], architecture: str, **changes: Any) -> tuple[ModelSettings, Any]:
    values = {"base": str(folders[architecture]), "architecture": architecture, "shape": SHAPES[architecture]}
    asked = ModelSettings(**{**values, "dropout": 0.0, **changes})
    return asked, find_base(asked)


def network_of(folders: dict[str, Path], architecture: str, seed: int = 5, **changes: Any) -> torch.nn.Module:
    asked, base = made(folders, architecture, **changes)
    return build_network(asked, base, num_features=0, num_classes=2, seed=seed).eval()


def inputs_of(folders: dict[str, Path], architecture: str, texts: list[str]) -> tuple[Inputs, int]:
    tokenizer = load_tokenizer(made(folders, architecture)[1])
    return inputs_from([tokenizer(text)["input_ids"] for text in texts]), tokenizer.pad_token_id


def inputs_from(rows: list[list[int]]) -> Inputs:
    names = tuple(f"e{row}" for row in range(len(rows)))
    offsets = np.cumsum([0, *map(len, rows)])
    return Inputs(names, names, np.zeros(len(rows), dtype=np.int64), np.concatenate(rows).astype(np.int32), offsets)


def trains(network: torch.nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def all_names(network: torch.nn.Module) -> set[str]:
    return {name for name, _ in network.named_parameters()}


def under(network: torch.nn.Module, *prefixes: str) -> set[str]:
    found = {name for name in all_names(network) if name.startswith(prefixes)}
    assert found
    return found


def one_step(network: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[set[str], set[str]]:
    """Return the names that got a gradient, and those that a step of gradient descent changed."""
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    torch.nn.functional.cross_entropy(logits_of(network, batch), batch["labels"]).backward()
    given_one = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0).step()
    return given_one, {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}


@every_architecture
def test_full_trains_all_but_the_embeddings(folders, architecture):
    network = network_of(folders, architecture)
    assert trains(network) == all_names(network) - under(network, *EMBEDDINGS[architecture])


@every_architecture
def test_embeddings_can_train_too(folders, architecture):
    network = network_of(folders, architecture, freeze_embeddings=False)
    assert trains(network) == all_names(network)


@every_architecture
@pytest.mark.parametrize("frozen", [1, 2])
@pytest.mark.parametrize("embeddings_too", [True, False])
def test_frozen_layers_are_the_lowest(folders, architecture, frozen, embeddings_too):
    network = network_of(folders, architecture, frozen_layers=frozen, freeze_embeddings=embeddings_too)
    still = under(network, *(LAYER[architecture].format(place) for place in range(frozen)))
    if embeddings_too:
        still |= under(network, *EMBEDDINGS[architecture])
    assert trains(network) == all_names(network) - still


@every_architecture
def test_freezing_more_layers_than_there_are_is_refused(folders, architecture):
    with pytest.raises(ConfigError, match=r"model\.frozen_layers=3, but the base has 2 layers"):
        network_of(folders, architecture, frozen_layers=3)


@every_architecture
def test_lora_trains_adapters_and_the_head_only(folders, architecture):
    network = network_of(folders, architecture, trains="lora", lora_rank=2)
    names = trains(network)
    head = {name for name in names if f".{HEAD[architecture]}.modules_to_save." in name}
    adapters = {name for name in names if ".lora_A." in name or ".lora_B." in name}
    assert names == head | adapters
    assert head
    assert adapters == {name for name in all_names(network) if ".lora_" in name}


@every_architecture
def test_lora_adds_as_many_numbers_as_hu_et_al_count(folders, architecture):
    # A matrix of d x k gets r (d + k) more: query and value of two layers, or GPT-2's joint matrix of 16 x 48.
    network = network_of(folders, architecture, trains="lora", lora_rank=3)
    pairs = [(WIDTH, 3 * WIDTH)] if architecture == "gpt2" else [(WIDTH, WIDTH)] * 2
    head = 2 * WIDTH + (2 if architecture == "bert" else 0)
    expected = 2 * sum(3 * (d + k) for d, k in pairs) + head
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected


@every_architecture
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_step_changes_what_trains_and_nothing_else(folders, architecture, mode):
    network = network_of(folders, architecture, trains=mode)
    inputs, pad_id = inputs_of(folders, architecture, TEXTS)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    got_gradient, changed = one_step(network, collate(inputs, np.arange(len(TEXTS)), pad_id))
    assert got_gradient == trains(network)
    assert changed <= trains(network)
    assert len(changed) >= 0.7 * len(trains(network))


@every_architecture
def test_a_new_adapter_leaves_the_network_as_it_was(folders, architecture):
    asked, base = made(folders, architecture, trains="lora")
    inputs, pad_id = inputs_of(folders, architecture, TEXTS)
    batch = collate(inputs, np.arange(len(TEXTS)), pad_id)
    plain_network = load_classifier(base, asked, num_classes=2, seed=5).eval()
    with torch.no_grad():
        assert torch.equal(
            logits_of(network_of(folders, architecture, trains="lora"), batch), logits_of(plain_network, batch)
        )


@every_architecture
def test_a_trained_adapter_is_the_same_network_when_merged(folders, architecture):
    network = network_of(folders, architecture, trains="lora", lora_alpha=32)
    inputs, pad_id = inputs_of(folders, architecture, TEXTS)
    batch = collate(inputs, np.arange(len(TEXTS)), pad_id)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = logits_of(network, batch)
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        apart = logits_of(network, batch)
        merged = logits_of(network.merge_and_unload(), batch)
    assert not torch.allclose(before, apart, atol=1e-3)
    assert torch.allclose(merged, apart, atol=1e-5)


def test_the_settings_of_lora_reach_it(folders):
    network = network_of(
        folders, "gpt2", trains="lora", lora_rank=4, lora_alpha=12, dropout=0.3, lora_targets=("c_fc",)
    )
    adapters = {name: module for name, module in network.named_modules() if hasattr(module, "lora_A") and module.lora_A}
    assert {name.rsplit(".", 1)[1] for name in adapters} == {"c_fc"}
    assert {module.lora_A["default"].out_features for module in adapters.values()} == {4}
    assert {module.scaling["default"] for module in adapters.values()} == {3.0}
    assert {module.lora_dropout["default"].p for module in adapters.values()} == {0.3}


def test_targets_that_the_base_lacks_are_refused(folders):
    with pytest.raises(ConfigError, match=r"model\.lora_targets=\['nowhere'\] do not fit this base"):
        network_of(folders, "bert", trains="lora", lora_targets=("nowhere",))


@every_architecture
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_padding_changes_no_answer(folders, architecture, mode):
    network = network_of(folders, architecture, trains=mode)
    inputs, pad_id = inputs_of(folders, architecture, TEXTS)
    assert len(set(inputs.lengths)) > 1
    with torch.no_grad():
        together = logits_of(network, collate(inputs, np.arange(len(TEXTS)), pad_id))
        alone = torch.cat([logits_of(network, collate(inputs, np.array([row]), pad_id)) for row in range(len(TEXTS))])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(alone[:-1], alone[1:], atol=1e-3)


@pytest.fixture(scope="module")
def gpt2_network(folders):
    return network_of(folders, "gpt2")


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from([3, 9, 50_256]), min_size=1, max_size=6), min_size=1, max_size=4))
def test_padding_with_the_end_token_changes_no_answer_of_texts_that_hold_it(gpt2_network, rows):
    inputs = inputs_from(rows)
    with torch.no_grad():
        together = logits_of(gpt2_network, collate(inputs, np.arange(len(rows)), 50_256))
        alone = torch.cat([logits_of(gpt2_network, collate(inputs, np.array([row]), 0)) for row in range(len(rows))])
    assert torch.allclose(together, alone, atol=1e-5)


def test_without_its_mask_an_encoder_would_see_the_padding(folders):
    network = network_of(folders, "bert")
    inputs, pad_id = inputs_of(folders, "bert", TEXTS)
    batch = collate(inputs, np.arange(len(TEXTS)), pad_id)
    blind = {key: value for key, value in batch.items() if key != "mask"}
    with torch.no_grad():
        assert not torch.allclose(logits_of(network, batch), logits_of(network, blind), atol=1e-4)


@every_architecture
@pytest.mark.parametrize("mode", ["full", "lora", "head"])
def test_a_network_is_its_seed_whatever_was_drawn_before(folders, architecture, mode):
    asked, base = made(folders, architecture, trains=mode)
    states = []
    for before, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(before)
        states.append(build_network(asked, base, num_features=3, num_classes=2, seed=seed).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@every_architecture
def test_a_head_reads_features_and_holds_no_encoder(folders, architecture):
    asked, base = made(folders, architecture, trains="head")
    network = build_network(asked, base, num_features=WIDTH, num_classes=3, seed=0)
    assert trains(network) == all_names(network)
    assert sum(p.numel() for p in network.parameters()) == 3 * WIDTH + 3


@every_architecture
def test_an_encoder_stays_as_it_is(folders, architecture):
    encoder = build_encoder(*made(folders, architecture, trains="head", dropout=0.5))
    assert not trains(encoder)
    assert not any(module.training for module in encoder.modules())
    assert feature_width(encoder) == WIDTH


@every_architecture
def test_pooled_features_are_the_mean_token_or_the_last(folders, architecture):
    encoder = build_encoder(*made(folders, architecture, trains="head"))
    rows = [[5, 6, 7], [8, 9, 10]]
    with torch.no_grad():
        pooled = pooled_features(encoder, collate(inputs_from(rows), np.arange(2), pad_id=0))
        for vector, row in zip(pooled.numpy(), rows, strict=True):
            hidden = encoder(input_ids=torch.tensor([row])).last_hidden_state[0].numpy()
            by_hand = sum(hidden) / 3 if architecture == "bert" else hidden[2]
            assert vector == pytest.approx(by_hand, abs=1e-5)
    assert pooled.dtype == torch.float32


@every_architecture
def test_logits_are_fp32_whatever_the_network_computes_in(folders, architecture):
    network = network_of(folders, architecture).to(torch.bfloat16)
    inputs, pad_id = inputs_of(folders, architecture, TEXTS)
    assert logits_of(network, collate(inputs, np.arange(2), pad_id)).dtype == torch.float32


def tables(scale: float) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(2, 30), st.integers(1, 4))
    numbers = st.floats(-scale, scale, width=32, allow_subnormal=False)
    return shapes.flatmap(lambda shape: npst.arrays(np.float32, shape, elements=numbers))


@given(tables(1000.0), st.floats(-5, 5, width=32))
def test_the_standardizer_is_scikit_learns(features, constant):
    features[:, 0] = constant
    deviations = features.astype(np.float64).std(axis=0)
    features = features[:, (deviations > 1e-3) | (np.arange(features.shape[1]) == 0)]
    layer = Standardizer(features.shape[1])
    layer.fit(torch.from_numpy(features))
    expected = StandardScaler().fit(features.astype(np.float64))
    assert layer.mean.numpy() == pytest.approx(expected.mean_, rel=1e-6, abs=1e-6)
    assert layer.scale.numpy() == pytest.approx(expected.scale_, rel=1e-6)
    assert layer(torch.from_numpy(features)).numpy() == pytest.approx(expected.transform(features), abs=2e-3)


def test_a_standardizer_learns_by_fit_alone():
    layer = Standardizer(2)
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert torch.equal(layer(features), features)
    layer.fit(features)
    assert torch.equal(layer(features), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert set(layer.state_dict()) == {"mean", "scale"}
    assert not list(layer.parameters())


@given(tables(50.0), st.integers(2, 4), st.lists(st.integers(1, 6), max_size=3))
def test_a_tabular_network_is_its_formula(features, num_classes, hidden):
    kind = "mlp" if hidden else "logistic"
    asked = ModelSettings(kind=kind, hidden=tuple(hidden))
    network = build_network(asked, None, num_features=features.shape[1], num_classes=num_classes, seed=3)
    network[0].fit(torch.from_numpy(features))
    values = {name: value.double().numpy() for name, value in network.state_dict().items()}
    flow = (features.astype(np.float64) - values["0.mean"]) / values["0.scale"]
    for place in range(len(hidden)):
        name = str(1 + 2 * place)
        flow = np.maximum(flow @ values[f"{name}.weight"].T + values[f"{name}.bias"], 0.0)
    last = str(1 + 2 * len(hidden))
    expected = flow @ values[f"{last}.weight"].T + values[f"{last}.bias"]
    with torch.no_grad():
        logits = logits_of(network, {"features": torch.from_numpy(features)})
    assert logits.shape == (len(features), num_classes)
    assert logits.numpy() == pytest.approx(expected, abs=2e-3, rel=2e-3)
    assert trains(network) == all_names(network)
