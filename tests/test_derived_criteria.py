from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairsisa.errors import ConfigError, DataError
from fairsisa.fairness.derived.criteria import CRITERIA, Criterion, cost_matrix, criterion_value, group_rates_of
from fairsisa.fairness.derived.joint import count_joint

CLASSES, GROUPS = ("no", "yes", "maybe"), ("F", "M", "N")


def rates_of(name: str, label_counts: Any, costs: np.ndarray | None = None) -> Any:
    counts = np.asarray(label_counts, dtype=np.float64)
    num_classes = counts.shape[1]
    return group_rates_of(
        Criterion(name),
        counts,
        costs=cost_matrix(num_classes) if costs is None else costs,
        classes=CLASSES[:num_classes],
        groups=GROUPS[: len(counts)],
    )


def naive_rates(name: str, labels: np.ndarray, decisions: np.ndarray, costs: np.ndarray) -> list[float]:
    """Return the rates of one group's rows, straight from the definitions."""
    counted = range(len(costs)) if len(costs) > 2 else (1,)
    if name == "equalized_odds":
        return [float(np.mean(decisions[labels == y] == d)) for y in range(len(costs)) for d in counted]
    if name == "equal_opportunity":
        return [float(np.mean(decisions[labels == c] == c)) for c in counted]
    if name == "predictive_equality":
        return [float(np.mean(decisions[labels != c] == c)) for c in counted]
    if name == "demographic_parity":
        return [float(np.mean(decisions == c)) for c in counted]
    return [float(np.mean([costs[y, d] for y, d in zip(labels, decisions, strict=True)]))]


@settings(max_examples=60)
@given(
    st.sampled_from(CRITERIA),
    st.sampled_from([2, 3]),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_rates_are_those_of_the_rows(name: str, num_classes: int, num_groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    every = np.tile(np.arange(num_classes), num_groups)  # each group has each label
    labels = np.concatenate([every, rng.integers(0, num_classes, 30)])
    groups = np.concatenate([np.repeat(np.arange(num_groups), num_classes), rng.integers(0, num_groups, 30)])
    decisions, costs = rng.integers(0, num_classes, len(labels)), rng.random((num_classes, num_classes))
    joint = count_joint(groups, labels, decisions, num_groups=num_groups, num_classes=num_classes)
    confusion = joint.confusion_rows(np.eye(num_classes)[joint.states])
    rates = rates_of(name, joint.label_counts, costs)
    values = np.array([rate.values(confusion) for rate in rates])
    for group in range(num_groups):
        own = groups == group
        np.testing.assert_allclose(values[:, group], naive_rates(name, labels[own], decisions[own], costs), atol=1e-12)
    assert all(rate.coefficients.shape == (num_groups, num_classes, num_classes) for rate in rates)


@pytest.mark.parametrize(
    ("name", "binary", "three"),
    [
        ("equalized_odds", ["P(yes | no)", "P(yes | yes)"], 9),
        ("equal_opportunity", ["P(yes | yes)"], 3),
        ("predictive_equality", ["P(yes | not yes)"], 3),
        ("demographic_parity", ["P(yes)"], 3),
        ("bounded_group_loss", ["mean cost"], 1),
    ],
)
def test_rates_have_names(name: str, binary: list[str], three: int) -> None:
    assert [rate.name for rate in rates_of(name, [[1, 2], [3, 4]])] == binary
    assert len({rate.name for rate in rates_of(name, [[1, 2, 3]])}) == three


def test_a_rate_that_needs_no_such_label_is_defined_without_it() -> None:
    for name in ("demographic_parity", "bounded_group_loss"):
        (rate,) = rates_of(name, [[3, 0]])
        confusion = np.array([[[0.25, 0.75], [np.nan, np.nan]]])
        np.testing.assert_allclose(rate.values(confusion), [0.75])
    assert len(rates_of("equal_opportunity", [[0, 3]])) == 1
    assert len(rates_of("predictive_equality", [[3, 0]])) == 1


@pytest.mark.parametrize(
    ("name", "counts", "message"),
    [
        ("equalized_odds", [[1, 2], [0, 3]], r"Group 'M': no label 'no' in 3 rows; equalized_odds compares"),
        ("equalized_odds", [[1, 2], [4, 0]], r"Group 'M': no label 'yes' in 4 rows; .+ Leave the group out, join it"),
        ("equal_opportunity", [[5, 0], [1, 1]], r"Group 'F': no label 'yes' in 5 rows; equal_opportunity compares"),
        ("equal_opportunity", [[0, 1, 1]], r"Group 'F': no label 'no' in 2 rows"),
        (
            "predictive_equality",
            [[1, 1], [0, 7]],
            r"Group 'M': no row with a label other than 'yes' in 7; its rate of false 'yes' decisions is undefined",
        ),
        ("predictive_equality", [[0, 0, 4]], r"Group 'F': no row with a label other than 'maybe' in 4"),
        ("demographic_parity", [[1, 1], [1, 1], [0, 0]], r"Group 'N' has no rows \(or no weight\)"),
        ("bounded_group_loss", [[0, 0]], r"Group 'F' has no rows"),
    ],
)
def test_undefined_rates_name_group_label_and_count(name: str, counts: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rates_of(name, counts)


def test_values_are_spreads_or_the_worst_level() -> None:
    rates = [np.array([0.1, 0.5, 0.2]), np.array([0.9, 0.8, 0.9])]
    assert criterion_value(Criterion("equalized_odds"), rates) == pytest.approx(0.4)
    assert criterion_value(Criterion("equalized_odds", form="mean"), rates) == pytest.approx(0.25)
    assert criterion_value(Criterion("bounded_group_loss"), rates[:1]) == pytest.approx(0.5)
    assert criterion_value(Criterion("equalized_odds"), [np.array([0.3])]) == 0.0


def test_criteria_start_strict() -> None:
    assert Criterion("equalized_odds") == Criterion("equalized_odds", tolerance=0.0, form="max")
    assert Criterion("demographic_parity", np.inf).tolerance == np.inf
    assert [name for name in CRITERIA if Criterion(name).bounds_levels] == ["bounded_group_loss"]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (("equal_odds",), "Expected a criterion of equalized_odds, equal_opportunity, .+; got 'equal_odds'"),
        (("equalized_odds", -0.1), r"tolerance of equalized_odds to be 0 or more, got -0\.1"),
        (("equalized_odds", float("nan")), "tolerance of equalized_odds to be 0 or more, got nan"),
        (("equalized_odds", True), "tolerance of equalized_odds to be 0 or more, got True"),
        (("equalized_odds", "0.1"), "tolerance of equalized_odds to be 0 or more, got '0.1'"),
        (("equalized_odds", None), "tolerance of equalized_odds to be 0 or more, got None"),
        (("equalized_odds", 0.1, "median"), "form of equalized_odds to be max or mean, got 'median'"),
        (("bounded_group_loss", 0.1, "mean"), "it has no mean form"),
    ],
)
def test_criteria_name_the_field_that_is_wrong(given_: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Criterion(*given_)


def test_tolerances_may_be_of_numpy() -> None:
    assert Criterion("equalized_odds", np.float64(0.1)).tolerance == 0.1
    assert Criterion("equalized_odds", np.float32(0.5)).tolerance == 0.5
    assert Criterion("equalized_odds", np.int64(1)).tolerance == 1


def test_costs_lie_by_label_and_decision() -> None:
    costs = cost_matrix(2, false_positive_cost=2.0, false_negative_cost=5.0)
    np.testing.assert_array_equal(costs, [[0.0, 2.0], [5.0, 0.0]])
    np.testing.assert_array_equal(
        cost_matrix(3, false_positive_cost=2.0, false_negative_cost=2.0), [[0, 2, 2], [2, 0, 2], [2, 2, 0]]
    )


@pytest.mark.parametrize(
    ("num_classes", "false_positive", "false_negative", "message"),
    [
        (2, -1.0, 1.0, "Expected false_positive_cost to be finite, 0 or more; got -1"),
        (2, 1.0, float("inf"), "Expected false_negative_cost to be finite, 0 or more; got inf"),
        (2, float("nan"), 1.0, "Expected false_positive_cost to be finite, 0 or more; got nan"),
        (2, 1.0, "1", "Expected false_negative_cost to be finite, 0 or more; got '1'"),
        (2, True, 1.0, "Expected false_positive_cost to be finite, 0 or more; got True"),
        (2, 0.0, 0.0, "to be above 0; both are 0"),
        (3, 1.0, 2.0, "False positives and negatives are of two classes; there are 3"),
    ],
)
def test_costs_that_make_no_sense_are_refused(
    num_classes: int, false_positive: Any, false_negative: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cost_matrix(num_classes, false_positive_cost=false_positive, false_negative_cost=false_negative)
