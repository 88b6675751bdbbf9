from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fairsisa
from fairsisa.data.batches import inference_batches, training_batches

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=50).map(np.array)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**62)

GOLDEN_LENGTHS = [3, 5, 2, 8, 5, 4, 2]
GOLDEN = [[3], [2, 6, 0], [5, 1, 4], [4, 3], [6, 2, 5]]  # worked out apart, from hashlib and numpy alone
PROBE = """
import json, sys
import numpy as np
from fairsisa.data.batches import training_batches
lengths, count, size, seed = json.loads(sys.argv[1])
made = training_batches(np.array(lengths), count, batch_size=size, seed=seed)
print(json.dumps([batch.tolist() for batch in made]))
"""


def flat(batches: list[np.ndarray]) -> list[int]:
    return [row for batch in batches for row in batch.tolist()]


def padding(batches: list[np.ndarray], lengths: np.ndarray) -> int:
    return sum(int(lengths[batch].max() * len(batch) - lengths[batch].sum()) for batch in batches)


def spans(batches: list[np.ndarray], lengths: np.ndarray) -> list[tuple[int, int]]:
    return sorted((int(lengths[batch].min()), int(lengths[batch].max())) for batch in batches)


@given(lengths, sizes, seeds, st.integers(0, 4))
def test_whole_epochs_show_each_row_once_an_epoch(lengths, size, seed, epochs):
    batches = training_batches(lengths, epochs * len(lengths), batch_size=size, seed=seed)
    per_epoch = -(-len(lengths) // size)
    assert len(batches) == epochs * per_epoch
    for epoch in range(epochs):
        shown = flat(batches[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(shown) == list(range(len(lengths)))


@given(lengths, sizes, seeds, st.integers(0, 200))
def test_the_number_of_presentations_is_exact_and_even(lengths, size, seed, count):
    shown = flat(training_batches(lengths, count, batch_size=size, seed=seed))
    whole, part = divmod(count, len(lengths))
    times = Counter(shown)
    assert len(shown) == count
    assert all(times[row] in (whole, whole + 1) for row in range(len(lengths)))
    assert sum(times[row] == whole + 1 for row in range(len(lengths))) == part


@given(lengths, sizes, seeds, st.integers(0, 120))
def test_only_the_last_batch_of_an_epoch_by_length_may_be_short(lengths, size, seed, count):
    batches = training_batches(lengths, count, batch_size=size, seed=seed)
    assert all(1 <= len(batch) <= size for batch in batches)
    short = sum(len(batch) < size for batch in batches)
    assert short <= -(-count // len(lengths))


@given(lengths, sizes, seeds)
def test_batches_of_an_epoch_overlap_in_length_at_their_ends_only(lengths, size, seed):
    bounds = spans(training_batches(lengths, len(lengths), batch_size=size, seed=seed), lengths)
    assert all(before[1] <= after[0] for before, after in pairwise(bounds))


@given(lengths, sizes, seeds)
def test_the_padding_of_an_epoch_is_less_than_the_range_of_lengths_per_row(lengths, size, seed):
    batches = training_batches(lengths, len(lengths), batch_size=size, seed=seed)
    assert padding(batches, lengths) <= (size - 1) * int(lengths.max() - lengths.min())


def test_batches_by_length_pad_far_less_than_random_ones():
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 100, size=2000)
    rows = generator.permutation(2000)
    random = [rows[start : start + 32] for start in range(0, 2000, 32)]
    assert padding(training_batches(lengths, 2000, batch_size=32, seed=1), lengths) * 20 < padding(random, lengths)


def test_the_order_of_batches_is_not_the_order_of_lengths():
    lengths = np.arange(1, 101)
    batches = training_batches(lengths, 100, batch_size=5, seed=0)
    first = [int(lengths[batch].min()) for batch in batches]
    assert first not in (sorted(first), sorted(first, reverse=True))


def test_each_epoch_and_each_seed_has_its_own_order():
    lengths = np.ones(40, dtype=np.int64)
    shown = flat(training_batches(lengths, 80, batch_size=4, seed=5))
    assert shown[:40] != shown[40:]
    assert shown != flat(training_batches(lengths, 80, batch_size=4, seed=6))


@given(lengths, sizes, seeds, st.integers(0, 3))
def test_more_epochs_begin_with_the_same_ones(lengths, size, seed, epochs):
    shorter = training_batches(lengths, epochs * len(lengths), batch_size=size, seed=seed)
    longer = training_batches(lengths, (epochs + 1) * len(lengths), batch_size=size, seed=seed)
    assert flat(longer[: len(shorter)]) == flat(shorter)


def test_batches_read_no_global_state():
    np.random.seed(1)
    first = flat(training_batches(np.arange(1, 30), 70, batch_size=4, seed=3))
    np.random.seed(2)
    assert flat(training_batches(np.arange(1, 30), 70, batch_size=4, seed=3)) == first


@pytest.mark.parametrize("hash_seed", ["0", "4321"])
def test_the_golden_order_holds_in_any_process(hash_seed):
    assert [batch.tolist() for batch in training_batches(np.array(GOLDEN_LENGTHS), 12, batch_size=3, seed=7)] == GOLDEN
    root = str(Path(fairsisa.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([GOLDEN_LENGTHS, 12, 3, 7])],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == GOLDEN


@pytest.mark.parametrize("count", [0, -3, 5])
def test_nothing_to_show_makes_no_batch(count):
    rows = 4 if count <= 0 else 0
    assert training_batches(np.ones(rows, dtype=np.int64), count, batch_size=2, seed=0) == []


@given(lengths, st.integers(1, 300))
def test_inference_covers_each_row_once_without_padding(lengths, max_tokens):
    batches = inference_batches(lengths, max_tokens=max_tokens)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    assert padding(batches, lengths) == 0
    assert all(len(batch) == 1 or lengths[batch].sum() <= max_tokens for batch in batches)
    widths = [int(lengths[batch[0]]) for batch in batches]
    assert widths == sorted(widths, reverse=True)


@given(lengths, st.integers(1, 300))
def test_inference_makes_no_more_batches_than_needed(lengths, max_tokens):
    batches = inference_batches(lengths, max_tokens=max_tokens)
    least = sum(-(-n // max(1, max_tokens // length)) for length, n in Counter(lengths.tolist()).items())
    assert len(batches) == least


def test_no_row_makes_no_inference_batch():
    assert inference_batches(np.empty(0, dtype=np.int64), max_tokens=10) == []
