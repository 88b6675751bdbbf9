from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.utils import check_array
from sklearn.utils.estimator_checks import check_estimator

from fairsisa.errors import ConfigError, DataError
from fairsisa.fairness.derived.criteria import Criterion
from fairsisa.fairness.strategies import AggregateThenPostprocess, EnsemblePostprocess
from fairsisa.fairness.strategies.decisions import Derived
from fairsisa.fairness.strategies.guards import ConstantRuleWarning, EqualRowsWarning, SmallCellWarning
from fairsisa.fairness.strategies.inputs import Inputs, read_inputs
from strategy_contract import (
    CLAIMS,
    Claim,
    Problem,
    loss,
    make_problem,
    probabilities,
    value,
)

named = pytest.mark.parametrize("of", CLAIMS, ids=lambda each: each.name)


def _groups_of(X: Any) -> np.ndarray:  # noqa: N803
    return np.where(check_array(X)[:, 0] > 0, "high", "low").astype(object)


class Adapted(EnsemblePostprocess):
    """The thin adapter that scikit-learn's checks need: groups come from X, scores from a model of its own."""

    def __init__(
        self, *, criterion: str = "demographic_parity", unknown_group: str = "unprocessed", **common: Any
    ) -> None:
        super().__init__(criterion=criterion, unknown_group=unknown_group, **common)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803
        self.trained_ = GaussianNB().fit(X, y, sample_weight=sample_weight)
        return super().fit(X, y, sensitive_features=_groups_of(X), sample_weight=sample_weight)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        return super().predict(X, sensitive_features=_groups_of(X))

    def derive(self, X: Any, *, sensitive_features: Any = None) -> Derived:  # noqa: N803
        return super().derive(X, sensitive_features=_groups_of(X))

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        return super().predict_proba(X)

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        return super().score(X, y)

    def _read_inputs(self, X: Any) -> Inputs:  # noqa: N803
        return read_inputs(X, self.trained_, classes=self.classes_)


# where a decision is left to chance, it is not always the likelier one, which that one check wants
@pytest.mark.parametrize(
    ("randomization", "tolerance", "expected"),
    [("none", 1.0, set()), ("keyed", 1.0, set()), ("keyed", 0.0, {"check_classifiers_train"})],
)
@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn_pass(randomization: str, tolerance: float, expected: set[str]) -> None:
    estimator = Adapted(randomization=randomization, tolerance=tolerance)
    found = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {each["check_name"] for each in found if each["status"] == "failed"}
    assert failed == expected
    assert len(found) > 55


@named
def test_without_sensitive_features_it_says_what_is_missing(of: Claim) -> None:
    problem = make_problem(0)
    with pytest.raises(ValueError, match="Expected sensitive_features"):
        of.make(small_cells="ignore").fit(problem.scores, problem.labels)
    fitted = of.fit(problem)
    if of.needs_groups:
        with pytest.raises(ValueError, match="Expected sensitive_features"):
            fitted.predict(problem.scores)
    else:
        assert len(fitted.predict(problem.scores, example_ids=problem.ids)) == len(problem.labels)


@named
def test_it_is_a_scikit_learn_estimator(of: Claim) -> None:
    problem = make_problem(1)
    fitted = of.fit(problem, tolerance=0.1, seed=3)
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert {"criterion", "tolerance", "seed", "estimator"} <= set(copied.get_params())
    assert not hasattr(copied, "classes_")
    assert "tolerance=0.1" in repr(fitted)
    assert "<style>" in fitted._repr_html_()
    assert fitted.__sklearn_tags__().estimator_type == "classifier"
    chances = probabilities(fitted, problem)
    right = chances[np.arange(len(problem.labels)), problem.labels].mean()
    assert math.isclose(fitted.score(problem.scores, problem.labels, sensitive_features=problem.groups), right)


def test_grid_search_and_cross_validation_pass_groups_on() -> None:
    problem = make_problem(5, size=300)
    votes = problem.scores.argmax(axis=2)
    with config_context(enable_metadata_routing=True):
        made = EnsemblePostprocess(states="vote_count", small_cells="ignore")
        made.set_fit_request(sensitive_features=True, sample_weight=False)
        made.set_score_request(sensitive_features=True, sample_weight=False)
        made.set_predict_request(sensitive_features=True, example_ids=True)
        search = GridSearchCV(made, {"tolerance": [0.0, 0.1, 0.3], "states": ["pattern", "vote_count"]}, cv=3)
        search.fit(votes, problem.labels, sensitive_features=problem.groups)
        assert search.best_score_ > 0.5
        found = cross_validate(made, votes, problem.labels, cv=3, params={"sensitive_features": problem.groups})
        assert found["test_score"].min() > 0.5
        made.set_predict_request(sensitive_features=False, example_ids=False)
        asked = {"sensitive_features": problem.groups}
        with pytest.raises(
            ValueError, match="Expected sensitive_features"
        ):  # it passes nothing to predict; cross_fit does
            cross_val_predict(made, votes, problem.labels, cv=3, params=asked)


def test_a_fitted_classifier_may_stand_between_raw_inputs_and_the_rule() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3))
    groups = np.where(features[:, 2] > 0, "a", "b")
    labels = np.where(features[:, 0] + 0.5 * rng.normal(size=400) > 0, "yes", "no")
    model = LogisticRegression().fit(features, labels)
    fitted = AggregateThenPostprocess(estimator=model, aggregation="mean_score").fit(
        features, labels, sensitive_features=groups
    )
    assert fitted.n_features_in_ == 3
    assert fitted.num_constituents_ == 1
    decided = fitted.predict(features, sensitive_features=groups, example_ids=range(400))
    assert set(decided) == {"no", "yes"}
    assert clone(fitted).estimator is model
    with config_context(enable_metadata_routing=True):
        asking = clone(fitted).set_fit_request(sensitive_features=True).set_score_request(sensitive_features=True)
        search = GridSearchCV(asking, {"tolerance": [0.0, 0.2]}, cv=3).fit(features, labels, sensitive_features=groups)
    assert search.best_params_ == {"tolerance": 0.2}
    scores = model.predict_proba(features)[:, None, :]
    direct = AggregateThenPostprocess(aggregation="mean_score").fit(scores, labels, sensitive_features=groups)
    assert direct.loss_ == fitted.loss_


def _plain(size: int = 200, seed: int = 0) -> dict[str, Any]:
    problem = make_problem(seed, size=size)
    votes = problem.scores.argmax(axis=2)
    return {"X": votes, "y": problem.labels, "sensitive_features": problem.groups.copy(), "sample_weight": None}


def _with(**changes: Any) -> dict[str, Any]:
    return _plain() | changes


def _groups(where: np.ndarray | slice, name: Any) -> np.ndarray:
    groups = _plain()["sensitive_features"]
    groups[where] = name
    return groups


def _scores(where: Any, score: float) -> np.ndarray:
    scores = make_problem(0, size=200).scores[:, :, 1].copy()
    scores[where] = score
    return scores


LABELS, GROUPS = _plain()["y"], _plain()["sensitive_features"]
A = GROUPS == "group a"
REFUSED = {
    "no row": (_with(X=np.zeros((0, 3), int), y=np.zeros(0, int), sensitive_features=[]), "two classes or more"),
    "a group of one class": (_with(y=np.where(A, 1, LABELS)), "Group 'group a': no label '0'"),
    "a group without weight": (_with(sample_weight=np.where(A, 0.0, 1.0)), "Group 'group a' has no rows"),
    "one class for all": (_with(y=np.ones(len(LABELS), int)), "two classes or more, got 1 class"),
    "a score that is not a number": (_with(X=_scores((7, 1), np.nan)), "first in row 7"),
    "an infinite score": (_with(X=_scores((9, 0), np.inf)), "first in row 9"),
    "a score above one": (_with(X=_scores((4, 2), 1.5)), r"in \[0, 1\], row 4"),
    "a vote for no class": (_with(X=np.where(np.arange(len(LABELS))[:, None] == 3, 5, _plain()["X"])), "row 3"),
    "a negative weight": (_with(sample_weight=np.where(np.arange(len(LABELS)) == 2, -1.0, 1.0)), "row 2 has -1.0"),
    "a weight that is not a number": (_with(sample_weight=np.full(len(LABELS), np.nan)), "row 0 has nan"),
    "no weight at all": (_with(sample_weight=np.zeros(len(LABELS))), "zero everywhere"),
    "labels missing": (_with(y=None), "requires y"),
    "one label missing": (_with(y=np.where(np.arange(len(LABELS)) == 6, None, LABELS)), "row 6 has None"),
    "labels of other rows": (_with(y=LABELS[:-1]), "labels for each of the"),
    "groups of other rows": (_with(sensitive_features=GROUPS[:-1]), "sensitive_features for each of the"),
    "no known group": (_with(sensitive_features=np.full(len(LABELS), None)), "rows of a known group"),
    "no constituent": (_with(X=np.zeros((len(LABELS), 0))), "at least one constituent"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_edge_that_is_refused_by_name(case: str) -> None:
    data, match = REFUSED[case]
    with pytest.raises(ValueError, match=match):
        EnsemblePostprocess(small_cells="ignore").fit(**data)


ALLOWED = {
    "one group": _with(sensitive_features=np.full(len(LABELS), "all")),
    "all scores equal": _with(X=np.full((len(LABELS), 3), 0.5)),
    "groups as numbers": _with(sensitive_features=np.where(A, 1, 2)),
    "groups as booleans": _with(sensitive_features=A),
    "some groups unknown": _with(sensitive_features=_groups(slice(0, 20), None)),
    "some groups not numbers": _with(
        sensitive_features=np.where(np.arange(len(LABELS)) < 9, np.nan, np.where(A, 1.0, 2.0))
    ),
    "rows repeated": {
        name: None if values is None else np.concatenate([values, values]) for name, values in _plain().items()
    },
    "one constituent": _with(X=_plain()["X"][:, 0]),
    "an even number of constituents": _with(X=np.hstack([_plain()["X"], _plain()["X"][:, :1]])),
    "more states than rows": _with(X=np.random.default_rng(0).integers(0, 2, (len(LABELS), 20))),
    "more votes than a code holds": _with(X=np.random.default_rng(0).integers(0, 2, (len(LABELS), 70))),
    "some weights zero": _with(sample_weight=(np.arange(len(LABELS)) % 5 > 0).astype(float)),
    "labels as text": _with(X=np.array(["no", "yes"])[_plain()["X"]], y=np.array(["no", "yes"])[LABELS]),
    "tolerance one": _plain() | {"tolerance": 1.0},
}


@pytest.mark.parametrize("case", ALLOWED)
def test_an_edge_that_is_no_error(case: str) -> None:
    data = dict(ALLOWED[case])
    tolerance = data.pop("tolerance", 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantRuleWarning)
        fitted = EnsemblePostprocess(small_cells="ignore", tolerance=tolerance, unknown_group="unprocessed").fit(**data)
    derived = fitted.derive(data["X"], sensitive_features=data["sensitive_features"])
    weights = np.ones(len(data["y"])) if data["sample_weight"] is None else data["sample_weight"]
    known = ~pd.isna(data["sensitive_features"])
    labels = np.searchsorted(fitted.classes_, data["y"])
    kept = Problem(np.zeros((int(known.sum()), 1, 2)), labels[known], data["sensitive_features"][known], weights[known])
    assert value(kept, derived.probabilities[known], "equalized_odds") <= tolerance + 1e-9
    assert math.isclose(loss(kept, derived.probabilities[known]), fitted.loss_, abs_tol=1e-9)
    assert not derived.backed_off[known & (weights > 0)].any()
    assert (derived.override_probability[~known] == 0.0).all()


def test_rows_of_an_unknown_group_are_left_out_and_counted() -> None:
    data = _with(sensitive_features=_groups(slice(0, 20), None))
    fitted = EnsemblePostprocess(small_cells="ignore").fit(**data)
    assert fitted.warnings_[0].startswith("20 of 204 rows have no known group")
    rest = {name: None if values is None else values[20:] for name, values in data.items()}
    assert fitted.loss_ == EnsemblePostprocess(small_cells="ignore").fit(**rest).loss_


def test_rows_without_weight_are_not_counted() -> None:
    weights = np.where(np.arange(len(LABELS)) % 3 == 0, 0.0, 2.5)
    fitted = EnsemblePostprocess(min_cell_count=0).fit(**_with(sample_weight=weights))
    expected = [int(((weights > 0) & (name == GROUPS)).sum()) for name in fitted.groups_]
    assert fitted.rates_["num_examples"].tolist() == expected


def test_a_group_that_fit_did_not_see() -> None:
    data = _plain()
    votes, unseen = data["X"][:2], np.array(["group z", None], dtype=object)
    strict = EnsemblePostprocess(small_cells="ignore").fit(**data)
    with pytest.raises(DataError, match=r"groups of fit \(group a, group b\), got group 'group z'"):
        strict.predict(votes, sensitive_features=unseen)
    with pytest.raises(DataError, match="got 1 rows without a group"):
        strict.predict(votes, sensitive_features=["group a", None])
    unprocessed = EnsemblePostprocess(small_cells="ignore", unknown_group="unprocessed").fit(**data)
    found = unprocessed.derive(votes, sensitive_features=unseen)
    assert (found.probabilities.argmax(axis=1) == found.original).all()
    assert not found.randomised.any()
    borrowed = EnsemblePostprocess(small_cells="ignore", unknown_group="group b").fit(**data)
    expected = borrowed.predict_proba(votes, sensitive_features=["group b", "group b"])
    assert (borrowed.predict_proba(votes, sensitive_features=unseen) == expected).all()


def test_small_cells_are_warned_of_or_refused_by_name() -> None:
    data = _plain(size=60)
    count = int(((data["sensitive_features"] == "group a") & (data["y"] == 0)).sum())
    match = f"Group 'group a' has {count} rows with label '0', fewer than min_cell_count=30"
    with pytest.warns(SmallCellWarning, match="has .* rows with label '0', fewer") as caught:
        fitted = EnsemblePostprocess(criterion="predictive_equality").fit(**data)
    assert fitted.warnings_[0].startswith(match)
    assert [str(each.message) for each in caught] == fitted.warnings_
    with pytest.raises(DataError, match=match):
        EnsemblePostprocess(small_cells="error").fit(**data)
    least = min(
        int(((data["sensitive_features"] == g) & (data["y"] == c)).sum())
        for g in ("group a", "group b")
        for c in (0, 1)
    )
    assert EnsemblePostprocess(min_cell_count=least).fit(**data).warnings_ == []
    with pytest.raises(DataError, match=f"has {least} rows with label"):
        EnsemblePostprocess(min_cell_count=least + 1, small_cells="error").fit(**data)
    with pytest.warns(SmallCellWarning, match=r"Group 'group [ab]' has \d+ rows, fewer"):
        EnsemblePostprocess(criterion="demographic_parity", min_cell_count=60).fit(**data)


def test_a_constant_rule_is_warned_of() -> None:
    rng = np.random.default_rng(0)
    labels, groups = (rng.random(900) < 0.1).astype(int), rng.integers(0, 2, 900)
    votes = np.where(rng.random((900, 3)) < 0.3, 1 - labels[:, None], labels[:, None])
    with pytest.warns(ConstantRuleWarning, match=r"decides '0' for everyone \(labels: '0' 0\.\d+, '1' 0\.\d+\)"):
        fitted = AggregateThenPostprocess().fit(votes, labels, sensitive_features=groups)
    assert "false_negative_cost" in fitted.warnings_[0]
    cured = AggregateThenPostprocess(false_negative_cost=9.0).fit(votes, labels, sensitive_features=groups)
    assert cured.warnings_ == []


def test_without_ids_equal_rows_are_decided_alike_and_it_says_so() -> None:
    problem = make_problem(0, size=100)
    fitted = EnsemblePostprocess(small_cells="ignore").fit(
        problem.scores, problem.labels, sensitive_features=problem.groups
    )
    twice = problem.take(np.tile(np.arange(len(problem.labels)), 2))
    with pytest.warns(EqualRowsWarning, match="decisions were left to chance without example_ids") as caught:
        decided = fitted.predict(twice.scores, sensitive_features=twice.groups)
    assert len(caught) == 1
    half = len(problem.labels)
    assert (decided[:half] == decided[half:]).all()
    with pytest.warns(EqualRowsWarning, match="left to chance"):
        wider = fitted.predict(problem.scores.astype(np.float64), sensitive_features=problem.groups)
    assert (wider == decided[:half]).all()


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"criterion": "fairness"}, "Expected a criterion of"),
        ({"criterion": []}, "a criterion or more"),
        ({"criterion": ["equalized_odds"], "tolerance": [0.1, 0.2]}, "a tolerance for each"),
        ({"tolerance": -0.1}, "0 or more"),
        ({"tolerance": "small"}, "a tolerance for each|to be numbers"),
        ({"solver": "simplex"}, "Expected solver to be one of"),
        ({"small_cells": "shout"}, "Expected small_cells to be one of"),
        ({"randomization": "coin"}, "Expected randomization to be one of"),
        ({"min_cell_count": -1}, "Expected min_cell_count"),
        ({"unknown_group": "group q"}, r"fitted group \(group a, group b\)"),
        ({"false_positive_cost": -1.0}, "false_positive_cost"),
        ({"states": "bins"}, "Expected states to be one of"),
        ({"pool_below": -1}, "Expected pool_below"),
    ],
)
def test_a_parameter_out_of_range_is_named(parameters: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        EnsemblePostprocess(**parameters).fit(**_plain())


def test_several_criteria_hold_at_once() -> None:
    problem = make_problem(2, size=150)
    criteria = ["equal_opportunity", Criterion("demographic_parity", 0.1)]
    fitted = EnsemblePostprocess(criterion=criteria, tolerance=[0.02, 9.0], small_cells="ignore").fit(
        problem.scores, problem.labels, sensitive_features=problem.groups
    )
    chances = probabilities(fitted, problem)
    assert value(problem, chances, "equal_opportunity") <= 0.02 + 1e-9
    assert value(problem, chances, "demographic_parity") <= 0.1 + 1e-9
    assert list(fitted.achieved_["tolerance"]) == [0.02, 0.1]
    copied = fitted.at_tolerances([0.5])[0]
    assert value(problem, probabilities(copied, problem), "demographic_parity") <= 0.1 + 1e-9
    assert clone(copied).criterion == [Criterion("equal_opportunity", 0.5), Criterion("demographic_parity", 0.1)]


def test_messages_call_classes_by_their_names():
    rng = np.random.default_rng(0)
    votes, labels, groups = rng.integers(2, size=(40, 3)), np.tile([0, 1], 20), np.repeat(["f", "m"], 20)
    with pytest.raises(DataError, match="Group 'f' has 10 rows with label 'calm'"):
        AggregateThenPostprocess(class_names=["calm", "toxic"], small_cells="error").fit(
            votes, labels, sensitive_features=groups
        )
    rule = AggregateThenPostprocess(class_names=["calm", "toxic"], small_cells="ignore", tolerance=1.0)
    rule.fit(votes, labels, sensitive_features=groups)
    assert "P(toxic | calm)" in rule.rates_.columns
    with pytest.raises(DataError, match="Expected labels of the classes a, b, c, found 2 of these"):
        AggregateThenPostprocess(class_names=["a", "b", "c"]).fit(votes, labels, sensitive_features=groups)
