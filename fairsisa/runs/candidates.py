"""Models by name, a hub id, a folder, a run or a part of one, as candidates of an evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModel

from fairsisa.bias.candidate import CAUSAL, CLASSIFIER, ENCODER, MASKED, Candidate
from fairsisa.bias.readouts.classes import classify_with
from fairsisa.compression.folders import KINDS, load_model
from fairsisa.errors import ConfigError, ModelError
from fairsisa.models.base import digest_of, folder_of, is_bidirectional, read_config, read_network
from fairsisa.models.device import resolve_accelerator
from fairsisa.models.llama2c import read_llama2c, read_llama2c_tokenizer
from fairsisa.runs.directory import Run
from fairsisa.runs.model_folders import family_of, models_in, short_names, sizes_of, tokenizer_of
from fairsisa.runs.run_candidates import run_candidate
from fairsisa.settings import ScoringSettings
from fairsisa.store import Store

LLAMA2C = ".bin"
PART = ":"
"""What stands between a run's directory and the name of its student or copies."""


@dataclass(frozen=True, eq=False)
class Named:
    """A model that is named and not in memory yet; `store` is where its answers are kept."""

    name: str
    store: Store
    open: Callable[[], Candidate]


def named_models(
    names: Sequence[str], scoring: ScoringSettings, *, store: Store, tokenizer: str | None = None
) -> list[Named]:
    """Return the models that names stand for, each to be opened when its turn comes.

    A name is "minilm", a hub id or a folder of any kind that `compression.folders.load_model` reads, also an encoder
    without a head; a pattern of folders (with "*"); the directory of a pretraining, for its checkpoints; a llama2.c
    checkpoint (.bin) with its tokenizer beside it; a run's directory, for the ensemble as it is served; or
    "<run>:<name>", for a student or compressed copies of it. `store` keeps the answers of what is no run's.

    Raises:
        ConfigError: when there is no name, or two names stand for one model.
        ModelError: when there is none of a name.
    """
    if not names:
        raise ConfigError("Expected a model to ask, got none: set model=<hub id, folder or run>.")
    asked = [each for name in names for each in _named(name)]
    shown = short_names([place for place, _, _ in asked])
    found = []
    for (place, part, given), short in zip(asked, shown, strict=True):
        if part is not None:
            told, run = short + (PART + part if part else ""), Run(place)
            opened = run_candidate(run, told, part or None, threads=scoring.threads)
            found.append(Named(told, run.store, opened))
        else:
            told = given or short
            found.append(Named(told, store, partial(_of_folder, place, told, scoring, tokenizer)))
    repeated = [each.name for number, each in enumerate(found) if each.name in {one.name for one in found[:number]}]
    if repeated:
        raise ConfigError(f"Expected different models, got {repeated[0]} twice: give each once.")
    return found


def _named(name: str) -> list[tuple[Path, str | None, str]]:
    """Return the places that a name stands for, each with the part of a run (None: it is no run) and how to call it."""
    directory, _, part = name.partition(PART)
    if Run(directory).exists:
        return [(Path(directory), part, "")]
    return [(folder, None, "" if _on_disk(name) else name) for folder in _folders(name)]


def _on_disk(name: str) -> bool:
    """Return whether a name is that of a file, a folder or a pattern of these; else it is the hub's, or embedded."""
    return name.startswith((".", "/", "~")) or any(sign in name for sign in "*?[") or Path(name).exists()


def _folders(name: str) -> list[Path]:
    if name.endswith(LLAMA2C) and Path(name).expanduser().is_file():
        return [Path(name).expanduser()]
    path = Path(name).expanduser()
    if any(sign in name for sign in "*?[") and not path.is_dir():
        whole = Path(name).expanduser().absolute()
        matches = sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
        if not matches:
            raise ModelError(f"Expected folders that match {name}; there are none.")
        return [each for folder in matches for each in models_in(folder)]
    return models_in(path) if path.is_dir() else [folder_of(name)]


def _of_folder(folder: Path, name: str, scoring: ScoringSettings, fallback: str | None) -> Candidate:
    """Return the candidate of a folder, or of a llama2.c file, on the device that was asked for."""
    if folder.suffix == LLAMA2C and folder.is_file():
        return _of_llama2c(folder, name, scoring)
    network, tokenizer = _load(folder).to(resolve_accelerator(scoring.accelerator)), tokenizer_of(folder, fallback)
    kind = _kind_of(network)
    made = Candidate(
        name,
        _digest(folder, tokenizer, fallback),
        kind,
        network,
        tokenizer,
        facts=family_of(name, folder) | sizes_of(network, folder),
    )
    if kind != CLASSIFIER:
        return made
    labels = network.config.id2label
    classes = tuple(str(labels[place]) for place in sorted(labels))
    return replace(made, classify=classify_with(network, tokenizer, scoring.max_tokens), classes=classes)


def _load(folder: Path) -> Any:
    """Return the network of a folder; one whose architecture has no head that we know is read as an encoder."""
    config = read_config(folder)
    architecture = (getattr(config, "architectures", None) or [None])[0]
    if any(names.get(config.model_type) == architecture for _, names in KINDS):
        return load_model(folder)
    return read_network(AutoModel, folder, "an encoder", is_new=lambda network, weight: "pooler" in weight)


def _kind_of(network: Any) -> str:
    name = type(network).__name__
    if name.endswith("ForSequenceClassification"):
        return CLASSIFIER
    if name.endswith("ForMaskedLM"):
        return MASKED
    if network.get_output_embeddings() is None:
        return ENCODER
    return MASKED if is_bidirectional(network) else CAUSAL


def _of_llama2c(path: Path, name: str, scoring: ScoringSettings) -> Candidate:
    beside = sorted(path.parent.glob("tok*.bin"))
    if len(beside) != 1:
        raise ModelError(f"Expected one tokenizer (tok*.bin) beside {path}, got {len(beside)}.")
    digest = hashlib.sha256(path.read_bytes() + beside[0].read_bytes()).hexdigest()
    network = read_llama2c(path).to(resolve_accelerator(scoring.accelerator))
    sizes = sizes_of(network, path.parent) | {"bytes_on_disk": path.stat().st_size}
    return Candidate(
        name, digest, CAUSAL, network, read_llama2c_tokenizer(beside[0]), facts=family_of(name, path) | sizes
    )


def _digest(folder: Path, tokenizer: Any, fallback: str | None) -> str:
    """Return the digest of a folder; one without a tokenizer of its own depends on the other's too."""
    own = digest_of(folder)
    if fallback is None:
        return own
    return hashlib.sha256(f"{own}\n{tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()
