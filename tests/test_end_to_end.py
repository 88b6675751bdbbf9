from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsisa.cli.main import run_command
from fairsisa.data.hatexplain import load_hatexplain
from fairsisa.runs import Run

pytestmark = [pytest.mark.real_data, pytest.mark.slow]
HERE = ["execution.num_workers=1", "evaluation.num_replicates=100", "run=run", "paths.store=store"]
NUM_POSTS = 500


def metric(folder: Path, predictor: str, name: str) -> float:
    rows: list[Mapping[str, Any]] = json.loads((folder / "run" / "metrics.json").read_text())["metrics"]
    (value,) = (
        row["value"]
        for row in rows
        if (row["predictor"], row["metric"], row["sensitive_feature"]) == (predictor, name, "")
    )
    return float(value)


def decided(folder: Path) -> tuple[pd.Series, pd.Series]:
    """Return the test labels, and the class with most votes (the lowest of several), from the files alone."""
    run = Run(folder / "run")
    table = pd.read_parquet(run.path("predictions.parquet")).query("split == 'test'")
    votes = table.groupby("example_id")["vote"].agg(lambda own: own.mode().min())
    labels = run.examples.split("test").set_index("example_id")["label"]
    return labels, votes.loc[labels.index]


def features(run: Run, split: str) -> pd.DataFrame:
    frame = run.examples.split(split)
    return frame[[column for column in frame.columns if column.startswith("feature:")]]


def test_adult_is_learnt_by_shards(data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "experiment=adult_mlp", f"paths.data={data_root}", "partition.num_shards=3", *HERE]
    words += ["partition.num_slices=2", "model.hidden=[32]", "trainer.max_epochs=4", "evaluation.baselines=[]"]
    assert run_command(words) == 0
    reached = metric(tmp_path, "majority_vote", "accuracy")
    assert reached >= 0.83
    assert reached == pytest.approx(accuracy_score(*decided(tmp_path)))
    run = Run(tmp_path / "run")
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    train = run.examples.split("train")
    plain.fit(features(run, "train"), train["label"])
    best = accuracy_score(run.examples.split("test")["label"], plain.predict(features(run, "test")))
    assert reached > best - 0.02


def test_a_users_own_table_ends_with_a_report(data_root, tmp_path):
    raw = pd.read_csv(data_root / "german_credit" / "german.csv")
    sex = raw["personal_status"].isin(["A92", "A95"]).map({True: "female", False: "male"})
    own = pd.DataFrame({"Account": raw["status"], "months": raw["month"], "Amount (DM)": raw["credit_amount"]})
    own = own.assign(Sex=sex, Years=raw["age"], verdict=raw["credit"].map({1: "good", 2: "bad"}))
    own.assign(applicant=[f"person {row}" for row in own.index]).to_csv(tmp_path / "credit.csv", index=False)
    columns = {
        "label": "verdict",
        "positive": "good",
        "numeric": "[months,'Amount (DM)']",
        "categorical": "[Account]",
        "sensitive": "{Sex:null,Years:[25]}",
        "example_id": "applicant",
    }
    words = ["train", "experiment=own_table", "data.path=credit.csv", "partition.num_shards=2", *HERE]
    words += [f"data.columns.{key}={value}" for key, value in columns.items()]
    words += ["partition.num_slices=2", "trainer.max_epochs=5"]
    command = [sys.executable, "-c", "from fairsisa.cli import main; main()", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    run = Run(tmp_path / "run")
    assert run.examples.classes == ("bad", "good")
    assert set(run.examples.sensitive_names) == {"Sex", "Years"}
    assert sorted(run.examples.example_ids) == sorted(f"person {row}" for row in range(1000))
    labels, votes = decided(tmp_path)
    reached = metric(tmp_path, "majority_vote", "accuracy")
    assert reached == pytest.approx(accuracy_score(labels, votes))
    assert reached > 0.6
    assert f"{100 * reached:.1f} % of {len(labels)} held-out examples" in done.stdout
    page = run.path("report.html").read_text()
    assert all(name in page for name in ("Sex", "Years", "female", "majority vote"))
    assert not [example for example in run.examples.example_ids if example in page]


@pytest.fixture(scope="module")
def posts(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HateXplain's first posts of each split as somebody's own JSON lines, toxic or not and with three classes."""
    cache = tmp_path_factory.mktemp("cache")
    binary, three = (load_hatexplain(root=data_root, cache=cache, task=task) for task in ("binary", "three_class"))
    frame = binary.frame.assign(
        toxic=[binary.classes[label] for label in binary.labels], kind=[three.classes[label] for label in three.labels]
    )
    first = frame.groupby("split", group_keys=False).head(NUM_POSTS // 2)
    kept = first.rename(columns={"example_id": "post", "sensitive:religion_any": "religion"})
    path = tmp_path_factory.mktemp("own") / "posts.jsonl"
    kept[["post", "text", "toxic", "kind", "split", "religion"]].to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize(
    ("label", "classes"), [("toxic", ("normal", "toxic")), ("kind", ("hatespeech", "normal", "offensive"))]
)
def test_a_users_own_texts_end_with_a_report(label, classes, posts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "experiment=own_text", "model=minilm_head", "trainer=head", "trainer.max_epochs=8", *HERE]
    words += ["partition.num_shards=2", "partition.num_slices=2", "evaluation.baselines=[]", "model.max_length=64"]
    words += [f"data.path={posts}", "data.columns.text=text", f"data.columns.label={label}", "data.columns.split=split"]
    words += ["data.columns.example_id=post", "data.columns.sensitive=[religion]"]
    assert run_command(words) == 0
    run = Run(tmp_path / "run")
    assert run.examples.classes == classes
    labels, votes = decided(tmp_path)
    reached = metric(tmp_path, "majority_vote", "accuracy")
    assert reached == pytest.approx(accuracy_score(labels, votes))
    assert reached > labels.value_counts(normalize=True).max() - 0.02
    assert metric(tmp_path, "mean_score", "auroc") > 0.6
    page = run.path("report.html").read_text()
    assert all(name in page for name in ("religion", *classes))
    texts = [text for text in run.examples.frame["text"] if len(text) > 20]
    assert not [text for text in texts if text in page]
