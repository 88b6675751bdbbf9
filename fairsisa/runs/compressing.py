"""The verbs `distil` and `compress`: a student, or compressed copies, of a run, made, served and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fairsisa.compression.artefacts import COPY, STUDENT, card_of, open_model
from fairsisa.compression.card import Card, bytes_in_memory, count_parameters
from fairsisa.compression.compressing import Compressed
from fairsisa.compression.folders import save_compressed
from fairsisa.errors import ConfigError, StaleError
from fairsisa.execution import Report
from fairsisa.models.whole import EncoderWithHead
from fairsisa.report.compression import CompressionReport
from fairsisa.runs.descendants import Recipe, descendant_of, descended, make_descendant, recipe_of
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import can_be_measured, forget_reports, measure_run, with_predictions
from fairsisa.runs.networks import origin_of
from fairsisa.runs.postprocessing import require_whole
from fairsisa.settings import ExecutionSettings

KINDS = (STUDENT, COPY)


@dataclass(frozen=True, eq=False)
class Descended:
    """A descendant's name, and what its page tells; None where nothing was measured."""

    name: str
    content: CompressionReport | None


def descend_run(
    run: Run, recipe: Recipe, *, execution: ExecutionSettings, on_event: Report, evaluate: bool = True
) -> Descended:
    """Make a student or compressed copies of a run, keep them under their name, and measure them beside the ensemble.

    One rename puts them into the run, in place of earlier ones of the same name. From then on `train`, `add` and
    `unlearn` keep them in step as their `when_outdated` says. Stopped in the middle, the same call ends the same.

    Raises:
        ConfigError: when the settings do not fit the run's models, naming the layer, teacher or source.
        StaleError: when what it is to be made from is out of service.
        RunError: when the run is not trained, is served without some constituents, or another command is at work.
    """
    name = recipe.name
    if recipe.compress is not None and recipe.compress[0].source == name:
        raise ConfigError(f"Copies of {name!r} cannot take its place: set name=... to another.")
    with run.locked():
        run.require_trained()
        require_whole(run)
        run.mend()
        ensemble = with_predictions(run, execution, on_event)
        origin = origin_of(run, execution, on_event)
        made = make_descendant(origin, recipe)
        copies = {other: entry for other, entry in ensemble.descendants.items() if entry.settings.get("source") == name}
        renewed = descended(origin.with_descendant(name, made), copies)
        kept = {other: entry for other, entry in ensemble.descendants.items() if other not in copies}
        run.publish(replace(ensemble, descendants={**kept, name: made, **renewed}))
        retire(run)
    if not (evaluate and can_be_measured(run)):
        return Descended(name, None)
    return Descended(name, measure_run(run, execution=execution, on_event=on_event).compression)


def remove_descendant(run: Run, name: str) -> None:
    """Take a student or compressed copies out of a run, with the reports that speak of them.

    Raises:
        ConfigError: when the run has none of that name, or copies of it are left.
        RunError: when the run is not trained, or another command is at work on it.
    """
    with run.locked():
        ensemble = run.ensemble
        descendant_of(run, name)
        below = [other for other, made in ensemble.descendants.items() if made.settings.get("source") == name]
        if below:
            raise ConfigError(f"{', '.join(below)} of {run.directory} are copies of {name}: remove them first.")
        left = {known: made for known, made in ensemble.descendants.items() if known != name}
        forget_reports(run)
        run.publish(replace(ensemble, descendants=left))
        retire(run)


def export_descendant(run: Run, name: str, folder: Path, *, execution: ExecutionSettings) -> tuple[Path, ...]:
    """Save a student or compressed copies as Hugging Face folders, one a member; return them.

    The card names what each was made from. A folder is out of reach of later deletions: export again after one.

    Raises:
        ConfigError: when the run has none of that name, or its networks are not Hugging Face models.
        StaleError: when it is out of service.
    """
    made = descendant_of(run, name)
    if not made.models:
        raise StaleError(f"{name!r} of {run.directory} is out of service: {made.reason}.")
    if run.settings.model.kind != "text":
        raise ConfigError(f"{run.directory} reads features: only networks over tokens can be saved as a model folder.")
    origin, recipe = origin_of(run, execution, lambda event: None), recipe_of(made)
    tokenizer = origin.tokenizer_of(recipe.model(origin))
    folders = []
    for member, artefact in made.models.items():
        network = open_model(run.store, artefact, recipe.blueprint(origin, member))
        if isinstance(network, EncoderWithHead):
            raise ConfigError(
                f"{name!r} is a head over a frozen encoder, which is no Hugging Face model: export a student instead."
            )
        card = card_of(run.store, artefact) if recipe.compress is not None else _student_card(network, artefact)
        place = folder if len(made.models) == 1 else folder / member
        save_compressed(Compressed(network, card), place, tokenizer)
        folders.append(place)
    return tuple(folders)


def _student_card(network: nn.Module, artefact: str) -> Card:
    size = bytes_in_memory(network)
    return Card((), (artefact,), num_parameters=count_parameters(network), bytes_before=size, bytes_after=size)


def retire(run: Run) -> None:
    """Give up the claim on models that were replaced, and delete those that no other run needs."""
    store, served = run.store, run.pointer.names
    claimed = store.claims().get(str(run.directory.resolve()), frozenset())
    replaced = {entry.name for kind in KINDS for entry in store.records(kind)} & claimed - served
    if replaced:
        store.claim(run.directory, claimed - replaced)
        store.purge(replaced, spare=store.claimed_by_others(run.directory))
