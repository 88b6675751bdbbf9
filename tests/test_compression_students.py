from __future__ import annotations

import copy
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from fairsisa.compression.students import (
    STACKS,
    kept_layers,
    narrowed_config,
    truncated_config,
    truncated_student,
)
from fairsisa.errors import ConfigError
from fairsisa.models.base import find_base, load_encoder
from fairsisa.settings import ModelSettings

NUM_LAYERS = 5
SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA: dict[str, dict[str, Any]] = {
    "bert": {"intermediate_size": 24},
    "roberta": {"intermediate_size": 24, "max_position_embeddings": 30},
    "gpt2": {"n_positions": 24},
    "llama": {"intermediate_size": 24, "num_key_value_heads": 2},
    "gpt_neox": {"intermediate_size": 24},
}
HEADS = {
    "classifier": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
}
CASES = [
    (kind, head) for kind in STACKS for head in ("classifier", "masked" if kind in ("bert", "roberta") else "causal")
]
TOKENS = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other cost more than these sizes compute
    yield
    torch.set_num_threads(before)


class Skipped(nn.Module):
    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden


def config_of(kind: str, **changes: Any) -> Any:
    return AutoConfig.for_model(kind, **SHAPE | EXTRA[kind] | changes)


def made(auto: Any, config: Any) -> Any:
    torch.manual_seed(7)
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # fresh biases and norms are all alike; a wrong copy must show
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def teacher_of(kind: str, head: str, **changes: Any) -> Any:
    return made(HEADS[head], config_of(kind, num_labels=3, **changes) if head == "classifier" else config_of(kind))


def logits(model: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, **more).logits


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_a_student_with_all_layers_is_the_teacher(kind: str, head: str) -> None:
    teacher = teacher_of(kind, head)
    assert torch.equal(logits(truncated_student(teacher, NUM_LAYERS)), logits(teacher))


@pytest.mark.parametrize("keep", ["alternate", "first", (1, 3)])
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_a_student_is_the_teacher_with_layers_skipped(kind: str, head: str, keep: Any) -> None:
    teacher = teacher_of(kind, head)
    student = truncated_student(teacher, 2, keep)
    mask = torch.ones_like(TOKENS)
    mask[1, 5:] = 0
    skipping = copy.deepcopy(teacher)
    stack = skipping.base_model.get_submodule(STACKS[kind])
    for number in {*range(NUM_LAYERS)} - {*{"alternate": (0, 4), "first": (0, 1)}.get(keep, keep)}:
        stack[number] = Skipped()
    found = logits(student, attention_mask=mask)
    assert torch.equal(found, logits(skipping, attention_mask=mask))
    assert not torch.allclose(found, logits(teacher, attention_mask=mask))


def test_a_bert_student_equals_its_layers_called_by_hand() -> None:
    teacher = teacher_of("bert", "classifier")
    with torch.no_grad():
        hidden = teacher.bert.embeddings(TOKENS)
        for number in (0, 2, 4):
            hidden = teacher.bert.encoder.layer[number](hidden)
        first = torch.tanh(hidden[:, 0] @ teacher.bert.pooler.dense.weight.T + teacher.bert.pooler.dense.bias)
        expected = first @ teacher.classifier.weight.T + teacher.classifier.bias
    assert torch.allclose(logits(truncated_student(teacher, 3)), expected, atol=1e-5)


def test_a_gpt2_student_equals_its_layers_called_by_hand() -> None:
    teacher = teacher_of("gpt2", "causal")
    body, length = teacher.transformer, TOKENS.shape[1]
    unseen = torch.full((1, 1, length, length), torch.finfo(torch.float32).min).triu(1)
    with torch.no_grad():
        hidden = body.wte.weight[TOKENS] + body.wpe.weight[:length]
        for number in (1, 2):
            hidden = body.h[number](hidden, attention_mask=unseen)
        expected = body.ln_f(hidden) @ body.wte.weight.T
    assert torch.allclose(logits(truncated_student(teacher, 2, (1, 2))), expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_a_student_outlives_saving_and_training(kind: str, head: str, tmp_path: Path) -> None:
    teacher = teacher_of(kind, head).requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = truncated_student(teacher, 2)
    student.save_pretrained(tmp_path)
    loaded = HEADS[head].from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(logits(loaded), logits(student))
    assert loaded.config.num_hidden_layers == 2
    assert all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.config.num_hidden_layers == NUM_LAYERS


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_a_student_generates_with_its_own_cache(kind: str) -> None:
    student = truncated_student(teacher_of(kind, "causal"), 2)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(TOKENS)}
    assert torch.equal(
        student.generate(TOKENS, use_cache=True, **options), student.generate(TOKENS, use_cache=False, **options)
    )


@pytest.mark.parametrize("kind", list(STACKS))
def test_every_part_of_a_student_reads_the_smaller_config(kind: str) -> None:
    teacher = made(AutoModel, config_of(kind))
    teacher(input_ids=TOKENS, output_hidden_states=True)  # leaves hooks of its own behind
    student = truncated_student(teacher, 2)
    configs = [part.config for part in student.modules() if hasattr(part, "config")]
    assert {config.num_hidden_layers for config in configs} == {2}
    assert len(student(input_ids=TOKENS, output_hidden_states=True).hidden_states) == 3
    assert len(student(input_ids=TOKENS, output_attentions=True).attentions) == 2


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "causal"), ("bert", "masked")])
def test_tied_weights_stay_tied(kind: str, head: str) -> None:
    student = truncated_student(teacher_of(kind, head), 1)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_number_format_and_mode_are_the_teachers() -> None:
    student = truncated_student(teacher_of("llama", "causal").to(torch.bfloat16).train(), 2)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert student.training


def test_students_are_equal_each_time_and_draw_nothing() -> None:
    teacher = teacher_of("gpt_neox", "causal")
    before = torch.get_rng_state()
    first, second = (truncated_student(teacher, 3).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@given(st.data())
def test_kept_layers_are_ascending_and_even(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 96))
    wanted = data.draw(st.integers(1, total))
    kept = kept_layers(total, wanted)
    assert len(kept) == wanted
    assert kept == kept_layers(total, wanted, kept)
    spread = np.floor(np.linspace(0, total - 1, wanted) + 0.5 + 1e-9)
    assert list(kept) == spread.astype(int).tolist()
    assert len(set(kept)) == wanted


def test_kept_layers_of_twelve_are_distilberts() -> None:
    assert kept_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert kept_layers(12, 6, "first") == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("keep", [(0,), (1, 0), (0, 0), (0, NUM_LAYERS), (-1, 2)])
def test_a_wrong_choice_of_layers_is_named(keep: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="Expected keep to hold 2 ascending numbers from 0 to 4"):
        kept_layers(NUM_LAYERS, 2, keep)


@pytest.mark.parametrize("num_layers", [0, NUM_LAYERS + 1])
def test_a_wrong_number_of_layers_is_named(num_layers: int) -> None:
    with pytest.raises(ConfigError, match="num_layers"):
        truncated_config(config_of("bert"), num_layers)
    with pytest.raises(ConfigError, match="num_layers"):
        truncated_student(teacher_of("bert", "masked"), num_layers)


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'alternate'"):
        kept_layers(4, 2, "alternating")


def test_a_truncated_config_differs_in_layers_alone() -> None:
    config = config_of("gpt2")
    before, after = config.to_dict(), truncated_config(config, 2).to_dict()
    assert {name for name in before if before[name] != after[name]} == {"n_layer"}
    assert after["n_layer"] == 2


def test_an_unknown_architecture_is_named_with_the_cure() -> None:
    config = AutoConfig.for_model("distilbert", dim=16, n_heads=2, n_layers=2, hidden_dim=24, vocab_size=40)
    teacher = AutoModelForMaskedLM.from_config(config)
    with pytest.raises(ConfigError, match=r"got 'distilbert' \(DistilBertForMaskedLM\): build the student by config"):
        truncated_student(teacher, 1)
    for change in (truncated_config, narrowed_config):
        with pytest.raises(ConfigError, match="got 'distilbert': build the student by config"):
            change(config, 1)


def test_what_is_no_hugging_face_model_is_named_with_the_cure() -> None:
    wrapped = nn.Sequential(teacher_of("bert", "classifier"))
    with pytest.raises(ConfigError, match=r"got Sequential: .*merge adapters first"):
        truncated_student(wrapped, 1)


def test_layers_that_compute_by_their_number_do_not_move() -> None:
    teacher = teacher_of("gpt2", "classifier", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ConfigError, match='set keep="first"'):
        truncated_student(teacher, 2)
    student = truncated_student(teacher, 2, "first")
    assert student.transformer.h[1].attn.scaling == teacher.transformer.h[1].attn.scaling


@pytest.mark.parametrize("kind", list(STACKS))
def test_a_narrowed_config_keeps_the_size_of_heads_and_runs(kind: str) -> None:
    config = config_of(kind)
    narrow = narrowed_config(config, 8)
    assert (narrow.hidden_size, narrow.num_attention_heads) == (8, 2)
    assert narrow.num_hidden_layers == NUM_LAYERS
    assert config.hidden_size == 16
    if kind == "llama":
        assert (narrow.num_key_value_heads, narrow.head_dim) == (1, 4)
    if kind != "gpt2":
        assert narrow.intermediate_size == 12
    assert made(AutoModel, narrow)(input_ids=TOKENS).last_hidden_state.shape == (3, 7, 8)


def test_a_set_width_of_gpt2s_feed_forward_shrinks_too() -> None:
    assert narrowed_config(config_of("gpt2"), 8).n_inner is None
    assert narrowed_config(config_of("gpt2", n_inner=40), 8).n_inner == 20


@given(half_head=st.integers(1, 4), groups=st.integers(1, 6), per_group=st.integers(1, 4), width=st.integers(1, 192))
def test_narrowing_keeps_proportions_or_names_the_nearest_width(
    half_head: int, groups: int, per_group: int, width: int
) -> None:
    heads = groups * per_group
    hidden = 2 * half_head * heads
    config = config_of("llama", hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=groups)
    possible = [w for w in range(1, hidden + 1) if w * heads % hidden == 0 and w * groups % hidden == 0]
    asked = min(width, hidden)
    if asked in possible:
        narrow = narrowed_config(config, asked)
        assert narrow.num_attention_heads * hidden == heads * asked
        assert narrow.num_key_value_heads * per_group == narrow.num_attention_heads
    else:
        nearest = min(abs(w - asked) for w in possible)
        with pytest.raises(
            ConfigError, match=f"multiple of {hidden // gcd(hidden, heads, groups)}.* nearest is"
        ) as error:
            narrowed_config(config, asked)
        named = int(str(error.value).rstrip(".").split()[-1])
        assert named in possible
        assert abs(named - asked) == nearest


def test_a_wider_student_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_size to be at most 16"):
        narrowed_config(config_of("bert"), 32)


def test_a_trained_encoder_is_truncated() -> None:
    teacher = load_encoder(find_base(ModelSettings()), ModelSettings(), seed=0).eval()
    student = truncated_student(teacher, 3)
    with torch.no_grad():
        states = teacher(input_ids=TOKENS, output_hidden_states=True).hidden_states
        first = student(input_ids=TOKENS, output_hidden_states=True).hidden_states
        expected = teacher.encoder.layer[5](teacher.encoder.layer[3](states[1]))
    assert torch.equal(first[1], states[1])
    assert torch.equal(first[3], expected)
