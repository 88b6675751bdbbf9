"""Events in a file, for tasks that have no pipe to their coordinator."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairsisa.execution.events import Event, Report

LEASH = 1.0
"""Seconds between two looks at whether a journal is still there."""


def write_to(journal: Path) -> Report:
    """Return a report that appends each event to `journal`, which its coordinator has made, in one write.

    Raises:
        FileNotFoundError: from the report, when the coordinator has ended and taken the journal with it.
    """

    def report(event: Event) -> None:
        line = f"{event.to_json()}\n".encode()
        descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND)  # opened anew: a shared disk shows what is closed
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    return report


def read_from(journal: Path, offset: int) -> tuple[list[Event], int]:
    """Return the events whose lines are whole after byte `offset`, and the offset that they end at."""
    with journal.open("rb") as file:
        file.seek(offset)
        whole, _, _ = file.read().rpartition(b"\n")
    lines = whole.splitlines()
    return [Event.from_json(line) for line in lines], offset + len(whole) + bool(whole)


@contextmanager
def ending_with(journal: Path) -> Iterator[None]:
    """End this process, at once, if `journal` vanishes during the body: nobody waits for what it makes any more."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LEASH):
            if not journal.exists():
                os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
