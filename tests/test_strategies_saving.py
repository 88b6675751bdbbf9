from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LogisticRegression

from fairsisa.errors import DataError
from fairsisa.fairness.derived.criteria import Criterion
from fairsisa.fairness.strategies import AggregateThenPostprocess, EnsemblePostprocess, load_postprocessor
from fairsisa.fairness.strategies.saving import decode, encode
from strategy_contract import BY_NAME, CLAIMS, Claim, make_problem, probabilities

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
arrays = st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
)


@given(plain)
def test_plain_values_come_back(value: Any) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    assert decode(json.loads(text)) == value


@given(arrays)
def test_arrays_come_back_to_the_bit(array: np.ndarray) -> None:
    back = decode(json.loads(json.dumps(encode(array), allow_nan=False)))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_text_frames_and_criteria_come_back() -> None:
    words = np.array(["a", "bé"], dtype=object)
    assert decode(encode(words)).tolist() == words.tolist()
    assert decode(encode(np.array(["a", "bé"]))).dtype == np.array(["a", "bé"]).dtype
    frame = pd.DataFrame({"name": ["x", "y"], "value": [math.inf, math.nan], "count": [1, 2]})
    assert decode(encode(frame)).equals(frame)
    assert decode(encode(Criterion("equalized_odds", math.inf))) == Criterion("equalized_odds", math.inf)
    assert decode(encode(np.float32(0.5))) == 0.5
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize("value", [object(), np.array([1j]), np.datetime64("2020-01-01"), {1, 2}])
def test_what_is_no_value_cannot_be_saved(value: Any) -> None:
    with pytest.raises(DataError, match="cannot be saved as JSON"):
        encode(value)


@pytest.mark.parametrize("of", CLAIMS, ids=lambda each: each.name)
def test_a_file_holds_all_but_the_estimator(of: Claim, tmp_path: Path) -> None:
    problem = make_problem(4)
    fitted = of.fit(problem, criterion=["equalized_odds", "demographic_parity"], tolerance=[0.03, math.inf])
    fitted.save(tmp_path / "rule.json")
    assert [path.name for path in tmp_path.iterdir()] == ["rule.json"]
    loaded = load_postprocessor(str(tmp_path / "rule.json"))
    assert (probabilities(loaded, problem) == probabilities(fitted, problem)).all()
    assert loaded.get_params() == fitted.get_params()
    assert loaded.loss_ == fitted.loss_
    assert loaded.rates_.equals(fitted.rates_)
    assert loaded.groups_ == fitted.groups_
    one, two = fitted.at_tolerances([0.1])[0], loaded.at_tolerances([0.1])[0]
    assert one.loss_ == two.loss_
    assert loaded.to_dict() == fitted.to_dict()


def test_a_rule_without_chance_comes_back_with_its_cost() -> None:
    fitted = BY_NAME["ensemble_pooled"].fit(make_problem(4), randomization="none")
    loaded = load_postprocessor(fitted.to_dict())
    assert loaded.determinism_cost_.equals(fitted.determinism_cost_)
    assert loaded.achieved_.equals(fitted.achieved_)


def test_labels_of_text_come_back(tmp_path: Path) -> None:
    problem = make_problem(1)
    labels = np.array(["no", "yes"])[problem.labels]
    fitted = AggregateThenPostprocess(small_cells="ignore").fit(
        problem.scores, labels, sensitive_features=problem.groups
    )
    loaded = load_postprocessor(fitted.to_dict())
    decided = loaded.predict(problem.scores, sensitive_features=problem.groups, example_ids=problem.ids)
    assert set(decided) <= {"no", "yes"}


def test_the_estimator_is_given_again() -> None:
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(300, 2)), rng.integers(0, 2, 300)
    labels = (features[:, 0] > 0).astype(int)
    model = LogisticRegression().fit(features, labels)
    fitted = AggregateThenPostprocess(estimator=model).fit(features, labels, sensitive_features=groups)
    document = fitted.to_dict()
    assert "estimator" not in json.dumps(document)
    loaded = load_postprocessor(document, estimator=model)
    asked = {"sensitive_features": groups}
    assert (loaded.predict_proba(features, **asked) == fitted.predict_proba(features, **asked)).all()
    with pytest.raises(DataError, match=r"constituents|in \[0, 1\]"):
        load_postprocessor(document).predict_proba(features, **asked)


def _document() -> dict[str, Any]:
    return EnsemblePostprocess(small_cells="ignore").fit(*_data()[:2], sensitive_features=_data()[2]).to_dict()


def _data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    problem = make_problem(0)
    return problem.scores, problem.labels, problem.groups


def _sealed(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a changed document whose digest is right: what somebody else's program might have written."""
    from fairsisa.fairness.strategies.saving import _digest

    rest = {key: value for key, value in {**document, **changes}.items() if key != "digest"}
    return {**rest, "digest": _digest(rest)}


def test_a_changed_number_is_found() -> None:
    document = copy.deepcopy(_document())
    next(item for item in document["fitted"]["items"] if item[0] == "loss_")[1] /= 2
    with pytest.raises(DataError, match="does not have the digest on record"):
        load_postprocessor(document)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "pickle"}, "not saved by fairsisa"),
        ({"version": 99}, "version 1 of the format, got 99"),
        ({"class": "Popen"}, "Expected one of AggregateThenPostprocess"),
        ({"class": ["EnsemblePostprocess"]}, "Expected one of AggregateThenPostprocess"),
        ({"parameters": {"$": "dict", "items": [["shell", True]]}}, "it is damaged.*shell"),
        ({"fitted": {"$": "dict", "items": []}}, "fitted attributes of EnsemblePostprocess"),
        ({"fitted": {"$": "dict", "items": [["classes_", 1], ["fit", 2]]}}, "fitted attributes of"),
        ({"fitted": {"$": "Popen", "fields": {}}}, "Expected one of"),
        ({"fitted": {"$": "array", "dtype": "O8", "shape": [1], "data": []}}, "damaged"),
        ({"fitted": {"$": "array", "dtype": "<M8[s]", "shape": [1], "data": [0]}}, "numbers or text"),
        ({"fitted": {"no": "kind"}}, "damaged"),
        ({"fitted": 3}, "damaged"),
    ],
)
def test_a_foreign_document_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_postprocessor(_sealed(_document(), **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\x80\x04K\x01.", b'"text"', b'{"format": "x"}'])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|not saved by fairsisa"):
        load_postprocessor(tmp_path / "rule.json")


@given(st.integers(0, 2**31))
def test_no_cut_file_is_read(seed: int) -> None:
    text = json.dumps(_document())
    cut = np.random.default_rng(seed).integers(0, len(text) - 1)
    try:
        found = json.loads(text[:cut])
    except ValueError:
        return
    with pytest.raises(DataError, match="not saved by fairsisa"):
        load_postprocessor(found)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_postprocessor(tmp_path / "none.json")


def test_a_strategy_of_ones_own_is_not_saved() -> None:
    class Mine(EnsemblePostprocess):
        pass

    scores, labels, groups = _data()
    with pytest.raises(DataError, match=r"Expected a post-processor of .* got Mine"):
        Mine(small_cells="ignore").fit(scores, labels, sensitive_features=groups).to_dict()


def test_only_what_is_fitted_is_saved() -> None:
    with pytest.raises(ValueError, match="not fitted"):
        EnsemblePostprocess().to_dict()
