"""Post-processors as artefacts: fitted on a run's calibration votes, and fitted anew when these change."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from fairsisa.errors import ConfigError, DataError, SolverError, StaleError
from fairsisa.fairness.derived.criteria import CRITERIA
from fairsisa.fairness.strategies import load_postprocessor
from fairsisa.fairness.strategies.auto import AutoPostprocess
from fairsisa.fairness.strategies.base import Postprocessor
from fairsisa.fairness.strategies.guards import ConstantRuleWarning, SmallCellWarning
from fairsisa.fairness.strategies.inputs import read_groups
from fairsisa.fairness.strategies.names import STRATEGIES
from fairsisa.lineage import Lineage, canonical_json, example_digests, slice_digest
from fairsisa.runs.directory import Ensemble, Run
from fairsisa.settings import FrontierSettings, PostprocessSettings, nearest, one_of, plain, settings_from
from fairsisa.sisa.ensemble import read_predictions
from fairsisa.store import Store
from fairsisa.tables import CALIBRATION, Examples, Predictions

POSTPROCESSING_VERSION = 1
"""Raised whenever a change of code changes what a fit gives; it is part of every post-processor's name."""
KIND, DOCUMENT = "postprocessor", "document"
REFITTING = "it is being refitted"
SILENT = "no constituent votes on a calibration example any more"
WITHDRAWN = (
    "the calibration examples that are left do not allow it, since a group has lost its last one, or its last one of a "
    "label"
)


@dataclass(frozen=True, eq=False)
class Votes:
    """What a post-processor reads of one split, row by row in table order.

    `labels` are int64, shape (num_examples,); `groups` has a column for each sensitive feature, None where unknown.
    """

    predictions: Predictions
    labels: np.ndarray
    groups: pd.DataFrame
    subject_ids: np.ndarray

    def take(self, kept: np.ndarray) -> Votes:
        """Return the rows where `kept`, shape (num_examples,), is true."""
        made = self.predictions
        ids = tuple(example for example, keep in zip(made.example_ids, kept, strict=True) if keep)
        predictions = Predictions(ids, made.constituents, made.scores[kept])
        return Votes(predictions, self.labels[kept], self.groups[kept], self.subject_ids[kept])

    def said_by(self, predictions: Predictions) -> Votes:
        """Return the same rows with the votes of others, who must speak of the same examples."""
        if predictions.example_ids != self.predictions.example_ids:
            raise DataError("Expected predictions of the same examples in the same order, got others.")
        return Votes(predictions, self.labels, self.groups, self.subject_ids)


def read_votes(run: Run, ensemble: Ensemble, examples: Examples, split: str, features: tuple[str, ...]) -> Votes:
    """Return the votes of a split's voting constituents, beside labels, groups and subjects.

    Raises:
        DataError: when no constituent votes on the split, or it has no example.
        StaleError: when the predictions are not those of the examples.
    """
    names = voting(ensemble, split)
    if not names:
        raise DataError(f"Expected votes on the {split} split, found none: no example is left, or no constituent.")
    predictions, rows = read_predictions(run.store, names), examples.split(split)
    if predictions.example_ids != tuple(rows["example_id"]):
        raise StaleError(f"The predictions of the {split} split are not those of its examples: train the run again.")
    return Votes(
        predictions,
        rows["label"].to_numpy(dtype=np.int64),
        groups_of(examples, split, features),
        rows["subject_id"].to_numpy(dtype=object),
    )


def voting(ensemble: Ensemble, split: str) -> dict[str, str]:
    """Return the predictions of a split by constituent, baselines left out."""
    made = ensemble.predictions.get(split, {})
    return {name: made[name] for name in ensemble.checkpoints if name in made}


def check_settings(settings: PostprocessSettings, examples: Examples) -> None:
    """Check what is asked against what there is.

    Raises:
        ConfigError: for a strategy, criterion or sensitive feature that does not exist, naming the nearest, or when no
            sensitive feature is named.
    """
    one_of("strategy", settings.strategy, STRATEGIES)
    check_groups_asked(settings.criterion, settings.sensitive_feature, examples)


def check_groups_asked(criterion: tuple[str, ...], features: tuple[str, ...], examples: Examples) -> None:
    """Check criteria and sensitive features as `check_settings` does."""
    known = examples.sensitive_names
    for name in criterion:
        one_of("criterion", name, CRITERIA)
    if not features:
        raise ConfigError(
            f"Set sensitive_feature=..., or several as [...]: {examples.name} has {', '.join(known) or 'none'}."
        )
    for name in features:
        if name not in known:
            raise ConfigError(
                f"{examples.name} has no sensitive feature {name!r}.{nearest(name, known)} "
                f"It has {', '.join(known) or 'none'}."
            )


def new_postprocessor(settings: PostprocessSettings, *, seed: int, classes: Sequence[str]) -> Postprocessor:
    """Return the estimator that the settings ask for, not fitted."""
    single = len(settings.criterion) == 1
    return STRATEGIES[settings.strategy](
        criterion=settings.criterion[0] if single else settings.criterion,
        tolerance=settings.tolerances[0] if single else settings.tolerances,
        form=settings.form,
        false_positive_cost=settings.false_positive_cost,
        false_negative_cost=settings.false_negative_cost,
        solver=settings.solver,
        min_cell_count=settings.min_cell_count,
        small_cells=settings.small_cells,
        unknown_group=settings.unknown_group,
        randomization=settings.randomization,
        seed=seed,
        class_names=list(classes),
    )


def register(run: Run, ensemble: Ensemble, examples: Examples, settings: PostprocessSettings) -> dict[str, Any]:
    """Fit a post-processor on an ensemble's calibration votes, unless the store has it; return its pointer entry.

    Raises:
        FairsisaError: of the kind that fits, when it cannot be fitted.
    """
    lineage = lineage_of(run, ensemble, examples, settings)
    claim_too(run, [lineage.name])
    if not run.store.has(lineage.name):
        votes = calibration_votes(run, ensemble, examples, settings)
        fitted = fit_quietly(new_postprocessor(settings, seed=run.settings.seed, classes=examples.classes), votes)
        document = canonical_json(fitted.to_dict(), DOCUMENT)
        run.store.put(lineage, {DOCUMENT: torch.from_numpy(np.frombuffer(document, dtype=np.uint8).copy())})
    groups = _known_groups(examples, settings.sensitive_feature)
    return {"settings": plain(settings), "groups": groups, "artefact": lineage.name, "reason": None}


def fit_quietly(postprocessor: Postprocessor, votes: Votes) -> Postprocessor:
    """Fit on votes; what it would warn of stands in `warnings_`, and so on its page."""
    with warnings.catch_warnings():
        for kind in (SmallCellWarning, ConstantRuleWarning):
            warnings.simplefilter("ignore", kind)
        data = (votes.predictions, votes.labels)
        if isinstance(postprocessor, AutoPostprocess):  # it cross-fits, and must not split a subject
            return postprocessor.fit(*data, sensitive_features=votes.groups, subject_ids=votes.subject_ids)
        return postprocessor.fit(*data, sensitive_features=votes.groups)


def refitted(run: Run, ensemble: Ensemble, examples: Examples) -> Ensemble:
    """Return an ensemble that is about to be published with the run's post-processors, fitted on its own votes.

    One that cannot be fitted any more, since a group or a label was lost, is out of service, and says so: no deletion
    waits for it.
    """
    entries = {name: _refit(run, ensemble, examples, entry) for name, entry in run.pointer.postprocessors.items()}
    return replace(ensemble, postprocessors=entries)


def suspended(ensemble: Ensemble, before: Ensemble) -> Ensemble:
    """Return an ensemble whose post-processors are out of service, unless the votes they stand on are as `before`."""
    if voting(ensemble, CALIBRATION) == voting(before, CALIBRATION):
        return ensemble
    entries = {
        name: entry if entry["artefact"] is None else {**entry, "artefact": None, "reason": REFITTING}
        for name, entry in ensemble.postprocessors.items()
    }
    return replace(ensemble, postprocessors=entries)


def load_fitted(run: Run, name: str) -> Postprocessor:
    """Return a post-processor that the run serves.

    Raises:
        ConfigError: when the run has none of that name.
        StaleError: when it is out of service, or was fitted on other votes, examples or groups than those served.
    """
    ensemble = run.ensemble
    entry, trouble = entry_of(run, ensemble, name), find_trouble(run, ensemble, name)
    if trouble is not None:
        raise StaleError(str(trouble))
    return load_artefact(run.store, entry["artefact"])


def load_artefact(store: Store, name: str) -> Postprocessor:
    """Return the post-processor that a store keeps under a name."""
    return load_postprocessor(json.loads(store.get(name).tensors[DOCUMENT].numpy().tobytes()))


@dataclass(frozen=True)
class Trouble:
    """Why a post-processor may not be used, and what helps."""

    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}: {self.cure}."


def find_trouble(run: Run, ensemble: Ensemble, name: str) -> Trouble | None:
    """Return why a post-processor may not be used: it is out of service, or not that of the votes that are served."""
    entry = entry_of(run, ensemble, name)
    trouble = trouble_of(run, name, entry)
    if trouble is None and lineage_of(run, ensemble, run.examples, settings_of(entry)).name != entry["artefact"]:
        return other_votes(run, name, entry)
    return trouble


def trouble_of(run: Run, name: str, entry: Mapping[str, Any]) -> Trouble | None:
    """Return why a post-processor is out of service; None when the pointer says that it is in."""
    if entry["artefact"] is not None:
        return None
    flush = f"run `fairsisa unlearn flush run={run.directory}`"
    cure = flush if entry["reason"] == REFITTING else f"run `{command_of(run, name, settings_of(entry))}`"
    return Trouble(f"The post-processor {name!r} is out of service, {entry['reason']}", cure)


def other_votes(run: Run, name: str, entry: Mapping[str, Any]) -> Trouble:
    """Return the trouble of a post-processor that does not belong to the votes that are served."""
    return Trouble(
        f"The post-processor {name!r} is stale, it was fitted on other calibration votes than {run.directory} serves",
        f"run `{command_of(run, name, settings_of(entry))}`",
    )


def entry_of(run: Run, ensemble: Ensemble, name: str) -> Mapping[str, Any]:
    """Return what the pointer says of a post-processor; ConfigError, naming the nearest, when there is none."""
    if name not in ensemble.postprocessors:
        known = ensemble.postprocessors
        more = nearest(name, known) if known else f" It has none: run `fairsisa postprocess run={run.directory} ...`."
        raise ConfigError(f"{run.directory} has no post-processor {name!r}.{more}")
    return ensemble.postprocessors[name]


def settings_of(entry: Mapping[str, Any]) -> PostprocessSettings:
    """Return the settings in a pointer entry."""
    return settings_from(PostprocessSettings, entry["settings"], "")


def command_of(run: Run, name: str, settings: PostprocessSettings) -> str:
    """Return the command that fits a post-processor with the settings it has."""
    return " ".join(["fairsisa postprocess", f"run={run.directory}", f"name={name}", *words_of(settings)])


def words_of(settings: PostprocessSettings | FrontierSettings) -> list[str]:
    """Return the settings that differ from their defaults as they are typed, all but the name."""
    defaults, words = plain(type(settings)()), []
    for key, value in plain(settings).items():
        if key != "name" and value != defaults[key]:
            words.append(f"{key}=[{','.join(map(str, value))}]" if isinstance(value, list) else f"{key}={value}")
    return words


def lineage_of(run: Run, ensemble: Ensemble, examples: Examples, settings: PostprocessSettings) -> Lineage:
    """Return the lineage of the post-processor that these settings give on an ensemble's calibration votes.

    It covers the votes by their names, and the examples whose group is known with contents, groups and subjects.
    """
    used = _used(examples, settings.sensitive_feature)
    contents = example_digests(examples.keep(used))
    codes, names = _codes(examples, settings.sensitive_feature)
    subjects = examples.frame.loc[used, "subject_id"].tolist()
    people = canonical_json([names, codes[codes >= 0].tolist(), subjects])
    decided = {key: value for key, value in plain(settings).items() if key != "name"}
    return Lineage(
        kind=KIND,
        parents=tuple(voting(ensemble, CALIBRATION).values()),
        examples=tuple(contents),
        contents=slice_digest(tuple(contents), tuple(contents.values())),
        inputs=(hashlib.sha256(people).hexdigest(),),
        settings={"version": POSTPROCESSING_VERSION, "seed": run.settings.seed, "postprocess": decided},
    )


def _refit(run: Run, ensemble: Ensemble, examples: Examples, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = settings_of(entry)
    try:
        lost = set(entry["groups"]) - set(_known_groups(examples, settings.sensitive_feature))
        if lost:
            raise DataError(f"{len(lost)} groups have no calibration example left.")
        return register(run, ensemble, examples, settings)
    except (DataError, ConfigError, SolverError):  # what they say may quote data, and the pointer stays
        return {**entry, "artefact": None, "reason": WITHDRAWN if voting(ensemble, CALIBRATION) else SILENT}


def calibration_votes(run: Run, ensemble: Ensemble, examples: Examples, settings: PostprocessSettings) -> Votes:
    """Return the votes that a fit reads: those on calibration examples whose group is known."""
    return known_groups(read_votes(run, ensemble, examples, CALIBRATION, settings.sensitive_feature))


def known_groups(votes: Votes) -> Votes:
    """Return the rows whose group is known."""
    return votes.take(read_groups(votes.groups)[0] >= 0)


def _used(examples: Examples, features: tuple[str, ...]) -> np.ndarray:
    """Return whether an example is of the calibration split and its group is known, shape (num_examples,)."""
    used = np.array(examples.frame["split"] == CALIBRATION)
    used[used] = _codes(examples, features)[0] >= 0
    return used


def _known_groups(examples: Examples, features: tuple[str, ...]) -> list[str]:
    codes, names = _codes(examples, features)
    return [names[code] for code in np.unique(codes[codes >= 0])]


def _codes(examples: Examples, features: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """Return the number of each calibration example's group, -1 where unknown, and the groups' names."""
    groups = groups_of(examples, CALIBRATION, features)
    if not len(groups):
        return np.empty(0, dtype=np.int64), []
    codes, names = read_groups(groups)
    return codes, list(names)


def groups_of(examples: Examples, split: str, features: tuple[str, ...]) -> pd.DataFrame:
    """Return a column for each sensitive feature of a split's examples, in table order, None where unknown."""
    inside = (examples.frame["split"] == split).to_numpy()
    return pd.DataFrame({name: examples.sensitive(name)[inside] for name in features}, dtype=object)


def claim_too(run: Run, names: Collection[str]) -> None:
    """Add names to the run's claim, before they are made."""
    store = run.store
    before = store.claims().get(str(run.directory.resolve()), frozenset())
    if not before.issuperset(names):
        store.claim(run.directory, before.union(names))
