from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.settings import TrainerSettings
from fairsisa.sisa import formulas
from fairsisa.sisa.budget import slice_epochs
from fairsisa.sisa.cost import retraining_cost

small = st.integers(1, 4)
few = st.integers(1, 3)


def whole_cost(num_shards: int, num_slices: int, num_requests: int, max_epochs: int) -> Fraction:
    """The mean cost over every way requests can fall, counted with sizes as they were: e_i = 2e'/(R+1), N = SR."""
    total = Fraction(0)
    cells = list(product(range(num_shards), range(1, num_slices + 1)))
    for falls in product(cells, repeat=num_requests):
        first = {shard: min(place for owner, place in falls if owner == shard) for shard, _ in falls}
        for start in first.values():
            total += sum(Fraction(2 * max_epochs, num_slices + 1) * stage for stage in range(start, num_slices + 1))
    return total / len(cells) ** num_requests


@given(small, few, few, st.integers(1, 3))
def test_a_combined_batch_costs_the_mean_over_all_ways_to_fall(shards, slices, requests, epochs):
    found = formulas.combined_batch(
        num_examples=shards * slices, num_shards=shards, num_slices=slices, num_requests=requests, max_epochs=epochs
    )
    assert found == pytest.approx(float(whole_cost(shards, slices, requests, epochs)), rel=1e-12)


@given(st.integers(1, 5), st.integers(1, 5))
def test_a_batch_in_one_shard_costs_the_mean_over_all_ways_to_fall(slices, requests):
    found = formulas.slicing_batch(shard_size=slices, num_slices=slices, num_requests=requests, max_epochs=2.0)
    assert found == pytest.approx(float(whole_cost(1, slices, requests, 2)), rel=1e-12)


@given(st.integers(1, 60), st.integers(1, 40))
def test_a_batch_in_one_shard_is_the_published_expression(slices, requests):
    r = np.arange(1, slices + 1)
    chance = ((slices - r + 1) / slices) ** requests - ((slices - r) / slices) ** requests
    saved = (chance * (r**2 - r)).sum() / 2
    published = 2 / (slices * (slices + 1)) * (slices * (slices + 1) / 2 - saved)
    assert formulas.slicing_factor(num_slices=slices, num_requests=requests) == pytest.approx(published, rel=1e-10)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))
def test_a_combined_batch_averages_the_slicing_factor_over_the_shards_requests(shards, slices, requests):
    chances = [math.comb(requests, k) * (shards - 1) ** (requests - k) / shards**requests for k in range(requests + 1)]
    factors = [0.0] + [formulas.slicing_factor(num_slices=slices, num_requests=k) for k in range(1, requests + 1)]
    averaged = sum(chance * factor for chance, factor in zip(chances, factors, strict=True))
    found = formulas.combined_batch(num_examples=1, num_shards=shards, num_slices=slices, num_requests=requests)
    assert found == pytest.approx(averaged, rel=1e-10)


@given(small, st.integers(1, 4), st.integers(10, 40))
def test_sharding_costs_the_mean_over_all_ways_to_fall(shards, requests, size):
    one_by_one, together = 0, 0
    for falls in product(range(shards), repeat=requests):
        one_by_one += sum(size - 1 - falls[:place].count(shard) for place, shard in enumerate(falls))
        together += sum(size - falls.count(shard) for shard in set(falls))
    case = {"num_examples": size * shards, "num_shards": shards, "num_requests": requests, "max_epochs": 3.0}
    ways = shards**requests
    assert formulas.sequential_sharding(**case) == pytest.approx(3 * one_by_one / ways, rel=1e-12)
    assert formulas.batch_sharding(**case) == pytest.approx(3 * together / ways, rel=1e-12)


@given(st.integers(1, 50))
def test_one_request_costs_a_combined_batch_of_one(slices):
    one = formulas.slicing_request(shard_size=120, num_slices=slices, max_epochs=3.0)
    assert one == pytest.approx(120 * 3 * (2 / 3 + 1 / (3 * slices)))
    assert one == pytest.approx(formulas.slicing_batch(shard_size=120, num_slices=slices, num_requests=1, max_epochs=3))
    expected = formulas.slicing_speed_ups(num_slices=slices).expected
    assert 360 / one == pytest.approx(expected)


@given(st.integers(1, 5), st.integers(1, 6))
def test_the_formula_for_one_request_is_the_exact_cost_but_for_the_example_itself(shards, slices):
    sizes, kept = np.full((shards, slices), 600), np.ones((shards, slices), dtype=bool)
    epochs = slice_epochs(TrainerSettings(max_epochs=3.0), slices)
    costs = []
    for place in range(shards * slices):
        removed = np.zeros_like(sizes)
        removed.flat[place] = 1
        costs += [cost.presentations for cost in retraining_cost(sizes, removed, epochs=epochs, kept=kept)]
    closed = formulas.slicing_request(shard_size=600 * slices, num_slices=slices, max_epochs=3.0)
    assert closed - np.mean(costs) == pytest.approx(sum(epochs) * (slices + 1) / (2 * slices), abs=1.0)
    fastest, slowest = 3 * 600 * slices / min(costs), 3 * 600 * slices / max(costs)
    known = formulas.slicing_speed_ups(num_slices=slices)
    assert (fastest, slowest) == pytest.approx((known.best, known.worst), rel=0.01)


def test_published_numbers():
    assert formulas.sequential_sharding(num_examples=1000, num_shards=5, num_requests=10) == pytest.approx(1981.0)
    known = {2: 1.20, 5: 1.36, 10: 1.43, 20: 1.46, 50: 1.485}
    for slices, speed_up in known.items():
        assert formulas.slicing_speed_ups(num_slices=slices).expected == pytest.approx(speed_up, abs=6e-3)
    assert formulas.slicing_factor(num_slices=20, num_requests=5) == pytest.approx(0.955, abs=5e-4)
    headline = {8: 4.23, 18: 2.24, 39: 1.42}
    for requests, speed_up in headline.items():
        found = formulas.speed_ups(num_shards=20, num_slices=50, num_requests=requests)
        assert found.expected == pytest.approx(speed_up, abs=6e-3)
    assert formulas.storage_bytes(num_shards=5, num_slices=32, bytes_per_checkpoint=440_000_000) == 70_400_000_000


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100))
def test_the_expected_speed_up_lies_between_the_worst_and_the_best(shards, slices, requests):
    found = formulas.speed_ups(num_shards=shards, num_slices=slices, num_requests=requests)
    assert found.worst <= found.expected * (1 + 1e-12)
    assert found.expected <= found.best * (1 + 1e-12)


@given(st.integers(1, 3), few, few)
def test_best_and_worst_are_reached_and_never_passed(shards, slices, requests):
    cells = list(product(range(shards), range(1, slices + 1)))
    costs = set()
    for falls in product(cells, repeat=requests):
        first = {shard: min(place for owner, place in falls if owner == shard) for shard, _ in falls}
        costs.add(sum(sum(range(start, slices + 1)) for start in first.values()))
    whole = shards * slices * (slices + 1) / 2
    found = formulas.speed_ups(num_shards=shards, num_slices=slices, num_requests=requests)
    assert (found.best, found.worst) == pytest.approx((whole / min(costs), whole / max(costs)))


@given(st.integers(1, 6), st.integers(1, 5))
def test_hitting_every_shard_takes_as_many_as_the_coupon_collector_needs(shards, requests):
    steps = sum(Fraction(shards, shards - seen) for seen in range(shards))
    assert formulas.requests_until_all_shards(num_shards=shards) == pytest.approx(float(steps))
    hit = np.mean([len(set(falls)) for falls in product(range(shards), repeat=min(requests, 4))])
    assert formulas.expected_shards(num_shards=shards, num_requests=min(requests, 4)) == pytest.approx(hit)


@given(st.integers(1, 4), st.integers(1, 4))
def test_hitting_every_first_slice_takes_the_solution_of_its_linear_equations(shards, slices):
    # With j first slices still to be hit, a request hits one of them with probability j / (S R).
    waiting, cells = 0.0, shards * slices
    for left in range(1, shards + 1):
        waiting += 1 / (left / cells)
    found = formulas.requests_until_all_first_slices(num_shards=shards, num_slices=slices)
    assert found == pytest.approx(waiting)


@pytest.mark.parametrize("wrong", [0, -1, math.nan, "5"])
def test_a_number_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="Expected num_shards to be a number above 0, got"):
        formulas.requests_until_all_shards(num_shards=wrong)
    with pytest.raises(ValueError, match="Expected num_requests to be a number above 0"):
        formulas.combined_batch(num_examples=10, num_shards=2, num_slices=2, num_requests=wrong)


def test_numbers_of_numpy_are_numbers():
    assert formulas.requests_until_all_shards(num_shards=np.int64(2)) == 3.0
