"""The verb `frontier`: what each strategy pays in accuracy for how much fairness, over a grid of tolerances."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fairsisa.errors import ConfigError, DataError, SolverError
from fairsisa.execution import Report
from fairsisa.fairness.strategies.aggregate import AggregateThenPostprocess
from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.fairness.strategies.decisions import one_hot
from fairsisa.fairness.strategies.frontier import sweep
from fairsisa.fairness.strategies.inputs import Inputs, read_groups
from fairsisa.fairness.strategies.names import STRATEGIES
from fairsisa.intervals import Bootstrap
from fairsisa.report.content import Fact
from fairsisa.report.frontier import SWEEP, FrontierReport, write_frontier
from fairsisa.runs.directory import Ensemble, Run
from fairsisa.runs.evaluating import are_reports_current, measure_run, record_reports, require_votes, with_predictions
from fairsisa.runs.fitting import Votes, check_groups_asked, known_groups, new_postprocessor, read_votes, words_of
from fairsisa.runs.postprocessing import require_whole
from fairsisa.settings import ExecutionSettings, FrontierSettings, PostprocessSettings, one_of, plain
from fairsisa.sisa.ensemble import read_predictions
from fairsisa.store.durable import explained
from fairsisa.tables import CALIBRATION, TEST

AGGREGATIONS = ("majority_vote", "mean_score")
UNPROCESSED = "unprocessed"
Progress = Callable[[str, int, int], None]
"""Told what is swept next, how many are done, and how many there are."""


def nothing_to_tell(what: str, done: int, total: int) -> None:
    """Hear of progress and do nothing."""


def frontier_run(
    run: Run,
    settings: FrontierSettings,
    *,
    execution: ExecutionSettings,
    on_event: Report,
    on_progress: Progress = nothing_to_tell,
) -> FrontierReport:
    """Sweep the first criterion's tolerance over all strategies, fitted on calibration and measured on the test split.

    Beside them stand what no tolerance changes: the aggregated decisions as they are, the single models of the run's
    baselines, and thresholds without a criterion. A strategy that does not apply is left out and named. Leaves
    frontier.html and frontier.csv in the run; serves nothing.

    Raises:
        ConfigError: for a strategy, criterion or sensitive feature that the run does not have, naming the nearest.
        DataError: when no strategy applies.
        RunError: when the run is not trained, has nothing to measure, is served without some constituents, or another
            command is at work.
    """
    run.require_trained()
    check_groups_asked(settings.criterion, settings.sensitive_feature, run.examples)
    for name in settings.strategies:
        one_of("strategies", name, STRATEGIES)
    if not are_reports_current(run):
        measure_run(run, execution=execution, on_event=on_event)
    with run.locked():
        require_whole(run)
        require_votes(run)
        ensemble = with_predictions(run, execution, on_event)
        trial = _Trial(run, ensemble, settings, on_progress)
        content = _content(trial)
        with explained(f"write the frontier of {run.directory}"):
            write_frontier(run.directory, content)
        record_reports(run)
    return content


class AsVoted(AggregateThenPostprocess):
    """The aggregated decision, changed by nobody: the baseline that a rule is held against."""

    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return one_hot(self._original(inputs), inputs.num_classes), np.zeros(len(inputs), dtype=bool)


@dataclass(frozen=True, eq=False)
class _Trial:
    """What every sweep of one frontier shares."""

    run: Run
    ensemble: Ensemble
    settings: FrontierSettings
    on_progress: Progress

    @property
    def bootstrap(self) -> Bootstrap:
        chosen = self.run.settings.evaluation
        return Bootstrap(chosen.num_replicates, chosen.level, self.run.settings.seed)

    @property
    def rule(self) -> PostprocessSettings:
        """The settings that strategies share; the first tolerance is swept."""
        own = self.settings
        shared = plain(PostprocessSettings()).keys() & plain(own).keys()
        return PostprocessSettings(**{name: getattr(own, name) for name in shared})

    def votes(self, split: str, constituents: Sequence[str] | None = None) -> Votes:
        """Return a split's votes where the group is known, or those of some baselines in their place."""
        made = read_votes(self.run, self.ensemble, self.run.examples, split, self.settings.sensitive_feature)
        if constituents is not None:
            names = {name: self.ensemble.predictions[split][name] for name in constituents}
            made = made.said_by(read_predictions(self.run.store, names))
        return known_groups(made)

    def swept(self, name: str, postprocessor: Postprocessor, constituents: Sequence[str] | None = None) -> pd.DataFrame:
        """Return one strategy's rows; a baseline's are the same at every tolerance, so one will do."""
        fit, test = (self.votes(split, constituents) for split in (CALIBRATION, TEST))
        single = isinstance(postprocessor, AsVoted) or name == UNPROCESSED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of small cells and constant rules, strategy by strategy
            return sweep(
                {name: postprocessor},
                self.settings.tolerances[:1] if single else self.settings.tolerances,
                fit=(fit.predictions, fit.labels, fit.groups),
                test=(test.predictions, test.labels, test.groups),
                subject_ids=test.subject_ids,
                fit_subject_ids=fit.subject_ids,
                bootstrap=self.bootstrap,
            )


def _content(trial: _Trial) -> FrontierReport:
    run, settings = trial.run, trial.settings
    baselines = list(_baselines(trial).items())
    strategies, total = settings.strategies or tuple(STRATEGIES), len(baselines)
    tables, left_out = list[pd.DataFrame](), list[str]()
    total += len(strategies)
    for done, name in enumerate(strategies):
        trial.on_progress(name, done, total)
        try:
            tables.append(trial.swept(name, _strategy(trial, name)))
        except (ConfigError, DataError, SolverError) as error:
            left_out.append(f"{name} is left out: {error}")
    if all((table["strategy"] == UNPROCESSED).all() for table in tables):
        raise DataError(f"No strategy applies. {left_out[0] if left_out else 'Name one that has a tolerance.'}")
    singles = []
    for done, (name, (postprocessor, constituents)) in enumerate(baselines, start=len(strategies)):
        trial.on_progress(name, done, total)
        singles.append(trial.swept(name, postprocessor, constituents))
    trial.on_progress("", total, total)
    fit, test = trial.votes(CALIBRATION), trial.votes(TEST)
    return FrontierReport(
        title=f"{run.examples.name}: what fairness costs",
        sweep=pd.concat(tables, ignore_index=True),
        baselines=pd.concat(singles, ignore_index=True)[list(SWEEP)],
        criterion=settings.criterion[0],
        form=settings.form,
        sensitive_features=settings.sensitive_feature,
        num_fit=len(fit.labels),
        num_test=len(test.labels),
        level=trial.bootstrap.level,
        facts=(Fact("Groups", f"{len(read_groups(fit.groups)[1])}", "with calibration examples"),),
        warnings=tuple(left_out),
        settings=plain(settings),
        commands=(" ".join(["fairsisa frontier", f"run={run.directory}", *words_of(settings)]),),
    )


def _strategy(trial: _Trial, name: str) -> Postprocessor:
    seed = trial.run.settings.seed
    settings = PostprocessSettings(**{**vars(trial.rule), "strategy": name})
    return new_postprocessor(settings, seed=seed, classes=trial.run.examples.classes)


def _baselines(trial: _Trial) -> Mapping[str, tuple[Postprocessor, Sequence[str] | None]]:
    """Return what no tolerance changes, each with the baselines whose votes it reads, or None for the ensemble's."""
    rule = trial.rule
    free: dict[str, Any] = {"criterion": rule.criterion, "tolerance": rule.tolerances, "form": rule.form}
    free |= {"small_cells": "ignore", "unknown_group": UNPROCESSED}
    made: dict[str, tuple[Postprocessor, Sequence[str] | None]] = {
        name: (AsVoted(aggregation=name, **free), None) for name in AGGREGATIONS
    }
    for name in trial.ensemble.baselines:
        if all(name in trial.ensemble.predictions[split] for split in (CALIBRATION, TEST)):
            made[name.replace("baseline-", "baseline ")] = (AsVoted(**free), [name])
    return made
