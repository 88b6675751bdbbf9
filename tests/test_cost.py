from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import PartitionError
from fairsisa.settings import TrainerSettings
from fairsisa.sisa import cost
from fairsisa.sisa.budget import presentations, slice_epochs
from fairsisa.sisa.cost import (
    ShardCost,
    plan_requests,
    removed_counts,
    resume_slices,
    retraining_cost,
    stage_presentations,
)

IMPORTS = """
import json, sys
import fairsisa.sisa.cost, fairsisa.sisa.formulas, fairsisa.sisa.advice, fairsisa.sisa.retention
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@st.composite
def partitions(draw: st.DrawFn) -> tuple[pd.DataFrame, int, int]:
    shards, slices = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    cells = draw(st.lists(st.integers(0, shards * slices - 1), min_size=1, max_size=60))
    frame = pd.DataFrame(
        {
            "example_id": [f"e{place}" for place in range(len(cells))],
            "shard": [cell // slices for cell in cells],
            "slice": [cell % slices for cell in cells],
        }
    )
    return frame.astype({"shard": "int64", "slice": "int64"}), shards, slices


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A partition, what each of some requests names, the epochs, and the checkpoints on disk."""
    frame, shards, slices = draw(partitions())
    names = st.sampled_from([*frame["example_id"], "unknown"])
    requests = draw(st.lists(st.lists(names, max_size=8), max_size=6))
    listed = draw(st.lists(st.floats(0.1, 5), min_size=slices, max_size=slices))
    matched = slice_epochs(TrainerSettings(max_epochs=draw(st.sampled_from((0.5, 1.0, 3.0)))), slices)
    flags = draw(st.lists(st.booleans(), min_size=shards * slices, max_size=shards * slices))
    kept = draw(st.sampled_from((np.ones, np.zeros, None)))
    return {
        "frame": frame,
        "requests": requests,
        "epochs": draw(st.sampled_from((matched, tuple(listed)))),
        "kept": np.reshape(flags, (shards, slices)) if kept is None else kept((shards, slices), dtype=bool),
    }


def slow_counts(frame: pd.DataFrame, ids: Any, shape: tuple[int, int]) -> np.ndarray:
    counts = np.zeros(shape, dtype=np.int64)
    for example, shard, place in frame[["example_id", "shard", "slice"]].itertuples(index=False):
        counts[shard, place] += example in set(ids)
    return counts


def slow_costs(case: dict[str, Any], ids: Any) -> list[ShardCost]:
    """The costs by walking back from the first changed stage, as training looks for weights to go on from."""
    kept, epochs = case["kept"], case["epochs"]
    sizes = slow_counts(case["frame"], case["frame"]["example_id"], kept.shape)
    gone = slow_counts(case["frame"], ids, kept.shape)
    found = []
    for shard in range(len(sizes)):
        changed = [place for place in range(kept.shape[1]) if gone[shard, place]]
        if not changed:
            continue
        resume = first = changed[0]
        for place in reversed(range(first)):
            if sizes[shard, place]:
                if kept[shard, place]:
                    break
                resume = place
        shown = presentations(epochs, (sizes - gone)[shard].tolist())
        found.append(ShardCost(shard, first, resume, sum(shown[resume:]), sum(shown), int(gone[shard].sum())))
    return found


def save(frame: pd.DataFrame, folder: Path) -> Path:
    path = folder / "partition.parquet"
    pq.write_table(pa.Table.from_pandas(frame.assign(subject_id="s"), preserve_index=False), path, row_group_size=7)
    return path


@given(st.data(), st.integers(1, 9))
def test_many_shards_at_once_are_shown_what_one_alone_is(data, num_slices):
    size = st.lists(st.integers(0, 10**6), min_size=num_slices, max_size=num_slices)
    rows = data.draw(st.lists(size, min_size=1, max_size=4))
    epochs = data.draw(st.lists(st.floats(0.01, 40), min_size=num_slices, max_size=num_slices))
    shown = stage_presentations(epochs, np.array(rows))
    assert shown.dtype == np.int64
    assert shown.tolist() == [list(presentations(epochs, row)) for row in rows]


def test_halves_are_rounded_as_the_budget_rounds_them():
    sizes = [[1, 0, 2, 3, 1, 1]]
    assert stage_presentations([0.5] * 6, np.array(sizes)).tolist() == [list(presentations([0.5] * 6, sizes[0]))]


@given(cases(), st.booleans(), st.booleans())
def test_removed_counts_are_those_of_a_plain_count(case, arrow, chunked):
    ids = {name for request in case["requests"] for name in request}
    shards, slices = case["kept"].shape
    table = case["frame"]
    if arrow:
        table = pa.Table.from_pandas(table)
        table = pa.concat_tables([table, table.slice(0, 0)] if chunked else [table])
    found = removed_counts(table, ids, num_shards=shards, num_slices=slices)
    assert found.dtype == np.int64
    assert found.tolist() == slow_counts(case["frame"], ids, (shards, slices)).tolist()


@given(cases())
def test_costs_are_those_of_walking_back_to_the_weights(case):
    ids = {name for request in case["requests"] for name in request}
    sizes = slow_counts(case["frame"], case["frame"]["example_id"], case["kept"].shape)
    removed = slow_counts(case["frame"], ids, case["kept"].shape)
    assert list(retraining_cost(sizes, removed, epochs=case["epochs"], kept=case["kept"])) == slow_costs(case, ids)


@given(cases())
def test_no_stage_before_the_first_changed_slice_changes(case):
    ids = {name for request in case["requests"] for name in request}
    sizes = slow_counts(case["frame"], case["frame"]["example_id"], case["kept"].shape)
    removed = slow_counts(case["frame"], ids, case["kept"].shape)
    for found in retraining_cost(sizes, removed, epochs=case["epochs"], kept=np.ones_like(case["kept"])):
        assert found.resume_slice == found.first_slice
        before, after = (
            presentations(case["epochs"], rows[found.shard].tolist())[: found.first_slice]
            for rows in (sizes, sizes - removed)
        )
        assert before == after
        assert found.presentations == found.full_presentations - sum(before)


@given(cases(), st.sampled_from((1, 2, 10**6)))
def test_a_plan_from_a_file_costs_each_request_alone_and_all_together(tmp_path_factory, case, cells_at_once):
    path = save(case["frame"], tmp_path_factory.mktemp("plan"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "CELLS_AT_ONCE", cells_at_once)
        patch.setattr(cost, "ROWS_AT_ONCE", 5)
        plan = plan_requests(path, case["requests"], epochs=case["epochs"], kept=case["kept"])
    alone = [slow_costs(case, ids) for ids in case["requests"]]
    assert plan.request_presentations.tolist() == [sum(found.presentations for found in costs) for costs in alone]
    assert plan.request_removed.tolist() == [sum(found.num_removed for found in costs) for costs in alone]
    together = slow_costs(case, {name for request in case["requests"] for name in request})
    assert list(plan.batch) == together
    assert plan.batch_presentations == sum(found.presentations for found in together)
    assert plan.sizes.sum() == len(case["frame"])
    assert plan.removed.sum() == sum(found.num_removed for found in together)


@given(cases())
def test_more_checkpoints_never_cost_more_and_nothing_costs_more_than_from_scratch(case):
    ids = {name for request in case["requests"] for name in request}
    sizes = slow_counts(case["frame"], case["frame"]["example_id"], case["kept"].shape)
    removed = slow_counts(case["frame"], ids, case["kept"].shape)
    costs = [
        retraining_cost(sizes, removed, epochs=case["epochs"], kept=kept)
        for kept in (np.ones_like(case["kept"]), case["kept"], np.zeros_like(case["kept"]))
    ]
    for most, some, none in zip(*costs, strict=True):
        assert most.presentations <= some.presentations <= none.presentations == none.full_presentations


def test_a_checkpoint_of_an_empty_slice_holds_no_weights():
    sizes, kept = np.array([[4, 0, 4]]), np.array([[False, True, True]])
    assert resume_slices(kept, sizes).tolist() == [[0, 0, 0]]
    assert resume_slices(np.ones_like(kept), sizes).tolist() == [[0, 1, 2]]


def test_an_emptied_slice_and_an_emptied_shard_are_shown_nothing():
    sizes, kept = np.array([[2, 3], [2, 0]]), np.ones((2, 2), dtype=bool)
    found = retraining_cost(sizes, np.array([[0, 3], [2, 0]]), epochs=(1.0, 1.0), kept=kept)
    assert found == (ShardCost(0, 1, 1, 0, 2, 3), ShardCost(1, 0, 0, 0, 0, 2))


def test_added_slices_are_costed_with_their_own_epochs():
    epochs = slice_epochs(TrainerSettings(max_epochs=3.0), 2, 1)
    found = retraining_cost(np.full((1, 3), 10), np.array([[0, 0, 1]]), epochs=epochs, kept=np.ones((1, 3), dtype=bool))
    assert found == (ShardCost(0, 2, 2, 58, 118, 1),)


def test_a_column_that_is_missing_is_named(tmp_path):
    frame = pd.DataFrame({"example_id": ["a"], "shard": [0]})
    with pytest.raises(PartitionError, match="Expected the columns example_id, shard, slice; slice not found"):
        removed_counts(frame, {"a"}, num_shards=1, num_slices=1)
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "partition.parquet")
    with pytest.raises(PartitionError, match="slice not found"):
        plan_requests(tmp_path / "partition.parquet", [["a"]], epochs=(1.0,), kept=np.ones((1, 1), dtype=bool))


@pytest.mark.parametrize(("shard", "place", "said"), [(2, 0, r"shard to be 0\.\.1"), (0, -1, r"slice to be 0\.\.2")])
def test_a_place_out_of_range_is_refused(shard, place, said):
    frame = pd.DataFrame({"example_id": ["a"], "shard": [shard], "slice": [place]})
    with pytest.raises(PartitionError, match=said):
        removed_counts(frame, {"a"}, num_shards=2, num_slices=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"removed": np.zeros((1, 3))}, r"of one shape .* got \(1, 2\), \(1, 3\) and \(1, 2\)"),
        ({"kept": np.ones((2, 2), dtype=bool)}, r"of one shape"),
        ({"epochs": (1.0,)}, "epochs for each of 2 slices, got 1"),
        ({"removed": np.array([[0, 9]])}, "lose between none and all"),
        ({"removed": np.array([[-1, 0]])}, "lose between none and all"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, said):
    case = {"removed": np.array([[1, 0]]), "epochs": (1.0, 1.0), "kept": np.ones((1, 2), dtype=bool)} | changes
    with pytest.raises(ValueError, match=said):
        retraining_cost(np.array([[3, 3]]), case.pop("removed"), **case)


def test_planning_needs_no_deep_learning():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pytorch_lightning"} & set(json.loads(done.stdout))


def test_the_benchmark_runs_on_a_small_partition():
    script = Path(__file__).resolve().parents[1] / "scripts" / "bench_planning.py"
    command = [sys.executable, str(script), "--examples", "2000", "--requests", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    assert "| 2,000 | 30 |" in done.stdout
