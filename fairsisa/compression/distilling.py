"""What a student pays for differing from its teacher: the losses of distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fairsisa.errors import ConfigError, DataError
from fairsisa.settings import in_range, one_of

LayerPairs = tuple[tuple[int, int], ...]
TeacherGives = Literal["logits", "probabilities"]
Measure = Literal["mse", "kl"]

LAST: LayerPairs = ((-1, -1),)
IGNORED_LABEL = -100
SUM_TOLERANCE = 0.02  # a table may hold half precision
TERMS = ("soft", "hard", "hidden", "attention")
CURES = {
    "logits": "keep the model's logits",
    "hidden_states": "run the model with output_hidden_states=True",
    "attentions": 'load the model with attn_implementation="eager" and run it with output_attentions=True',
}


@dataclass(frozen=True)
class DistillationWeights:
    """How much each loss counts, at least 0 and not all 0; `temperature` > 0 softens student and teacher alike.

    DistilBERT (Sanh et al. 2019, training script) took soft 5, hard 2, hidden 1 at temperature 2.
    """

    soft: float = 1.0
    hard: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in TERMS:
            in_range(f"distillation.{name}", getattr(self, name), low=0.0)
        in_range("distillation.temperature", self.temperature, above=0.0)
        if not any(getattr(self, name) for name in TERMS):
            raise ConfigError(f"Expected one of distillation.{', '.join(TERMS)} to be above 0, got 0 for each.")


@dataclass(frozen=True)
class MatchedLayers:
    """Which layers meet, as (student's, teacher's) positions in what the models return; negative counts from the end.

    `hidden` counts the embeddings as 0 and the first layer as 1; `attention` counts the first layer as 0.
    """

    hidden: LayerPairs = LAST
    attention: LayerPairs = LAST
    measure: Measure = "mse"

    def __post_init__(self) -> None:
        one_of("distillation.measure", self.measure, ("mse", "kl"))


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model said of a batch, as far as the losses read it; a Hugging Face output serves as well.

    `logits` has shape (num_examples, num_classes) or (num_examples, length, vocabulary); for a teacher whose scores
    were stored it holds those. Hidden states have shape (num_examples, length, width), attention maps
    (num_examples, heads, length, length).
    """

    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


LAST_LAYERS = MatchedLayers()


def soft_target_loss(
    student_logits: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
    *,
    teacher_gives: TeacherGives = "logits",
) -> torch.Tensor:
    """Return T^2 KL(teacher || student) at temperature T, in nats, the mean over the positions where `mask` is true.

    Hinton, Vinyals and Dean 2015, section 2: both sides are softmax(logits / T), and T^2 keeps the gradient's size.
    A teacher that gives probabilities p (a mean of constituents, votes, a fair derived predictor) has the logits
    log p, so that at T = 1 its target is p itself; zeros are allowed. Both arguments have one shape (..., classes),
    `mask` has (...). No position gives 0. No gradient reaches the teacher.

    Raises:
        ConfigError: when shapes differ, or `temperature` or `teacher_gives` is none.
        DataError: when probabilities are negative or do not sum to 1.
    """
    in_range("temperature", temperature, above=0.0)
    one_of("teacher_gives", teacher_gives, ("logits", "probabilities"))
    _same_shape("logits", student_logits, teacher)
    student_rows, teacher_rows = _rows(student_logits, mask), _rows(teacher.detach(), mask)
    if teacher_gives == "probabilities":
        teacher_rows = _log_of_probabilities(teacher_rows)
    target = torch.softmax(teacher_rows / temperature, dim=-1)
    answer = torch.log_softmax(student_rows / temperature, dim=-1)
    return temperature**2 * _mean_divergence(answer, target)


def hard_label_loss(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean cross entropy in nats over positions with a label, where `mask` is true; none gives 0.

    A label stands beside the logits that predict it (shift a causal model's first), -100 where there is none. Logits
    have shape (..., classes), `labels` and `mask` (...).

    Raises:
        ConfigError: when the shapes do not fit.
    """
    if labels.shape != logits.shape[:-1]:
        raise ConfigError(f"Expected labels of shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}.")
    rows, wanted = _rows(logits, mask), _rows(labels[..., None], mask)[:, 0]
    total = nn.functional.cross_entropy(rows, wanted, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (wanted != IGNORED_LABEL).sum().clamp_min(1)


def hidden_cosine_loss(
    student_hidden: Sequence[torch.Tensor],
    teacher_hidden: Sequence[torch.Tensor],
    mask: torch.Tensor | None = None,
    *,
    pairs: LayerPairs = LAST,
) -> torch.Tensor:
    """Return 1 - cosine of the hidden states, 0 to 2: the mean over unmasked positions, then over `pairs` of layers.

    DistilBERT's alignment of hidden states (Sanh et al. 2019, section 2), there of the last layers. Each element has
    shape (num_examples, length, width), `mask` (num_examples, length). No position gives 0.

    Raises:
        ConfigError: when a pair names no layer, or widths differ.
    """

    def one_pair(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        _same_shape("hidden states", student, teacher)
        rows, goals = _rows(student, mask), _rows(teacher.detach(), mask)
        return (1 - nn.functional.cosine_similarity(rows, goals, dim=-1)).sum() / max(1, len(rows))

    return _mean_over_pairs("hidden", one_pair, student_hidden, teacher_hidden, pairs)


def attention_loss(
    student_attentions: Sequence[torch.Tensor],
    teacher_attentions: Sequence[torch.Tensor],
    mask: torch.Tensor | None = None,
    *,
    pairs: LayerPairs = LAST,
    measure: Measure = "mse",
) -> torch.Tensor:
    """Return how far the student's attention maps are from the teacher's, the mean over `pairs` of layers.

    "mse" is TinyBERT's (Jiao et al. 2020, eq. 7), over unmasked (query, key) places, but on the maps after the softmax,
    which is what models return; "kl" is MiniLM's KL(teacher || student) in nats a query (Wang et al. 2020, eq. 5).
    Maps have shape (num_examples, heads, length, length); where head counts differ, each side's are averaged first.
    `mask` has shape (num_examples, length). No position gives 0.

    Raises:
        ConfigError: when a pair names no layer, lengths differ, or `measure` is unknown.
    """
    one_of("measure", measure, ("mse", "kl"))
    distance = _squared_distance if measure == "mse" else _divergence_of_maps

    def one_pair(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        maps, goals = student, teacher.detach()
        if maps.shape[1] != goals.shape[1]:
            maps, goals = maps.mean(dim=1, keepdim=True), goals.mean(dim=1, keepdim=True)
        _same_shape("attention maps", maps, goals)
        return distance(_wide(maps), _wide(goals), mask)

    return _mean_over_pairs("attention", one_pair, student_attentions, teacher_attentions, pairs)


def distillation_terms(
    weights: DistillationWeights,
    student_outputs: Outputs,
    teacher_outputs: Outputs,
    labels: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    *,
    layers: MatchedLayers = LAST_LAYERS,
    teacher_gives: TeacherGives = "logits",
) -> dict[str, torch.Tensor]:
    """Return each loss by its name in `weights`, unweighted; what has weight 0 is neither computed nor asked for.

    `mask`, shape (num_examples, length), is true at tokens that count; it leaves a classifier's logits alone.

    Raises:
        ConfigError: when a loss of positive weight lacks what it needs; the message names the cure.
    """

    def both(loss: str, field: str) -> tuple[Any, Any]:
        return _needed("student", student_outputs, loss, field), _needed("teacher", teacher_outputs, loss, field)

    def soft() -> torch.Tensor:
        logits, target = both("soft", "logits")
        token_mask = _token_mask(logits, mask)
        return soft_target_loss(logits, target, weights.temperature, token_mask, teacher_gives=teacher_gives)

    def hard() -> torch.Tensor:
        logits = _needed("student", student_outputs, "hard", "logits")
        if labels is None:
            raise ConfigError("distillation.hard needs labels, got none: give them, or set distillation.hard=0.")
        return hard_label_loss(logits, labels, _token_mask(logits, mask))

    def hidden() -> torch.Tensor:
        return hidden_cosine_loss(*both("hidden", "hidden_states"), mask, pairs=layers.hidden)

    def attention() -> torch.Tensor:
        return attention_loss(*both("attention", "attentions"), mask, pairs=layers.attention, measure=layers.measure)

    made = {"soft": soft, "hard": hard, "hidden": hidden, "attention": attention}
    return {name: make() for name, make in made.items() if getattr(weights, name) > 0}


def distillation_loss(
    weights: DistillationWeights,
    student_outputs: Outputs,
    teacher_outputs: Outputs,
    labels: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    *,
    layers: MatchedLayers = LAST_LAYERS,
    teacher_gives: TeacherGives = "logits",
) -> torch.Tensor:
    """Return the weighted sum of `distillation_terms`, a scalar; its arguments and errors are the same."""
    terms = distillation_terms(
        weights, student_outputs, teacher_outputs, labels, mask, layers=layers, teacher_gives=teacher_gives
    )
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()


def _needed(side: str, outputs: Outputs, loss: str, field: str) -> Any:
    """Return a field of one side's outputs; it is read only when a loss asks."""
    value = getattr(outputs, field, None)
    if value is None or (isinstance(value, tuple) and (not value or any(part is None for part in value))):
        raise ConfigError(
            f"distillation.{loss} needs the {side}'s {field}, got none: {CURES[field]}, or set distillation.{loss}=0."
        )
    return value


def _rows(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return what counts as rows, shape (num_positions, last dimension), wide enough to sum over."""
    wide = _wide(tensor)
    if mask is None:
        return wide.flatten(0, -2)
    if mask.shape != tensor.shape[:-1]:
        raise ConfigError(f"Expected a mask of shape {tuple(tensor.shape[:-1])}, got {tuple(mask.shape)}.")
    return wide[mask.bool()]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision loses small differences of logits; labels and fp32 stay as they are."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def _token_mask(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    return mask if logits.ndim == 3 else None


def _log_of_probabilities(rows: torch.Tensor) -> torch.Tensor:
    if len(rows) and not (rows.amin() >= 0 and (rows.sum(dim=-1) - 1).abs().amax() <= SUM_TOLERANCE):
        raise DataError(
            f"Expected the teacher's probabilities to be at least 0 and to sum to 1, got {rows.amin():.4g} as the "
            f'smallest and sums from {rows.sum(dim=-1).amin():.4g}: if these are logits, set teacher_gives="logits".'
        )
    return rows.log()


def _mean_divergence(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of KL(target || exp(answer)); a target of 0 adds 0."""
    total = nn.functional.kl_div(answer, target, reduction="sum")
    return total / max(1, answer[..., 0].numel())


def _squared_distance(maps: torch.Tensor, goals: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    # Chosen before they are subtracted: a padded query's row may hold NaN.
    if mask is not None:
        places = (mask.bool()[:, None, :, None] & mask.bool()[:, None, None, :]).expand_as(maps)
        maps, goals = maps[places], goals[places]
    return nn.functional.mse_loss(maps, goals, reduction="sum") / max(1, maps.numel())


def _divergence_of_maps(maps: torch.Tensor, goals: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    queries = None if mask is None else mask[:, None].expand(maps.shape[:-1])
    # What a causal model cannot see has exactly 0 on both sides: the floor makes its 0 log 0 a 0.
    answer = _rows(maps, queries).clamp_min(torch.finfo(maps.dtype).tiny).log()
    return _mean_divergence(answer, _rows(goals, queries))


def _mean_over_pairs(
    loss: str,
    one_pair: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    pairs: LayerPairs,
) -> torch.Tensor:
    if not pairs:
        raise ConfigError(f"Expected at least one pair of layers for distillation.{loss}, got none.")
    for position in range(2):
        side, count = ("student", len(student)) if position == 0 else ("teacher", len(teacher))
        for pair in pairs:
            if not -count <= pair[position] < count:
                raise ConfigError(
                    f"Pair {pair} of distillation.{loss} names layer {pair[position]} of the {side}, "
                    f"which gives {count}: choose from 0 to {count - 1}."
                )
    return torch.stack([one_pair(student[ours], teacher[theirs]) for ours, theirs in pairs]).mean()


def _same_shape(what: str, student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise ConfigError(
            f"Expected the {what} of student and teacher to have one shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}: give both the same tokens, and a student of the teacher's width and classes."
        )
