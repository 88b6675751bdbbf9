"""What a language model in training has of its teacher: first weights, tokenizer, answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fairsisa.compression.distilling import DistillationWeights
from fairsisa.compression.language_student import LanguageStudent, hear_stored
from fairsisa.compression.stored_logits import StoredLogits, store_logits
from fairsisa.compression.students import truncated_student
from fairsisa.data.corpus_blocks import Blocks, Masking
from fairsisa.errors import ConfigError
from fairsisa.models.base import folder_of
from fairsisa.models.classifier import Schedule
from fairsisa.models.language import BlockData, load_language_model, require_fit
from fairsisa.models.text_tokenizers import find_tokenizer, holds_tokenizer
from fairsisa.models.training_state import TrainingState
from fairsisa.settings import PretrainingSettings, TrainerSettings

WEIGHTS = ("soft", "hard", "hidden", "attention", "temperature")
BATCH = 16
"""Blocks at once when a teacher's outputs are stored: of its logits no more are held."""


def find_teacher(settings: PretrainingSettings) -> nn.Module | None:
    """Return the teacher in fp32, or None where there is none.

    Raises:
        ModelError: when it cannot be had, or is no language model.
    """
    return None if settings.teacher is None else load_language_model(folder_of(settings.teacher))


def student_of(teacher: nn.Module, settings: PretrainingSettings) -> Any:
    """Return the student that begins as `num_layers` of the teacher's layers.

    Raises:
        ConfigError: when the teacher has not as many, or its architecture is none we know.
    """
    return truncated_student(teacher, int(settings.num_layers or 0), settings.keep)


def shared_tokenizer(settings: PretrainingSettings) -> Any:
    """Return the tokenizer of the teacher, or where its folder holds none, that which `tokenizer` or `start` names.

    Raises:
        ConfigError: when these have several, of different vocabularies.
        ModelError: when there is none.
    """
    named = {name: getattr(settings, name) for name in ("teacher", "tokenizer", "start")}
    holders = {name: value for name, value in named.items() if value is not None and holds_tokenizer(folder_of(value))}
    if not holders:
        return find_tokenizer(str(settings.teacher))
    found = {name: find_tokenizer(value) for name, value in holders.items()}
    first = next(iter(found))
    for name, tokenizer in found.items():
        if tokenizer.get_vocab() != found[first].get_vocab():
            raise ConfigError(
                f"The tokens of {first}={holders[first]} are not those of {name}={holders[name]}: a student reads as "
                f"its teacher does. Give another {name}, or leave it out."
            )
    return found[first]


def require_one_vocabulary(student: Any, teacher: Any) -> None:
    """Raise ConfigError unless student and teacher say something about the same number of tokens."""
    ours, theirs = int(student.config.vocab_size), int(teacher.config.vocab_size)
    if ours != theirs:
        raise ConfigError(
            f"Expected a student of the teacher's {theirs} tokens, got one of {ours}: start from a model of the same "
            "vocabulary, or leave vocab_size out of the shape."
        )


def taught_module(
    model: nn.Module,
    teacher: nn.Module,
    trainer: TrainerSettings,
    schedule: Schedule,
    *,
    settings: PretrainingSettings,
    start: TrainingState | None,
) -> LanguageStudent:
    """Return the Lightning module that trains `model` on what the teacher says, live or in each batch."""
    return LanguageStudent(
        model,
        trainer,
        schedule,
        seed=settings.seed,
        weights=_weights(settings),
        teacher=teacher if settings.teacher_outputs == "live" else None,
        start=start,
    )


def hear(
    teacher: nn.Module,
    data: BlockData,
    text: tuple[Blocks, Masking | None],
    *,
    settings: PretrainingSettings,
    path: Path,
) -> None:
    """Make sure that the teacher reads the text; where its outputs are stored, put them into the batches.

    They are computed once, and then lie at `path`.

    Raises:
        ConfigError: when the text does not fit the teacher, or what it says is too much to store.
    """
    blocks, masking = text
    require_fit(teacher, blocks, masking)
    if settings.teacher_outputs == "live":
        return
    num_epochs = data.plan[-1][0] + 1
    if path.is_file():
        stored = StoredLogits(path)
    else:
        stored = store_logits(path, teacher, blocks, batch_size=BATCH, masking=masking, num_epochs=num_epochs)
    hear_stored(data, stored, blocks, _weights(settings), masking)


def _weights(settings: PretrainingSettings) -> DistillationWeights:
    return DistillationWeights(**{name: getattr(settings, name) for name in WEIGHTS})
