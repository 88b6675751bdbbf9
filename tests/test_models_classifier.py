from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.loggers.logger import DummyLogger

from fairsisa.data.encoding import Inputs
from fairsisa.models.batching import SliceData, collate
from fairsisa.models.classifier import MOMENTS, OPTIMIZER, Classifier, Schedule, initial_state, load_trained
from fairsisa.models.network import build_network, logits_of
from fairsisa.settings import ModelSettings, TrainerSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

State = Mapping[str, torch.Tensor]
FLAT = Schedule(num_steps=9, start=1.0, end=1.0, warmup=0.0)
DOWN = Schedule(num_steps=9, start=0.8, end=0.2, warmup=0.4)


class TinyText(torch.nn.Module):
    """The mean of token vectors, and a head; it can compute in bf16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.words = torch.nn.Embedding(20, 6)
        self.hidden = torch.nn.Linear(6, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> SimpleNamespace:
        vectors = self.words(input_ids)
        weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (vectors * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
        return SimpleNamespace(logits=self.head(torch.tanh(self.hidden(mean.to(vectors.dtype)))))


def perceptron() -> torch.nn.Module:
    return build_network(ModelSettings(kind="mlp", hidden=(6, 5)), None, num_features=4, num_classes=3, seed=2)


def table() -> Inputs:
    generator = np.random.default_rng(0)
    names = tuple(f"e{row}" for row in range(40))
    features = generator.normal(size=(40, 4)).astype(np.float32)
    return Inputs(names, names, generator.integers(0, 3, size=40), features=features)


def texts() -> Inputs:
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 6, size=40)
    names = tuple(f"e{row}" for row in range(40))
    tokens = generator.integers(0, 20, size=lengths.sum()).astype(np.int32)
    return Inputs(names, names, generator.integers(0, 3, size=40), tokens, np.cumsum([0, *lengths]))


def batches_of(count: int = 9) -> list[np.ndarray]:
    generator = np.random.default_rng(2)
    return [generator.choice(40, size=8, replace=False) for _ in range(count)]


def settings_of(**changes: Any) -> TrainerSettings:
    return TrainerSettings(**{"learning_rate": 0.05, "weight_decay": 0.3, "log_every_n_steps": 3, **changes})


def fit(
    network: torch.nn.Module,
    inputs: Inputs,
    batches: Sequence[np.ndarray],
    settings: TrainerSettings,
    schedule: Schedule,
    *,
    state: State | None = None,
    bundle: int = 1,
    logger: Any = False,
) -> Classifier:
    model = Classifier(network, initial_state(network) if state is None else state, settings, schedule)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        log_every_n_steps=1,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=SliceData(inputs, batches, pad_id=0, bundle=bundle))
    return model


def by_hand(
    network: torch.nn.Module,
    inputs: Inputs,
    batches: Sequence[np.ndarray],
    settings: TrainerSettings,
    schedule: Schedule,
    *,
    dtype: torch.dtype = torch.float32,
    fused: bool = True,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train with nothing but PyTorch; in another format than fp32, beside a copy in fp32 that the optimizer steps."""
    start = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    own = {name: p for name, p in network.to(dtype).named_parameters() if p.requires_grad}
    stepped = own if dtype == torch.float32 else start
    matrices, others = ([p for p in stepped.values() if (p.ndim > 1) is matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=fused)
    losses = []
    for step, rows in enumerate(batches):
        network.zero_grad()
        batch = collate(inputs, rows, 0)
        loss = torch.nn.functional.cross_entropy(logits_of(network, batch), batch["labels"])
        loss.backward()
        for name, parameter in stepped.items():
            parameter.grad = own[name].grad.float()
        if settings.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(list(stepped.values()), settings.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor_by_hand(schedule, step)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in stepped.items():
                own[name].copy_(parameter)
        losses.append(loss.item())
    return {name: parameter.detach().clone() for name, parameter in stepped.items()}, losses


def factor_by_hand(schedule: Schedule, step: int) -> float:
    line = schedule.start + (schedule.end - schedule.start) * step / schedule.num_steps
    ramp = schedule.warmup * schedule.num_steps
    return line * min(1.0, (step + 1) / ramp) if ramp >= 1.0 else line


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("schedule", [FLAT, DOWN], ids=["flat", "down"])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("bundle", [1, 4])
def test_training_is_a_plain_loop_bit_for_bit(schedule, clip, bundle):
    settings = settings_of(gradient_clip=clip)
    model = fit(perceptron(), table(), batches_of(), settings, schedule, bundle=bundle)
    expected, _ = by_hand(perceptron(), table(), batches_of(), settings, schedule)
    state = model.trained_state()
    assert same({name: state[name] for name in expected}, expected)
    assert set(state) - set(expected) == {"0.mean", "0.scale"}
    assert same({name: dict(model.network.named_parameters())[name] for name in expected}, expected)


def test_training_is_pytorchs_unfused_adamw_but_for_rounding():
    model = fit(perceptron(), table(), batches_of(), settings_of(), DOWN)
    expected, _ = by_hand(perceptron(), table(), batches_of(), settings_of(), DOWN, fused=False)
    assert all(torch.allclose(model.trained_state()[name], value, atol=1e-5) for name, value in expected.items())


def test_bf16_trains_fp32_masters_and_returns_them():
    network = TinyText()
    start = initial_state(network)
    model = fit(network.to(torch.bfloat16), texts(), batches_of(), settings_of(), DOWN, state=start)
    expected, _ = by_hand(TinyText(), texts(), batches_of(), settings_of(), DOWN, dtype=torch.bfloat16)
    state = model.trained_state()
    assert same(state, expected)
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in state.values())
    for name, parameter in model.network.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, state[name].bfloat16())


def test_without_masters_small_steps_would_be_lost_to_bf16():
    settings = settings_of(learning_rate=1e-5, weight_decay=0.0)
    start = initial_state(TinyText())
    model = fit(TinyText().to(torch.bfloat16), texts(), batches_of(), settings, FLAT, state=start)
    moved = {name: (value - start[name]).abs().max().item() for name, value in model.trained_state().items()}
    assert all(5e-6 < distance < 2e-4 for distance in moved.values())
    rounded = {name: p.bfloat16() for name, p in start.items()}
    frozen = [torch.equal(p, rounded[name]) for name, p in model.network.named_parameters() if p.ndim == 1]
    assert any(frozen)


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_slices_that_carry_the_optimizer_are_one_loop(cut):
    settings, batches = settings_of(optimizer_state="carried", schedule="constant"), batches_of()
    whole, _ = by_hand(perceptron(), table(), batches, settings, FLAT)
    network = perceptron()
    first = fit(network, table(), batches[:cut], settings, Schedule(cut, 1.0, 1.0, 0.0)).trained_state()
    second = fit(network, table(), batches[cut:], settings, Schedule(9 - cut, 1.0, 1.0, 0.0), state=first)
    state = second.trained_state()
    assert same({name: state[name] for name in whole}, whole)
    assert {float(state[f"{OPTIMIZER}step.{name}"]) for name in whole} == {9.0}
    fresh = fit(perceptron(), table(), batches[cut:], settings, FLAT, state=without_moments(first)).trained_state()
    assert not same({name: fresh[name] for name in whole}, whole)


def without_moments(state: State) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(OPTIMIZER)}


def test_the_carried_moments_are_adams():
    settings = settings_of(optimizer_state="carried", gradient_clip=None)
    network, batch = perceptron(), collate(table(), batches_of(1)[0], 0)
    torch.nn.functional.cross_entropy(logits_of(network, batch), batch["labels"]).backward()
    state = fit(perceptron(), table(), batches_of(1), settings, FLAT).trained_state()
    for name, parameter in network.named_parameters():  # Kingma and Ba 2015 with betas 0.9 and 0.999
        assert torch.allclose(state[f"{OPTIMIZER}exp_avg.{name}"], 0.1 * parameter.grad, atol=1e-8)
        assert torch.allclose(state[f"{OPTIMIZER}exp_avg_sq.{name}"], 0.001 * parameter.grad**2, atol=1e-10)


def test_a_carried_slice_of_no_step_hands_on_what_it_was_given():
    settings = settings_of(optimizer_state="carried")
    before = fit(perceptron(), table(), batches_of(2), settings, FLAT).trained_state()
    for state in (initial_state(perceptron()), before):
        model = Classifier(perceptron(), state, settings, Schedule(0, 1.0, 0.0, 0.1))
        model.configure_optimizers()
        assert same(model.trained_state(), state)


@pytest.mark.parametrize("carried", [False, True])
def test_a_checkpoint_holds_what_trains_and_nothing_else(carried):
    network = perceptron()
    network[1].requires_grad_(False)
    settings = settings_of(optimizer_state="carried" if carried else "fresh")
    state = fit(network, table(), batches_of(3), settings, DOWN).trained_state()
    trained = {"3.weight", "3.bias", "5.weight", "5.bias"}
    moments = {f"{OPTIMIZER}{key}.{name}" for key in MOMENTS for name in trained}
    assert set(state) == trained | {"0.mean", "0.scale"} | (moments if carried else set())
    assert set(initial_state(network)) == trained | {"0.mean", "0.scale"}
    for value in state.values():
        assert (value.dtype, value.device.type, value.is_contiguous()) == (torch.float32, "cpu", True)
    assert torch.equal(network[1].weight, perceptron()[1].weight)


def test_a_checkpoint_is_fp32_but_for_whole_numbers():
    network = TinyText().to(torch.bfloat16)
    network.register_buffer("offset", torch.ones(2, dtype=torch.bfloat16))
    network.register_buffer("count", torch.tensor([2**31]))
    network.register_buffer("passing", torch.ones(2), persistent=False)
    state = initial_state(network)
    assert set(state) == {name for name, _ in network.named_parameters()} | {"offset", "count"}
    assert {value.dtype for name, value in state.items() if name != "count"} == {torch.float32}
    assert (state["count"].dtype, state["count"].item()) == (torch.int64, 2**31)


def test_a_checkpoint_is_a_copy():
    network = perceptron()
    before = initial_state(network)
    model = fit(network, table(), batches_of(3), settings_of(optimizer_state="carried"), DOWN, state=before)
    state = model.trained_state()
    kept = {name: value.clone() for name, value in state.items()}
    assert same(before, initial_state(perceptron()))
    fit(network, table(), batches_of(3), settings_of(optimizer_state="carried"), DOWN, state=state)
    assert same(state, kept)


def test_a_slice_starts_from_its_state_whatever_the_network_held():
    start, used = initial_state(perceptron()), perceptron()
    with torch.no_grad():
        for parameter in used.parameters():
            parameter.add_(1.0)
    again = fit(used, table(), batches_of(), settings_of(), DOWN, state=start).trained_state()
    assert same(again, fit(perceptron(), table(), batches_of(), settings_of(), DOWN).trained_state())


def test_loaded_weights_take_the_networks_own_format():
    state = fit(perceptron(), table(), batches_of(2), settings_of(optimizer_state="carried"), DOWN).trained_state()
    network = perceptron().to(torch.bfloat16)
    load_trained(network, state)
    expected = without_moments(state)
    assert same(network.state_dict(), {name: value.bfloat16() for name, value in expected.items()})
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("foreign", ["7.weight", "classifier.weight", "base_model.model.score.weight"])
def test_weights_of_another_network_are_refused(foreign):
    network = perceptron()
    with pytest.raises(KeyError, match=foreign):
        load_trained(network, {foreign: torch.zeros(2)})
    with pytest.raises(KeyError, match=foreign):
        Classifier(network, {foreign: torch.zeros(2)}, settings_of(), FLAT)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(RuntimeError, match="size of tensor"):
        load_trained(perceptron(), {"1.weight": torch.zeros(6, 3)})


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        (Schedule(10, 1.0, 0.0, 0.0), 0, Fraction(1)),
        (Schedule(10, 1.0, 0.0, 0.0), 9, Fraction(1, 10)),
        (Schedule(10, 1.0, 0.0, 0.2), 0, Fraction(1, 2)),
        (Schedule(10, 1.0, 0.0, 0.2), 1, Fraction(9, 10)),
        (Schedule(10, 1.0, 0.0, 0.5), 2, Fraction(8, 10) * Fraction(3, 5)),
        (Schedule(10, 1.0, 0.0, 0.5), 4, Fraction(6, 10)),
        (Schedule(10, 1.0, 0.0, 0.05), 0, Fraction(1)),
        (Schedule(4, 0.75, 0.25, 0.0), 2, Fraction(1, 2)),
        (Schedule(4, 0.75, 0.25, 0.5), 0, Fraction(3, 8)),
        (Schedule(4, 1.0, 1.0, 1.0), 1, Fraction(1, 2)),
        (Schedule(4, 1.0, 1.0, 1.0), 3, Fraction(1)),
        (Schedule(1, 1.0, 0.0, 1.0), 0, Fraction(1)),
    ],
)
def test_the_factor_is_the_line_times_the_ramp(schedule, step, factor):
    assert schedule.factor(step) == pytest.approx(float(factor), rel=1e-12)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_factor_stays_between_zero_and_the_line(num_steps, start, end, warmup):
    schedule = Schedule(num_steps, max(start, end), min(start, end), warmup)
    factors = [schedule.factor(step) for step in range(num_steps)]
    assert all(0.0 <= factor <= schedule.start for factor in factors)
    warm = [step for step in range(num_steps) if step + 1 < warmup * num_steps]
    assert factors[len(warm) :] == sorted(factors[len(warm) :], reverse=True)
    assert factors == pytest.approx([factor_by_hand(schedule, step) for step in range(num_steps)], rel=1e-12)


def test_no_step_has_a_factor_too():
    assert Schedule(0, 1.0, 0.0, 0.5).factor(0) == 1.0


@pytest.mark.parametrize(("bundle", "ends"), [(1, [3, 6, 7]), (2, [4, 7]), (4, [4, 7]), (64, [7])])
def test_the_curve_is_the_mean_loss_since_the_last_entry(bundle, ends):
    settings = settings_of(log_every_n_steps=3)
    model = fit(perceptron(), table(), batches_of(7), settings, Schedule(7, 1.0, 0.0, 0.1), bundle=bundle)
    _, losses = by_hand(perceptron(), table(), batches_of(7), settings, Schedule(7, 1.0, 0.0, 0.1))
    assert [step for step, _ in model.curve] == ends
    means = [np.mean(losses[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert [loss for _, loss in model.curve] == pytest.approx(means, rel=1e-6)
    assert model.num_steps_done == 7


def test_the_logger_is_told_the_curve_and_the_rate_of_the_last_step():
    told: list[tuple[int, dict[str, float]]] = []

    class Ear(DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            told.append((step, dict(metrics)))

    schedule = Schedule(7, 1.0, 0.0, 0.0)
    model = fit(perceptron(), table(), batches_of(7), settings_of(), schedule, logger=Ear())
    assert [(step, values["train_loss"]) for step, values in told] == model.curve
    assert [values["learning_rate"] for _, values in told] == pytest.approx([0.05 * k / 7 for k in (5, 2, 1)])
