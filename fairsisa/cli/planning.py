"""The verb `plan`: what a deletion would touch and cost, or which partition suits a deployment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fairsisa.cli.printing import print_rows, say
from fairsisa.cli.reading import execution_of, paths_of, request_of
from fairsisa.errors import ConfigError
from fairsisa.report.planning import findings, plan_json
from fairsisa.report.planning_plots import size_words
from fairsisa.report.rows import records
from fairsisa.report.words import duration
from fairsisa.runs.advising import Advised, advise_partition
from fairsisa.runs.directory import LEDGER, Run
from fairsisa.runs.planning import Plan, plan_deletion
from fairsisa.runs.requests import find_named, keys_folder
from fairsisa.settings import (
    RequestSettings,
    SimulationSettings,
    one_of,
    settings_from,
)
from fairsisa.sisa.ledger import Ledger

MOST_SHOWN = 12
MOST_OUTSIDE = 4
Config = Mapping[str, Any]


def plan(config: Config, overrides: Sequence[str]) -> None:
    """Print what a deletion would touch and cost, or with `simulate`, which partition is advised."""
    one_of("format", config["format"], ("table", "json"))
    if config["simulate"] is not None:
        _advise(config, overrides)
    elif config["run"] is not None:
        _plan_request(config)
    else:
        raise ConfigError(
            "Set run=..., the run to plan a deletion from, or simulate=uniform, group_skewed or risk_weighted for "
            "advice on a partition; one of them is needed."
        )


def _plan_request(config: Config) -> None:
    paths = paths_of(config)
    run, keys = Run(config["run"]), keys_folder(paths)
    ledger = Ledger.open(run.path(LEDGER), keys) if run.path(LEDGER).is_file() else None
    named = find_named(run.examples, ledger, request_of(config))
    found = plan_deletion(run, named.example_ids)
    if config["format"] == "json":
        say(json.dumps({**found.plain(), "unknown": len(named.unknown)}, indent=1))
        return
    _show_plan(found, run, num_workers=_num_workers(config))
    if named.unknown:
        say(f"{len(named.unknown)} ids or subjects are not in the run.")


def _advise(config: Config, overrides: Sequence[str]) -> None:
    if request_of(config) != RequestSettings():
        raise ConfigError("request.* plans a deletion and simulate=... asks for advice: leave one of them out.")
    advised = advise_partition(
        settings_from(SimulationSettings, config["simulate"], "simulate"),
        root=Path(paths_of(config).root),
        run=None if config["run"] is None else Run(config["run"]),
        num_workers=_num_workers(config),
        command=" ".join(["fairsisa", "plan", *overrides]),
    )
    if config["format"] == "json":
        found = {**plan_json(advised.content), "shortfalls": advised.shortfalls, "page": str(advised.page)}
        say(json.dumps(found, indent=1))
        return
    _show_advice(advised)
    say(f"page: {advised.page}")


def _show_advice(advised: Advised) -> None:
    told, content = findings(advised.content), advised.content
    for sentence in (told[0], *advised.shortfalls) if advised.shortfalls else told:
        say(sentence)
    say("Accuracy is not considered: more shards may cost some, so offer only simulate.shards whose accuracy will do.")
    if advised.measured:
        read = ", ".join(f"{name}={getattr(advised.settings, name):.6g}" for name in advised.measured)
        say(f"Measured in {content.settings['run']}: {read}.")
    print_rows(candidate_rows(content.candidates))
    say(
        f"Example-epochs of executing requests one by one (sequential) and together (batch), the same with slices "
        f"(slicing, combined), in closed form; then Monte Carlo, {content.batches_of}:"
    )
    print_rows(batch_rows(content.batches))


def candidate_rows(candidates: pd.DataFrame) -> list[dict[str, str]]:
    """Return the best candidates to print, and where some are outside the limits, the nearest of them too."""
    within, outside = (candidates[candidates["feasible"] == side] for side in (True, False))
    first = within.head(MOST_SHOWN - min(MOST_OUTSIDE, len(outside)))
    return [
        {
            "shards": f"{row['num_shards']:,}",
            "slices": f"{row['num_slices']:,}",
            "at a time": f"{row['window']:,}",
            "per request": f"{row['example_epochs_per_request']:,.0f}",
            "core time a day": duration(row["core_seconds_per_day"]),
            "delay, days": f"{row['delay_days']:,.3g}",
            "storage": size_words(row["storage_bytes"]),
            "outside the limits": row["reason"],
        }
        for row in records(pd.concat([first, outside.head(MOST_SHOWN - len(first))]))
    ]


def batch_rows(batches: pd.DataFrame) -> list[dict[str, str]]:
    """Return what requests cost by how they are executed, to print: closed forms, then the mean of trials."""
    return [
        {
            "requests": f"{row['num_requests']:,}",
            **{name: f"{row[name]:,.0f}" for name in ("sequential", "batch", "slicing", "combined")},
            "Monte Carlo ± s.e.": f"{row['simulated_cost']:,.0f} ± {row['simulated_error']:,.0f}",
            "speed-up ± s.e.": f"{row['mean']:.2f} ± {row['standard_error']:.2f}",
        }
        for row in records(batches)
    ]


def _num_workers(config: Config) -> int:
    return execution_of(config).num_workers or 1


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
    kinds = ", ".join(f"{len(names)} of kind {kind}" for kind, names in plan.doomed.kinds.items()) or "nothing"
    say(f"To be purged: {kinds} ({plan.doomed.num_bytes / 2**20:,.1f} MiB).")
    for owner, names in plan.doomed.held_by_others.items():
        say(f"{len(names)} artefacts made from these examples belong to another run: unlearn them in {owner} too.")
    if plan.stale:
        say(f"To be made again: {', '.join(plan.stale)}.")
    if plan.baselines:
        say(f"Baselines that saw them are purged and not trained again: {', '.join(plan.baselines)}.")
