"""Measure the fair programs against what people use today, on the same problem in the same run.

`python scripts/bench_fairness.py` prints Markdown tables: strict and relaxed equalized odds over vote patterns against
cvxpy; counting votes against `np.unique(axis=0)`; one score against fairlearn, and with `--peers PYTHON`, the
interpreter of an environment that has error-parity and AIF360 (`pip install error-parity aif360`; they need older NumPy
and cvxpy than fairsisa), against those; an estimator's fit and predict with their memory; a frontier of tolerances
against single fits. `--only SECTION` chooses one, `--rows` scales the large problems down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.base import BaseEstimator, ClassifierMixin

from fairsisa.fairness.derived.criteria import Criterion, cost_matrix
from fairsisa.fairness.derived.hulls import realise, regions_of
from fairsisa.fairness.derived.joint import Joint, count_joint, pack_votes
from fairsisa.fairness.derived.plane import aim_of, solve_strict
from fairsisa.fairness.derived.solving import solve_path
from fairsisa.fairness.derived.thresholds import score_chains, threshold_mixture
from fairsisa.fairness.strategies import EnsemblePostprocess

COSTS = cost_matrix(2)
CLASSES = ("no", "yes")
PEER = """
import json, sys, time, warnings
import numpy as np
warnings.filterwarnings("ignore")
problem = np.load(sys.argv[1])
groups, labels, scores = problem["groups"], problem["labels"], problem["scores"]
found = {}

def loss_of(rate):  # mean error of a rule with P(decision 1) by row
    return float(np.where(labels == 1, 1 - rate, rate).mean())

from error_parity import RelaxedThresholdOptimizer
rule = RelaxedThresholdOptimizer(
    predictor=lambda x: x[:, 0], constraint="equalized_odds", tolerance=0.0, seed=0
)
start = time.perf_counter()
rule.fit(X=scores[:, None], y=labels, group=groups)
found["error-parity"] = {"seconds": time.perf_counter() - start, "loss": float(rule.cost())}
if len(np.unique(groups)) == 2:
    from aif360.algorithms.postprocessing import EqOddsPostprocessing
    from aif360.datasets import BinaryLabelDataset
    import pandas as pd
    frame = pd.DataFrame({"group": groups.astype(float), "label": labels.astype(float)})
    truth = BinaryLabelDataset(df=frame, label_names=["label"], protected_attribute_names=["group"])
    guess = truth.copy()
    guess.labels = (scores >= 0.5).astype(float)[:, None]
    rule = EqOddsPostprocessing([{"group": 0.0}], [{"group": 1.0}], seed=0)
    start = time.perf_counter()
    rule.fit(truth, guess)
    seconds = time.perf_counter() - start
    sp2p, sn2p, op2p, on2p = rule.model_params.x
    rate = np.where(groups == 1, np.where(scores >= 0.5, sp2p, sn2p), np.where(scores >= 0.5, op2p, on2p))
    found["AIF360"] = {"seconds": seconds, "loss": loss_of(rate)}
print(json.dumps(found))
"""
MEMORY = """
import json, sys, time
import numpy as np
from fairsisa.fairness.strategies import EnsemblePostprocess
problem = np.load(sys.argv[1])
votes, labels, groups = problem["votes"], problem["labels"], problem["groups"].astype("U2")
ids = [str(row) for row in range(len(labels))]
rule = EnsemblePostprocess(states=sys.argv[2], tolerance=0.0, small_cells="ignore")
few = slice(0, 20_000)
warm = EnsemblePostprocess(states=sys.argv[2], small_cells="ignore")
warm.fit(votes[few], labels[few], sensitive_features=groups[few])
def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what + ":"))
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak begins anew
before = resident("VmRSS")
start = time.perf_counter()
rule.fit(votes, labels, sensitive_features=groups)
fitted = time.perf_counter()
rule.predict(votes, sensitive_features=groups, example_ids=ids)
done = time.perf_counter()
grown = (resident("VmHWM") - before) * 1024
given = votes.nbytes + labels.nbytes + groups.nbytes
print(json.dumps({"fit": fitted - start, "predict": done - fitted, "grown": grown, "given": given}))
"""


def timed(act: Callable[[], Any], *, repeats: int = 7, at_most: float = 20.0) -> tuple[float, Any]:
    """Return the median seconds of an act and its last result; fewer repeats when they would take too long."""
    times: list[float] = []
    result = None
    while len(times) < repeats and (sum(times) < at_most or not times):
        start = time.perf_counter()
        result = act()
        times.append(time.perf_counter() - start)
    return float(np.median(times)), result


def world(num_rows: int, num_votes: int, num_groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return groups, labels and int8 votes whose quality and base rate differ over groups, correlated by row."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(num_groups, size=num_rows)
    labels = (rng.random(num_rows) < 0.3 + 0.2 * groups / num_groups).astype(np.int64)
    common = rng.normal(size=num_rows) + 0.5 * groups / num_groups
    votes = np.empty((num_rows, num_votes), dtype=np.int8)
    for place in range(num_votes):
        lean = (0.6 + 0.8 * rng.random()) * (2 * labels - 1) + 0.7 * common
        votes[:, place] = rng.random(num_rows) < 1 / (1 + np.exp(-lean))
    return groups, labels, votes


def stated(joint: Joint, tolerance: float) -> cp.Problem:
    """State equalized odds in cvxpy as one would: sparse, vectorised; tolerance 0 as equalities."""
    n = len(joint)
    rates = [
        sp.csr_array((joint.counts[:, y] / joint.label_counts[joint.groups, y], (joint.groups, np.arange(n))))
        for y in (0, 1)
    ]
    p = cp.Variable(n, bounds=[0, 1])
    limits: list[cp.Constraint] = []
    for rate in rates:
        values = rate @ p
        if tolerance == 0.0:
            limits.append(values[1:] == values[0])
        else:
            low = cp.Variable()
            limits += [values >= low, values <= low + tolerance]
    slopes = (joint.counts[:, 0] - joint.counts[:, 1]) / joint.counts.sum()
    constant = float(joint.counts[:, 1].sum() / joint.counts.sum())
    return cp.Problem(cp.Minimize(slopes @ p + constant), limits)


def programs(rows: int) -> Iterator[str]:
    """Time strict and relaxed equalized odds over vote patterns, 4 groups."""
    yield f"### Equalized odds over vote patterns, {rows:,} rows, 4 groups (milliseconds, medians)\n"
    yield "| constituents | tolerance | cells | edges | cvxpy default | cvxpy HiGHS | exact | rule | default / exact | "
    yield "loss minus HiGHS's |\n|---|---|---|---|---|---|---|---|---|---|\n"
    for num_votes in (5, 10, 15):
        groups, labels, votes = world(rows, num_votes, 4)
        joint = count_joint(groups, labels, pack_votes(votes, 2), num_groups=4, num_classes=2)
        edges = sum(len(chain.steps) for chain in regions_of(joint).chains)
        for tolerance in (0.0, 0.02):
            default, _ = timed(lambda j=joint, t=tolerance: stated(j, t).solve())
            vertex, least = timed(lambda j=joint, t=tolerance: stated(j, t).solve(solver=cp.HIGHS))
            if tolerance == 0.0:
                ours, rule, loss = _strict(joint)
            else:
                ours, answer = timed(lambda j=joint, t=tolerance: _solve(j, [t])[0], repeats=21)
                rule, loss = float("nan"), answer.loss
            in_rule = "in it" if np.isnan(rule) else f"{1e3 * rule:.2f}"
            times = " | ".join(f"{1e3 * t:.2f}" for t in (default, vertex, ours))
            yield f"| {num_votes} | {tolerance:g} | {len(joint):,} | {edges:,} | {times} | {in_rule} "
            yield f"| {default / ours:.0f}x | {loss - least:.1e} |\n"


def _strict(joint: Joint) -> tuple[float, float, float]:
    aim = aim_of(joint.label_counts, COSTS)
    seconds, answer = timed(lambda: solve_strict(regions_of(joint).chains, aim), repeats=51)
    regions = regions_of(joint)
    rule, mixing = timed(lambda: realise(joint, regions, answer.points), repeats=51)
    return seconds, rule, joint.mean_cost(np.stack([1 - mixing, mixing], axis=1), COSTS)


def _solve(joint: Joint, tolerances: list[float]) -> list[Any]:
    names = [str(group) for group in range(joint.num_groups)]
    wanted = [Criterion("equalized_odds", tolerances[0])]
    return solve_path(joint, wanted, tolerances, costs=COSTS, classes=CLASSES, groups=names)


def counting(rows: int) -> Iterator[str]:
    """Time counting a vote table into the joint."""
    groups, labels, votes = world(rows, 15, 4)

    def ours() -> Joint:
        return count_joint(groups, labels, pack_votes(votes, 2), num_groups=4, num_classes=2)

    table = np.column_stack([groups.astype(np.int8), labels.astype(np.int8), votes])
    fast, joint = timed(ours)
    slow, (_, counts) = timed(lambda: np.unique(table, axis=0, return_counts=True), repeats=3)
    if not np.array_equal(np.sort(joint.counts[joint.counts > 0]), np.sort(counts)):
        raise SystemExit("the two counts differ")
    yield f"### Counting {rows:,} x 15 votes of 4 groups into the joint\n\n"
    yield "| np.unique(axis=0) | fairsisa | ratio |\n|---|---|---|\n"
    yield f"| {slow:.2f} s | {1e3 * fast:.1f} ms | {slow / fast:.0f}x |\n"


def score_world(rows: int, num_groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return groups, labels and scores in (0, 1), float32 as networks give them."""
    rng = np.random.default_rng(1)
    groups = rng.integers(num_groups, size=rows)
    labels = (rng.random(rows) < 0.3 + 0.2 * groups / num_groups).astype(np.int64)
    raw = rng.normal((2 * labels - 1) * (0.5 + 0.3 * groups / num_groups), 1.0)
    return groups, labels, (1 / (1 + np.exp(-raw))).astype(np.float32)


class Passes(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose probability is its input's only column."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Passes:
        """Return itself."""
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Return class probabilities, shape (num_rows, 2)."""
        return np.column_stack([1 - x[:, 0], x[:, 0]])


def one_score(rows: int, peers: str | None) -> Iterator[str]:
    """Time strict equalized odds on one score; losses are those on the rows fitted."""
    yield "### One score, strict equalized odds\n\n"
    yield "| rows | groups | by | seconds | ratio | loss |\n|---|---|---|---|---|---|\n"
    for count, num_groups in ((rows // 10, 4), (rows, 4), (rows // 10, 2)):
        groups, labels, scores = score_world(count, num_groups)
        ours, loss = timed(lambda g=groups, y=labels, s=scores, n=num_groups: _by_score(g, y, s, n))
        found = {"fairsisa": {"seconds": ours, "loss": loss}, "fairlearn": _fairlearn(groups, labels, scores)}
        if peers is not None:
            found |= _in_peers(peers, groups=groups, labels=labels, scores=scores)
        for name, result in found.items():
            yield (
                f"| {count:,} | {num_groups} | {name} | {result['seconds']:.4f} | {result['seconds'] / ours:.0f}x "
                f"| {result['loss']:.8f} |\n"
            )


def _by_score(groups: np.ndarray, labels: np.ndarray, scores: np.ndarray, num_groups: int) -> float:
    sources = score_chains(scores, labels, groups, num_groups=num_groups)
    weights = np.stack([source.weights for source in sources])
    answer = solve_strict([source.chain for source in sources], aim_of(weights, COSTS))
    for source, point in zip(sources, answer.points, strict=True):
        threshold_mixture(source, point)
    return answer.loss


def _fairlearn(groups: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    table = scores[:, None].astype(np.float64)
    rule = ThresholdOptimizer(
        estimator=Passes().fit(table, labels),
        constraints="equalized_odds",
        prefit=True,
        predict_method="predict_proba",
        grid_size=1000,
    )
    seconds, _ = timed(lambda: rule.fit(table, labels, sensitive_features=groups), repeats=3)
    rate = rule._pmf_predict(table, sensitive_features=groups)[:, 1]
    return {"seconds": seconds, "loss": float(np.where(labels == 1, 1 - rate, rate).mean())}


def _in_peers(python: str, **arrays: np.ndarray) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "problem.npz")
        np.savez(path, **arrays)
        done = subprocess.run([python, "-c", PEER, str(path)], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def end_to_end(rows: int) -> Iterator[str]:
    """Time an estimator's fit and predict in a process of its own, with the memory they add."""
    yield f"### Fit and predict, {rows:,} rows of int8 votes\n\n"
    yield "| constituents | groups | states | fit (s) | predict (s) | memory grown / input |\n"
    yield "|---|---|---|---|---|---|\n"
    for num_votes, num_groups, states in ((10, 10, "pattern"), (51, 4, "vote_count"), (51, 4, "pattern")):
        groups, labels, votes = world(rows, num_votes, num_groups)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "problem.npz")
            np.savez(path, groups=groups, labels=labels, votes=votes)
            command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(path), states]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        yield (
            f"| {num_votes} | {num_groups} | {states} | {found['fit']:.2f} | {found['predict']:.2f} "
            f"| {found['grown'] / found['given']:.2f} |\n"
        )


def frontier(rows: int) -> Iterator[str]:
    """Time a frontier of 50 tolerances, from the votes on, against one fit."""
    groups, labels, votes = world(rows, 10, 10)
    names, tolerances = groups.astype("U2"), [float(t) for t in np.linspace(0.0, 0.3, 50)]

    def fit() -> EnsemblePostprocess:
        rule = EnsemblePostprocess(states="pattern", tolerance=0.05, small_cells="ignore")
        return rule.fit(votes, labels, sensitive_features=names)

    one, _ = timed(fit)
    many, found = timed(lambda: fit().at_tolerances(tolerances))
    yield f"### A frontier of 50 tolerances, {rows:,} rows, 10 constituents, 10 groups, EnsemblePostprocess\n\n"
    yield "| one fit | a fit and 50 tolerances | ratio | loss at 0 and at 0.3 |\n|---|---|---|---|\n"
    losses = f"{found[0].loss_:.6f}, {found[-1].loss_:.6f}"
    yield f"| {1e3 * one:.0f} ms | {1e3 * many:.0f} ms | {many / one:.2f} | {losses} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="a Python that has error-parity and AIF360")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large problems")
    sections = ("programs", "counting", "score", "estimators", "frontier")
    parser.add_argument("--only", choices=sections)
    asked = parser.parse_args()
    chosen = {
        "programs": lambda: programs(asked.rows // 10),
        "counting": lambda: counting(asked.rows),
        "score": lambda: one_score(asked.rows, asked.peers),
        "estimators": lambda: end_to_end(asked.rows),
        "frontier": lambda: frontier(asked.rows),
    }
    for name in sections if asked.only is None else (asked.only,):
        for text in chosen[name]():
            print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
