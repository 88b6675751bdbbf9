from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fairsisa import intervals
from fairsisa.intervals import INTERVAL_COLUMNS, Bootstrap, summarise, weight_chunks


def all_weights(subjects, bootstrap):
    return np.concatenate(list(weight_chunks(subjects, bootstrap)), axis=1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(0, 2**32 - 1))
def test_a_replicate_draws_as_many_subjects_as_there_are_with_all_their_examples(raw, seed):
    subjects = np.unique(raw, return_inverse=True)[1]
    weights = all_weights(subjects, Bootstrap(num_replicates=7, seed=seed))
    assert weights.shape == (len(raw), 8)
    assert (weights[:, 0] == 1.0).all()
    first = np.unique(subjects, return_index=True)[1]
    assert (weights == weights[first][subjects]).all()
    assert (weights[first].sum(axis=0) == len(first)).all()
    assert np.array_equal(weights, np.round(weights))


def test_the_draws_do_not_depend_on_the_chunks(monkeypatch):
    subjects = np.arange(50) // 2
    bootstrap = Bootstrap(num_replicates=40, seed=3)
    whole = all_weights(subjects, bootstrap)
    for cells in (1, 150, 500):
        monkeypatch.setattr(intervals, "MAX_CELLS", cells)
        chunks = list(weight_chunks(subjects, bootstrap))
        assert max(chunk.size for chunk in chunks) <= max(cells, 50)
        assert np.array_equal(np.concatenate(chunks, axis=1), whole)
        wide = list(weight_chunks(subjects, bootstrap, rows=100))
        assert max(chunk.shape[1] for chunk in wide) <= max(cells // 100, 1)
        assert np.array_equal(np.concatenate(wide, axis=1), whole)


def test_the_seed_decides_the_draws():
    subjects = np.arange(20)
    assert np.array_equal(all_weights(subjects, Bootstrap(5, seed=1)), all_weights(subjects, Bootstrap(5, seed=1)))
    assert not np.array_equal(all_weights(subjects, Bootstrap(5, seed=1)), all_weights(subjects, Bootstrap(5, seed=2)))


def test_draws_follow_the_multinomial_law():
    weights = all_weights(np.arange(10), Bootstrap(num_replicates=20_000))[:, 1:]
    assert weights.mean(axis=1) == pytest.approx(np.ones(10), abs=0.03)
    assert np.cov(weights) == pytest.approx(np.full((10, 10), -0.1) + np.eye(10), abs=0.04)


@settings(deadline=None)
@given(
    arrays(np.float64, (3, 12), elements=st.one_of(st.just(np.nan), st.floats(-10, 10))),
    st.sampled_from([0.5, 0.9, 0.95]),
)
def test_summary_equals_numpy_on_the_defined_replicates(replicates, level):
    found = summarise(replicates, level)
    assert tuple(found) == INTERVAL_COLUMNS
    for row, drawn in enumerate(replicates[:, 1:]):
        known = drawn[~np.isnan(drawn)]
        assert found["num_undefined"][row] == 11 - len(known)
        assert found["value"][row] == pytest.approx(replicates[row, 0], nan_ok=True)
        expected = [np.nan] * 3
        if len(known) > 1:
            tail = (1 - level) / 2
            expected = [np.quantile(known, tail), np.quantile(known, 1 - tail), known.std(ddof=1)]
        actual = [found[name][row] for name in ("low", "high", "standard_error")]
        assert actual == pytest.approx(expected, nan_ok=True, abs=1e-9)


def test_intervals_cover_the_truth_when_subjects_bring_several_examples():
    rng = np.random.default_rng(0)
    num_trials, num_subjects, per_subject, chance = 300, 60, 5, 0.7
    subjects = np.repeat(np.arange(num_subjects), per_subject)
    covered = {"subjects": 0, "examples": 0}
    for trial in range(num_trials):
        right = np.repeat(rng.random(num_subjects) < chance, per_subject).astype(float)
        for name, units in (("subjects", subjects), ("examples", np.arange(len(subjects)))):
            weights = all_weights(units, Bootstrap(num_replicates=200, seed=trial))
            found = summarise(right @ weights / weights.sum(axis=0), 0.95)
            covered[name] += bool(found["low"] <= chance <= found["high"])
    assert 0.90 <= covered["subjects"] / num_trials <= 0.98
    assert covered["examples"] / num_trials < 0.75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_replicates": 1}, "at least 2 bootstrap replicates, got 1"),
        ({"level": 1.0}, "level between 0 and 1, such as 0.95, got 1.0"),
        ({"level": 0.0}, "level between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Bootstrap(**settings)
