"""Files that a user fetches by hand, for no checksum of them was published."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fairsisa.bias.benchmark import Files
from fairsisa.errors import ChecksumError, DataError

CHECKSUM_SUFFIX = ".sha256"


@dataclass(frozen=True)
class HandFile:
    """A file without a published checksum: `path` in the data folder, `url` where it comes from."""

    path: str
    url: str


def read_by_hand(files: Files, source: HandFile) -> str:
    """Return the text of a file that the user put in place; it is never downloaded.

    It is sought in the data folder, or in the cache where there is none. A user who knows its SHA-256 writes it beside
    the file, as `<name>.sha256` (what `sha256sum` prints); the content is then held to it.

    Raises:
        DataError: when the file is not there; the message names its address and its place.
        ChecksumError: when its content is not what the user's checksum says.
    """
    path = (files.root if files.root is not None else files.cache) / source.path
    if not path.is_file():
        raise DataError(
            f"Expected {path}; no such file. No checksum of it was published, so it is not downloaded: fetch "
            f"{source.url} yourself and put it there (and its SHA-256 beside it, in {path.name}{CHECKSUM_SUFFIX}, "
            "to have it checked)."
        )
    content = path.read_bytes()
    beside = path.with_name(f"{path.name}{CHECKSUM_SUFFIX}")
    if beside.is_file():
        expected, found = beside.read_text(encoding="utf-8").split()[:1], hashlib.sha256(content).hexdigest()
        if expected != [found]:
            raise ChecksumError(f"{path}: expected content with sha256:{''.join(expected)}, got sha256:{found}.")
    return content.decode("utf-8-sig")
