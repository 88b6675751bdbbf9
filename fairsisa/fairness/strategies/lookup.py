"""Rules that are looked up: one table per kind of state, the coarser ones for states that the finer lack."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from fairsisa.fairness.derived.joint import Joint
from fairsisa.fairness.derived.solution import Solution
from fairsisa.fairness.derived.solving import solve, solve_path
from fairsisa.fairness.strategies.base import Outcome, Postprocessor
from fairsisa.fairness.strategies.decisions import one_hot, rounded
from fairsisa.fairness.strategies.inputs import Inputs, blocks
from fairsisa.fairness.strategies.sample import Sample

View = Callable[[Inputs, np.ndarray], np.ndarray]
"""From inputs and group numbers to state codes, int64, shape (N,); -1 for what was never seen."""
DENSE_CELLS, DENSE_SHARE = 1 << 16, 4


@dataclass(frozen=True, eq=False)
class Table:
    """What is decided in each cell of a joint; `originals` are the cells' unprocessed decisions, or None."""

    joint: Joint
    solution: Solution
    originals: np.ndarray | None = None

    def find(self, groups: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Return the cell of each (group, state), int64, -1 where there is none."""
        keys = groups * self._span + states
        inside = (states >= 0) & (states < self._span)
        if self._dense is not None:
            return np.asarray(self._dense[np.where(inside, keys, -1)])
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(inside & (self._keys[place] == keys), place, -1)

    def outcome(self, is_rounded: bool) -> Outcome:
        """Return what the table does on the rows it was counted from."""
        if not is_rounded or self.originals is None:
            return Outcome(self.solution.confusion_rows, self.solution.prices)
        mixing = rounded(self.solution.mixing, self.originals)
        return Outcome(self.joint.confusion_rows(mixing), (float("nan"),) * len(self.solution.prices))

    @cached_property
    def _span(self) -> int:
        return int(self.joint.states.max()) + 1

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.asarray(self.joint.groups * self._span + self.joint.states)

    @cached_property
    def _dense(self) -> np.ndarray | None:
        """The cell of every possible key, where that is a small table; one more entry, for what lies outside it."""
        size = self.joint.num_groups * self._span
        if size > max(DENSE_CELLS, DENSE_SHARE * len(self.joint)):
            return None
        cells = np.full(size + 1, -1, dtype=np.int64)
        cells[self._keys] = np.arange(len(self.joint))
        return cells


class TablePostprocessor(Postprocessor):
    """Look up the decision by group and state; a state that fit never saw in the group is looked up as a coarser one.

    Hooks of a strategy: `_views()` gives what counts as a state, finest first; `_learn_states(sample)` may set what
    views need. Every view's table is the optimum of its own program on the same rows, under the same criteria. A state
    that no table has gets the unprocessed decision.

    Fitted attributes besides those of `Postprocessor`: `tables_`, one a view; `joint_` and `solution_` of the finest.
    """

    RULE: ClassVar[tuple[str, ...]] = ("tables_",)

    @property
    def joint_(self) -> Joint:
        """The weights of group, state and label that the finest program saw."""
        joint: Joint = self.tables_[0].joint
        return joint

    @property
    def solution_(self) -> Solution:
        """The answer of the finest program, cell by cell as in `joint_`."""
        solution: Solution = self.tables_[0].solution
        return solution

    @abstractmethod
    def _views(self) -> Sequence[View]: ...

    def _learn_states(self, sample: Sample) -> None:
        """Set what the views need; nothing unless overridden."""

    def _fit_rule(self, sample: Sample) -> None:
        self._learn_states(sample)
        self.tables_ = tuple(self._table(sample, view) for view in self._views())

    def _table(self, sample: Sample, view: View) -> Table:
        states = np.empty(len(sample.labels), dtype=np.int64)
        for rows in blocks(len(states)):
            states[rows] = view(sample.inputs.take(rows), sample.groups[rows])
        joint = sample.count(states)
        table = Table(joint, solve(joint, self.criteria_, **self._program()))
        if self.randomization != "none":
            return table
        cells = table.find(sample.groups, states)
        originals = np.zeros(len(joint), dtype=np.int64)
        originals[cells[cells >= 0]] = self._original(sample.inputs)[cells >= 0]
        return replace(table, originals=originals)

    def _apply_rule(self, inputs: Inputs, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        views = self._views()
        cells = self.tables_[0].find(groups, views[0](inputs, groups))
        probabilities = self.tables_[0].solution.mixing[cells]
        missing = np.flatnonzero(cells < 0)
        backed_off = cells < 0
        for table, view in zip(self.tables_[1:], views[1:], strict=True):
            if not len(missing):
                return probabilities, backed_off
            cells = table.find(groups[missing], view(inputs.take(missing), groups[missing]))
            probabilities[missing] = table.solution.mixing[cells]
            missing = missing[cells < 0]
        if len(missing):
            probabilities[missing] = one_hot(self._original(inputs.take(missing)), len(self.classes_))
        return probabilities, backed_off

    def _outcome(self, rounded: bool) -> Outcome:
        return self.tables_[0].outcome(rounded)

    def _rules_at(self, tolerances: Sequence[float]) -> list[dict[str, Any]]:
        paths = [solve_path(table.joint, self.criteria_, tolerances, **self._program()) for table in self.tables_]
        return [
            {"tables_": tuple(replace(table, solution=found) for table, found in zip(self.tables_, at, strict=True))}
            for at in zip(*paths, strict=True)
        ]
