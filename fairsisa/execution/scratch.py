"""A private folder for what travels between machines, there only while tasks run."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairsisa.errors import TrainingError
from fairsisa.execution.journal import LEASH

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def private_folder(scratch: Path) -> Iterator[Path]:
    """Make the folder `scratch`, which only its owner may enter, and delete it at the end, whatever way that comes.

    What is written there is unpickled by another process, and holds examples.

    Raises:
        TrainingError: when others could put files there, or what stands there is not a leftover of ours.
    """
    clear_leftovers(scratch)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    parent = scratch.parent.stat()
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
        raise TrainingError(
            f"Expected {scratch.parent} to be closed to others, who could put files into what jobs read; it has mode "
            f"{stat.S_IMODE(parent.st_mode):o}: chmod o-w {scratch.parent}."
        )
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        _delete(scratch)


def clear_leftovers(scratch: Path) -> None:
    """Delete what a killed command left in `scratch`, and give jobs of it that still run the time to notice.

    Raises:
        TrainingError: when what stands there was not made by `private_folder`.
    """
    try:
        found = scratch.lstat()
    except FileNotFoundError:
        return
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & OTHERS_MAY_WRITE
    if not ours:
        raise TrainingError(
            f"Expected {scratch} to be a folder that only you may write, left by an earlier command; it is not: "
            "look into it, and remove it."
        )
    _delete(scratch)
    time.sleep(2 * LEASH)


def _delete(folder: Path) -> None:
    for _ in range(9):
        try:
            shutil.rmtree(folder)
            return
        except OSError:  # a job on its way out still held or wrote a file
            time.sleep(LEASH)
    shutil.rmtree(folder)
