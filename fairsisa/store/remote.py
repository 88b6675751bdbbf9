"""The store's files behind a URL, through fsspec."""

from __future__ import annotations

import errno
import importlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fairsisa.errors import StoreError
from fairsisa.store.durable import PARTIAL
from fairsisa.store.files import Status, link_found

URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:[/:]")
PLAIN = re.compile(r"[a-z][a-z0-9+.-]+://(?=/*[^/])[^:?#]*(:[0-9]+)?[^:?#]*")
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}  # a put appears all at once
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "sftp": "paramiko", "ssh": "paramiko"}
PACKAGES |= dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs") | {"hdfs": "pyarrow", "oss": "ossfs", "oci": "ocifs"}
VERSIONS = ("size", "ino", "mtime", "created", "LastModified", "last_modified", "updated", "ETag", "etag", "md5Hash")


def is_url(root: object) -> bool:
    """Return whether a store's root is written like a URL."""
    return URL.match(str(root)) is not None


@dataclass(frozen=True)
class RemoteFiles:
    """The files below a URL of any protocol that fsspec knows; the URL holds no password.

    In a bucket, a file appears whole or not at all; elsewhere it is written beside its place and then moved there.
    Nothing is synced beyond what the service promises, and nothing keeps two commands apart: reading and putting need
    no lock, but only one command at a time may delete, while nobody puts; the coordinator of a run sees to that.
    Deleted is what the service deletes: a bucket that keeps old versions must be told not to.

    Raises:
        StoreError: when the package for the protocol is missing.
        ValueError: when the URL is not plain.
    """

    url: str

    def __post_init__(self) -> None:
        plain = PLAIN.fullmatch(self.url)
        if plain is None or urlsplit(self.url).password is not None:
            scheme = self.url.partition(":")[0]
            raise ValueError(
                f"Expected a URL such as s3://bucket/prefix, without a password or a chain of protocols, got one that "
                f"starts with {scheme!r}: let the service's own configuration or the environment name who you are."
            )
        object.__setattr__(self, "url", self.url.rstrip("/"))
        self._open()

    @property
    def location(self) -> str:
        """The URL."""
        return self.url

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        system, base = self._open()
        with _translated():
            data: bytes = system.cat_file(f"{base}/{key}")
        return data

    def status(self, key: str) -> Status | None:
        """Return size and signature of a file, asked anew each time."""
        info = self._info(key)
        if info is None:
            return None
        versions = tuple(str(info[field]) for field in VERSIONS if info.get(field) is not None)
        return Status(int(info["size"]), versions if len(versions) > 1 else (secrets.token_hex(8),))

    def modified(self, key: str) -> float | None:
        """Return the time of the last write, as the service tells it."""
        system, base = self._open()
        if self._info(key) is None:
            return None
        with _translated():
            return float(system.modified(f"{base}/{key}").timestamp())

    def keys(self, folder: str) -> list[str]:
        """Return the keys of all files below a folder."""
        system, base = self._open()
        with _translated():
            system.invalidate_cache()
            found = _find(system, f"{base}/{folder}") if self._is_whole else list(_walk(system, f"{base}/{folder}"))
        return sorted(path[len(base) + 1 :] for path in found)

    @contextmanager
    def staged(self, key: str, data: bytes) -> Iterator[Callable[[], None]]:
        """Hold the bytes in memory; the call puts them."""
        system, base = self._open()

        def publish() -> None:
            path = f"{base}/{key}"
            with _translated():
                if self._is_whole:
                    system.pipe_file(path, data)
                else:
                    _put_beside(system, path, data)

        yield publish

    def delete(self, keys: Iterable[str]) -> dict[str, int]:
        """Delete files one by one."""
        system, base = self._open()
        sizes = {}
        for key in keys:
            info = self._info(key)
            if info is not None:
                with _translated():
                    system.rm_file(f"{base}/{key}")
                sizes[key] = int(info["size"])
        return sizes

    def shareable(self, first: str, second: str) -> bool:
        """Return False: a service knows no hard links."""
        return False

    def share(self, source: str, target: str) -> bool:
        """Return False: a service knows no hard links."""
        return False

    def locked(self, patience: float) -> AbstractContextManager[None]:
        """Do nothing: the coordinator of a run keeps others away."""
        return nullcontext()

    @property
    def _protocol(self) -> str:
        return self.url.partition("://")[0]

    @property
    def _is_whole(self) -> bool:
        return self._protocol in WHOLE

    def _info(self, key: str) -> dict[str, Any] | None:
        system, base = self._open()
        try:
            with _translated():
                system.invalidate_cache()
                info: dict[str, Any] = system.info(f"{base}/{key}")
        except FileNotFoundError:
            return None
        return None if info["type"] == "directory" else _unlinked(info)

    def _open(self) -> tuple[Any, str]:
        # fsspec remembers what it opened, by process; so a fork gets connections of its own
        try:
            system, base = importlib.import_module("fsspec.core").url_to_fs(self.url)
        except ImportError as error:
            packages = f"fsspec {PACKAGES.get(self._protocol, '')}".rstrip()
            raise StoreError(
                f"Could not open the store {self.url}: {error}; pip install {packages}, then run it again."
            ) from error
        except ValueError as error:
            raise ValueError(f"Expected a URL whose protocol fsspec knows, got {self.url}: {error}.") from error
        return system, base.rstrip("/")


def _put_beside(system: Any, path: str, data: bytes) -> None:
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name}.{secrets.token_hex(8)}{PARTIAL}"
    system.makedirs(folder, exist_ok=True)
    try:
        system.pipe_file(partial, data)
        system.mv(partial, path)
    except BaseException:
        if system.exists(partial):
            system.rm_file(partial)
        raise


def _find(system: Any, folder: str) -> list[str]:
    try:
        return list(system.find(folder))
    except FileNotFoundError:
        return []


def _walk(system: Any, folder: str) -> Iterator[str]:
    # fsspec's own search passes over folders that it cannot read, which would hide artefacts from a deletion
    try:
        found = system.ls(folder, detail=True)
    except FileNotFoundError:
        return
    for info in found:
        if _unlinked(info)["type"] == "directory":
            yield from _walk(system, info["name"])
        else:
            yield info["name"]


def _unlinked(info: dict[str, Any]) -> dict[str, Any]:
    if info.get("islink"):
        raise link_found(info["name"])
    return info


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # each service has exceptions of its own
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
