"""Post-process every constituent by itself, then combine their fair decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from fairsisa.errors import ConfigError
from fairsisa.fairness.derived.joint import Joint, fits_code, pack_votes
from fairsisa.fairness.derived.solving import solve, solve_path
from fairsisa.fairness.strategies.base import Outcome, Postprocessor
from fairsisa.fairness.strategies.decisions import one_hot
from fairsisa.fairness.strategies.decisions import rounded as _rounded
from fairsisa.fairness.strategies.inputs import Inputs, majority
from fairsisa.fairness.strategies.lookup import Table
from fairsisa.fairness.strategies.sample import Sample
from fairsisa.settings import one_of

COMBINATIONS = ("majority", "random_member")
MAX_OUTCOMES = 4_000_000
"""The most cells of a table of outcomes, rows times counts, that is held at once."""


class PostprocessThenAggregate(Postprocessor):
    """Derive each constituent's decision from its own vote and the group, then combine the K decisions.

    Method B of FairSISA (Kadhe et al. 2023): one program a constituent, its state that constituent's vote.

    - "majority" takes the majority of K independent draws, a tie to the lower class. It LOSES equalized odds (and any
      other criterion): every draw has equal rates over groups, but how often most of them agree also depends on how
      the votes hang together, which differs between groups. The difference that is left grows with K; `achieved_`
      says what it is.
    - "random_member" follows one constituent drawn with equal chance. Its rates are means of equal rates, so every
      criterion that the members meet is kept (Grgic-Hlaca et al. 2017), at a price in accuracy.

    Parameters:
        combine: "majority" or "random_member".

    All other parameters and attributes are those of `Postprocessor`; and `tables_`, one rule a constituent. With
    "random_member" a criterion's price is the mean of the members'; with "majority" it is unknown, NaN.

    Raises:
        ConfigError: in `fit`, when the majority has too many outcomes to sum over; see `majority_probabilities`.
    """

    RULE: ClassVar[tuple[str, ...]] = ("tables_", "patterns_", "pattern_joint_")

    def __init__(self, *, combine: str = "majority", **common: Any) -> None:
        super().__init__(**common)
        self.combine = combine

    def _check_parameters(self) -> None:
        super()._check_parameters()
        one_of("combine", self.combine, COMBINATIONS)

    def _fit_rule(self, sample: Sample) -> None:
        votes = sample.inputs.votes
        joints = [sample.count(votes[:, k].astype(np.int64)) for k in range(votes.shape[1])]
        self.tables_ = tuple(Table(joint, solve(joint, self.criteria_, **self._program())) for joint in joints)
        first, place = distinct_rows(np.zeros(len(votes), dtype=np.int64), votes, sample.inputs.num_classes)
        self.patterns_ = votes[first]
        self.pattern_joint_: Joint = sample.count(place)

    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, place = distinct_rows(groups, inputs.votes, inputs.num_classes)
        probabilities, backed_off = self._combined(inputs.votes[first], groups[first])
        return probabilities[place], backed_off[place]

    def _combined(self, votes: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities of deciding, and whether a vote was unseen in its group and so stands as it is."""
        num_classes = len(self.classes_)
        decisions = np.empty((*votes.shape, num_classes))
        backed_off = np.zeros(len(votes), dtype=bool)
        for k, table in enumerate(self.tables_):
            cells = table.find(groups, votes[:, k].astype(np.int64))
            unseen = cells < 0
            decisions[:, k] = np.where(
                unseen[:, None], one_hot(votes[:, k].astype(np.int64), num_classes), table.solution.mixing[cells]
            )
            backed_off |= unseen
        combined = decisions.mean(axis=1) if self.combine == "random_member" else majority_probabilities(decisions)
        return combined, backed_off

    def _outcome(self, rounded: bool) -> Outcome:
        joint = self.pattern_joint_
        votes = self.patterns_[joint.states]
        probabilities, _ = self._combined(votes, joint.groups)
        if rounded:
            probabilities = _rounded(probabilities, majority(votes, joint.num_classes))
        exact = self.combine == "random_member" and not rounded
        prices = np.mean([table.solution.prices for table in self.tables_], axis=0)
        return Outcome(joint.confusion_rows(probabilities), tuple(prices if exact else np.full(len(prices), np.nan)))

    def _rules_at(self, tolerances: Sequence[float]) -> list[dict[str, Any]]:
        paths = [solve_path(table.joint, self.criteria_, tolerances, **self._program()) for table in self.tables_]
        return [
            {"tables_": tuple(replace(table, solution=found) for table, found in zip(self.tables_, at, strict=True))}
            for at in zip(*paths, strict=True)
        ]


def distinct_rows(groups: np.ndarray, votes: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where each distinct (group, votes) row comes first, and the place of each row among the distinct ones.

    `groups` are numbers from 0, shape (N,); `votes` class indices, shape (N, K).
    """
    if fits_code(votes.shape[1], num_classes) and groups.max(initial=0) < 64:
        keys = (groups.astype(np.int64) << 56) | pack_votes(votes, num_classes)
    else:
        rows = np.ascontiguousarray(np.column_stack([groups, votes.astype(np.int64)]))
        keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    return first, place


def majority_probabilities(decisions: np.ndarray) -> np.ndarray:
    """Return P(the majority of independent draws is c), float64, shape (num_rows, C); a tie goes to the lower class.

    `decisions` holds each constituent's probabilities, shape (num_rows, K, C). With two classes the law of the number
    of positive draws is the Poisson binomial, built up one constituent at a time; with more, that of the counts of
    all classes but the first.

    Raises:
        ConfigError: when the counts have more than `MAX_OUTCOMES` values.
    """
    num_rows, num_constituents, num_classes = decisions.shape
    outcomes = (num_constituents + 1) ** (num_classes - 1)
    if outcomes > MAX_OUTCOMES:
        raise ConfigError(
            f"The majority of {num_constituents} draws of {num_classes} classes has {outcomes} outcomes to sum over, "
            f"more than {MAX_OUTCOMES}: choose combine='random_member'."
        )
    winners = _winners(num_constituents, num_classes)
    width, parts = max(1, MAX_OUTCOMES // outcomes), [np.zeros((0, num_classes))]
    for start in range(0, num_rows, width):
        law = _count_law(decisions[start : start + width])
        # Row by row, not as a matrix product: a row's bits must not depend on its neighbours.
        sums = [np.ascontiguousarray(law[:, winners == c]).sum(axis=1) for c in range(num_classes)]
        parts.append(np.stack(sums, axis=1))
    return np.concatenate(parts)


def _count_law(decisions: np.ndarray) -> np.ndarray:
    """Return the law of the numbers of draws of classes 1..C-1, shape (num_rows, (K + 1) ** (C - 1)).

    The dynamic programme over constituents: a draw of class c moves the count of c up by one, a draw of class 0 none.
    """
    num_rows, num_constituents, num_classes = decisions.shape
    law = np.zeros((num_rows, *(num_constituents + 1,) * (num_classes - 1)))
    law[(slice(None), *(0,) * (num_classes - 1))] = 1.0
    for constituent in range(num_constituents):
        chances = decisions[:, constituent].T.reshape(num_classes, num_rows, *(1,) * (num_classes - 1))
        following = law * chances[0]
        for c in range(1, num_classes):
            before = [slice(None)] * law.ndim
            after = list(before)
            before[c], after[c] = slice(None, -1), slice(1, None)
            following[tuple(after)] += law[tuple(before)] * chances[c]
        law = following
    return law.reshape(num_rows, -1)


def _winners(num_constituents: int, num_classes: int) -> np.ndarray:
    """Return the class that wins, by outcome of `_count_law`, shape ((K + 1) ** (C - 1),)."""
    counts = np.indices((num_constituents + 1,) * (num_classes - 1)).reshape(num_classes - 1, -1)
    return np.asarray(np.vstack([num_constituents - counts.sum(axis=0), counts]).argmax(axis=0))
