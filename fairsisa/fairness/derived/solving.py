"""The one door to the programs: choose a solver, realise its answer, and check its promise on the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fairsisa.errors import ConfigError, SolverError
from fairsisa.fairness.derived.criteria import EQUALIZED_ODDS, Criterion, GroupRate, criterion_value, group_rates_of
from fairsisa.fairness.derived.hulls import Chain, Regions, realise, regions_of
from fairsisa.fairness.derived.joint import Joint
from fairsisa.fairness.derived.plane import PlaneSolution, aim_of, solve_strict, solve_sweep
from fairsisa.fairness.derived.program import solve_program
from fairsisa.fairness.derived.solution import Solution

SOLVERS = ("auto", "plane", "highs", "clarabel")
PROMISE = 1e-9
SNAP = 1e-12


@dataclass(frozen=True, eq=False)
class Names:
    """The costs by label and decision, shape (C, C), and what messages call the classes and groups."""

    costs: np.ndarray
    classes: Sequence[str]
    groups: Sequence[str]


def solve(
    joint: Joint,
    criteria: Sequence[Criterion],
    *,
    costs: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    solver: str = "auto",
) -> Solution:
    """Return the derived predictor of least mean cost that meets all criteria.

    `costs` has shape (C, C), by label and decision; `classes` and `groups` are names for messages. "plane" is the exact
    geometric solver, for two labels; "highs" and "clarabel" solve the program as cvxpy states it; "auto" takes "plane"
    where it applies, else "highs".

    Raises:
        ConfigError: for an unknown solver, or "plane" with more than two labels.
        DataError: when a rate is undefined or the criteria contradict each other, naming the culprit.
        SolverError: when no solver keeps its promise.
    """
    start = [criteria[0].tolerance if criteria else 0.0]
    return solve_path(joint, criteria, start, costs=costs, classes=classes, groups=groups, solver=solver)[0]


def solve_path(
    joint: Joint,
    criteria: Sequence[Criterion],
    tolerances: Sequence[float],
    *,
    costs: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    solver: str = "auto",
) -> list[Solution]:
    """Return what `solve` would with the first criterion at each tolerance in turn; what they share is done once."""
    if solver not in SOLVERS:
        raise ConfigError(f"Expected a solver of {', '.join(SOLVERS)}; got {solver!r}.")
    if solver == "plane" and joint.num_classes != 2:
        raise ConfigError(f"The plane solver is for two classes, got {joint.num_classes}: choose solver=auto.")
    names, asked = Names(costs, classes, groups), _at(criteria, tolerances)
    rates = rates_of(joint.label_counts, criteria, names)
    if joint.num_classes != 2 or solver in ("highs", "clarabel"):
        return _as_stated(joint, asked, names, "highs" if solver == "auto" else solver)
    try:
        return list(_in_the_plane(joint, asked, rates, names))
    except SolverError:
        if solver == "plane":
            raise
        return _as_stated(joint, asked, names, "highs")  # which says what contradicts what


def solve_regions(
    chains: Sequence[Chain],
    label_counts: np.ndarray,
    criteria: Sequence[Criterion],
    tolerances: Sequence[float],
    names: Names,
) -> Iterator[PlaneSolution]:
    """Yield the best points in attainable regions, with the first criterion at each tolerance in turn.

    `label_counts` are weights by group and label, shape (G, 2); the regions are theirs.

    Raises:
        DataError: when a rate is undefined.
        SolverError: when no points meet the criteria.
    """
    asked = _at(criteria, tolerances)
    aim = aim_of(label_counts, names.costs)
    levels = [[criterion.tolerance for criterion in wanted] for wanted in asked]
    found = solve_sweep(chains, criteria, rates_of(label_counts, criteria, names), aim, levels)
    for wanted, answer in zip(asked, found, strict=True):
        strict = len(wanted) == 1 and wanted[0].name == EQUALIZED_ODDS and wanted[0].tolerance == 0.0
        yield replace(solve_strict(chains, aim), prices=answer.prices) if strict else answer


def rates_of(label_counts: np.ndarray, criteria: Sequence[Criterion], names: Names) -> list[tuple[GroupRate, ...]]:
    """Return the rates that each criterion compares; errors are those of `group_rates_of`."""
    return [
        group_rates_of(criterion, label_counts, costs=names.costs, classes=names.classes, groups=names.groups)
        for criterion in criteria
    ]


def _at(criteria: Sequence[Criterion], tolerances: Sequence[float]) -> list[list[Criterion]]:
    return [[replace(criteria[0], tolerance=float(t)), *criteria[1:]] if criteria else [] for t in tolerances]


def _as_stated(joint: Joint, asked: Sequence[Sequence[Criterion]], names: Names, solver: str) -> list[Solution]:
    costs, classes, groups = names.costs, names.classes, names.groups
    return [
        solve_program(joint, wanted, costs=costs, classes=classes, groups=groups, solver=solver) for wanted in asked
    ]


def _in_the_plane(
    joint: Joint, asked: Sequence[Sequence[Criterion]], rates: Sequence[Sequence[GroupRate]], names: Names
) -> Iterator[Solution]:
    regions, tolerances = regions_of(joint), [wanted[0].tolerance if wanted else 0.0 for wanted in asked]
    found = solve_regions(regions.chains, joint.label_counts, asked[0], tolerances, names)
    for wanted, answer in zip(asked, found, strict=True):
        yield _checked(joint, wanted, rates, names.costs, (regions, answer))


def _checked(
    joint: Joint,
    criteria: Sequence[Criterion],
    rates: Sequence[Sequence[GroupRate]],
    costs: np.ndarray,
    answer: tuple[Regions, PlaneSolution],
) -> Solution:
    """Return the rule that gives the points, its promise checked on what the rule gives, not on what was asked."""
    regions, plane = answer
    positive = realise(joint, regions, plane.points)
    positive = np.where(positive < SNAP, 0.0, np.where(positive > 1.0 - SNAP, 1.0, positive))
    mixing = np.stack([1.0 - positive, positive], axis=1)
    rows = joint.confusion_rows(mixing)
    values = tuple(
        criterion_value(criterion, [rate.values(rows) for rate in group_rates])
        for criterion, group_rates in zip(criteria, rates, strict=True)
    )
    loss = joint.mean_cost(mixing, costs)
    for criterion, value in zip(criteria, values, strict=True):
        if value > criterion.tolerance + PROMISE:
            raise SolverError(
                f"The rule found in the plane misses {criterion.name}: {value!r} against {criterion.tolerance!r}."
            )
    if loss > plane.loss + PROMISE:
        raise SolverError(f"The rule found in the plane costs {loss!r}, its points {plane.loss!r}.")
    return Solution(mixing, rows, loss, values, plane.prices, "plane")
