"""The optimal derived predictor as a linear program in cvxpy, for any number of groups, classes and criteria."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse

from fairsisa.errors import ConfigError, DataError, SolverError
from fairsisa.fairness.derived.criteria import (
    DEMOGRAPHIC_PARITY,
    EQUALIZED_ODDS,
    Criterion,
    GroupRate,
    criterion_value,
    group_rates_of,
)
from fairsisa.fairness.derived.joint import Joint
from fairsisa.fairness.derived.solution import Solution

PROMISE = 1e-9
"""By how much a criterion may exceed its tolerance, and the loss the solver's own, once recomputed."""
CERTAIN = 1e-12
"""A probability this near to 0 or 1 is taken for it."""

FEASIBLE = 1e-10
"""The feasibility tolerance asked of the solvers."""

_SIMPLEX = {"primal_feasibility_tolerance": FEASIBLE, "dual_feasibility_tolerance": FEASIBLE}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "highs": {"highs_options": {"solver": "simplex", "small_matrix_value": 1e-12, **_SIMPLEX}},
    "clarabel": {"tol_feas": FEASIBLE, "tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10},
    "scipy": {"scipy_options": {"method": "highs-ds", **_SIMPLEX}},
}
SOLVERS = tuple(_OPTIONS)


def solve_program(
    joint: Joint,
    criteria: Sequence[Criterion],
    *,
    costs: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    solver: str = "highs",
) -> Solution:
    """Return the cheapest rule P(D=d | group, state) that meets every criterion (Hardt et al. 2016, section 4).

    `costs[label, decision]`, shape (C, C), finite; `classes` and `groups` name labels and groups in messages. The rule
    keeps every tolerance within `PROMISE` (times the largest cost, where that is above 1), recomputed from the clipped
    probabilities. An infinite tolerance asks for nothing: each cell gets its cheapest decision.

    "highs" (simplex) and "scipy" (its copy of HiGHS) return a vertex, hence few cells left to chance: with two
    classes and strict equalized odds at most 2 (G - 1). "clarabel" (interior point) returns a point inside the optimal
    face: it is slower and randomises many more cells wherever the optimum is not unique, its loss is within about
    1e-8 of the optimum, and its prices lie between those of a kink's two sides. A solver that does not answer
    "optimal", or breaks its promise, is followed by the next one, with a RuntimeWarning that says why;
    `Solution.solver` names who answered.

    Raises:
        ConfigError: when `solver` is unknown.
        DataError: when a rate is undefined, or the criteria cannot be met; then it says which tolerance would do.
        SolverError: when every solver failed, with what each one said.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"Expected a solver of {', '.join(SOLVERS)}; got {solver!r}.")
    if not joint.counts.sum() > 0.0:
        raise DataError("Expected rows with weight to fit a rule on, got none.")
    names = {"classes": classes, "groups": groups}
    rates = tuple(group_rates_of(each, joint.label_counts, costs=costs, **names) for each in criteria)
    task = _Task(joint, tuple(criteria), rates, costs, tuple(groups))
    program = _state(task)
    order = (solver, *(name for name in SOLVERS if name != solver))
    notes: list[str] = []
    for name in order:
        said = _run(program.problem, name)
        if said == cp.INFEASIBLE:
            _require_feasible(task, order)
        if said == cp.OPTIMAL:
            solution = _read(task, program, name)
            said = _broken_promise(task, program, solution)
            if not said:
                _tell(notes, name)
                return solution
        notes.append(f"{name}: {said}")
    raise SolverError(f"No solver found the fair rule. {'; '.join(notes)}.")


@dataclass(frozen=True, eq=False)
class _Task:
    """What is asked: the criteria with their rates, over a joint."""

    joint: Joint
    criteria: tuple[Criterion, ...]
    rates: tuple[tuple[GroupRate, ...], ...]
    costs: np.ndarray
    groups: tuple[str, ...]

    @cached_property
    def scale(self) -> float:
        """What makes the costs of cells near 1, so that a solver's absolute tolerances mean something."""
        return float(len(self.joint) / max(np.abs(self.costs).max(), CERTAIN))

    def mixing(self, decisions: np.ndarray) -> np.ndarray:
        """Return P(D=d | cell), shape (n, C), from what a solver gave: in [0, 1], rows summing to 1."""
        binary = self.joint.num_classes == 2
        raw = np.stack([1.0 - decisions, decisions], axis=1) if binary else decisions.reshape(self.joint.counts.shape)
        clipped = np.where(raw < CERTAIN, 0.0, np.where(raw > 1.0 - CERTAIN, 1.0, raw))
        return np.asarray(clipped / clipped.sum(axis=1, keepdims=True))

    def group_values(self, confusion_rows: np.ndarray) -> list[list[np.ndarray]]:
        """Return, criterion by criterion, the rates of the groups."""
        return [[rate.values(confusion_rows) for rate in rates] for rates in self.rates]


@dataclass(frozen=True, eq=False)
class _Program:
    """What is solved: the problem, its decisions, and the constraints and slack of each criterion."""

    problem: cp.Problem
    decisions: cp.Variable
    bounds: tuple[list[cp.Constraint], ...]
    slacks: tuple[cp.Variable, ...]


def _state(task: _Task, *, elastic: bool = False) -> _Program:
    """State the program; an elastic one minimises by how much tolerances must grow instead of the cost."""
    joint, num_classes = task.joint, task.joint.num_classes
    decisions = cp.Variable(len(joint) * (1 if num_classes == 2 else num_classes), bounds=[0.0, 1.0])
    slacks = tuple(cp.Variable(joint.num_groups if c.bounds_levels else (), nonneg=True) for c in task.criteria)
    bounds = tuple(
        _bounds(criterion, _group_rates(joint, rates, decisions), joint.num_groups, slack if elastic else None)
        for criterion, rates, slack in zip(task.criteria, task.rates, slacks, strict=True)
    )
    constraints = [constraint for each in bounds for constraint in each]
    if num_classes != 2:
        sums = scipy.sparse.kron(scipy.sparse.eye_array(len(joint)), np.ones((1, num_classes)), format="csr")
        constraints.append(sums @ decisions == 1.0)
    if elastic:
        goal = cp.sum([cp.sum(slack) for slack in slacks])
    else:
        weights, offset = _reduced(joint.counts @ task.costs / joint.counts.sum())
        goal = task.scale * ((weights @ decisions) + offset.sum())
    return _Program(cp.Problem(cp.Minimize(goal), constraints), decisions, bounds, slacks)


def _reduced(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (weights, offset by cell) of the sum of `values` * mixing, shape (n, C), as a function of the decisions.

    With two classes there is one decision a cell, P(D=1 | cell); otherwise there are C of them.
    """
    if values.shape[1] == 2:
        return values[:, 1] - values[:, 0], values[:, 0]
    return values.ravel(), np.zeros(len(values))


def _group_rates(joint: Joint, rates: Sequence[GroupRate], decisions: cp.Variable) -> cp.Expression:
    """Return the rates of all groups as functions of the decisions: rate by rate, shape (len(rates) * G,)."""
    totals = joint.label_counts[joint.groups]
    shares = np.divide(joint.counts, totals, out=np.zeros_like(joint.counts), where=totals > 0.0)
    per_cell = decisions.size // len(joint)
    shape = (joint.num_groups, decisions.size)
    rows, columns = np.repeat(joint.groups, per_cell), np.arange(decisions.size)
    blocks, offsets = [], []
    for rate in rates:
        weights, offset = _reduced(np.einsum("nyd,ny->nd", rate.coefficients[joint.groups], shares))
        used = weights != 0.0
        blocks.append(scipy.sparse.csr_array((weights[used], (rows[used], columns[used])), shape=shape))
        offsets.append(np.bincount(joint.groups, offset, minlength=joint.num_groups))
    return scipy.sparse.vstack(blocks, format="csr") @ decisions + np.concatenate(offsets)


def _bounds(
    criterion: Criterion, rates: cp.Expression, num_groups: int, slack: cp.Variable | None
) -> list[cp.Constraint]:
    """Return what a criterion asks of the rates; see `_price` for how the duals of these are read.

    Differences of at most t are said as low <= rate <= low + t, with a free `low` per rate: as many rows as rates,
    where pairs of groups would be quadratic. At tolerance 0 the low end goes too: successive groups are equal, so
    that a vertex has no more fractional cells than there are equalities.
    """
    if math.isinf(criterion.tolerance):
        return []
    tolerance = criterion.tolerance if slack is None else criterion.tolerance + slack
    if criterion.bounds_levels:
        return [rates <= tolerance]
    num_rates = rates.size // num_groups
    if criterion.tolerance == 0.0 and slack is None:
        return [_steps(num_rates, num_groups) @ rates == 0.0] if num_groups > 1 else []
    each = scipy.sparse.kron(scipy.sparse.eye_array(num_rates), np.ones((num_groups, 1)), format="csr")
    low = each @ cp.Variable(num_rates)
    if criterion.form == "max":
        return [rates >= low, rates <= low + tolerance]
    spreads = cp.Variable(num_rates, nonneg=True)
    return [rates >= low, rates <= low + each @ spreads, cp.sum(spreads) / num_rates <= tolerance]


def _steps(num_rates: int, num_groups: int) -> scipy.sparse.csr_array:
    """Return the matrix that takes each group's rate from the next group's, rate by rate."""
    step = scipy.sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(num_groups - 1, num_groups))
    return scipy.sparse.kron(scipy.sparse.eye_array(num_rates), step, format="csr")


def _price(criterion: Criterion, bounds: list[cp.Constraint], num_groups: int, num_classes: int) -> float:
    """Return by how much the goal falls per unit of more tolerance, from the duals of the criterion's constraints.

    Let f[r, g] be the force on rate r of group g (the dual of its upper bound less that of its lower bound; of an
    equality, its dual). `low` is free, so the forces on a rate sum to zero. Moving the groups' rates apart by delta
    gains at most f[r] . delta, largest over all delta that span 1 at half the l1 norm of f[r] (raise where f > 0).
    The max form grants that span to every rate, so its price is the sum over rates; the mean form grants num_rates
    times the span to share out, so its price is num_rates times the largest.

    Forces are unique but at kinks of the loss, such as a decision that is never taken; there the price is an upper
    bound of what more tolerance buys.
    """
    if not bounds:
        return 0.0
    if criterion.bounds_levels:
        return float(np.maximum(bounds[0].dual_value, 0.0).sum())
    if len(bounds) == 1:
        num_rates = bounds[0].size // (num_groups - 1)
        forces = _steps(num_rates, num_groups).T @ np.atleast_1d(bounds[0].dual_value)
    else:
        forces = bounds[1].dual_value - bounds[0].dual_value
    forces = forces.reshape(-1, num_groups)
    if len(bounds) == 1 and num_classes > 2 and criterion.name in (EQUALIZED_ODDS, DEMOGRAPHIC_PARITY):
        forces = _least_forces(forces, num_classes, criterion.form)
    by_rate = np.abs(forces).sum(axis=1) / 2.0
    return float(by_rate.sum() if criterion.form == "max" else len(by_rate) * by_rate.max())


def _least_forces(forces: np.ndarray, num_classes: int, form: str) -> np.ndarray:
    """Return the least of the equivalent forces on rates that sum to 1 over the decisions; shape (num_rates, G).

    Where all decisions' rates must be equal, one equality follows from the others: a force that acts on every
    decision's rate of a group alike does nothing, and a solver adds any amount of it.
    """
    num_rows, num_groups = forces.shape
    idle = cp.Variable((num_rows // num_classes, num_groups))
    on_each = scipy.sparse.kron(scipy.sparse.eye_array(idle.shape[0]), np.ones((num_classes, 1)), format="csr")
    left = forces + on_each @ idle
    sizes = cp.sum(cp.abs(left), axis=1)
    goal = cp.sum(sizes) if form == "max" else cp.max(sizes)
    problem = cp.Problem(cp.Minimize(goal), [cp.sum(idle, axis=1) == 0.0])
    _solve(problem, SOLVERS, "the price of a tolerance")
    return np.asarray(left.value)


def _run(problem: cp.Problem, name: str) -> str:
    """Solve, and return the status, or what went wrong in the solver's or cvxpy's words."""
    options = {key: dict(value) if isinstance(value, dict) else value for key, value in _OPTIONS[name].items()}
    try:
        problem.solve(solver=name.upper(), **options)
    except Exception as error:  # A solver may raise anything; what it says is passed on, whoever is next.
        return f"{type(error).__name__}: {error}"
    # The goal is bounded, so there is no other way to have no solution.
    return cp.INFEASIBLE if problem.status == cp.settings.INFEASIBLE_OR_UNBOUNDED else str(problem.status)


def _solve(problem: cp.Problem, order: Sequence[str], sought: str) -> None:
    """Solve by the first solver that can."""
    notes: list[str] = []
    for name in order:
        said = _run(problem, name)
        if said == cp.OPTIMAL:
            return
        notes.append(f"{name}: {said}")
    raise SolverError(f"No solver found {sought}. {'; '.join(notes)}.")


def _read(task: _Task, program: _Program, name: str) -> Solution:
    """Return the solution in the program's variables, everything but the prices recomputed from the probabilities."""
    mixing = task.mixing(program.decisions.value)
    rows = task.joint.confusion_rows(mixing)
    values = (criterion_value(*pair) for pair in zip(task.criteria, task.group_values(rows), strict=True))
    prices = (
        _price(criterion, bounds, task.joint.num_groups, task.joint.num_classes) / task.scale
        for criterion, bounds in zip(task.criteria, program.bounds, strict=True)
    )
    return Solution(mixing, rows, task.joint.mean_cost(mixing, task.costs), tuple(values), tuple(prices), name)


def _broken_promise(task: _Task, program: _Program, solution: Solution) -> str:
    """Return which promise the solution breaks; nothing where it keeps them all."""
    allowed = PROMISE * max(1.0, float(np.abs(task.costs).max()))
    for criterion, value in zip(task.criteria, solution.values, strict=True):
        if not value <= criterion.tolerance + allowed:
            return f"said optimal, but {criterion.name} is {value:.3g}, tolerance {criterion.tolerance:g}"
    told = program.problem.value / task.scale
    if not abs(solution.loss - told) <= allowed:
        return f"said optimal with a loss of {told:.9g}, but its rule costs {solution.loss:.9g}"
    return ""


def _tell(notes: list[str], name: str) -> None:
    """Warn when it took more than one solver."""
    if notes:
        warnings.warn(f"The fair rule is from {name}, after {'; '.join(notes)}.", RuntimeWarning, stacklevel=3)


def _require_feasible(task: _Task, order: Sequence[str]) -> None:
    """Raise unless the criteria can be met together; say which tolerance is too small, and which would do.

    Differences alone are feasible (a constant rule), so an infeasible verdict on them is the solver's mistake. Where
    there is a choice of tolerances to raise, the one with the least sum is named.
    """
    program = _state(task, elastic=True)
    _solve(program.problem, order, "by how much the tolerances are too small")
    rows = task.joint.confusion_rows(task.mixing(program.decisions.value))
    needs = [
        _need(task, criterion, values)
        for criterion, values, slack in zip(task.criteria, task.group_values(rows), program.slacks, strict=True)
        if np.max(slack.value) > FEASIBLE
    ]
    if needs:
        beside = " together" if len(task.criteria) > 1 else ""
        asked = " and ".join(f"{criterion.name}={criterion.tolerance:g}" for criterion in task.criteria)
        raise DataError(f"{asked} cannot be met{beside}: {', '.join(needs)}. Raise the tolerance.")


def _need(task: _Task, criterion: Criterion, values: Sequence[np.ndarray]) -> str:
    """Say what the criterion needs, rounded up so that the number said will do."""
    least = math.ceil((criterion_value(criterion, values) - FEASIBLE) * 1e6) / 1e6
    who = f"group {task.groups[int(np.argmax(values[0]))]!r}" if criterion.bounds_levels else criterion.name
    return f"{who} needs at least {least:.10g}"
