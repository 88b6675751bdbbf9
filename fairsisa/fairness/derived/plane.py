"""The exact geometric solver for two labels: points in the groups' attainable regions that meet the criteria."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from fairsisa.errors import SolverError
from fairsisa.fairness.derived.criteria import Criterion, GroupRate
from fairsisa.fairness.derived.hulls import Chain

TOLERANCE = 1e-10
OUTSIDE = 1e-13
MOST_ROUNDS = 10_000


@dataclass(frozen=True, eq=False)
class Aim:
    """What is to be made small over the groups' points (f, t): the sum of slopes[g] @ (f_g, t_g), plus `constant`.

    Shape of `slopes` (G, 2). With costs by label and decision it is the mean cost.
    """

    slopes: np.ndarray
    constant: float


@dataclass(frozen=True, eq=False)
class PlaneSolution:
    """The best points, shape (G, 2), the mean cost there, and the price of each criterion's tolerance."""

    points: np.ndarray
    loss: float
    prices: tuple[float, ...]


def aim_of(label_counts: np.ndarray, costs: np.ndarray) -> Aim:
    """Return the mean cost as a function of the groups' points; weights by group and label have shape (G, 2)."""
    total = label_counts.sum()
    slopes = label_counts * (costs[:, 1] - costs[:, 0]) / total
    return Aim(slopes, float((label_counts * costs[:, 0]).sum() / total))


def solve_strict(chains: Sequence[Chain], aim: Aim) -> PlaneSolution:
    """Return the one point in all regions that costs least: equalized odds without tolerance (Hardt et al. 2016).

    The cost of the best point at false positive rate f is convex and piecewise linear in f, with corners where a chain
    has one, or where two chains cross; so the best corner, and the crossings beside it, hold the answer. O(G m log m)
    for chains of m points in all. Prices are not computed.
    """
    slope = aim.slopes.sum(axis=0)
    corners = np.unique(np.concatenate([chain.points[:, 0] for chain in chains]))
    heights = np.stack([chain.upper_at(corners) for chain in chains])
    cost = slope[0] * corners + slope[1] * heights.min(axis=0)
    best = int(np.argmin(cost))
    point, least = (corners[best], heights[:, best].min()), cost[best]
    for left in range(max(best - 1, 0), min(best + 1, len(corners) - 1)):
        for f, t in _crossings(corners[left : left + 2], heights[:, left : left + 2]):
            if slope[0] * f + slope[1] * t < least:
                point, least = (f, t), slope[0] * f + slope[1] * t
    points = np.tile(np.asarray(point, dtype=np.float64), (len(chains), 1))
    return PlaneSolution(points, float(least) + aim.constant, ())


def solve_plane(
    chains: Sequence[Chain], criteria: Sequence[Criterion], rates: Sequence[Sequence[GroupRate]], aim: Aim
) -> PlaneSolution:
    """Return the points that meet all criteria at least cost; `rates` are those of each criterion.

    A linear program in the points alone, whose rows are edges of the regions; edges are added as they are found
    violated, so that few of many matter.

    Raises:
        SolverError: when there is no such point, or the solver fails.
    """
    return next(iter(solve_sweep(chains, criteria, rates, aim, [[c.tolerance for c in criteria]])))


def solve_sweep(
    chains: Sequence[Chain],
    criteria: Sequence[Criterion],
    rates: Sequence[Sequence[GroupRate]],
    aim: Aim,
    tolerances: Sequence[Sequence[float]],
) -> Iterator[PlaneSolution]:
    """Yield what `solve_plane` would for each list of tolerances, going on from one to the next."""
    program = _Program(chains, criteria, rates, aim)
    for asked in tolerances:
        yield program.solve(asked)


class _Program:
    """A handle on the solver, which keeps its basis and the edges found so far.

    Columns are f_0, t_0, f_1, t_1, ..., then per criterion and rate the smallest rate of a group, then for mean forms
    each rate's spread. The rows of a criterion that hold its tolerance are `limits[place]`.
    """

    def __init__(
        self, chains: Sequence[Chain], criteria: Sequence[Criterion], rates: Sequence[Sequence[GroupRate]], aim: Aim
    ) -> None:
        self.chains, self.aim, self.criteria = chains, aim, criteria
        self.known: list[set[tuple[bool, int]]] = [set() for _ in chains]
        self.limits: list[list[tuple[int, float, float]]] = []
        self.solver = highspy.Highs()
        self.solver.setOptionValue("output_flag", False)
        self.solver.setOptionValue("presolve", "off")
        self.solver.setOptionValue("threads", 1)
        self.solver.setOptionValue("primal_feasibility_tolerance", TOLERANCE)
        self.solver.setOptionValue("dual_feasibility_tolerance", TOLERANCE)
        self._add_points()
        for criterion, group_rates in zip(criteria, rates, strict=True):
            self.limits.append(list(self._add_criterion(criterion, group_rates)))
        for group in range(len(chains)):
            self._add_edges(group, self._cheapest(group))

    def solve(self, tolerances: Sequence[float]) -> PlaneSolution:
        """Return the optimum under the given tolerances, one for each criterion."""
        for rows, tolerance in zip(self.limits, tolerances, strict=True):
            for row, low, offset in rows:
                self.solver.changeRowBounds(row, low, min(tolerance + offset, highspy.kHighsInf))
        for _ in range(MOST_ROUNDS):
            self.solver.run()
            status = self.solver.getModelStatus()
            if status != highspy.HighsModelStatus.kOptimal:
                raise SolverError(f"The program in the plane ended as {self.solver.modelStatusToString(status)!r}.")
            solution = self.solver.getSolution()
            points = np.asarray(solution.col_value[: 2 * len(self.chains)]).reshape(-1, 2)
            cuts = [self._cut(group, point) for group, point in enumerate(points)]
            if not any(cuts):
                return self._answer(points, np.asarray(solution.row_dual))
        raise SolverError(
            f"The program in the plane found new edges {MOST_ROUNDS:,} times over; its points are broken."
        )

    def _answer(self, points: np.ndarray, duals: np.ndarray) -> PlaneSolution:
        loss = float((self.aim.slopes * points).sum()) + self.aim.constant
        prices = [sum(max(-duals[row], 0.0) for row, _, _ in rows) for rows in self.limits]
        return PlaneSolution(points, loss, tuple(map(float, prices)))

    def _add_points(self) -> None:
        for chain, slopes in zip(self.chains, self.aim.slopes, strict=True):
            for axis in (0, 1):
                self.solver.addCol(float(slopes[axis]), 0.0, float(chain.end[axis]), 0, [], [])

    def _add_criterion(self, criterion: Criterion, rates: Sequence[GroupRate]) -> Iterator[tuple[int, float, float]]:
        """Add a criterion's columns and rows; yield (row, lower bound, offset of the upper one) of those it limits."""
        spreads = []
        for rate in rates:
            slopes = rate.coefficients[:, :, 1] - rate.coefficients[:, :, 0]
            constants = rate.coefficients[:, :, 0].sum(axis=1)
            if criterion.bounds_levels:
                for group, slope in enumerate(slopes):
                    row = self._add_row(-highspy.kHighsInf, highspy.kHighsInf, self._terms(group, slope))
                    yield row, -highspy.kHighsInf, -float(constants[group])
                continue
            lowest = self._add_column(-highspy.kHighsInf)
            if criterion.form == "mean":
                spreads.append(self._add_column(0.0))
            for group, slope in enumerate(slopes):
                terms = {**self._terms(group, slope), lowest: -1.0}
                low = -float(constants[group])
                if criterion.form == "max":
                    yield self._add_row(low, highspy.kHighsInf, terms), low, low
                else:
                    self._add_row(low, highspy.kHighsInf, terms)
                    self._add_row(-highspy.kHighsInf, low, {**terms, spreads[-1]: -1.0})
        if spreads:
            row = self._add_row(-highspy.kHighsInf, highspy.kHighsInf, {c: 1.0 / len(spreads) for c in spreads})
            yield row, -highspy.kHighsInf, 0.0

    def _terms(self, group: int, slope: np.ndarray) -> dict[int, float]:
        return {2 * group + axis: float(slope[axis]) for axis in (0, 1)}

    def _add_column(self, low: float) -> int:
        self.solver.addCol(0.0, low, highspy.kHighsInf, 0, [], [])
        return int(self.solver.getNumCol()) - 1

    def _add_row(self, low: float, high: float, terms: dict[int, float]) -> int:
        kept = {column: value for column, value in terms.items() if value != 0.0}
        self.solver.addRow(low, high, len(kept), list(kept), list(kept.values()))
        return int(self.solver.getNumRow()) - 1

    def _cheapest(self, group: int) -> np.ndarray:
        chain = self.chains[group]
        return np.asarray(chain.points[int(np.argmin(chain.points @ self.aim.slopes[group]))])

    def _add_edges(self, group: int, point: np.ndarray) -> None:
        place = int(np.searchsorted(self.chains[group].lengths, point.sum(), side="left"))
        for edge in (place - 1, place):
            self._add_edge(group, edge, mirrored=False)

    def _cut(self, group: int, point: np.ndarray) -> bool:
        """Add the edge that a point violates most, above or below; return whether there was a new one."""
        chain, found = self.chains[group], False
        for mirrored in (False, True):
            place = chain.end - point if mirrored else point
            outside = chain.normals @ place - chain.reaches
            edge = int(np.argmax(outside))
            if outside[edge] > OUTSIDE:
                found |= self._add_edge(group, edge, mirrored=mirrored)
        return found

    def _add_edge(self, group: int, edge: int, *, mirrored: bool) -> bool:
        """Demand that the group's point lies on the inner side of an edge; return whether that is new."""
        chain = self.chains[group]
        if not 0 <= edge < len(chain.steps) or (mirrored, edge) in self.known[group]:
            return False
        self.known[group].add((mirrored, edge))
        normal = chain.normals[edge]
        bound = float(chain.reaches[edge])
        if mirrored:
            normal, bound = -normal, bound - float(normal @ chain.end)
        self._add_row(-highspy.kHighsInf, bound, self._terms(group, normal))
        return True


def _crossings(ends: np.ndarray, heights: np.ndarray) -> Iterator[tuple[float, float]]:
    """Yield points on the lower envelope where two of the lines between heights[:, 0] and heights[:, 1] cross."""
    start, rise = heights[:, 0], heights[:, 1] - heights[:, 0]
    one, other = np.triu_indices(len(start), 1)
    gap, closing = start[other] - start[one], rise[one] - rise[other]
    inside = (closing != 0) & (gap * closing > 0) & (np.abs(gap) < np.abs(closing))
    for share in gap[inside] / closing[inside]:
        yield float(ends[0] + share * (ends[1] - ends[0])), float((start + share * rise).min())
