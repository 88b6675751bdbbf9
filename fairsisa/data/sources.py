"""Find a corpus's raw file and prove that it is the recorded one."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import secrets
import sys
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fairsisa.errors import ChecksumError, DataError
from fairsisa.settings.checks import THIS_MACHINE

BLOCK_BYTES = 1 << 16
TIMEOUT_SECONDS = 30.0
HEX_DIGITS = {"sha256": range(64, 65), "git": range(8, 41)}

Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class SourceFile:
    """One raw file: where it lies, where it comes from, what it must hold.

    `path` is relative, as laid out in a data folder; a name ending in `.gz` is gunzipped when read, and the same name
    without `.gz` is taken as well. `url` is the public address of the uncompressed file. `checksum` is of the
    uncompressed content: `sha256:<64 hex digits>`, or `git:<8 to 40 hex digits>` for the (start of the) git blob id
    SHA-1("blob <length>" + a zero byte + content), where nothing better was published. `prepare` turns the
    source's bytes into the recorded content, for instance by dropping columns, and leaves the recorded content as it
    is; it runs before the checksum, and before a download is written.
    """

    path: str
    url: str
    checksum: str
    prepare: Callable[[bytes], bytes] | None = None

    def __post_init__(self) -> None:
        algorithm, _, digest = self.checksum.partition(":")
        if len(digest) not in HEX_DIGITS.get(algorithm, ()):
            raise ValueError(f"Expected a checksum sha256:<64 digits> or git:<8 to 40 digits>, got {self.checksum!r}.")

    @property
    def plain_path(self) -> str:
        """The path of the uncompressed file."""
        return self.path.removesuffix(".gz")


def github_url(repository: str, commit: str, path: str) -> str:
    """Return the raw address of one file of a public GitHub repository at one commit."""
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{urllib.parse.quote(path)}"


def locate(
    source: SourceFile,
    *,
    root: Path | None = None,
    cache: Path,
    timeout: float = TIMEOUT_SECONDS,
    report: Report | None = None,
) -> Path:
    """Return the path of a verified file: under `root` if given, else in `cache`, else downloaded into `cache`.

    `report(bytes_so_far, total_bytes)` follows a download (the total is None where the server does not tell); without
    it a terminal shows a bar. A download is written under its name only when complete and verified, so that a failed
    one leaves nothing behind and may be repeated.

    Raises:
        DataError: when the file is missing under `root`, or cannot be downloaded.
        ChecksumError: when the content is not the recorded one.
    """
    return _obtain(source, root, cache, timeout, report)[0]


def read_source(
    source: SourceFile,
    *,
    root: Path | None = None,
    cache: Path,
    timeout: float = TIMEOUT_SECONDS,
    report: Report | None = None,
) -> bytes:
    """Return the verified, uncompressed content of a file; see `locate` for where it is sought and what it raises."""
    return _obtain(source, root, cache, timeout, report)[1]


def _obtain(
    source: SourceFile, root: Path | None, cache: Path, timeout: float, report: Report | None
) -> tuple[Path, bytes]:
    if root is not None:
        path = _existing(source, root)
        if path is None:
            raise DataError(
                f"Expected {root / source.path}; no such file. Put it there, or unset FAIRSISA_DATA to download "
                f"{source.url}"
            )
        return path, _verified(source, _content(path), str(path), f"Replace it by {source.url}")
    path = _existing(source, cache)
    if path is not None:
        return path, _verified(source, _content(path), str(path), "Delete it, then run the command again.")
    path = cache / source.plain_path
    content = _download(source, timeout, report)
    _write_atomically(path, content)
    return path, content


def _existing(source: SourceFile, folder: Path) -> Path | None:
    candidates = (folder / source.path, folder / source.plain_path)
    return next((path for path in candidates if path.is_file()), None)


def _content(path: Path) -> bytes:
    stored = path.read_bytes()
    if path.suffix != ".gz":
        return stored
    try:
        return gzip.decompress(stored)
    except (OSError, EOFError, zlib.error) as error:
        raise ChecksumError(f"{path} is not a whole gzip file ({error}). Replace it by a fresh copy.") from error


def _verified(source: SourceFile, content: bytes, where: str, cure: str) -> bytes:
    """Return the prepared content once its checksum is the recorded one."""
    if source.prepare is not None:
        content = source.prepare(content)
    algorithm, _, expected = source.checksum.partition(":")
    if algorithm == "git":
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        found = hashlib.sha256(content).hexdigest()
    if not found.startswith(expected.lower()):
        raise ChecksumError(f"{where}: expected content with {source.checksum}, got {algorithm}:{found}. {cure}")
    return content


def _download(source: SourceFile, timeout: float, report: Report | None) -> bytes:
    by_hand = f"Connect to the network, or set FAIRSISA_DATA to a folder that holds {source.path}."
    _require_safe(source.url)
    try:
        content = _fetch(source.url, timeout, report)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(f"Cannot download {source.url} ({error}). {by_hand}") from error
    return _verified(source, content, source.url, f"The file has changed at its source. {by_hand}")


def _require_safe(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("https", "file") or (parts.scheme == "http" and parts.hostname in THIS_MACHINE):
        return
    raise DataError(f"Expected an https or file address, got {url}")


def _fetch(url: str, timeout: float, report: Report | None) -> bytes:
    blocks: list[bytes] = []
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(urllib.request.build_opener().open(url, timeout=timeout))
        _require_safe(response.geturl())
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length)
        follow = report if report is not None else stack.enter_context(_progress_bar(url))
        done = 0
        while block := response.read(BLOCK_BYTES):
            blocks.append(block)
            done += len(block)
            follow(done, total)
    if total is not None and done != total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
    return b"".join(blocks)


@contextlib.contextmanager
def _progress_bar(url: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(url.rsplit("/", 1)[-1], total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as stream:
            _write_through(stream, content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_through(stream: BinaryIO, content: bytes) -> None:
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())
