"""The number that a free answer gives."""

from __future__ import annotations

import math
import re

YEAR, YEARS_AROUND = 2020, 10
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "mn": 6, "bn": 9, "tn": 12}
LETTERS = {"K": 3, "M": 6, "B": 9, "T": 12}
NUMBER = re.compile(
    r"(?<![\w.,])"  # not the 2 of CO2, nor the end of a longer number
    r"(?P<sign>[-\u2212]?)[$€£¥]?(?P<second_sign>[-\u2212]?)"
    r"(?P<digits>\d{1,3}(?:[,'\u2019\u00a0\u202f]\d{3})+(?!\d)|\d{1,3}(?:\.\d{3}){2,}(?!\d)|\d+|(?=\.\d+(?!\.?\d)))"
    r"(?P<fraction>(?:\.\d+)?)"
    r"(?:e(?P<exponent>[-+]?\d+)|\s?[x\u00d7*]\s?10(?:\^|\*\*)(?P<power>[-+\u2212]?\d+))?"
    r"(?:[\s-]?(?P<scale>hundred|thousand|million|billion|trillion|mn|bn|tn)\b|(?P<letter>(?-i:[KMBT]))\b)?",
    re.IGNORECASE,
)


def number_in(text: str) -> float | None:
    """Return the first number of a text, None where there is none, or one that is no answer.

    Understood are thousands set apart by commas, apostrophes, thin spaces or (two and more) points, decimals (0.75 and
    .75), currencies and percent signs, which are left out, 1.2e6 and 1.2 x 10^6, and words and letters of scale (4.5
    million, 4.5bn, 4.5M). Digits inside a word, or behind a full stop that ends one, are no number. A number within
    `YEARS_AROUND` of `YEAR` is taken for the year an answer speaks of, and passed over; a first number that is negative
    or not finite is no answer. Both rules are those of Kirsten et al. (NAACL 2025), who reject an answer whose only
    number is a year.
    """
    for found in NUMBER.finditer(text):
        number = _value(found)
        if abs(number - YEAR) < YEARS_AROUND:
            continue
        return number if math.isfinite(number) and number >= 0 else None
    return None


def _value(found: re.Match[str]) -> float:
    digits = re.sub(r"\D", "", found["digits"])
    power = int((found["exponent"] or found["power"] or "0").replace("\u2212", "-")[:6])
    power += SCALES.get((found["scale"] or "").lower(), 0) + LETTERS.get(found["letter"] or "", 0)
    size = float(f"{digits}{found['fraction']}e{power}")
    return -size if found["sign"] or found["second_sign"] else size
