"""The store's files on a local disk, where they survive a power cut."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fairsisa.errors import StoreError
from fairsisa.store.durable import PARTIAL, delete, make_folder, publish, staged
from fairsisa.store.files import Status, link_found

WITHOUT_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK}


@dataclass(frozen=True)
class LocalFiles:
    """The files under a folder; a symbolic link below `root` is a StoreError, wherever it leads."""

    root: Path

    @property
    def location(self) -> str:
        """The absolute path of the folder."""
        return str(self.root)

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        return self._path(key).read_bytes()

    def status(self, key: str) -> Status | None:
        """Return size and signature of a file."""
        found = self._lstat(key)
        return None if found is None else Status(found.st_size, (found.st_ino, found.st_mtime_ns, found.st_size))

    def modified(self, key: str) -> float | None:
        """Return the time of the last write."""
        found = self._lstat(key)
        return None if found is None else found.st_mtime

    def keys(self, folder: str) -> list[str]:
        """Return the keys of all files below a folder."""
        return sorted(str(path.relative_to(self.root)) for path in _walk(self._path(folder)))

    @contextmanager
    def staged(self, key: str, data: bytes) -> Iterator[Callable[[], None]]:
        """Write and sync a hidden file beside the final one; the call moves it there and syncs the folder."""
        path = self._path(key)
        make_folder(path.parent)
        with staged(path, data) as partial:
            yield lambda: publish(partial, path)

    def delete(self, keys: Iterable[str]) -> dict[str, int]:
        """Delete files for good."""
        sizes = delete(map(self._path, keys))
        return {str(path.relative_to(self.root)): size for path, size in sizes.items()}

    def shareable(self, first: str, second: str) -> bool:
        """Return whether the two are different files on one disk."""
        one, other = self._lstat(first), self._lstat(second)
        return one is not None and other is not None and one.st_dev == other.st_dev and one.st_ino != other.st_ino

    def share(self, source: str, target: str) -> bool:
        """Replace `target` by a hard link to `source`; False where the disk has no hard links, or no more of them."""
        path = self._path(target)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
        try:
            os.link(self._path(source), partial)
            publish(partial, path)
        except OSError as error:
            if error.errno in WITHOUT_LINKS:
                return False
            raise
        finally:
            partial.unlink(missing_ok=True)
        return True

    @contextmanager
    def locked(self, patience: float) -> Iterator[None]:
        """Hold the lock of the folder, which ends with the process at the latest."""
        make_folder(self.root)
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=patience)
        except Timeout as error:
            raise StoreError(
                f"Expected to be the only one to change {self.root}; another command has been at it for "
                f"{patience:g} s: wait for it to end, then run this one again."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _path(self, key: str) -> Path:
        self._lstat(key)
        return self.root / key

    def _lstat(self, key: str) -> os.stat_result | None:
        path, found = str(self.root), None
        for part in key.split("/"):
            path = f"{path}/{part}"
            try:
                found = os.lstat(path)  # plain strings: this runs for every question whether an artefact exists
            except FileNotFoundError:
                return None
            if stat.S_ISLNK(found.st_mode):
                raise link_found(path)
        return found


def _walk(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_symlink():
            raise link_found(entry.path)
        if entry.is_dir():
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)
