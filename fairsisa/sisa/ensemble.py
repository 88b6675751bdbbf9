"""What the constituents say: their predictions, kept per checkpoint, and how many become one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fairsisa.data.encoding import Inputs
from fairsisa.execution import Event, Report
from fairsisa.models.batching import run_batched
from fairsisa.models.classifier import load_trained
from fairsisa.models.network import logits_of
from fairsisa.settings import AGGREGATIONS, one_of
from fairsisa.sisa.chain import Chain, plan_stages, predictions_lineage
from fairsisa.sisa.training import (
    compute_dtype,
    encoder_features,
    environment_of,
    network_inputs,
    new_network,
    trained_weights,
)
from fairsisa.store import Store
from fairsisa.tables import Predictions


@dataclass(frozen=True)
class PredictTask:
    """The examples that a trained chain is to score."""

    chain: Chain
    inputs: Inputs


def predict_constituent(task: PredictTask, report: Report) -> str | None:
    """Return the name of the constituent's predictions, made now unless the store has them.

    None stands for a constituent that has no training example left: it leaves the vote.
    """
    chain, store = task.chain, Store(task.chain.store)
    stages = plan_stages(chain)
    lineage = predictions_lineage(chain, stages[-1].lineage.name, task.inputs.example_ids, task.inputs.contents)
    if store.has(lineage.name):
        return lineage.name
    weights = trained_weights(store, stages, len(stages) - 1)
    if weights is None:
        return None
    inputs = network_inputs(chain, task.inputs, [len(task.inputs)], store)
    scores = _scores(chain, weights, inputs)
    store.put(lineage, {"scores": torch.from_numpy(scores)}, environment=environment_of(chain))
    report(Event("predicted", chain.constituent, values={"examples": len(inputs)}))
    return lineage.name


def score_unkept(task: PredictTask) -> np.ndarray | None:
    """Return class probabilities as `predict_constituent` makes them, float32, but keep no trace of them on disk.

    None stands for a constituent that has no training example left.
    """
    chain, store = task.chain, Store(task.chain.store)
    stages = plan_stages(chain)
    weights = trained_weights(store, stages, len(stages) - 1)
    if weights is None:
        return None
    inputs = task.inputs
    if chain.reads_features and inputs.features is None:
        inputs = inputs.with_features(encoder_features(chain, inputs))
    return _scores(chain, weights, inputs)


def _scores(chain: Chain, weights: Mapping[str, torch.Tensor], inputs: Inputs) -> np.ndarray:
    network = new_network(chain, 0 if inputs.features is None else inputs.features.shape[1])
    load_trained(network, weights)
    network.to(chain.trainer.accelerator, compute_dtype(chain)).eval()
    return run_batched(
        lambda batch: logits_of(network, batch).softmax(dim=1),
        inputs,
        width=chain.num_classes,
        device=chain.trainer.accelerator,
    )


def read_predictions(store: Store, names: Mapping[str, str]) -> Predictions:
    """Return the predictions table of the given artefacts, by constituent; all must be of the same examples."""
    artefacts = [store.get(name) for name in names.values()]
    scores = np.stack([artefact.tensors["scores"].numpy() for artefact in artefacts], axis=1)
    return Predictions(artefacts[0].lineage.examples, tuple(names), scores)


def aggregate(predictions: Predictions, aggregation: str, *, weights: Sequence[float], seed: int = 0) -> np.ndarray:
    """Return one score per class and example, float64, shape (num_examples, num_classes); its argmax is the decision.

    "majority_vote" gives the share of votes (Bourtoule et al. 2021); "mean_score" the mean class probability;
    "weighted_score" its mean under `weights`, shape (num_constituents,), the sizes of the shards; "random_member" the
    scores of one constituent, drawn by a keyed hash of the example id (the same for the same example, always). A tie
    goes to the class of lower index, which for two classes is the negative one.
    """
    one_of("aggregation", aggregation, AGGREGATIONS)
    scores = predictions.scores.astype(np.float64)
    if aggregation == "majority_vote":
        return np.asarray((predictions.votes[:, :, None] == np.arange(scores.shape[2])).mean(axis=1))
    if aggregation == "mean_score":
        return np.asarray(scores.mean(axis=1))
    if aggregation == "weighted_score":
        return np.asarray(np.average(scores, axis=1, weights=np.asarray(weights, dtype=np.float64)))
    members = [_member(example, scores.shape[1], seed) for example in predictions.example_ids]
    return np.asarray(scores[np.arange(len(members)), members])


def _member(example_id: str, num_constituents: int, seed: int) -> int:
    digest = hashlib.blake2b(example_id.encode(), key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % num_constituents
