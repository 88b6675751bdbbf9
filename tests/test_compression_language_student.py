from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from fairsisa.compression.distilling import (
    DistillationWeights,
    attention_loss,
    hard_label_loss,
    hidden_cosine_loss,
    soft_target_loss,
)
from fairsisa.compression.language_student import LanguageDistillation, LanguageStudent, distil_language_model
from fairsisa.compression.stored_logits import StoredLogits, store_logits
from fairsisa.compression.students import truncated_student
from fairsisa.data.corpus_blocks import NO_TARGET, Blocks, Masking, pack_blocks
from fairsisa.errors import ConfigError, DataError, TrainingError
from fairsisa.models.classifier import Schedule
from fairsisa.models.fitting import fit_quietly
from fairsisa.models.language import (
    BlockData,
    LanguageModule,
    collate_blocks,
    load_language_model,
    new_language_model,
)
from fairsisa.models.step_checkpoints import keep_at
from fairsisa.settings import TrainerSettings

WORDS, END, MASK = 24, 0, 1
WIDE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": WORDS}
WIDE |= {"intermediate_size": 48, "max_position_embeddings": 16, "initializer_range": 0.2}
CALM_BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NO_DROPS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 16, "vocab_size": WORDS, "initializer_range": 0.2}
SHAPES: dict[str, dict[str, Any]] = {"gpt2": {**GPT2, **NO_DROPS}, "llama": WIDE, "bert": {**WIDE, **CALM_BERT}}
MASKING = Masking(mask_id=MASK, vocab_size=WORDS, special_ids=frozenset({END, MASK}), seed=3, share=0.3)
SOFT = DistillationWeights()
DISTILBERT = DistillationWeights(soft=5.0, hard=2.0, hidden=1.0, temperature=2.0)
ALL = DistillationWeights(soft=5.0, hard=2.0, hidden=1.0, attention=3.0, temperature=2.0)
CALM = TrainerSettings(learning_rate=1e-3, log_every_n_steps=4, accelerator="cpu", precision="fp32")
FLAT = Schedule(1, 1.0, 1.0, 0.0)
shapes = pytest.mark.parametrize("architecture", SHAPES)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other cost more than these sizes compute
    yield
    torch.set_num_threads(before)


def corpus(seed: int = 0) -> Blocks:
    """Blocks of 8 tokens, the last one shorter."""
    generator = np.random.default_rng(seed)
    rows = [generator.integers(2, WORDS, size=size).tolist() for size in generator.integers(3, 12, size=12)]
    blocks = pack_blocks([f"d{row}" for row in range(len(rows))], rows, length=8, end_id=END)
    assert blocks.lengths[-1] < 8
    return blocks


def masking_for(architecture: str) -> Masking | None:
    return MASKING if architecture == "bert" else None


def tiny(architecture: str, seed: int = 0, **changes: Any) -> Any:
    return new_language_model(architecture, {**SHAPES[architecture], **changes}, seed)


def plan_of(architecture: str, weights: DistillationWeights = SOFT, **changes: Any) -> LanguageDistillation:
    values = {"trainer": CALM, "num_steps": 12, "batch_size": 4, "seed": 5, "masking": masking_for(architecture)}
    return LanguageDistillation(weights, **{**values, **changes})


def distil(
    architecture: str, teacher: Any, weights: DistillationWeights = SOFT, student: Any = None, **changes: Any
) -> tuple[Any, list[tuple[int, float]]]:
    student = tiny(architecture) if student is None else student
    return student, distil_language_model(student, teacher, corpus(), plan_of(architecture, weights, **changes))


def stored(path: Path, architecture: str, teacher: Any, **changes: Any) -> StoredLogits:
    values = {"batch_size": 5, "masking": masking_for(architecture), "kept_as": "float32", **changes}
    return store_logits(path / "teacher.safetensors", teacher, corpus(), **values)


def same(left: Any, right: Any) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def farthest(left: Any, right: Any) -> float:
    return max(
        float((ours - theirs).detach().abs().max())
        for ours, theirs in zip(left.parameters(), right.parameters(), strict=True)
    )


def answers(model: Any, architecture: str) -> torch.Tensor:
    """Return the probabilities at every target of the corpus, one block at a time."""
    blocks, said = corpus(), []
    model.eval()
    for row in range(len(blocks)):
        batch = collate_blocks(blocks, np.array([row]), masking=masking_for(architecture))
        with torch.no_grad():
            logits = model(input_ids=batch["tokens"]).logits
        said.append(logits[batch["targets"] != NO_TARGET].softmax(-1))
    return torch.cat(said)


@shapes
def test_the_loss_of_a_batch_is_the_weighted_sum_of_the_formulas(architecture):
    teacher, student = tiny(architecture, 7).eval(), truncated_student(tiny(architecture), 2)
    module = LanguageStudent(student, CALM, FLAT, seed=0, weights=ALL, teacher=teacher)
    student.eval()
    blocks = corpus()
    batch = collate_blocks(blocks, np.array([0, 3, len(blocks) - 1]), masking=masking_for(architecture))
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        ours, theirs = (model(batch["tokens"], attention_mask=batch["mask"], **asked) for model in (student, teacher))
    there = batch["targets"] != NO_TARGET
    expected = (
        5.0 * soft_target_loss(ours.logits, theirs.logits, 2.0, there)
        + 2.0 * hard_label_loss(ours.logits, batch["targets"])
        + 1.0 * hidden_cosine_loss(ours.hidden_states, theirs.hidden_states, batch["mask"])
        + 3.0 * attention_loss(ours.attentions, theirs.attentions, batch["mask"])
    )
    loss = module.batch_loss(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@shapes
def test_a_student_that_starts_as_its_teacher_has_nothing_to_learn(architecture):
    start, teacher = tiny(architecture, 7), tiny(architecture, 7)
    quiet = TrainerSettings(learning_rate=1e-5, weight_decay=0.0, accelerator="cpu", precision="fp32")
    student, curve = distil(architecture, teacher, student=tiny(architecture, 7), trainer=quiet)
    assert same(teacher, start)
    assert max(loss for _, loss in curve) < 1e-5
    assert farthest(student, start) < 12 * 1.01e-5
    module = LanguageStudent(start, CALM, FLAT, seed=0, weights=SOFT, teacher=teacher)
    module.batch_loss(collate_blocks(corpus(), np.array([0, 1]), masking=masking_for(architecture))).backward()
    assert max(float(p.grad.abs().max()) for p in start.parameters() if p.grad is not None) < 1e-5


@shapes
def test_two_calls_give_the_same_bits(architecture):
    drops = {"resid_pdrop": 0.1} if architecture == "gpt2" else {}
    runs = []
    for before, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(before)
        student = tiny(architecture, **drops)
        runs.append(distil(architecture, tiny(architecture, 7), DISTILBERT, student=student, seed=seed))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


@shapes
@pytest.mark.parametrize(("kept_as", "close"), [("float32", 1e-5), ("float16", 3e-3)])
def test_a_stored_teacher_teaches_what_the_live_one_does(architecture, kept_as, close, tmp_path):
    teacher = tiny(architecture, 7, **({"resid_pdrop": 0.5} if architecture == "gpt2" else {}))
    weights = DistillationWeights(soft=1.0, hard=0.5, temperature=2.0)
    live, live_curve = distil(architecture, teacher, weights)
    teacher.train()  # storing must not depend on how the teacher was left
    kept = stored(tmp_path, architecture, teacher, kept_as=kept_as, num_epochs=4)
    other, curve = distil(architecture, kept, weights)
    assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in live_curve], rel=close)
    assert answers(other, architecture).numpy() == pytest.approx(answers(live, architecture).numpy(), abs=close)


@shapes
def test_what_is_stored_is_what_the_teacher_says_block_by_block(architecture, tmp_path):
    teacher, blocks, masking = tiny(architecture, 7), corpus(), masking_for(architecture)
    kept = stored(tmp_path, architecture, teacher, num_epochs=2)
    tensors = load_file(kept.path)
    assert tensors["log_probabilities"].dtype == torch.float32
    assert (tmp_path / "teacher.safetensors").stat().st_size < 2048 + sum(t.nbytes for t in tensors.values())
    for epoch in (0, 1):
        for row in (0, len(blocks) - 1):
            batch = collate_blocks(blocks, np.array([row]), masking=masking, epoch=epoch)
            with torch.no_grad():
                logits = teacher(batch["tokens"]).logits[batch["targets"] != NO_TARGET]
            said = StoredLogits(kept.path).log_probabilities(epoch, row)
            assert said.exp().numpy() == pytest.approx(logits.softmax(-1).numpy(), abs=1e-6)
    assert kept.num_epochs == (1 if masking is None else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]


@shapes
def test_soft_targets_pull_a_student_to_its_teacher(architecture):
    teacher = tiny(architecture, 7)
    eager = TrainerSettings(learning_rate=5e-3, accelerator="cpu", precision="fp32", log_every_n_steps=10)
    student, curve = distil(architecture, teacher, trainer=eager, num_steps=150)
    goal = answers(teacher, architecture)
    before, after = ((answers(model, architecture) - goal).abs().mean() for model in (tiny(architecture), student))
    assert after < 0.35 * before
    assert curve[-1][1] < 0.3 * curve[0][1]


@shapes
def test_hard_labels_alone_are_plain_training(architecture):
    hard = DistillationWeights(soft=0.0, hard=1.0)
    student, curve = distil(architecture, tiny(architecture, 7), hard)
    plain = tiny(architecture)
    module = LanguageModule(plain, CALM, Schedule(12, 1.0, 0.0, CALM.warmup), seed=5)
    data = BlockData(plain, corpus(), num_steps=12, batch_size=4, seed=5, masking=masking_for(architecture))
    fit_quietly(module, data, accelerator="cpu", seed=5)
    assert [step for step, _ in curve] == [step for step, _ in module.curve] == [4, 8, 12]
    assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in module.curve], rel=1e-5)
    assert answers(student, architecture).numpy() == pytest.approx(answers(plain, architecture).numpy(), abs=1e-4)


def test_checkpoints_along_the_way_hold_the_student_alone(tmp_path):
    student, metrics = truncated_student(tiny("gpt2"), 2), []

    def tell(step: int, values: Mapping[str, float]) -> None:
        metrics.append((step, values["train_loss"]))

    curve = distil_language_model(
        student,
        tiny("gpt2", 7),
        corpus(),
        plan_of("gpt2", DISTILBERT),
        callbacks=[keep_at([0, 12], tmp_path)],
        tell=tell,
    )
    assert same(load_language_model(tmp_path / "step-000012"), student)
    assert not same(load_language_model(tmp_path / "step-000000"), student)
    assert metrics == curve


def test_bf16_is_autocast_over_fp32_weights():
    half, full = (
        distil("gpt2", tiny("gpt2", 7), ALL, trainer=TrainerSettings(accelerator="cpu", precision=precision))
        for precision in ("bf16", "fp32")
    )
    assert {p.dtype for p in half[0].parameters()} == {torch.float32}
    assert half[1] != full[1]
    assert half[1][-1][1] == pytest.approx(full[1][-1][1], rel=0.05)


def test_what_cannot_be_is_named(tmp_path):
    teacher = tiny("gpt2", 7)
    kept = stored(tmp_path, "gpt2", teacher)
    with pytest.raises(ConfigError, match="Stored teachers hold no hidden states"):
        distil("gpt2", kept, DISTILBERT)
    with pytest.raises(ConfigError, match=r"is of other blocks, or of another masking"):
        distil_language_model(tiny("gpt2"), kept, corpus(seed=1), plan_of("gpt2"))
    with pytest.raises(ConfigError, match=r"more than max_bytes=1000: give the teacher itself"):
        stored(tmp_path, "gpt2", teacher, max_bytes=1000)
    with pytest.raises(ConfigError, match="Expected kept_as to be one of float16, float32"):
        stored(tmp_path, "gpt2", teacher, kept_as="int8")
    with pytest.raises(ConfigError, match="Expected num_steps to be at least 1"):
        plan_of("gpt2", num_steps=0)
    with pytest.raises(ConfigError, match="another tokenizer"):
        distil("gpt2", tiny("gpt2", vocab_size=12))
    with pytest.raises(ConfigError, match="student of the teacher's width and classes"):
        distil("gpt2", tiny("gpt2", vocab_size=30))
    (tmp_path / "torn").write_bytes(b"\x08\x00")
    with pytest.raises(DataError, match=r"holds no stored teacher .*store it anew"):
        StoredLogits(tmp_path / "torn")
    with pytest.raises(DataError, match="holds no stored teacher"):
        StoredLogits(tmp_path / "nowhere")


def test_masks_of_more_epochs_than_were_stored_are_refused(tmp_path):
    kept = stored(tmp_path, "bert", tiny("bert", 7), num_epochs=2)
    with pytest.raises(ConfigError, match=r"masks of 2 epochs, but training takes 4: .*num_epochs=4"):
        distil("bert", kept)
    with pytest.raises(ConfigError, match="of another masking"):
        distil("bert", kept, masking=Masking(MASK, WORDS, frozenset({END, MASK}), seed=4, share=0.3))


def test_a_teacher_that_fails_half_way_leaves_no_file(tmp_path, monkeypatch):
    teacher = tiny("gpt2", 7)
    forward, calls = type(teacher).forward, []

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(teacher), "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        stored(tmp_path, "gpt2", teacher)
    assert not list(tmp_path.iterdir())


def test_a_student_that_diverges_is_an_error():
    wild = TrainerSettings(learning_rate=1e30, gradient_clip=None, warmup=0.0, accelerator="cpu", precision="fp32")
    with pytest.raises(TrainingError, match=r"The loss is .* lower trainer\.learning_rate"):
        distil("gpt2", tiny("gpt2", 7), trainer=wild, num_steps=20)


def test_a_student_that_stops_early_is_an_error(monkeypatch):
    monkeypatch.setattr(pl.Trainer, "fit", lambda self, model, **kwargs: None)
    monkeypatch.setattr(LanguageModule, "num_steps_done", property(lambda self: 3))
    with pytest.raises(TrainingError, match="stopped after 3 of 12 steps"):
        distil("gpt2", tiny("gpt2", 7))


def test_an_interruption_is_one_of_the_keyboard():
    def interrupt(step: int, values: Mapping[str, float]) -> None:
        assert math.isfinite(values["train_loss"])
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        distil_language_model(tiny("gpt2"), tiny("gpt2", 7), corpus(), plan_of("gpt2"), tell=interrupt)
