"""A run's compressed copies: what each is made from, and the compression of those that the store lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from fairsisa.compression.artefacts import COPY, Blueprint, CopyTask, keep_copy
from fairsisa.errors import ConfigError, DataError, StaleError
from fairsisa.lineage import Lineage, slice_digest
from fairsisa.runs.directory import Ensemble
from fairsisa.runs.networks import Origin, checkpoint_of, compute_precision, spec_of
from fairsisa.runs.students import WHOLE, label_of, student_blueprint, student_settings
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    ModelSettings,
    nearest,
    plain,
    plain_steps,
    settings_from,
)
from fairsisa.settings.steps import CALIBRATED, QUANTISING
from fairsisa.tables import CALIBRATION, TRAIN

COMPRESSION_VERSION = 1
"""Raised whenever a change of code changes the bits that compression gives; it is part of every copy's name."""
ENSEMBLE, DISTIL = "ensemble", "distil"


def plan_copies(origin: Origin, chosen: tuple[CompressionSettings, CalibrationSettings]) -> dict[str, Lineage]:
    """Return the lineage of each compressed copy, by member; nothing is made.

    Raises:
        ConfigError: when the source is none of the run's models.
        StaleError: when it is out of service.
        DataError: when no example is left to calibrate on.
    """
    settings, calibration = chosen
    trainer, model, found = origin.place.settings.trainer, source_model(origin, settings), {}
    base = origin.base_of(model)
    for member, source in sources(origin, settings).items():
        ids = _calibration_ids(origin, member, chosen)
        found[member] = Lineage(
            kind=COPY,
            parents=(source,),
            examples=ids,
            contents=slice_digest(ids, origin.assembly.take(ids).contents),
            inputs=() if base is None else (base.digest,),
            settings={
                "version": COMPRESSION_VERSION,
                "steps": plain_steps(settings.steps),
                "calibration": plain(calibration) if ids else None,
                "accelerator": trainer.accelerator,
                "threads": trainer.threads,
            },
        )
    return found


def make_copies(origin: Origin, chosen: tuple[CompressionSettings, CalibrationSettings]) -> None:
    """Compress what the store lacks, every member at once."""
    settings, given = chosen[0], sources(origin, chosen[0])
    model = source_model(origin, settings)
    tasks = [
        CopyTask(
            store=origin.assembly.store,
            source=given[member],
            lineage=lineage,
            blueprint=copy_blueprint(origin, settings, member),
            steps=settings.steps,
            calibration=origin.read(model, lineage.examples) if lineage.examples else None,
            label=label_of(settings.chosen_name, member),
        )
        for member, lineage in plan_copies(origin, chosen).items()
        if not origin.store.has(lineage.name)
    ]
    origin.place.do(keep_copy, tasks)


def copy_blueprint(origin: Origin, settings: CompressionSettings, member: str) -> Blueprint:
    """Return how a copy's network is built: low-bit layers compute on fp32, others as what they were made from."""
    quantised = any(step.method in QUANTISING[1:] for step in settings.steps)
    on_cpu = any(step.method == "int8_dynamic" for step in settings.steps)
    if settings.source == ENSEMBLE:
        trainer, chain = origin.place.settings.trainer, origin.chains[member]
        made = Blueprint(
            spec_of(chain, origin.store),
            precision=compute_precision(trainer, chain.model),
            device=trainer.accelerator,
            threads=trainer.threads,
        )
    else:
        made = student_blueprint(origin, _student_of(origin.ensemble, settings), member)
    return replace(made, precision="fp32" if quantised else made.precision, device="cpu" if on_cpu else made.device)


def sources(origin: Origin, settings: CompressionSettings) -> dict[str, str]:
    """Return the artefact that each copy is made from, by member.

    Raises:
        ConfigError: when the source is none of the run's models.
        StaleError: when it is out of service.
    """
    if settings.source == ENSEMBLE:
        return {name: checkpoint_of(chain) for name, chain in origin.chains.items()}
    _student_of(origin.ensemble, settings)
    source = origin.ensemble.descendants[settings.source]
    if not source.models:
        raise StaleError(f"{settings.source!r}, which is to be compressed, is out of service: {source.reason}.")
    return dict(source.models)


def source_model(origin: Origin, settings: CompressionSettings) -> ModelSettings:
    """Return the model settings of what is compressed."""
    if settings.source == ENSEMBLE:
        return origin.place.settings.model
    return student_settings(origin.place.settings, _student_of(origin.ensemble, settings))[0]


def _student_of(ensemble: Ensemble, settings: CompressionSettings) -> DistillationSettings:
    students = {name: made for name, made in ensemble.descendants.items() if made.verb == DISTIL}
    if settings.source not in students:
        raise ConfigError(
            f"Expected source to be {ENSEMBLE!r} or a student of the run, got {settings.source!r}."
            f"{nearest(settings.source, [ENSEMBLE, *students])}"
        )
    return settings_from(DistillationSettings, students[settings.source].settings, "")


def _calibration_ids(
    origin: Origin, member: str, chosen: tuple[CompressionSettings, CalibrationSettings]
) -> tuple[str, ...]:
    """Return the calibration examples, in the order of their draw; none for steps that read none."""
    settings, calibration = chosen
    if not any(step.method in CALIBRATED for step in settings.steps):
        return ()
    ids = _eligible(origin, member, calibration.split)
    if not ids:
        raise DataError(
            f"Expected examples of the {calibration.split} split to calibrate {member} on, found none left: set "
            f"calibration.split={TRAIN if calibration.split == CALIBRATION else CALIBRATION}."
        )
    return tuple(sorted(ids, key=lambda example: _drawn(example, calibration.seed))[: calibration.num_examples])


def _eligible(origin: Origin, member: str, split: str) -> Sequence[str]:
    if split == TRAIN and member != WHOLE:
        return [example for ids in origin.chains[member].slices for example in ids]
    return [str(example) for example in origin.examples.split(split)["example_id"]]


def _drawn(example: str, seed: int) -> tuple[bytes, str]:
    """Return a key by which examples stand in random order; who leaves moves no other."""
    return hashlib.blake2b(example.encode(), key=seed.to_bytes(8, "little"), digest_size=16).digest(), example
