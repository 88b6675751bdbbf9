"""Expected costs of unlearning in closed form, in example-epochs: one example shown once is one.

All hold for N examples in S equal shards of R equal slices, requests that fall on every slice with equal probability,
independently, and (where slices matter) the epochs e_i = 2e'/(R+1) that `budget.slice_epochs` calls compute-matched.
Numbers of slices and examples are taken as they were before the requests, unless a formula says otherwise; nothing is
rounded. `max_epochs` is e'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

Given = ParamSpec("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class SpeedUps:
    """How many times cheaper than retraining everything: at best, at the expected cost, at worst.

    Only `expected` may be promised, and on average only: it is the cost of full retraining over the expected cost.
    """

    best: float
    expected: float
    worst: float


def _checked(formula: Callable[Given, Found]) -> Callable[Given, Found]:
    """Refuse numbers below those for which a formula means something."""

    @wraps(formula)
    def refusing(*args: Given.args, **given: Given.kwargs) -> Found:
        for name, value in given.items():
            if not isinstance(value, int | float | np.integer | np.floating) or not value > 0:
                raise ValueError(f"Expected {name} to be a number above 0, got {value!r}.")
        return formula(*args, **given)

    return refusing


@_checked
def sequential_sharding(*, num_examples: float, num_shards: int, num_requests: int, max_epochs: float = 1.0) -> float:
    """Return the expected total cost of requests executed one by one, without slices.

    e' ((N/S + 1/(2S) - 1) K - K^2/(2S)): the shard of the i-th request has lost one example to it, and one to each
    earlier request with probability 1/S (Bourtoule et al. 2021, section V-A and appendix). Meant for K well below N.
    """
    per_shard = num_examples / num_shards + 0.5 / num_shards - 1
    return max_epochs * (per_shard * num_requests - num_requests**2 / (2 * num_shards))


@_checked
def batch_sharding(*, num_examples: float, num_shards: int, num_requests: int, max_epochs: float = 1.0) -> float:
    """Return the expected cost of requests executed together, without slices.

    e' (N (1 - (1 - 1/S)^K) - K): each shard is retrained once if any request hits it (Bourtoule et al. 2021, section
    V-A and appendix). For few requests this is about N (1 - exp(-K/tau)), tau = -1/ln(1 - 1/S); the paper prints the
    exponent without its sign.
    """
    return max_epochs * (num_examples * _hit_probability(num_shards, num_requests) - num_requests)


@_checked
def slicing_factor(*, num_slices: int, num_requests: int = 1) -> float:
    """Return the share of a shard's full cost that requests for it, executed together, are expected to cost.

    2/(R(R+1)) sum_i i (1 - ((R-i)/R)^K): stage i, of i/R of the shard, is trained again if any of K requests falls on
    slices 1..i (derived; for K = 1 it is Bourtoule et al. 2021, section V-B).
    """
    return _stage_shares(num_slices, num_requests, num_shards=1)


@_checked
def slicing_request(*, shard_size: float, num_slices: int, max_epochs: float = 1.0) -> float:
    """Return the expected cost of one request: e'D (2/3 + 1/(3R)), with D examples a shard.

    Bourtoule et al. 2021, section V-B and appendix.
    """
    return max_epochs * shard_size * (2 / 3 + 1 / (3 * num_slices))


@_checked
def slicing_batch(*, shard_size: float, num_slices: int, num_requests: int, max_epochs: float = 1.0) -> float:
    """Return the expected cost of requests for one shard, executed together: e'D times `slicing_factor` (derived)."""
    return max_epochs * shard_size * slicing_factor(num_slices=num_slices, num_requests=num_requests)


@_checked
def combined_batch(
    *, num_examples: float, num_shards: int, num_slices: int, num_requests: int, max_epochs: float = 1.0
) -> float:
    """Return the expected cost of requests executed together on shards with slices.

    e'N 2/(R(R+1)) sum_i i (1 - (1 - i/(RS))^K): stage i of a shard is trained again if any of K requests falls on its
    slices 1..i (derived). Equal to averaging `slicing_factor` over the Binomial(K, 1/S) requests of each shard.
    """
    return max_epochs * num_examples * _stage_shares(num_slices, num_requests, num_shards=num_shards)


@_checked
def expected_shards(*, num_shards: int, num_requests: int) -> float:
    """Return how many shards requests are expected to hit: S (1 - (1 - 1/S)^K) (derived)."""
    return num_shards * _hit_probability(num_shards, num_requests)


@_checked
def slicing_speed_ups(*, num_slices: int) -> SpeedUps:
    """Return the speed-ups of slices over retraining the whole shard, for one request.

    Best, the last slice: (R+1)/2. Expected: 3R/(2R+1), below 1.5 for any R (Bourtoule et al. 2021, section V-B).
    Worst, the first slice: 1. All for compute-matched epochs (best and worst derived).
    """
    return SpeedUps((num_slices + 1) / 2, 3 * num_slices / (2 * num_slices + 1), 1.0)


@_checked
def speed_ups(*, num_shards: int, num_slices: int, num_requests: int = 1) -> SpeedUps:
    """Return the speed-ups over retraining everything, for requests executed together (derived).

    Best: all fall on the last slice of one shard. Expected: e'N over `combined_batch`. Worst: on the first slices of
    as many shards as there are requests.
    """
    cost = combined_batch(num_examples=1, num_shards=num_shards, num_slices=num_slices, num_requests=num_requests)
    best = num_shards * (num_slices + 1) / 2
    return SpeedUps(best, 1 / cost, num_shards / min(num_requests, num_shards))


@_checked
def storage_bytes(*, num_shards: int, num_slices: int, bytes_per_checkpoint: int) -> int:
    """Return the bytes that all checkpoints take: S R times those of one (Bourtoule et al. 2021, section IV)."""
    return num_shards * num_slices * bytes_per_checkpoint


@_checked
def requests_until_all_shards(*, num_shards: int) -> float:
    """Return how many requests are expected until every shard was hit: S H_S (derived: the coupon collector).

    H_S = 1 + 1/2 + ... + 1/S. A single batch that large retrains every shard.
    """
    return num_shards * float((1 / np.arange(1, num_shards + 1)).sum())


@_checked
def requests_until_all_first_slices(*, num_shards: int, num_slices: int) -> float:
    """Return how many requests are expected until the first slice of every shard was hit: R S H_S (derived).

    A single batch that large saves nothing over retraining everything.
    """
    return num_slices * requests_until_all_shards(num_shards=num_shards)


def _hit_probability(num_shards: int, num_requests: int) -> float:
    return float(1 - (1 - 1 / num_shards) ** num_requests)


def _stage_shares(num_slices: int, num_requests: int, *, num_shards: int) -> float:
    stages = np.arange(1, num_slices + 1)
    hit = 1 - (1 - stages / (num_slices * num_shards)) ** num_requests
    return float((stages * hit).sum() * 2 / (num_slices * (num_slices + 1)))
