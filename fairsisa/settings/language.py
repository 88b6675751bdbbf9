"""What a user may ask of language models: how one is pretrained, and on what they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import in_range, one_of
from fairsisa.settings.teaching import TeachingSettings
from fairsisa.settings.training import TrainerSettings

SMALLEST_VOCABULARY = 258
USUAL_ARCHITECTURE = "gpt2"
UNREAD = ("max_epochs", "budget", "slice_epochs", "optimizer_state")
"""What a trainer is told about slices and epochs: pretraining has neither."""


@dataclass(frozen=True)
class PretrainingSettings(TeachingSettings):
    """Which language model is trained, on which text, for how long, and which checkpoints are kept.

    `corpus` and each of `held_out` is a name or a path, as `data.texts.find_text` takes it. A model of `architecture`
    (a Hugging Face model type: "gpt2", "llama", "gpt_neox" for Pythia, "bert", ...) and `shape` (its config values)
    begins with random weights drawn from `seed`; with `start`, a folder or hub id, training goes on from that model,
    and with `keep_zeros` its weights that are zero stay zero; with `new_head` a start without a head, such as the
    encoder "minilm", gets a new one, drawn from `seed`, and with `trains` "head" nothing else learns. Without either it
    is a "gpt2", unless a teacher says otherwise (`num_layers`). `tokenizer` is a folder or hub id; None means that of
    `teacher` or `start`, or a byte-level BPE of `vocab_size` tokens trained on the corpus. The text is cut into blocks
    of `block_length` tokens; a masked model guesses `mask_share` of them. Checkpoints are kept after each of
    `checkpoint_steps` (0 is the start), or without these at `num_checkpoints` evenly spaced steps; after the last step
    always.
    """

    corpus: str = "tinystories_train"
    held_out: tuple[str, ...] = ("tinystories_held_out",)
    architecture: str | None = None
    shape: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    keep_zeros: bool = False
    new_head: bool = False
    trains: str = "full"
    tokenizer: str | None = None
    vocab_size: int = 2048
    block_length: int = 128
    num_steps: int = 1000
    num_checkpoints: int = 10
    checkpoint_steps: tuple[int, ...] = ()
    mask_share: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("trains", self.trains, ("full", "head"))
        in_range("vocab_size", self.vocab_size, low=SMALLEST_VOCABULARY)
        in_range("block_length", self.block_length, low=2)
        in_range("num_steps", self.num_steps, low=1)
        in_range("num_checkpoints", self.num_checkpoints, low=1)
        in_range("mask_share", self.mask_share, above=0.0, high=1.0)
        in_range("seed", self.seed, low=0, high=2**63 - 1)
        for step in self.checkpoint_steps:
            in_range("checkpoint_steps", step, low=0, high=self.num_steps)
        self._check_beginning()

    @property
    def new_architecture(self) -> str | None:
        """The architecture of a model that begins with random weights; None when it begins with others."""
        if self.start is not None or self.num_layers is not None:
            return None
        return USUAL_ARCHITECTURE if self.architecture is None else self.architecture

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps after which a checkpoint is kept, ascending; the last is `num_steps`."""
        spaced = {max(1, self.num_steps * part // self.num_checkpoints) for part in range(1, self.num_checkpoints + 1)}
        return tuple(sorted({*(self.checkpoint_steps or spaced), self.num_steps}))

    def _check_beginning(self) -> None:
        given = [name for name in ("architecture", "start", "num_layers") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"{' and '.join(given)} each say how the model begins: keep one (architecture=... for random weights, "
                "start=... to go on from a model, num_layers=... for layers of the teacher)."
            )
        if self.teacher is not None and not given:
            raise ConfigError("Set num_layers=..., start=... or architecture=...: how does the student begin?")
        if self.shape and self.new_architecture is None:
            raise ConfigError(f"{given[0]}={getattr(self, given[0])} has its shape already: leave out shape.")
        if self.new_head and self.start is None:
            raise ConfigError("new_head=true needs start=<an encoder>, which is to get a head.")
        if self.keep_zeros and self.start is None:
            raise ConfigError("keep_zeros=true needs start=<a pruned model>, whose zeros are to stay.")


@dataclass(frozen=True)
class PerplexitySettings:
    """Which language models are measured on which texts.

    `models` are folders, of any kind that `compression.folders.load_model` reads, the first being what the others are
    compared with; the directory of a pretraining stands for its checkpoints. `corpora` are names or paths; without
    any, the held-out ones of that pretraining. Blocks have `block_length` tokens (None: as many as in that
    pretraining, else 256, or fewer where a model reads fewer), of which a masked model guesses
    `mask_share`, drawn from `seed` (None: the pretraining's share, or 0.15). `tokenizer`, a folder or hub id, is for
    models whose folders hold none.
    """

    models: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    tokenizer: str | None = None
    block_length: int | None = None
    mask_share: float | None = None
    batch_size: int = 16
    num_replicates: int = 1000
    level: float = 0.95
    accelerator: str = "cpu"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.block_length is not None:
            in_range("block_length", self.block_length, low=2)
        if self.mask_share is not None:
            in_range("mask_share", self.mask_share, above=0.0, high=1.0)
        in_range("batch_size", self.batch_size, low=1)
        in_range("num_replicates", self.num_replicates, low=100, high=100_000)
        in_range("level", self.level, low=0.5, high=0.999)
        in_range("threads", self.threads, low=1)
        in_range("seed", self.seed, low=0)


def check_pretraining_trainer(trainer: TrainerSettings) -> None:
    """Raise ConfigError for what a pretraining does not read of its trainer, where it is not left as it is."""
    default = TrainerSettings()
    for name in UNREAD:
        if getattr(trainer, name) != getattr(default, name):
            raise ConfigError(f"A pretraining takes num_steps steps and has no slices: leave out trainer.{name}.")
