"""A run's ensemble, students and copies as candidates that classify texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fairsisa.bias.candidate import CLASSIFIER, Candidate
from fairsisa.compression.artefacts import in_use, open_model, score_inputs
from fairsisa.data.encoding import encode_examples
from fairsisa.errors import ConfigError, StaleError
from fairsisa.execution.local import computing_threads
from fairsisa.runs.descendants import descendant_of, recipe_of
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import shard_sizes
from fairsisa.runs.fitting import voting
from fairsisa.runs.networks import origin_of
from fairsisa.runs.serving import RunEnsemble, as_examples
from fairsisa.settings import ExecutionSettings
from fairsisa.sisa.ensemble import aggregate
from fairsisa.tables import TEST, Predictions


def run_candidate(run: Run, name: str, part: str | None, *, threads: int) -> Callable[[], Candidate]:
    """Return what opens, as `name`, the ensemble that a run serves, by its own aggregation, or a part of the run.

    A part is a student, or compressed copies, of that name.

    Raises:
        RunError: when the run is not trained.
        ConfigError: when it does not read texts, or has no descendant of that name.
        StaleError: when that is out of service.
    """
    run.require_trained()
    if run.settings.model.kind != "text":
        raise ConfigError(f"{run.directory} reads features: benchmarks ask models that read texts.")
    if part is None:
        return partial(_ensemble, run, name, threads)
    made = descendant_of(run, part)
    if not made.models:
        raise StaleError(f"{part} of {run.directory} is out of service, {made.reason}: make it anew.")
    return partial(_descendant, run, name, part, threads)


def _ensemble(run: Run, name: str, threads: int) -> Candidate:
    pointer, handle = run.ensemble, RunEnsemble(run)
    members = tuple(voting(pointer, TEST))
    parents = tuple(pointer.checkpoints[member][-1] for member in members)
    aggregation = run.settings.evaluation.aggregation

    def classify(texts: Sequence[str]) -> np.ndarray:
        with computing_threads(threads):
            scores = handle.predict_scores(list(texts))
        return _as_one(scores, members, run, texts)

    return Candidate(
        name,
        _digest(parents, aggregation, run.settings.seed),
        CLASSIFIER,
        classify=classify,
        classes=run.examples.classes,
        parents=tuple(sorted(set(parents))),
        facts={"aggregation": aggregation, "num_models": len(parents)},
    )


def _descendant(run: Run, name: str, part: str, threads: int) -> Candidate:
    origin, made = origin_of(run, ExecutionSettings(), lambda event: None), descendant_of(run, part)
    recipe = recipe_of(made)
    reads, aggregation = recipe.model(origin), run.settings.evaluation.aggregation
    tokenizer, kind = origin.tokenizer_of(reads), origin.examples.keep(np.zeros(len(origin.examples), dtype=bool))
    blueprints = {member: recipe.blueprint(origin, member) for member in made.models}
    networks = {
        member: in_use(open_model(run.store, artefact, blueprints[member]), blueprints[member])
        for member, artefact in made.models.items()
    }

    def classify(texts: Sequence[str]) -> np.ndarray:
        inputs = encode_examples(as_examples(kind, list(texts), None), tokenizer, reads.max_length)
        with computing_threads(threads):
            scores = [score_inputs(network, inputs, blueprints[member]) for member, network in networks.items()]
        if len(scores) == 1:
            return scores[0].astype(np.float64)
        return _as_one(np.stack(scores, axis=1), tuple(networks), run, texts)

    parents = tuple(made.models.values())
    return Candidate(
        name,
        _digest(parents, aggregation, run.settings.seed),
        CLASSIFIER,
        classify=classify,
        classes=origin.examples.classes,
        parents=tuple(sorted(set(parents))),
        facts={"aggregation": aggregation if len(parents) > 1 else "", "num_models": len(parents)},
    )


def _as_one(scores: np.ndarray, members: Sequence[str], run: Run, texts: Sequence[str]) -> np.ndarray:
    """Return one probability a class, of scores of shape (num_texts, num_constituents, num_classes).

    A text is known by its digest: where one member is drawn, it is the same for the same text, always.
    """
    ids = tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    sizes = shard_sizes(run)
    weights = [sizes[int(member.removeprefix("shard-"))] for member in members]
    settings = run.settings
    return aggregate(
        Predictions(ids, tuple(members), scores), settings.evaluation.aggregation, weights=weights, seed=settings.seed
    )


def _digest(parents: Sequence[str], aggregation: str, seed: int) -> str:
    return hashlib.sha256("\n".join([aggregation, str(seed), *parents]).encode()).hexdigest()
