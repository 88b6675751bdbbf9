"""How large and how fast the models are that a run serves, and what its students and copies did to people."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from fairsisa.compression.artefacts import Blueprint, card_of, in_use, open_model, score_inputs
from fairsisa.compression.card import bytes_in_memory, count_layers, count_parameters
from fairsisa.compression.layers import weight_layers
from fairsisa.compression.packing import pack
from fairsisa.data.encoding import Inputs
from fairsisa.fairness.evaluation import Evaluation, paired_differences
from fairsisa.fairness.predictors import Predictor
from fairsisa.report.compression import CompressionReport
from fairsisa.runs.descendants import COMPRESS, Recipe, recipe_of
from fairsisa.runs.directory import Descendant
from fairsisa.runs.networks import Origin, checkpoint_of, compute_precision, spec_of
from fairsisa.settings import CalibrationSettings, CompressionSettings, DistillationSettings, plain
from fairsisa.sisa.ensemble import aggregate, read_predictions
from fairsisa.store import Store
from fairsisa.tables import TEST

PLAIN = re.compile(r"/?[A-Za-z_][A-Za-z0-9_./-]*")
"""Text that needs no quotes in a command, but for `WORDS`."""
WORDS = ("null", "true", "false", "nan", "inf", "infinity")
NUM_TIMED, NUM_SINGLE = 256, 40
"""How many texts are scored in batches, and how many one at a time, to tell a model's speed."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """A predictor's networks taken together; latency is the median, 10th and 90th percentile in milliseconds."""

    num_models: int
    num_parameters: int
    size_bytes: int
    memory_bytes: int
    sparsity: float
    bits: float
    latency: tuple[float, float, float]
    texts_per_second: float
    layers: pd.DataFrame


def descendant_predictors(
    store: Store, descendants: Mapping[str, Descendant], *, aggregation: str, weights: Sequence[float], seed: int
) -> list[Predictor]:
    """Return what each descendant in service decides on the test split; of several members, their aggregation.

    `weights` are the sizes of the shards.
    """
    found = []
    for name, made in descendants.items():
        if made.models and made.predictions.get(TEST):
            predictions = read_predictions(store, made.predictions[TEST])
            if len(predictions.constituents) == 1:
                scores = predictions.scores[:, 0].astype(np.float64)
            else:
                own = [weights[int(member.removeprefix("shard-"))] for member in predictions.constituents]
                scores = aggregate(predictions, aggregation, weights=own, seed=seed)
            found.append(Predictor(name, scores.argmax(axis=1), scores))
    return found


def compression_report(
    origin: Origin, evaluation: Evaluation, *, base: str, features: tuple[str, ...]
) -> CompressionReport:
    """Return what the page about a run's students and copies tells, `base` being the ensemble's own predictor."""
    shown = [name for name, made in origin.ensemble.descendants.items() if name in evaluation.predictors]
    ids = origin.assembly.held_out[TEST][:NUM_TIMED]
    weighed = {base: _weigh(list(_constituents(origin)), origin.assembly.take(ids))}
    for name in shown:
        made = origin.ensemble.descendants[name]
        weighed[name] = _weigh(list(_members(origin, made)), origin.read(recipe_of(made).model(origin), ids))
    changes = paired_differences(evaluation, baseline=base, predictors=shown)
    own = evaluation.metrics[evaluation.metrics["predictor"].isin([base, *shown])]
    run = origin.place.run
    return CompressionReport(
        title=f"{origin.examples.name}: smaller models",
        base=base,
        models=pd.DataFrame([_row(origin, name, each) for name, each in weighed.items()]),
        metrics=own.reset_index(drop=True),
        changes=changes,
        features=features,
        layers=pd.concat([each.layers.assign(name=name) for name, each in weighed.items()], ignore_index=True),
        settings={name: dict(origin.ensemble.descendants[name].settings) for name in shown},
        commands=tuple(command_of(str(run.directory), origin.ensemble.descendants[name]) for name in shown),
        level=evaluation.level,
        environment={key: value for key, value in run.environment.items() if key != "commands"},
        idle={name: str(made.reason) for name, made in origin.ensemble.descendants.items() if not made.models},
        majority_share=_majority_share(origin),
    )


def command_of(directory: str, made: Descendant) -> str:
    """Return the command that makes a descendant with the settings it has, as a shell reads it."""
    recipe = recipe_of(made)
    words = _words(replace(recipe.chosen, name=recipe.name))
    if recipe.compress is not None:
        words += [f"calibration.{word}" for word in _words(recipe.compress[1])]
    return shlex.join(["fairsisa", made.verb, f"run={_typed(directory)}", *words])


def _words(settings: CompressionSettings | CalibrationSettings | DistillationSettings) -> list[str]:
    """Return the settings that differ from their defaults as they are typed."""
    defaults, words = plain(type(settings)()), []
    for key, value in plain(settings).items():
        if isinstance(value, Mapping):
            words += [f"{key}.{inner}={_typed(item)}" for inner, item in value.items()]
        elif value != defaults[key]:
            words.append(f"{key}={_typed(value)}")
    return words


def _typed(value: object) -> str:
    """Return a value as it is typed in a command; text that could be read as anything else stands in quotes."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, str) and (not PLAIN.fullmatch(value) or value.lower() in WORDS):
        escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), value)
        return f"'{escaped}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _row(origin: Origin, name: str, each: Weighed) -> dict[str, object]:
    made = origin.ensemble.descendants.get(name)
    return {
        "name": name,
        "made_by": "train" if made is None else made.verb,
        "source": "" if made is None else str(made.settings.get("source", made.settings.get("teacher", ""))),
        "steps": _steps(made),
        "num_models": each.num_models,
        "num_parameters": each.num_parameters,
        "size_bytes": each.size_bytes,
        "memory_bytes": each.memory_bytes,
        "sparsity": each.sparsity,
        "bits": each.bits,
        "latency_ms": each.latency[0],
        "latency_low": each.latency[1],
        "latency_high": each.latency[2],
        "texts_per_second": each.texts_per_second,
    }


def _steps(made: Descendant | None) -> str:
    if made is None:
        return ""
    recipe: Recipe = recipe_of(made)
    if recipe.compress is not None:
        return ", ".join(step.label for step in recipe.compress[0].steps)
    student = recipe.student
    depth = "" if student.num_layers is None else f", {student.num_layers} layers"
    return f"{student.scope} student of {student.teacher}{depth}"


def _constituents(origin: Origin) -> Iterator[tuple[str, nn.Module, Blueprint, list[str] | None]]:
    trainer = origin.place.settings.trainer
    for name, chain in origin.chains.items():
        precision = compute_precision(trainer, chain.model)
        spec = spec_of(chain, origin.store)
        blueprint = Blueprint(spec, precision=precision, device=trainer.accelerator, threads=trainer.threads)
        yield name, open_model(origin.store, checkpoint_of(chain), blueprint), blueprint, None


def _members(origin: Origin, made: Descendant) -> Iterator[tuple[str, nn.Module, Blueprint, list[str] | None]]:
    recipe = recipe_of(made)
    for member, name in made.models.items():
        blueprint = recipe.blueprint(origin, member)
        touched = [layer.name for layer in card_of(origin.store, name).layers] if made.verb == COMPRESS else None
        yield member, open_model(origin.store, name, blueprint), blueprint, touched


def _weigh(members: Sequence[tuple[str, nn.Module, Blueprint, list[str] | None]], inputs: Inputs) -> Weighed:
    networks = [network for _, network, _, _ in members]
    layers = pd.concat([_layers(member, network, touched) for member, network, _, touched in members])
    size = sum(tensor.numel() * tensor.element_size() for each in networks for tensor in pack(each).tensors.values())
    parameters, memory = sum(map(count_parameters, networks)), sum(map(bytes_in_memory, networks))
    weights = layers["num_weights"].to_numpy(dtype=np.float64)
    ready = [(in_use(network, blueprint), blueprint) for _, network, blueprint, _ in members]

    def score(some: Inputs) -> None:
        for network, blueprint in ready:
            score_inputs(network, some, blueprint)

    threads = torch.get_num_threads()
    torch.set_num_threads(members[0][2].threads)
    try:
        latency, speed = _timed(score, inputs)
    finally:
        torch.set_num_threads(threads)
    return Weighed(
        num_models=len(members),
        num_parameters=parameters,
        size_bytes=size,
        memory_bytes=memory,
        sparsity=float((layers["sparsity"].to_numpy() * weights).sum() / weights.sum()) if len(layers) else math.nan,
        bits=float((layers["bits"].to_numpy() * weights).sum() / weights.sum()) if len(layers) else math.nan,
        latency=latency,
        texts_per_second=speed,
        layers=layers.drop(columns="num_weights"),
    )


def _layers(member: str, network: nn.Module, touched: list[str] | None) -> pd.DataFrame:
    names = list(weight_layers(network)) if touched is None else touched
    cards = count_layers(network, names)
    columns = ["constituent", "layer", "sparsity", "bits", "num_weights"]
    return pd.DataFrame([(member, c.name, c.sparsity, c.bits, c.num_weights) for c in cards], columns=columns)


def _timed(score: Callable[[Inputs], None], inputs: Inputs) -> tuple[tuple[float, float, float], float]:
    """Return the latency of one text at a time, and texts a second in batches, both after a warm-up."""
    score(inputs.take(range(min(8, len(inputs)))))
    seconds = []
    for row in range(min(NUM_SINGLE, len(inputs))):
        start = time.perf_counter()
        score(inputs.take([row]))
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    score(inputs)
    together = time.perf_counter() - start
    low, middle, high = (1000 * value for value in np.quantile(seconds, [0.1, 0.5, 0.9]))
    return (float(middle), float(low), float(high)), len(inputs) / together


def _majority_share(origin: Origin) -> float:
    labels = origin.examples.split(TEST)["label"].to_numpy()
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else math.nan
