from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.fairness.derived import joint as joint_module
from fairsisa.fairness.derived.joint import DENSE, SMALL_TABLE, Joint, count_joint, fits_code, pack_votes, refine

Cells = dict[tuple[int, int], list[float]]


@st.composite
def rows(draw: st.DrawFn, highest_state: int = 6) -> dict[str, Any]:
    num_groups, num_classes = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    size = draw(st.integers(0, 30))

    def column(highest: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(0, highest), min_size=size, max_size=size)), dtype=np.int64)

    weights = draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.25]), min_size=size, max_size=size))
    return {
        "groups": column(num_groups - 1),
        "labels": column(num_classes - 1),
        "states": column(highest_state),
        "num_groups": num_groups,
        "num_classes": num_classes,
        "weights": None if weights is None else np.array(weights),
    }


def counted(case: dict[str, Any]) -> Joint:
    return count_joint(
        case["groups"],
        case["labels"],
        case["states"],
        num_groups=case["num_groups"],
        num_classes=case["num_classes"],
        weights=case["weights"],
    )


def naive(case: dict[str, Any]) -> Cells:
    """Count by a dictionary, row by row."""
    cells: Cells = defaultdict(lambda: [0.0] * case["num_classes"])
    weights = np.ones(len(case["groups"])) if case["weights"] is None else case["weights"]
    for group, state, label, weight in zip(case["groups"], case["states"], case["labels"], weights, strict=True):
        if weight > 0.0:
            cells[int(group), int(state)][int(label)] += float(weight)
    return cells


def as_cells(joint: Joint) -> Cells:
    keys = zip(joint.groups.tolist(), joint.states.tolist(), strict=True)
    return dict(zip(keys, joint.counts.tolist(), strict=True))


def sorted_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note each time that rows are sorted rather than counted into a dense table."""
    calls: list[int] = []
    count = joint_module._sorted_counts

    def noted(codes: np.ndarray, *rest: Any) -> Any:
        calls.append(len(codes))
        return count(codes, *rest)

    monkeypatch.setattr(joint_module, "_sorted_counts", noted)
    return calls


@given(rows())
def test_dense_counts_equal_a_dictionary(case: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = sorted_calls(patch)
        joint = counted(case)
    assert calls == []  # 4 groups, 7 states, 4 labels: far below SMALL_TABLE
    check(joint, case)


@given(rows(highest_state=2**55))
def test_sorted_counts_equal_a_dictionary(case: dict[str, Any]) -> None:
    case["groups"], case["labels"] = (np.append(case[name], 0) for name in ("groups", "labels"))
    case["states"] = np.append(case["states"], SMALL_TABLE)  # enough for the table to be too large
    case["weights"] = None if case["weights"] is None else np.append(case["weights"], 2.0)
    with pytest.MonkeyPatch.context() as patch:
        calls = sorted_calls(patch)
        joint = counted(case)
    assert calls == [len(case["groups"])]
    check(joint, case)


def check(joint: Joint, case: dict[str, Any]) -> None:
    assert as_cells(joint) == naive(case)
    assert list(as_cells(joint)) == sorted(as_cells(joint))
    assert joint.counts.dtype == np.float64
    assert joint.counts.shape == (len(joint), joint.num_classes) == (len(joint), case["num_classes"])
    assert joint.num_groups == case["num_groups"]
    for group in range(joint.num_groups):
        own = slice(joint.starts[group], joint.starts[group + 1])
        assert (joint.groups[own] == group).all()
        np.testing.assert_allclose(joint.label_counts[group], joint.counts[own].sum(axis=0))
    assert joint.starts[-1] == len(joint)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_table_is_dense_up_to_a_size_that_grows_with_the_rows(monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    calls = sorted_calls(monkeypatch)
    num_rows = SMALL_TABLE
    highest = DENSE * num_rows // 4 - 1 + extra  # with 2 groups and 2 labels, 4 cells a state
    rng = np.random.default_rng(0)
    case = {
        "groups": rng.integers(0, 2, num_rows),
        "labels": rng.integers(0, 2, num_rows),
        "states": np.append(rng.integers(0, 50, num_rows - 1), highest),
        "num_groups": 2,
        "num_classes": 2,
        "weights": None,
    }
    check(counted(case), case)
    assert len(calls) == extra


def test_a_table_of_many_rows_and_wide_codes_does_not_overflow() -> None:
    groups, labels = np.array([3, 3, 0]), np.array([1, 1, 0])
    states = np.array([2**58 - 1, 2**58 - 1, 5])
    joint = count_joint(groups, labels, states, num_groups=4, num_classes=2)
    assert as_cells(joint) == {(0, 5): [1.0, 0.0], (3, 2**58 - 1): [0.0, 2.0]}


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, bool])
def test_columns_may_have_any_integer_type(dtype: type) -> None:
    groups, labels, states = (np.array(column, dtype=dtype) for column in ([0, 1, 1], [1, 0, 1], [1, 1, 1]))
    joint = count_joint(groups, labels, states, num_groups=2, num_classes=2)
    assert as_cells(joint) == {(0, 1): [0.0, 1.0], (1, 1): [1.0, 1.0]}


def naive_rows(case: dict[str, Any], joint: Joint, mixing: np.ndarray) -> np.ndarray:
    place = {key: cell for cell, key in enumerate(as_cells(joint))}
    shape = (case["num_groups"], case["num_classes"], case["num_classes"])
    hits, totals = np.zeros(shape), np.zeros(shape[:2])
    weights = np.ones(len(case["groups"])) if case["weights"] is None else case["weights"]
    for group, state, label, weight in zip(case["groups"], case["states"], case["labels"], weights, strict=True):
        if weight > 0.0:
            hits[group, label] += weight * mixing[place[int(group), int(state)]]
            totals[group, label] += weight
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / totals[:, :, None])


@given(rows(), st.integers(0, 2**32 - 1))
def test_confusion_rows_and_cost_are_those_of_the_rows(case: dict[str, Any], seed: int) -> None:
    joint, rng = counted(case), np.random.default_rng(seed)
    mixing = rng.dirichlet(np.ones(joint.num_classes), size=len(joint))
    expected = naive_rows(case, joint, mixing)
    np.testing.assert_allclose(joint.confusion_rows(mixing), expected, atol=1e-12)
    if len(joint):
        costs = rng.random((joint.num_classes, joint.num_classes))
        mean = sum(
            joint.label_counts[g, y] * float(costs[y] @ expected[g, y])
            for g, y in itertools.product(range(joint.num_groups), range(joint.num_classes))
            if joint.label_counts[g, y] > 0.0
        )
        assert joint.mean_cost(mixing, costs) == pytest.approx(mean / joint.counts.sum())


@st.composite
def votes(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    num_classes = draw(st.integers(2, 5))
    most = max(k for k in range(1, 64) if fits_code(k, num_classes))
    shape = draw(st.integers(1, 12)), draw(st.integers(1, most))
    seed = draw(st.integers(0, 2**32 - 1))
    table = np.random.default_rng(seed).integers(0, num_classes, shape)
    return np.concatenate([table, table[:1], np.full_like(table[:1], num_classes - 1)]), num_classes


@settings(max_examples=200)
@given(votes(), st.sampled_from([np.int64, np.uint8, np.int32]))
def test_codes_of_votes_are_their_digits(case: tuple[np.ndarray, int], dtype: type) -> None:
    table, num_classes = case
    codes = pack_votes(table.astype(dtype), num_classes)
    assert codes.dtype == np.int64
    assert codes.tolist() == [
        sum(int(vote) * num_classes**place for place, vote in enumerate(row)) for row in table.tolist()
    ]


@pytest.mark.parametrize(("num_constituents", "num_classes"), [(1, 2), (8, 2), (9, 2), (3, 3), (4, 4)])
def test_every_pattern_has_its_own_code(num_constituents: int, num_classes: int) -> None:
    table = np.array(list(itertools.product(range(num_classes), repeat=num_constituents)))
    assert sorted(pack_votes(table, num_classes).tolist()) == list(range(num_classes**num_constituents))


def test_codes_leave_room_for_groups_and_labels() -> None:
    most = {2: 52, 3: 32, 4: 26, 5: 22}  # the most digits of a number that a float holds exactly
    for num_classes, num_constituents in most.items():
        assert fits_code(num_constituents, num_classes)
        assert not fits_code(num_constituents + 1, num_classes)
    highest = pack_votes(np.ones((1, 52), dtype=int), 2)
    joint = count_joint(np.array([255]), np.array([1]), highest, num_groups=256, num_classes=2)
    assert as_cells(joint) == {(255, 2**52 - 1): [0.0, 1.0]}


@pytest.mark.parametrize("num_constituents", [3, 24, 25, 52])
def test_long_tables_are_packed_block_by_block(num_constituents: int) -> None:
    num_rows = 2 * joint_module.BLOCK + 3
    table = np.random.default_rng(0).integers(0, 2, (num_rows, num_constituents), dtype=np.uint8)
    expected = np.zeros(num_rows, dtype=np.int64)
    for place in range(num_constituents):
        expected |= table[:, place].astype(np.int64) << place
    np.testing.assert_array_equal(pack_votes(table, 2), expected)


@given(rows(highest_state=12))
def test_coarser_states_hold_the_same_rows(case: dict[str, Any]) -> None:
    fine = counted(case)
    coarse, place = refine(fine, lambda groups, states: states // 3 + groups)
    again = counted(case | {"states": case["states"] // 3 + case["groups"]})
    assert list(as_cells(coarse)) == list(as_cells(again))
    np.testing.assert_allclose(coarse.counts, again.counts)
    assert coarse.num_groups == fine.num_groups
    np.testing.assert_array_equal(coarse.groups[place], fine.groups)
    np.testing.assert_array_equal(coarse.states[place], fine.states // 3 + fine.groups)
