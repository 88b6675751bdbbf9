"""The verb `pretrain`: a language model trained on a text, with checkpoints kept on the way."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from fairsisa.compression.sparse_training import KeepZeros, zero_masks
from fairsisa.data.corpus_blocks import Blocks, Masking, encode_blocks
from fairsisa.data.texts import Text, find_text
from fairsisa.errors import ConfigError
from fairsisa.execution.local import computing_threads
from fairsisa.models.base import digest_of, folder_of, is_bidirectional, is_encoder
from fairsisa.models.classifier import Schedule
from fairsisa.models.device import numeric_environment, resolve_accelerator, resolve_precision
from fairsisa.models.fitting import Tell, TellingLogger, fit_quietly
from fairsisa.models.language import (
    BlockData,
    LanguageModule,
    language_config,
    load_language_model,
    new_language_model,
    require_fit,
)
from fairsisa.models.step_checkpoints import keep_at
from fairsisa.models.text_tokenizers import end_of, find_tokenizer, train_tokenizer
from fairsisa.models.training_state import TrainingState
from fairsisa.report.perplexity import PerplexityReport, write_perplexity
from fairsisa.runs.directory import Run
from fairsisa.runs.language_teacher import (
    find_teacher,
    hear,
    require_one_vocabulary,
    shared_tokenizer,
    student_of,
    taught_module,
)
from fairsisa.runs.perplexities import masking_of, measure_pretraining
from fairsisa.runs.pretrained import CHECKPOINTS, STATE, TEACHER, Pretrained
from fairsisa.runs.training import data_root
from fairsisa.settings import (
    PathSettings,
    PerplexitySettings,
    PretrainingSettings,
    TrainerSettings,
    check_pretraining_trainer,
    plain,
)

CURVE, REPORT = "curve.csv", "report"


def nothing_to_tell(step: int, metrics: Any) -> None:
    """Hear of a step and do nothing."""


@dataclass(frozen=True, eq=False)
class _Job:
    """What one pretraining is made of."""

    kept: Pretrained
    settings: PretrainingSettings
    trainer: TrainerSettings
    tokenizer: Any
    tell: Tell


def pretrain(
    settings: PretrainingSettings,
    trainer: TrainerSettings,
    directory: Path,
    *,
    paths: PathSettings,
    tell: Tell = nothing_to_tell,
    command: str | None = None,
) -> PerplexityReport:
    """Train a language model, from scratch, from a checkpoint or from a teacher; keep checkpoints, and measure them.

    The directory gets the checkpoints (checkpoints/step-000100, ...; each a Hugging Face folder with its tokenizer),
    curve.csv (step, loss), and the perplexities on the held-out texts as report.html, report.csv and report.json;
    what the page tells is returned. What a teacher says, where it is stored, lies beside (teacher.safetensors). Of
    `trainer` it reads batch size, learning rate, weight decay, warm-up, gradient clip, precision, accelerator, threads
    and how often to log; the learning rate falls to zero in a line unless the schedule is "constant". `tell` hears of
    the losses. Killed at any moment, the same call goes on from the newest checkpoint and ends with the same weights,
    bit for bit.

    Raises:
        ConfigError: when settings do not fit each other or the model.
        RunError: when the directory holds another pretraining, or another command is at work on it.
        DataError: when a text cannot be found.
        ModelError: when a tokenizer or the model to start from cannot be read.
        TrainingError: when the loss diverges.
    """
    check_pretraining_trainer(trainer)
    accelerator = resolve_accelerator(trainer.accelerator)
    trainer = replace(trainer, accelerator=accelerator, precision=resolve_precision(trainer.precision, accelerator))
    kept, find = Pretrained(directory), _finder(paths)
    with Run(directory).locked(), computing_threads(trainer.threads):
        corpus, held_out = find(settings.corpus), [find(name) for name in settings.held_out]
        environment = _environment(trainer) | {"commands": [] if command is None else [command]}
        digests = {"corpus": corpus.digest, **_digests_of_models(settings)}
        kept.begin(settings, trainer, digests=digests, environment=environment)
        job = _Job(kept, settings, trainer, _tokenizer(kept, settings, corpus), tell)
        curve = pd.DataFrame(_trained(job, corpus), columns=["step", "loss"])
        kept.write(CURVE, curve.to_csv(index=False, lineterminator="\n"))
        chosen = PerplexitySettings(accelerator=accelerator, threads=trainer.threads, batch_size=trainer.batch_size)
        report = replace(
            measure_pretraining(kept, held_out, chosen),
            curve=curve,
            settings=plain(settings) | {"trainer": plain(trainer)},
            environment=environment,
            commands=() if command is None else (command,),
        )
        write_perplexity(directory, report, stem=REPORT)
    return report


def _environment(trainer: TrainerSettings) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "pytorch-lightning", "numpy")
    return {
        "numeric": numeric_environment(trainer.accelerator, trainer.precision, trainer.threads),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _digests_of_models(settings: PretrainingSettings) -> dict[str, str]:
    """Return digests of the folders that training reads, so that it never goes on from others."""
    named = {name: getattr(settings, name) for name in ("teacher", "start")}
    return {name: digest_of(folder_of(value)) for name, value in named.items() if value is not None}


def _finder(paths: PathSettings) -> Callable[[str], Text]:
    root, cache = data_root(paths), Path(paths.cache).expanduser()
    return lambda name: find_text(name, root=root, cache=cache)


def _tokenizer(kept: Pretrained, settings: PretrainingSettings, corpus: Text) -> Any:
    """Return the tokenizer that the directory holds; the first time, find or train it."""
    if kept.tokenizer is None:
        name = settings.tokenizer if settings.tokenizer is not None else settings.start
        if settings.teacher is not None:
            made = shared_tokenizer(settings)
        elif name is not None:
            made = find_tokenizer(name)
        else:
            masked = is_encoder(language_config(str(settings.new_architecture), settings.shape))
            texts = (document.text for document in corpus.documents)
            made = train_tokenizer(texts, settings.vocab_size, masked=masked)
        kept.keep_tokenizer(made)
    return kept.tokenizer  # always as it was read: what is saved and what is used are then the same


def _trained(job: _Job, corpus: Text) -> tuple[tuple[int, float], ...]:
    """Train what is left to train; return the curve, from the first step on."""
    settings, state = job.settings, job.kept.state
    if state is not None and state.step == settings.num_steps:
        return state.curve
    teacher = find_teacher(settings)
    model = _model(job, state, teacher)
    blocks = encode_blocks(corpus.documents, job.tokenizer, length=settings.block_length, end_id=end_of(job.tokenizer))
    masking = None
    if is_bidirectional(model):
        masking = masking_of(job.tokenizer, share=settings.mask_share, seed=settings.seed)
    require_fit(model, blocks, masking)
    return _fit(job, (model, teacher), (blocks, masking), state)


def _model(job: _Job, state: TrainingState | None, teacher: Any) -> Any:
    model = _beginning(job, state, teacher)
    if job.settings.trains == "head":
        model.base_model.requires_grad_(False)
        model.get_output_embeddings().requires_grad_(True)  # the embeddings too, where the head shares them
    return model


def _beginning(job: _Job, state: TrainingState | None, teacher: Any) -> Any:
    settings = job.settings
    if state is not None:
        return load_language_model(job.kept.checkpoints[state.step])
    if settings.start is not None:
        return load_language_model(folder_of(settings.start), head_seed=settings.seed if settings.new_head else None)
    if settings.num_layers is not None:
        return student_of(teacher, settings)
    end = end_of(job.tokenizer)
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": _pad_of(job.tokenizer)}
    num_tokens = len(job.tokenizer) if teacher is None else teacher.config.vocab_size
    shape = {"vocab_size": num_tokens, **special, **settings.shape}
    return new_language_model(str(settings.new_architecture), shape, settings.seed)


def _pad_of(tokenizer: Any) -> int | None:
    """Return the token that is only ever padding, if there is one: a network may not learn what it stands for."""
    pad = tokenizer.pad_token_id
    return None if pad in (None, end_of(tokenizer)) else int(pad)


def _fit(
    job: _Job, models: tuple[Any, Any], text: tuple[Blocks, Masking | None], state: TrainingState | None
) -> tuple[tuple[int, float], ...]:
    """Train a model, with its teacher or None, on a text; return the curve, from the first step on."""
    settings, trainer, (model, teacher) = job.settings, job.trainer, models
    end = 1.0 if trainer.schedule == "constant" else 0.0
    schedule = Schedule(num_steps=settings.num_steps, start=1.0, end=end, warmup=trainer.warmup)
    data = BlockData(
        model,
        text[0],
        num_steps=settings.num_steps,
        batch_size=trainer.batch_size,
        seed=settings.seed,
        masking=text[1],
        num_steps_done=0 if state is None else state.step,
    )
    if teacher is None:
        module = LanguageModule(model, trainer, schedule, seed=settings.seed, start=state)
    else:
        require_one_vocabulary(model, teacher)
        hear(teacher, data, text, settings=settings, path=job.kept.path(TEACHER))
        module = taught_module(model, teacher, trainer, schedule, settings=settings, start=state)
    fit_quietly(
        module,
        data,
        accelerator=trainer.accelerator,
        seed=settings.seed,
        logger=TellingLogger("model", 0, job.tell),
        callbacks=_callbacks(job),
        autocast=trainer.precision,
    )
    return tuple(module.curve)


def _callbacks(job: _Job) -> list[pl.Callback]:
    settings, kept = job.settings, job.kept
    keeping = keep_at(settings.kept_steps, kept.path(CHECKPOINTS), job.tokenizer, state_file=kept.path(STATE))
    if not settings.keep_zeros:
        return [keeping]
    # Of where training began, also when it goes on: what became zero since then is free to move.
    masks = zero_masks(load_language_model(folder_of(str(settings.start))))
    if not masks:
        raise ConfigError(f"No weight layer of start={settings.start} holds a zero: leave out keep_zeros, or prune it.")
    return [KeepZeros(masks), keeping]
