"""What was pruned stays pruned while everything else trains."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from compressor_contract import make_batches, make_model
from fairsisa.compression.compressing import compress
from fairsisa.compression.sparse_training import KeepZeros, zero_masks
from fairsisa.errors import ConfigError, TrainingError
from fairsisa.models.classifier import Classifier, Schedule, initial_state
from fairsisa.settings import TrainerSettings
from fairsisa.settings.steps import Step, read_steps

SCHEDULE = Schedule(num_steps=6, start=1.0, end=0.5, warmup=0.0)
SETTINGS = TrainerSettings(learning_rate=0.01, weight_decay=0.1, gradient_clip=1.0)


def pruned(*steps: str, architecture: str = "classifier") -> nn.Module:
    return compress(make_model(architecture), read_steps(steps or ("wanda",)), make_batches()).model


def bundles(num_classes: int = 2) -> DataLoader[Any]:
    batches = [b | {"labels": torch.arange(len(b["tokens"])) % num_classes} for b in make_batches()]
    return DataLoader([batches, batches, batches], batch_size=None, collate_fn=lambda bundle: bundle)


def fit(module: pl.LightningModule, *callbacks: pl.Callback, data: Any = None) -> pl.LightningModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=list(callbacks),
            accelerator="cpu",
            logger=False,
            barebones=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data or bundles())
    return module


def zeros(state: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> bool:
    return all(bool((state[name][~mask] == 0).all()) for name, mask in masks.items())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "classifier"])
def test_masks_are_where_the_pruned_weights_are(architecture):
    model = pruned("magnitude", architecture=architecture)
    masks = zero_masks(model)
    own = dict(model.named_parameters())
    assert len(masks) == {"gpt2": 8, "llama": 14, "classifier": 13}[architecture]
    for name, mask in masks.items():
        assert mask.shape == own[name].shape
        assert torch.equal(mask, own[name] != 0)
        assert (~mask).float().mean() == pytest.approx(0.5, abs=0.01)
    assert not zero_masks(make_model(architecture))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_stay_in_parameters_and_in_masters_and_the_rest_trains(dtype):
    network = pruned()
    masks, before = zero_masks(network), initial_state(network)
    module = fit(Classifier(network.to(dtype), before, SETTINGS, SCHEDULE), KeepZeros(masks))
    after = module.trained_state()
    assert zeros(after, masks)
    assert zeros(dict(network.named_parameters()), masks)
    for name, mask in masks.items():
        assert (after[name][mask] != before[name][mask]).float().mean() > 0.9, name
    assert all(not p._backward_hooks for p in network.parameters())


def test_without_the_callback_they_would_not():
    network = pruned()
    masks = zero_masks(network)
    module = fit(Classifier(network, initial_state(network), SETTINGS, SCHEDULE))
    assert not zeros(module.trained_state(), masks)


def test_weights_that_are_frozen_may_be_pruned_too():
    network = pruned()
    masks = zero_masks(network)
    network.bert.encoder.layer[0].requires_grad_(False)
    module = fit(Classifier(network, initial_state(network), SETTINGS, SCHEDULE), KeepZeros(masks))
    assert zeros(module.trained_state() | dict(network.named_parameters()), masks)


class Student(pl.LightningModule):
    """A plain module with a teacher of the same names, trained by momentum."""

    def __init__(self, teacher: nn.Module, student: nn.Module, momentum: float = 0.9) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        self.student = student
        self.momentum = momentum

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=self.momentum, weight_decay=0.01)

    def training_step(self, batch: list[Any], batch_idx: int) -> torch.Tensor:
        given = {"input_ids": batch[1]["tokens"], "attention_mask": batch[1]["mask"]}
        return (self.student(**given).logits - self.teacher(**given).logits).square().mean()


def test_zeros_stay_in_a_plain_module_beside_a_teacher():
    teacher, student = make_model("gpt2"), pruned("wanda_2to4", architecture="gpt2")
    masks = zero_masks(student)
    before = copy.deepcopy(student.state_dict())
    fit(Student(teacher, student), KeepZeros(masks))
    assert zeros(dict(student.named_parameters()), masks)
    assert any(not torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_masks_of_another_network_or_of_dense_weights_are_refused():
    network = pruned()
    masks = zero_masks(network)
    with pytest.raises(ConfigError, match=r"weights of these names and shapes: \['nowhere'\]"):
        fit(Classifier(network, initial_state(network), SETTINGS, SCHEDULE), KeepZeros({"nowhere": torch.ones(1)}))
    dense = make_model("classifier")
    with pytest.raises(ConfigError, match=r"prune what training loads"):
        fit(Classifier(dense, initial_state(dense), SETTINGS, SCHEDULE), KeepZeros(masks))


def test_moments_of_dense_training_are_told_of_and_those_of_sparse_training_carry_on():
    settings = TrainerSettings(learning_rate=0.01, optimizer_state="carried")
    network = make_model("classifier")
    dense = fit(Classifier(network, initial_state(network), settings, SCHEDULE)).trained_state()
    compress(network, [Step("magnitude")])
    masks, sparse = zero_masks(network), initial_state(network)
    keep = KeepZeros(masks)
    with pytest.raises(TrainingError, match="optimizer_state=fresh"):
        fit(Classifier(network, dense | sparse, settings, SCHEDULE), keep)
    assert all(not p._backward_hooks for p in network.parameters())
    first = fit(Classifier(network, sparse, settings, SCHEDULE), keep).trained_state()
    assert zeros(fit(Classifier(network, first, settings, SCHEDULE), keep).trained_state(), masks)
