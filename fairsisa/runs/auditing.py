"""What the post-processors that a run serves decide on its test split, and what that does to each group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fairsisa.errors import StaleError
from fairsisa.fairness.derived.hulls import Chain, regions_of
from fairsisa.fairness.derived.joint import count_joint, fits_code, pack_votes
from fairsisa.fairness.derived.thresholds import score_chains
from fairsisa.fairness.predictors import Predictor
from fairsisa.fairness.strategies.audit import audit
from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.fairness.strategies.inputs import read_groups
from fairsisa.intervals import Bootstrap
from fairsisa.report.fair_plots import AttainableRegion
from fairsisa.report.postprocessing import SMALL_CELLS, PostprocessingReport
from fairsisa.runs.directory import Ensemble, Run
from fairsisa.runs.fitting import Votes, calibration_votes, command_of, load_fitted, read_votes, settings_of
from fairsisa.settings import PostprocessSettings, plain
from fairsisa.tables import TEST, Predictions

PREFIX = "fair "
BY_SCORE = ("ScoreThresholdPostprocess", "Unprocessed", "GroupBlindPostprocess")
"""The kinds of post-processor that read scores, not votes."""
ON_EDGE = 1e-9
"""A point this near to a chain lies on it."""


@dataclass(frozen=True, eq=False)
class Decided:
    """A post-processor's keyed decisions on the test split, shape (num_examples,), and their probabilities."""

    name: str
    settings: PostprocessSettings
    fitted: Postprocessor
    votes: Votes
    decisions: np.ndarray
    probabilities: np.ndarray

    @property
    def predictor(self) -> Predictor:
        """The decisions as a predictor named `fair <name>`; it has no scores, since chance is no confidence."""
        return Predictor(PREFIX + self.name, self.decisions)

    def frame(self) -> pd.DataFrame:
        """Return the long table of decisions, as `Predictions.frame` does; scores are P(decision)."""
        ids, scores = self.votes.predictions.example_ids, self.probabilities[:, None, :].astype(np.float32)
        return Predictions(ids, (PREFIX + self.name,), scores).frame().assign(vote=self.decisions)


def in_service(run: Run, ensemble: Ensemble) -> tuple[dict[str, Postprocessor], dict[str, str]]:
    """Return the post-processors that may be used, by name; and why others may not."""
    fitted, idle = dict[str, Postprocessor](), dict[str, str]()
    for name in ensemble.postprocessors:
        try:
            fitted[name] = load_fitted(run, name)
        except StaleError as error:
            idle[name] = str(error)
    return fitted, idle


def decide(run: Run, ensemble: Ensemble, fitted: Mapping[str, Postprocessor]) -> list[Decided]:
    """Return what each post-processor decides on the test split."""
    examples, found = run.examples, []
    for name, postprocessor in fitted.items():
        settings = settings_of(ensemble.postprocessors[name])
        votes = read_votes(run, ensemble, examples, TEST, settings.sensitive_feature)
        given = {"sensitive_features": votes.groups}
        decisions = postprocessor.predict(votes.predictions, **given, example_ids=votes.predictions.example_ids)
        probabilities = postprocessor.predict_proba(votes.predictions, **given)
        decisions = np.asarray(decisions, dtype=np.int64)
        found.append(Decided(name, settings, postprocessor, votes, decisions, probabilities))
    return found


def fair_report(run: Run, made: Decided, bootstrap: Bootstrap) -> PostprocessingReport:
    """Return what the page of a post-processor tells: the promise on calibration, and the test split."""
    votes, settings, fitted = made.votes, made.settings, made.fitted
    examples = run.examples
    audited = audit(
        fitted,
        votes.predictions,
        votes.labels,
        sensitive_features=votes.groups,
        example_ids=votes.predictions.example_ids,
        subject_ids=votes.subject_ids,
        bootstrap=bootstrap,
    )
    calibration = calibration_votes(run, run.ensemble, examples, settings)
    return PostprocessingReport(
        title=f"{examples.name}: {made.name}",
        strategy=settings.strategy,
        sensitive_features=settings.sensitive_feature,
        achieved=fitted.achieved_,
        loss=fitted.loss_,
        solver=settings.solver,
        num_fit=len(calibration.labels),
        num_test=len(votes.labels),
        overall=audited.overall,
        by_group=_by_class(audited.by_group, examples.classes),
        shares=audited.shares,
        small_cells=_small_cells(calibration, examples.classes, settings.min_cell_count),
        choices=getattr(fitted, "choices_", pd.DataFrame()),
        regions=_regions(fitted, calibration) if len(examples.classes) == 2 else (),
        reason=getattr(fitted, "reason_", ""),
        warnings=tuple(fitted.warnings_),
        settings=plain(settings),
        commands=(command_of(run, made.name, settings),),
        costs=(settings.false_positive_cost, settings.false_negative_cost),
        level=bootstrap.level,
    )


def _by_class(by_group: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return rates by group with the class in the rate's name, where there are more than two."""
    if len(classes) == 2:
        return by_group
    names = [classes[int(label)] for label in by_group["class"]]
    return by_group.assign(
        metric=[f"{metric} of {name}" for metric, name in zip(by_group["metric"], names, strict=True)]
    )


def _small_cells(votes: Votes, classes: Sequence[str], least: int) -> pd.DataFrame:
    """Return the cells of group and label with fewer than `least` examples."""
    codes, names = read_groups(votes.groups)
    sizes = np.bincount(codes * len(classes) + votes.labels, minlength=len(names) * len(classes))
    rows = [(names[cell // len(classes)], classes[cell % len(classes)], size) for cell, size in enumerate(sizes)]
    return pd.DataFrame([row for row in rows if row[2] < least], columns=list(SMALL_CELLS))


def _regions(fitted: Postprocessor, votes: Votes) -> tuple[AttainableRegion, ...]:
    """Return what each group's rules of this kind can attain on the fit data; groups of one label have no region."""
    codes, names = read_groups(votes.groups)
    derived = fitted.derive(votes.predictions, sensitive_features=votes.groups)
    found = []
    for group, chain in enumerate(_chains(fitted, votes, codes, len(names))):
        inside, labels = codes == group, votes.labels[codes == group]
        if len(np.unique(labels)) == 2:
            before = _rates(derived.original[inside].astype(np.float64), labels)
            after = _rates(derived.probabilities[inside, 1], labels)
            found.append(AttainableRegion(names[group], chain.points, chain.lower, before, after, _mixed(chain, after)))
    return tuple(found)


def _chains(fitted: Postprocessor, votes: Votes, codes: np.ndarray, num_groups: int) -> Iterable[Chain]:
    """Return each group's upper chain: over thresholds on the mean score, or over patterns (or counts) of votes."""
    predictions, chosen = votes.predictions, getattr(fitted, "best_", fitted)
    if type(chosen).__name__ in BY_SCORE or getattr(chosen, "aggregation", "") == "mean_score":
        scores = predictions.scores[:, :, 1].mean(axis=1, dtype=np.float64)
        return [each.chain for each in score_chains(scores, votes.labels, codes, num_groups=num_groups)]
    patterns = predictions.votes
    states = pack_votes(patterns, 2) if fits_code(patterns.shape[1], 2) else patterns.sum(axis=1)
    return regions_of(count_joint(codes, votes.labels, states, num_groups=num_groups, num_classes=2)).chains


def _rates(chances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the false and true positive rate of chances to decide 1."""
    return np.array([chances[labels == label].mean() for label in (0, 1)])


def _mixed(chain: Chain, point: np.ndarray) -> np.ndarray:
    """Return the ends of the edge of the upper chain that a point lies on, shape (2, 2), or nothing."""
    place = int(np.clip(np.searchsorted(chain.lengths, point.sum(), side="right") - 1, 0, len(chain.steps) - 1))
    ends = chain.points[place : place + 2]
    if np.abs(chain.along(np.array(point.sum())) - point).max() > ON_EDGE:
        return np.empty((0, 2))
    return np.asarray(ends)
