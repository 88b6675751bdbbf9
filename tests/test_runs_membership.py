from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fairsisa.runs.assembly import Assembly, assemble
from fairsisa.runs.directory import Run
from fairsisa.runs.membership import attack, members_of
from fairsisa.sisa.certificate import decode
from fairsisa.tables import TEST
from unlearning_cases import PLAIN, copied, forget, held_out, in_slice, ledger_of, trained_in, tree_of


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def assembly(original: Run) -> Assembly:
    return assembled(original)


def assembled(run: Run) -> Assembly:
    return assemble(run.settings, run.examples, run.partition, run.store.location)


def attacked(run: Run, assembly: Assembly, ids: tuple[str, ...]) -> dict[str, Any]:
    return attack(run, assembly, assembly, members_of(assembly, ids), run.ensemble.predictions[TEST])


def losses(run: Run, constituent: str, ids: tuple[str, ...]) -> np.ndarray:
    """Return cross-entropies of a logistic regression, worked out from its weights alone."""
    frame = run.examples.frame.set_index("example_id").loc[list(ids)]
    tensors = run.store.get(run.ensemble.checkpoints[constituent][-1]).tensors
    values = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    columns = [column for column in frame.columns if column.startswith("feature:")]
    rows = frame[columns].to_numpy(dtype=np.float64)
    (mean,) = (value for name, value in values.items() if "mean" in name)
    (scale,) = (value for name, value in values.items() if "mean" not in name and name.startswith("0."))
    (weights,) = (value for value in values.values() if value.ndim == 2)
    (bias,) = (value for name, value in values.items() if name.endswith("bias"))
    logits = ((rows - mean) / scale) @ weights.T + bias
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(-logs[np.arange(len(rows)), frame["label"]])


def test_members_are_the_forgotten_examples_of_each_constituent(original, assembly):
    ids = (*in_slice(original, 0, 0), *in_slice(original, 0, 2, 2), *held_out(original, "test"), "nobody")
    found = members_of(assembly, ids)
    assert {name: set(own) for name, own in found.items()} == {"shard-0": set(ids[:3])}
    assert members_of(assembly, ()) == {}


def test_the_auc_is_that_of_losses_worked_out_by_hand(original, assembly):
    ids = (*in_slice(original, 0, 1, 4), *in_slice(original, 1, 0, 5))
    test = tuple(original.examples.split("test")["example_id"])
    inside = [losses(original, "shard-0", ids[:4]), losses(original, "shard-1", ids[4:])]
    outside = [losses(original, name, test) for name in ("shard-0", "shard-1")]
    found = attacked(original, assembly, ids)
    assert (found["num_members"], found["num_nonmembers"]) == (9, 2 * len(test))
    scores = -np.concatenate(inside + outside)
    labels = [1] * 9 + [0] * (2 * len(test))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert found["low"] <= found["auc"] <= found["high"]


def test_an_attack_leaves_no_trace(original, assembly):
    root = original.directory.parent
    before = tree_of(root)
    attacked(original, assembly, in_slice(original, 0, 1, 4))
    assert tree_of(root) == before


def test_without_members_there_is_no_number(original, assembly):
    found = attacked(original, assembly, held_out(original, "test"))
    assert found["auc"] is None
    assert found["reason"]


def test_before_and_after_stand_in_the_certificate(original, tmp_path: Path):
    run = copied(original, tmp_path)
    ids = in_slice(run, 0, 1, 6)
    expected = attacked(run, assembled(run), ids)
    out = forget(run, *ids, settings=replace(PLAIN, membership=True))
    report = decode(out.certificates[0].read_bytes(), ledger_of(run).key).membership
    assert report is not None
    assert report.before.auc == pytest.approx(expected["auc"])
    assert (report.before.num_members, report.after.num_members) == (6, 6)
    out = forget(run, *in_slice(run, 1, 0))
    assert decode(out.certificates[0].read_bytes(), ledger_of(run).key).membership is None
