"""Advice on shards, slices and batches of requests for a deployment's needs, with its page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.errors import ConfigError
from fairsisa.report.content import Fact
from fairsisa.report.planning import PlanningReport, write_plan
from fairsisa.report.planning_plots import candidate_name, size_words
from fairsisa.report.rows import records
from fairsisa.runs.directory import Run
from fairsisa.runs.keeping import slice_sizes
from fairsisa.runs.planning import measured_speed
from fairsisa.settings import SimulationSettings, TrainerSettings, plain
from fairsisa.sisa.advice import Needs, advise, amount, kept_within, limits
from fairsisa.sisa.budget import slice_epochs
from fairsisa.sisa.simulation import beta_risks, compare_batches_in, deal_examples, group_risks, pareto_risks
from fairsisa.tables import TRAIN

BATCH_SIZES = (1, 2, 5, 10, 50, 100)
MEASURED = ("num_examples", "bytes_per_checkpoint", "examples_per_second", "max_epochs")
LIMIT_SETTINGS = {
    "storage_bytes": "simulate.max_bytes",
    "delay_days": "simulate.max_delay_days",
    "core_seconds_per_day": "execution.num_workers",
}


@dataclass(frozen=True, eq=False)
class Advised:
    """The answer to a simulation.

    `settings` are those asked for, with what was read from a run filled in; `measured` names what that was.
    `content` holds the tables; `shortfalls` says, when no candidate is feasible, which limit binds and by how much the
    nearest candidate misses it. `page` and `numbers` are plan.html and plan.json.
    """

    settings: SimulationSettings
    measured: tuple[str, ...]
    content: PlanningReport
    shortfalls: tuple[str, ...]
    page: Path
    numbers: Path


def advise_partition(
    settings: SimulationSettings,
    *,
    root: Path,
    run: Run | None = None,
    num_workers: int = 1,
    command: str | None = None,
) -> Advised:
    """Try out every candidate for the given needs, write the page, and return what was found.

    What the settings leave open is read from `run`; nothing in it changes. `num_workers` shards are trained at a time,
    each by one core. The page goes to `settings.out`, else to a folder under `root`/plans named by a digest of all
    that decides the answer; nothing else is written. `command` is what a person typed, for the page.

    Raises:
        ConfigError: when a number that only a person or a run can know is missing, or no candidate can be tried.
        RunError: when the run is not trained.
    """
    asked, settings = settings, complete_settings(settings, run)
    risks = request_risks(settings, run)
    needs = _needs(settings, num_workers)
    table = advise(
        needs,
        shards=settings.shards,
        slices=settings.slices,
        windows=settings.windows,
        risks=risks,
        strategy=settings.strategy,
        num_trials=settings.num_trials,
        seed=settings.seed,
    ).table
    order = nearest_first(table, needs)
    first = records(order)[0]
    measured = tuple(name for name in MEASURED if run and getattr(asked, name) is None)
    content = PlanningReport(
        title=f"{needs.requests_per_day:g} requests a day, {needs.num_examples:,} examples",
        candidates=order,
        batches=_batches(first, settings, needs, risks),
        batches_of=_words_for_batches(first, settings.distribution),
        facts=_facts(settings, num_workers, run, measured),
        settings={"simulate": plain(settings), "run": str(run.directory) if run else None, "num_workers": num_workers},
        commands=(command,) if command else (),
    )
    named = root.expanduser() / "plans" / _digest(content.settings, risks)
    page, numbers = write_plan(Path(settings.out).expanduser() if settings.out else named, content)
    return Advised(settings, measured, content, shortfalls(order, needs), page, numbers)


def complete_settings(settings: SimulationSettings, run: Run | None) -> SimulationSettings:
    """Return settings with nothing left open: what is None is read from the run, where one is given.

    Raises:
        ConfigError: naming what is missing.
        RunError: when the run is not trained.
    """
    open_names = [name for name in MEASURED if getattr(settings, name) is None]
    found: dict[str, Any] = measured_needs(run) if run else {"max_epochs": TrainerSettings().max_epochs}
    filled: dict[str, Any] = {name: found.get(name) for name in open_names}
    settings = replace(settings, **filled)
    missing = [name for name in ("requests_per_day", *MEASURED) if getattr(settings, name) is None]
    if missing:
        cure = "" if run else " A trained run, run=..., tells all of these but simulate.requests_per_day."
        if run and missing != ["requests_per_day"]:
            cure = f" {run.directory} has no record of its speed."
        raise ConfigError(f"Set {', '.join(f'simulate.{name}=...' for name in missing)}: only you can know.{cure}")
    return replace(settings, risks=settings.risks or ("run" if run else "pareto"))


def measured_needs(run: Run) -> dict[str, Any]:
    """Return what a run tells: examples, bytes of its largest checkpoint, examples a second of one core, epochs e'.

    Of a budget that is not compute-matched, e' is the compute-matched one of the same total work.

    Raises:
        RunError: when the run is not trained.
    """
    steps = {name for names in run.ensemble.checkpoints.values() for name in names}
    trainer, num_slices = run.settings.trainer, run.settings.partition.num_slices
    epochs = trainer.max_epochs
    if trainer.budget != "compute_matched":
        planned = np.asarray(slice_epochs(trainer, num_slices))
        epochs = float((planned * np.arange(1, num_slices + 1)).sum() / num_slices)
    return {
        "num_examples": int(slice_sizes(run).sum()),
        "bytes_per_checkpoint": max(run.store.manifest(name).num_bytes for name in steps),
        "examples_per_second": measured_speed(run),
        "max_epochs": epochs,
    }


def request_risks(settings: SimulationSettings, run: Run | None) -> np.ndarray | None:
    """Return each example's share of requests, in [0, 1], shape (num_examples,); None when all are equal.

    `settings` are complete.

    Raises:
        ConfigError: when the run's examples have no risks, or more or fewer of them than `num_examples`.
    """
    num_examples = settings.num_examples or 0
    if settings.distribution == "uniform":
        return None
    if settings.distribution == "group_skewed":
        return group_risks(num_examples, share=settings.group_share, weight=settings.group_weight)
    if settings.risks == "pareto":
        return pareto_risks(num_examples, index=settings.pareto_index)
    if settings.risks == "beta":
        return beta_risks(num_examples, shape=settings.beta_shape)
    return _run_risks(run, num_examples)


def nearest_first(candidates: pd.DataFrame, needs: Needs) -> pd.DataFrame:
    """Return candidates with the feasible first, in the order they have, then the others by how far they miss.

    How far: how many times the allowed is needed of what is most exceeded; of equal ones, of all that is exceeded.
    """
    over = _overshoot(candidates, needs).clip(lower=1.0)
    miss = pd.DataFrame({"within": candidates["feasible"], "most": over.max(axis=1), "total": over.sum(axis=1)})
    order = np.lexsort((miss["total"], miss["most"], ~miss["within"].astype(bool)))
    return candidates.iloc[order].reset_index(drop=True)


def shortfalls(candidates: pd.DataFrame, needs: Needs) -> tuple[str, ...]:
    """Say which limits no candidate meets, and by how much the nearest candidate misses; nothing if one is feasible."""
    if candidates["feasible"].any():
        return ()
    over = _overshoot(candidates, needs)
    told = [
        f"{LIMIT_SETTINGS[column]} binds: every candidate needs at least {amount(candidates[column].min())} {unit}, "
        f"{over[column].min():.3g} times the {amount(most)} allowed."
        for column, most, unit in limits(needs)
        if over[column].min() > 1
    ]
    if not told:
        told = ["Every limit is met by some candidate, but no candidate meets all at once."]
    row = records(nearest_first(candidates, needs))[0]
    excess = (f"{amount(row[column] - most)} {unit}" for column, most, unit in limits(needs) if row[column] > most)
    return (*told, f"The nearest, {candidate_name(row)}, {row['reason']}: {' and '.join(excess)} too much.")


def _overshoot(candidates: pd.DataFrame, needs: Needs) -> pd.DataFrame:
    """Return how many times the allowed each candidate needs, a column a limit."""
    return pd.DataFrame({column: candidates[column] / most for column, most, _ in limits(needs)})


def _needs(settings: SimulationSettings, num_workers: int) -> Needs:
    given = ("num_examples", "requests_per_day", "examples_per_second", "bytes_per_checkpoint", "max_delay_days")
    values = {name: getattr(settings, name) for name in (*given, "max_bytes", "max_epochs")}
    return Needs(**values, num_cores=num_workers)


def _batches(
    first: Mapping[str, Any], settings: SimulationSettings, needs: Needs, risks: np.ndarray | None
) -> pd.DataFrame:
    """Return `compare_batches_in` for one candidate."""
    world = deal_examples(
        needs.num_examples,
        num_shards=int(first["num_shards"]),
        num_slices=int(first["num_slices"]),
        risks=risks,
        strategy=settings.strategy,
        seed=settings.seed,
    )
    askable = needs.num_examples if risks is None else int(np.count_nonzero(risks))
    return compare_batches_in(
        world,
        batch_sizes=[size for size in BATCH_SIZES if 2 * size <= askable],
        max_epochs=needs.max_epochs,
        kept=kept_within(world, needs),
        num_trials=settings.num_trials,
        seed=settings.seed,
    )


def _words_for_batches(first: Mapping[str, Any], distribution: str) -> str:
    kept, cells = first["num_checkpoints"], first["num_shards"] * first["num_slices"]
    room = "" if kept == cells else f", {kept} of {cells} checkpoints kept in trials, all in closed form"
    return f"{candidate_name(dict(first)).rsplit(', ', 1)[0]}, {distribution.replace('_', '-')} requests{room}"


def _run_risks(run: Run | None, num_examples: int) -> np.ndarray:
    if run is None:
        raise ConfigError("simulate.risks=run reads the risks of a run: set run=..., or simulate.risks=pareto or beta.")
    frame = run.examples.frame
    if "risk" not in frame.columns:
        raise ConfigError(
            f"The examples of {run.directory} have no column 'risk': set simulate.risks=pareto or beta instead."
        )
    risks = frame.loc[frame["split"] == TRAIN, "risk"].to_numpy(np.float64)
    if len(risks) != num_examples:
        raise ConfigError(
            f"{run.directory} knows the risks of {len(risks):,} training examples, but simulate.num_examples="
            f"{num_examples} was asked for: leave that out, or set simulate.risks=pareto or beta."
        )
    return np.asarray(risks)


def _facts(
    settings: SimulationSettings, num_workers: int, run: Run | None, measured: tuple[str, ...]
) -> tuple[Fact, ...]:
    def source(name: str) -> str:
        return f"measured in {run.directory}" if run and name in measured else "as given"

    room = "no bound" if settings.max_bytes is None else size_words(settings.max_bytes)
    return (
        Fact("Requests a day", f"{settings.requests_per_day:g}", settings.distribution.replace("_", "-")),
        Fact("Training examples", f"{settings.num_examples:,}", source("num_examples")),
        Fact("One core trains", f"{settings.examples_per_second:,.4g} a second", source("examples_per_second")),
        Fact("One checkpoint", size_words(settings.bytes_per_checkpoint or 0), source("bytes_per_checkpoint")),
        Fact("Epochs e'", f"{settings.max_epochs:g}", f"compute-matched over slices, {source('max_epochs')}"),
        Fact("A request may wait", f"{settings.max_delay_days:g} days", "to the end of its execution"),
        Fact("Room for checkpoints", room),
        Fact("Shards trained at a time", f"{num_workers}"),
    )


def _digest(settings: Mapping[str, Any], risks: np.ndarray | None) -> str:
    simulated = {key: value for key, value in settings["simulate"].items() if key != "out"}
    decided = json.dumps({**settings, "simulate": simulated}, sort_keys=True).encode()
    return hashlib.sha256(decided + (b"" if risks is None else risks.tobytes())).hexdigest()[:8]
