"""Files that are written once, for their owner alone, and never replaced."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fairsisa.errors import LedgerError

STALE = 60.0
CURES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space or raise the quota",
    errno.EROFS: "mount the file system for writing",
    errno.EEXIST: "move away the file that stands where a folder should",
    errno.ENOTDIR: "move away the file that stands where a folder should",
    errno.EACCES: "give this user the right to read and write there",
    errno.EPERM: "choose a file system that has permissions and hard links",
    errno.EOPNOTSUPP: "choose a file system that has permissions and hard links",
}


def create_once(path: Path, data: bytes) -> bool:
    """Write a file of mode 0600, whole or not at all; return whether it was written, False when one is there.

    Missing folders are made with mode 0700. When it returns, the file would survive a power cut. Of several
    processes that create the same file at once, one succeeds. What killed ones left of files with the same suffix goes
    once it is older than `STALE` seconds: a younger one may be another process's at work.

    Raises:
        LedgerError: naming the file and the cure, when the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with explained(f"create {path}"):
        _make_folder(path.parent)
        try:
            _write(partial, data)
            _sweep(partial, path.suffix)
            os.link(partial, path)
            created = True
        except FileExistsError:
            created = False
        finally:
            partial.unlink(missing_ok=True)
        _sync(path.parent)
    return created


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an OSError into a LedgerError that says what could not be done, why, and what helps."""
    try:
        yield
    except OSError as error:
        cure = CURES.get(error.errno or 0, "mend that")
        raise LedgerError(f"Could not {doing}: {error}; {cure}, then run it again.") from error


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a path cannot be opened with a mode
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sweep(partial: Path, suffix: str) -> None:
    """Delete old leftovers beside a new file; its time tells the file system's clock, which may not be ours."""
    now = partial.stat().st_mtime
    for left in partial.parent.glob(f".*{suffix}.{'[0-9a-f]' * 16}.partial"):
        with suppress(FileNotFoundError):  # another process was faster
            if now - left.stat().st_mtime > STALE:
                left.unlink()


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
