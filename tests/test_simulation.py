from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.errors import ConfigError, PartitionError
from fairsisa.settings import TrainerSettings
from fairsisa.sisa import formulas, simulation
from fairsisa.sisa.budget import presentations, slice_epochs
from fairsisa.sisa.simulation import (
    World,
    compare_batches,
    deal_examples,
    group_risks,
    simulate_requests,
)


def matched(num_slices, max_epochs=3.0):
    return slice_epochs(TrainerSettings(max_epochs=max_epochs), num_slices)


@st.composite
def tiny_worlds(draw: st.DrawFn) -> tuple[World, list[float], np.ndarray]:
    shards, slices = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    sizes = np.zeros((shards, slices), dtype=np.int64)
    for cell in draw(st.lists(st.integers(0, shards * slices - 1), min_size=3, max_size=5)):
        sizes.flat[cell] += 1
    risks = draw(st.lists(st.integers(1, 5), min_size=int(sizes.sum()), max_size=int(sizes.sum())))
    flags = draw(st.lists(st.booleans(), min_size=sizes.size, max_size=sizes.size))
    epochs = draw(st.lists(st.sampled_from((1.0, 1.5, 2.0)), min_size=slices, max_size=slices))
    return World(sizes, draw(st.sampled_from((None, np.array(risks, float))))), epochs, np.reshape(flags, sizes.shape)


def chance_of(drawn, risks):
    chance, left = 1.0, risks.sum()
    for example in drawn:
        chance *= risks[example] / left
        left -= risks[example]
    return chance


def slow_execution(world, epochs, kept, cells, window):
    """The cost of one trial, and that of training everything each time, by plain loops."""
    slices = world.sizes.shape[1]
    there, cost, full = world.sizes.tolist(), 0, 0
    for start in range(0, len(cells), window):
        first = {}
        for cell in cells[start : start + window]:
            shard, place = divmod(int(cell), slices)
            first[shard] = min(first.get(shard, slices), place)
        before = [list(row) for row in there]
        for cell in cells[start : start + window]:
            there[cell // slices][cell % slices] -= 1
        for shard, place in first.items():
            found = [index for index in range(place) if before[shard][index] and kept[shard, index]]
            cost += sum(presentations(epochs, there[shard])[found[-1] + 1 if found else 0 :])
        full += sum(sum(presentations(epochs, row)) for row in there)
    return cost, full


@settings(max_examples=25)
@given(tiny_worlds(), st.integers(1, 3), st.integers(1, 3), st.sampled_from((10**6, 7)))
def test_means_are_those_over_every_order_of_requests(case, num_requests, window, at_once):
    world, epochs, kept = case
    risks = np.ones(world.sizes.sum()) if world.risks is None else world.risks
    cells = np.repeat(np.arange(world.sizes.size), world.sizes.ravel())
    cost = full = 0.0
    for drawn in permutations(range(len(cells)), num_requests):
        found = slow_execution(world, epochs, kept, cells[list(drawn)], window)
        chance = chance_of(drawn, risks)
        cost, full = cost + chance * found[0], full + chance * found[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "NUMBERS_AT_ONCE", at_once)
        trials = 3_000 if at_once > 7 else 300
        found = simulate_requests(
            world, epochs, num_requests=num_requests, window=window, kept=kept, num_trials=trials, seed=1
        )
    for values, exact in ((found.per_request, cost), (found.full_per_request, full)):
        error = values.std(ddof=1) / math.sqrt(trials)
        assert abs(values.mean() - exact / num_requests) <= 6 * error + 0.02 * (trials == 300) + 1e-9


@pytest.mark.parametrize(("shards", "slices", "window"), [(1, 5, 1), (5, 1, 1), (4, 5, 1), (4, 5, 8), (10, 4, 30)])
def test_means_are_within_two_percent_of_the_closed_forms(shards, slices, window):
    world = deal_examples(100_000, num_shards=shards, num_slices=slices)
    found = simulate_requests(world, matched(slices), num_requests=window, window=window, num_trials=10_000, seed=3)
    closed = formulas.combined_batch(
        num_examples=100_000, num_shards=shards, num_slices=slices, num_requests=window, max_epochs=3.0
    )
    assert found.per_request.mean() * window == pytest.approx(closed, rel=0.02)
    ratio = found.summary().set_index("quantity").loc["speed_up"]
    expected = formulas.speed_ups(num_shards=shards, num_slices=slices, num_requests=window)
    assert abs(ratio["mean"] - expected.expected) <= 5 * ratio["standard_error"] + 0.005 * expected.expected
    assert found.worst.max() <= 300_000 / expected.worst


def test_shards_shrink_as_the_sequential_formula_says():
    world = deal_examples(1000, num_shards=5, num_slices=1)
    found = simulate_requests(world, (1.0,), num_requests=10, num_trials=20_000, seed=0)
    closed = formulas.sequential_sharding(num_examples=1000, num_shards=5, num_requests=10)
    assert found.per_request.mean() * 10 == pytest.approx(closed, rel=1e-4)
    together = simulate_requests(world, (1.0,), num_requests=10, window=10, num_trials=20_000, seed=0)
    closed = formulas.batch_sharding(num_examples=1000, num_shards=5, num_requests=10)
    assert together.per_request.mean() * 10 == pytest.approx(closed, rel=0.005)


def test_when_everyone_asks_at_once_nothing_is_left_to_train():
    world = deal_examples(12, num_shards=2, num_slices=3)
    found = simulate_requests(world, matched(3), num_requests=12, window=12, num_trials=5)
    assert found.per_request.tolist() == [0.0] * 5
    assert found.worst.tolist() == [0.0] * 5


def test_a_seed_gives_the_same_trials_and_another_gives_others():
    world = deal_examples(100, num_shards=2, num_slices=3)
    same, again, other = (
        simulate_requests(world, matched(3), num_requests=5, num_trials=50, seed=seed).per_request for seed in (1, 1, 2)
    )
    assert (same == again).all()
    assert (same != other).any()


def test_a_summary_holds_means_errors_and_quantiles():
    world = deal_examples(1000, num_shards=4, num_slices=2)
    found = simulate_requests(world, matched(2), num_requests=3, num_trials=400, seed=1)
    table = found.summary((0.1, 0.5)).set_index("quantity")
    assert list(table.columns) == ["mean", "standard_error", "q10", "q50"]
    row = table.loc["per_request"]
    assert row["mean"] == pytest.approx(found.per_request.mean())
    assert row["standard_error"] == pytest.approx(found.per_request.std(ddof=1) / 20)
    assert row["q10"] <= row["q50"]
    means = [
        simulate_requests(world, matched(2), num_requests=3, num_trials=400, seed=seed).summary().loc[1, "mean"]
        for seed in range(30)
    ]
    assert table.loc["speed_up", "standard_error"] == pytest.approx(np.std(means, ddof=1), rel=0.5)


@given(st.integers(2, 500), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_group_makes_its_share_of_requests(num_examples, share, weight):
    share = min(share, 1 - 1 / num_examples)
    risks = group_risks(num_examples, share=share, weight=weight)
    size = min(max(1, round(share * num_examples)), num_examples - 1)
    assert risks[-size:].sum() / risks.sum() == pytest.approx(weight)
    assert risks.max() == 1.0


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
def test_even_dealing_makes_slices_of_equal_size(shards, slices, more):
    world = deal_examples(shards * slices + more, num_shards=shards, num_slices=slices)
    assert world.sizes.sum() == shards * slices + more
    assert world.sizes.max() - world.sizes.min() <= 1


def test_dealing_by_chance_keeps_every_risk_once():
    risks = np.linspace(0, 1, 60)
    world = deal_examples(60, num_shards=3, num_slices=4, risks=risks, seed=2)
    assert sorted(world.risks) == risks.tolist()
    assert world.risks.tolist() != risks.tolist()
    assert world.slice_risks.sum() == pytest.approx(risks.sum())
    assert world.slice_risks[0, 0] == pytest.approx(world.risks[:5].sum())


def test_dealing_by_risk_balances_requests_and_puts_risk_last():
    risks = np.random.default_rng(0).permutation(np.linspace(0.01, 1, 600))
    world = deal_examples(600, num_shards=4, num_slices=3, risks=risks, strategy="risk_aware")
    by_shard = world.slice_risks.sum(axis=1)
    assert by_shard.max() / by_shard.min() < 1.05
    means = world.slice_risks / world.sizes
    assert (np.diff(means.ravel()) > 0).all()


@pytest.mark.parametrize(("slices", "low", "high"), [(1, 0.98, 1.02), (10, 0.7, 0.9)])
def test_order_by_risk_saves_within_shards_and_equal_requests_between_them_do_not(slices, low, high):
    # A shard is hit with the same probability either way, and the shards together hold all examples.
    risks = np.minimum(np.random.default_rng(0).pareto(1.2, 20_000) + 0.01, 50) / 50
    costs = {}
    for strategy in ("uniform", "risk_aware"):
        world = deal_examples(20_000, num_shards=8, num_slices=slices, risks=risks, strategy=strategy)
        found = simulate_requests(world, matched(slices), num_requests=20, window=20, num_trials=2_000)
        costs[strategy] = found.per_request.mean()
    assert low < costs["risk_aware"] / costs["uniform"] < high


@settings(max_examples=15)
@given(st.integers(1, 60), st.integers(1, 3))
def test_heavy_risks_are_drawn_without_repeats(num_requests, window):
    risks = np.full(60, 1e-9)
    risks[:2] = 1.0
    found = simulate_requests(
        World(np.full((1, 1), 60), risks), (1.0,), num_requests=num_requests, window=window, num_trials=3
    )
    left = [60 - min(start + window, num_requests) for start in range(0, num_requests, window)]
    assert found.per_request.tolist() == [sum(left) / num_requests] * 3


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="at least one example a slice, got 5 examples for 2 x 3 slices"):
        deal_examples(5, num_shards=2, num_slices=3)
    with pytest.raises(ConfigError, match="Expected strategy to be one of uniform, risk_aware"):
        deal_examples(5, num_shards=1, num_slices=1, strategy="stratified")
    with pytest.raises(PartitionError, match="shards of equal expected requests"):
        deal_examples(6, num_shards=4, num_slices=1, risks=np.array([0, 0, 0, 0, 0, 1.0]), strategy="risk_aware")
    world = World(np.array([[2, 2]]), np.array([1.0, 0.0, 0.0, 1.0]))
    with pytest.raises(ConfigError, match="Expected num_requests to be at most 2, got 3"):
        simulate_requests(world, (1.0, 1.0), num_requests=3)
    with pytest.raises(ConfigError, match="Expected window to be at least 1"):
        simulate_requests(world, (1.0, 1.0), num_requests=1, window=0)
    with pytest.raises(ConfigError, match="Expected share to be greater than 0"):
        group_risks(10, share=0.0, weight=0.5)


def test_batches_are_compared_with_the_closed_forms():
    table = compare_batches(20_000, num_shards=5, num_slices=4, batch_sizes=(16, 1, 4, 4), num_trials=4_000)
    assert table["num_requests"].tolist() == [1, 4, 16]
    for row in table.itertuples():
        closed = formulas.speed_ups(num_shards=5, num_slices=4, num_requests=row.num_requests)
        assert (row.best, row.expected, row.worst) == (closed.best, closed.expected, closed.worst)
        assert abs(row.mean - row.expected) <= 5 * row.standard_error + 0.005 * row.expected
        assert closed.worst * 0.99 <= row.q5 <= row.q50 <= row.q95 <= closed.best * 1.01


@pytest.mark.parametrize("risks", [None, np.r_[np.full(5, 100.0), np.ones(35)]])
def test_nobody_is_forgotten_twice(risks):
    # Of 40 slices of one example each, 20 are left, and stage after stage is shown 1, 2, ..., 20 examples.
    world = World(np.ones((1, 40), dtype=np.int64), risks)
    found = simulate_requests(world, (1.0,) * 40, num_requests=20, window=20, num_trials=200)
    assert (found.full_per_request * 20).tolist() == [210.0] * 200
