from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import VerificationError
from fairsisa.lineage import canonical_json
from fairsisa.sisa.certificate import (
    LIMITS,
    VERIFICATION_LEVELS,
    Absence,
    Certificate,
    CheckpointEvidence,
    ConstituentEvidence,
    PurgedKind,
    decode,
    encode,
)
from fairsisa.sisa.keys import Key
from fairsisa.sisa.membership import membership_report
from fairsisa.sisa.merkle import merkle_root, prove_absence, prove_absences


@dataclass(frozen=True)
class Pen:
    """A signer of the test's own: any object with these three will do."""

    secret: bytes = b"ours"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"known as " + self.secret).hexdigest()[:16]

    def sign(self, message: bytes) -> str:
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()

    def matches(self, message: bytes, signature: str) -> bool:
        return self.sign(message) == signature


PEN = Pen()


def digest_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def make_constituent(number: int, *, num_deleted: int = 3, num_slices: int = 2) -> ConstituentEvidence:
    kept = [digest_of("kept", number, index) for index in range(30)]
    deleted = [digest_of("deleted", number, index) for index in range(num_deleted)]
    roots = [merkle_root(kept[: 15 * (step + 1)]) for step in range(num_slices)]
    return ConstituentEvidence(
        name=f"shard-{number}",
        first_slice=number,
        old=tuple(digest_of("old", number, step) for step in range(num_slices)),
        new=tuple(
            CheckpointEvidence(
                name=digest_of("new", number, step), payload_digest=digest_of("bytes", number, step), ids_root=root
            )
            for step, root in enumerate(roots)
        ),
        absences=tuple(
            Absence(example_hash=leaf, proof=proof)
            for leaf, proof in zip(deleted, prove_absences(kept[: 15 * num_slices], deleted), strict=True)
        ),
    )


def make_certificate(**changes: Any) -> Certificate:
    losses = np.linspace(0.05, 2.0, 40)
    fields: dict[str, Any] = {
        "request_id": digest_of("request"),
        "ledger_id": "5f0f6f3a9d0c4f7b",
        "reason": "Erasure under Art. 17 GDPR",
        "received_at": "2026-11-21T03:00:00.000000+00:00",
        "published_at": "2026-11-21T03:04:10.000000+00:00",
        "purged_at": "2026-11-21T03:04:11.000000+00:00",
        "attested_at": "2026-11-21T03:04:15.500000+00:00",
        "num_examples": {"train": 9, "calibration": 2, "test": 1},
        "num_skipped": 1,
        "num_constituents": 5,
        "constituents": (make_constituent(0), make_constituent(3)),
        "presentations_planned": 5120,
        "presentations_done": 5120,
        "core_seconds": 213.4,
        "purged": (
            PurgedKind(kind="checkpoint", names=tuple(digest_of("gone", n) for n in range(4)), num_bytes=91_000_000),
            PurgedKind(kind="predictions", names=(digest_of("scores"),), num_bytes=40_500),
        ),
        "held_by_others": {},
        "level": "replay",
        "findings": ("No live lineage holds a deleted example.", "No purged file exists."),
        "environment": {"torch": "2.13.0", "device": "x86_64 AVX512", "precision": "bf16", "threads": 1},
        "same_environment": True,
        "ledger_seq": 17,
        "ledger_digest": digest_of("head"),
        "fairsisa_version": "0.1.0",
        "membership": membership_report(
            members_before=losses[:12] / 3,
            nonmembers_before=losses,
            members_after=losses[5:17],
            nonmembers_after=losses,
        ),
    }
    return Certificate(**fields | changes)


CERTIFICATE = make_certificate()
TEXT = encode(CERTIFICATE, PEN)

words = st.text(st.characters(codec="utf-8"), max_size=8)
counts = st.integers(0, 2**53)
digests = st.integers(0, 2**256 - 1).map("{:064x}".format)
variants = st.fixed_dictionaries(
    {},
    optional={
        "request_id": words,
        "reason": words,
        "num_examples": st.dictionaries(words, counts, max_size=3),
        "num_skipped": counts,
        "constituents": st.lists(st.integers(0, 9).map(lambda n: make_constituent(n, num_deleted=n)), max_size=2).map(
            tuple
        ),
        "core_seconds": st.floats(0, 1e9) | counts,
        "purged": st.lists(
            st.builds(PurgedKind, kind=words, names=st.lists(digests, max_size=2).map(tuple), num_bytes=counts),
            max_size=2,
        ).map(tuple),
        "held_by_others": st.dictionaries(words, st.lists(digests, max_size=2).map(tuple), max_size=2),
        "level": st.sampled_from(VERIFICATION_LEVELS),
        "findings": st.lists(words, max_size=2).map(tuple),
        "environment": st.dictionaries(words, words | st.integers(), max_size=3),
        "same_environment": st.booleans(),
        "example_hashes": st.lists(digests, max_size=3).map(tuple),
        "membership": st.none(),
    },
)


@given(variants)
def test_a_certificate_comes_back_as_it_was_written(changes):
    certificate = make_certificate(**changes)
    text = encode(certificate, PEN)
    assert decode(text, PEN) == certificate
    assert encode(decode(text, PEN), PEN) == text
    assert canonical_json(json.loads(text)) == text


def test_the_package_own_key_signs():
    key, other = Key(bytes(32)), Key(bytes([1] * 32))
    assert decode(encode(CERTIFICATE, key), key) == CERTIFICATE
    with pytest.raises(VerificationError, match="Another key signed"):
        decode(encode(CERTIFICATE, key), other)


def test_a_membership_without_a_result_comes_back():
    nothing, some = np.zeros(0), np.ones(3)
    report = membership_report(
        members_before=nothing, nonmembers_before=some, members_after=some, nonmembers_after=nothing
    )
    certificate = make_certificate(membership=report)
    assert decode(encode(certificate, PEN), PEN).membership == report


def test_every_changed_byte_is_refused():
    for position, byte in enumerate(TEXT):
        changed = TEXT[:position] + bytes([byte ^ (1 + position % 255)]) + TEXT[position + 1 :]
        with pytest.raises(
            VerificationError, match=r"not JSON|of the format|Another key|does not match|as it was written"
        ):
            decode(changed, PEN)


@given(st.integers(0, len(TEXT)), st.binary(max_size=3), st.integers(0, 3))
def test_every_cut_and_every_insertion_is_refused(position, added, cut):
    changed = TEXT[:position] + added + TEXT[position + cut :]
    if changed != TEXT:
        with pytest.raises(VerificationError, match=r"Expected|Another|does not match"):
            decode(changed, PEN)


def resigned(**changes: Any) -> bytes:
    """A certificate of another form that our own key signed: what a later version, or a mistake, could make."""
    body = json.loads(TEXT) | changes
    body = {name: value for name, value in body.items() if value != "gone"}
    del body["signature"]
    signature = PEN.sign(b"fairsisa certificate 1\n" + canonical_json(body))
    return canonical_json(body | {"signature": signature})


def test_the_helper_signs_as_the_package_does():
    assert resigned() == TEXT


FIRST = json.loads(TEXT)["constituents"][0]
WRONG_FORMS = [
    ({"reason": "gone"}, "missing or too many: reason"),
    ({"more": 1}, "missing or too many: more"),
    ({"num_skipped": 1.0}, "certificate.num_skipped to be int, got float"),
    ({"num_skipped": True}, "num_skipped to be int, got bool"),
    ({"num_skipped": -1}, "num_skipped of a certificate"),
    ({"same_environment": 1}, "same_environment to be bool"),
    ({"reason": None}, "reason to be str"),
    ({"limits": "none"}, "limits to be tuple, got str"),
    ({"findings": [1]}, r"findings\[0\] to be str"),
    ({"num_examples": [1]}, "num_examples to be Mapping, got list"),
    ({"num_examples": {"train": "9"}}, r"num_examples\['train'\] to be int"),
    ({"environment": {"torch": 1.5}}, r"environment\['torch'\] to be str"),
    ({"membership": {}}, "certificate.membership to hold the fields of MembershipReport"),
    ({"level": "oath"}, "Expected a level"),
    ({"constituents": [FIRST | {"old": ["x"]}]}, "64 hexadecimal digits"),
    ({"constituents": [FIRST | {"new": FIRST["new"][:1]}]}, "does not hold"),
    ({"constituents": [FIRST | {"absences": [{"example_hash": digest_of(1), "proof": 3}]}]}, "AbsenceProof"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_FORMS)
def test_signed_certificates_of_another_form_are_refused(changes, message):
    with pytest.raises(VerificationError, match=message):
        decode(resigned(**changes), PEN)


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"a":NaN}', b'{"a":"\\ud800"}', b"1" * 5000, TEXT + b"\n"],
)
def test_other_files_are_refused(text):
    with pytest.raises(VerificationError, match="Expected a certificate"):
        decode(text, PEN)


def test_another_key_a_later_format_and_odd_signatures_are_refused():
    with pytest.raises(VerificationError, match="Another key signed"):
        decode(TEXT, Pen(b"theirs"))
    with pytest.raises(VerificationError, match="of the format"):
        decode(resigned(format="fairsisa certificate 2"), PEN)
    for odd in (None, 7, "é", ""):
        with pytest.raises(VerificationError, match="does not match"):
            decode(canonical_json(json.loads(TEXT) | {"signature": odd}), PEN)


def test_a_signature_made_for_another_use_of_the_key_does_not_count():
    body = {name: value for name, value in json.loads(TEXT).items() if name != "signature"}
    stolen = PEN.sign(canonical_json(body))
    with pytest.raises(VerificationError, match="does not match"):
        decode(canonical_json(body | {"signature": stolen}), PEN)


def test_it_holds_what_the_guarantee_leaves_out():
    shown = " ".join(json.loads(TEXT)["limits"])
    for part in ("pre-trained base model", "Gupta et al. 2021", "Thudi et al. 2022", "Backups", "HMAC"):
        assert part in shown
    assert CERTIFICATE.limits == LIMITS
    assert CERTIFICATE.num_deleted == 12


def test_values_are_copied_and_frozen():
    counted = {"train": 1}
    certificate = make_certificate(num_examples=counted)
    counted["train"] = 2
    assert certificate.num_examples == {"train": 1}
    with pytest.raises(TypeError, match="does not support item assignment"):
        certificate.num_examples["train"] = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "sworn"}, "Expected a level of none, lineage, disk, replay, got 'sworn'"),
        ({"num_skipped": -1}, "num_skipped of a certificate"),
        ({"num_examples": {"train": 1.0}}, "train of num_examples"),
        ({"core_seconds": float("nan")}, "core_seconds to be finite"),
        ({"core_seconds": -1.0}, "core_seconds to be finite"),
        ({"num_constituents": 1}, "at most 1 constituents, got 2"),
        ({"ledger_digest": "ab"}, "ledger_digest to be 64"),
        ({"example_hashes": ("Jane",)}, "example_hashes to be 64"),
        ({"received_at": "yesterday"}, "ISO 8601"),
        ({"received_at": None}, "ISO 8601"),
        ({"received_at": "2026-11-21T03:00:00"}, "in UTC"),
        ({"received_at": "2026-11-21T03:00:00+02:00"}, "in UTC"),
        ({"received_at": "2027-01-01T00:00:00+00:00"}, "in that order"),
    ],
)
def test_impossible_certificates_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_certificate(**changes)


def test_evidence_with_a_proof_that_does_not_hold_cannot_be_made():
    good = make_constituent(1)
    stranger = Absence(example_hash=digest_of("x"), proof=prove_absence([digest_of("y")], digest_of("x")))
    with pytest.raises(ValueError, match="does not hold against the last checkpoint of shard-1"):
        replace(good, absences=(stranger,))
    with pytest.raises(ValueError, match="Expected a new checkpoint of shard-1"):
        replace(good, new=())
    with pytest.raises(ValueError, match="first_slice of shard-1"):
        replace(good, first_slice=-1)
    with pytest.raises(ValueError, match="old checkpoint names"):
        replace(good, old=("checkpoint",))
    with pytest.raises(ValueError, match="checkpoint's evidence"):
        replace(good.new[0], ids_root="root")
    with pytest.raises(ValueError, match="num_bytes of purged scores"):
        PurgedKind(kind="scores", names=(), num_bytes=-1)
    assert replace(good, new=(), absences=()).new == ()
