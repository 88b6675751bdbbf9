"""A run's students: what each is made from, and the training of those that the store lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fairsisa.compression.artefacts import STUDENT, Blueprint, KeepTask, keep_student
from fairsisa.compression.classifier_student import StudentTask
from fairsisa.compression.distilling import DistillationWeights
from fairsisa.errors import ConfigError, DataError, StaleError
from fairsisa.fairness.strategies.inputs import read_groups
from fairsisa.lineage import Lineage, canonical_json, derive_seed
from fairsisa.models.device import resolve_accelerator, resolve_precision
from fairsisa.models.whole import NetworkSpec
from fairsisa.runs.assembly import Assembly
from fairsisa.runs.fitting import claim_too, groups_of, load_artefact, settings_of
from fairsisa.runs.networks import Origin, checkpoint_of, compute_precision, spec_of
from fairsisa.settings import (
    DistillationSettings,
    ModelSettings,
    RunSettings,
    TrainerSettings,
    nearest,
    plain,
    settings_from,
)
from fairsisa.sisa.chain import Chain, plan_stages, predictions_lineage
from fairsisa.sisa.ensemble import PredictTask, predict_constituent, read_predictions
from fairsisa.tables import TRAIN, Predictions

DISTILLATION_VERSION = 1
"""Raised whenever a change of code changes the bits that distillation gives; it is part of every student's name."""
WHOLE = "student"
"""The one member of a student of the whole ensemble."""
FAIR, MAJORITY, MEAN = "fair", "majority_vote", "mean_score"
UNREAD = ("log_every_n_steps", "budget", "slice_epochs", "optimizer_state")
"""What of a trainer's settings changes no bit of a student, which has no slices."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one student learns from: the constituents that teach it, and the transfer set, in order.

    Teachers score all of `ids`, so that students of one run share what they say; `used`, shape (num_ids,), tells the
    rows that this student learns from.
    """

    member: str
    teachers: tuple[Chain, ...]
    ids: tuple[str, ...]
    used: np.ndarray

    @property
    def used_ids(self) -> tuple[str, ...]:
        """The ids of the examples that the student learns from."""
        return tuple(example for example, use in zip(self.ids, self.used, strict=True) if use)

    def scores(self, assembly: Assembly) -> dict[str, str]:
        """Return the names of what each teacher says of the transfer set."""
        contents = assembly.take(self.ids).contents
        return {
            chain.constituent: predictions_lineage(chain, _last(chain), self.ids, contents).name
            for chain in self.teachers
        }


def plan_students(origin: Origin, settings: DistillationSettings) -> dict[str, Lineage]:
    """Return the lineage of each student, by member; nothing is made.

    Raises:
        ConfigError: when the settings do not fit the run.
        DataError: when no example is left to learn from.
        StaleError: when the fair teacher is out of service.
    """
    return {lesson.member: _lineage(origin, settings, lesson) for lesson in _lessons(origin, settings)}


def make_students(origin: Origin, settings: DistillationSettings) -> None:
    """Train the students that the store lacks; what teachers say of the transfer set is computed once, and kept."""
    place, assembly, lineages = origin.place, origin.assembly, plan_students(origin, settings)
    lacking = [each for each in _lessons(origin, settings) if not origin.store.has(lineages[each.member].name)]
    claim_too(place.run, [name for lesson in lacking for name in lesson.scores(assembly).values()])
    asked = [PredictTask(chain, assembly.take(lesson.ids)) for lesson in lacking for chain in lesson.teachers]
    place.do(predict_constituent, asked)
    tasks = [
        KeepTask(
            store=assembly.store,
            lineage=lineages[lesson.member],
            blueprint=student_blueprint(origin, settings, lesson.member),
            student=_student_task(origin, settings, lesson),
            label=label_of(settings.chosen_name, lesson.member),
        )
        for lesson in lacking
    ]
    place.do(keep_student, tasks)


def student_blueprint(origin: Origin, settings: DistillationSettings, member: str) -> Blueprint:
    """Return how a student's network is built."""
    student, trainer = student_settings(origin.place.settings, settings)
    spec = _student_spec(origin, student, member)
    precision = compute_precision(trainer, student)
    return Blueprint(spec, settings.num_layers, settings.keep, precision, trainer.accelerator, trainer.threads)


def label_of(name: str, member: str) -> str:
    """Return what progress calls one model of a descendant."""
    return name if member == WHOLE else f"{name} {member}"


def student_settings(run: RunSettings, settings: DistillationSettings) -> tuple[ModelSettings, TrainerSettings]:
    """Return the student's model and trainer: the run's, changed as asked.

    A student of a text model trains in full; where the run trained a head or adapters, whose learning rates do not
    suit that, the trainer is the default one on the run's device.
    """
    own, trainer = run.model, plain(run.trainer)
    if own.kind == "text" and own.trains != "full":
        trainer = plain(TrainerSettings()) | {key: trainer[key] for key in ("precision", "accelerator", "threads")}
    model = plain(own) | ({"trains": "full"} if own.kind == "text" else {}) | dict(settings.model)
    trainer |= {"budget": "compute_matched", "slice_epochs": (), "schedule": "slice"}
    asked = settings_from(TrainerSettings, trainer | dict(settings.trainer), "trainer")
    accelerator = resolve_accelerator(asked.accelerator)
    precision = resolve_precision(asked.precision, accelerator)
    return (
        settings_from(ModelSettings, model, "model"),
        replace(asked, accelerator=accelerator, precision=precision),
    )


def _lessons(origin: Origin, settings: DistillationSettings) -> list[Lesson]:
    """Return what each student learns from; constituents without an example left teach nothing."""
    chains = origin.chains
    if settings.scope == "shard":
        own = {name: tuple(example for ids in chain.slices for example in ids) for name, chain in chains.items()}
        return [Lesson(name, (chain,), own[name], np.ones(len(own[name]), bool)) for name, chain in chains.items()]
    ids = tuple(origin.examples.split(TRAIN)["example_id"])
    used = np.ones(len(ids), dtype=bool)
    if settings.teacher == FAIR:
        used = _group_codes(origin, settings)[0] >= 0
    elif settings.teacher not in (MEAN, MAJORITY):
        if settings.teacher not in chains:
            known = [MEAN, MAJORITY, FAIR, *chains]
            raise ConfigError(f"Unknown teacher {settings.teacher!r}.{nearest(settings.teacher, known)}")
        chains = {settings.teacher: chains[settings.teacher]}
    if not (used.any() and chains):
        raise DataError("Expected training examples to distil on, found none: no example is left, or no constituent.")
    return [Lesson(WHOLE, tuple(chains.values()), ids, used)]


def _lineage(origin: Origin, settings: DistillationSettings, lesson: Lesson) -> Lineage:
    model, trainer = student_settings(origin.place.settings, settings)
    base, parents = origin.base_of(model), tuple(lesson.scores(origin.assembly).values())
    inputs: tuple[str, ...] = () if base is None else (base.digest,)
    if settings.teacher == FAIR:
        parents += (_postprocessor(origin, settings),)
        inputs += (_people(origin, settings),)
    if _reads_network(settings):
        if not origin.reads_alike(model):
            raise ConfigError(
                "Hidden states, attention and start=teacher need a student that reads its teacher's tokens: leave "
                "model.base and model.max_length as they are."
            )
        parents += (checkpoint_of(_one_teacher(lesson)),)
    own = {key: value for key, value in plain(settings).items() if key not in ("name", "when_outdated")}
    kept = {key: value for key, value in plain(trainer).items() if key not in UNREAD}
    return Lineage(
        kind=STUDENT,
        parents=tuple(dict.fromkeys(parents)),
        examples=(),
        inputs=inputs,
        settings={
            "version": DISTILLATION_VERSION,
            "distil": own | {"model": plain(model) | {"base": None}, "trainer": kept},
            "member": lesson.member,
            "seed": origin.place.settings.seed,
        },
    )


def _student_task(origin: Origin, settings: DistillationSettings, lesson: Lesson) -> StudentTask:
    model, trainer = student_settings(origin.place.settings, settings)
    tokenizer, teacher = None if model.kind != "text" else origin.tokenizer_of(model), None
    if _reads_network(settings):
        chain = _one_teacher(lesson)
        teacher = (spec_of(chain, origin.store), origin.store.get(checkpoint_of(chain)).tensors)
    return StudentTask(
        spec=_student_spec(origin, model, lesson.member),
        num_layers=settings.num_layers,
        keep=settings.keep,
        start=settings.start,
        trainer=trainer,
        weights=DistillationWeights(
            settings.soft, settings.hard, settings.hidden, settings.attention, settings.temperature
        ),
        inputs=origin.read(model, lesson.used_ids).with_targets(_targets(origin, settings, lesson)),
        pad_id=0 if tokenizer is None else int(tokenizer.pad_token_id),
        seed=derive_seed(origin.place.settings.seed, "student", lesson.member),
        teacher=teacher,
        member=label_of(settings.chosen_name, lesson.member),
    )


def _targets(origin: Origin, settings: DistillationSettings, lesson: Lesson) -> np.ndarray:
    """Return what the teacher says of each example, float32, shape (num_examples, num_classes); rows sum to 1."""
    predictions = read_predictions(origin.store, lesson.scores(origin.assembly))
    if settings.teacher == FAIR:
        fitted = load_artefact(origin.store, _postprocessor(origin, settings))
        groups = groups_of(origin.examples, TRAIN, _features(origin, settings))[lesson.used].reset_index(drop=True)
        known = Predictions(lesson.used_ids, predictions.constituents, predictions.scores[lesson.used])
        fair: np.ndarray = np.asarray(fitted.predict_proba(known, sensitive_features=groups), dtype=np.float32)
        return fair
    if settings.teacher == MAJORITY:
        classes = np.arange(predictions.scores.shape[2])
        shares = (predictions.votes[:, :, None] == classes).mean(axis=1)
        targets = np.eye(len(classes))[shares.argmax(axis=1)]
    else:
        targets = predictions.scores.mean(axis=1, dtype=np.float64)
    return np.asarray(targets[lesson.used], dtype=np.float32)


def _one_teacher(lesson: Lesson) -> Chain:
    if len(lesson.teachers) != 1:
        raise ConfigError(
            "Hidden states, attention and start=teacher need one network as teacher: set teacher=shard-0 (or another "
            "constituent), or scope=shard."
        )
    return lesson.teachers[0]


def _student_spec(origin: Origin, model: ModelSettings, member: str) -> NetworkSpec:
    chain, features = origin.assembly.constituents[0], origin.assembly.inputs.features
    num_features = 0 if features is None else features.shape[1]
    seed = derive_seed(chain.seed, "student", member)
    return NetworkSpec(model, origin.base_of(model), num_features, chain.num_classes, seed)


def _reads_network(settings: DistillationSettings) -> bool:
    return settings.start == "teacher" or settings.hidden > 0 or settings.attention > 0


def _postprocessor(origin: Origin, settings: DistillationSettings) -> str:
    """Return the artefact of the fair teacher's post-processor.

    Raises:
        ConfigError: when the run has none of that name.
        StaleError: when it is out of service.
    """
    name, known = str(settings.postprocessor), origin.ensemble.postprocessors
    if name not in known:
        raise ConfigError(f"The run has no post-processor {name!r}.{nearest(name, known)}")
    if known[name]["artefact"] is None:
        raise StaleError(f"The post-processor {name!r} is out of service, {known[name]['reason']}.")
    return str(known[name]["artefact"])


def _features(origin: Origin, settings: DistillationSettings) -> tuple[str, ...]:
    _postprocessor(origin, settings)
    return settings_of(origin.ensemble.postprocessors[str(settings.postprocessor)]).sensitive_feature


def _group_codes(origin: Origin, settings: DistillationSettings) -> tuple[np.ndarray, Sequence[str]]:
    """Return the number of each training example's group, -1 where unknown, and the groups' names."""
    return read_groups(groups_of(origin.examples, TRAIN, _features(origin, settings)))


def _people(origin: Origin, settings: DistillationSettings) -> str:
    """Return a digest of the groups that a fair teacher reads."""
    codes, names = _group_codes(origin, settings)
    return hashlib.sha256(canonical_json([list(names), codes[codes >= 0].tolist()])).hexdigest()


def _last(chain: Chain) -> str:
    return plan_stages(chain)[-1].lineage.name
