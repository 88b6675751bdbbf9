"""A certificate of deletion as a page to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairsisa.report.content import Fact
from fairsisa.report.tables import Cell, Table
from fairsisa.report.words import count, duration, listed
from fairsisa.report.writing import templates, write_whole
from fairsisa.sisa.certificate import Certificate, ConstituentEvidence
from fairsisa.sisa.membership import LEVEL, MembershipAuc

NAME_LENGTH = 16
LEVEL_WORDS = {
    "none": "Nothing was checked afterwards.",
    "lineage": "Checked afterwards: whether an artefact in use descends from a deleted example.",
    "disk": (
        "Checked afterwards: whether an artefact in use descends from a deleted example, and whether a purged file is "
        "still on disk."
    ),
    "replay": (
        "Checked afterwards: whether an artefact in use descends from a deleted example, whether a purged file is "
        "still on disk, and whether training again from scratch without the examples gives the same checkpoints."
    ),
}
STEPS = {"received": "received_at", "published": "published_at", "purged": "purged_at", "attested": "attested_at"}
STEP_WORDS = {
    "received": "the request was written down",
    "published": "models without the examples took over",
    "purged": "what had been made from the examples was deleted from disk",
    "attested": "the result was checked and signed",
}


def write_certificate_page(path: Path, certificate: Certificate) -> Path:
    """Write a certificate as one HTML page that stands alone; return its path.

    No script and no address outside it; a file of that name is replaced in one step. The page is for reading: what
    is signed is the certificate itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown: dict[str, Any] = {"certificate": certificate, "tables": _tables(certificate), "facts": _facts(certificate)}
    shown |= {"headline": headline(certificate), "checked": LEVEL_WORDS[certificate.level]}
    return write_whole(path, templates().get_template("certificate.html.j2").render(shown))


def headline(certificate: Certificate) -> list[str]:
    """Say in a few sentences what was done, what was checked and what is left."""
    held = sum(map(len, certificate.held_by_others.values()))
    purged = sum(len(part.names) for part in certificate.purged)
    return [
        f"{_were(certificate.num_deleted, 'example')} removed{_retrained(certificate)}",
        *([f"{_were(purged, 'artefact')} made from them and deleted from disk."] if purged else []),
        *([_together_sentence(certificate)] if certificate.num_requests > 1 else []),
        *([f"{_were(held, 'artefact')} kept: other runs still claim what was made from the examples."] if held else []),
        LEVEL_WORDS[certificate.level],
        *([_environment_sentence(certificate)] if certificate.constituents else []),
        *([_skipped_sentence(certificate)] if certificate.num_skipped else []),
    ]


def _retrained(certificate: Certificate) -> str:
    them = "it" if certificate.num_deleted == 1 else "them"
    emptied = [part.name for part in certificate.constituents if not part.new]
    if not certificate.constituents:
        return f"; no constituent had learnt from {them}, so none was trained again."
    hit = f"{len(certificate.constituents):,} of {count(certificate.num_constituents, 'constituent')}"
    if not emptied:
        return f"; {hit} had learnt from {them} and started again from before that."
    return f"; {hit} had learnt from {them}; {listed(emptied)} made no new checkpoint."


def _environment_sentence(certificate: Certificate) -> str:
    if certificate.same_environment:
        return (
            "Retraining ran in the numeric environment of the original training, so results are comparable bit by bit."
        )
    return (
        "Retraining ran in another numeric environment than the original training: results are not comparable by bits."
    )


def _together_sentence(certificate: Certificate) -> str:
    return (
        f"{certificate.num_requests:,} requests were executed together: times, costs and deleted artefacts are those "
        "of all of them."
    )


def _skipped_sentence(certificate: Certificate) -> str:
    return f"{_were(certificate.num_skipped, 'example')} asked for but not there, and passed over."


def _facts(certificate: Certificate) -> list[Fact]:
    splits = ", ".join(f"{number:,} {split}" for split, number in certificate.num_examples.items() if number)
    done, planned = certificate.presentations_done, certificate.presentations_planned
    num_bytes = sum(part.num_bytes for part in certificate.purged)
    num_proofs = sum(len(part.absences) for part in certificate.constituents)
    return [
        Fact("Examples removed", f"{certificate.num_deleted:,}", splits),
        Fact(
            "Core time", duration(certificate.core_seconds), f"{done:,} presentations of examples; {planned:,} planned"
        ),
        Fact("Deleted from disk", _bytes(num_bytes), "checkpoints, scores and all else made from the examples"),
        Fact("Proofs of absence", f"{num_proofs:,}", "each was checked when this page was written"),
    ]


def _tables(certificate: Certificate) -> dict[str, Table]:
    """Return the tables by the name under which the template places them; a table without rows is left out."""
    found = {
        "steps": _steps_table(certificate),
        "constituents": _constituents_table(certificate.constituents),
        "checkpoints": _checkpoints_table(certificate.constituents),
        "purged": _purged_table(certificate),
        "purged_names": _names_table(
            "Names of what was deleted", {p.kind: p.names for p in certificate.purged}, "kind"
        ),
        "held": _names_table("Still claimed by other runs", certificate.held_by_others, "owner"),
        "membership": _membership_table(certificate),
        "environment": _values_table("Numeric environment of the retraining", certificate.environment),
        "identity": _values_table("What it refers to", _identity(certificate)),
    }
    return {name: table for name, table in found.items() if table.rows}


def _steps_table(certificate: Certificate) -> Table:
    rows = [
        (Cell(step), Cell(STEP_WORDS[step]), Cell(_time(getattr(certificate, field)))) for step, field in STEPS.items()
    ]
    return Table("The request, step by step (times in UTC)", ("step", "meaning", "time"), tuple(rows), num_text=3)


def _constituents_table(constituents: tuple[ConstituentEvidence, ...]) -> Table:
    columns = ("constituent", "first affected slice", "checkpoints deleted", "checkpoints made", "proofs of absence")
    rows = [
        (
            Cell(part.name),
            Cell(str(part.first_slice)),
            Cell(f"{len(part.old):,}"),
            Cell(f"{len(part.new):,}"),
            Cell(f"{len(part.absences):,}"),
        )
        for part in constituents
    ]
    return Table("Constituents that were trained again; slices count from 0", columns, tuple(rows))


def _checkpoints_table(constituents: tuple[ConstituentEvidence, ...]) -> Table:
    rows = [
        (Cell(part.name), *(Cell(_short(value)) for value in (made.name, made.payload_digest, made.ids_root)))
        for part in constituents
        for made in part.new
    ]
    columns = ("constituent", "checkpoint", "SHA-256 of its bytes", "Merkle root of its ids")
    return Table("Checkpoints that were made", columns, tuple(rows), num_text=4)


def _purged_table(certificate: Certificate) -> Table:
    rows = [
        (Cell(part.kind), Cell(f"{len(part.names):,}"), Cell(_bytes(part.num_bytes))) for part in certificate.purged
    ]
    return Table("Artefacts deleted from disk", ("kind", "number", "size"), tuple(rows))


def _names_table(caption: str, names: Mapping[str, tuple[str, ...]], what: str) -> Table:
    rows = [(Cell(owner), Cell(_short(name))) for owner, held in names.items() for name in held]
    return Table(caption, (what, "artefact"), tuple(rows), num_text=2)


def _membership_table(certificate: Certificate) -> Table:
    report = certificate.membership
    sides = {} if report is None else {"before": report.before, "after": report.after}
    rows = [
        (Cell(side), _auc(found), Cell(f"{found.num_members:,}"), Cell(f"{found.num_nonmembers:,}"))
        for side, found in sides.items()
    ]
    caption = f"Membership attack on the deleted examples, with {100 * LEVEL:.0f} % intervals"
    return Table(caption, ("deletion", "AUC", "deleted examples", "examples never trained on"), tuple(rows))


def _auc(found: MembershipAuc) -> Cell:
    if found.auc is None:
        return Cell("undefined", found.reason)
    return Cell(f"{found.auc:.3f}", f"{found.low:.3f} to {found.high:.3f}")


def _identity(certificate: Certificate) -> dict[str, str | int]:
    return {
        "request": certificate.request_id,
        "reason given": certificate.reason or "none",
        "ledger": certificate.ledger_id,
        "last event of the ledger": certificate.ledger_seq,
        "digest of that event": certificate.ledger_digest,
        "fairsisa": certificate.fairsisa_version,
    }


def _values_table(caption: str, values: Mapping[str, str | int]) -> Table:
    rows = [(Cell(name), Cell(str(value))) for name, value in values.items()]
    return Table(caption, ("name", "value"), tuple(rows), num_text=2)


def _were(number_of: int, noun: str) -> str:
    return f"{count(number_of, noun)} {'was' if number_of == 1 else 'were'}"


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}…"


def _time(moment: str) -> str:
    return moment[:19].replace("T", " ")


def _bytes(number_of: int) -> str:
    """Return a size in the decimal unit that suits it."""
    size, units = float(number_of), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" or size >= 99.95 else f"{size:.1f} {units[0]}"
