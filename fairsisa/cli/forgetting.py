"""The verbs that change what a run was trained on: plan, unlearn, flush, add."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairsisa.cli.printing import print_rows, say
from fairsisa.cli.verbs import progress, show_report
from fairsisa.runs.adding import add_examples, load_more
from fairsisa.runs.directory import LEDGER, Run
from fairsisa.runs.planning import Plan, plan_deletion
from fairsisa.runs.requests import find_named, keys_folder
from fairsisa.runs.training import data_root
from fairsisa.runs.unlearning import Outcome, queue_request
from fairsisa.runs.unlearning import flush as flush_requests
from fairsisa.runs.unlearning import unlearn as unlearn_request
from fairsisa.settings import (
    ExecutionSettings,
    PathSettings,
    RequestSettings,
    UnlearningSettings,
    one_of,
    settings_from,
)
from fairsisa.sisa.ledger import Ledger

Config = Mapping[str, Any]


def plan(config: Config, overrides: Sequence[str]) -> None:
    """Print what a deletion would touch and cost."""
    one_of("format", config["format"], ("table", "json"))
    run, keys = Run(config["run"]), keys_folder(_paths(config))
    ledger = Ledger.open(run.path(LEDGER), keys) if run.path(LEDGER).is_file() else None
    named = find_named(run.examples, ledger, _request(config))
    found = plan_deletion(run, named.example_ids)
    if config["format"] == "json":
        say(json.dumps({**found.plain(), "unknown": len(named.unknown)}, indent=1))
        return
    _show_plan(found, run, num_workers=_execution(config).num_workers or 1)
    if named.unknown:
        say(f"{len(named.unknown)} ids or subjects are not in the run.")


def unlearn(config: Config, overrides: Sequence[str]) -> None:
    """Receive a request, and execute it unless it is to wait."""
    run, keys = Run(config["run"]), keys_folder(_paths(config))
    if config["queue"]:
        for request_id in queue_request(run, _request(config), keys=keys):
            say(f"received {request_id}; it waits for `fairsisa unlearn flush run={run.directory}`")
        return
    settings = settings_from(UnlearningSettings, config["unlearning"], "unlearning")
    run.require_trained()
    with progress(run.settings, run.num_slices) as show:
        outcome = unlearn_request(
            run, _request(config), keys=keys, settings=settings, execution=_execution(config), on_event=show
        )
    _show_outcome(outcome, run)


def flush(config: Config, overrides: Sequence[str]) -> None:
    """Execute all requests that wait."""
    run, keys = Run(config["run"]), keys_folder(_paths(config))
    settings = settings_from(UnlearningSettings, config["unlearning"], "unlearning")
    run.require_trained()
    with progress(run.settings, run.num_slices) as show:
        outcome = flush_requests(run, keys=keys, settings=settings, execution=_execution(config), on_event=show)
    _show_outcome(outcome, run)


def add(config: Config, overrides: Sequence[str]) -> None:
    """Train on new examples too."""
    run, paths = Run(config["run"]), _paths(config)
    run.require_trained()
    new = load_more(run, config["data"], root=data_root(paths), cache=Path(paths.cache).expanduser())
    with progress(run.settings, run.num_slices + 1) as show:
        report = add_examples(
            run,
            new,
            keys=keys_folder(paths),
            execution=_execution(config),
            on_event=show,
            evaluate=bool(config["evaluate"]),
        )
    say(f"{len(new):,} new examples; the run has {run.num_slices} slices in every shard.")
    if report is not None:
        show_report(report, run)


def _show_plan(plan: Plan, run: Run, *, num_workers: int) -> None:
    rows = [
        {
            "constituent": part.constituent,
            "loses": f"{part.num_removed:,}",
            "first slice": str(part.first_slice),
            "restarts at": str(part.resume_slice),
            "example-epochs": f"{part.presentations:,}",
            "of the shard": f"{part.presentations / max(1, part.full_presentations):.0%}",
        }
        for part in plan.constituents
    ]
    counts = ", ".join(f"{count:,} {split}" for split, count in plan.num_examples.items()) or "none"
    say(f"{sum(plan.num_examples.values()):,} examples would be forgotten: {counts}.")
    if rows:
        print_rows(rows)
    share = plan.presentations / max(1, plan.full_presentations)
    say(f"Retraining: {plan.presentations:,} example-epochs, {share:.1%} of training the whole ensemble again.")
    core, wall = plan.core_seconds, plan.wall_seconds(num_workers)
    if core is not None and wall is not None:
        say(f"At this run's measured speed: {core:,.1f} core-seconds, {wall:,.1f} s with {num_workers} at a time.")
    say(f"Start-up and {plan.scores:,} scores to be made again come on top.")
    kinds = ", ".join(f"{len(names)} {kind}" for kind, names in plan.doomed.kinds.items()) or "nothing"
    say(f"To be purged: {kinds} ({plan.doomed.num_bytes / 2**20:,.1f} MiB).")
    for owner, names in plan.doomed.held_by_others.items():
        say(f"{len(names)} artefacts made from these examples belong to another run: unlearn them in {owner} too.")
    if plan.stale:
        say(f"To be made again: {', '.join(plan.stale)}.")
    if plan.baselines:
        say(f"Baselines that saw them are purged and not trained again: {', '.join(plan.baselines)}.")


def _show_outcome(outcome: Outcome, run: Run) -> None:
    if not outcome.certificates:
        say("Nothing to do: these requests were attested before." if outcome.request_ids else "No request waits.")
    for path in outcome.certificates:
        say(f"certificate: {path.with_suffix('.html')}")
    if outcome.report is not None:
        show_report(outcome.report, run)


def _paths(config: Config) -> PathSettings:
    return settings_from(PathSettings, config["paths"], "paths")


def _execution(config: Config) -> ExecutionSettings:
    return settings_from(ExecutionSettings, config["execution"], "execution")


def _request(config: Config) -> RequestSettings:
    """Return the request; whole numbers given for ids stand for their digits."""
    asked = dict(config["request"])
    for key in ("ids", "subjects"):
        asked[key] = [str(item) if type(item) is int else item for item in asked[key] or ()]
    return settings_from(RequestSettings, asked, "request")
