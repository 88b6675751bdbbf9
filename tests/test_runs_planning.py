from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairsisa.errors import RunError
from fairsisa.execution import Event
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import REPORTS, evaluate_run
from fairsisa.runs.keeping import retain
from fairsisa.runs.planning import ConstituentPlan, Plan, plan_deletion
from fairsisa.runs.tracing import Doomed
from fairsisa.settings import StorageSettings
from unlearning_cases import (
    HERE,
    WITH_BASELINES,
    copied,
    forget,
    held_out,
    in_slice,
    planted,
    silent,
    trained_in,
    tree_of,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"), WITH_BASELINES)


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


def shown_after(run: Run, gone: Iterable[str]) -> dict[str, list[int]]:
    """Return how many examples each slice is shown once `gone` are gone, row by row from the partition's table."""
    frame = run.partition.frame()
    frame = frame[~frame["example_id"].isin(set(gone))]
    epochs = 2 * run.settings.trainer.max_epochs / (run.num_slices + 1)
    found = {}
    for shard in range(run.settings.partition.num_shards):
        own, wanted, ends = frame[frame["shard"] == shard], 0.0, [0]
        for place in range(run.num_slices):
            seen = int((own["slice"] <= place).sum())
            wanted += epochs * seen if (own["slice"] == place).any() else 0.0
            ends.append(round(wanted))
        found[f"shard-{shard}"] = [end - start for start, end in itertools.pairwise(ends)]
    return found


def trained_presentations(run: Run, ids: Iterable[str]) -> int:
    """Forget the examples; return how many examples training was shown for it, from the checkpoints' own lineages."""
    events = list[Event]()
    forget(run, *ids, on_event=events.append)
    places = {(e.constituent, e.slice) for e in events if e.kind == "slice_done" and e.values["status"] == "trained"}
    names = [run.ensemble.checkpoints[constituent][place] for constituent, place in places]
    return sum(run.store.manifest(name).lineage.settings["presentations"] for name in names)


def test_a_plan_touches_nothing(original):
    root = original.directory.parent
    before = tree_of(root)
    folders = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_dir()}
    plan_deletion(original, [*in_slice(original, 0, 1), *held_out(original, "test")])
    assert {name: found for name, found in tree_of(root).items() if not name.endswith(".lock")} == {
        name: found for name, found in before.items() if not name.endswith(".lock")
    }
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_dir()} == folders


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numbers_are_those_of_a_count_by_hand(original, data):
    frame, partition = original.examples.frame, original.partition.frame()
    ids = data.draw(st.lists(st.sampled_from(sorted(frame["example_id"])), unique=True, max_size=30))
    plan = plan_deletion(original, [*ids, "nobody"])
    hit = frame[frame["example_id"].isin(ids)]
    assert dict(plan.num_examples) == hit.groupby("split").size().to_dict()
    touched = partition[partition["example_id"].isin(ids)].groupby("shard")
    firsts = {f"shard-{shard}": int(first) for shard, first in touched["slice"].min().items()}
    shown = shown_after(original, ids)
    assert {part.constituent: part.first_slice for part in plan.constituents} == firsts
    for part in plan.constituents:
        assert part.resume_slice == part.first_slice
        assert part.num_removed == touched.size()[int(part.constituent[-1])]
        assert part.presentations == sum(shown[part.constituent][part.first_slice :])
        assert part.full_presentations == sum(shown[part.constituent])
        assert part.old == original.ensemble.checkpoints[part.constituent][part.first_slice :]
    assert plan.full_presentations == sum(map(sum, shown.values()))
    left = frame[~frame["example_id"].isin(ids)].groupby("split").size()
    pairs = 0
    for split in ("calibration", "test"):
        lost = split in set(hit["split"])
        pairs += int(left.get(split, 0)) * sum(lost or name in firsts for name in ("shard-0", "shard-1"))
    assert plan.scores == pairs
    whole = {"baseline-whole"} if firsts else set()
    assert set(plan.baselines) == whole | ({"baseline-fraction"} if "shard-0" in firsts else set())
    store = original.store
    assert set(plan.doomed.names) == {name for name in store.names() if store.example_ids(name) & set(ids)}
    assert sum(plan.doomed.sizes.values()) == sum(store.manifest(name).num_bytes for name in plan.doomed.names)


@pytest.mark.parametrize("kind", ["train", "test", "both"])
def test_what_is_doomed_is_what_goes(run, kind):
    ids = (*in_slice(run, 0, 1), *in_slice(run, 1, 2)) if kind != "test" else ()
    ids += held_out(run, "test", 2) if kind != "train" else ()
    planted(run.store, [planted(run.store, run.ensemble.checkpoints["shard-0"][1:2])], kind="quantised")
    before = set(run.store.names())
    plan = plan_deletion(run, ids)
    forget(run, *ids)
    assert before - set(run.store.names()) == set(plan.doomed.names)
    assert set(plan.baselines) == {"baseline-whole", "baseline-fraction"} - set(run.ensemble.baselines)


def test_the_plan_of_an_executed_request_is_what_was_trained(run):
    ids = (*in_slice(run, 0, 0), *in_slice(run, 1, 2, 3))
    plan = plan_deletion(run, ids)
    assert trained_presentations(run, ids) == plan.presentations
    assert plan_deletion(run, ids).presentations == 0
    assert plan_deletion(run, ids).doomed.names == ()


@pytest.mark.parametrize(("place", "resume"), [(0, 0), (1, 0), (2, 0)])
def test_checkpoints_that_were_dropped_are_counted_in(original, tmp_path, place, resume):
    run = copied(original, tmp_path)
    run.keep(StorageSettings(retention="last", keep_last=1))
    assert len(retain(run).names) == 4
    ids = in_slice(run, 1, place)
    (part,) = plan_deletion(run, ids).constituents
    assert (part.first_slice, part.resume_slice) == (place, resume)
    assert part.presentations == sum(shown_after(run, ids)["shard-1"])
    assert trained_presentations(run, ids) == part.presentations


def test_a_checkpoint_in_the_middle_saves_the_slices_before_it(original, tmp_path):
    run = copied(original, tmp_path)
    run.store.drop([run.ensemble.checkpoints["shard-1"][0]])
    ids = in_slice(run, 1, 2)
    (part,) = plan_deletion(run, ids).constituents
    assert (part.first_slice, part.resume_slice) == (2, 2)
    assert part.presentations == sum(shown_after(run, ids)["shard-1"][2:])
    assert trained_presentations(run, ids) == part.presentations


def test_reports_go_stale(run):
    assert plan_deletion(run, in_slice(run, 0, 0)).stale == ()
    evaluate_run(run, execution=HERE, on_event=silent)
    assert plan_deletion(run, in_slice(run, 0, 0)).stale == REPORTS


def test_seconds_follow_from_the_speed_on_record(run):
    table = pd.read_csv(run.path("training.csv"))
    own = table[table["shard"].str.startswith("shard-")]
    shown = sum(map(sum, shown_after(run, ()).values()))
    plan = plan_deletion(run, (*in_slice(run, 0, 0), *in_slice(run, 1, 2)))
    assert plan.examples_per_second == pytest.approx(shown / own["seconds"].sum(), rel=1e-6)
    assert plan.core_seconds == pytest.approx(plan.presentations / plan.examples_per_second)
    longest, rest = sorted((part.presentations for part in plan.constituents), reverse=True)
    assert plan.wall_seconds(1) == pytest.approx(plan.core_seconds)
    assert plan.wall_seconds(2) == plan.wall_seconds(9) == pytest.approx(longest / plan.examples_per_second)
    assert rest < longest
    run.path("training.csv").unlink()
    without = plan_deletion(run, in_slice(run, 0, 0))
    assert (without.examples_per_second, without.core_seconds, without.wall_seconds(2)) == (None, None, None)


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(1, 5))
def test_wall_time_is_that_of_the_busiest_worker(costs, num_workers):
    parts = tuple(ConstituentPlan(f"shard-{i}", 0, 0, 1, cost, cost, ()) for i, cost in enumerate(costs))
    plan = Plan({}, parts, sum(costs), 0, 2.0, Doomed({}, {}, {}), (), ())
    heap = [0] * num_workers
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(heap, heap[0] + cost)
    assert plan.wall_seconds(num_workers) == max(heap) / 2.0


def test_what_other_runs_hold_is_told_apart(run):
    trained_in(run.directory.parent, WITH_BASELINES, name="other")
    plan = plan_deletion(run, in_slice(run, 0, 1))
    (owner,) = plan.doomed.held_by_others
    assert owner == str(run.directory.parent.resolve() / "other")
    assert plan.doomed.names == ()
    held = plan.doomed.held_by_others[owner]
    gone = set(in_slice(run, 0, 1))
    assert set(held) == {name for name in run.store.names() if run.store.example_ids(name) & gone}


def test_evidence_names_no_example(original):
    ids = (*in_slice(original, 0, 0), *held_out(original, "test"))
    evidence = repr(plan_deletion(original, ids).evidence())
    assert not [example for example in original.examples.example_ids if example in evidence]


def test_an_untrained_run_has_no_plan(run):
    run.publish(replace(run.ensemble, status="untrained"))
    with pytest.raises(RunError, match="is not trained: run `fairsisa train run="):
        plan_deletion(run, ())
