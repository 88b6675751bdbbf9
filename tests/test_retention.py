from __future__ import annotations

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import ConfigError
from fairsisa.settings import TrainerSettings
from fairsisa.sisa.budget import presentations, slice_epochs
from fairsisa.sisa.cost import retraining_cost
from fairsisa.sisa.retention import checkpoints_within, choose_checkpoints, expected_cost


@st.composite
def worlds(draw: st.DrawFn, most_cells: int = 9) -> tuple[np.ndarray, tuple[float, ...], np.ndarray | None]:
    """Sizes, epochs and, in some, risks."""
    shards, slices = draw(
        st.sampled_from([pair for pair in product(range(1, 5), range(1, 8)) if pair[0] * pair[1] <= most_cells])
    )
    sizes = np.reshape(
        draw(st.lists(st.integers(0, 30), min_size=shards * slices, max_size=shards * slices)), (shards, slices)
    )
    sizes[0, 0] += not sizes.any()
    epochs = draw(st.lists(st.floats(0.5, 3), min_size=slices, max_size=slices))
    weights = np.reshape(draw(st.lists(st.integers(0, 5), min_size=sizes.size, max_size=sizes.size)), sizes.shape)
    risks = weights * (sizes > 0) if draw(st.booleans()) and (weights * sizes).any() else None
    return sizes, tuple(epochs), risks


def slow_cost(sizes, epochs, kept, risks):
    """The expected cost by asking, slice by slice, where training would find weights to go on from."""
    weights = sizes if risks is None else risks
    total = 0.0
    for shard, row in enumerate(sizes.tolist()):
        shown = presentations(epochs, row)
        for first, weight in enumerate(weights[shard].tolist()):
            found = [place for place in range(first) if row[place] and kept[shard, place]]
            total += weight * sum(shown[found[-1] + 1 if found else 0 :])
    return total / weights.sum()


def needed(sizes):
    """The last slice with examples of each shard, as cells."""
    return {(shard, int(np.flatnonzero(row)[-1])) for shard, row in enumerate(sizes) if row.any()}


def every_choice(sizes, room):
    must = needed(sizes)
    free = [tuple(cell) for cell in np.argwhere(sizes > 0).tolist() if tuple(cell) not in must]
    for extra in range(min(room - len(must), len(free)) + 1):
        for chosen in combinations(free, extra):
            kept = sizes == 0
            for cell in (*must, *chosen):
                kept[cell] = True
            yield kept


@given(worlds(), st.data())
def test_expected_cost_is_that_of_looking_for_weights(world, data):
    sizes, epochs, risks = world
    flags = data.draw(st.lists(st.booleans(), min_size=sizes.size, max_size=sizes.size))
    kept = np.reshape(flags, sizes.shape)
    assert expected_cost(sizes, epochs, kept, risks=risks) == pytest.approx(slow_cost(sizes, epochs, kept, risks))


@given(worlds(), st.integers(0, 9))
def test_the_optimal_choice_is_the_best_of_all_subsets(world, more):
    sizes, epochs, risks = world
    room = len(needed(sizes)) + more
    chosen = choose_checkpoints(sizes, epochs, policy="optimal", max_checkpoints=room, risks=risks)
    assert chosen.dtype == bool
    assert chosen.shape == sizes.shape
    assert (chosen & (sizes > 0)).sum() <= room
    best = min(slow_cost(sizes, epochs, kept, risks) for kept in every_choice(sizes, room))
    assert slow_cost(sizes, epochs, chosen, risks) == pytest.approx(best, rel=1e-12)


@given(worlds(most_cells=28))
def test_more_room_never_costs_more_and_room_for_all_costs_what_all_do(world):
    sizes, epochs, risks = world
    costs = []
    for room in range(len(needed(sizes)), int((sizes > 0).sum()) + 1):
        kept = choose_checkpoints(sizes, epochs, policy="optimal", max_checkpoints=room, risks=risks)
        costs.append(expected_cost(sizes, epochs, kept, risks=risks))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(costs))
    everything = expected_cost(sizes, epochs, np.ones(sizes.shape, dtype=bool), risks=risks)
    assert costs[-1] == pytest.approx(everything, rel=1e-12)


@given(worlds(most_cells=28), st.sampled_from(("all", "last", "optimal")), st.integers(1, 8))
def test_what_the_ensemble_serves_is_always_kept(world, policy, keep_last):
    sizes, epochs, risks = world
    room = len(needed(sizes)) if policy == "optimal" else None
    kept = choose_checkpoints(sizes, epochs, policy=policy, max_checkpoints=room, keep_last=keep_last, risks=risks)
    assert all(kept[cell] for cell in needed(sizes))
    assert kept[:, -1].all()
    assert kept[sizes == 0].all()


@given(worlds(most_cells=28), st.integers(1, 8))
def test_last_keeps_the_last_slices_that_have_examples(world, keep_last):
    sizes, epochs, _ = world
    kept = choose_checkpoints(sizes, epochs, policy="last", keep_last=keep_last)
    for row, chosen in zip(sizes, kept, strict=True):
        filled = np.flatnonzero(row)
        assert np.flatnonzero(chosen & (row > 0)).tolist() == filled[-keep_last:].tolist()


@given(worlds(most_cells=28))
def test_all_keeps_all(world):
    assert choose_checkpoints(world[0], world[1], policy="all").all()


@given(worlds(most_cells=28))
def test_optimal_without_a_bound_costs_what_all_do(world):
    sizes, epochs, risks = world
    kept = choose_checkpoints(sizes, epochs, policy="optimal", risks=risks)
    everything = expected_cost(sizes, epochs, np.ones(sizes.shape, dtype=bool), risks=risks)
    assert expected_cost(sizes, epochs, kept, risks=risks) == pytest.approx(everything, rel=1e-12)


def test_equal_slices_keep_checkpoints_where_the_saving_is():
    epochs = slice_epochs(TrainerSettings(max_epochs=3.0), 10)
    kept = choose_checkpoints(np.full((3, 10), 100), epochs, policy="optimal", max_checkpoints=9)
    assert kept.sum(axis=1).tolist() == [3, 3, 3]
    assert (kept == kept[0]).all()
    costs = [
        expected_cost(np.full((3, 10), 100), epochs, kept)
        for kept in (kept, choose_checkpoints(np.full((3, 10), 100), epochs, policy="last", keep_last=3))
    ]
    assert costs[0] < costs[1]


def test_risk_draws_the_checkpoints_to_it():
    sizes, epochs = np.full((2, 4), 10), (1.0,) * 4
    risks = np.array([[0, 0, 0, 1], [0, 0, 0, 0]])
    kept = choose_checkpoints(sizes, epochs, policy="optimal", max_checkpoints=8, risks=risks)
    assert kept.tolist() == [[False, False, True, True], [False, False, False, True]]


def test_expected_cost_is_the_mean_of_exact_costs_but_for_the_example_that_goes():
    sizes, epochs = np.full((2, 5), 400), slice_epochs(TrainerSettings(max_epochs=3.0), 5)
    kept = choose_checkpoints(sizes, epochs, policy="optimal", max_checkpoints=5)
    exact = []
    for place in range(sizes.size):
        removed = np.zeros_like(sizes)
        removed.flat[place] = 1
        exact += [cost.presentations for cost in retraining_cost(sizes, removed, epochs=epochs, kept=kept)]
    assert expected_cost(sizes, epochs, kept) == pytest.approx(np.mean(exact), abs=sum(epochs) + 1)


def test_a_hundred_shards_are_settled_at_once():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 200, size=(100, 40))
    kept = choose_checkpoints(sizes, (1.0,) * 40, policy="optimal", max_checkpoints=700)
    assert kept.sum() == 700


@pytest.mark.parametrize("policy", ["all", "last", "optimal"])
def test_too_little_room_names_the_smallest_that_does(policy):
    with pytest.raises(ConfigError, match=r"store\.max_bytes .* got room for 2; the smallest valid value is 3 times"):
        choose_checkpoints(np.ones((3, 4)), (1.0,) * 4, policy=policy, max_checkpoints=2)


@pytest.mark.parametrize(("policy", "count"), [("all", 12), ("last", 6)])
def test_a_policy_that_keeps_more_than_fits_is_refused_with_the_cure(policy, count):
    said = rf"hold the {count} checkpoints that store\.retention={policy} keeps, got room for 5; .*retention=optimal"
    with pytest.raises(ConfigError, match=said):
        choose_checkpoints(np.ones((3, 4)), (1.0,) * 4, policy=policy, max_checkpoints=5, keep_last=2)


def test_bytes_become_a_number_of_checkpoints():
    sizes = np.array([[1, 1], [0, 0], [0, 2]])
    assert checkpoints_within(None, bytes_per_checkpoint=10, sizes=sizes) is None
    assert checkpoints_within(39, bytes_per_checkpoint=10, sizes=sizes) == 3
    assert checkpoints_within(20, bytes_per_checkpoint=10, sizes=sizes) == 2
    with pytest.raises(ConfigError, match=r"store\.max_bytes .* got 19; the smallest valid value is 20"):
        checkpoints_within(19, bytes_per_checkpoint=10, sizes=sizes)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match=r"store\.retention to be one of all, last, optimal, got 'optmal'"):
        choose_checkpoints(np.ones((1, 1)), (1.0,), policy="optmal")


@pytest.mark.parametrize(
    ("risks", "said"),
    [
        (np.ones((1, 3)), r"risks of shape \(1, 2\)"),
        (np.array([[-1.0, 2.0]]), "finite risks of at least 0"),
        (np.array([[0.0, 0.0]]), "not all 0"),
        (np.array([[np.nan, 1.0]]), "finite risks"),
    ],
)
def test_risks_that_mean_nothing_are_refused(risks, said):
    with pytest.raises(ValueError, match=said):
        expected_cost(np.array([[2, 2]]), (1.0, 1.0), np.ones((1, 2), dtype=bool), risks=risks)
