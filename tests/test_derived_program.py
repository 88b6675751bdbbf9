from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fairsisa.errors import ConfigError, DataError, SolverError
from fairsisa.fairness.derived import program
from fairsisa.fairness.derived.criteria import CRITERIA, FORMS, Criterion, cost_matrix
from fairsisa.fairness.derived.joint import Joint
from fairsisa.fairness.derived.program import solve_program
from fairsisa.fairness.derived.solution import Solution

DIFFERENCES = CRITERIA[:4]
Cell = tuple[int, np.ndarray]


@st.composite
def joints(draw: st.DrawFn, *, classes: Sequence[int] = (2, 3), least_groups: int = 1, most_states: int = 4) -> Joint:
    num_groups, num_classes = draw(st.integers(least_groups, 4)), draw(st.sampled_from(classes))
    sizes = draw(st.lists(st.integers(1, most_states), min_size=num_groups, max_size=num_groups))
    amounts = st.one_of(st.integers(1, 9).map(float), st.floats(0.01, 5.0))
    num = sum(sizes) * num_classes
    counts = np.array(draw(st.lists(amounts, min_size=num, max_size=num))).reshape(-1, num_classes)
    states = np.concatenate([np.arange(size) for size in sizes])
    return Joint(np.repeat(np.arange(num_groups), sizes), states, counts, num_groups)


def criteria(tolerances: Sequence[float] = (0.0, 0.01, 0.1, 0.4)) -> st.SearchStrategy[Criterion]:
    return st.builds(
        Criterion, st.sampled_from(DIFFERENCES), tolerance=st.sampled_from(tolerances), form=st.sampled_from(FORMS)
    )


def generic(num_groups: int, num_classes: int, seed: int, *, num_states: int = 6) -> Joint:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), num_states)
    counts = rng.random((len(groups), num_classes)) ** 3 + 0.01
    return Joint(groups, np.tile(np.arange(num_states), num_groups), counts, num_groups)


def solved(joint: Joint, *asked: Criterion, costs: np.ndarray | None = None, solver: str = "highs") -> Solution:
    costs = cost_matrix(joint.num_classes) if costs is None else costs
    names: dict[str, Any] = {"classes": "abc"[: joint.num_classes], "groups": "FMNO"[: joint.num_groups]}
    return solve_program(joint, asked, costs=costs, solver=solver, **names)


def conditions(joint: Joint, name: str) -> list[tuple[tuple[int, ...], int]]:
    """Return (labels conditioned on, decision counted) of each rate, from the definitions."""
    every = tuple(range(joint.num_classes))
    counted = every if joint.num_classes > 2 else (1,)
    if name == "equalized_odds":
        return [((y,), d) for y in every for d in counted]
    if name == "equal_opportunity":
        return [((c,), c) for c in counted]
    if name == "predictive_equality":
        return [(tuple(y for y in every if y != c), c) for c in counted]
    return [(every, c) for c in counted]


def weights_of(joint: Joint, group: int, labels: tuple[int, ...], decision: int) -> np.ndarray:
    """Return the weights by which cells' probabilities make up one rate of one group, shape (n, C)."""
    weights = np.zeros(joint.counts.shape)
    for cell in range(len(joint)):
        if joint.groups[cell] == group:
            weights[cell, decision] = sum(joint.counts[cell, y] for y in labels)
    return weights / sum(joint.counts[cell, y] for cell in np.flatnonzero(joint.groups == group) for y in labels)


def difference(joint: Joint, criterion: Criterion, mixing: np.ndarray) -> float:
    spreads = []
    for labels, decision in conditions(joint, criterion.name):
        rates = [float((weights_of(joint, g, labels, decision) * mixing).sum()) for g in range(joint.num_groups)]
        spreads.append(max(rates) - min(rates))
    return max(spreads) if criterion.form == "max" else sum(spreads) / len(spreads)


def costs_by_cell(joint: Joint, costs: np.ndarray) -> np.ndarray:
    return np.array(
        [[sum(row[y] * costs[y, d] for y in range(len(row))) for d in range(len(row))] for row in joint.counts]
    )


def naive_loss(joint: Joint, asked: Sequence[Criterion], costs: np.ndarray) -> float:
    """Return the optimum of a dense program over every pair of groups, with one probability per cell and decision."""
    size = joint.counts.size
    spreads = [len(conditions(joint, each.name)) if each.form == "mean" else 0 for each in asked]
    width = size + sum(spreads)
    above: list[tuple[np.ndarray, float]] = []
    used = size
    for criterion, own in zip(asked, spreads, strict=True):
        for rate, (labels, decision) in enumerate(conditions(joint, criterion.name)):
            for g, h in itertools.permutations(range(joint.num_groups), 2):
                row = np.zeros(width)
                row[:size] = (weights_of(joint, g, labels, decision) - weights_of(joint, h, labels, decision)).ravel()
                if own:
                    row[used + rate] = -1.0
                above.append((row, 0.0 if own else criterion.tolerance))
        if own:
            row = np.zeros(width)
            row[used : used + own] = 1.0 / own
            above.append((row, criterion.tolerance))
        used += own
    sums = np.zeros((len(joint), width))
    for cell in range(len(joint)):
        sums[cell, cell * joint.num_classes : (cell + 1) * joint.num_classes] = 1.0
    goal = np.concatenate([costs_by_cell(joint, costs).ravel(), np.zeros(width - size)]) / joint.counts.sum()
    rows = {"A_ub": np.array([row for row, _ in above]), "b_ub": [most for _, most in above]} if above else {}
    answer = linprog(goal, **rows, A_eq=sums, b_eq=np.ones(len(joint)), bounds=(0.0, None), method="highs")
    assert answer.status == 0, answer.message
    return float(answer.fun)


@settings(max_examples=60)
@given(joints(), st.lists(criteria(), min_size=1, max_size=2))
def test_no_rule_is_cheaper_and_every_promise_holds(joint: Joint, asked: list[Criterion]) -> None:
    costs = cost_matrix(joint.num_classes)
    solution = solved(joint, *asked)
    assert solution.loss == pytest.approx(naive_loss(joint, asked, costs), abs=1e-8)
    assert solution.solver == "highs"
    assert solution.mixing.shape == joint.counts.shape
    assert ((solution.mixing >= 0.0) & (solution.mixing <= 1.0)).all()
    np.testing.assert_allclose(solution.mixing.sum(axis=1), 1.0, atol=1e-12)
    for criterion, value in zip(asked, solution.values, strict=True):
        achieved = difference(joint, criterion, solution.mixing)
        assert achieved <= criterion.tolerance + 1e-9
        assert value == pytest.approx(achieved, abs=1e-12)
    told = (costs_by_cell(joint, costs) * solution.mixing).sum() / joint.counts.sum()
    assert solution.loss == pytest.approx(told, abs=1e-12)
    assert all(price >= 0.0 for price in solution.prices)


def cheapest_vertex(joint: Joint, name: str, tolerance: float, costs: np.ndarray) -> float:
    """Return the optimum for one rate and two groups, over all rules with at most one cell left to chance."""
    ((labels, decision),) = conditions(joint, name)
    tilt = weights_of(joint, 0, labels, decision)[:, 1] - weights_of(joint, 1, labels, decision)[:, 1]
    by_cell = costs_by_cell(joint, costs) / joint.counts.sum()
    best = np.inf
    for bits in itertools.product((0.0, 1.0), repeat=len(joint)):
        for cell, edge in itertools.product(range(len(joint)), (-tolerance, None, tolerance)):
            positive = np.array(bits)
            if edge is not None:
                positive[cell] = 0.0
                positive[cell] = (edge - tilt @ positive) / tilt[cell]
            if -1e-12 <= positive[cell] <= 1.0 + 1e-12 and abs(tilt @ positive) <= tolerance + 1e-12:
                best = min(best, float(by_cell[:, 0] @ (1.0 - positive) + by_cell[:, 1] @ positive))
    return best


@settings(max_examples=40)
@given(joints(classes=(2,), most_states=3), st.sampled_from(DIFFERENCES[1:]), st.sampled_from([0.0, 0.05, 0.3]))
def test_equals_the_best_of_all_vertices(joint: Joint, name: str, tolerance: float) -> None:
    pair = joint.groups < 2
    joint = Joint(joint.groups[pair], joint.states[pair], joint.counts[pair], 2)
    if joint.groups.max() == 0:
        joint = Joint(
            np.append(joint.groups, 1), np.append(joint.states, 0), np.vstack([joint.counts, [[2.0, 3.0]]]), 2
        )
    costs = cost_matrix(2, false_positive_cost=2.0)
    best = cheapest_vertex(joint, name, tolerance, costs)
    assert solved(joint, Criterion(name, tolerance), costs=costs).loss == pytest.approx(best, abs=1e-9)


@settings(max_examples=60)
@given(joints(classes=(2,), most_states=8))
def test_strict_equalized_odds_leaves_few_cells_to_chance(joint: Joint) -> None:
    solution = solved(joint, Criterion("equalized_odds"))
    assert solution.fractional.sum() <= 2 * (joint.num_groups - 1)


@settings(max_examples=25)
@given(joints(), criteria((0.0,)))
def test_more_tolerance_costs_no_more_and_no_limit_is_the_cheapest_decision(joint: Joint, strict: Criterion) -> None:
    losses = [solved(joint, Criterion(strict.name, t, strict.form)).loss for t in (0.0, 0.02, 0.2, 1.0, np.inf)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    free = costs_by_cell(joint, cost_matrix(joint.num_classes)).min(axis=1).sum() / joint.counts.sum()
    assert losses[-1] == pytest.approx(free, abs=1e-12)
    assert solved(joint).loss == pytest.approx(free, abs=1e-12)


@settings(max_examples=25)
@given(joints(), criteria(), st.randoms(use_true_random=False))
def test_names_of_groups_and_states_do_not_matter(joint: Joint, criterion: Criterion, random: Any) -> None:
    new_names = np.array(random.sample(range(joint.num_groups), joint.num_groups))
    groups, states = new_names[joint.groups], 7 * (joint.states.max() - joint.states)
    order = np.lexsort((states, groups))
    moved = Joint(groups[order], states[order], joint.counts[order], joint.num_groups)
    assert solved(moved, criterion).loss == pytest.approx(solved(joint, criterion).loss, abs=1e-9)


@settings(max_examples=25)
@given(joints(classes=(2,)), st.sampled_from(["equalized_odds", "demographic_parity"]), st.sampled_from([0.0, 0.05]))
def test_costs_swap_with_classes(joint: Joint, name: str, tolerance: float) -> None:
    mirrored = Joint(joint.groups, joint.states, joint.counts[:, ::-1], joint.num_groups)
    one = solved(joint, Criterion(name, tolerance), costs=cost_matrix(2, false_positive_cost=3.0))
    other = solved(mirrored, Criterion(name, tolerance), costs=cost_matrix(2, false_negative_cost=3.0))
    assert one.loss == pytest.approx(other.loss, abs=1e-9)


@settings(max_examples=30)
@given(joints(), criteria())
def test_a_price_never_promises_less_than_tolerance_buys(joint: Joint, criterion: Criterion) -> None:
    here = solved(joint, criterion)
    for tolerance in (0.0, 0.005, 0.05, 0.3):
        there = solved(joint, Criterion(criterion.name, tolerance, criterion.form))
        gain = here.prices[0] * (tolerance - criterion.tolerance)
        if tolerance >= criterion.tolerance or criterion.tolerance > 0.0:
            assert there.loss >= here.loss - gain - 1e-7


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_prices_are_the_slopes_of_the_loss(name: str, form: str, num_classes: int) -> None:
    seen = []
    for seed, tolerance in itertools.product(range(4), (0.0, 0.03)):
        joint, step = generic(3, num_classes, seed), 1e-6
        here = solved(joint, Criterion(name, tolerance, form))
        there = solved(joint, Criterion(name, tolerance + step, form))
        if num_classes == 2 or here.mixing.max(axis=0).min() > 0.0:  # a decision never taken makes a kink
            assert here.prices[0] == pytest.approx((here.loss - there.loss) / step, abs=2e-4)
            seen.append(here.prices[0])
    assert len(seen) >= 4
    assert max(seen) > 0.05


def test_each_of_several_criteria_has_its_own_price() -> None:
    joint, step = generic(2, 2, 0), 1e-6
    asked = [Criterion("equalized_odds", 0.02), Criterion("bounded_group_loss", 0.3166)]
    here = solved(joint, *asked)
    for place in range(2):
        more = list(asked)
        more[place] = Criterion(asked[place].name, asked[place].tolerance + step)
        assert here.prices[place] == pytest.approx((here.loss - solved(joint, *more).loss) / step, abs=2e-4)
        assert here.prices[place] > 0.01


def test_infinity_has_no_price_but_a_value() -> None:
    joint = generic(2, 2, 0)
    solution = solved(joint, Criterion("equalized_odds", np.inf))
    assert solution.prices == (0.0,)
    assert solution.values[0] == pytest.approx(difference(joint, Criterion("equalized_odds"), solution.mixing))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_one_group_is_never_unfair(num_classes: int) -> None:
    joint = generic(1, num_classes, 3)
    strict = solved(joint, *(Criterion(name) for name in DIFFERENCES))
    assert strict.loss == pytest.approx(solved(joint).loss, abs=1e-12)
    assert strict.prices == (0.0,) * 4


def test_a_perfect_predictor_is_left_alone() -> None:
    counts = np.array([[30.0, 0.0], [0.0, 10.0], [5.0, 0.0], [0.0, 80.0]])
    joint = Joint(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), counts, 2)
    solution = solved(joint, Criterion("equalized_odds"))
    np.testing.assert_array_equal(solution.mixing, [[1, 0], [0, 1], [1, 0], [0, 1]])
    assert solution.loss == 0.0


def two_groups() -> Joint:
    """Of group F, 10 of 50 are decided wrongly at best; of group M, 1 of 50."""
    counts = np.array([[20.0, 5.0], [5.0, 20.0], [25.0, 0.0], [1.0, 24.0]])
    return Joint(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), counts, 2)


def test_a_group_loss_is_bounded_where_it_can_be() -> None:
    solution = solved(two_groups(), Criterion("bounded_group_loss", 0.2))
    assert solution.values[0] == pytest.approx(0.2, abs=1e-12)
    assert solution.loss == pytest.approx(0.11, abs=1e-12)


def test_what_cannot_be_met_says_what_could() -> None:
    with pytest.raises(
        DataError, match=r"bounded_group_loss=0\.05 cannot be met: group 'F' needs at least 0\.2\. Raise the tolerance"
    ):
        solved(two_groups(), Criterion("bounded_group_loss", 0.05))


@settings(max_examples=20)
@given(joints(), st.sampled_from(["clarabel", "scipy", "highs"]))
def test_the_bound_named_can_be_met_and_no_lower_one(joint: Joint, solver: str) -> None:
    best = min(costs_by_cell(joint, cost_matrix(joint.num_classes)).min(axis=1))
    if best < 1e-3:  # some group may be without errors
        joint = Joint(joint.groups, joint.states, joint.counts + 0.1, joint.num_groups)
    with pytest.raises(DataError, match="cannot be met") as caught:
        solved(joint, Criterion("bounded_group_loss", 1e-6), solver=solver)
    named = float(str(caught.value).split("needs at least ")[1].split(". Raise")[0])
    met = solved(joint, Criterion("bounded_group_loss", named))
    assert met.values[0] <= named + 1e-9
    with pytest.raises(DataError, match="cannot be met"):
        solved(joint, Criterion("bounded_group_loss", named - 2e-6))


def test_criteria_that_contradict_each_other_are_all_named() -> None:
    asked = [Criterion("bounded_group_loss", 0.21), Criterion("demographic_parity", 0.0), Criterion("equalized_odds")]
    with pytest.raises(
        DataError,
        match=r"bounded_group_loss=0\.21 and demographic_parity=0 and equalized_odds=0 cannot be met together: .+",
    ) as caught:
        solved(two_groups(), *asked)
    assert "needs at least" in str(caught.value)


def test_undefined_rates_and_unknown_solvers_are_refused() -> None:
    joint = Joint(np.array([0, 1]), np.array([0, 0]), np.array([[1.0, 2.0], [3.0, 0.0]]), 2)
    with pytest.raises(DataError, match=r"Group 'M': no label 'b' in 3 rows"):
        solved(joint, Criterion("equal_opportunity"))
    with pytest.raises(ConfigError, match=r"Expected a solver of highs, clarabel, scipy; got 'cplex'\."):
        solved(joint, solver="cplex")
    nothing = Joint(np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros((0, 2)), 1)
    with pytest.raises(DataError, match="rows with weight"):
        solved(nothing)


@settings(max_examples=25)
@given(joints(), criteria())
def test_other_solvers_agree(joint: Joint, criterion: Criterion) -> None:
    here = solved(joint, criterion)
    for solver in ("clarabel", "scipy"):
        there = solved(joint, criterion, solver=solver)
        assert there.solver == solver
        assert there.loss == pytest.approx(here.loss, abs=1e-6)
        assert difference(joint, criterion, there.mixing) <= criterion.tolerance + 1e-9


def test_the_interior_point_randomises_more() -> None:
    joint = generic(3, 2, 0, num_states=60)
    joint = Joint(joint.groups, joint.states, 1.0 + np.round(2 * joint.counts), 3)  # many ties
    strict = Criterion("equalized_odds")
    assert solved(joint, strict, solver="clarabel").fractional.sum() > 20
    assert solved(joint, strict).fractional.sum() <= 4


def failing(monkeypatch: pytest.MonkeyPatch, *names: str, how: str = "raise") -> None:
    """Make solvers fail: by an error, a status, or an answer that is not what it says."""
    solve = cp.Problem.solve

    def broken(problem: cp.Problem, solver: str, **options: Any) -> Any:
        if solver.lower() in names and how == "raise":
            raise cp.error.SolverError(f"{solver} is out of order")
        value = solve(problem, solver=solver, **options)
        if solver.lower() in names and how == "status":
            problem._status = cp.USER_LIMIT
        if solver.lower() in names and how == "lie":
            for variable in problem.variables():
                variable.save_value(np.where(np.arange(variable.size) < 6, 1.0, 0.0).reshape(variable.shape))
        if solver.lower() in names and how == "dear":
            problem._value = value - 1.0
        return value

    monkeypatch.setattr(cp.Problem, "solve", broken)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "highs: SolverError: HIGHS is out of order"),
        ("status", "highs: user_limit"),
        ("lie", "highs: said optimal, but equalized_odds is 1, tolerance 0"),
        ("dear", "highs: said optimal with a loss of"),
    ],
)
def test_the_next_solver_steps_in_and_says_why(monkeypatch: pytest.MonkeyPatch, how: str, said: str) -> None:
    joint = generic(2, 2, 0)
    expected = solved(joint, Criterion("equalized_odds"))
    failing(monkeypatch, "highs", how=how)
    with pytest.warns(RuntimeWarning, match=f"The fair rule is from clarabel, after {said}"):
        solution = solved(joint, Criterion("equalized_odds"))
    assert solution.solver == "clarabel"
    assert solution.loss == pytest.approx(expected.loss, abs=1e-6)


def test_every_solver_that_failed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "highs", "clarabel")
    with pytest.warns(RuntimeWarning, match="from scipy, after clarabel: .+ out of order; highs: .+ out of order"):
        solved(generic(2, 2, 0), Criterion("equalized_odds"), solver="clarabel")
    failing(monkeypatch, "highs", "clarabel", "scipy")
    with pytest.raises(
        SolverError,
        match=r"No solver found the fair rule. highs: .+HIGHS is out of order; clarabel: .+CLARABEL.+; scipy: .+SCIPY",
    ):
        solved(generic(2, 2, 0), Criterion("equalized_odds"))


def test_an_infeasible_verdict_is_not_believed_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = program._run, []

    def first_wrong(problem: cp.Problem, name: str) -> str:
        asked.append(name)
        return cp.INFEASIBLE if len(asked) == 1 else run(problem, name)

    monkeypatch.setattr(program, "_run", first_wrong)
    with pytest.warns(RuntimeWarning, match="from clarabel, after highs: infeasible"):
        assert solved(generic(2, 2, 0), Criterion("equalized_odds")).solver == "clarabel"
    assert asked == ["highs", "highs", "clarabel"]  # the second is the elastic program, which finds nothing short


def test_no_solver_knowing_by_how_much_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_run", lambda problem, name: cp.INFEASIBLE)
    with pytest.raises(
        SolverError, match=r"by how much the tolerances are too small\. highs: infeasible; clarabel: .+"
    ):
        solved(two_groups(), Criterion("bounded_group_loss", 0.05))


def test_nothing_is_said_when_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solved(generic(4, 3, 0), Criterion("equalized_odds"), Criterion("demographic_parity", 0.01, "mean"))
