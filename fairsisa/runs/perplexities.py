"""The verb `perplexity`: how well language models of any kind predict texts, side by side."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fairsisa.compression.folders import load_model
from fairsisa.data.corpus_blocks import Blocks, Masking, encode_blocks
from fairsisa.data.texts import Text, find_text
from fairsisa.errors import ConfigError
from fairsisa.execution.local import computing_threads
from fairsisa.intervals import Bootstrap, summarise, weight_chunks
from fairsisa.models.base import is_bidirectional
from fairsisa.models.device import resolve_accelerator
from fairsisa.models.perplexity import BlockLosses, block_losses, exponential
from fairsisa.models.text_tokenizers import end_of
from fairsisa.report.perplexity import PERPLEXITIES, PerplexityReport, write_perplexity
from fairsisa.runs.directory import Run
from fairsisa.runs.model_folders import family_of, model_names, models_in, sizes_of, tokenizer_of
from fairsisa.runs.pretrained import Pretrained
from fairsisa.runs.training import data_root
from fairsisa.settings import PathSettings, PerplexitySettings, plain
from fairsisa.store.durable import explained

BLOCK_LENGTH, MASK_SHARE = 256, 0.15
Progress = Callable[[str, int, int], None]
"""Told what is measured next, how many are done, and how many there are."""


def nothing_to_tell(what: str, done: int, total: int) -> None:
    """Hear of progress and do nothing."""


@dataclass(frozen=True, eq=False)
class _Reading:
    """A text as one model reads it: models with equal `key` read the same blocks, masked alike."""

    key: tuple[Any, ...]
    blocks: Blocks
    masking: Masking | None


@dataclass(frozen=True, eq=False)
class _Measuring:
    """What all measurements share; `readings` and `first` fill up as models are measured."""

    settings: PerplexitySettings
    texts: Sequence[Text]
    readings: dict[tuple[Any, ...], _Reading] = field(default_factory=dict)
    first: dict[str, tuple[_Reading, BlockLosses]] = field(default_factory=dict)


def perplexity_run(
    directory: Path,
    settings: PerplexitySettings,
    *,
    paths: PathSettings,
    on_progress: Progress = nothing_to_tell,
    command: str | None = None,
) -> PerplexityReport:
    """Measure models on texts, and write perplexity.csv, perplexity.json and perplexity.html into the directory.

    A directory of a pretraining among the models stands for its checkpoints. The first such one also says on which
    texts, in blocks of what length and under which masks to measure, where the settings do not.

    Raises:
        ConfigError: when there is nothing to measure, or a text does not fit a model.
        RunError: when another command is at work on the directory.
        DataError: when a text cannot be found.
        ModelError: when a model or its tokenizer cannot be read.
    """
    folders = [Path(name).expanduser() for name in settings.models]
    kept = next((Pretrained(folder) for folder in folders if Pretrained(folder).exists), None)
    names = settings.corpora or (() if kept is None else kept.settings.held_out)
    if not names:
        raise ConfigError("Set corpora=[<names or paths>]: no model is a pretraining that named held-out texts.")
    root, cache = data_root(paths), Path(paths.cache).expanduser()
    with Run(directory).locked():
        texts = [find_text(name, root=root, cache=cache) for name in names]
        chosen = settings if kept is None else _as_trained(settings, kept)
        every = [each for folder in folders for each in models_in(folder)]
        report = measure_language_models(every, texts, chosen, on_progress=on_progress)
        report = replace(report, settings=plain(settings), commands=() if command is None else (command,))
        with explained(f"write the perplexities to {directory}"):
            write_perplexity(directory, report)
    return report


def measure_pretraining(
    kept: Pretrained,
    texts: Sequence[Text],
    settings: PerplexitySettings,
    *,
    on_progress: Progress = nothing_to_tell,
) -> PerplexityReport:
    """Return the perplexities of a pretraining's checkpoints, in blocks and under masks as it was trained."""
    settings = _as_trained(settings, kept)
    folders = [*kept.checkpoints.values()]
    report = measure_language_models(folders, texts, settings, on_progress=on_progress)
    return replace(report, title=f"{kept.directory.resolve().name}: pretraining")


def measure_language_models(
    folders: Sequence[Path],
    texts: Sequence[Text],
    settings: PerplexitySettings,
    *,
    on_progress: Progress = nothing_to_tell,
) -> PerplexityReport:
    """Return the perplexity, size and speed of each model on each text, and its difference from the first model.

    A loss is the mean negative log-likelihood in nats a token, its standard error that over blocks; the difference is
    paired block by block, with a bootstrap interval over blocks, and left out where two models read the text as other
    tokens. Of the `settings`, `models` and `corpora` are not read.

    Raises:
        ConfigError: when there is no folder, or a text does not fit a model.
        ModelError: when a model or its tokenizer cannot be read, or the model is none of language.
    """
    if not folders:
        raise ConfigError("Expected a model to measure, got none: set models=[<folders>].")
    measuring, rows = _Measuring(settings, texts), list[dict[str, Any]]()
    with computing_threads(settings.threads):
        for done, (name, folder) in enumerate(zip(model_names(folders), folders, strict=True)):
            on_progress(name, done, len(folders))
            rows += _rows(measuring, name, folder)
    on_progress("", len(folders), len(folders))
    table = pd.DataFrame(rows, columns=list(PERPLEXITIES))
    return PerplexityReport(title="Language models", table=table, level=settings.level)


def masking_of(tokenizer: Any, *, share: float, seed: int) -> Masking:
    """Return how a tokenizer's texts are masked for a masked language model.

    Raises:
        ConfigError: when the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError("A masked language model needs a tokenizer with a mask token: name another tokenizer.")
    special = frozenset(map(int, tokenizer.all_special_ids))
    return Masking(int(tokenizer.mask_token_id), len(tokenizer), special, seed, share)


def _as_trained(settings: PerplexitySettings, kept: Pretrained) -> PerplexitySettings:
    own = kept.settings
    length = own.block_length if settings.block_length is None else settings.block_length
    share = own.mask_share if settings.mask_share is None else settings.mask_share
    return replace(settings, block_length=length, mask_share=share)


def _rows(measuring: _Measuring, name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one model, which is in memory for no longer."""
    settings = measuring.settings
    model: Any = load_model(folder).to(resolve_accelerator(settings.accelerator))
    tokenizer = tokenizer_of(folder, settings.tokenizer)
    facts = {"model": name, **family_of(name, folder), **sizes_of(model, folder)}
    for text in measuring.texts:
        reading = _read(measuring, model, tokenizer, text)
        _warm_up(model, reading, settings.batch_size)
        start = time.perf_counter()
        losses = block_losses(model, reading.blocks, settings.batch_size, masking=reading.masking)
        seconds = time.perf_counter() - start
        speed = len(reading.blocks.tokens) / seconds
        yield {**facts, "corpus": text.name, "tokens_per_second": speed, **_measured(measuring, text, reading, losses)}


def _read(measuring: _Measuring, model: Any, tokenizer: Any, text: Text) -> _Reading:
    """Return a text as the model reads it; models of one tokenizer share the blocks."""
    settings = measuring.settings
    most = getattr(model.config, "max_position_embeddings", None) or BLOCK_LENGTH
    length = min(BLOCK_LENGTH, most) if settings.block_length is None else settings.block_length
    share = MASK_SHARE if settings.mask_share is None else settings.mask_share
    masked = is_bidirectional(model)
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = (digest, text.digest, length, masked)
    if key not in measuring.readings:
        blocks = encode_blocks(text.documents, tokenizer, length=length, end_id=end_of(tokenizer))
        masking = masking_of(tokenizer, share=share, seed=settings.seed) if masked else None
        measuring.readings[key] = _Reading(key, blocks, masking)
    return measuring.readings[key]


def _warm_up(model: Any, reading: _Reading, batch_size: int) -> None:
    """Let the first batch pay for what is made once, so that the speed is that of reading."""
    blocks = reading.blocks
    few = replace(blocks, tokens=blocks.tokens[: batch_size * blocks.length])
    block_losses(model, few, batch_size, masking=reading.masking)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _measured(measuring: _Measuring, text: Text, reading: _Reading, losses: BlockLosses) -> dict[str, Any]:
    value = exponential(losses.mean)
    return {
        "num_blocks": len(losses.totals),
        "num_targets": int(losses.num_targets.sum()),
        "loss": losses.mean,
        "loss_standard_error": losses.standard_error,
        "perplexity": value,
        "perplexity_standard_error": value * losses.standard_error,  # to first order: d exp(x) = exp(x) dx
        **_difference(measuring, text, reading, losses),
    }


def _difference(measuring: _Measuring, text: Text, reading: _Reading, losses: BlockLosses) -> Mapping[str, float]:
    """Return the loss less that of the first model on the same blocks, a token, with its interval."""
    names = ("difference", "difference_low", "difference_high")
    first = measuring.first.setdefault(text.digest, (reading, losses))
    if first[1] is losses or first[0].key != reading.key:
        return dict.fromkeys(names, math.nan)
    settings, by_block = measuring.settings, losses.totals - first[1].totals
    bootstrap = Bootstrap(settings.num_replicates, settings.level, settings.seed)
    drawn = [
        by_block @ weights / (losses.num_targets @ weights)
        for weights in weight_chunks(np.arange(len(by_block)), bootstrap)
    ]
    found = summarise(np.concatenate(drawn), settings.level)
    return dict(zip(names, (float(found[key]) for key in ("value", "low", "high")), strict=True))
