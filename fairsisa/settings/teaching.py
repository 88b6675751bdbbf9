"""How a language model learns from a larger one while it is trained on a text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fairsisa.errors import ConfigError
from fairsisa.settings.checks import in_range, one_of

LOSSES = ("soft", "hard", "hidden", "attention")
KEEPS = ("alternate", "first")


@dataclass(frozen=True)
class TeachingSettings:
    """From which language model another one learns, by which losses, and from which of its layers it begins.

    `teacher` is a folder or hub id; None means there is none, and nothing else here may be set. With `num_layers` the
    student begins as these layers of the teacher (`keep` "alternate" or "first"). `soft`, `hard`, `hidden` and
    `attention` weigh the losses of `compression.distilling`, `temperature` softens the soft targets. With
    `teacher_outputs` "live" the teacher runs beside the student; with "stored" it speaks once, and what it said is
    kept as float16 in the run's directory: for a small vocabulary, and no hidden states or attention maps.
    """

    teacher: str | None = None
    num_layers: int | None = None
    keep: str = "alternate"
    soft: float = 1.0
    hard: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = 1.0
    teacher_outputs: str = "live"

    def __post_init__(self) -> None:
        one_of("keep", self.keep, KEEPS)
        one_of("teacher_outputs", self.teacher_outputs, ("live", "stored"))
        if self.num_layers is not None:
            in_range("num_layers", self.num_layers, low=1)
        for name in LOSSES:
            in_range(name, getattr(self, name), low=0.0)
        in_range("temperature", self.temperature, above=0.0)
        if not any(getattr(self, name) for name in LOSSES):
            raise ConfigError(f"Expected one of {', '.join(LOSSES)} to be above 0, got 0 for each.")
        if self.teacher_outputs == "stored" and (self.hidden or self.attention):
            raise ConfigError(
                "What is stored of a teacher holds no hidden states and no attention maps: set hidden=0 and "
                "attention=0, or teacher_outputs=live."
            )
        if self.teacher is None:
            self._require_none()

    def _require_none(self) -> None:
        for each in fields(TeachingSettings):
            value: Any = getattr(self, each.name)
            if value != each.default:
                raise ConfigError(f"{each.name}={value} is about a teacher: set teacher=<folder or hub id> too.")
