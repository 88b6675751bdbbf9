"""From what a person asks to a request in the ledger."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fairsisa.errors import RequestError
from fairsisa.runs.directory import LEDGER, Run
from fairsisa.settings import PathSettings, RequestSettings
from fairsisa.sisa.condition import select_examples
from fairsisa.sisa.ledger import Ledger
from fairsisa.tables import Examples

SHOWN = 5
KEYS = "~/.config/fairsisa/keys"


@dataclass(frozen=True)
class Named:
    """The examples and subjects that a person named: those the run holds, and those it does not.

    `earlier` are the requests that already named some of the rest.
    """

    example_ids: frozenset[str]
    subject_ids: frozenset[str]
    unknown: tuple[str, ...]
    earlier: tuple[str, ...]


def keys_folder(paths: PathSettings) -> Path:
    """Return the folder of ledger keys: `paths.keys`, else FAIRSISA_KEYS, else one in the home directory."""
    return Path(paths.keys or os.environ.get("FAIRSISA_KEYS") or KEYS).expanduser()


def begin_ledger(run: Run, keys: Path) -> Ledger:
    """Return the run's ledger, begun now unless it exists."""
    return Ledger.begin(run.path(LEDGER), keys)


def receive_request(run: Run, ledger: Ledger, request: RequestSettings) -> tuple[str, ...]:
    """Write a request into the ledger; return its id, or those of earlier requests that named the same.

    Once this returns, the request is on the disk. The run need not be locked: requests are received while others are
    executed.

    Raises:
        RequestError: when the request names nothing, or what the run does not hold (unless `unknown` is "skip").
    """
    named = find_named(run.examples, ledger, request)
    if named.unknown and request.unknown == "error":
        shown = ", ".join(map(repr, named.unknown[:SHOWN]))
        more = f" and {len(named.unknown) - SHOWN} more" if len(named.unknown) > SHOWN else ""
        raise RequestError(
            f"{run.directory} holds no {shown}{more}: correct the request, or pass over them with request.unknown=skip."
        )
    if not named.example_ids:
        if named.earlier:
            return named.earlier
        raise RequestError(f"The request names no example of {run.directory}: nothing was received.")
    received = ledger.receive(
        named.example_ids,
        subject_ids=named.subject_ids,
        reason=request.reason,
        num_skipped=len(named.unknown),
    )
    return (received.request_id,)


def find_named(examples: Examples, ledger: Ledger | None, request: RequestSettings) -> Named:
    """Return what a request names.

    Raises:
        RequestError: when it names nothing at all, its file cannot be read, or its condition is not understood.
    """
    ids, subjects = set(request.ids), set(request.subjects)
    if request.file is not None:
        ids |= _ids_of(Path(request.file).expanduser())
    if not ids and not subjects and request.where is None:
        raise RequestError("Name whom to forget: request.ids, request.subjects, request.file or request.where.")
    frame = examples.frame
    chosen = frame["example_id"].isin(ids) | frame["subject_id"].isin(subjects)
    found_ids = set(frame.loc[chosen, "example_id"])
    lost = (ids - found_ids, subjects - set(frame.loc[chosen, "subject_id"]))
    if request.where is not None:
        found_ids |= set(frame.loc[select_examples(examples, request.where), "example_id"])
    earlier = _earlier(ledger, *lost)
    return Named(
        example_ids=frozenset(found_ids),
        subject_ids=frozenset(subjects - lost[1]),
        unknown=tuple(sorted(name for names in lost for name in names - earlier.keys())),
        earlier=tuple(sorted(set(earlier.values()))),
    )


def _earlier(ledger: Ledger | None, ids: Collection[str], subjects: Collection[str]) -> dict[str, str]:
    return {} if ledger is None else ledger.forgotten(ids) | ledger.subject_requests(subjects)


def _ids_of(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"Cannot read request.file={path}: {error}; expected a text file of ids, one a line."
        ) from error
    ids = {line.strip() for line in lines if line.strip()}
    if not ids:
        raise RequestError(f"Expected ids in request.file={path}, one a line; it holds none.")
    return ids
