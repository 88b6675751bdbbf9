"""What a program answers: a randomised rule, what it costs, and what its tolerances are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WHOLE = 1e-9
"""A mixing probability this near to 0 or 1 counts as certain."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The optimal derived predictor of a joint.

    `mixing` holds P(D=d | cell), shape (n, C), cell by cell as in the joint; `confusion_rows` P(D=d | Y=y, g), shape
    (G, C, C); `loss` the mean cost, weighted as the rows are. For every criterion, in the order given: `values` holds
    what its tolerance bounds, as achieved; `prices` by how much the loss would fall per unit of more tolerance, 0 or
    more: the shadow price. At a kink of the loss it is one of the slopes there, never below the one towards more
    tolerance. `solver` names what found it.
    """

    mixing: np.ndarray
    confusion_rows: np.ndarray
    loss: float
    values: tuple[float, ...]
    prices: tuple[float, ...]
    solver: str

    @property
    def fractional(self) -> np.ndarray:
        """Whether the decision in each cell is left to chance, shape (n,)."""
        return np.asarray(self.mixing.max(axis=1) < 1.0 - WHOLE)
