"""Files that survive a power cut whole, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fairsisa.errors import StoreError

PARTIAL = ".partial"
CURES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space or raise the quota",
    errno.EROFS: "mount the file system for writing",
    errno.ENOTDIR: "move away the file that stands where a folder should",
    errno.EACCES: "give this user the right to read and write there",
}


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what could not be done, why, and what helps."""
    try:
        yield
    except OSError as error:
        cure = CURES.get(error.errno or 0, "mend that")
        raise StoreError(f"Could not {doing}: {error}; {cure}, then run it again.") from error


@contextmanager
def staged(path: Path, data: bytes) -> Iterator[Path]:
    """Write data to a new hidden file beside `path`, onto the disk; delete the file afterwards unless it was moved."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Move a staged file to its final name, replacing what is there; return once that is on the disk."""
    partial.replace(path)
    _sync(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that, whenever the power fails, the old or the new contents are there in full."""
    make_folder(path.parent)
    with staged(path, data) as partial:
        publish(partial, path)


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they are missing; return once they are on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def delete(paths: Iterable[Path]) -> dict[Path, int]:
    """Delete the files that exist; return their sizes in bytes once that is on the disk."""
    sizes = {}
    for path in paths:
        status = status_of(path)
        if status is not None:
            path.unlink(missing_ok=True)
            sizes[path] = status.st_size
    for folder in {path.parent for path in sizes}:
        _sync(folder)
    return sizes


def files_in(folder: Path) -> list[Path]:
    """Return what a folder holds, in order; nothing where there is no folder."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def status_of(path: Path) -> os.stat_result | None:
    """Return size and times of a file, or None where there is none."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
