from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsisa.errors import ConfigError
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.keeping import planned_epochs, retain, slice_sizes
from fairsisa.settings import StorageSettings
from unlearning_cases import (
    HERE,
    TABULAR,
    copied,
    forget,
    held_out,
    in_slice,
    planted,
    served_digests,
    silent,
    train_again,
    trained_in,
    verified,
)

LAST = StorageSettings(retention="last")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"))


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


def kept_places(run: Run) -> dict[str, list[int]]:
    """Return the slices of each shard whose weights are on disk."""
    store = run.store
    return {
        name: [place for place, step in enumerate(steps) if store.has(step)]
        for name, steps in run.ensemble.checkpoints.items()
    }


def kept_with(run: Run, **fields: Any) -> dict[str, list[int]]:
    run.keep(StorageSettings(**fields))
    retain(run)
    return kept_places(run)


def weight(run: Run) -> int:
    return max(run.store.manifest(step).num_bytes for steps in run.ensemble.checkpoints.values() for step in steps)


def test_by_default_all_stay(run):
    assert retain(run).names == ()
    assert kept_places(run) == {"shard-0": [0, 1, 2], "shard-1": [0, 1, 2]}


@pytest.mark.parametrize("keep_last", [1, 2, 3, 7])
def test_the_last_ones_stay(run, keep_last):
    expected = list(range(max(0, 3 - keep_last), 3))
    assert kept_with(run, retention="last", keep_last=keep_last) == {"shard-0": expected, "shard-1": expected}


@pytest.mark.parametrize("room", [2, 3, 4, 5, 6])
def test_the_best_subset_under_a_budget_always_holds_the_last(run, room):
    bound = room * weight(run)
    kept = kept_with(run, retention="optimal", max_bytes=bound)
    assert all(places[-1] == 2 for places in kept.values())
    assert sum(map(len, kept.values())) == room
    on_disk = sum(
        run.store.manifest(step).num_bytes
        for steps in run.ensemble.checkpoints.values()
        for step in steps
        if run.store.has(step)
    )
    assert on_disk <= bound


@pytest.mark.parametrize(
    ("policy", "checkpoints"), [("all", 6), ("last", 2), ("optimal", 2)], ids=["all", "last", "optimal"]
)
def test_too_small_a_budget_names_the_smallest_that_works(run, policy, checkpoints):
    run.keep(StorageSettings(retention=policy, max_bytes=1))
    with pytest.raises(ConfigError, match=r"the smallest valid value is \d+") as caught:
        retain(run)
    assert kept_places(run) == {"shard-0": [0, 1, 2], "shard-1": [0, 1, 2]}
    fewest = 2 * weight(run)
    run.keep(StorageSettings(retention=policy, max_bytes=checkpoints * weight(run) - 1))
    with pytest.raises(ConfigError, match="the smallest valid value is"):
        retain(run)
    found = re.search(r"smallest valid value is (\d+)", str(caught.value))
    assert found is not None
    assert int(found[1]) == fewest
    run.keep(StorageSettings(retention=policy, max_bytes=checkpoints * weight(run)))
    retain(run)
    assert sum(map(len, kept_places(run).values())) == checkpoints


def test_a_policy_that_train_is_given_holds_for_what_it_trains(tmp_path):
    run = trained_in(tmp_path, storage=LAST)
    assert kept_places(run) == {"shard-0": [2], "shard-1": [2]}
    assert run.storage == LAST
    assert {result.status for result in train_again(run)} == {"dropped", "reused"}
    assert kept_places(run) == {"shard-0": [2], "shard-1": [2]}
    table = pd.read_csv(run.path("training.csv"))
    assert (table["seconds"] > 0).all()


def test_a_policy_that_cannot_be_kept_is_not_written_down(tmp_path):
    run = trained_in(tmp_path, storage=LAST)
    with pytest.raises(ConfigError, match="the smallest valid value is"):
        train_again(run, storage=StorageSettings(retention="all", max_bytes=1))
    assert (run.storage, run.ensemble.status) == (LAST, "whole")
    train_again(run)
    assert run.storage == LAST


def test_a_run_serves_without_the_checkpoints_that_were_dropped(run):
    before = evaluate_run(run, execution=HERE, on_event=silent).evaluation.metrics
    kept_with(run, retention="last")
    run.store.purge([name for made in run.ensemble.predictions.values() for name in made.values()])
    after = evaluate_run(run, execution=HERE, on_event=silent).evaluation.metrics
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.parametrize("policy", ["last", "one of three"])
def test_forgetting_ends_with_the_same_bytes_whatever_was_dropped(run, original, tmp_path, policy):
    if policy == "last":
        kept_with(run, retention="last")
    else:
        kept_with(run, retention="optimal", max_bytes=3 * weight(run))
    ids = (*in_slice(run, 0, 1), *in_slice(run, 1, 2), *held_out(run, "test"))
    forget(run, *ids)
    straight = copied(original, tmp_path / "straight")
    forget(straight, *ids)
    assert served_digests(run) == served_digests(straight)
    assert run.ensemble.predictions == straight.ensemble.predictions
    assert sum(map(len, kept_places(run).values())) == (2 if policy == "last" else 3)
    assert all(places[-1] == 2 for places in kept_places(run).values())
    found = verified(run, "replay")
    assert (found.findings, found.num_not_comparable) == ((), 0)


def test_what_was_dropped_still_tells_whom_it_was_made_from(run):
    kept_with(run, retention="last")
    first = run.ensemble.checkpoints["shard-0"][0]
    child = planted(run.store, [first])
    forget(run, *in_slice(run, 0, 0))
    assert not run.store.has(child)
    assert first not in {entry.name for entry in run.store.records()}


def test_what_another_run_claims_is_not_dropped(run):
    other = trained_in(run.directory.parent, name="other")
    kept_with(run, retention="last")
    assert kept_places(other) == {"shard-0": [0, 1, 2], "shard-1": [0, 1, 2]}
    kept_with(other, retention="last")
    run.keep(LAST)
    retain(run)
    assert [len(places) for places in kept_places(other).values()] == [3, 3]


def test_garbage_is_what_no_run_needs(run):
    other = trained_in(run.directory.parent, name="other")
    stray = planted(run.store, [run.ensemble.checkpoints["shard-0"][2]])
    names = set(run.store.names())
    assert set(run.store.collect(older_than=0.0, dry_run=True).purged.names) == {stray}
    assert set(run.store.names()) == names
    assert run.store.collect(older_than=0.0).purged.names == (stray,)
    forget(run, *in_slice(run, 0, 1))
    assert run.store.collect(older_than=0.0).purged.names == ()
    assert all(map(run.store.has, run.ensemble.names | other.ensemble.names))
    other.store.unclaim(other.directory)
    only = other.ensemble.names - run.ensemble.names
    assert set(run.store.collect(older_than=0.0).purged.names) == only
    assert verified(run).passed


def test_sizes_and_epochs_are_those_of_the_tables(run):
    frame = run.partition.frame()
    expected = frame.groupby(["shard", "slice"]).size().unstack().to_numpy()
    np.testing.assert_array_equal(slice_sizes(run), expected)
    assert planned_epochs(run) == (2 * TABULAR.trainer.max_epochs / 4,) * 3
    forget(run, *[i for place in range(3) for i in run.partition.slice_ids(1, place)])
    np.testing.assert_array_equal(slice_sizes(run), [expected[0], [0, 0, 0]])


def test_an_emptied_shard_needs_no_room(run):
    forget(run, *[i for place in range(3) for i in run.partition.slice_ids(1, place)])
    kept_with(run, retention="last", max_bytes=weight(run))
    assert kept_places(run)["shard-0"] == [2]
    assert verified(run).passed
