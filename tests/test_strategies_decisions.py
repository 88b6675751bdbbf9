from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import kstest

from fairsisa.fairness.strategies.decisions import (
    Derived,
    certain,
    decide,
    identities,
    keyed_uniforms,
    one_hot,
    rounded,
)
from fairsisa.fairness.strategies.inputs import Inputs

ids = st.lists(st.binary(max_size=8), max_size=30)


@st.composite
def mixings(draw: st.DrawFn) -> np.ndarray:
    num_classes = draw(st.integers(2, 4))
    raw = draw(
        hnp.arrays(np.float64, (draw(st.integers(1, 12)), num_classes), elements=st.sampled_from([0.0, 1.0, 3.0]))
    )
    raw[raw.sum(axis=1) == 0.0, 0] = 1.0
    return raw / raw.sum(axis=1, keepdims=True)


@given(ids, st.integers(-5, 5))
def test_a_uniform_depends_on_id_and_seed_alone(names: list[bytes], seed: int) -> None:
    whole = keyed_uniforms(names, seed)
    assert ((whole >= 0.0) & (whole < 1.0)).all()
    assert [keyed_uniforms([name], seed)[0] for name in names] == whole.tolist()


def test_uniforms_are_uniform_and_seeds_give_others() -> None:
    names = [str(number).encode() for number in range(20_000)]
    one, other = keyed_uniforms(names, 0), keyed_uniforms(names, 1)
    assert kstest(one, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert len(np.unique(one)) == len(names)


def test_another_process_draws_the_same() -> None:
    program = (
        "from fairsisa.fairness.strategies.decisions import keyed_uniforms\n"
        "import sys; sys.stdout.write(repr(keyed_uniforms([b'x', b'y'], 7).tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == repr(keyed_uniforms([b"x", b"y"], 7).tolist())


@given(mixings(), st.integers(0, 1000))
def test_a_decision_is_the_part_that_the_uniform_falls_on(chances: np.ndarray, seed: int) -> None:
    uniforms = np.random.default_rng(seed).random(len(chances))
    for chance, uniform, decision in zip(chances, uniforms, decide(chances, uniforms), strict=True):
        below = chance[:decision].sum()
        assert below - 1e-9 <= uniform <= below + chance[decision] + 1e-9
        assert chance[decision] > 0.0


@given(mixings())
def test_what_is_certain_needs_no_uniform(chances: np.ndarray) -> None:
    sure = certain(chances)
    assert sure.tolist() == [bool(row.max() == 1.0) for row in chances]
    for uniform in (0.0, 1.0 - 2.0**-53):
        decided = decide(chances, np.full(len(chances), uniform))
        assert (decided[sure] == chances[sure].argmax(axis=1)).all()


def test_a_chance_within_rounding_of_certain_is_certain() -> None:
    nearly = np.array([[1e-12, 1.0 - 1e-12], [1.0 - 1e-12, 1e-12]])
    assert decide(nearly, np.zeros(2)).tolist() == [1, 0]
    assert decide(nearly, np.full(2, 1.0 - 2.0**-53)).tolist() == [1, 0]


@given(mixings(), st.data())
def test_rounding_takes_the_likeliest_and_in_a_tie_the_original(chances: np.ndarray, data: st.DataObject) -> None:
    original = np.array([data.draw(st.integers(0, chances.shape[1] - 1)) for _ in chances])
    found = rounded(chances, original)
    for chance, start, row in zip(chances, original, found, strict=True):
        best = [c for c, p in enumerate(chance) if p > chance.max() - 1e-9]
        assert row.sum() == 1.0
        assert int(row.argmax()) == (start if start in best else best[0])


def test_derived_says_what_is_random_and_what_is_overridden() -> None:
    derived = Derived(np.array([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]]), np.array([0, 0, 0]), np.zeros(3, dtype=bool))
    assert derived.randomised.tolist() == [False, True, False]
    assert derived.override_probability.tolist() == [0.0, 0.75, 1.0]
    assert one_hot(np.array([1, 0]), 3).tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


def test_identities_are_ids_or_else_content_and_group() -> None:
    groups, names = np.array([0, 1]), ["a", "b"]
    votes = np.zeros((2, 2), dtype=np.uint8)
    named = Inputs(votes, 2, np.array(["p", 5], dtype=object))
    assert list(identities(named, groups, names)) == [b"p", b"5"]
    one, other = identities(Inputs(votes, 2), groups, names)
    assert one != other
    wide = Inputs(np.array([[0.5, 0.25]]), 2)
    narrow = Inputs(np.array([[0.5, 0.25]], dtype=np.float32), 2)
    assert list(identities(wide, groups[:1], names)) == list(identities(narrow, groups[:1], names))


@pytest.mark.parametrize("content", [np.array(["some text"], dtype=object), np.array([[1, "b"]], dtype=object)])
def test_content_may_be_anything(content: np.ndarray) -> None:
    given = Inputs(np.zeros((1, 2), dtype=np.uint8), 2, None, content)
    assert len(next(identities(given, np.array([0]), ["a"]))) > 2
    numbers = Inputs(np.zeros((1, 2), dtype=np.uint8), 2, None, np.array([[1, 2]]))
    objects = Inputs(np.zeros((1, 2), dtype=np.uint8), 2, None, np.array([[1, 2]], dtype=object))
    assert list(identities(numbers, np.array([0]), ["a"])) == list(identities(objects, np.array([0]), ["a"]))
