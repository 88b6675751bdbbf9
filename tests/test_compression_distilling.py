from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fairsisa.compression.distilling import (
    DistillationWeights,
    MatchedLayers,
    Outputs,
    attention_loss,
    distillation_loss,
    distillation_terms,
    hard_label_loss,
    hidden_cosine_loss,
    soft_target_loss,
)
from fairsisa.compression.students import truncated_student
from fairsisa.errors import ConfigError, DataError

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
seeds = st.integers(0, 2**32 - 1)
temperatures = st.floats(0.25, 20.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other cost more than these sizes compute
    yield
    torch.set_num_threads(before)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attentions(seed: int, heads: int = 2) -> torch.Tensor:
    return torch.softmax(normal(seed, 3, heads, 4, 4), dim=-1)


def softmax(rows: np.ndarray) -> np.ndarray:
    high = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return high / high.sum(axis=-1, keepdims=True)


def divergence(target: np.ndarray, answer: np.ndarray) -> float:
    """KL of one pair of distributions, term by term; 0 log 0 is 0."""
    return sum(p * (np.log(p) - np.log(q)) for p, q in zip(target, answer, strict=True) if p > 0)


@given(seeds, temperatures)
def test_soft_targets_equal_the_formula(seed: int, temperature: float) -> None:
    student, teacher = normal(seed, 5, 3), normal(seed + 1, 5, 3)
    pairs = zip(softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature), strict=True)
    expected = temperature**2 * np.mean([divergence(target, answer) for target, answer in pairs])
    assert soft_target_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(seeds, temperatures)
def test_a_teachers_probabilities_say_the_same_as_its_logits(seed: int, temperature: float) -> None:
    student, teacher = normal(seed, 5, 3), normal(seed + 1, 5, 3)
    told = soft_target_loss(student, teacher.softmax(-1), temperature, teacher_gives="probabilities")
    assert told.item() == pytest.approx(soft_target_loss(student, teacher, temperature).item(), rel=1e-9, abs=1e-12)


@given(temperatures)
def test_a_vote_of_zeros_and_ones_is_the_cross_entropy_of_the_winner(temperature: float) -> None:
    student, votes = normal(3, 4, 3), torch.eye(3, dtype=torch.float64)[[0, 2, 1, 1]]
    student.requires_grad_(True)
    loss = soft_target_loss(student, votes, temperature, teacher_gives="probabilities")
    expected = temperature**2 * nn.functional.cross_entropy(student / temperature, torch.tensor([0, 2, 1, 1]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_at_temperature_one_the_target_is_the_probability_itself() -> None:
    student, told = normal(0, 1, 2), torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    expected = divergence(told.numpy()[0], softmax(student.numpy())[0])
    assert soft_target_loss(student, told, teacher_gives="probabilities").item() == pytest.approx(expected)


@given(seeds, temperatures)
def test_the_gradient_is_temperature_times_the_difference_of_distributions(seed: int, temperature: float) -> None:
    # Hinton et al. 2015, eq. 2: dC/dz = (q - p) / T; the factor T^2 leaves T (q - p).
    student, teacher = normal(seed, 5, 3).requires_grad_(True), normal(seed + 1, 5, 3).requires_grad_(True)
    soft_target_loss(student, teacher, temperature).backward()
    answer, target = softmax(student.detach().numpy() / temperature), softmax(teacher.detach().numpy() / temperature)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), temperature * (answer - target) / 5, atol=1e-12)
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [200.0, 2000.0])
def test_hot_gradients_are_those_of_matching_logits(temperature: float) -> None:
    # Hinton et al. 2015, eq. 4, times T^2: (z - v) / N for logits of mean zero, whatever T is.
    student, teacher = (normal(seed, 4, 3) for seed in (1, 2))
    student, teacher = ((logits - logits.mean(-1, keepdim=True)).requires_grad_(True) for logits in (student, teacher))
    soft_target_loss(student, teacher, temperature).backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, (student - teacher).detach() / 3 / 4, atol=5 / temperature)


def test_hard_labels_equal_the_formula_where_there_is_a_label() -> None:
    logits = normal(0, 3, 4, 5)
    labels = torch.tensor([[1, -100, 2, 3], [4, 0, 0, 0], [-100, 2, 1, 0]])
    places = [(i, j) for i in range(3) for j in range(4) if MASK[i, j] and labels[i, j] >= 0]
    expected = -np.mean([np.log(softmax(logits.numpy())[i, j, labels[i, j]]) for i, j in places])
    assert hard_label_loss(logits, labels, MASK).item() == pytest.approx(expected)
    assert hard_label_loss(logits[:, 0], labels[:, 1].abs() % 5).item() == pytest.approx(
        nn.functional.cross_entropy(logits[:, 0], labels[:, 1].abs() % 5).item()
    )


def test_hidden_states_equal_the_formula() -> None:
    ours, theirs = [normal(s, 3, 4, 6) for s in (0, 1)], [normal(s, 3, 4, 6) for s in (2, 3, 4)]
    terms = []
    for student, teacher in ((ours[0], theirs[1]), (ours[1], theirs[2])):
        for i, j in zip(*np.nonzero(MASK.numpy()), strict=True):
            a, b = student[i, j].numpy(), teacher[i, j].numpy()
            terms.append(1 - a @ b / np.sqrt((a @ a) * (b @ b)))
    found = hidden_cosine_loss(ours, theirs, MASK, pairs=((0, 1), (1, -1)))
    assert found.item() == pytest.approx(np.mean(terms))


def test_hidden_states_without_mask_equal_torchs_own_loss() -> None:
    ours, theirs = normal(0, 3, 4, 6), normal(1, 3, 4, 6)
    own = nn.CosineEmbeddingLoss()(ours.view(-1, 6), theirs.view(-1, 6), torch.ones(12))
    assert hidden_cosine_loss([ours], [theirs]).item() == pytest.approx(own.item())


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("measure", ["mse", "kl"])
def test_attention_equals_the_formula(heads: int, measure: Any) -> None:
    student, teacher = attentions(0), attentions(1, heads)
    ours, theirs = student.numpy(), teacher.numpy()
    if heads != 2:
        ours, theirs = ours.mean(axis=1, keepdims=True), theirs.mean(axis=1, keepdims=True)
    terms = []
    for i, head in np.ndindex(*ours.shape[:2]):
        for query in np.nonzero(MASK[i].numpy())[0]:
            row, goal = ours[i, head, query], theirs[i, head, query]
            if measure == "mse":
                terms += [(row[key] - goal[key]) ** 2 for key in np.nonzero(MASK[i].numpy())[0]]
            else:
                terms.append(divergence(goal, row))
    assert attention_loss([student], [teacher], MASK, measure=measure).item() == pytest.approx(np.mean(terms))


def test_causal_maps_have_a_finite_divergence_and_gradient() -> None:
    scores = normal(0, 2, 2, 4, 4).requires_grad_(True)
    unseen = torch.ones(4, 4, dtype=torch.bool).triu(1)
    student = scores.masked_fill(unseen, -torch.inf).softmax(-1)
    teacher = normal(1, 2, 2, 4, 4).masked_fill(unseen, -torch.inf).softmax(-1)
    loss = attention_loss([student], [teacher], measure="kl")
    loss.backward()
    rows = zip(teacher.reshape(-1, 4).numpy(), student.detach().reshape(-1, 4).numpy(), strict=True)
    assert loss.item() == pytest.approx(np.mean([divergence(goal, row) for goal, row in rows]))
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@given(seeds, temperatures)
def test_a_student_that_equals_its_teacher_pays_nothing(seed: int, temperature: float) -> None:
    same = Outputs(normal(seed, 3, 4, 5), (normal(seed, 3, 4, 6),), (attentions(seed),))
    weights = DistillationWeights(1.0, 0.0, 1.0, 1.0, temperature)
    for measure in ("mse", "kl"):
        found = distillation_loss(weights, same, same, mask=MASK, layers=MatchedLayers(measure=measure))
        assert abs(found.item()) < 1e-10 * max(1.0, temperature**2)


def outputs_of(seed: int, *, spoilt: bool = False) -> Outputs:
    """What a model says; `spoilt` puts NaN wherever a masked token is concerned."""
    hidden, logits, maps = normal(seed, 3, 4, 6), normal(seed + 9, 3, 4, 5), attentions(seed)
    if spoilt:
        unseen = MASK == 0
        hidden[unseen], logits[unseen] = torch.nan, torch.nan
        maps.transpose(1, 2)[unseen] = torch.nan
    return Outputs(
        *(
            part.requires_grad_(True) if part is logits else (part.requires_grad_(True),)
            for part in (logits, hidden, maps)
        )
    )


@pytest.mark.parametrize("measure", ["mse", "kl"])
def test_masked_positions_say_nothing_in_loss_or_gradient(measure: Any) -> None:
    weights, layers = DistillationWeights(1.0, 1.0, 1.0, 1.0, 2.0), MatchedLayers(measure=measure)
    labels = torch.tensor([[0, 1, 2, 3]] * 3)
    plain, spoilt = outputs_of(1), outputs_of(1, spoilt=True)
    losses = []
    for student, teacher in ((plain, outputs_of(2)), (spoilt, outputs_of(2, spoilt=True))):
        losses.append(distillation_loss(weights, student, teacher, labels, MASK.bool(), layers=layers))
        losses[-1].backward()
    assert losses[0].item() == losses[1].item()
    for part in (spoilt.logits, spoilt.hidden_states[0], spoilt.attentions[0]):
        assert part.grad.isfinite().all()
    assert not spoilt.logits.grad[MASK == 0].any()
    assert torch.equal(plain.logits.grad, spoilt.logits.grad)


def test_nothing_unmasked_costs_nothing() -> None:
    student = outputs_of(1)
    terms = distillation_terms(
        DistillationWeights(1.0, 1.0, 1.0, 1.0),
        student,
        outputs_of(2),
        torch.zeros(3, 4, dtype=torch.long),
        torch.zeros(3, 4),
    )
    assert {name: term.item() for name, term in terms.items()} == dict.fromkeys(
        ("soft", "hard", "hidden", "attention"), 0.0
    )


def test_half_precision_is_summed_in_full() -> None:
    student, teacher = normal(0, 8, 50).bfloat16(), normal(1, 8, 50).bfloat16()
    assert torch.equal(soft_target_loss(student, teacher, 2.0), soft_target_loss(student.float(), teacher.float(), 2.0))


def test_the_sum_is_weighted() -> None:
    weights = DistillationWeights(soft=5.0, hard=2.0, hidden=1.0, attention=0.5, temperature=2.0)
    student, teacher, labels = outputs_of(1), outputs_of(2), torch.tensor([[0, 1, 2, 3]] * 3)
    expected = (
        5.0 * soft_target_loss(student.logits, teacher.logits, 2.0, MASK)
        + 2.0 * hard_label_loss(student.logits, labels, MASK)
        + 1.0 * hidden_cosine_loss(student.hidden_states, teacher.hidden_states, MASK)
        + 0.5 * attention_loss(student.attentions, teacher.attentions, MASK)
    )
    found = distillation_loss(weights, student, teacher, labels, MASK)
    assert found.item() == pytest.approx(expected.item())
    assert found.item() == distillation_loss(weights, student, teacher, labels, MASK).item()


@pytest.mark.parametrize(
    ("name", "reads"),
    [("soft", {"logits"}), ("hard", {"logits"}), ("hidden", {"hidden_states"}), ("attention", {"attentions"})],
)
def test_what_has_no_weight_is_not_even_read(name: str, reads: set[str]) -> None:
    touched = set()

    class Watching:
        def __getattr__(self, field: str) -> Any:
            touched.add(field)
            return getattr(outputs_of(1), field)

    nothing = {"soft": 0.0, "hard": 0.0, "hidden": 0.0, "attention": 0.0}
    weights = DistillationWeights(**nothing | {name: 1.0})
    labels = torch.zeros(3, 4, dtype=torch.long) if name == "hard" else None
    watching: Any = Watching()
    assert set(distillation_terms(weights, watching, watching, labels, MASK)) == {name}
    assert touched == reads


def test_a_token_mask_leaves_a_classifier_alone() -> None:
    student, teacher = Outputs(normal(0, 3, 2)), Outputs(normal(1, 3, 2).softmax(-1))
    found = distillation_loss(DistillationWeights(), student, teacher, mask=MASK, teacher_gives="probabilities")
    assert torch.equal(found, soft_target_loss(student.logits, teacher.logits, teacher_gives="probabilities"))


def test_real_models_meet_in_every_loss() -> None:
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 4, "n_head": 2, "vocab_size": 40, "n_positions": 12, "initializer_range": 0.5}
    config = AutoConfig.for_model("gpt2", **shape, bos_token_id=None, eos_token_id=None)
    teacher = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tokens, mask = torch.randint(0, 40, (3, 4)), MASK
    asked: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        taught = teacher(input_ids=tokens, attention_mask=mask, **asked)
    weights = DistillationWeights(5.0, 0.0, 1.0, 1.0, 2.0)
    layers = MatchedLayers(hidden=((1, 1), (2, 4)), attention=((0, 0), (1, 3)), measure="kl")
    student = truncated_student(teacher, 2)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        answered = student(input_ids=tokens, attention_mask=mask, **asked)
        loss = distillation_loss(weights, answered, taught, mask=mask, layers=layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    itself = truncated_student(teacher, 4)(input_ids=tokens, attention_mask=mask, **asked)
    assert distillation_loss(weights, itself, taught, mask=mask).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["soft", "hard", "hidden", "attention", "temperature"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"distillation.{name} to be"):
        DistillationWeights(**{name: value})


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one of distillation\.soft, hard, hidden, attention to be above 0"):
        DistillationWeights(soft=0.0)
    with pytest.raises(ConfigError, match=r"distillation\.temperature to be greater than 0"):
        DistillationWeights(temperature=0.0)


@pytest.mark.parametrize(
    ("name", "cure"), [("hidden", "output_hidden_states=True"), ("attention", 'attn_implementation="eager"')]
)
@pytest.mark.parametrize("missing", [None, (), (None, None)])
def test_what_a_model_did_not_return_is_named_with_the_cure(name: str, cure: str, missing: Any) -> None:
    bare: Any = SimpleNamespace(logits=normal(0, 3, 4, 5), hidden_states=missing, attentions=missing)
    weights = DistillationWeights(**{name: 0.5})
    for student, teacher, side in ((bare, outputs_of(1), "student"), (outputs_of(1), bare, "teacher")):
        with pytest.raises(ConfigError, match=f"distillation.{name} needs the {side}'s .*{cure}"):
            distillation_loss(weights, student, teacher, mask=MASK)


def test_missing_labels_are_named() -> None:
    with pytest.raises(ConfigError, match=r"distillation\.hard needs labels"):
        distillation_loss(DistillationWeights(hard=1.0), outputs_of(1), outputs_of(2))


@pytest.mark.parametrize("told", [[[0.5, 0.6]], [[-0.1, 1.1]], [[0.0, 0.0]], [[float("nan"), 1.0]]])
def test_what_are_no_probabilities_is_refused(told: list[list[float]]) -> None:
    with pytest.raises(DataError, match='teacher_gives="logits"'):
        soft_target_loss(torch.zeros(1, 2), torch.tensor(told), teacher_gives="probabilities")


def test_shapes_that_do_not_meet_are_named() -> None:
    with pytest.raises(ConfigError, match=r"logits of student and teacher .* \(3, 2\) and \(3, 4\)"):
        soft_target_loss(normal(0, 3, 2), normal(0, 3, 4))
    with pytest.raises(ConfigError, match=r"hidden states .* \(3, 4, 6\) and \(3, 4, 8\)"):
        hidden_cosine_loss([normal(0, 3, 4, 6)], [normal(0, 3, 4, 8)])
    with pytest.raises(ConfigError, match=r"attention maps .* \(3, 2, 4, 4\) and \(3, 2, 5, 5\)"):
        attention_loss([attentions(0)], [normal(0, 3, 2, 5, 5)])
    with pytest.raises(ConfigError, match=r"mask of shape \(3, 4\), got \(3, 5\)"):
        hidden_cosine_loss([normal(0, 3, 4, 6)], [normal(0, 3, 4, 6)], torch.ones(3, 5))
    with pytest.raises(ConfigError, match=r"labels of shape \(3,\), got \(4,\)"):
        hard_label_loss(normal(0, 3, 2), torch.zeros(4, dtype=torch.long))


def test_layers_that_are_not_there_are_named() -> None:
    states = [normal(seed, 3, 4, 6) for seed in range(3)]
    with pytest.raises(
        ConfigError, match=r"\(2, 0\) of distillation\.hidden names layer 2 of the student, which gives 2"
    ):
        hidden_cosine_loss(states[:2], states, pairs=((-1, -1), (2, 0)))
    with pytest.raises(ConfigError, match="layer -4 of the teacher, which gives 3: choose from 0 to 2"):
        hidden_cosine_loss(states[:2], states, pairs=((0, -4),))
    with pytest.raises(ConfigError, match=r"one pair of layers for distillation\.attention"):
        attention_loss([attentions(0)], [attentions(1)], pairs=())


def test_unknown_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="measure to be one of mse, kl"):
        MatchedLayers(measure="mae")
    with pytest.raises(ConfigError, match="measure to be one of mse, kl"):
        attention_loss([attentions(0)], [attentions(1)], measure="mae")
    with pytest.raises(ConfigError, match="Did you mean 'probabilities'"):
        soft_target_loss(normal(0, 1, 2), normal(0, 1, 2), teacher_gives="probability")
    with pytest.raises(ConfigError, match="temperature to be greater than 0"):
        soft_target_loss(normal(0, 1, 2), normal(0, 1, 2), 0.0)
