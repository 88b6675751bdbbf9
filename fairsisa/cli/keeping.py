"""The verbs of the store: what it holds, and what it need not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairsisa.cli.printing import print_rows, say
from fairsisa.cli.reading import flag, paths_of
from fairsisa.runs.directory import Run
from fairsisa.runs.keeping import retain
from fairsisa.runs.training import store_of
from fairsisa.settings import StorageSettings, plain, settings_from

Config = Mapping[str, Any]


def store_ls(config: Config, overrides: Sequence[str]) -> None:
    """Print the artefacts of a store."""
    store = Run(config["run"]).store if config["run"] else store_of(paths_of(config))
    entries = list(store.records())
    rows = [
        {
            "name": entry.name[:12],
            "kind": entry.kind,
            "examples": f"{entry.num_examples:,}",
            "KiB": f"{entry.num_bytes / 1024:,.1f}" if entry.kept else "dropped",
            "made from": " ".join(parent[:12] for parent in entry.parents),
            "made": entry.created,
        }
        for entry in entries
    ]
    print_rows(rows)
    kept = [entry.num_bytes for entry in entries if entry.kept]
    say(f"{len(kept)} artefacts, {sum(kept) / 2**20:,.1f} MiB in {store.location}")


def store_gc(config: Config, overrides: Sequence[str]) -> None:
    """Apply a retention policy, then delete what no run needs."""
    dry_run, store = flag(config, "dry_run"), store_of(paths_of(config))
    if config["run"]:
        run = Run(config["run"])
        asked = {key: value for key, value in config["store"].items() if value is not None}
        storage = settings_from(StorageSettings, {**plain(run.storage), **asked}, "store")
        store = run.store
        if not dry_run:
            with run.locked():
                dropped = retain(run, storage)
                run.keep(storage)
            say(f"dropped the weights of {len(dropped.names)} checkpoints ({dropped.num_bytes / 2**20:,.1f} MiB)")
    found = store.collect(
        older_than=float(config["older_than"]),
        without_claims=flag(config, "without_claims"),
        dry_run=dry_run,
    )
    verb = "would free" if dry_run else "freed"
    say(
        f"{verb} {len(found.purged.names)} artefacts that no run needs ({found.purged.num_bytes / 2**20:,.1f} MiB), "
        f"{len(found.swept.names)} files of unfinished work ({found.swept.num_bytes / 2**20:,.1f} MiB), and "
        f"{found.shared.num_bytes / 2**20:,.1f} MiB by keeping equal bytes once"
    )
