"""The verbs that show what a deletion left: ledger, verify, doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairsisa.cli.printing import print_rows, say
from fairsisa.cli.reading import execution_of, paths_of
from fairsisa.cli.verbs import progress
from fairsisa.errors import RequestError, RunError, VerificationError
from fairsisa.runs.directory import LEDGER, Run
from fairsisa.runs.doctor import examine
from fairsisa.runs.making import Workplace
from fairsisa.runs.requests import keys_folder
from fairsisa.runs.verifying import verify_run
from fairsisa.settings import one_of
from fairsisa.sisa.certificate import decode
from fairsisa.sisa.ledger import Head, Ledger

Config = Mapping[str, Any]


def ledger(config: Config, overrides: Sequence[str]) -> None:
    """Print the requests, or all events of one, as a table or as JSON."""
    one_of("format", config["format"], ("table", "json"))
    found = _open(config)
    found.check()
    asked = None if config["id"] is None else str(config["id"])
    rows = _requests(found) if asked is None else _events(found, asked)
    if config["format"] == "json":
        say(json.dumps({"ledger": found.ledger_id, "head": asdict(found.head), "rows": rows}, indent=1))
        return
    print_rows([{key: _short(key, value) for key, value in row.items()} for row in rows])
    say(f"{len(rows)} {'requests' if asked is None else 'events'}; the chain is whole, its head is {found.head.seq}.")


def verify(config: Config, overrides: Sequence[str]) -> None:
    """Check that nothing is left, or check a certificate."""
    run, found = Run(config["run"]), _open(config)
    if config["certificate"] is not None:
        _verify_certificate(Path(str(config["certificate"])).expanduser(), found)
        return
    execution = execution_of(config)
    with run.locked("do so later"), progress(run.settings, run.num_slices) as show:
        place = Workplace(run, run.settings, execution, show)
        result = verify_run(place, found, level=str(config["level"]), scope=str(config["scope"]))
    for note in result.notes:
        say(note)
    for finding in result.findings:
        say(f"found: {finding}", error=True)
    if not result.passed:
        raise VerificationError(f"{run.directory} is not clean: {len(result.findings)} findings.")
    replayed = (
        f"; {result.num_compared} checkpoints trained again, all bit for bit equal" if result.num_compared else ""
    )
    say(f"clean at level {result.level}: nothing made from forgotten examples was found{replayed}.")


def doctor(config: Config, overrides: Sequence[str]) -> None:
    """Print what is wrong with a run."""
    run = Run(config["run"])
    if not run.exists:
        raise RunError(f"{run.directory} holds no run: name the folder that `fairsisa train` printed.")
    complaints = examine(run, keys=keys_folder(paths_of(config)))
    rows = [
        {
            "": "problem" if complaint.is_problem else "note",
            "check": complaint.check,
            "what": complaint.what,
            "what helps": complaint.cure,
        }
        for complaint in complaints
    ]
    if rows:
        print_rows(rows)
    problems = sum(complaint.is_problem for complaint in complaints)
    if problems:
        raise RunError(f"{run.directory} has {problems} problem{'s' if problems > 1 else ''}.")
    say(f"{run.directory} is well.")


def _open(config: Config) -> Ledger:
    run, paths = Run(config["run"]), paths_of(config)
    if not run.path(LEDGER).is_file():
        raise RequestError(f"{run.directory} has no ledger: no request was ever received there.")
    return Ledger.open(run.path(LEDGER), keys_folder(paths))


def _requests(found: Ledger) -> list[dict[str, Any]]:
    return [
        {
            "request": request.request_id,
            "state": request.state,
            "examples": len(request.example_hashes),
            "subjects": len(request.subject_hashes),
            "skipped": request.num_skipped,
            "received": request.received,
            "reason": request.reason,
        }
        for request in found.requests()
    ]


def _events(found: Ledger, request: str) -> list[dict[str, Any]]:
    return [
        {
            "seq": event.seq,
            "request": event.request_id,
            "state": event.state,
            "time": event.time,
            "detail": dict(event.detail),
        }
        for event in found.history(request)
    ]


def _short(key: str, value: Any) -> str:
    """Return a value as a table shows it: ids by their first digits, times to the second, details cut."""
    if key == "request":
        return str(value)[:12]
    if key in ("received", "time"):
        return str(value)[:19].replace("T", " ")
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _verify_certificate(path: Path, found: Ledger) -> None:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise VerificationError(f"Cannot read the certificate {path}: {error}.") from error
    certificate = decode(text, found.key)
    found.check([Head(certificate.ledger_seq, certificate.ledger_digest)])
    say(
        f"The certificate of request {certificate.request_id[:12]} is signed by this ledger's key, its proofs of "
        f"absence hold, and the ledger still has what it quotes: {certificate.num_deleted} examples deleted, verified "
        f"at level {certificate.level}."
    )
