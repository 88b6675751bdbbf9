"""Students and compressed copies as parts of a run: made, scored, made anew when their origin changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from fairsisa.compression.artefacts import Blueprint, ScoreTask, keep_scores
from fairsisa.errors import ConfigError, DataError, StaleError
from fairsisa.lineage import Lineage, slice_digest
from fairsisa.runs.assembly import HELD_OUT
from fairsisa.runs.copies import DISTIL, copy_blueprint, make_copies, plan_copies, source_model
from fairsisa.runs.directory import Descendant, Ensemble, Run
from fairsisa.runs.fitting import claim_too
from fairsisa.runs.networks import Origin
from fairsisa.runs.students import label_of, make_students, plan_students, student_blueprint, student_settings
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    ModelSettings,
    nearest,
    plain,
    settings_from,
)

SCORING_VERSION = 1
"""Raised whenever a change of code changes the bits of a descendant's scores; it is part of their names."""
COMPRESS = "compress"
REBUILDING = "it is being made anew"
OUTDATED = "what it was made from has changed"
LOST = "what it was made from is out of service, or no example is left to make it from"


@dataclass(frozen=True)
class Recipe:
    """The settings of a descendant; `compress` is None for a student, `distil` for compressed copies."""

    distil: DistillationSettings | None = None
    compress: tuple[CompressionSettings, CalibrationSettings] | None = None

    @property
    def name(self) -> str:
        """The name under which a run keeps what this makes."""
        return self.chosen.chosen_name

    @property
    def chosen(self) -> DistillationSettings | CompressionSettings:
        """The settings that have name and `when_outdated`."""
        if self.compress is not None:
            return self.compress[0]
        if self.distil is None:
            raise ValueError("Expected a recipe with settings, got none.")
        return self.distil

    @property
    def entry(self) -> Descendant:
        """What a pointer says of it before it is made."""
        calibration = {} if self.compress is None else plain(self.compress[1])
        verb = DISTIL if self.compress is None else COMPRESS
        return Descendant(verb, plain(self.chosen), calibration, {}, {})

    def plan(self, origin: Origin) -> dict[str, Lineage]:
        """Return the lineage of each model, by member."""
        if self.compress is not None:
            return plan_copies(origin, self.compress)
        return plan_students(origin, self.student)

    def make(self, origin: Origin) -> None:
        """Make the models that the store lacks."""
        if self.compress is not None:
            make_copies(origin, self.compress)
        else:
            make_students(origin, self.student)

    def blueprint(self, origin: Origin, member: str) -> Blueprint:
        """Return how the network of a member is built."""
        if self.compress is not None:
            return copy_blueprint(origin, self.compress[0], member)
        return student_blueprint(origin, self.student, member)

    def model(self, origin: Origin) -> ModelSettings:
        """Return the model settings of its networks."""
        if self.compress is not None:
            return source_model(origin, self.compress[0])
        return student_settings(origin.place.settings, self.student)[0]

    @property
    def student(self) -> DistillationSettings:
        """The settings of a student."""
        if self.distil is None:
            raise ValueError("Expected the recipe of a student, got that of compressed copies.")
        return self.distil


def recipe_of(made: Descendant) -> Recipe:
    """Return the settings in a pointer's entry."""
    if made.verb == DISTIL:
        return Recipe(distil=settings_from(DistillationSettings, made.settings, ""))
    chosen = settings_from(CompressionSettings, made.settings, "")
    return Recipe(compress=(chosen, settings_from(CalibrationSettings, made.calibration, "calibration")))


def make_descendant(origin: Origin, recipe: Recipe) -> Descendant:
    """Make, and score, what the store lacks of a descendant; return its pointer entry.

    Raises:
        FairsisaError: of the kind that fits, when settings do not fit the run, or making it fails.
    """
    models = {member: lineage.name for member, lineage in recipe.plan(origin).items()}
    claim_too(origin.place.run, list(models.values()))
    recipe.make(origin)
    tasks = _score_tasks(origin, recipe, models)
    claim_too(origin.place.run, [task.lineage.name for _, _, task in tasks])
    names = origin.place.do(keep_scores, [task for _, _, task in tasks])
    predictions: dict[str, dict[str, str]] = {split: {} for split in HELD_OUT}
    for (split, member, _), name in zip(tasks, names, strict=True):
        predictions[split][member] = name
    return replace(recipe.entry, models=models, predictions=predictions)


def descended(origin: Origin, before: Mapping[str, Descendant]) -> dict[str, Descendant]:
    """Return the descendants of a run that is about to be published, given those it had, as their settings ask.

    One whose models would be the same ones keeps them. Of the others, what is to be rebuilt is made anew here; what
    cannot be made any more, since an example, a teacher or a source is gone, is out of service: no deletion waits.
    """
    found: dict[str, Descendant] = {}
    for name in _by_generation(before):
        made = _renewed(origin, before[name])
        if made is not None:
            found[name] = made
            origin = origin.with_descendant(name, made)
    return {name: found[name] for name in before if name in found}


def without_doomed(ensemble: Ensemble, doomed: Collection[str]) -> Ensemble:
    """Return an ensemble whose descendants that stand on doomed artefacts are out of service until they are rebuilt."""
    gone = frozenset(doomed)
    left = {
        name: replace(made, models={}, predictions={}, reason=REBUILDING) if made.names & gone else made
        for name, made in ensemble.descendants.items()
    }
    return replace(ensemble, descendants=left)


def descendant_of(run: Run, name: str) -> Descendant:
    """Return what the pointer says of a descendant; ConfigError, naming the nearest, when there is none."""
    known = run.ensemble.descendants
    if name not in known:
        more = nearest(name, known) if known else " It has none: run `fairsisa distil` or `fairsisa compress`."
        raise ConfigError(f"{run.directory} has no student or compressed copy {name!r}.{more}")
    return known[name]


def _renewed(origin: Origin, before: Descendant) -> Descendant | None:
    """Return a descendant as it is to be published; None takes it out of the run."""
    if not before.models and before.reason != REBUILDING:
        return before
    recipe = recipe_of(before)
    try:
        models = {member: lineage.name for member, lineage in recipe.plan(origin).items()}
        same = models == dict(before.models)
        if not same and recipe.chosen.when_outdated == "remove":
            return None
        if not same and recipe.chosen.when_outdated == "stale":
            return replace(before, models={}, predictions={}, reason=OUTDATED)
        return make_descendant(origin, recipe)
    except (ConfigError, DataError, StaleError):  # what they say may quote data, and the pointer stays
        return replace(before, models={}, predictions={}, reason=LOST)


def _by_generation(before: Mapping[str, Descendant]) -> list[str]:
    """Return names such that a source comes before what is made from it."""
    students = [name for name, made in before.items() if made.verb == DISTIL]
    return students + [name for name in before if name not in students]


def _score_tasks(origin: Origin, recipe: Recipe, models: Mapping[str, str]) -> list[tuple[str, str, ScoreTask]]:
    reads = recipe.model(origin)
    held_out = {split: origin.read(reads, ids) for split, ids in origin.assembly.held_out.items() if ids}
    blueprints = {member: recipe.blueprint(origin, member) for member in models}
    tasks = []
    for split, inputs in held_out.items():
        for member, model in models.items():
            blueprint = blueprints[member]
            numerics = {"precision": blueprint.precision, "device": blueprint.device, "threads": blueprint.threads}
            lineage = Lineage(
                kind="predictions",
                parents=(model,),
                examples=inputs.example_ids,
                contents=slice_digest(inputs.example_ids, inputs.contents),
                inputs=(),
                settings={"version": SCORING_VERSION, "numerics": numerics},
            )
            store = origin.assembly.store
            label = label_of(recipe.name, member)
            tasks.append((split, member, ScoreTask(store, model, lineage, blueprint, inputs, label)))
    return tasks
