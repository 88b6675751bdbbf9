from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.settings import TrainerSettings
from fairsisa.sisa.budget import learning_rate_window, presentations, slice_epochs

counts = st.integers(1, 12)
epochs = st.floats(0.05, 40)


@st.composite
def trainers(draw: st.DrawFn, num_slices: int, schedule: str = "slice") -> TrainerSettings:
    budget = draw(st.sampled_from(("compute_matched", "per_slice", "listed")))
    listed = draw(st.lists(epochs, min_size=num_slices, max_size=num_slices)) if budget == "listed" else ()
    return TrainerSettings(
        max_epochs=draw(epochs), budget=budget, slice_epochs=tuple(listed), schedule=schedule, warmup=0.0
    )


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    num_slices = draw(counts)
    sizes = draw(st.lists(st.integers(0, 300), min_size=num_slices, max_size=num_slices))
    return list(slice_epochs(draw(trainers(num_slices)), num_slices)), sizes


def work(epochs: list[float], sizes: list[int]) -> Fraction:
    seen, total = 0, Fraction(0)
    for each, own in zip(epochs, sizes, strict=True):
        seen += own
        if own:
            total += Fraction(each) * seen
    return total


@given(plans())
def test_the_total_is_within_half_an_example_of_what_was_asked_for(plan):
    assert abs(sum(presentations(*plan)) - work(*plan)) <= Fraction(1, 2) + Fraction(1, 10**6)


@given(plans())
def test_so_is_the_total_up_to_each_stage(plan):
    wanted, sizes = plan
    shown = presentations(wanted, sizes)
    for end in range(1, len(sizes) + 1):
        assert abs(sum(shown[:end]) - work(wanted[:end], sizes[:end])) <= Fraction(1, 2) + Fraction(1, 10**6)


@given(plans())
def test_an_empty_slice_is_shown_nothing_and_another_never_less_than_nothing(plan):
    for shown, own in zip(presentations(*plan), plan[1], strict=True):
        assert shown >= 0
        assert own or shown == 0


@given(plans(), st.integers(0, 11), st.integers(0, 300))
def test_a_stage_depends_on_no_later_slice(plan, place, other):
    wanted, sizes = plan
    place %= len(sizes)
    changed = [*sizes[:place], other, *sizes[place + 1 :]]
    assert presentations(wanted, sizes)[:place] == presentations(wanted, changed)[:place]


def test_a_stage_does_depend_on_the_slices_up_to_it():
    assert presentations([1.0, 1.0], [10, 10]) == (10, 20)
    assert presentations([1.0, 1.0], [9, 10]) == (9, 19)
    assert presentations([1.0, 1.0, 1.0], [10, 0, 10]) == (10, 0, 20)


def test_a_list_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"is (shorter|longer) than"):
        presentations([1.0, 1.0], [10])


@given(counts, st.integers(1, 30), st.integers(1, 50))
def test_equal_slices_make_the_work_of_whole_epochs(num_slices, max_epochs, size):
    wanted = slice_epochs(TrainerSettings(max_epochs=max_epochs), num_slices)
    assert sum(presentations(wanted, [size] * num_slices)) == max_epochs * num_slices * size


@given(counts, st.integers(1, 30))
def test_compute_matched_is_the_published_formula(num_slices, max_epochs):
    wanted = slice_epochs(TrainerSettings(max_epochs=max_epochs), num_slices)
    assert wanted == pytest.approx([float(Fraction(2 * max_epochs, num_slices + 1))] * num_slices, rel=1e-15)


def test_one_slice_gets_every_epoch():
    assert slice_epochs(TrainerSettings(max_epochs=7.0), 1) == (7.0,)


def test_per_slice_and_listed_are_taken_as_they_are():
    assert slice_epochs(TrainerSettings(max_epochs=2.5, budget="per_slice"), 3) == (2.5, 2.5, 2.5)
    listed = TrainerSettings(budget="listed", slice_epochs=(1.0, 2.0, 0.5))
    assert slice_epochs(listed, 3) == (1.0, 2.0, 0.5)


@pytest.mark.parametrize("num_slices", [1, 2, 3, 5, 10, 20, 50])
def test_a_uniform_request_costs_what_bourtoule_et_al_derived(num_slices):
    # A request for slice r retrains stages r..R; Bourtoule et al. 2021, appendix: e' D (2/3 + 1/(3R)).
    size, max_epochs = 420, 3
    wanted = slice_epochs(TrainerSettings(max_epochs=max_epochs), num_slices)
    shown = presentations(wanted, [size] * num_slices)
    brute = sum(Fraction(sum(shown[first:])) for first in range(num_slices)) / num_slices
    share = [Fraction(stage + 1, num_slices) for stage in range(num_slices)]
    closed = max_epochs * (Fraction(2, 3) + Fraction(1, 3 * num_slices))
    assert math.isclose(sum(e * float(s**2) for e, s in zip(wanted, share, strict=True)), closed, rel_tol=1e-12)
    assert abs(brute / (size * num_slices) - closed) <= Fraction(1, 2 * size)


def test_the_speed_up_tends_to_one_and_a_half():
    known = {2: 1.20, 5: 1.36, 10: 1.43, 20: 1.46, 50: 1.485}
    for num_slices, speed_up in known.items():
        wanted = slice_epochs(TrainerSettings(max_epochs=1.0), num_slices)
        cost = sum(e * ((stage + 1) / num_slices) ** 2 for stage, e in enumerate(wanted))
        assert 1 / cost == pytest.approx(speed_up, abs=6e-3)


@given(st.data(), counts)
def test_the_chain_window_runs_from_one_to_zero_without_a_jump(data, num_slices):
    trainer = data.draw(trainers(num_slices, "chain"))
    windows = [learning_rate_window(trainer, num_slices, index) for index in range(num_slices)]
    assert windows[0][0] == 1.0
    assert windows[-1][1] == 0.0
    assert all(end == start for (_, end), (start, _) in pairwise(windows))
    assert all(start > end >= 0.0 for start, end in windows)


@given(st.data(), counts)
def test_the_chain_window_falls_by_the_share_of_work(data, num_slices):
    trainer = data.draw(trainers(num_slices, "chain"))
    wanted = [Fraction(e) for e in slice_epochs(trainer, num_slices)]
    total = sum(e * (stage + 1) for stage, e in enumerate(wanted))
    for index in range(num_slices):
        start, end = learning_rate_window(trainer, num_slices, index)
        assert start - end == pytest.approx(float(wanted[index] * (index + 1) / total), abs=1e-12)


@pytest.mark.parametrize(("schedule", "window"), [("constant", (1.0, 1.0)), ("slice", (1.0, 0.0))])
def test_the_other_windows_are_the_same_in_every_stage(schedule, window):
    trainer = TrainerSettings(schedule=schedule)
    assert {learning_rate_window(trainer, 4, index) for index in range(4)} == {window}
