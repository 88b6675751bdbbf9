from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from fairsisa.errors import DataError
from fairsisa.fairness.derived.criteria import CRITERIA, Criterion, cost_matrix, criterion_value, group_rates_of
from fairsisa.fairness.derived.joint import count_joint
from fairsisa.fairness.rates import DIFFERENCES, RATES
from fairsisa.fairness.strategies.aggregate import AggregateThenPostprocess
from fairsisa.fairness.strategies.audit import Judge, audit, criterion_metric
from fairsisa.fairness.strategies.ensemble import EnsemblePostprocess
from fairsisa.intervals import INTERVAL_COLUMNS, Bootstrap, weight_chunks
from fairsisa.tables import Predictions

FEW = Bootstrap(num_replicates=50)


def make_rows(seed, num_rows=400, num_constituents=3):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(2, size=num_rows), rng.choice(["a", "b", "c"], size=num_rows)
    chances = np.where(labels, 0.85 - 0.2 * (groups == "a"), 0.2 + 0.2 * (groups == "b"))
    return (rng.random((num_rows, num_constituents)) < chances[:, None]).astype(int), labels, groups


def fitted(**parameters):
    votes, labels, groups = make_rows(0)
    return EnsemblePostprocess(states="vote_count", **parameters).fit(votes, labels, sensitive_features=groups)


def audited(made, seed=1, **given):
    votes, labels, groups = make_rows(seed)
    return audit(made, votes, labels, sensitive_features=groups, bootstrap=FEW, **given)


def number(table, column="value", **keys):
    mask = np.logical_and.reduce([table[name] == value for name, value in keys.items()])
    assert mask.sum() == 1, keys
    return table.loc[mask, column].iloc[0]


def test_the_tables_hold_what_scikit_learn_finds_in_what_people_get():
    made = fitted(tolerance=0.05)
    votes, labels, groups = make_rows(1)
    ids = [f"row {row}" for row in range(len(labels))]
    found = audited(made, example_ids=ids)
    after = made.predict(votes, sensitive_features=groups, example_ids=ids)
    before = (votes.sum(axis=1) > 1).astype(int)
    for name, decisions in (("before", before), ("after", after)):
        assert number(found.overall, predictor=name, metric="accuracy") == accuracy_score(labels, decisions)
        expected = f1_score(labels, decisions, average="macro")
        assert number(found.overall, predictor=name, metric="macro_f1") == pytest.approx(expected)
        for group in "abc":
            inside = groups == group
            rate = number(found.by_group, predictor=name, group=group, metric="true_positive_rate")
            assert rate == pytest.approx(recall_score(labels[inside], decisions[inside]))
        recalls = [recall_score(labels[groups == group], decisions[groups == group]) for group in "abc"]
        gap = number(found.overall, predictor=name, metric="equal_opportunity_difference")
        assert gap == pytest.approx(np.ptp(recalls))


def test_expected_numbers_average_chance_out():
    made = fitted(tolerance=0.02)
    votes, labels, groups = make_rows(1)
    found = audited(made)
    chances = made.predict_proba(votes, sensitive_features=groups)
    right = chances[np.arange(len(labels)), labels]
    assert number(found.overall, "expected", predictor="after", metric="accuracy") == pytest.approx(right.mean())
    assert number(found.overall, "expected", predictor="after", metric="mean_cost") == pytest.approx(1 - right.mean())
    rates = np.array([[chances[(labels == y) & (groups == g), 1].mean() for y in (0, 1)] for g in "abc"])
    gap = np.ptp(rates, axis=0).max()
    assert number(found.overall, "expected", predictor="after", metric="equalized_odds_difference") == pytest.approx(
        gap
    )
    for group, expected in zip("abc", rates[:, 0], strict=True):
        rate = number(found.by_group, "expected", predictor="after", group=group, metric="false_positive_rate")
        assert rate == pytest.approx(expected)
    before = found.overall[found.overall["predictor"] == "before"].dropna(subset="expected")
    assert before["expected"].to_numpy() == pytest.approx(before["value"].to_numpy())
    same = found.by_group[found.by_group["predictor"] == "before"]
    assert same["expected"].to_numpy() == pytest.approx(same["value"].to_numpy())


def test_many_draws_of_the_coins_average_to_the_expected_numbers():
    made = fitted(tolerance=0.0)
    votes, labels, groups = make_rows(1)
    found = audited(made)
    drawn = [
        (made.predict(votes, sensitive_features=groups, example_ids=[f"{turn} {row}" for row in range(400)]) == labels)
        for turn in range(60)
    ]
    expected = number(found.overall, "expected", predictor="after", metric="accuracy")
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(np.mean(drawn, axis=1)) / 60**0.5 + 1e-9)


def test_change_is_after_minus_before_from_the_same_replicates():
    found = audited(fitted(tolerance=0.05)).overall
    wide = found.pivot(index="metric", columns="predictor", values="value")
    assert (wide["after"] - wide["before"]).to_numpy() == pytest.approx(wide["change"].to_numpy())
    errors = found.pivot(index="metric", columns="predictor", values="standard_error").loc["accuracy"]
    assert errors["change"] < errors["before"] + errors["after"]


@pytest.mark.parametrize("name", CRITERIA)
def test_every_fitted_criterion_has_its_metric_as_the_program_defines_it(name):
    form = "max" if name == "bounded_group_loss" else "mean"
    criteria = [Criterion(name, 0.5), Criterion(name, 0.6, form)]
    made = fitted(criterion=criteria, false_negative_cost=2.0)
    votes, labels, groups = make_rows(0)
    found = audit(made, votes, labels, sensitive_features=groups, bootstrap=FEW).overall
    for criterion, achieved in zip(criteria, made.achieved_["value"], strict=True):
        expected = number(found, "expected", predictor="after", metric=criterion_metric(criterion))
        assert expected == pytest.approx(achieved), "the rows of fit, chance averaged out: what was promised"
    assert number(found, "expected", predictor="after", metric="mean_cost") == pytest.approx(made.loss_)


def test_shares_are_told_by_group_with_intervals():
    votes, labels, groups = make_rows(0, 60, 5)
    made = EnsemblePostprocess(states="pattern", small_cells="ignore").fit(votes, labels, sensitive_features=groups)
    votes, labels, groups = make_rows(1, 400, 5)
    derived = made.derive(votes, sensitive_features=groups)
    found = audit(made, votes, labels, sensitive_features=groups, bootstrap=FEW).shares
    assert found["group"].tolist() == ["", "a", "b", "c"]
    for group in ("", "a", "b", "c"):
        inside = np.full(400, True) if group == "" else groups == group
        row = found[found["group"] == group].iloc[0]
        assert row["num_examples"] == inside.sum()
        assert row["randomised"] == pytest.approx(derived.randomised[inside].mean())
        assert row["overridden"] == pytest.approx(derived.override_probability[inside].mean())
        assert row["backed_off"] == pytest.approx(derived.backed_off[inside].mean())
        for share in ("randomised", "overridden", "backed_off"):
            assert row[f"{share}_low"] <= row[share] <= row[f"{share}_high"]
    assert found["backed_off"].iloc[0] > 0


def test_tables_have_their_columns_and_all_metrics():
    found = audited(fitted())
    assert list(found.overall.columns) == ["predictor", "metric", *INTERVAL_COLUMNS, "expected"]
    assert set(found.overall["metric"]) >= {"accuracy", "macro_f1", "mean_cost", *DIFFERENCES}
    assert set(found.overall["predictor"]) == {"before", "after", "change"}
    assert set(found.by_group["metric"]) == set(RATES)
    assert {"predictor", "group", "class", "num_examples", *INTERVAL_COLUMNS} <= set(found.by_group.columns)


def test_intervals_resample_subjects():
    subjects = np.arange(400) // 8
    alone, together = audited(fitted()), audited(fitted(), subject_ids=[f"s{each}" for each in subjects])
    assert alone.overall["value"].equals(together.overall["value"])
    assert not alone.overall["standard_error"].equals(together.overall["standard_error"])
    assert not alone.shares["overridden_low"].equals(together.shares["overridden_low"])


def test_predictions_bring_their_ids_and_decisions_do_not_depend_on_order():
    votes, labels, groups = make_rows(1)
    positive = votes * 0.8 + 0.1
    scores = np.stack([1 - positive, positive], axis=2).astype(np.float32)
    ids = np.array([f"id {row}" for row in range(400)])
    made, order = fitted(), np.random.default_rng(0).permutation(400)
    tables = [Predictions(tuple(ids[rows]), ("p", "q", "r"), scores[rows]) for rows in (np.arange(400), order)]
    plain = audit(made, tables[0], labels, sensitive_features=groups, bootstrap=FEW).overall
    moved = audit(made, tables[1], labels[order], sensitive_features=groups[order], bootstrap=FEW).overall
    assert plain["value"].to_numpy() == pytest.approx(moved["value"].to_numpy())
    given = audit(made, votes, labels, sensitive_features=groups, example_ids=list(ids), bootstrap=FEW).overall
    assert given["value"].equals(plain["value"])


def test_rows_of_an_unknown_group_count_for_everyone_alone():
    votes, labels, groups = make_rows(1)
    some = np.where(np.arange(400) < 100, None, groups)
    made = fitted(unknown_group="unprocessed")
    found = audit(made, votes, labels, sensitive_features=some, bootstrap=FEW)
    assert found.shares["num_examples"].tolist()[0] == 400
    assert found.shares["num_examples"].sum() == 400 + 300
    chances = made.predict_proba(votes, sensitive_features=some)
    expected = number(found.overall, "expected", predictor="after", metric="accuracy")
    assert expected == pytest.approx(chances[np.arange(400), labels].mean())


def test_three_classes_are_audited_by_the_programs_own_rates():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(3, size=600), rng.choice(["f", "m"], size=600)
    votes = np.where(rng.random((600, 3)) < 0.7, labels[:, None], rng.integers(3, size=(600, 3)))
    made = AggregateThenPostprocess(tolerance=0.05).fit(votes, labels, sensitive_features=groups)
    found = audit(made, votes, labels, sensitive_features=groups, bootstrap=FEW)
    value = number(found.overall, "expected", predictor="after", metric="equalized_odds_difference")
    assert value == pytest.approx(made.achieved_["value"][0])
    assert len(found.by_group) == 2 * 3 * 3 * len(RATES)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(CRITERIA), st.integers(2, 3), st.sampled_from(["max", "mean"]))
def test_the_judge_agrees_with_the_joint_replicate_by_replicate(seed, name, num_classes, form):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(num_classes, size=80), rng.integers(-1, 3, size=80)
    subjects, weights = rng.integers(20, size=80), rng.random(80)
    subjects = np.unique(subjects, return_inverse=True)[1]
    chances = rng.dirichlet(np.ones(num_classes), size=80)
    criterion = Criterion(name, 0.1, "max" if name == "bounded_group_loss" else form)
    costs, names = cost_matrix(num_classes), {"classes": "xyz"[:num_classes], "groups": "abc"}
    judge = Judge(labels, groups, subjects, (criterion,), costs, names["classes"], names["groups"], weights)
    found = judge.measure([np.eye(num_classes)[labels], chances], Bootstrap(num_replicates=5, seed=seed))[1]
    drawn = np.concatenate(list(weight_chunks(subjects, Bootstrap(num_replicates=5, seed=seed))), axis=1)
    for column in range(6):
        each = drawn[:, column] * weights
        assert found.accuracy[column] == pytest.approx((each * chances[np.arange(80), labels]).sum() / each.sum())
        known = groups >= 0
        joint = count_joint(
            groups[known],
            labels[known],
            np.flatnonzero(known),
            num_groups=3,
            num_classes=num_classes,
            weights=each[known],
        )
        try:
            rates = group_rates_of(criterion, joint.label_counts, costs=costs, **names)
        except DataError:
            assert np.isnan(found.values[0, column])
            continue
        rows = joint.confusion_rows(chances[joint.states])
        assert found.values[0, column] == pytest.approx(criterion_value(criterion, [r.values(rows) for r in rates]))


def test_what_does_not_fit_together_is_refused():
    votes, labels, groups = make_rows(1)
    made = fitted()
    with pytest.raises(DataError, match="example_ids for each of the 400 rows"):
        audit(made, votes, labels, sensitive_features=groups, example_ids=["a"])
    with pytest.raises(DataError, match="subject_ids for each of the 400 rows"):
        audit(made, votes, labels, sensitive_features=groups, subject_ids=["a"])
    with pytest.raises(DataError, match="labels for each of the 400 rows"):
        audit(made, votes, labels[:3], sensitive_features=groups)
    with pytest.raises(DataError, match="row 0 has 7"):
        audit(made, votes, labels + 7, sensitive_features=groups)
    assert isinstance(audited(made).shares, pd.DataFrame)
