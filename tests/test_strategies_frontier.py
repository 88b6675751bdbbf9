from __future__ import annotations

import numpy as np
import pytest

from fairsisa.errors import ConfigError
from fairsisa.fairness.strategies.aggregate import AggregateThenPostprocess
from fairsisa.fairness.strategies.audit import audit
from fairsisa.fairness.strategies.auto import AutoPostprocess
from fairsisa.fairness.strategies.ensemble import EnsemblePostprocess
from fairsisa.fairness.strategies.frontier import sweep
from fairsisa.fairness.strategies.names import STRATEGIES
from fairsisa.fairness.strategies.score import Unprocessed
from fairsisa.intervals import Bootstrap

FEW = Bootstrap(num_replicates=60)
TOLERANCES = [0.0, 0.03, 0.1, 1.0]
COLUMNS = [
    "strategy",
    "tolerance",
    "split",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "difference",
    "difference_low",
    "difference_high",
    "randomised",
    "overridden",
    "backed_off",
]


def make_rows(seed, num_rows=600):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(2, size=num_rows), rng.choice(["f", "m"], size=num_rows)
    shift = 0.35 * (labels - 0.5) * (1 + (groups == "f")) + 0.1 * (groups == "f")
    return np.clip(0.5 + shift[:, None] + rng.normal(0, 0.25, size=(num_rows, 3)), 0.01, 0.99), labels, groups


def swept(estimators, tolerances=TOLERANCES, **given):
    return sweep(estimators, tolerances, fit=make_rows(0), test=make_rows(1), bootstrap=FEW, **given)


def test_every_number_is_that_of_an_estimator_fitted_at_that_tolerance():
    found = swept({"count": EnsemblePostprocess(states="vote_count"), "label": AggregateThenPostprocess()})
    assert list(found.columns) == COLUMNS
    assert len(found) == 2 * len(TOLERANCES) * 2
    for row in found[found["strategy"] == "count"].to_dict("records"):
        scores, labels, groups = make_rows(0)
        own = EnsemblePostprocess(states="vote_count", tolerance=row["tolerance"])
        own.fit(scores, labels, sensitive_features=groups)
        scores, labels, groups = make_rows(0 if row["split"] == "fit" else 1)
        derived = own.derive(scores, sensitive_features=groups)
        chances = derived.probabilities
        assert row["accuracy"] == pytest.approx(chances[np.arange(600), labels].mean())
        rates = np.array([[chances[(labels == y) & (groups == g), 1].mean() for y in (0, 1)] for g in ("f", "m")])
        assert row["difference"] == pytest.approx(np.ptp(rates, axis=0).max(), abs=1e-9)
        assert row["randomised"] == derived.randomised.mean()
        assert row["overridden"] == pytest.approx(derived.override_probability.mean())
        assert row["backed_off"] == derived.backed_off.mean()


def test_in_sample_the_tolerance_holds_and_accuracy_rises_with_it():
    made = {name: STRATEGIES[name](small_cells="ignore") for name in ("ensemble_pattern", "score_threshold")}
    fit = swept(made).query("split == 'fit'")
    assert (fit["difference"] <= fit["tolerance"] + 1e-9).all()
    for _, path in fit.groupby("strategy"):
        assert (np.diff(path["accuracy"]) >= -1e-9).all()
    assert fit[["accuracy_low", "accuracy_high", "difference_low", "difference_high"]].isna().all(axis=None)


def test_held_out_numbers_have_the_intervals_of_the_subjects():
    alone = swept({"label": AggregateThenPostprocess()}).query("split == 'test'")
    together = swept({"label": AggregateThenPostprocess()}, subject_ids=np.arange(600) // 6).query("split == 'test'")
    assert (alone["accuracy_low"] < alone["accuracy"]).all()
    assert (alone["accuracy"] < alone["accuracy_high"]).all()
    assert (alone["difference_low"] < alone["difference_high"]).all()
    assert alone["accuracy"].equals(together["accuracy"])
    assert not alone["accuracy_low"].equals(together["accuracy_low"])


def test_the_audit_of_the_same_rule_says_the_same():
    scores, labels, groups = make_rows(0)
    own = AggregateThenPostprocess(tolerance=0.03).fit(scores, labels, sensitive_features=groups)
    scores, labels, groups = make_rows(1)
    overall = audit(own, scores, labels, sensitive_features=groups, bootstrap=FEW).overall
    expected = overall[overall["predictor"] == "after"].set_index("metric")["expected"]
    row = swept({"label": AggregateThenPostprocess()}, [0.03]).iloc[1]
    assert row["accuracy"] == pytest.approx(expected["accuracy"])
    assert row["difference"] == pytest.approx(expected["equalized_odds_difference"])


def test_the_baseline_is_the_same_at_every_tolerance_and_its_difference_is_measured():
    found = swept({"unprocessed": Unprocessed()}).query("split == 'test'")
    assert found["accuracy"].nunique() == 1
    assert (found["difference"] > 0.03).all()
    assert found["tolerance"].tolist() == TOLERANCES


def test_estimators_that_cross_fit_are_told_the_subjects_of_fit(monkeypatch):
    told = []
    monkeypatch.setattr(AutoPostprocess, "_choose", lambda self, sample, subjects: told.append(subjects) or 1 / 0)
    subjects = np.repeat(np.arange(300), 2)
    with pytest.raises(ZeroDivisionError):
        swept({"auto": AutoPostprocess()}, fit_subject_ids=subjects)
    assert told[0].tolist() == subjects.tolist()


def test_given_estimators_stay_unfitted():
    estimator = AggregateThenPostprocess()
    swept({"label": estimator}, [0.0])
    assert not hasattr(estimator, "classes_")


@pytest.mark.parametrize(("estimators", "tolerances"), [({}, [0.1]), ({"label": AggregateThenPostprocess()}, [])])
def test_nothing_to_sweep_is_refused(estimators, tolerances):
    with pytest.raises(ConfigError, match="Expected estimators and tolerances"):
        swept(estimators, tolerances)
