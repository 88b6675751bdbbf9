"""The program of a fair rule that is not told groups, only how likely they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cvxpy as cp
import numpy as np
import scipy.sparse

from fairsisa.errors import DataError, SolverError
from fairsisa.fairness.derived.criteria import Criterion, GroupRate, criterion_value, group_rates_of

PROMISE = 1e-9
"""By how much a criterion may exceed its tolerance on the rows of the program, recomputed."""
SAME = 1e-9
"""Joint probabilities and mixing probabilities this near to each other count as the same."""
FEW_ROWS = 2000
"""Rows that a program is first solved over, where there are more than twice as many."""
_SIMPLEX = {"solver": "simplex", "primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9}


@dataclass(frozen=True, eq=False)
class LinearRule:
    """Decide for the class of least score, linear in the joint probabilities of group and label.

    The score of d is the sum over a and y of `scores[a, y, d]` * P(A=a, Y=y | x); shape (G, C, C). Rows of the program
    that lie on a boundary between classes are kept in `ties`, joint probabilities of shape (n, G * C), with what the
    program decided for them in `tie_mixing`, shape (n, C).
    """

    scores: np.ndarray
    ties: np.ndarray
    tie_mixing: np.ndarray

    def decide(self, joint: np.ndarray) -> np.ndarray:
        """Return P(D=d | x), shape (num_rows, C); `joint` holds P(A=a, Y=y | x), shape (num_rows, G, C)."""
        chosen = np.einsum("nay,ayd->nd", joint, self.scores).argmin(axis=1)
        decisions = np.eye(self.scores.shape[2])[chosen]
        flat = joint.reshape(len(joint), -1)
        for tie, mixing in zip(self.ties, self.tie_mixing, strict=True):
            decisions[np.abs(flat - tie).max(axis=1) <= SAME] = mixing
        return np.asarray(decisions)


@dataclass(frozen=True, eq=False)
class BlindSolution:
    """The rule, and what it costs and achieves where probabilities are the group predictor's own.

    `values` and `prices` are, per criterion, as in `derived.solution.Solution`.
    """

    rule: LinearRule
    loss: float
    values: tuple[float, ...]
    prices: tuple[float, ...]


def solve_blind(
    joint: np.ndarray,
    weights: np.ndarray,
    criteria: Sequence[Criterion],
    *,
    costs: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
) -> BlindSolution:
    """Return the cheapest rule of x that meets every criterion, when the joint probabilities are true.

    `joint` holds P(A=a, Y=y | x_i), shape (n, G, C); `weights`, shape (n,), say how much each row counts. With
    h_i(d) = P(D=d | x_i), the program (Xian and Zhao 2024, "LinearPost", arXiv 2405.04025) minimises the mean of
    sum_y,d P(y | x_i) cost[y, d] h_i(d) subject to the criteria on the group rates

        P(D=d | a, y) = sum_i h_i(d) P(a, y | x_i) / sum_i P(a, y | x_i).

    By complementary slackness h_i is 0 but for classes of least score, which is linear in P(. | x_i), its coefficients
    being costs plus the duals of the rates: that rule applies to any x. Rows it does not settle keep the program's own
    probabilities (`LinearRule.ties`), at most as many at a vertex as there are constraints that bind.

    Raises:
        DataError: when a rate is undefined, naming group and label, or the criteria cannot be met.
        SolverError: when the solver fails, or its answer breaks the promise.
    """
    flat, place = np.unique(joint.reshape(len(joint), -1), axis=0, return_inverse=True)
    mass = np.bincount(place.ravel(), weights, minlength=len(flat))
    rows = flat[mass > 0].reshape(-1, *joint.shape[1:])
    task = _Task(rows, mass[mass > 0] / mass[mass > 0].mean(), tuple(criteria), costs, (tuple(classes), tuple(groups)))
    choices, forces = _sifted(task)
    rule = _rule(task, task.scores(forces), choices)
    totals, decided = predicted_rows(task.rows, task.mass, rule.decide(task.rows))
    pairs = zip(criteria, task.named, strict=True)
    values = tuple(criterion_value(criterion, [rate.values(decided) for rate in each]) for criterion, each in pairs)
    _require_kept(criteria, values)
    loss = float(np.einsum("ay,ayd,yd->", totals, np.nan_to_num(decided), costs) / totals.sum())
    return BlindSolution(rule, loss, values, tuple(_price(*pair) for pair in zip(criteria, forces, strict=True)))


def predicted_rows(joint: np.ndarray, weights: np.ndarray, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return expected weights by group and label, shape (G, C), and P(D=d | a, y) under them, shape (G, C, C).

    `joint` holds P(A=a, Y=y | x_i), shape (n, G, C), `weights` shape (n,), `decisions` P(D=d | x_i), shape (n, C).
    """
    totals = np.einsum("n,nay->ay", weights, joint)
    decided = np.einsum("n,nay,nd->ayd", weights, joint, decisions)
    rows = np.divide(decided, totals[:, :, None], out=np.full_like(decided, np.nan), where=totals[:, :, None] > 0)
    return totals, rows


@dataclass(frozen=True, eq=False)
class _Task:
    """Distinct rows of joint probabilities, shape (n, G, C), their weights, of mean 1, and what is asked of them.

    `names` are those of classes and groups. What a solver sees is `scale` times losses, rates and tolerances, so that
    its absolute tolerances mean something.
    """

    rows: np.ndarray
    mass: np.ndarray
    criteria: tuple[Criterion, ...]
    costs: np.ndarray
    names: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def num_groups(self) -> int:
        return int(self.rows.shape[1])

    @property
    def scale(self) -> float:
        return float(len(self.rows))

    @cached_property
    def totals(self) -> np.ndarray:
        """Expected weights by group and label, shape (G, C)."""
        return np.asarray(np.einsum("n,nay->ay", self.mass, self.rows))

    @cached_property
    def named(self) -> list[tuple[GroupRate, ...]]:
        """The rates of each criterion."""
        classes, groups = self.names
        return [
            group_rates_of(each, self.totals, costs=self.costs, classes=classes, groups=groups)
            for each in self.criteria
        ]

    @cached_property
    def rates(self) -> list[np.ndarray]:
        """The same as coefficients over the weights of (group, label, decision), each of shape (R, G, C, C)."""
        shares = np.divide(1.0, self.totals, out=np.zeros_like(self.totals), where=self.totals > 0)[:, :, None]
        return [np.stack([rate.coefficients * shares for rate in each]) for each in self.named]

    @cached_property
    def loss_weights(self) -> np.ndarray:
        """What each choice adds to `scale` times the loss, shape (n, C)."""
        return np.asarray(self.mass[:, None] * (self.rows.sum(axis=1) @ self.costs))

    @cached_property
    def rate_weights(self) -> list[np.ndarray]:
        """What each choice adds to `scale` times each criterion's rates, shape (R * G, n, C)."""
        each = (self.scale * np.einsum("n,rgyd,ngy->rgnd", self.mass, rate, self.rows) for rate in self.rates)
        return [weights.reshape(-1, *self.loss_weights.shape) for weights in each]

    def scores(self, forces: Sequence[np.ndarray]) -> np.ndarray:
        """Return the scores that go with duals of the rates; see `LinearRule`."""
        found = np.broadcast_to(self.costs, (self.num_groups, *self.costs.shape)).copy()
        for force, rate in zip(forces, self.rates, strict=True):
            found += self.scale * np.einsum("rg,rgyd->gyd", force, rate)
        return found

    def taken(self, rows: np.ndarray) -> _Task:
        """Return the task of some of the rows by themselves."""
        mass = self.mass[rows]
        return replace(self, rows=self.rows[rows], mass=mass / mass.mean())


def _sifted(task: _Task) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the program's choices, shape (n, C), and the duals of each criterion's rates, shape (R, G).

    Few rows lie near a boundary of the rule. So the duals of a part of the rows settle the others beforehand, and the
    program is solved over those near a boundary, the others held; rows that its own duals settle otherwise join in,
    until there are none. Then primal and dual solution are those of the whole program.

    Raises:
        DataError: when the criteria cannot be met.
    """
    num_rows = len(task.rows)
    held, margins = np.zeros_like(task.loss_weights), np.zeros(num_rows)
    free, forces = np.arange(num_rows), _forces_of_a_part(task)
    if forces is not None:
        held, margins = _settled(task, forces)
        free = _nearest(margins, FEW_ROWS)
    while True:
        found = _solved(task, free, held)
        if found is not None:
            settled, ahead = _settled(task, found[1])
            wrong = np.setdiff1d(np.flatnonzero((settled != held).any(axis=1) & (ahead > SAME)), free)
            if not len(wrong):
                return found
            free = np.union1d(free, wrong)
        elif len(free) < num_rows:
            free = _nearest(margins, 2 * len(free))
        else:
            raise DataError("No group-blind rule meets these criteria together: raise a tolerance or drop a criterion.")


def _forces_of_a_part(task: _Task) -> list[np.ndarray] | None:
    """Return the duals of the rates for a quarter of the rows; None where that is no help."""
    num_rows = len(task.rows)
    if num_rows <= 2 * FEW_ROWS:
        return None
    part = np.linspace(0, num_rows - 1, max(FEW_ROWS, num_rows // 4)).astype(np.int64)
    try:
        return _sifted(task.taken(part))[1]
    except DataError:  # A part may lack a label, or be infeasible, where the whole is neither.
        return None


def _nearest(margins: np.ndarray, num_rows: int) -> np.ndarray:
    """Return the rows with the smallest margins, in order."""
    return np.sort(np.argsort(margins, kind="stable")[:num_rows])


def _settled(task: _Task, forces: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's choice by the scores, one 1 a row, shape (n, C), and by how much it is ahead, shape (n,)."""
    scores = np.einsum("nay,ayd->nd", task.rows, task.scores(forces))
    ordered = np.sort(scores, axis=1)
    return np.eye(scores.shape[1])[scores.argmin(axis=1)], ordered[:, 1] - ordered[:, 0]


def _solved(task: _Task, free: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Return choices and duals where the `free` rows are chosen for, the others as `held`; None if infeasible.

    Raises:
        SolverError: when HiGHS gives no optimum.
    """
    kept = held.copy()
    kept[free] = 0.0
    choices = cp.Variable((len(free), held.shape[1]), nonneg=True)
    bounds = []
    for criterion, weights in zip(task.criteria, task.rate_weights, strict=True):
        matrix = scipy.sparse.csr_array(weights[:, free].reshape(len(weights), -1))
        offset = np.einsum("knd,nd->k", weights, kept)
        bounds.append(_bounds(criterion, matrix @ cp.vec(choices, order="C") + offset, task))
    goal = cp.sum(cp.multiply(task.loss_weights[free], choices))
    problem = cp.Problem(cp.Minimize(goal), [cp.sum(choices, axis=1) == 1.0, *(b for each in bounds for b in each)])
    try:
        problem.solve(solver=cp.HIGHS, highs_options=dict(_SIMPLEX))
    except cp.SolverError as error:
        raise SolverError(f"HiGHS did not find the group-blind rule: {error}.") from error
    if problem.status in (cp.INFEASIBLE, cp.settings.INFEASIBLE_OR_UNBOUNDED):
        return None
    if problem.status != cp.OPTIMAL:
        raise SolverError(f"HiGHS did not find the group-blind rule: it ended as {problem.status}.")
    kept[free] = choices.value
    shapes = zip(task.criteria, bounds, task.rates, strict=True)
    return kept, [_forces(*each, task.num_groups) for each in shapes]


def _bounds(criterion: Criterion, rates: cp.Expression, task: _Task) -> list[cp.Constraint]:
    """Return what a criterion asks of `scale` times the rates, shape (R * G,); `_forces` reads their duals."""
    if math.isinf(criterion.tolerance):
        return []
    tolerance = criterion.tolerance * task.scale
    if criterion.bounds_levels:
        return [rates <= tolerance]
    num_rates = rates.size // task.num_groups
    each = scipy.sparse.kron(scipy.sparse.eye_array(num_rates), np.ones((task.num_groups, 1)), format="csr")
    low = each @ cp.Variable(num_rates)
    if tolerance == 0.0:
        return [rates == low]
    if criterion.form == "max":
        return [rates >= low, rates <= low + tolerance]
    spreads = cp.Variable(num_rates, nonneg=True)
    return [rates >= low, rates <= low + each @ spreads, cp.sum(spreads) <= num_rates * tolerance]


def _forces(criterion: Criterion, bounds: Sequence[cp.Constraint], rates: np.ndarray, num_groups: int) -> np.ndarray:
    """Return the duals of the rates, those of bounds from above less those from below, shape (R, G)."""
    if not bounds:
        return np.zeros((len(rates), num_groups))
    duals = np.asarray(bounds[0].dual_value)
    if not criterion.bounds_levels and criterion.tolerance > 0.0:
        duals = np.asarray(bounds[1].dual_value) - duals
    return np.asarray(duals.reshape(len(rates), num_groups))


def _price(criterion: Criterion, forces: np.ndarray) -> float:
    """Return by how much the loss would fall per unit of more tolerance.

    Half the l1 norm of a rate's forces is what moving its groups apart by one would gain; the max form lets every rate
    do so, the mean form lets the rates share.
    """
    if criterion.bounds_levels:
        return float(np.abs(forces).sum())
    gains = np.abs(forces).sum(axis=1) / 2.0
    return float(gains.sum() if criterion.form == "max" else len(gains) * gains.max())


def _rule(task: _Task, scores: np.ndarray, choices: np.ndarray) -> LinearRule:
    """Return the rule of the scores, its exceptions the rows for which the program decided otherwise."""
    mixing = np.where(choices < SAME, 0.0, choices)
    mixing = mixing / mixing.sum(axis=1, keepdims=True)
    flat = task.rows.reshape(len(task.rows), -1)
    other = np.abs(LinearRule(scores, flat[:0], mixing[:0]).decide(task.rows) - mixing).max(axis=1) > SAME
    return LinearRule(scores, flat[other], mixing[other])


def _require_kept(criteria: Sequence[Criterion], values: Sequence[float]) -> None:
    for criterion, value in zip(criteria, values, strict=True):
        if not value <= criterion.tolerance + PROMISE:
            raise SolverError(
                f"The group-blind rule misses {criterion.name} on its own rows: {value:.3g} against a tolerance of "
                f"{criterion.tolerance:g}."
            )
