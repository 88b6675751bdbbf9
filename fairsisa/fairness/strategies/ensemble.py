"""Derive the decision from what all constituents say together: the pattern of votes, their count, or a mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fairsisa.errors import ConfigError
from fairsisa.fairness.derived.joint import FLOAT64_BITS, fits_code, pack_votes
from fairsisa.fairness.strategies.inputs import Inputs, count_positive, count_votes
from fairsisa.fairness.strategies.lookup import TablePostprocessor, View
from fairsisa.fairness.strategies.sample import Sample
from fairsisa.settings import one_of

STATES = ("pattern", "vote_count", "pooled_pattern")
LARGEST = 1 << 60
"""Codes, times groups and classes, stay below this: there is room for pooled states, and for `count_joint`."""


@dataclass(frozen=True, eq=False)
class RowCoder:
    """From rows of small whole numbers to one code a row; equal rows have equal codes, and no others.

    Rows of `width` numbers below `base` are read as the digits of one where that fits. Where it does not, they are cut
    into parts of `part` numbers, each of which does, and `tables` holds what was seen: for every part its codes, then
    (but for the first) the pairs of the code so far and the place among those, all sorted. `tables` is None where rows
    are read as digits.
    """

    base: int
    width: int
    part: int
    tables: tuple[np.ndarray, ...] | None

    @property
    def span(self) -> int:
        """One more than the largest code."""
        return int(self.base) ** self.width if self.tables is None else len(self.tables[-1])

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return codes 0..span-1, int64, shape (N,); -1 for a row whose parts or their combination were never seen."""
        if self.tables is None:
            return pack_votes(rows, self.base)
        codes = _places(self.tables[0], pack_votes(rows[:, : self.part], self.base))
        for number, start in enumerate(range(self.part, self.width, self.part)):
            seen, pairs = self.tables[2 * number + 1], self.tables[2 * number + 2]
            codes = _places(pairs, _pairs(codes, _places(seen, self._packed(rows, start)), len(seen)))
        return codes

    def _packed(self, rows: np.ndarray, start: int) -> np.ndarray:
        return pack_votes(rows[:, start : start + self.part], self.base)


def row_coder(rows: np.ndarray, base: int, *, largest: int) -> RowCoder:
    """Return a coder of rows with numbers 0..base-1, shape (N, width), whose codes stay below `largest`.

    `largest` is at least N; nothing is kept of the rows where their digits fit.
    """
    width = rows.shape[1]
    if fits_code(width, base) and int(base) ** width <= largest:
        return RowCoder(base, width, width, None)
    part = max(1, min(width, int(FLOAT64_BITS / np.log2(base))))
    tables = [np.unique(pack_votes(rows[:, :part], base))]
    codes = _places(tables[0], pack_votes(rows[:, :part], base))
    for start in range(part, width, part):
        packed = pack_votes(rows[:, start : start + part], base)
        seen = np.unique(packed)
        keys = _pairs(codes, _places(seen, packed), len(seen))
        pairs = np.unique(keys)
        codes = _places(pairs, keys)
        tables += [seen, pairs]
    return RowCoder(base, width, part, tuple(tables))


class EnsemblePostprocess(TablePostprocessor):
    """Derive the decision from all constituents' votes and the group.

    Method C of FairSISA (Kadhe et al. 2023): with the whole pattern as the state, the optimum costs least, in sample,
    among all predictors derived from the votes and the group. On new data it overfits from about five constituents on:
    the vote count, or patterns pooled where they are rare, hold better.

    A pattern that a group lacks is decided as its vote count is, by the program over vote counts; a vote count that the
    group lacks as its majority vote is, by the program over that. Binary counts are of class 1, others of every class.

    Parameters:
        states: "pattern", "vote_count", or "pooled_pattern": in each group, patterns of less than `pool_below` rows
            are treated alike if their vote counts are; a pattern that was not seen belongs there too.
        pool_below: rows (weights, where there are weights) of a pattern in a group from which on it stands alone.

    All other parameters and attributes are those of `Postprocessor` and `TablePostprocessor`; `pattern_coder_` and
    `count_coder_` number the patterns and vote counts, `standing_` holds the patterns that stand alone.
    """

    RULE: ClassVar[tuple[str, ...]] = (*TablePostprocessor.RULE, "pattern_coder_", "count_coder_", "standing_")

    def __init__(self, *, states: str = "pattern", pool_below: float = 15, **common: Any) -> None:
        super().__init__(**common)
        self.states = states
        self.pool_below = pool_below

    def _check_parameters(self) -> None:
        super()._check_parameters()
        one_of("states", self.states, STATES)
        if not self.pool_below >= 0:
            raise ConfigError(f"Expected pool_below to be 0 or more, got {self.pool_below!r}.")

    def _learn_states(self, sample: Sample) -> None:
        votes, num_classes = sample.inputs.votes, sample.inputs.num_classes
        largest = LARGEST // (sample.num_groups * num_classes)
        self.count_coder_ = row_coder(_counts(sample.inputs), votes.shape[1] + 1, largest=largest)
        self.pattern_coder_ = row_coder(votes, num_classes, largest=largest)
        self.standing_ = np.zeros(0, dtype=np.int64)
        if self.states == "pooled_pattern":
            joint = sample.count(self.pattern_coder_.encode(votes))
            often = joint.counts.sum(axis=1) >= self.pool_below
            self.standing_ = np.sort(self._keys(joint.groups[often], joint.states[often]))

    def _views(self) -> Sequence[View]:
        coarse: list[View] = [self._vote_count, lambda inputs, groups: self._original(inputs)]
        finest: dict[str, list[View]] = {"pattern": [self._pattern], "pooled_pattern": [self._pooled], "vote_count": []}
        return [*finest[self.states], *coarse]

    def _pattern(self, inputs: Inputs, groups: np.ndarray) -> np.ndarray:
        return self.pattern_coder_.encode(inputs.votes)

    def _vote_count(self, inputs: Inputs, groups: np.ndarray) -> np.ndarray:
        return self.count_coder_.encode(_counts(inputs))

    def _pooled(self, inputs: Inputs, groups: np.ndarray) -> np.ndarray:
        """Return the code of a pattern that stands alone, else, above all those, that of its vote count."""
        patterns, counts = self._pattern(inputs, groups), self._vote_count(inputs, groups)
        alone = np.isin(self._keys(groups, patterns), self.standing_) & (patterns >= 0)
        return np.where(alone, patterns, np.where(counts >= 0, counts + self.pattern_coder_.span, -1))

    def _keys(self, groups: np.ndarray, patterns: np.ndarray) -> np.ndarray:
        return np.asarray(patterns * len(self.groups_) + groups)


def _counts(inputs: Inputs) -> np.ndarray:
    """Return the votes for every class but the first, shape (N, C - 1)."""
    if inputs.num_classes == 2:
        return count_positive(inputs.votes)[:, None]
    return count_votes(inputs.votes, inputs.num_classes)[:, 1:]


def _places(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the place of each value among sorted ones, -1 where it is not there."""
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[place] == values, place, -1)


def _pairs(first: np.ndarray, second: np.ndarray, span: int) -> np.ndarray:
    """Return one number for two places; -1 where either is."""
    return np.where((first < 0) | (second < 0), -1, first * span + second)
