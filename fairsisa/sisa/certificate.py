"""Signed evidence of what was done about one unlearning request."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from fairsisa.errors import VerificationError
from fairsisa.lineage import canonical_json
from fairsisa.sisa.membership import MembershipReport
from fairsisa.sisa.merkle import AbsenceProof, absence_holds

FORMAT = "fairsisa certificate 1"
VERIFICATION_LEVELS = ("none", "lineage", "disk", "replay")
DIGEST = re.compile(r"[0-9a-f]{64}")
LIMITS = (
    "It is evidence that a procedure was carried out: constituents were trained again without the examples, and what "
    "had been made from them was deleted. That a model has forgotten cannot be proven from its parameters alone "
    "(Thudi et al. 2022).",
    "It speaks of what was trained here. What a pre-trained base model learnt before, from the same people or others, "
    "is not covered.",
    "Exactness holds for requests that do not depend on what the models published. Where people ask for deletion "
    "because of a model's outputs, who was deleted may still show in the models (Gupta et al. 2021).",
    "Backups, copies that were exported, and logs that were sent to a server are beyond its reach.",
    "The signature is an HMAC: it proves origin only to those who hold the key, and each of them could have made it.",
)


class Signer(Protocol):
    """Who signs; `fairsisa.sisa.keys.Key` is one."""

    @property
    def fingerprint(self) -> str:
        """What tells this signer from others, without its secret."""

    def sign(self, message: bytes) -> str:
        """Return the signature of a message."""

    def matches(self, message: bytes, signature: str) -> bool:
        """Return whether this signer made the signature from this message."""


@dataclass(frozen=True, kw_only=True)
class CheckpointEvidence:
    """A checkpoint that was made: its name, the SHA-256 of its bytes, the Merkle root of all ids behind it, hashed."""

    name: str
    payload_digest: str
    ids_root: str

    def __post_init__(self) -> None:
        _check_digests("a checkpoint's evidence", (self.name, self.payload_digest, self.ids_root))


@dataclass(frozen=True, kw_only=True)
class Absence:
    """One deleted example, as a keyed hash, and the proof that it is not behind a constituent's last checkpoint."""

    example_hash: str
    proof: AbsenceProof


@dataclass(frozen=True, kw_only=True)
class ConstituentEvidence:
    """What was done to one constituent.

    `first_slice` (from 0) is the first affected one; `old` names the checkpoints from there on that are gone, `new`
    those that took their place, in slice order; none where no example was left to train on. `absences` hold against
    the last of `new`.

    Raises:
        ValueError: when a name is not 64 hexadecimal digits, or a proof of absence does not hold.
    """

    name: str
    first_slice: int
    old: tuple[str, ...]
    new: tuple[CheckpointEvidence, ...]
    absences: tuple[Absence, ...] = ()

    def __post_init__(self) -> None:
        _check_counts(self.name, first_slice=self.first_slice)
        _check_digests("old checkpoint names", self.old)
        if self.absences and not self.new:
            raise ValueError(f"Expected a new checkpoint of {self.name} for its proofs of absence, got none.")
        for absence in self.absences:
            if not absence_holds(self.new[-1].ids_root, absence.example_hash, absence.proof):
                raise ValueError(f"A proof of absence does not hold against the last checkpoint of {self.name}.")


@dataclass(frozen=True, kw_only=True)
class PurgedKind:
    """The artefacts of one kind that were deleted from disk, by name, and their bytes together."""

    kind: str
    names: tuple[str, ...]
    num_bytes: int

    def __post_init__(self) -> None:
        _check_counts(f"purged {self.kind}", num_bytes=self.num_bytes)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was done about one unlearning request, and how it was checked; see `LIMITS` for what it cannot say.

    `num_requests` were executed together: costs and purged artefacts are those of all of them, `constituents` those
    that had learnt from this one's examples.

    Times are ISO 8601 in UTC, none before the one that precedes it. `num_examples` counts deleted examples by split,
    `num_skipped` those that were asked for but not there. `example_hashes` may list the keyed hashes of the deleted
    examples. `num_constituents` counts all of the ensemble's. Presentations are examples shown in training, once for
    each epoch; `core_seconds` is the computing time of the training. `held_by_others` names, by owner, artefacts made
    from the examples that other runs still claim. `level` is how it was verified ("none", "lineage", "disk" or
    "replay") and `findings` what that found. `environment` is the numeric environment of the retraining, and
    `same_environment` whether the run was trained in it. `ledger_seq` and `ledger_digest` are the ledger's last event
    that this speaks of. No field holds an example id; `reason` is shown as it was given.

    Raises:
        ValueError: when a field is not of its form.
    """

    request_id: str
    ledger_id: str
    reason: str
    received_at: str
    published_at: str
    purged_at: str
    attested_at: str
    num_examples: Mapping[str, int]
    num_skipped: int
    num_constituents: int
    constituents: tuple[ConstituentEvidence, ...]
    presentations_planned: int
    presentations_done: int
    core_seconds: float
    purged: tuple[PurgedKind, ...]
    held_by_others: Mapping[str, tuple[str, ...]]
    level: str
    findings: tuple[str, ...]
    environment: Mapping[str, str | int]
    same_environment: bool
    ledger_seq: int
    ledger_digest: str
    fairsisa_version: str
    num_requests: int = 1
    example_hashes: tuple[str, ...] = ()
    membership: MembershipReport | None = None
    limits: tuple[str, ...] = LIMITS

    def __post_init__(self) -> None:
        for name in ("num_examples", "held_by_others", "environment"):
            object.__setattr__(self, name, types.MappingProxyType(dict(getattr(self, name))))
        object.__setattr__(self, "core_seconds", float(self.core_seconds))
        numbers = (
            "num_requests",
            "num_skipped",
            "num_constituents",
            "presentations_planned",
            "presentations_done",
            "ledger_seq",
        )
        _check_counts("a certificate", **{name: getattr(self, name) for name in numbers})
        _check_counts("num_examples", **self.num_examples)
        _check_digests("example_hashes", self.example_hashes)
        _check_digests("ledger_digest", (self.ledger_digest,))
        _check_order(self.received_at, self.published_at, self.purged_at, self.attested_at)
        if self.level not in VERIFICATION_LEVELS:
            raise ValueError(f"Expected a level of {', '.join(VERIFICATION_LEVELS)}, got {self.level!r}.")
        if not 0.0 <= self.core_seconds < float("inf"):
            raise ValueError(f"Expected core_seconds to be finite and from 0, got {self.core_seconds}.")
        if len(self.constituents) > self.num_constituents:
            raise ValueError(f"Expected at most {self.num_constituents} constituents, got {len(self.constituents)}.")

    @property
    def num_deleted(self) -> int:
        """How many examples were deleted, over all splits."""
        return sum(self.num_examples.values())


def encode(certificate: Certificate, signer: Signer) -> bytes:
    """Return the certificate as signed, canonical JSON; the signature covers every other byte of it.

    Raises:
        ValueError: when a text in it is not valid Unicode.
    """
    body = _plain(certificate) | {"format": FORMAT, "key": signer.fingerprint}
    return canonical_json(body | {"signature": signer.sign(_message(body))}, "certificate")


def decode(text: bytes, signer: Signer) -> Certificate:
    """Return the certificate that `encode` wrote.

    Raises:
        VerificationError: when a byte of it was changed, another key signed it, or it is no such certificate.
    """
    body = _parsed(text)
    signature, key = body.pop("signature"), body["key"]
    if key != signer.fingerprint:
        raise VerificationError(f"Another key signed the certificate: expected key {signer.fingerprint}, got {key!r}.")
    if not isinstance(signature, str) or not signer.matches(_message(body), signature):
        raise VerificationError("The certificate's signature does not match what it says: it was changed.")
    fields = {name: value for name, value in body.items() if name not in ("format", "key")}
    try:
        certificate = _read(Certificate, fields, "certificate")
    except ValueError as error:
        raise VerificationError(f"The certificate is signed but not of its form. {error}") from error
    return typing.cast(Certificate, certificate)


def _message(body: Mapping[str, Any]) -> bytes:
    """Return the bytes to sign; the format before them keeps signatures for other uses of the key apart."""
    return f"{FORMAT}\n".encode() + canonical_json(body, "certificate")


def _parsed(text: bytes) -> dict[str, Any]:
    """Return the fields of a certificate; only the canonical text of each is accepted, so that no byte is free."""
    try:
        body = json.loads(text)
        canonical = canonical_json(body)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"Expected a certificate, got something that is not JSON ({error}).") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT or not {"key", "signature"} <= set(body):
        raise VerificationError(f"Expected a certificate of the format {FORMAT!r} with a signature, got another.")
    if canonical != text:
        raise VerificationError(
            "Expected a certificate as it was written, got one with other spaces, order or repeats."
        )
    return body


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _read(hint: Any, value: Any, where: str) -> Any:
    """Return a JSON value as the type a field declares; ValueError, naming the field, when it is of another."""
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is types.UnionType:
        chosen = type(value) if type(value) in inner else next(option for option in inner if option is not type(None))
        return _read(chosen, value, where)
    if hint is AbsenceProof:
        return AbsenceProof.from_dict(value)
    if dataclasses.is_dataclass(origin) and isinstance(value, dict):
        return _read_fields(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {name: _read(inner[1], item, f"{where}[{name!r}]") for name, item in value.items()}
    if type(value) is origin:
        return value
    raise ValueError(f"Expected {where} to be {getattr(origin, '__name__', origin)}, got {type(value).__name__}.")


def _read_fields(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if set(values) != set(hints):
        odd = ", ".join(sorted(set(values) ^ set(hints)))
        raise ValueError(
            f"Expected {where} to hold the fields of {kind.__name__}; these are missing or too many: {odd}."
        )
    return kind(**{name: _read(hint, values[name], f"{where}.{name}") for name, hint in hints.items()})


def _check_digests(what: str, values: Iterable[str]) -> None:
    for value in values:
        if not isinstance(value, str) or not DIGEST.fullmatch(value):
            raise ValueError(f"Expected {what} to be 64 hexadecimal digits, got something else.")


def _check_counts(what: str, **counts: int) -> None:
    for name, value in counts.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"Expected {name} of {what} to be a whole number from 0, got {value!r}.")


def _check_order(*times: str) -> None:
    moments = []
    for time in times:
        try:
            moments.append(datetime.fromisoformat(time))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Expected times in ISO 8601, got {time!r}.") from error
        if moments[-1].utcoffset() != timedelta(0):
            raise ValueError(f"Expected times in UTC, such as 2026-01-31T12:00:00+00:00, got {time!r}.")
    if moments != sorted(moments):
        raise ValueError(f"Expected received, published, purged and attested in that order, got {', '.join(times)}.")
