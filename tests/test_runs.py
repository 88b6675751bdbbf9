from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from sklearn.metrics import accuracy_score, roc_auc_score

from chains import LOGISTIC, TINY_TEXT, digests_of, run_of, sampled
from fairsisa.data.synthetic import GaussianWorld, bayes_accuracy
from fairsisa.errors import ConfigError, DataError, RunError
from fairsisa.execution import Event
from fairsisa.fairness.evaluation import Evaluation
from fairsisa.report.content import RunReport
from fairsisa.runs import Run, evaluate_run, train_run
from fairsisa.runs.logging import log_result, logged, metrics_handler
from fairsisa.runs.tables import CURVES, TRAINING, training_tables
from fairsisa.runs.training import data_root
from fairsisa.settings import (
    EvaluationSettings,
    ExecutionSettings,
    PartitionSettings,
    PathSettings,
    RunSettings,
    TrainerSettings,
    plain,
)
from fairsisa.sisa.partition import Partition
from fairsisa.sisa.training import SliceResult
from fairsisa.store import Store
from fairsisa.tables import Examples

HERE = ExecutionSettings(num_workers=1)
FILES = {
    "config.yaml",
    "environment.json",
    "ensemble.json",
    "training.csv",
    "curves.csv",
    "predictions.parquet",
    "report.html",
    "report.md",
    "metrics.json",
    "derived.json",
}
TABLE = RunSettings(
    seed=3,
    data={"name": "synthetic_tabular", "options": {"num_examples": 6000, "repeat_share": None}},
    model=LOGISTIC,
    partition=PartitionSettings(num_shards=3, num_slices=2),
    trainer=TrainerSettings(
        max_epochs=12.0, batch_size=64, learning_rate=0.02, schedule="chain", accelerator="cpu", precision="fp32"
    ),
    evaluation=EvaluationSettings(num_replicates=100),
)
SMALL = replace(
    TABLE,
    data={"name": "synthetic_tabular", "options": {"num_examples": 300}},
    trainer=replace(TABLE.trainer, max_epochs=2.0),
    evaluation=EvaluationSettings(baselines=(), num_replicates=100),
)


def silent(event: Event) -> None:
    """Hear an event and do nothing."""


def paths_in(folder: Path) -> PathSettings:
    return PathSettings(root=str(folder / "runs"), store=str(folder / "store"), cache=str(folder / "cache"))


def train(settings: RunSettings, folder: Path, *, run: str = "run", **options: Any) -> list[SliceResult]:
    options = {"on_event": silent, "execution": HERE, **options}
    return train_run(settings, Run(folder / run), paths=paths_in(folder), **options)


def evaluate(folder: Path, *, run: str = "run", **options: Any) -> RunReport:
    return evaluate_run(Run(folder / run), execution=HERE, on_event=silent, **options)


@dataclass(frozen=True)
class Trained:
    """A run that was trained and evaluated once, with what it returned and told."""

    folder: Path
    results: list[SliceResult]
    report: RunReport
    events: list[Event]

    @property
    def run(self) -> Run:
        return Run(self.folder / "run")

    @property
    def evaluation(self) -> Evaluation:
        return self.report.evaluation

    def metric(self, predictor: str, name: str) -> float:
        rows = self.evaluation.metrics.query("predictor == @predictor and metric == @name and sensitive_feature == ''")
        return float(rows["value"].item())


def begin(
    run: Run, settings: RunSettings, *, examples: Examples, partition: Partition, store: Path, environment: Any
) -> None:
    run.begin(settings, examples, partition, source=None, store=str(store.resolve()), environment=environment)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, events = tmp_path_factory.mktemp("runs"), list[Event]()
    results = train(TABLE, folder, on_event=events.append, command="fairsisa train data=synthetic_tabular")
    return Trained(folder, results, evaluate(folder), events)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    train(SMALL, tmp_path)
    return tmp_path


def held_out(run: Run, split: str = "test") -> tuple[np.ndarray, pd.DataFrame]:
    """Return labels, and the scores of class 1 by example and constituent, read from the files alone."""
    examples = pd.read_parquet(run.path("tables", "examples-0.parquet")).query("split == @split")
    table = pd.read_parquet(run.path("predictions.parquet")).query("split == @split")
    scores = table.pivot(index="example_id", columns="constituent", values="score:1").loc[examples["example_id"]]
    return examples["label"].to_numpy(), scores


def test_a_run_leaves_its_files(trained):
    found = {path.name for path in trained.run.directory.iterdir()}
    assert found >= FILES
    assert not [name for name in found if name.endswith(".partial")]
    assert all(trained.run.path(name).stat().st_size > 0 for name in FILES)
    tables = {path.name for path in trained.run.path("tables").iterdir()}
    assert tables == {"examples-0.parquet", "partition-0.parquet"}
    assert len(trained.results) == 3 * 2 + 2
    assert [result.constituent for result in trained.results[-2:]] == ["baseline-whole", "baseline-fraction"]


def test_what_a_run_was_made_from_is_read_back(trained):
    run = trained.run
    assert plain(run.settings) == plain(TABLE)
    assert run.environment["commands"] == ["fairsisa train data=synthetic_tabular"]
    assert run.environment["numeric"]["precision"] == "fp32"
    assert run.store.root == (trained.folder / "store").resolve()
    examples, partition = run.examples, run.partition
    train_ids = set(examples.split("train")["example_id"])
    assert set(partition.example_ids) == train_ids
    assert (partition.num_shards, partition.num_slices, partition.seed) == (3, 2, 3)
    ids = {result.checkpoint for result in trained.results}
    store = run.store
    assert {i for name in ids for i in store.manifest(name).lineage.examples} == train_ids


def test_what_is_published_is_what_was_trained(trained):
    ensemble = trained.run.ensemble
    published = {name: list(steps) for name, steps in {**ensemble.checkpoints, **ensemble.baselines}.items()}
    made: dict[str, list[str]] = {}
    for result in trained.results:
        made.setdefault(result.constituent, []).append(result.checkpoint)
    assert published == made
    assert set(ensemble.predictions) == {"calibration", "test"}
    for names in ensemble.predictions.values():
        assert set(names) == set(made)
        for constituent, name in names.items():
            assert trained.run.store.manifest(name).lineage.parents == (made[constituent][-1],)


def test_the_training_table_tells_of_every_slice(trained):
    table = pd.read_csv(trained.run.path("training.csv"))
    assert tuple(table.columns) == TRAINING
    sizes = trained.run.partition.frame().groupby(["shard", "slice"]).size()
    for row in table.itertuples():
        if str(row.shard).startswith("shard-"):
            assert row.examples == sizes[int(str(row.shard)[-1]), row.slice]
            assert row.epochs == pytest.approx(8.0, abs=0.01)  # 2 e' / (R + 1) of 12 epochs
    whole, fraction = (table[table["shard"] == f"baseline-{name}"] for name in ("whole", "fraction"))
    assert whole["examples"].item() == sizes.sum()
    assert fraction["examples"].item() == sizes[0].sum()
    assert whole["epochs"].item() == pytest.approx(12.0, abs=0.01)
    curves = pd.read_csv(trained.run.path("curves.csv"))
    assert tuple(curves.columns) == CURVES
    assert set(zip(curves["shard"], curves["slice"], strict=True)) == set(
        zip(table["shard"], table["slice"], strict=True)
    )
    last = curves.groupby(["shard", "slice"]).last().reset_index().merge(table, on=["shard", "slice"])
    assert (last["step"] == last["steps"]).all()
    np.testing.assert_allclose(last["epoch"], last["epochs"])


def test_tables_of_empty_slices_hold_no_division_by_zero():
    empty = SliceResult("shard-0", 0, 0, 0, 0, 0.0, "empty", "ab" * 32, ())
    after = SliceResult("shard-0", 1, 10, 20, 5, 2.0, "trained", "cd" * 32, ((5, 0.5),))
    other = SliceResult("shard-1", 0, 4, 8, 2, 1.0, "reused", "ef" * 32, ((2, 0.25),))
    training, curves = training_tables([empty, after, other])
    assert training[["epochs", "examples_per_second"]].to_numpy().tolist() == [[0.0, 0.0], [2.0, 10.0], [2.0, 8.0]]
    assert curves.to_numpy().tolist() == [["shard-0", 1, 5, 2.0, 0.5], ["shard-1", 0, 2, 2.0, 0.25]]


def test_accuracies_are_those_of_the_files(trained):
    labels, scores = held_out(trained.run)
    members = ["shard-0", "shard-1", "shard-2"]
    assert sorted(scores.columns) == members
    sizes = trained.run.partition.frame().groupby("shard").size().to_numpy()
    positive = {f"constituent {name}": scores[name] for name in members}
    positive["majority_vote"] = (scores[members] > 0.5).mean(axis=1)
    positive["mean_score"] = scores[members].mean(axis=1)
    positive["weighted_score"] = pd.Series(np.average(scores[members], axis=1, weights=sizes))
    made = trained.run.ensemble.predictions["test"]
    for kind in ("whole", "fraction"):
        kept = trained.run.store.get(made[f"baseline-{kind}"])
        assert kept.lineage.examples == tuple(scores.index)
        positive[f"baseline {kind}"] = pd.Series(kept.tensors["scores"][:, 1].numpy())
    for predictor, score in positive.items():
        assert trained.metric(predictor, "accuracy") == pytest.approx(accuracy_score(labels, score > 0.5)), predictor
        if predictor != "majority_vote":
            assert trained.metric(predictor, "auroc") == pytest.approx(roc_auc_score(labels, score)), predictor
    singles = [accuracy_score(labels, scores[name] > 0.5) for name in members]
    assert min(singles) - 0.03 < trained.metric("random_member", "accuracy") < max(singles) + 0.03


def test_every_constituent_comes_near_the_best_there_is(trained):
    best = bayes_accuracy(GaussianWorld())
    labels, _ = held_out(trained.run)
    spread = math.sqrt(best * (1 - best) / len(labels))
    for name in (
        "constituent shard-0",
        "constituent shard-1",
        "constituent shard-2",
        "majority_vote",
        "baseline whole",
    ):
        assert best - 4 * spread - 0.01 < trained.metric(name, "accuracy") < best + 4 * spread


def test_the_report_and_its_numbers_agree_with_what_is_returned(trained):
    numbers = json.loads(trained.run.path("metrics.json").read_text())
    table = trained.evaluation.metrics
    assert len(numbers["metrics"]) == len(table)
    for row, (_, expected) in zip(numbers["metrics"], table.iterrows(), strict=True):
        assert [row[key] for key in ("predictor", "sensitive_feature", "metric")] == expected.iloc[:3].tolist()
        for key in ("value", "low", "high"):
            assert row[key] == (pytest.approx(expected[key]) if math.isfinite(expected[key]) else None)
    assert numbers["ensemble"] == "majority_vote"
    assert numbers["baselines"] == ["baseline whole", "baseline fraction"]
    page = trained.run.path("report.html").read_text()
    assert f"{100 * trained.metric('majority_vote', 'accuracy'):.1f}" in page
    assert "fairsisa train data=synthetic_tabular" in page
    assert f"fairsisa evaluate run={trained.run.directory}" in page
    assert not [i for i in trained.run.examples.example_ids if i in page]


def test_the_predictions_table_holds_both_held_out_splits(trained):
    table = pd.read_parquet(trained.run.path("predictions.parquet"))
    examples = trained.run.examples
    for split in ("calibration", "test"):
        part = table[table["split"] == split]
        ids = examples.split(split)["example_id"].tolist()
        assert part.drop_duplicates("example_id")["example_id"].tolist() == ids
        assert (part.groupby("example_id").size() == part["constituent"].nunique()).all()
    assert set(table["split"]) == {"calibration", "test"}


def test_training_again_trains_nothing(trained):
    before = digests_of(trained.folder / "store", None)
    events: list[Event] = []
    again = train(TABLE, trained.folder, on_event=events.append)
    assert [result.status for result in again] == ["reused"] * len(trained.results)
    assert [replace(result, status="trained") for result in again] == trained.results
    assert {event.kind for event in events} == {"slice_done"}
    assert digests_of(trained.folder / "store", None) == before
    assert evaluate(trained.folder).evaluation.metrics.equals(trained.evaluation.metrics)


def test_two_runs_of_the_same_settings_share_a_store(small):
    again = train(SMALL, small, run="another")
    assert {result.status for result in again} == {"reused"}
    assert Run(small / "another").ensemble == Run(small / "run").ensemble


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "seed=3, but seed=4"),
        ({"trainer": replace(SMALL.trainer, batch_size=32)}, "trainer.batch_size=64, but trainer.batch_size=32"),
        ({"partition": PartitionSettings(4, 2)}, "partition.num_shards=3, but partition.num_shards=4"),
        ({"model": replace(LOGISTIC, kind="mlp", hidden=(3,))}, "model.kind=logistic, but model.kind=mlp"),
        ({"data": {"name": "synthetic_tabular"}}, "data.options={'num_examples': 300}, but data.options=None"),
    ],
)
def test_other_settings_in_the_same_directory_are_refused(change, said, small):
    before = digests_of(small / "store", None)
    with pytest.raises(RunError, match=f"is a run with {said} was asked for: choose another run="):
        train(replace(SMALL, **change), small)
    assert digests_of(small / "store", None) == before


def test_a_data_file_that_changed_is_refused(small, tmp_path):
    frame = Run(small / "run").examples.frame
    columns = {"label": "label", "numeric": ["feature:mixed_0", "feature:mixed_1"], "sensitive": ["sensitive:region"]}
    own = replace(SMALL, data={"name": "own", "path": str(tmp_path / "own.csv"), "columns": columns})
    frame.to_csv(tmp_path / "own.csv", index=False)
    train(own, tmp_path, run="own")
    assert {result.status for result in train(own, tmp_path, run="own")} == {"reused"}
    frame.iloc[1:].to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(RunError, match=r"own\.csv has changed since .*own was begun with it: choose another run="):
        train(own, tmp_path, run="own")
    (tmp_path / "own.csv").unlink()  # the run keeps its own copy
    assert {result.status for result in train(own, tmp_path, run="own")} == {"reused"}


def test_two_commands_at_once_are_refused(small):
    run, refused = Run(small / "run"), list[str]()

    def compete() -> None:
        for command in (lambda: train(SMALL, small), lambda: evaluate(small)):
            try:
                command()
            except RunError as error:
                refused.append(str(error))

    with run.locked():
        thread = threading.Thread(target=compete)
        thread.start()
        thread.join()
    assert len(refused) == 2
    assert all("Another command is at work on" in message for message in refused)
    evaluate(small)


def test_a_run_that_failed_lets_go_of_its_directory(small):
    def fail(event: Event) -> None:
        raise RuntimeError("the listener gave up")

    for name in ("one", "two"):
        with pytest.raises(RuntimeError, match="the listener gave up"):
            train(replace(SMALL, seed=9), small, run="fails", on_event=fail)
        assert Run(small / "fails").exists, name


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_is_not_trained_cannot_be_evaluated(begun, tmp_path):
    if begun:
        settings = run_of(LOGISTIC)
        examples, partition = sampled(settings)
        begin(
            Run(tmp_path / "run"),
            settings,
            examples=examples,
            partition=partition,
            store=tmp_path / "store",
            environment={"commands": []},
        )
    said = r"is not trained: run `fairsisa train run=.*` to its end"
    if not begun:
        said = r"has no ensemble\.json: train it first, `fairsisa train run="
    with pytest.raises(RunError, match=said):
        evaluate(tmp_path)
    assert Run(tmp_path / "run").exists is begun


def test_deleted_predictions_are_made_again(small):
    before = evaluate(small)
    run = Run(small / "run")
    names = [name for made in run.ensemble.predictions.values() for name in made.values()]
    digests = digests_of(small / "store", None)
    run.store.purge(names)
    assert not any(Store(small / "store").has(name) for name in names)
    after = evaluate(small)
    assert digests_of(small / "store", None) == digests
    assert after.evaluation.metrics.equals(before.evaluation.metrics)


def test_a_deleted_checkpoint_is_trained_again_to_the_same_bytes(small):
    run, digests = Run(small / "run"), digests_of(small / "store", None)
    run.store.purge([run.ensemble.checkpoints["shard-1"][0]])
    assert len(digests_of(small / "store")) == 4
    results = train(SMALL, small)
    assert [result.status for result in results].count("trained") == 2
    assert digests_of(small / "store", None) == digests


def test_an_emptied_shard_leaves_the_run_and_the_vote(small):
    source = Run(small / "run")
    partition = source.partition
    gone = [i for place in range(2) for i in partition.slice_ids(1, place)]
    emptied = partition.without(gone)
    begin(
        Run(small / "emptied"),
        source.settings,
        examples=source.examples,
        partition=emptied,
        store=small / "store",
        environment=source.environment,
    )
    results = train(SMALL, small, run="emptied")
    assert [result.status for result in results] == ["reused", "reused", "empty", "empty", "reused", "reused"]
    report = evaluate(small, run="emptied")
    members = {name for name in report.evaluation.predictors if name.startswith("constituent ")}
    assert members == {"constituent shard-0", "constituent shard-2"}
    labels, scores = held_out(Run(small / "emptied"))
    assert sorted(scores.columns) == ["shard-0", "shard-2"]
    sizes = partition.frame().groupby("shard").size()[[0, 2]].to_numpy()
    expected = accuracy_score(labels, np.average(scores, axis=1, weights=sizes) > 0.5)
    table = report.evaluation.metrics.query("predictor == 'weighted_score' and metric == 'accuracy'")
    assert table["value"].item() == pytest.approx(expected)


def test_evaluation_may_be_asked_for_otherwise(small):
    asked = EvaluationSettings("mean_score", (), ("region",), ("region",), num_replicates=120, level=0.9)
    report = evaluate(small, settings=asked)
    assert (report.ensemble, report.evaluation.num_replicates, report.evaluation.level) == ("mean_score", 120, 0.9)
    assert report.main_features == ("region",)
    assert Run(small / "run").settings.evaluation == SMALL.evaluation


def test_a_baseline_that_was_not_trained_is_refused(small):
    asked = replace(SMALL.evaluation, baselines=("whole",))
    with pytest.raises(ConfigError, match=r"no baseline 'whole'; train with evaluation\.baselines holding it"):
        evaluate(small, settings=asked)


def test_a_sensitive_feature_that_is_not_there_is_refused_before_training(tmp_path):
    asked = replace(SMALL, evaluation=replace(SMALL.evaluation, sensitive_features=("sex",)))
    with pytest.raises(DataError, match=r"sensitive feature of 'synthetic_tabular' \(region\), got 'sex'"):
        train(asked, tmp_path)
    assert not Run(tmp_path / "run").exists
    assert not (tmp_path / "store").exists()


def test_a_model_that_does_not_read_the_corpus_is_refused(tmp_path):
    asked = replace(SMALL, data={"name": "synthetic_text", "options": {"num_examples": 40}})
    with pytest.raises(
        ConfigError, match=r"model\.kind=logistic does not read synthetic_text, which holds texts: choose"
    ):
        train(asked, tmp_path)


def test_the_folder_of_data_sets_must_exist(tmp_path, monkeypatch):
    monkeypatch.delenv("FAIRSISA_DATA", raising=False)
    assert data_root(PathSettings()) is None
    monkeypatch.setenv("FAIRSISA_DATA", str(tmp_path))
    assert data_root(PathSettings()) == tmp_path
    with pytest.raises(RunError, match=r"Expected a folder of data sets at .*nowhere \(paths\.data or FAIRSISA_DATA\)"):
        data_root(PathSettings(data=str(tmp_path / "nowhere")))


def csv_rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "logs" / "metrics.csv")


def test_loggers_hear_every_constituent(tmp_path):
    settings = replace(SMALL, evaluation=replace(SMALL.evaluation, baselines=("whole",)))
    logger = CSVLogger(save_dir=tmp_path, name="logs", version="")
    with logged([logger], settings):
        results = train(settings, tmp_path, on_event=metrics_handler([logger]))
        log_result([logger], Run(tmp_path / "run").ensemble, evaluate(tmp_path))
    rows = csv_rows(tmp_path)
    names = {result.constituent for result in results}
    assert {column.partition("/")[0] for column in rows.columns} == {*names, "step", "test"}
    for name in names:
        own = rows[rows[f"{name}/train_loss"].notna()]
        steps, ends, offset = own["step"].tolist(), list[int](), 0
        for result in (result for result in results if result.constituent == name):
            ends += [offset + step for step, _ in result.curve]
            offset += result.steps
        assert steps == ends
        losses = [loss for result in results if result.constituent == name for _, loss in result.curve]
        np.testing.assert_allclose(own[f"{name}/train_loss"], losses)
    final = rows["test/majority_vote/accuracy"].dropna().item()
    labels, scores = held_out(Run(tmp_path / "run"))
    shards = [name for name in scores.columns if name.startswith("shard-")]
    assert final == pytest.approx(accuracy_score(labels, (scores[shards] > 0.5).mean(axis=1) > 0.5))
    written = yaml.safe_load((tmp_path / "logs" / "hparams.yaml").read_text())
    assert written["partition"]["num_shards"] == 3
    ensemble = Run(tmp_path / "run").ensemble
    told = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert not [example for example in Run(tmp_path / "run").examples.example_ids if example in told]
    assert written["lineage"] == {k: v[-1] for k, v in {**ensemble.checkpoints, **ensemble.baselines}.items()}


def test_loggers_are_closed_as_failed_when_training_fails(tmp_path):
    statuses: list[str] = []

    class Heard(CSVLogger):
        def finalize(self, status: str) -> None:
            statuses.append(status)

    logger = Heard(save_dir=tmp_path)
    with pytest.raises(RuntimeError, match="stop"), logged([logger], SMALL):
        raise RuntimeError("stop")
    with logged([logger], SMALL):
        pass
    assert statuses == ["failed", "success"]


def test_an_offline_wandb_run_is_written_and_holds_no_row(tmp_path, monkeypatch):
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    settings = replace(
        SMALL,
        data={"name": "synthetic_text", "options": {"num_examples": 80}},
        model=replace(TINY_TEXT, trains="head"),
    )
    logger = WandbLogger(project="fairsisa", offline=True, save_dir=tmp_path)
    with logged([logger], settings):
        train(settings, tmp_path, on_event=metrics_handler([logger]))
        log_result([logger], Run(tmp_path / "run").ensemble, evaluate(tmp_path))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = folder.glob("*.wandb")
    patience = time.monotonic() + 60.0  # W&B's own process may still be writing
    while b"test/majority_vote/accuracy" not in record.read_bytes() and time.monotonic() < patience:
        time.sleep(0.1)
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"shard-0/train_loss" in everything
    assert b"test/majority_vote/accuracy" in everything
    assert Run(tmp_path / "run").ensemble.checkpoints["shard-0"][-1].encode() in everything
    frame = Run(tmp_path / "run").examples.frame
    for column in ("example_id", "subject_id", "text"):
        assert not [value for value in frame[column] if value.encode() in everything], column


def test_whole_numbers_for_floats_name_the_same_checkpoints(tmp_path):
    whole = replace(SMALL, trainer=replace(SMALL.trainer, gradient_clip=1, weight_decay=0, max_epochs=2))
    assert {result.status for result in train(whole, tmp_path, run="whole")} == {"trained"}
    again = train(Run(tmp_path / "whole").settings, tmp_path, run="whole")
    assert {result.status for result in again} == {"reused"}
