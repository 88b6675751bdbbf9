"""What a user may ask of compressed models and students, beside the steps themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import in_range, one_of
from fairsisa.settings.fairness import NAME
from fairsisa.settings.steps import Step, read_steps
from fairsisa.settings.training import AGGREGATIONS

OUTDATED = ("rebuild", "stale", "remove")
SCOPES = ("shard", "ensemble")
TAKEN = re.compile("|".join(["ensemble", r"shard-\d+", *AGGREGATIONS]))
"""Names that reports give to the ensemble, to its constituents and to what it decides."""


@dataclass(frozen=True)
class CalibrationSettings:
    """What methods that need it are calibrated on: `num_examples` examples of a split, drawn by a keyed hash of `seed`.

    Of "train", each constituent reads its own shard's examples only; "calibration" is shared by all. A model folder has
    no examples: it reads `num_examples` blocks of `block_length` tokens of `corpus`, a text by name or path.
    """

    split: str = "calibration"
    num_examples: int = 128
    seed: int = 0
    corpus: str | None = None
    block_length: int = 128

    def __post_init__(self) -> None:
        one_of("calibration.split", self.split, ("calibration", "train"))
        in_range("calibration.num_examples", self.num_examples, low=1)
        in_range("calibration.seed", self.seed, low=0)
        in_range("calibration.block_length", self.block_length, low=2)


@dataclass(frozen=True)
class CompressionSettings:
    """How a run's models are compressed.

    `source` is "ensemble" (each of its constituents, compressed alone) or the name of one of the run's students.
    `compression` lists the steps, in order. `name` is that under which the run keeps the result; None makes one of
    source and steps. When what it was made from changes, by a deletion or by added data, it is made anew ("rebuild"),
    taken out of service until it is asked for again ("stale") or taken out of the run ("remove"), as `when_outdated`
    says.
    """

    compression: tuple[Any, ...] = ()
    source: str = "ensemble"
    name: str | None = None
    when_outdated: str = "rebuild"

    def __post_init__(self) -> None:
        one_of("when_outdated", self.when_outdated, OUTDATED)
        check_name(self.name)
        if self.compression:
            read_steps(self.compression)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, checked."""
        return read_steps(self.compression)

    @property
    def chosen_name(self) -> str:
        """The name under which the run keeps the result, such as "ensemble.wanda-2-4.int8_dynamic"."""
        if self.name is not None:
            return self.name
        return file_name(self.source, *(step.label for step in self.steps))


@dataclass(frozen=True)
class DistillationSettings:
    """Which student is made of which teacher, and how.

    `teacher` is "mean_score", "majority_vote", "fair" (the run's post-processor of the name `postprocessor`) or, with
    scope "ensemble", a constituent such as "shard-0". With `scope` "shard" each constituent teaches a student of its
    own on the examples of its shard, so that a deletion touches one student; with "ensemble" there is one student.
    It begins from the run's base, or `start` "teacher": from the constituent that teaches; with `num_layers`, of
    these layers only (`keep` "alternate" or "first"). `soft`, `hard`, `hidden` and `attention` weigh the losses,
    `temperature` softens the soft targets; hidden states and attention need a constituent as teacher.
    `model` and `trainer` hold what is to differ from the run's settings of these names.
    """

    name: str | None = None
    teacher: str = "mean_score"
    postprocessor: str | None = None
    scope: str = "ensemble"
    start: str = "base"
    num_layers: int | None = None
    keep: str = "alternate"
    soft: float = 1.0
    hard: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = 1.0
    model: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    when_outdated: str = "rebuild"

    def __post_init__(self) -> None:
        one_of("when_outdated", self.when_outdated, OUTDATED)
        one_of("scope", self.scope, SCOPES)
        one_of("start", self.start, ("base", "teacher"))
        one_of("keep", self.keep, ("alternate", "first"))
        check_name(self.name)
        if self.num_layers is not None:
            in_range("num_layers", self.num_layers, low=1)
        self._check_losses()
        if (self.teacher == "fair") != (self.postprocessor is not None):
            raise ConfigError("Set teacher=fair and postprocessor=<its name> together, or neither.")
        if self.scope == "shard" and self.teacher != "mean_score":
            raise ConfigError(f"With scope=shard each constituent teaches its own student; leave out {self.teacher=}.")

    @property
    def chosen_name(self) -> str:
        """The name under which the run keeps the student."""
        if self.name is not None:
            return self.name
        depth = () if self.num_layers is None else (f"{self.num_layers}-layers",)
        return file_name("student", self.teacher if self.scope == "ensemble" else "shards", *depth)

    def _check_losses(self) -> None:
        weights = {name: getattr(self, name) for name in ("soft", "hard", "hidden", "attention")}
        for name, weight in weights.items():
            in_range(name, weight, low=0.0)
        if not any(weights.values()):
            raise ConfigError(f"Expected one of {', '.join(weights)} to be above 0, got 0 for each.")
        in_range("temperature", self.temperature, above=0.0)


def check_name(name: str | None) -> None:
    """Raise ConfigError unless a name may be that of a file, and is no word of its own."""
    if name is not None and (not NAME.fullmatch(name) or TAKEN.fullmatch(name)):
        raise ConfigError(
            "Expected name to be letters, digits and _ . + - (at most 120, the first a letter or digit), and not that "
            f"of the ensemble, of a constituent or of an aggregation, got {name!r}."
        )


def file_name(*parts: str) -> str:
    """Return words as one name that a file may have."""
    words = (re.sub(r"[^A-Za-z0-9_.+-]+", "-", part).strip("-") for part in parts)
    return ".".join(words).lstrip("_.+-")[:120]
