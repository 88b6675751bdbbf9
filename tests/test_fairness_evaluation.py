from __future__ import annotations

import fairlearn.metrics
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from fairsisa import intervals
from fairsisa.errors import DataError
from fairsisa.fairness.evaluation import evaluate, paired_differences, pairwise_disagreement
from fairsisa.fairness.metrics import QUALITIES
from fairsisa.fairness.predictors import HeldOut, Predictor, constituent_predictors
from fairsisa.fairness.rates import DIFFERENCES, RATES
from fairsisa.intervals import INTERVAL_COLUMNS, Bootstrap, weight_chunks
from fairsisa.tables import Predictions

QUICK = Bootstrap(num_replicates=60, seed=5)


def make_case(seed=0, *, num_examples=120, num_classes=2, num_constituents=3, num_groups=2, unknown=0.1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_examples)
    subjects = np.array([f"person {number}" for number in rng.integers(num_examples // 2, size=num_examples)])
    sensitive = {}
    for name in ("colour", "shape"):
        values = np.array([f"{name} {number}" for number in rng.integers(num_groups, size=num_examples)], dtype=object)
        sensitive[name] = np.where(rng.random(num_examples) < unknown, None, values)
    ids = tuple(f"example {number}" for number in range(num_examples))
    held = HeldOut(ids, subjects, labels, tuple(f"class {c}" for c in range(num_classes)), sensitive)
    raw = rng.random((num_examples, num_constituents, num_classes))
    raw[np.arange(num_examples), :, labels] += 0.4
    scores = rng.multinomial(100, raw / raw.sum(axis=2, keepdims=True)) / 100  # coarse, so that scores tie
    names = tuple(f"shard-{number}" for number in range(num_constituents))
    return held, Predictions(ids, names, scores.astype(np.float32))


def share(chosen):
    return chosen.mean() if len(chosen) else np.nan


def lookup(table, **wanted):
    mask = np.logical_and.reduce([table[column] == value for column, value in wanted.items()])
    assert mask.sum() == 1
    return table[mask].iloc[0]


def naive_metrics(held, predictor, rows):
    """All metrics of one resample by other libraries on the repeated rows; None where a cell is empty."""
    labels, decisions = held.labels[rows], predictor.decisions[rows]
    found = {
        ("", "accuracy"): accuracy_score(labels, decisions),
        ("", "macro_f1"): f1_score(labels, decisions, average="macro"),
        ("", "auroc"): roc_auc_score(labels, predictor.scores[rows, 1]),
    }
    for feature, values in held.sensitive_features.items():
        known = np.array([value is not None for value in values[rows]])
        groups = values[rows][known]
        cells = {(group, label) for group, label in zip(groups, labels[known], strict=True)}
        given_groups = {"sensitive_features": groups}
        pair = (labels[known], decisions[known])
        odds = fairlearn.metrics.equalized_odds_difference
        parity = fairlearn.metrics.demographic_parity_difference
        full = len(cells) == 2 * len({value for value in values if value is not None})
        found[(feature, "equalized_odds_difference")] = odds(*pair, **given_groups) if full else None
        found[(feature, "equalized_odds_difference_mean")] = odds(*pair, **given_groups, agg="mean") if full else None
        found[(feature, "demographic_parity_difference")] = parity(*pair, **given_groups) if full else None
    return found


def test_estimates_and_intervals_equal_a_naive_resampling_loop():
    held, predictions = make_case(num_examples=60, num_constituents=2)
    predictor = constituent_predictors(predictions)[0]
    bootstrap = Bootstrap(num_replicates=25, level=0.8, seed=1)
    evaluation = evaluate(held, [predictor], bootstrap=bootstrap)
    weights = np.concatenate(list(weight_chunks(held.subjects, bootstrap)), axis=1).astype(int)
    columns = [naive_metrics(held, predictor, np.repeat(np.arange(len(held)), weight)) for weight in weights.T]
    for (feature, metric), estimate in columns[0].items():
        row = lookup(evaluation.metrics, sensitive_feature=feature, metric=metric)
        drawn = np.array([column[feature, metric] for column in columns[1:]], dtype=float)
        known = drawn[~np.isnan(drawn)]
        assert row["value"] == pytest.approx(estimate)
        assert row[["low", "high"]].tolist() == pytest.approx(np.quantile(known, [0.1, 0.9]).tolist())
        assert row["standard_error"] == pytest.approx(known.std(ddof=1))
        assert row["num_undefined"] == 25 - len(known)
        assert evaluation.replicates[row.name] == pytest.approx(drawn, nan_ok=True)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_tables_have_a_row_for_everything_that_was_asked(num_classes):
    held, predictions = make_case(num_classes=num_classes)
    predictors = [*constituent_predictors(predictions), Predictor("baseline whole", held.labels.copy())]
    found = evaluate(held, predictors, predictions=predictions, bootstrap=QUICK)
    assert found.predictors == ["constituent shard-0", "constituent shard-1", "constituent shard-2", "baseline whole"]
    assert len(found.metrics) == 3 * 4 + 2 + 4 * 2 * 5
    assert set(found.metrics["metric"]) == {*QUALITIES, *DIFFERENCES}
    assert list(found.metrics.columns) == ["predictor", "sensitive_feature", "metric", *INTERVAL_COLUMNS]
    judged = 1 if num_classes == 2 else num_classes
    assert len(found.by_group) == 4 * 5 * judged * 4
    assert list(found.disagreement.columns) == ["sensitive_feature", "group", "num_examples", *INTERVAL_COLUMNS]
    assert len(found.disagreement) == 5
    assert found.replicates.shape == (len(found.metrics), 60)
    assert (found.num_examples, found.num_subjects) == (120, len(set(held.subject_ids)))
    assert (found.num_replicates, found.level, found.classes) == (60, 0.95, held.classes)
    perfect = found.metrics[found.metrics["predictor"] == "baseline whole"]
    assert perfect[perfect["sensitive_feature"] == ""]["value"].tolist() == [1.0, 1.0]
    assert (perfect[perfect["metric"] == "equalized_odds_difference"]["value"] == 0.0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(2, 3))
def test_rates_by_group_are_those_of_the_rows_in_the_group(seed, num_classes, num_groups):
    held, predictions = make_case(seed, num_classes=num_classes, num_groups=num_groups, num_examples=60)
    predictor = constituent_predictors(predictions)[1]
    table = evaluate(held, [predictor], bootstrap=Bootstrap(num_replicates=2)).by_group
    wide = table.pivot(
        index=["sensitive_feature", "group", "class", "num_examples", "num_positives", "num_negatives"],
        columns="metric",
        values="value",
    ).reset_index()
    assert set(RATES) < set(wide.columns)
    for row in wide.itertuples():
        values = held.sensitive_features.get(row.sensitive_feature)
        inside = np.full(len(held), True) if values is None else values == row.group
        c = held.classes.index(row[3])
        chosen, positive = predictor.decisions[inside] == c, held.labels[inside] == c
        assert row.num_examples == inside.sum()
        assert row.num_positives == positive.sum()
        assert row.num_negatives == (~positive).sum()
        assert row.selection_rate == pytest.approx(chosen.mean())
        assert row.accuracy == pytest.approx((predictor.decisions == held.labels)[inside].mean())
        assert row.true_positive_rate == pytest.approx(share(chosen[positive]), nan_ok=True)
        assert row.false_positive_rate == pytest.approx(share(chosen[~positive]), nan_ok=True)


def test_chunked_replicates_change_nothing(monkeypatch):
    held, predictions = make_case()
    predictors = constituent_predictors(predictions)
    whole = evaluate(held, predictors, predictions=predictions, bootstrap=QUICK)
    monkeypatch.setattr(intervals, "MAX_CELLS", 1000)
    parts = evaluate(held, predictors, predictions=predictions, bootstrap=QUICK)
    for name in ("metrics", "by_group", "disagreement"):
        pd.testing.assert_frame_equal(getattr(parts, name), getattr(whole, name))


def test_renaming_groups_changes_no_number():
    held, predictions = make_case()
    renamed = {
        feature: np.array([None if value is None else value[::-1] for value in values], dtype=object)
        for feature, values in held.sensitive_features.items()
    }
    other = HeldOut(held.example_ids, held.subject_ids, held.labels, held.classes, renamed)
    predictors = constituent_predictors(predictions)
    first = evaluate(held, predictors, bootstrap=QUICK)
    second = evaluate(other, predictors, bootstrap=QUICK)
    pd.testing.assert_frame_equal(first.metrics, second.metrics)
    swapped = second.by_group.assign(group=second.by_group["group"].str[::-1])
    keys = ["predictor", "sensitive_feature", "group", "metric"]
    pd.testing.assert_frame_equal(first.by_group.set_index(keys).sort_index(), swapped.set_index(keys).sort_index())


def test_an_empty_cell_is_named_and_its_difference_undefined():
    labels = np.array([0, 1] * 40)
    groups = np.array(["full"] * 70 + ["bare"] * 10, dtype=object)
    labels[70:] = 1
    ids = tuple(str(number) for number in range(80))
    held = HeldOut(ids, np.array(ids), labels, ("no", "yes"), {"who": groups})
    found = evaluate(held, [Predictor("vote", labels.copy())], bootstrap=QUICK)
    odds = lookup(found.metrics, metric="equalized_odds_difference")
    assert np.isnan(odds[["value", "low", "high", "standard_error"]].astype(float)).all()
    assert odds["num_undefined"] == 60
    assert lookup(found.metrics, metric="equal_opportunity_difference")["value"] == 0.0
    cells = found.small_cells.set_index(["sensitive_feature", "group", "class"])["num_examples"]
    assert cells.to_dict() == {("who", "bare", "no"): 0, ("who", "bare", "yes"): 10}


def test_replicates_that_lose_a_cell_are_counted():
    labels, groups = np.array([0, 1] * 20), np.array(["rare"] * 4 + ["common"] * 36, dtype=object)
    ids = tuple(str(number) for number in range(40))
    held = HeldOut(ids, np.array(ids), labels, ("no", "yes"), {"who": groups})
    bootstrap = Bootstrap(num_replicates=2000)
    found = evaluate(held, [Predictor("vote", np.roll(labels, 3))], bootstrap=bootstrap)
    share = lookup(found.metrics, metric="equalized_odds_difference")["num_undefined"] / 2000
    missing = (1 - 2 / 40) ** 40
    assert share == pytest.approx(2 * missing - (1 - 4 / 40) ** 40, abs=0.03)
    assert lookup(found.metrics, metric="accuracy")["num_undefined"] == 0


def test_unknown_values_are_counted_and_features_described():
    held, predictions = make_case(unknown=0.3)
    table = evaluate(held, constituent_predictors(predictions), bootstrap=QUICK).features.set_index("sensitive_feature")
    for feature, values in held.sensitive_features.items():
        gone = sum(value is None for value in values)
        assert table.loc[feature].tolist() == [2, 120 - gone, gone]


def test_without_sensitive_features_quality_is_still_measured():
    held, predictions = make_case()
    bare = HeldOut(held.example_ids, held.subject_ids, held.labels, held.classes, {})
    found = evaluate(bare, constituent_predictors(predictions), predictions=predictions, bootstrap=QUICK)
    assert set(found.metrics["metric"]) == set(QUALITIES)
    assert found.features.empty
    assert found.by_group["group"].unique().tolist() == [""]


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_disagreement_is_the_mean_over_pairs(num_constituents, num_classes, seed):
    votes = np.random.default_rng(seed).integers(num_classes, size=(12, num_constituents))
    pairs = [(i, j) for i in range(num_constituents) for j in range(i)]
    expected = np.mean([votes[:, i] != votes[:, j] for i, j in pairs], axis=0)
    assert pairwise_disagreement(votes) == pytest.approx(expected, abs=1e-12)


def test_disagreement_by_group_is_the_groups_mean_and_needs_two_constituents():
    held, predictions = make_case()
    predictors = constituent_predictors(predictions)
    table = evaluate(held, predictors, predictions=predictions, bootstrap=QUICK).disagreement
    each = pairwise_disagreement(predictions.votes)
    for row in table.itertuples():
        values = held.sensitive_features.get(row.sensitive_feature)
        inside = np.full(len(held), True) if values is None else values == row.group
        assert row.value == pytest.approx(each[inside].mean())
        assert row.num_examples == inside.sum()
        assert row.low <= row.value <= row.high
    alone = Predictions(held.example_ids, ("only",), predictions.scores[:, :1])
    assert evaluate(held, predictors, predictions=alone, bootstrap=QUICK).disagreement.empty


def test_paired_differences_use_the_same_draws_and_are_tighter():
    held, predictions = make_case(num_examples=400)
    first, second, _ = constituent_predictors(predictions)
    twin = Predictor("twin", first.decisions.copy(), first.scores)
    nudged = first.decisions.copy()
    nudged[:20] = held.labels[:20]
    near = Predictor("near", nudged, first.scores)
    found = evaluate(held, [first, twin, near, second], bootstrap=QUICK)
    table = paired_differences(found, baseline=first.name)
    assert list(table.columns) == ["predictor", "baseline", "sensitive_feature", "metric", *INTERVAL_COLUMNS]
    assert set(table["baseline"]) == {first.name}
    assert len(table) == len(found.metrics) * 3 // 4
    chosen = paired_differences(found, baseline=first.name, predictors=["near"])
    expected_rows = table[table["predictor"] == "near"].reset_index(drop=True)
    pd.testing.assert_frame_equal(chosen, expected_rows)
    same = table[table["predictor"] == "twin"]
    assert (same[["value", "low", "high", "standard_error"]] == 0.0).all(axis=None)
    gain = lookup(table, predictor="near", metric="accuracy")
    right = (nudged == held.labels).mean() - (first.decisions == held.labels).mean()
    assert gain["value"] == pytest.approx(right)
    alone = lookup(found.metrics, predictor="near", metric="accuracy")
    assert gain["high"] - gain["low"] < (alone["high"] - alone["low"]) / 2
    draws = {
        name: found.replicates[lookup(found.metrics, predictor=name, metric="accuracy").name]
        for name in (first.name, second.name)
    }
    expected = np.quantile(draws[second.name] - draws[first.name], [0.025, 0.975])
    other = lookup(table, predictor=second.name, metric="accuracy")
    assert [other["low"], other["high"]] == pytest.approx(expected.tolist())


def test_a_metric_that_one_side_lacks_has_no_pair():
    held, predictions = make_case()
    scored = constituent_predictors(predictions)[0]
    bare = Predictor("decides only", scored.decisions)
    found = evaluate(held, [scored, bare], bootstrap=QUICK)
    assert "auroc" not in set(paired_differences(found, baseline=scored.name)["metric"])
    assert "auroc" not in set(paired_differences(found, baseline="decides only")["metric"])
    with pytest.raises(DataError, match=r"Expected a predictor of constituent shard-0, decides only; got 'nobody'\."):
        paired_differences(found, baseline="nobody")
    with pytest.raises(DataError, match="got 'nothing'"):
        paired_differences(found, baseline=scored.name, predictors=["nothing"])


def test_intervals_of_a_simple_law_cover_it():
    rng = np.random.default_rng(0)
    covered = {"accuracy": 0, "equal_opportunity_difference": 0}
    num_trials, num_subjects = 150, 200
    for trial in range(num_trials):
        groups = np.repeat(np.where(rng.random(num_subjects) < 0.5, "a", "b").astype(object), 2)
        chance = np.where(groups == "a", 0.9, 0.6)
        right = np.repeat(rng.random(num_subjects), 2) < chance
        labels = np.repeat(rng.integers(2, size=num_subjects), 2)
        ids = tuple(str(number) for number in range(len(labels)))
        subjects = np.repeat([f"p{number}" for number in range(num_subjects)], 2)
        held = HeldOut(ids, subjects, labels, ("no", "yes"), {"who": groups})
        decided = Predictor("law", np.where(right, labels, 1 - labels))
        table = evaluate(held, [decided], bootstrap=Bootstrap(num_replicates=200, seed=trial)).metrics
        for metric, truth in (("accuracy", 0.75), ("equal_opportunity_difference", 0.3)):
            row = lookup(table, metric=metric)
            covered[metric] += bool(row["low"] <= truth <= row["high"])
    assert all(0.89 <= count / num_trials <= 0.99 for count in covered.values())


def test_other_examples_are_refused():
    held, predictions = make_case()
    predictors = constituent_predictors(predictions)
    turned = Predictions(held.example_ids[::-1], predictions.constituents, predictions.scores)
    message = r"first differ in 'example 0' against 'example 119'"
    with pytest.raises(DataError, match=message):
        evaluate(held, predictors, predictions=turned, bootstrap=QUICK)
    shorter = Predictions(held.example_ids[:-1], predictions.constituents, predictions.scores[:-1])
    with pytest.raises(DataError, match="119 rows; they first differ in the lengths"):
        evaluate(held, predictors, predictions=shorter, bootstrap=QUICK)
