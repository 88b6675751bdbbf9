"""What a task tells while it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something a task tells while it runs.

    `kind` is "slice_started", "metrics", "slice_done", "features_done" or "predicted"; of a student or
    a compressed copy "model_started" and "model_done".
    """

    kind: str
    constituent: str
    slice: int = 0
    step: int = 0
    values: Mapping[str, float | int | str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the event as one line of JSON, without its end."""
        return json.dumps({**dataclasses.asdict(self), "values": dict(self.values)})

    @classmethod
    def from_json(cls, line: str | bytes) -> Event:
        """Return the event that `to_json` made the line of."""
        values: dict[str, Any] = json.loads(line)
        return cls(**values)


Report = Callable[[Event], None]
