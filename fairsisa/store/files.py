"""What the store asks of the place where its files lie, whether that is a disk or a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from fairsisa.errors import StoreError


@dataclass(frozen=True)
class Status:
    """The size of a file in bytes, and a value that changes whenever its contents do."""

    num_bytes: int
    signature: tuple[object, ...]


class Files(Protocol):
    """Files under one root, each named by a key such as "objects/ab/name.json"; OSError when the place refuses.

    A file is there with all its bytes or not at all. What a method has done outlasts whatever the place promises to
    outlast: a power cut on a disk, the loss of a machine in a bucket.
    """

    @property
    def location(self) -> str:
        """The absolute path or URL of the root."""

    def read(self, key: str) -> bytes:
        """Return a file's bytes; FileNotFoundError where there is none."""

    def status(self, key: str) -> Status | None:
        """Return what is known of a file without reading it, or None where there is none."""

    def modified(self, key: str) -> float | None:
        """Return when a file was last written, in seconds since the epoch, or None where there is none."""

    def keys(self, folder: str) -> list[str]:
        """Return the keys of all files below a folder, in order; nothing where there is no folder."""

    def staged(self, key: str, data: bytes) -> AbstractContextManager[Callable[[], None]]:
        """Bring bytes close; calling what the context yields makes them the file, else they are dropped at its end."""

    def delete(self, keys: Iterable[str]) -> dict[str, int]:
        """Delete the files that exist, in this order; return their sizes in bytes."""

    def shareable(self, first: str, second: str) -> bool:
        """Return whether two files of equal bytes still take twice the room, and `share` could mend that."""

    def share(self, source: str, target: str) -> bool:
        """Make two files of equal bytes one under two keys; return False where the place knows no such thing."""

    def locked(self, patience: float) -> AbstractContextManager[None]:
        """Keep all others from changing the files; StoreError when that takes more than `patience` seconds."""


def write(files: Files, key: str, data: bytes) -> None:
    """Write a file so that the old or the new contents are there in full at any time."""
    with files.staged(key, data) as publish:
        publish()


def link_found(path: str) -> StoreError:
    """Return the error for a symbolic link, which could lead anywhere."""
    return StoreError(f"{path} is a symbolic link, and the store follows none: replace it by what it names.")
