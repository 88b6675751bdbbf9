"""The evidence of finished requests: checked, signed, and written beside the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fairsisa
from fairsisa.errors import VerificationError
from fairsisa.models.device import numeric_environment
from fairsisa.report.certificate import write_certificate_page
from fairsisa.runs.directory import Run
from fairsisa.runs.making import Workplace
from fairsisa.runs.verifying import CERTIFICATES, Verification, verify_run
from fairsisa.settings import RunSettings
from fairsisa.sisa.certificate import (
    LIMITS,
    Absence,
    Certificate,
    CheckpointEvidence,
    ConstituentEvidence,
    PurgedKind,
    encode,
)
from fairsisa.sisa.ledger import Ledger, LedgerEvent, UnlearningRequest
from fairsisa.sisa.membership import MembershipAuc, MembershipReport
from fairsisa.sisa.merkle import merkle_root, prove_absences
from fairsisa.store.durable import explained

MOST_PROOFS = 100
"""Deleted examples whose absence a certificate proves one by one; the Merkle roots cover all."""
CORPUS = (
    "The corpus that the run was loaded from lies outside it: take the examples out there too, or a new run will "
    "train on them again."
)


@dataclass(frozen=True)
class History:
    """What the ledger says of one request, later attempts added to earlier ones."""

    request: UnlearningRequest
    events: tuple[LedgerEvent, ...]

    @cached_property
    def planned(self) -> dict[str, Any]:
        """The plan: constituents by name, costs and counts; that of the first attempt, which found the examples."""
        plans = [event.detail for event in self.events if event.state == "planned"]
        return dict(next((plan for plan in plans if plan["num_examples"]), plans[0]))

    @property
    def own(self) -> Mapping[str, Any]:
        """This request's part of the plan: how many examples it named, by split, and what had learnt from them."""
        own: Mapping[str, Any] = self.planned["requests"][self.request.request_id]
        return own

    @cached_property
    def made(self) -> dict[str, Mapping[str, Any]]:
        """What was trained, by constituent."""
        found: dict[str, Mapping[str, Any]] = {}
        for event in self.events:
            found |= event.detail.get("constituents", {}) if event.state == "retraining" else {}
        return found

    @cached_property
    def doomed(self) -> list[Mapping[str, Any]]:
        """What was to be deleted, as noted before each purge."""
        return [event.detail["doomed"] for event in self.events if "doomed" in event.detail]

    def time(self, state: str) -> str:
        """When the request last reached a state."""
        return [event.time for event in self.events if event.state == state][-1]

    def seen(self, state: str) -> Mapping[str, Any] | None:
        """What the membership attack saw; None when it was not made, or was interrupted."""
        found = [event.detail.get("membership") for event in self.events if event.state == state]
        return next((detail for detail in reversed(found) if detail), None)


@dataclass(frozen=True)
class Grown:
    """A constituent as it is served: the keyed hashes of all ids behind it, sorted, and each checkpoint's evidence."""

    leaves: tuple[str, ...]
    checkpoints: tuple[CheckpointEvidence, ...]


def attest(place: Workplace, ledger: Ledger, request_ids: Sequence[str], level: str) -> tuple[Path, ...]:
    """Verify the run, and write a signed certificate with its page for each request; return the certificates' paths.

    Raises:
        VerificationError: when something made from forgotten examples is left.
    """
    verification = verify_run(place, ledger, level=level)
    if not verification.passed:
        raise VerificationError(
            f"{len(verification.findings)} findings at level {level} after unlearning, the first: "
            f"{verification.findings[0]} The requests stay open; run `fairsisa unlearn flush` once that is mended."
        )
    run, paths, grown = place.run, [], _grown(place.run, ledger)
    for request_id in request_ids:
        history = History(ledger.request(request_id), ledger.history(request_id))
        certificate = replace(
            _certificate(run, place.settings, ledger, history, verification),
            constituents=tuple(_constituents(history, grown)),
        )
        text = encode(certificate, ledger.key)
        paths.append(run.write(f"{CERTIFICATES}/{request_id}.json", text.decode()))
        with explained(f"write the certificate of {request_id}"):
            write_certificate_page(run.path(CERTIFICATES, f"{request_id}.html"), certificate)
        digest = hashlib.sha256(text).hexdigest()
        ledger.advance([request_id], "attested", {"certificate": digest, "level": level})
    return tuple(paths)


def _certificate(
    run: Run, settings: RunSettings, ledger: Ledger, history: History, verification: Verification
) -> Certificate:
    request, trainer = history.request, settings.trainer
    environment = numeric_environment(trainer.accelerator, trainer.precision, trainer.threads)
    purged_at = history.time("purged")
    return Certificate(
        request_id=request.request_id,
        ledger_id=ledger.ledger_id,
        reason=request.reason,
        received_at=request.received,
        published_at=history.time("published"),
        purged_at=purged_at,
        attested_at=max(datetime.now(UTC).isoformat(timespec="microseconds"), purged_at),
        num_examples=history.own["num_examples"],
        num_skipped=request.num_skipped,
        num_requests=len(history.planned["requests"]),
        num_constituents=settings.partition.num_shards,
        constituents=(),
        presentations_planned=history.planned["presentations"],
        presentations_done=sum(part["presentations"] for part in history.made.values()),
        core_seconds=sum(part["core_seconds"] for part in history.made.values()),
        purged=tuple(_purged(history.doomed)),
        held_by_others=history.doomed[-1]["held_by_others"] if history.doomed else {},
        level=verification.level,
        findings=verification.notes,
        environment=environment,
        same_environment=run.environment["numeric"] == environment,
        ledger_seq=ledger.head.seq,
        ledger_digest=ledger.head.digest,
        fairsisa_version=fairsisa.__version__,
        example_hashes=tuple(sorted(request.example_hashes)),
        membership=_membership(history),
        limits=(*LIMITS, CORPUS),
    )


def _grown(run: Run, ledger: Ledger) -> dict[str, Grown]:
    """Return what every constituent that is served has behind it, hashed once for all requests."""
    found = {}
    for name, steps in run.ensemble.checkpoints.items():
        leaves, evidence = set[str](), []
        for checkpoint in steps:
            manifest = run.store.manifest(checkpoint)
            leaves |= set(ledger.key.hide_all("example", manifest.lineage.examples))
            root = merkle_root(leaves)
            evidence.append(CheckpointEvidence(name=checkpoint, payload_digest=manifest.sha256, ids_root=root))
        found[name] = Grown(tuple(sorted(leaves)), tuple(evidence))
    return found


def _constituents(history: History, grown: Mapping[str, Grown]) -> Iterable[ConstituentEvidence]:
    absent = sorted(history.request.example_hashes)[:MOST_PROOFS]
    for name, part in sorted(history.planned["constituents"].items(), key=_by_number):
        if name not in history.own["constituents"]:
            continue
        first, served = part["first_slice"], grown[name]
        proofs = prove_absences(served.leaves, absent) if served.leaves else ()
        yield ConstituentEvidence(
            name=name,
            first_slice=first,
            old=tuple(part["old"]),
            new=served.checkpoints[first:] if served.leaves else (),
            absences=tuple(Absence(example_hash=h, proof=p) for h, p in zip(absent, proofs, strict=False)),
        )


def _by_number(item: tuple[str, Any]) -> int:
    return int(item[0].removeprefix("shard-"))


def _purged(doomed: Iterable[Mapping[str, Any]]) -> Iterable[PurgedKind]:
    kinds: dict[str, PurgedKind] = {}
    for noted in doomed:
        for kind, names in noted["kinds"].items():
            before = kinds.get(kind, PurgedKind(kind=kind, names=(), num_bytes=0))
            new = tuple(name for name in names if name not in before.names)
            size = noted["sizes"][kind] if new else 0
            kinds[kind] = replace(before, names=(*before.names, *new), num_bytes=before.num_bytes + size)
    return kinds.values()


def _membership(history: History) -> MembershipReport | None:
    before, after = history.seen("planned"), history.seen("retraining")
    if before is None or after is None:
        return None
    return MembershipReport(before=MembershipAuc(**before), after=MembershipAuc(**after))
