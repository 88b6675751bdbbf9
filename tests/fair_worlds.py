"""Small worlds whose law is known in closed form, to hold fitted rules against what is true of everyone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairsisa.fairness.derived.criteria import Criterion, cost_matrix
from fairsisa.fairness.derived.joint import Joint
from fairsisa.fairness.derived.solution import Solution
from fairsisa.fairness.derived.solving import solve

COSTS = cost_matrix(2)
CLASSES = ("0", "1")


@dataclass(frozen=True, eq=False)
class World:
    """P(group, label, pattern of votes), shape (G, 2, 2**S); pattern m has vote k in its bit k."""

    law: np.ndarray

    @property
    def num_constituents(self) -> int:
        return int(np.log2(self.law.shape[2]))

    @property
    def group_names(self) -> list[str]:
        return [f"g{number}" for number in range(len(self.law))]

    @property
    def patterns(self) -> np.ndarray:
        return votes_of(np.arange(self.law.shape[2]), self.num_constituents)

    def draw(self, num_rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return votes, labels and group names of independent people."""
        cells = rng.choice(self.law.size, size=num_rows, p=self.law.ravel())
        groups, labels, patterns = np.unravel_index(cells, self.law.shape)
        return votes_of(patterns, self.num_constituents), labels, np.array(self.group_names)[groups]

    def outcome(self, postprocessor) -> tuple[float, np.ndarray]:
        """Return a fitted rule's exact risk, and P(D=1 | y, g) of shape (G, 2)."""
        size = self.law.shape[2]
        votes = np.tile(self.patterns, (len(self.law), 1))
        groups = np.repeat(self.group_names, size)
        chances = postprocessor.predict_proba(votes, sensitive_features=groups)[:, 1].reshape(len(self.law), 1, size)
        rates = (self.law * chances).sum(axis=2) / self.law.sum(axis=2)
        shares = self.law.sum(axis=2)
        return float((shares[:, 0] * rates[:, 0] + shares[:, 1] * (1 - rates[:, 1])).sum()), rates

    def optimum(self, criterion: Criterion, states: np.ndarray | None = None) -> Solution:
        """Return the best derived predictor of everyone; `states` joins patterns, shape (2**S,)."""
        codes = np.arange(self.law.shape[2]) if states is None else states
        counts = np.zeros((len(self.law), int(codes.max()) + 1, 2))
        for group, law in enumerate(self.law):
            np.add.at(counts[group], codes, law.T)
        numbers, found = np.nonzero(counts.sum(axis=2) > 0)
        joint = Joint(numbers, found, counts[numbers, found], len(self.law))
        return solve(joint, [criterion], costs=COSTS, classes=CLASSES, groups=self.group_names)


def votes_of(patterns: np.ndarray, num_constituents: int) -> np.ndarray:
    return (patterns[:, None] >> np.arange(num_constituents)) & 1


def difference(rates: np.ndarray) -> float:
    """Return the equalized odds difference of P(D=1 | y, g), shape (G, 2)."""
    return float((rates.max(axis=0) - rates.min(axis=0)).max())


def latent_world(num_constituents: int, num_groups: int = 2, *, seed: int = 0) -> World:
    """Return a world in which a hidden kind of example (easy or hard) makes constituents err together.

    Every constituent has rates of its own in every group; given group, label and kind, votes are independent.
    """
    rng = np.random.default_rng(seed)
    group = rng.dirichlet(np.full(num_groups, 8.0))
    positive = rng.uniform(0.35, 0.6, size=num_groups)
    easy = rng.uniform(0.5, 0.8, size=(num_groups, 2))
    shares = group[:, None] * np.stack([1 - positive, positive], axis=1)
    right = rng.uniform(0.55, 0.7, size=(num_constituents, num_groups, 2))
    chances = np.stack([np.minimum(right + 0.22, 0.97), right - 0.1])
    chances[:, :, :, 0] = 1 - chances[:, :, :, 0]
    votes = votes_of(np.arange(2**num_constituents), num_constituents)
    law = np.zeros((num_groups, 2, len(votes)))
    for kind, weight in enumerate((easy, 1 - easy)):
        each = np.ones((num_groups, 2, len(votes)))
        for k in range(num_constituents):
            each *= np.where(votes[:, k], chances[kind, k][:, :, None], 1 - chances[kind, k][:, :, None])
        law += weight[:, :, None] * each
    return World(shares[:, :, None] * law)


def copied_votes_world(num_constituents: int, *, rate: float = 0.8) -> World:
    """Return a world where every constituent has equal rates in both groups, but votes hang together in one alone.

    In group 0 votes are independent given the label; in group 1 all constituents vote as the first.
    """
    votes = votes_of(np.arange(2**num_constituents), num_constituents)
    law = np.zeros((2, 2, len(votes)))
    for label, chance in enumerate((1 - rate, rate)):
        law[0, label] = np.prod(np.where(votes, chance, 1 - chance), axis=1)
        law[1, label, 0], law[1, label, -1] = 1 - chance, chance
    return World(law / law.sum())
