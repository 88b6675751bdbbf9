"""The secret that turns ids into names nobody else can trace back."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fairsisa.errors import LedgerError
from fairsisa.sisa.once import create_once, explained

NUM_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
SECRET = re.compile(rb"[0-9a-f]{%d}\n" % (2 * NUM_BYTES))


@dataclass(frozen=True)
class Key:
    """32 secret bytes; each use has a subkey of its own, HMAC-SHA256 of the use (RFC 2104)."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != NUM_BYTES:
            raise ValueError(f"Expected a secret of {NUM_BYTES} bytes, got {len(self.secret)}.")

    @property
    def fingerprint(self) -> str:
        """What others may know of the key: 64 hexadecimal digits that tell it from any other key."""
        return self._subkey("fingerprint").hex()

    def hide(self, kind: str, identifier: str) -> str:
        """Return the keyed hash of an id, 64 hexadecimal digits; ids of another kind hide under other names."""
        return self.hide_all(kind, (identifier,))[0]

    def hide_all(self, kind: str, identifiers: Iterable[str]) -> list[str]:
        """Return `hide` of each id, in order.

        Raises:
            ValueError: when the kind is empty, or one str came in place of several.
        """
        if not kind or isinstance(identifiers, str):
            raise ValueError("Expected a kind and a collection of ids, got no kind or a single str.")
        subkey = self._subkey(f"hide {kind}")
        return [hmac.digest(subkey, identifier.encode(), "sha256").hex() for identifier in identifiers]

    def sign(self, message: bytes) -> str:
        """Return the signature of a message, 64 hexadecimal digits."""
        return hmac.digest(self._subkey("sign"), message, "sha256").hex()

    def matches(self, message: bytes, signature: str) -> bool:
        """Return whether the signature was made from this message by this key, in constant time."""
        return hmac.compare_digest(self.sign(message).encode(), signature.encode("utf-8", "surrogatepass"))

    def _subkey(self, use: str) -> bytes:
        return hmac.digest(self.secret, f"fairsisa {use} 1".encode(), hashlib.sha256)


def open_key(folder: Path, name: str, *, create: bool) -> Key:
    """Return the key in `<folder>/<name>.key`; make it first where it is missing, if `create`.

    The file has mode 0600, a new folder 0700. The key outlives a power cut once this returns.

    Raises:
        LedgerError: when the key is missing, damaged or readable by others, naming the file and the cure.
        ValueError: when the name is more than letters, digits, "-" and "_".
    """
    path = key_path(folder, name)
    if create:
        with explained(f"look for {path}"):
            missing = not path.exists()
        if missing:
            create_once(path, secrets.token_hex(NUM_BYTES).encode() + b"\n")
    return Key(_read_secret(path))


def key_path(folder: Path, name: str) -> Path:
    """Return where the key of that name lies."""
    if not NAME.fullmatch(name):
        raise ValueError(f"Expected a key's name of letters, digits, '-' and '_', got {name!r}.")
    return folder / f"{name}.key"


def _read_secret(path: Path) -> bytes:
    with explained(f"read {path}"):
        try:
            mode, text = path.stat().st_mode, path.read_bytes()
        except FileNotFoundError:
            raise LedgerError(
                f"Expected a key in {path}, found none: restore that file from a backup. Without it, nobody can tell "
                "which examples the requests in the ledger name."
            ) from None
    if mode & 0o077:
        raise LedgerError(
            f"Expected {path} to be readable by its owner alone, got mode {mode & 0o777:03o}: run `chmod 600 {path}`, "
            "on a file system that has permissions."
        )
    if not SECRET.fullmatch(text):
        raise LedgerError(
            f"Expected {path} to hold {2 * NUM_BYTES} hexadecimal digits and a line end, got {len(text)} bytes that "
            "are something else: restore that file from a backup."
        )
    return bytes.fromhex(text.decode())
