from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from fairsisa.errors import ConfigError, DataError, SolverError
from fairsisa.fairness.derived import solving
from fairsisa.fairness.derived.criteria import CRITERIA, Criterion, cost_matrix
from fairsisa.fairness.derived.hulls import realise, regions_of
from fairsisa.fairness.derived.joint import Joint, count_joint
from fairsisa.fairness.derived.plane import aim_of, solve_strict
from fairsisa.fairness.derived.solving import solve, solve_path
from fairsisa.fairness.derived.thresholds import ScoreChain, levels_of, score_chains, threshold_mixture

CLASSES = ("no", "yes")
GROUPS = tuple("abcde")


@st.composite
def joints(draw: st.DrawFn, *, most_groups: int = 4, most_states: int = 5, whole: bool = True) -> Joint:
    num_groups = draw(st.integers(1, most_groups))
    num_states = draw(st.integers(1, most_states))
    amounts = st.integers(0, 20) if whole else st.one_of(st.just(0.0), st.floats(1e-12, 5.0))
    table = np.array(
        draw(
            st.lists(
                st.lists(amounts, min_size=num_states * 2, max_size=num_states * 2),
                min_size=num_groups,
                max_size=num_groups,
            )
        ),
        dtype=np.float64,
    ).reshape(num_groups, num_states, 2)
    table[:, 0] += 1.0  # so that every group has both labels
    groups, states = np.nonzero(table.any(axis=2))
    return Joint(groups, states, table[groups, states], num_groups)


criteria = st.builds(
    Criterion,
    st.sampled_from([name for name in CRITERIA if name != "bounded_group_loss"]),
    st.sampled_from([0.0, 0.01, 0.1, 0.3, np.inf]),
    st.sampled_from(["max", "mean"]),
)
costs = st.sampled_from([(1.0, 1.0), (1.0, 3.0), (5.0, 1.0), (0.0, 1.0)])


def rates_of(joint: Joint, name: str, positive: np.ndarray) -> list[list[float]]:
    """Return each rate of each group, from the definition, row by row."""
    rates: list[list[float]] = []
    labels = {"equalized_odds": (0, 1), "equal_opportunity": (1,), "predictive_equality": (0,)}
    for y in labels.get(name, (None,)):
        values = []
        for group in range(joint.num_groups):
            hits = total = 0.0
            for cell in np.flatnonzero(joint.groups == group):
                weight = joint.counts[cell].sum() if y is None else joint.counts[cell, y]
                hits, total = hits + weight * positive[cell], total + weight
            values.append(hits / total)
        rates.append(values)
    return rates


def difference(rates: list[list[float]], form: str) -> float:
    spreads = [max(values) - min(values) for values in rates]
    return max(spreads) if form == "max" else sum(spreads) / len(spreads)


def by_linprog(joint: Joint, criterion: Criterion, cost: np.ndarray) -> float:
    """Return the least mean cost, from a dense program written out pair by pair."""
    n = len(joint)
    objective = (joint.counts[:, 0] * cost[0, 1] - joint.counts[:, 1] * cost[1, 0]) / joint.counts.sum()
    units = np.array([rates_of(joint, criterion.name, unit) for unit in np.eye(n)])  # (cell, rate, group)
    num_rates = units.shape[1]
    rows, bounds = [], []
    for r, (g, h) in itertools.product(range(num_rates), itertools.permutations(range(joint.num_groups), 2)):
        slack = np.zeros(num_rates)
        slack[r] = -1.0
        rows.append(np.concatenate([units[:, r, g] - units[:, r, h], slack]))
        bounds.append(0.0)
    limits = np.eye(num_rates) if criterion.form == "max" else np.full((1, num_rates), 1.0 / num_rates)
    if np.isfinite(criterion.tolerance):
        rows += [np.concatenate([np.zeros(n), limit]) for limit in limits]
        bounds += [criterion.tolerance] * len(limits)
    found = linprog(
        np.concatenate([objective, np.zeros(num_rates)]),
        A_ub=np.array(rows) if rows else None,
        b_ub=bounds or None,
        bounds=[(0, 1)] * n + [(0, None)] * num_rates,
    )
    assert found.status == 0
    return float(found.fun + joint.counts[:, 1].sum() * cost[1, 0] / joint.counts.sum())


@given(joints(), criteria, costs)
def test_the_plane_equals_a_program_written_out(joint, criterion, prices):
    cost = cost_matrix(2, false_positive_cost=prices[0], false_negative_cost=prices[1])
    answer = solve(joint, [criterion], costs=cost, classes=CLASSES, groups=GROUPS, solver="plane")
    assert answer.loss == pytest.approx(by_linprog(joint, criterion, cost), abs=1e-9)
    rates = rates_of(joint, criterion.name, answer.mixing[:, 1])
    assert difference(rates, criterion.form) <= criterion.tolerance + 1e-9
    assert answer.values[0] == pytest.approx(difference(rates, criterion.form), abs=1e-9)
    assert np.allclose(answer.mixing.sum(axis=1), 1.0)
    assert ((answer.mixing >= 0) & (answer.mixing <= 1)).all()


@given(joints(whole=False), criteria)
def test_the_plane_equals_the_program_in_cvxpy(joint, criterion):
    cost = cost_matrix(2)
    ours, stated = (
        solve(joint, [criterion], costs=cost, classes=CLASSES, groups=GROUPS, solver=solver)
        for solver in ("plane", "highs")
    )
    assert ours.solver == "plane"
    assert ours.loss == pytest.approx(stated.loss, abs=1e-9)


@given(joints(), st.lists(criteria, min_size=2, max_size=3), st.floats(0.2, 1.0))
def test_several_criteria_at_once_equal_the_program_in_cvxpy(joint, wanted, bound):
    wanted = [*wanted, Criterion("bounded_group_loss", bound)]
    found = []
    for solver in ("plane", "highs"):
        try:
            found.append(solve(joint, wanted, costs=cost_matrix(2), classes=CLASSES, groups=GROUPS, solver=solver).loss)
        except (DataError, SolverError):
            found.append(None)
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None:
        assert found[0] == pytest.approx(found[1], abs=1e-9)


@given(joints(most_groups=5, most_states=8))
def test_strict_equalized_odds_leaves_few_cells_to_chance(joint):
    answer = solve(joint, [Criterion("equalized_odds")], costs=cost_matrix(2), classes=CLASSES, groups=GROUPS)
    assert answer.fractional.sum() <= max(2 * (joint.num_groups - 1), 0)


@given(joints(most_groups=2, most_states=2))
def test_strict_equalized_odds_equals_brute_force(joint):
    cost = cost_matrix(2)
    answer = solve(joint, [Criterion("equalized_odds")], costs=cost, classes=CLASSES, groups=GROUPS)
    n = len(joint)
    objective = (joint.counts[:, 0] - joint.counts[:, 1]) / joint.counts.sum()
    units = np.array([rates_of(joint, "equalized_odds", unit) for unit in np.eye(n)])
    equal = np.array([units[:, r, 0] - units[:, r, g] for r in (0, 1) for g in range(1, joint.num_groups)])
    best = np.inf
    for chosen in itertools.product(
        (0.0, 1.0, None), repeat=n
    ):  # all basic solutions: at most n free, equations solved
        free = [place for place, value in enumerate(chosen) if value is None]
        if len(free) > len(equal):
            continue
        p = np.array([0.0 if value is None else value for value in chosen])
        if free:
            p[free] = np.linalg.lstsq(equal[:, free], -equal @ p, rcond=None)[0]
        feasible = len(equal) == 0 or np.abs(equal @ p).max() < 1e-9
        if feasible and (p > -1e-9).all() and (p < 1 + 1e-9).all():
            best = min(best, objective @ p)
    assert answer.loss == pytest.approx(best + joint.counts[:, 1].sum() / joint.counts.sum(), abs=1e-8)


@given(joints(), criteria, st.lists(st.floats(0.0, 0.5), min_size=1, max_size=6))
def test_a_path_is_its_steps(joint, criterion, tolerances):
    names = {"costs": cost_matrix(2), "classes": CLASSES, "groups": GROUPS}
    path = solve_path(joint, [criterion], tolerances, **names)
    for tolerance, answer in zip(tolerances, path, strict=True):
        alone = solve(joint, [replace(criterion, tolerance=tolerance)], **names)
        assert answer.loss == pytest.approx(alone.loss, abs=1e-9)
    order = np.argsort(tolerances)
    losses = np.array([path[place].loss for place in order])
    assert (np.diff(losses) <= 1e-9).all()


@given(joints(), st.sampled_from(["equalized_odds", "demographic_parity"]), st.floats(0.001, 0.4))
def test_a_price_is_a_slope_of_the_cost(joint, name, tolerance):
    names = {"costs": cost_matrix(2), "classes": CLASSES, "groups": GROUPS}
    step = 1e-3
    below, here, above = solve_path(
        joint, [Criterion(name)], [max(tolerance - step, 0), tolerance, tolerance + step], **names
    )
    width = tolerance - max(tolerance - step, 0)
    assert here.prices[0] <= (below.loss - here.loss) / width + 1e-6
    assert here.prices[0] >= (here.loss - above.loss) / step - 1e-6


@given(joints(most_states=8), st.data())
def test_any_attainable_target_is_met_with_two_cells_of_chance_a_group(joint, data):
    regions = regions_of(joint)
    p = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(joint), max_size=len(joint))))
    rows = joint.confusion_rows(np.stack([1 - p, p], axis=1))
    targets = np.nan_to_num(rows[:, :, 1])
    mixing = realise(joint, regions, targets)
    again = joint.confusion_rows(np.stack([1 - mixing, mixing], axis=1))
    assert np.nan_to_num(again[:, :, 1]) == pytest.approx(targets, abs=1e-9)
    for group in range(joint.num_groups):
        inside = mixing[joint.groups == group]
        assert ((inside > 1e-9) & (inside < 1 - 1e-9)).sum() <= 2


@given(joints())
def test_a_chain_bounds_what_any_rule_attains(joint):
    for group, chain in enumerate(regions_of(joint).chains):
        cells = np.flatnonzero(joint.groups == group)
        for rule in itertools.product((0.0, 1.0), repeat=len(cells)):
            p = np.zeros(len(joint))
            p[cells] = rule
            f, t = joint.confusion_rows(np.stack([1 - p, p], axis=1))[group, :, 1]
            assert t <= chain.upper_at(f) + 1e-12
            assert 1 - t <= chain.upper_at(1 - f) + 1e-12


def score_problem(seed: int, num_rows: int = 300, *, digits: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    groups = np.arange(num_rows) % 3
    labels = (np.arange(num_rows) // 3) % 2
    scores = 1 / (1 + np.exp(-rng.normal(loc=(2 * labels - 1) * (0.4 + 0.4 * groups))))
    return scores.round(digits), labels, groups


def mixed(source: ScoreChain, scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    thresholds, weights = threshold_mixture(source, target)
    return sum(w * (levels_of(scores) >= t) for t, w in zip(thresholds, weights, strict=True))


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1), st.sampled_from([1, 2, 15]))
def test_threshold_mixtures_meet_targets_above_the_diagonal(seed, f, height, digits):
    scores, labels, groups = score_problem(seed, digits=digits)
    for group, source in enumerate(score_chains(scores, labels, groups, num_groups=3)):
        target = np.array([f, f + height * (source.chain.upper_at(f) - f)])
        own, truth = scores[groups == group], labels[groups == group]
        p = mixed(source, own, target)
        assert (p[truth == 0].mean(), p[truth == 1].mean()) == pytest.approx(tuple(target), abs=1e-9)
        assert (np.diff(p[np.argsort(own)]) >= -1e-12).all()
        assert len(np.unique(p.round(12))) <= 4


@given(st.integers(0, 1000))
def test_a_score_chain_is_the_hull_of_the_roc_curve(seed):
    scores, labels, groups = score_problem(seed)
    for group, source in enumerate(score_chains(scores, labels, groups, num_groups=3)):
        own, truth = scores[groups == group], labels[groups == group]
        for threshold in np.unique(own):
            f, t = ((levels_of(own) >= levels_of(threshold))[truth == y].mean() for y in (0, 1))
            assert t <= source.chain.upper_at(f) + 1e-12
        for point, threshold in zip(source.chain.points, source.thresholds, strict=True):
            at = tuple((levels_of(own) >= threshold)[truth == y].mean() for y in (0, 1))
            assert tuple(point) == pytest.approx(at, abs=1e-12)
        slopes = np.diff(source.chain.points[:, 1]) / np.maximum(np.diff(source.chain.points[:, 0]), 1e-300)
        assert (np.diff(slopes) <= 1e-9 * np.abs(slopes[:-1])).all()


@given(st.integers(0, 1000))
def test_whole_weights_are_repeated_rows(seed):
    scores, labels, groups = score_problem(seed, 90)
    weights = np.random.default_rng(seed).integers(0, 4, 90)
    weights[:6] = 1
    weighted = score_chains(scores, labels, groups, num_groups=3, weights=weights.astype(float))
    repeated = [np.repeat(part, weights) for part in (scores, labels, groups)]
    for one, other in zip(weighted, score_chains(*repeated, num_groups=3), strict=True):
        assert one.weights == pytest.approx(other.weights)
        heights = [source.chain.upper_at(np.linspace(0, 1, 50)) for source in (one, other)]
        assert heights[0] == pytest.approx(heights[1], abs=1e-9)


def test_the_best_common_point_of_two_crossing_chains_is_their_crossing():
    joint = Joint(
        np.array([0, 0, 1, 1]),
        np.array([0, 1, 0, 1]),
        np.array([[10.0, 50.0], [90.0, 50.0], [50.0, 90.0], [50.0, 10.0]]),
        2,
    )
    aim = aim_of(joint.label_counts, cost_matrix(2))
    answer = solve_strict(regions_of(joint).chains, aim)
    # group a: t = 5 f up to (.1, .5), then t = .5 + (f - .1) * 5/9; group b: t = 1.8 f up to (.5, .9)
    crossing = (0.5 - 0.1 * 5 / 9) / (1.8 - 5 / 9)
    assert answer.points == pytest.approx(np.array([[crossing, 1.8 * crossing]] * 2))


def test_counts_too_large_for_a_table_give_the_same_regions():
    rng = np.random.default_rng(3)
    small = count_joint(
        rng.integers(3, size=500), rng.integers(2, size=500), rng.integers(40, size=500), num_groups=3, num_classes=2
    )
    large = Joint(small.groups, small.states, small.counts * 1e6, 3)
    for one, other in zip(regions_of(small).chains, regions_of(large).chains, strict=True):
        assert one.points == pytest.approx(other.points)


def test_a_broken_plane_is_found_out(monkeypatch):
    rng = np.random.default_rng(0)
    joint = count_joint(
        rng.integers(2, size=400), rng.integers(2, size=400), rng.integers(6, size=400), num_groups=2, num_classes=2
    )
    names = {"costs": cost_matrix(2), "classes": CLASSES, "groups": GROUPS}
    monkeypatch.setattr(solving, "realise", lambda joint, regions, points: (joint.states % 2).astype(float))
    with pytest.raises(SolverError, match="misses equalized_odds"):
        solve(joint, [Criterion("equalized_odds")], **names, solver="plane")
    assert solve(joint, [Criterion("equalized_odds")], **names).solver == "highs"


def test_wrong_solvers_are_refused():
    joint = Joint(np.array([0]), np.array([0]), np.array([[1.0, 1.0, 1.0]]), 1)
    names = {"costs": cost_matrix(3), "classes": "abc", "groups": GROUPS}
    with pytest.raises(ConfigError, match="Expected a solver of auto, plane, highs, clarabel; got 'simplex'"):
        solve(joint, [Criterion("equalized_odds")], **names, solver="simplex")
    with pytest.raises(ConfigError, match="two classes, got 3"):
        solve(joint, [Criterion("equalized_odds")], **names, solver="plane")
