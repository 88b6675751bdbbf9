from __future__ import annotations

import subprocess
import sys

import fairlearn.metrics
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.fairness.rates import (
    DIFFERENCES,
    RATES,
    Grouping,
    confusion_counts,
    confusion_indicator,
    group_examples,
    group_rates,
    indicator,
    rate_differences,
)

FAIRLEARN = {
    "true_positive_rate": fairlearn.metrics.true_positive_rate,
    "false_positive_rate": fairlearn.metrics.false_positive_rate,
    "selection_rate": fairlearn.metrics.selection_rate,
}


@st.composite
def grouped(draw, *, max_classes=2, max_groups=4):
    """Labels, decisions and groups in which every group holds every label."""
    num_classes, num_groups = draw(st.integers(2, max_classes)), draw(st.integers(2, max_groups))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cells = np.array([(group, label) for group in range(num_groups) for label in range(num_classes)])
    extra = np.column_stack([rng.integers(num_groups, size=30), rng.integers(num_classes, size=30)])
    rows = rng.permutation(np.concatenate([cells, extra]))
    groups = np.array([f"group {number}" for number in rows[:, 0]], dtype=object)
    return rows[:, 1], rng.integers(num_classes, size=len(rows)), groups


def measure(labels, decisions, sensitive_features, num_classes, weights=None):
    grouping = group_examples(sensitive_features, len(labels))
    weights = np.ones((len(labels), 1)) if weights is None else weights
    matrix = confusion_indicator(grouping, labels, decisions, num_classes)
    return grouping, group_rates(confusion_counts(matrix, weights, num_classes))


@settings(max_examples=25, deadline=None)
@given(grouped())
def test_binary_rates_and_differences_equal_fairlearn(case):
    labels, decisions, groups = case
    grouping, rates = measure(labels, decisions, {"who": groups}, 2)
    frame = fairlearn.metrics.MetricFrame(metrics=FAIRLEARN, y_true=labels, y_pred=decisions, sensitive_features=groups)
    members = grouping.members("who")
    assert [name for _, name in grouping.groups[members]] == list(frame.by_group.index)
    for name in FAIRLEARN:
        assert rates[name][members, 0, 0] == pytest.approx(frame.by_group[name].to_numpy(dtype=float))
        assert rates[name][0, 0, 0] == pytest.approx(frame.overall[name])
    ours = rate_differences(rates, members)
    theirs = {
        "equalized_odds_difference": fairlearn.metrics.equalized_odds_difference(
            labels, decisions, sensitive_features=groups, agg="worst_case"
        ),
        "equalized_odds_difference_mean": fairlearn.metrics.equalized_odds_difference(
            labels, decisions, sensitive_features=groups, agg="mean"
        ),
        "equal_opportunity_difference": fairlearn.metrics.equal_opportunity_difference(
            labels, decisions, sensitive_features=groups
        ),
        "predictive_equality_difference": frame.difference()["false_positive_rate"],
        "demographic_parity_difference": fairlearn.metrics.demographic_parity_difference(
            labels, decisions, sensitive_features=groups
        ),
    }
    assert tuple(ours) == DIFFERENCES
    assert {name: value[0] for name, value in ours.items()} == pytest.approx(theirs)


@settings(deadline=None)
@given(grouped(max_classes=4, max_groups=3).filter(lambda case: case[0].max() > 1))
def test_many_classes_are_each_against_the_rest_and_the_worst_counts(case):
    labels, decisions, groups = case
    num_classes = int(labels.max()) + 1
    grouping, rates = measure(labels, decisions, {"who": groups}, num_classes)
    worst: dict[str, list[float]] = {name: [] for name in DIFFERENCES}
    for c in range(num_classes):
        sub, binary = measure((labels == c).astype(int), (decisions == c).astype(int), {"who": groups}, 2)
        for name in ("true_positive_rate", "false_positive_rate", "selection_rate"):
            assert rates[name][:, c] == pytest.approx(binary[name][:, 0], nan_ok=True)
        for name, value in rate_differences(binary, sub.members("who")).items():
            worst[name].append(value[0])
    for name, value in rate_differences(rates, grouping.members("who")).items():
        assert value[0] == pytest.approx(max(worst[name]))
    for number, (_, group) in enumerate(grouping.groups[1:], start=1):
        right = (labels == decisions)[groups == group].mean()
        assert rates["accuracy"][number] == pytest.approx(np.full((num_classes, 1), right))


@settings(deadline=None)
@given(grouped(), st.permutations([0, 1, 2, 3]))
def test_renaming_groups_changes_no_difference(case, order):
    labels, decisions, groups = case
    renamed = np.array([f"{order[int(name[-1])]} {name}" for name in groups], dtype=object)
    first, rates = measure(labels, decisions, {"who": groups}, 2)
    second, again = measure(labels, decisions, {"who": renamed}, 2)
    ours = rate_differences(rates, first.members("who"))
    theirs = rate_differences(again, second.members("who"))
    assert {name: value[0] for name, value in ours.items()} == {name: value[0] for name, value in theirs.items()}


@settings(deadline=None)
@given(grouped(), st.integers(0, 2**32 - 1))
def test_weights_act_as_copies_of_examples(case, seed):
    labels, decisions, groups = case
    copies = np.random.default_rng(seed).integers(1, 4, size=len(labels))
    _, weighted = measure(labels, decisions, {"who": groups}, 2, copies[:, None].astype(float))
    _, repeated = measure(
        *(np.repeat(column, copies) for column in (labels, decisions)), {"who": np.repeat(groups, copies)}, 2
    )
    for name in RATES:
        assert weighted[name] == pytest.approx(repeated[name])


@settings(deadline=None)
@given(grouped(), st.data())
def test_rows_of_unknown_group_count_for_everyone_and_for_no_group(case, data):
    labels, decisions, groups = case
    gone = np.array(data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    masked = np.where(gone, None, groups)
    grouping, rates = measure(labels, decisions, {"who": masked}, 2)
    kept, expected = measure(labels[~gone], decisions[~gone], {"who": groups[~gone]}, 2)
    assert grouping.groups == kept.groups
    for name in RATES:
        assert rates[name][1:] == pytest.approx(expected[name][1:], nan_ok=True)
    assert rates["accuracy"][0, 0, 0] == pytest.approx((labels == decisions).mean())


def test_a_group_with_one_label_has_an_undefined_rate_and_so_has_the_difference():
    labels, decisions = np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0])
    groups = np.array(["a", "a", "b", "b"], dtype=object)
    grouping, rates = measure(labels, decisions, {"who": groups}, 2)
    assert rates["false_positive_rate"][:, 0, 0] == pytest.approx([0.0, 0.0, np.nan], nan_ok=True)
    found = rate_differences(rates, grouping.members("who"))
    undefined = [name for name, value in found.items() if np.isnan(value[0])]
    assert undefined == [
        "equalized_odds_difference",
        "equalized_odds_difference_mean",
        "predictive_equality_difference",
    ]
    assert found["equal_opportunity_difference"] == pytest.approx([0.5])


@pytest.mark.parametrize("values", [["a"] * 4, [None] * 4])
def test_fewer_than_two_groups_have_no_difference(values):
    sensitive = {"who": np.array(values, dtype=object)}
    grouping, rates = measure(np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0]), sensitive, 2)
    found = rate_differences(rates, grouping.members("who"))
    assert all(np.isnan(value).all() and value.shape == (1,) for value in found.values())


def test_features_keep_their_order_and_groups_are_alphabetical():
    sensitive = {"z": np.array(["b", None, "a"], dtype=object), "a": np.array([None, None, "only"], dtype=object)}
    grouping = group_examples(sensitive, 3)
    assert grouping.features == ("", "z", "a")
    assert grouping.groups == (("", ""), ("z", "a"), ("z", "b"), ("a", "only"))
    assert grouping.codes.tolist() == [[0, 2, -1], [0, -1, -1], [0, 1, 3]]
    assert (grouping.members("z"), grouping.members("a")) == (slice(1, 3), slice(3, 4))
    assert Grouping(("",), (("", ""),), grouping.codes).members("z") == slice(0, 0)


def test_an_indicator_sums_weights_into_cells():
    matrix = indicator(np.array([[0, 2], [-1, 2], [1, -1]]), 4, np.array([1.0, 10.0, 100.0]))
    assert (matrix @ np.array([[1.0], [1.0], [2.0]])).ravel().tolist() == [1.0, 200.0, 11.0, 0.0]


def test_fairness_imports_no_torch():
    rooms = ["curves", "evaluation", "metrics", "predictors", "rates"]
    modules = ["fairsisa.intervals", *(f"fairsisa.fairness.{name}" for name in rooms)]
    code = "import sys\n" + "\n".join(f"import {name}" for name in modules)
    check = "\nsys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code + check], check=False).returncode == 0
