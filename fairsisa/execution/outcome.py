"""How a task ended that ran in another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairsisa.execution.events import Report
from fairsisa.execution.local import computing_threads


@dataclass(frozen=True)
class Outcome:
    """How a task ended that was not stopped: with a result, or with an error, which keeps its type on the way back."""

    result: Any = None
    error: Exception | None = None

    def value(self) -> Any:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


def outcome_of(function: Callable[[Any, Report], Any], task: Any, report: Report, threads: int) -> Outcome:
    """Return how `function(task, report)` ends when torch computes with so many threads."""
    with computing_threads(threads):
        try:
            return Outcome(function(task, report))
        except Exception as error:
            return Outcome(error=error)
