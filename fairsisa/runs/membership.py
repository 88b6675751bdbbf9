"""What a membership-inference attack sees of the examples to be forgotten, before they are and after."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fairsisa.runs.assembly import Assembly
from fairsisa.runs.directory import Run
from fairsisa.sisa.ensemble import PredictTask, score_unkept
from fairsisa.sisa.membership import membership_auc

SMALLEST = 1e-12


def members_of(assembly: Assembly, ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return which of the examples each constituent was trained on; constituents without any are left out."""
    wanted = set(ids)
    found = {
        chain.constituent: tuple(i for own in chain.slices for i in own if i in wanted)
        for chain in assembly.constituents
    }
    return {name: own for name, own in found.items() if own}


def attack(
    run: Run,
    assembly: Assembly,
    source: Assembly,
    members: Mapping[str, tuple[str, ...]],
    predictions: Mapping[str, str],
) -> dict[str, Any]:
    """Return the attack's AUC as plain values: losses of `members` against losses of the test split.

    The constituents are those of `assembly`; `source` holds the members' inputs, which leave no trace on disk.
    `predictions` names each constituent's scores of the test split.
    """
    inside, outside = [], []
    for chain in assembly.constituents:
        if chain.constituent in members and chain.constituent in predictions:
            inputs = source.take(members[chain.constituent])
            scores = score_unkept(PredictTask(chain, inputs))
            if scores is not None:
                inside.append(_losses(scores, inputs.labels))
                outside.append(_kept_losses(run, assembly, predictions[chain.constituent]))
    return asdict(membership_auc(_joined(inside), _joined(outside)))


def _kept_losses(run: Run, assembly: Assembly, name: str) -> np.ndarray:
    artefact = run.store.get(name)
    labels = assembly.take(artefact.lineage.examples).labels
    return _losses(artefact.tensors["scores"].numpy(), labels)


def _losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    chosen = scores.astype(np.float64)[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(chosen, SMALLEST)))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0)
