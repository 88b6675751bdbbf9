from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chains import QUICK, TINY_TEXT, run_of
from fairsisa.errors import ConfigError, DataError, StaleError
from fairsisa.runs.directory import Run
from fairsisa.runs.postprocessing import postprocess_run
from fairsisa.runs.serving import RunEnsemble, fair_predictor, score_new
from fairsisa.settings import PartitionSettings, PostprocessSettings
from fairsisa.sisa.ensemble import read_predictions
from fairsisa.tables import CALIBRATION, TEST
from unlearning_cases import HERE, TABULAR, copied, forget, held_out, in_slice, silent, trained_in, tree_of

FAIR = replace(TABULAR, data={"name": "synthetic_tabular", "options": {"num_examples": 400, "repeat_share": 0.3}})
RULE = PostprocessSettings(
    strategy="ensemble_vote_count", sensitive_feature=("region",), small_cells="ignore", tolerance=(0.1,), name="fair"
)
TEXTS = run_of(
    replace(TINY_TEXT, trains="head"),
    replace(QUICK, max_epochs=1.0),
    data={"name": "synthetic_text", "options": {"num_examples": 60}},
    partition=PartitionSettings(num_shards=2, num_slices=2),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = trained_in(tmp_path_factory.mktemp("original"), FAIR)
    postprocess_run(run, RULE, execution=HERE, on_event=silent)
    return run


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


def kept(run: Run, split: str = TEST) -> Any:
    ensemble = run.ensemble
    return read_predictions(run.store, {name: ensemble.predictions[split][name] for name in ensemble.checkpoints})


def rows_of(run: Run, split: str = TEST) -> pd.DataFrame:
    return run.examples.split(split)


def features_of(run: Run, split: str = TEST) -> np.ndarray:
    return rows_of(run, split)[[f"feature:{name}" for name in run.examples.feature_names]].to_numpy()


def test_new_inputs_are_scored_as_held_out_ones_are(original):
    made = score_new(original, features_of(original))
    expected = kept(original)
    assert made.constituents == expected.constituents
    assert len(set(made.example_ids)) == len(expected.example_ids)
    np.testing.assert_allclose(made.scores, expected.scores, rtol=1e-6, atol=1e-6)


def test_columns_of_a_frame_may_come_in_any_order(original):
    frame = rows_of(original)
    plain = frame.rename(columns=lambda name: name.removeprefix("feature:"))[
        list(original.examples.feature_names)[::-1]
    ]
    for given in (frame, plain):
        found = score_new(original, given, example_ids=frame["example_id"].tolist())
        np.testing.assert_array_equal(found.scores, score_new(original, features_of(original)).scores)
        assert found.example_ids == tuple(frame["example_id"])


def test_texts_are_scored_too(tmp_path):
    run = trained_in(tmp_path, TEXTS)
    rows = rows_of(run, CALIBRATION)
    before = tree_of(run.store.root)
    for given in (rows["text"].tolist(), rows):
        np.testing.assert_allclose(score_new(run, given).scores, kept(run, CALIBRATION).scores, rtol=1e-5, atol=1e-5)
    assert tree_of(run.store.root) == before
    with pytest.raises(DataError, match="Expected texts as a list, or a frame with a column text"):
        score_new(run, "one text")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((2, 3)), r"Expected numbers of shape \(num_examples, \d+\), got float64 \(2, 3\)"),
        (["a text"], "Expected numbers of shape"),
        (pd.DataFrame({"mixed_0": [1.0]}), "Expected the features mixed_0, .* not found"),
    ],
)
def test_inputs_of_another_kind_are_refused(original, given, said):
    with pytest.raises(DataError, match=said):
        score_new(original, given)


def test_ids_must_fit_the_rows(original):
    with pytest.raises(DataError, match="Expected 2 example ids, one a row, got 1"):
        score_new(original, features_of(original)[:2], example_ids=["a"])


def test_raw_inputs_are_decided_as_their_votes_are(original):
    fair, rows = fair_predictor(original, "fair"), rows_of(original)
    given = {"sensitive_features": rows["sensitive:region"], "example_ids": rows["example_id"].tolist()}
    found = fair.predict(features_of(original), **given)
    table = pd.read_parquet(original.path("predictions.parquet"))
    assert found.tolist() == table.loc[table["constituent"] == "fair fair", "vote"].tolist()
    part = fair.predict(features_of(original)[5:9], **{name: values[5:9] for name, values in given.items()})
    assert part.tolist() == found[5:9].tolist()


def test_a_frame_of_raw_inputs_is_decided_as_its_numbers_are(original):
    frame = original.examples.split(TEST)
    columns = [name for name in frame.columns if name.startswith("feature:")]
    rule, groups = fair_predictor(original, "fair"), frame["sensitive:region"].to_numpy(dtype=object)
    given = {"sensitive_features": groups, "example_ids": frame["example_id"].tolist()}
    decided = rule.predict(frame[columns], **given)  # warnings, such as of feature names, are errors here
    assert decided.tolist() == rule.predict(frame[columns].to_numpy(), **given).tolist()


def test_it_refuses_as_soon_as_it_is_stale(run):
    fair, rows = fair_predictor(run, "fair"), features_of(run)[:3]
    given = {"sensitive_features": rows_of(run)["sensitive:region"][:3], "example_ids": ["a", "b", "c"]}
    fair.predict(rows, **given)
    forget(run, *in_slice(run, 1, 1))
    with pytest.raises(StaleError, match="serves another post-processor 'fair' than the one loaded: load it again"):
        fair.predict(rows, **given)
    assert len(fair_predictor(run, "fair").predict(rows, **given)) == 3


def test_it_refuses_where_the_votes_are_others(run):
    fair, made = fair_predictor(run, "fair"), run.ensemble.predictions
    swapped = dict(zip(made[CALIBRATION], reversed(made[CALIBRATION].values()), strict=True))
    run.write("ensemble.json", json.dumps(asdict(replace(run.pointer, predictions={**made, CALIBRATION: swapped}))))
    with pytest.raises(StaleError, match="'fair' is stale, it was fitted on other calibration votes"):
        fair.predict(
            features_of(run)[:2], sensitive_features=rows_of(run)["sensitive:region"][:2], example_ids=["a", "b"]
        )


def test_a_deletion_of_test_rows_leaves_it_in_use(run):
    fair = fair_predictor(run, "fair")
    forget(run, *held_out(run, TEST))
    rows = rows_of(run)
    given = {"sensitive_features": rows["sensitive:region"], "example_ids": rows["example_id"].tolist()}
    assert len(fair.predict(features_of(run), **given)) == len(rows)


def test_a_run_without_post_processor_says_how_to_get_one(run):
    run.publish(replace(run.pointer, postprocessors={}))
    with pytest.raises(ConfigError, match=r"has no post-processor 'fair'. It has none: run `fairsisa postprocess run="):
        fair_predictor(run, "fair")


def test_a_run_is_an_ensemble_for_any_post_processor(original):
    scores = RunEnsemble(original).predict_scores(features_of(original))
    np.testing.assert_array_equal(scores, score_new(original, features_of(original)).scores)
    assert repr(RunEnsemble(original)) == f"RunEnsemble({str(original.directory)!r})"
