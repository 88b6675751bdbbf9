from __future__ import annotations

import math

import pytest

from fairsisa.fairness.metrics import QUALITIES
from fairsisa.fairness.rates import DIFFERENCES, RATES
from fairsisa.report import words


def test_every_metric_has_a_name_and_a_meaning():
    measured = {*QUALITIES, *DIFFERENCES, *RATES}
    assert measured == set(words.METRIC_NAMES) == set(words.MEANINGS)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (60, "1 min 00 s"), (192.2, "3 min 12 s"), (7384, "2 h 03 min")],
)
def test_durations_are_told_in_the_unit_that_suits_them(seconds, told):
    assert words.duration(seconds) == told


def test_numbers_are_written_alike_everywhere():
    assert [words.number(value) for value in (0.12345, -0.5, math.nan, math.inf)] == [
        "0.123",
        "-0.500",
        "undefined",
        "undefined",
    ]
    assert [words.percent(value) for value in (0.7191, math.nan)] == ["71.9 %", "undefined"]
    assert [words.signed(0.05), words.points(-0.0251)] == ["+0.050", "-2.5"]
    assert [words.count(1, "cell"), words.count(2000, "cell")] == ["1 cell", "2,000 cells"]
    assert words.listed(["a", "b"]) == "a, b"
    assert words.listed(list("abcdefg"), most=3) == "a, b, c and 4 more"
