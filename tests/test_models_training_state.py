from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairsisa.data.corpus_blocks import pack_blocks
from fairsisa.errors import ModelError
from fairsisa.models.classifier import Schedule
from fairsisa.models.fitting import fit_quietly
from fairsisa.models.language import BlockData, LanguageModule, load_language_model, new_language_model
from fairsisa.models.step_checkpoints import keep_at
from fairsisa.models.training_state import (
    TrainingState,
    give_moments,
    read_training_state,
    taken_moments,
    write_training_state,
)
from fairsisa.settings import TrainerSettings

SHAPE = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 12, "attn_pdrop": 0.3}
BLOCKS = pack_blocks([f"d{row}" for row in range(9)], [[row % 7 + 1] * 5 for row in range(9)], length=8, end_id=0)
SETTINGS = TrainerSettings(learning_rate=0.01, log_every_n_steps=4)


def fitted(model: Any, *, start: TrainingState | None = None, keep: Path | None = None) -> LanguageModule:
    torch.set_num_threads(1)
    module = LanguageModule(model, SETTINGS, Schedule(7, 1.0, 0.0, 0.3), seed=5, start=start)
    done = 0 if start is None else start.step
    data = BlockData(model, BLOCKS, num_steps=7, batch_size=2, seed=5, num_steps_done=done)
    callbacks = [] if keep is None else [keep_at([3], keep, state_file=keep / "state")]
    fit_quietly(module, data, accelerator="cpu", seed=5, callbacks=callbacks)
    return module


def test_training_goes_on_in_the_middle_as_if_it_had_never_stopped(tmp_path):
    whole = fitted(new_language_model("gpt2", SHAPE, 0), keep=tmp_path)
    state = read_training_state(tmp_path / "state")
    assert (state.step, state.curve, len(state.losses)) == (3, (), 3)
    later = fitted(load_language_model(tmp_path / "step-000003"), start=state)
    assert later.num_steps_done == whole.num_steps_done == 7
    assert later.curve == whole.curve
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, later.model.state_dict()[name])


def test_every_part_of_the_state_matters(tmp_path):
    whole = fitted(new_language_model("gpt2", SHAPE, 0), keep=tmp_path)
    state = read_training_state(tmp_path / "state")
    without = TrainingState(state.step, state.curve, state.losses, {})
    later = fitted(load_language_model(tmp_path / "step-000003"), start=without)
    assert any(not torch.equal(v, later.model.state_dict()[name]) for name, v in whole.model.state_dict().items())


def test_a_state_comes_back_as_it_was_written(tmp_path):
    state = TrainingState(3, ((1, 0.1), (2, 1 / 3)), torch.tensor([1.5]), {"exp_avg.w": torch.randn(2, 3)})
    write_training_state(tmp_path / "state", state)
    found = read_training_state(tmp_path / "state")
    assert (found.step, found.curve) == (state.step, state.curve)
    assert torch.equal(found.losses, state.losses)
    assert torch.equal(found.moments["exp_avg.w"], state.moments["exp_avg.w"])


def test_moments_of_another_model_are_refused(tmp_path):
    model = torch.nn.Linear(3, 2)
    adamw = torch.optim.AdamW(model.parameters())
    assert taken_moments(model, adamw) == {}
    model(torch.ones(1, 3)).sum().backward()
    adamw.step()
    moments = taken_moments(model, adamw)
    with pytest.raises(ModelError, match="does not fit parameter weight"):
        give_moments(torch.nn.Linear(4, 2), adamw, moments)
    with pytest.raises(ModelError, match=r"of another model: .*bias is not in this one"):
        give_moments(torch.nn.Linear(3, 2, bias=False), adamw, moments)
    (tmp_path / "state").write_bytes(b"{}")
    for name in ("state", "nowhere"):
        with pytest.raises(ModelError, match=f"{name} is no saved state of training"):
            read_training_state(tmp_path / name)
