"""The plan of one constituent: its slices in order, and the name that each slice's checkpoint will have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fairsisa.lineage import Lineage, derive_seed, slice_digest
from fairsisa.models.base import Base
from fairsisa.settings import ModelSettings, TrainerSettings, plain
from fairsisa.sisa.budget import learning_rate_window, presentations, slice_epochs

TRAINING_VERSION = 1
"""Raised whenever a change of code changes the bits that training gives; it is part of every checkpoint's name."""


@dataclass(frozen=True)
class Chain:
    """All that decides one constituent, and where its checkpoints go.

    `blocks` holds, for each slice, the example ids in training order, in one block or more; a frozen encoder's
    features are kept by the block, so that constituents that share blocks share features. `contents` gives each id's
    content digest. `trainer` is resolved: accelerator and precision are not "auto". `base` is None for a tabular model.
    `store` is the location of the store. The last `num_added` slices came after the budget was planned.
    """

    constituent: str
    blocks: tuple[tuple[tuple[str, ...], ...], ...]
    contents: Mapping[str, str]
    model: ModelSettings
    trainer: TrainerSettings
    base: Base | None
    num_classes: int
    seed: int
    store: str
    num_added: int = 0

    @cached_property
    def slices(self) -> tuple[tuple[str, ...], ...]:
        """The example ids of each slice, in training order."""
        return tuple(tuple(example for block in blocks for example in block) for blocks in self.blocks)

    @property
    def init_seed(self) -> int:
        """The seed of this constituent's random initial weights."""
        return derive_seed(self.seed, "init", self.constituent)

    @property
    def reads_features(self) -> bool:
        """Whether a frozen encoder's features stand between the texts and what trains."""
        return self.base is not None and self.model.trains == "head"


@dataclass(frozen=True)
class Stage:
    """One slice of a chain as it will be trained: after it, a checkpoint of the name `lineage.name` exists."""

    index: int
    lineage: Lineage
    num_presentations: int
    window: tuple[float, float]
    seed: int


def plan_stages(chain: Chain) -> tuple[Stage, ...]:
    """Return the stages of `chain`; nothing on disk is read.

    A name covers the parent's name, this slice's ids and contents in order, the base, every setting that training
    reads, and the seed; so it changes when, and only when, the slice or one before it would be trained differently.
    """
    num_planned = len(chain.slices) - chain.num_added
    epochs = slice_epochs(chain.trainer, num_planned, chain.num_added)
    shown = presentations(epochs, [len(ids) for ids in chain.slices])
    stages: list[Stage] = []
    for index, ids in enumerate(chain.slices):
        window = learning_rate_window(chain.trainer, num_planned, index)
        seed = derive_seed(chain.seed, "slice", chain.constituent, index)
        parents: tuple[str, ...] = (stages[-1].lineage.name,) if stages else ()
        if chain.reads_features:
            parents += tuple(block_lineage(chain, block).name for block in chain.blocks[index] if block)
        lineage = Lineage(
            kind="checkpoint",
            parents=parents,
            examples=ids,
            contents=slice_digest(ids, [chain.contents[example] for example in ids]),
            inputs=() if chain.base is None else (chain.base.digest,),
            settings=_settings(chain) | {"slice": index, "seed": seed, "presentations": shown[index], "window": window},
        )
        stages.append(Stage(index, lineage, shown[index], window, seed))
    return tuple(stages)


def block_lineage(chain: Chain, block: tuple[str, ...]) -> Lineage:
    """Return the lineage of the frozen encoder's features of one of the chain's own blocks."""
    return features_lineage(chain, block, [chain.contents[example] for example in block])


def features_lineage(chain: Chain, ids: Sequence[str], contents: Sequence[str]) -> Lineage:
    """Return the lineage of the frozen encoder's features of the given examples, in that order."""
    if chain.base is None:
        raise ValueError("Expected a chain with a base model; a tabular model's features are its inputs.")
    return Lineage(
        kind="features",
        parents=(),
        examples=tuple(ids),
        contents=slice_digest(ids, contents),
        inputs=(chain.base.digest,),
        settings={"version": TRAINING_VERSION, "model": _encoder_settings(chain), "trainer": _numerics(chain)},
    )


def predictions_lineage(chain: Chain, checkpoint: str, ids: Sequence[str], contents: Sequence[str]) -> Lineage:
    """Return the lineage of a checkpoint's scores on the given examples, in that order."""
    return Lineage(
        kind="predictions",
        parents=(checkpoint,),
        examples=tuple(ids),
        contents=slice_digest(ids, contents),
        inputs=(),
        settings={"version": TRAINING_VERSION, "trainer": _numerics(chain)},
    )


def _settings(chain: Chain) -> dict[str, Any]:
    trainer = plain(chain.trainer)
    for name in ("max_epochs", "budget", "slice_epochs", "schedule", "log_every_n_steps"):
        trainer.pop(name)  # these act through `presentations` and `window`, which are in the name
    return {
        "version": TRAINING_VERSION,
        "constituent": chain.constituent,
        "init_seed": chain.init_seed,
        "num_classes": chain.num_classes,
        "model": plain(chain.model) | {"base": None},
        "trainer": trainer,
    }


def _encoder_settings(chain: Chain) -> dict[str, Any]:
    settings = plain(chain.model)
    return {name: settings[name] for name in ("architecture", "shape", "max_length")}


def _numerics(chain: Chain) -> dict[str, Any]:
    trainer = plain(chain.trainer)
    return {name: trainer[name] for name in ("accelerator", "precision", "threads")}
