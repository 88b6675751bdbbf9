from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairsisa.data.synthetic_samples import load_synthetic_tabular
from fairsisa.errors import ConfigError, DataError, RunError, StaleError
from fairsisa.report.frontier import FrontierReport
from fairsisa.runs import fitting
from fairsisa.runs.adding import add_examples
from fairsisa.runs.directory import DEGRADED, Ensemble, Run
from fairsisa.runs.doctor import examine
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.fitting import DOCUMENT, KIND, load_fitted, settings_of
from fairsisa.runs.frontier import frontier_run
from fairsisa.runs.postprocessing import Postprocessed, postprocess_run
from fairsisa.settings import FrontierSettings, PostprocessSettings
from fairsisa.sisa.ensemble import read_predictions
from fairsisa.tables import CALIBRATION, TEST
from unlearning_cases import HERE, TABULAR, WITH_BASELINES, copied, keys_of, silent, train_again, trained_in

FAIR = replace(TABULAR, data={"name": "synthetic_tabular", "options": {"num_examples": 400, "repeat_share": 0.3}})
RULE = PostprocessSettings(
    strategy="ensemble_vote_count", sensitive_feature=("region",), small_cells="ignore", tolerance=(0.1,)
)
NAME = "region.equalized_odds.ensemble_vote_count"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"), FAIR)


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, original: Run) -> tuple[Run, Postprocessed]:
    """A run whose post-processor and reports nobody changes."""
    run = copied(original, tmp_path_factory.mktemp("measured"))
    return run, fit(run, evaluate=True)


def fit(run: Run, *, evaluate: bool = False, **changes: Any) -> Postprocessed:
    return postprocess_run(run, replace(RULE, **changes), execution=HERE, on_event=silent, evaluate=evaluate)


def document_of(run: Run, name: str = NAME) -> bytes:
    artefact = run.ensemble.postprocessors[name]["artefact"]
    return bytes(run.store.get(artefact).tensors[DOCUMENT].numpy().tobytes())


def votes_on(run: Run, split: str) -> Any:
    ensemble = run.ensemble
    return read_predictions(run.store, {name: ensemble.predictions[split][name] for name in ensemble.checkpoints})


def groups_on(run: Run, split: str) -> np.ndarray:
    return run.examples.sensitive("region")[(run.examples.frame["split"] == split).to_numpy()]


def edited(run: Run, **changes: Any) -> None:
    """Write another pointer, as a fault would."""
    run.write("ensemble.json", json.dumps(asdict(replace(run.pointer, **changes))))


def test_a_post_processor_is_an_artefact_of_the_votes_and_rows_it_was_fitted_on(measured):
    run, made = measured
    assert made.name == NAME
    entry = run.ensemble.postprocessors[NAME]
    assert settings_of(entry) == RULE
    assert entry["groups"] == sorted(set(groups_on(run, CALIBRATION)))
    lineage = run.store.manifest(entry["artefact"]).lineage
    assert lineage.kind == KIND
    assert lineage.parents == tuple(run.ensemble.predictions[CALIBRATION][name] for name in ("shard-0", "shard-1"))
    assert lineage.examples == tuple(run.examples.split(CALIBRATION)["example_id"])
    assert entry["artefact"] in run.store.claims()[str(run.directory.resolve())]
    assert json.loads(document_of(run)) == load_fitted(run, NAME).to_dict()


def test_the_report_shows_it_beside_everything(measured):
    run, made = measured
    predictor = f"fair {NAME}"
    assert predictor in made.report.evaluation.predictors
    assert predictor in run.path("metrics.json").read_text()
    table = pd.read_parquet(run.path("predictions.parquet"))
    rows = table[table["constituent"] == predictor]
    assert rows["example_id"].tolist() == list(votes_on(run, TEST).example_ids)
    decided = load_fitted(run, NAME).predict(
        votes_on(run, TEST), sensitive_features=groups_on(run, TEST), example_ids=rows["example_id"].tolist()
    )
    assert rows["vote"].tolist() == list(decided)
    labels = run.examples.split(TEST)["label"].to_numpy()
    metrics = made.report.evaluation.metrics.set_index(["predictor", "sensitive_feature", "metric"])["value"]
    assert metrics[predictor, "", "accuracy"] == pytest.approx((rows["vote"].to_numpy() == labels).mean(), abs=1e-12)
    for suffix in ("html", "json"):
        assert run.path(f"postprocess-{NAME}.{suffix}").is_file()
    assert {f"postprocess-{NAME}.html"} < set(json.loads(run.path("derived.json").read_text())["files"])


def test_the_promise_holds_on_the_rows_of_the_fit(measured):
    run, _ = measured
    fitted = load_fitted(run, NAME)
    votes, groups = votes_on(run, CALIBRATION), groups_on(run, CALIBRATION)
    chance = fitted.predict_proba(votes, sensitive_features=groups)[:, 1]
    labels = run.examples.split(CALIBRATION)["label"].to_numpy()
    rates = pd.Series(chance).groupby([labels, groups]).mean().unstack()
    assert ((rates.max(axis=1) - rates.min(axis=1)) <= 0.1 + 1e-9).all()


def test_several_can_be_registered_and_one_can_be_replaced(run):
    fit(run)
    first = run.ensemble.postprocessors[NAME]["artefact"]
    fit(run, criterion=("demographic_parity",))
    assert set(run.ensemble.postprocessors) == {NAME, "region.demographic_parity.ensemble_vote_count"}
    fit(run, tolerance=(0.02,))
    assert set(run.ensemble.postprocessors) == {NAME, "region.demographic_parity.ensemble_vote_count"}
    assert run.ensemble.postprocessors[NAME]["artefact"] != first
    assert not run.store.has(first)
    assert set(run.store.names(KIND)) == {entry["artefact"] for entry in run.ensemble.postprocessors.values()}
    evaluate_run(run, execution=HERE, on_event=silent)
    pages = {f"postprocess-{name}.html" for name in run.ensemble.postprocessors}
    assert {path.name for path in run.directory.glob("postprocess-*.html")} == pages


def test_the_same_rule_under_two_names_is_one_artefact(run):
    fit(run, name="one")
    fit(run, name="two")
    one, two = (run.ensemble.postprocessors[name]["artefact"] for name in ("one", "two"))
    assert one == two
    fit(run, name="one", tolerance=(0.02,))
    assert run.store.has(two)
    assert load_fitted(run, "two").to_dict() == json.loads(document_of(run, "two"))


def test_fitting_again_changes_nothing(run):
    fit(run)
    pointer, names = run.path("ensemble.json").read_bytes(), run.store.names()
    fit(run)
    assert (run.path("ensemble.json").read_bytes(), run.store.names()) == (pointer, names)


def test_groups_are_combinations_of_several_features(tmp_path):
    frame = load_synthetic_tabular(num_examples=500).frame
    frame["sensitive:age"] = np.where(np.arange(500) % 2, "old", "young")
    frame.loc[::17, "sensitive:age"] = None
    frame.to_csv(tmp_path / "table.csv", index=False)
    columns = {name: name for name in ("label", "example_id", "subject_id", "split")}
    columns |= {"numeric": ["feature:mixed_0", "feature:mixed_1"], "sensitive": ["sensitive:region", "sensitive:age"]}
    data = {"name": "own", "path": str(tmp_path / "table.csv"), "columns": columns}
    run = trained_in(tmp_path, replace(FAIR, data=data))
    region, age = run.examples.sensitive_names
    made = fit(run, sensitive_feature=(region, age), strategy="aggregate_first", evaluate=True)
    entry = run.ensemble.postprocessors[made.name]
    rows = run.examples.split(CALIBRATION)
    known = rows[rows[f"sensitive:{age}"].notna()]
    assert entry["groups"] == sorted(
        {f"{row[0]} & {row[1]}" for row in known[[f"sensitive:{region}", f"sensitive:{age}"]].values}
    )
    assert run.store.manifest(entry["artefact"]).lineage.examples == tuple(known["example_id"])
    assert len(known) < len(rows)
    assert set(made.content.by_group["group"]) >= set(entry["groups"])


def test_a_strategy_may_be_chosen_by_cross_fitting(run):
    made = fit(run, strategy="auto", evaluate=True)
    fitted = load_fitted(run, made.name)
    assert made.content.reason == fitted.reason_ != ""
    assert made.content.choices["chosen"].sum() == 1
    artefact = run.ensemble.postprocessors[made.name]["artefact"]
    run.store.purge([artefact])
    fit(run, strategy="auto", name="other")
    assert run.ensemble.postprocessors["other"]["artefact"] == artefact
    assert load_fitted(run, "other").to_dict() == fitted.to_dict()


def test_three_classes_are_post_processed_too(tmp_path):
    frame = load_synthetic_tabular(num_examples=500).frame
    cut = pd.qcut(frame["feature:mixed_0"], 3, labels=["low", "middle", "high"]).astype(str)
    frame.assign(label=cut).to_csv(tmp_path / "table.csv", index=False)
    columns = {name: name for name in ("label", "example_id", "subject_id", "split")}
    columns |= {"numeric": ["feature:mixed_0", "feature:mixed_1"], "sensitive": ["sensitive:region"]}
    data = {"name": "own", "path": str(tmp_path / "table.csv"), "columns": columns}
    run = trained_in(tmp_path, replace(FAIR, data=data))
    (feature,) = run.examples.sensitive_names
    made = fit(run, sensitive_feature=(feature,), criterion=("demographic_parity",), evaluate=True)
    assert len(run.examples.classes) == 3
    rates = set(made.content.by_group["metric"])
    assert {f"selection_rate of {name}" for name in run.examples.classes} <= rates
    assert made.content.regions == ()
    assert f"fair {made.name}" in made.report.evaluation.predictors


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "ensemble_vote_cout"}, r"Expected strategy to be one of .* Did you mean 'ensemble_vote_count'\?"),
        ({"criterion": ("equalised_odds",)}, r"Expected criterion to be one of .* Did you mean 'equalized_odds'\?"),
        ({"sensitive_feature": ("regoin",)}, r"no sensitive feature 'regoin'. Did you mean 'region'\? It has region."),
        ({"sensitive_feature": ()}, r"Set sensitive_feature=..., or several as \[...\]: synthetic_tabular has region."),
    ],
)
def test_what_the_run_does_not_have_is_told(measured, changes, said):
    run, _ = measured
    before = run.path("ensemble.json").read_bytes()
    with pytest.raises(ConfigError, match=said):
        fit(run, **changes)
    assert run.path("ensemble.json").read_bytes() == before


def test_a_fit_that_the_rows_do_not_allow_leaves_everything_as_it_was(run):
    before = run.path("ensemble.json").read_bytes()
    with pytest.raises(DataError, match=r"10000|group|cell|Group"):
        fit(run, min_cell_count=10_000, small_cells="error")
    assert run.path("ensemble.json").read_bytes() == before
    assert run.store.names(KIND) == ()


def test_nothing_is_fitted_while_constituents_are_missing(run):
    edited(run, status=DEGRADED)
    with pytest.raises(RunError, match=r"served without some constituents: run `fairsisa unlearn flush run="):
        fit(run)


def test_an_unknown_name_is_told_with_the_nearest(measured):
    run, _ = measured
    with pytest.raises(ConfigError, match=rf"has no post-processor '{NAME}s'. Did you mean '{NAME}'\?"):
        load_fitted(run, f"{NAME}s")


def test_a_stale_one_refuses_and_doctor_says_so(run):
    fit(run)
    made = run.ensemble.predictions
    swapped = dict(zip(made[CALIBRATION], reversed(made[CALIBRATION].values()), strict=True))
    edited(run, predictions={**made, CALIBRATION: swapped})
    with pytest.raises(StaleError, match=rf"{NAME}' is stale, .*: run `fairsisa postprocess run=.* name={NAME} "):
        load_fitted(run, NAME)
    (complaint,) = [found for found in examine(run, keys=keys_of(run)) if found.check == "post-processors"]
    assert complaint.is_problem
    assert "is stale" in complaint.what
    assert complaint.cure == (
        f"run `fairsisa postprocess run={run.directory} name={NAME} strategy=ensemble_vote_count tolerance=[0.1] "
        "sensitive_feature=[region] small_cells=ignore`"
    )
    report = evaluate_run(run, execution=HERE, on_event=silent)
    assert not [name for name in report.evaluation.predictors if name.startswith("fair ")]
    assert any("is stale" in warning for warning in report.warnings)


def test_groups_that_change_make_it_stale_too(run):
    fit(run)
    frame = run.examples.frame.copy()
    first = frame.index[frame["split"] == CALIBRATION][0]
    frame.loc[first, "sensitive:region"] = next(
        r for r in set(groups_on(run, TEST)) if r != frame.loc[first, "sensitive:region"]
    )
    run.publish(run.pointer, replace(run.examples, frame=frame), run.partition)
    with pytest.raises(StaleError, match="is stale"):
        load_fitted(run, NAME)


def test_training_again_fits_what_is_missing(run):
    fit(run)
    entry, document = run.ensemble.postprocessors[NAME], document_of(run)
    run.store.purge([entry["artefact"]])
    train_again(run, FAIR)
    assert (run.ensemble.postprocessors[NAME], document_of(run)) == (entry, document)
    run.store.purge([entry["artefact"]])
    evaluate_run(run, execution=HERE, on_event=silent)
    assert (run.ensemble.postprocessors[NAME], document_of(run)) == (entry, document)


def test_adding_examples_fits_it_on_the_new_votes(run):
    fit(run)
    before = run.ensemble.postprocessors[NAME]["artefact"]
    more = load_synthetic_tabular(num_examples=120, seed=7)
    frame = more.frame.assign(
        example_id="new-" + more.frame["example_id"], subject_id="new-" + more.frame["subject_id"]
    )
    add_examples(run, replace(more, frame=frame), keys=keys_of(run), execution=HERE, on_event=silent, evaluate=False)
    after = run.ensemble.postprocessors[NAME]["artefact"]
    assert after != before
    assert run.store.manifest(after).lineage.examples == tuple(run.examples.split(CALIBRATION)["example_id"])
    assert load_fitted(run, NAME).to_dict() == json.loads(document_of(run))
    assert run.store.has(after)
    assert after in run.store.claims()[str(run.directory.resolve())]


def test_a_pointer_of_an_earlier_version_has_none(run):
    values = json.loads(run.path("ensemble.json").read_text())
    for later in ("postprocessors", "descendants", "digest"):
        del values[later]
    run.write("ensemble.json", json.dumps(values))
    assert run.ensemble.postprocessors == {}
    assert run.ensemble == replace(run.ensemble, postprocessors={})


def test_a_pointer_that_was_changed_by_hand_is_damaged(run):
    values = json.loads(run.path("ensemble.json").read_text())
    run.write("ensemble.json", json.dumps(values | {"generation": 7}))
    with pytest.raises(RunError, match=r"ensemble\.json is damaged \(its contents are not those of its digest\)"):
        _ = run.pointer
    run.write("ensemble.json", json.dumps({key: values[key] for key in values if key != "digest"} | {"descendent": {}}))
    with pytest.raises(RunError, match=r"ensemble\.json is damaged"):
        _ = run.pointer


def test_names_are_part_of_what_is_served():
    entries = {"a": {"artefact": "1" * 64}, "b": {"artefact": None}}
    assert Ensemble({}, {}, {}, postprocessors=entries).names == {"1" * 64}


SWEPT = FrontierSettings(
    sensitive_feature=("region",),
    strategies=("aggregate_first", "ensemble_vote_count", "unprocessed"),
    tolerances=(0.0, 0.1, 1.0),
    small_cells="ignore",
)


def swept(run: Run, **changes: Any) -> FrontierReport:
    return frontier_run(run, replace(SWEPT, **changes), execution=HERE, on_event=silent)


def test_a_frontier_shows_every_strategy_and_what_no_tolerance_changes(measured):
    run, told = measured[0], list[tuple[str, int, int]]()
    pointer = run.path("ensemble.json").read_bytes()
    content = frontier_run(
        run, SWEPT, execution=HERE, on_event=silent, on_progress=lambda *progress: told.append(progress)
    )
    assert set(content.lines["strategy"]) == {"aggregate_first", "ensemble_vote_count"}
    assert len(content.lines) == 2 * 3 * 2
    assert set(content.singles["strategy"]) == {"majority_vote", "mean_score", "unprocessed"}
    assert [done for _, done, _ in told] == list(range(6))
    assert {total for _, _, total in told} == {5}
    fit = content.lines[content.lines["split"] == "fit"]
    assert (fit["difference"] <= fit["tolerance"] + 1e-9).all()
    labels, votes = run.examples.split(TEST)["label"].to_numpy(), votes_on(run, TEST)
    single = content.singles[content.singles["split"] == "test"].set_index("strategy")
    decided = {"majority_vote": votes.votes.sum(axis=1) == 2, "mean_score": votes.scores.mean(axis=1)[:, 1] > 0.5}
    for name, decisions in decided.items():
        assert single.loc[name, "accuracy"] == pytest.approx((decisions == labels).mean(), abs=1e-12)
        rates = pd.Series(decisions.astype(float)).groupby([labels, groups_on(run, TEST)]).mean().unstack()
        spread = (rates.max(axis=1) - rates.min(axis=1)).max()
        assert single.loc[name, "difference"] == pytest.approx(spread, abs=1e-12)
        assert (single.loc[name, "randomised"], single.loc[name, "overridden"]) == (0.0, 0.0)
    assert run.path("ensemble.json").read_bytes() == pointer
    told_of = json.loads(run.path("derived.json").read_text())["files"]
    assert {"frontier.html", "frontier.csv", "report.html"} <= set(told_of)


def test_a_frontier_goes_with_the_votes_it_was_made_of(run):
    swept(run)
    evaluate_run(run, execution=HERE, on_event=silent)
    assert run.path("frontier.csv").is_file()
    made = run.ensemble.predictions
    swapped = dict(zip(made[TEST], reversed(made[TEST].values()), strict=True))
    edited(run, predictions={**made, TEST: swapped})
    evaluate_run(run, execution=HERE, on_event=silent)
    assert not run.path("frontier.csv").exists()


def test_baselines_stand_beside_the_strategies(tmp_path):
    run = trained_in(tmp_path, replace(FAIR, evaluation=WITH_BASELINES.evaluation))
    content = swept(run, strategies=("aggregate_first",), tolerances=(0.1,))
    single = content.singles[content.singles["split"] == "test"].set_index("strategy")["accuracy"]
    table = evaluate_run(run, execution=HERE, on_event=silent).evaluation.metrics
    accuracy = table[table["metric"] == "accuracy"].set_index("predictor")["value"]
    for name in ("majority_vote", "mean_score", "baseline whole", "baseline fraction"):
        assert single[name] == pytest.approx(accuracy[name], abs=1e-12)


def test_a_strategy_that_does_not_apply_is_left_out_and_named(measured, monkeypatch):
    run, _ = measured
    with pytest.raises(DataError, match=r"No strategy applies. aggregate_first is left out: .*min_cell_count=10000"):
        swept(run, small_cells="error", min_cell_count=10_000)
    with pytest.raises(DataError, match=r"No strategy applies. Name one that has a tolerance"):
        swept(run, strategies=("unprocessed",))
    with pytest.raises(ConfigError, match=r"Did you mean 'aggregate_first'\?"):
        swept(run, strategies=("aggregate_frst",))

    def refuse(**_: Any) -> Any:
        raise ConfigError("votes cannot be counted here")

    monkeypatch.setattr(fitting, "STRATEGIES", {**fitting.STRATEGIES, "ensemble_vote_count": refuse})
    content = swept(run)
    assert content.warnings == ("ensemble_vote_count is left out: votes cannot be counted here",)
    assert set(content.lines["strategy"]) == {"aggregate_first"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tolerance": (0.1, 0.2)}, "one tolerance for all criteria, or one for each of 1; got 2"),
        ({"tolerance": (-0.1,)}, "Expected tolerance to be at least 0.0, got -0.1"),
        ({"criterion": ()}, "Expected criterion to name at least one"),
        ({"criterion": ("equalized_odds",) * 2}, "Expected criterion to name each once"),
        ({"form": "median"}, "Expected form to be one of max, mean, got 'median'"),
        ({"name": "../elsewhere"}, r"Expected name to be letters, digits and _ \. \+ -"),
        ({"false_negative_cost": -1.0}, "Expected false_negative_cost to be at least 0.0"),
        ({"solver": "high"}, r"Expected solver to be one of .* Did you mean 'highs'\?"),
    ],
)
def test_settings_are_checked(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(RULE, **changes)


def test_a_name_is_made_of_features_criteria_and_strategy():
    settings = PostprocessSettings(
        criterion=("equalized_odds", "demographic_parity"), sensitive_feature=("sex", "race/origin"), tolerance=(0.1,)
    )
    assert settings.chosen_name == "sex+race-origin.equalized_odds+demographic_parity.auto"
    assert settings.tolerances == (0.1, 0.1)
    assert replace(settings, name="mine").chosen_name == "mine"
