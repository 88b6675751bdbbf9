from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fairsisa.errors import TrainingError
from fairsisa.runs import doctor, unlearning
from fairsisa.runs.directory import DEGRADED, Run
from fairsisa.runs.doctor import Complaint, examine
from fairsisa.runs.unlearning import flush, queue_request
from fairsisa.tables import write_examples
from unlearning_cases import (
    HERE,
    PLAIN,
    copied,
    forget,
    in_slice,
    keys_of,
    ledger_of,
    planted,
    request,
    silent,
    train_again,
    trained_in,
    vouched,
)

GONE = "synthetic-000029"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that forgot one example."""
    run = trained_in(tmp_path_factory.mktemp("original"))
    assert GONE in run.partition.example_ids
    forget(run, GONE)
    return run


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    run = copied(original, tmp_path)
    keys_of(run).mkdir(mode=0o700)
    for key in keys_of(original).iterdir():
        (keys_of(run) / key.name).write_bytes(key.read_bytes())
        (keys_of(run) / key.name).chmod(0o600)
    return run


def complaints(run: Run) -> list[Complaint]:
    return list(examine(run, keys=keys_of(run)))


def problems(run: Run) -> list[Complaint]:
    return [complaint for complaint in complaints(run) if complaint.is_problem]


def test_a_healthy_run_is_well(run):
    assert complaints(run) == []


def test_a_run_that_nobody_asked_to_forget_is_well(tmp_path):
    run = trained_in(tmp_path)
    assert complaints(run) == [Complaint("ledger", "No request was ever received.", is_problem=False)]
    assert not run.path("ledger.sqlite").exists()
    assert not keys_of(run).exists()


def payload(run: Run, name: str, suffix: str = ".safetensors") -> Path:
    (found,) = run.store.root.rglob(name + suffix)
    return found


def untrained(run: Run) -> None:
    run.publish(replace(run.ensemble, status="untrained"))


def degraded(run: Run) -> None:
    run.publish(replace(run.ensemble, status=DEGRADED))


def tables_that_differ(run: Run) -> None:
    examples = run.examples
    keep = examples.frame["example_id"] != in_slice(run, 1, 0)[0]
    write_examples(examples.keep(keep.to_numpy()), run.table("examples"))
    vouched(run)


def lost_artefact(run: Run) -> None:
    run.store.purge([run.ensemble.predictions["test"]["shard-0"]])


def damaged_artefact(run: Run) -> None:
    path = payload(run, run.ensemble.checkpoints["shard-0"][2])
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


def damaged_manifest(run: Run) -> None:
    payload(run, run.ensemble.checkpoints["shard-0"][2], ".json").write_text("{")


def dropped_artefact(run: Run) -> None:
    run.store.drop([run.ensemble.checkpoints["shard-0"][2]])


def no_claim(run: Run) -> None:
    run.store.unclaim(run.directory)


def lost_key(run: Run) -> None:
    for path in keys_of(run).iterdir():
        path.unlink()


def damaged_ledger(run: Run) -> None:
    run.path("ledger.sqlite").write_bytes(b"not a database at all" * 100)


def other_ledger(run: Run) -> None:
    run.path("ledger.sqlite").unlink()
    ledger_of(run)


def damaged_certificate(run: Run) -> None:
    (path,) = run.path("certificates").glob("*.json")
    path.write_text("{")


def certificate_of_another_kind(run: Run) -> None:
    (path,) = run.path("certificates").glob("*.json")
    path.write_text("[]")


def resurrected_artefact(run: Run) -> None:
    planted(run.store, [], examples=(GONE,))


def leftover(run: Run) -> None:
    run.path("tables", "examples-9.parquet.partial").write_text("half")


def damaged_config(run: Run) -> None:
    run.path("config.yaml").write_text("store: [")


def config_of_another_kind(run: Run) -> None:
    run.path("config.yaml").write_text("3")


def cut_config(run: Run) -> None:
    """Cut the last line off: what is left is whole YAML, and a default stands for what is lost."""
    path = run.path("config.yaml")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def damaged_pointer(run: Run) -> None:
    run.path("ensemble.json").write_text("[]")


def damaged_table(run: Run) -> None:
    run.table("examples").write_bytes(b"PAR1")


def lost_table(run: Run) -> None:
    run.table("partition").unlink()


def damaged_environment(run: Run) -> None:
    run.path("environment.json").write_text("{")


def lost_environment(run: Run) -> None:
    run.path("environment.json").unlink()


def damaged_report_notes(run: Run) -> None:
    run.path("derived.json").write_text("{")


FAULTS: list[tuple[Callable[[Run], None], str, str]] = [
    (untrained, "training", "not trained to its end"),
    (degraded, "serving", "without some constituents"),
    (tables_that_differ, "tables", "1 examples are in one of the two tables only"),
    (lost_artefact, "artefacts", "1 artefacts that are served are not in the store"),
    (damaged_artefact, "artefacts", "SHA-256"),
    (damaged_manifest, "artefacts", r"\S"),
    (dropped_artefact, "artefacts", "1 constituents lack the weights they serve"),
    (no_claim, "claim", "no claim on its artefacts"),
    (lost_key, "ledger", "key"),
    (damaged_ledger, "ledger", r"ledger\.sqlite"),
    (other_ledger, "certificates", "Another key signed the certificate"),
    (damaged_certificate, "certificates", r"\.json: Expected"),
    (certificate_of_another_kind, "certificates", r"\.json: Expected .* format"),
    (resurrected_artefact, "forgotten data", "The store holds 1 student made from forgotten examples"),
    (leftover, "forgotten data", "unfinished work"),
    (damaged_config, "files", r"config\.yaml is damaged \("),
    (config_of_another_kind, "files", r"config\.yaml is damaged \("),
    (cut_config, "files", r"config\.yaml is damaged \(its settings are not those of its digest\)"),
    (damaged_pointer, "files", r"ensemble\.json is damaged \("),
    (damaged_table, "files", r"examples-1\.parquet is damaged \(its SHA-256 is not the one in ensemble\.json\)"),
    (lost_table, "files", r"partition-1\.parquet"),
    (lost_environment, "files", r"has lost its environment\.json: restore it from a backup"),
    (damaged_environment, "files", r"environment\.json is damaged \("),
    (damaged_report_notes, "forgotten data", "Reports are not those of the ensemble"),
]


@pytest.mark.parametrize(("plant", "check", "said"), FAULTS, ids=[plant.__name__ for plant, _, _ in FAULTS])
def test_every_planted_fault_is_named_with_a_cure(run, plant, check, said):
    plant(run)
    found = [complaint for complaint in problems(run) if complaint.check == check]
    assert pd.Series([complaint.what for complaint in found], dtype=str).str.contains(said).any(), complaints(run)
    assert all(complaint.cure for complaint in found)


def flushed(run: Run) -> None:
    flush(run, keys=keys_of(run), settings=PLAIN, execution=HERE, on_event=silent)


def old_table(run: Run) -> None:
    run.table("examples", 0).write_bytes(run.table("examples").read_bytes())


def strange_training_table(run: Run) -> None:
    path = run.path("training.csv")
    path.write_text(path.read_text().replace(run.ensemble.checkpoints["shard-0"][0], "ab" * 32))


@pytest.mark.parametrize(
    ("plant", "said", "follow"),
    [
        (untrained, "train", train_again),
        (lost_artefact, "run the same train command again", train_again),
        (damaged_artefact, "run the same train command again", train_again),
        (damaged_manifest, "", train_again),
        (dropped_artefact, "run the same train command again", train_again),
        (no_claim, "run the same train command again", train_again),
        (strange_training_table, "train", train_again),
        (resurrected_artefact, "unlearn flush", flushed),
        (leftover, "unlearn flush", flushed),
        (old_table, "unlearn flush", flushed),
    ],
)
def test_the_cure_cures(run, plant, said, follow):
    plant(run)
    assert problems(run) != []
    assert all(said in complaint.what + complaint.cure for complaint in problems(run))
    follow(Run(run.directory))
    assert problems(Run(run.directory)) == []


def fail(*arguments: Any) -> Any:
    raise TrainingError("the power went")


def test_requests_that_wait_failed_or_were_interrupted_are_told(run, monkeypatch):
    queue_request(run, request(*in_slice(run, 1, 1)), keys=keys_of(run))
    assert complaints(run) == [
        Complaint("requests", "1 requests wait.", f"run `fairsisa unlearn flush run={run.directory}`", is_problem=False)
    ]
    with monkeypatch.context() as broken:
        broken.setattr(unlearning, "train_missing", fail)
        with pytest.raises(TrainingError, match="the power went"):
            forget(run, *in_slice(run, 1, 1))
    assert [complaint.what for complaint in problems(run)] == ["1 requests failed."]
    ledger = ledger_of(run)
    (failed,) = ledger.requests("failed")
    ledger.advance([failed.request_id], "planned", dict(ledger.history(failed.request_id)[1].detail))
    assert [complaint.what for complaint in problems(run)] == ["1 requests were interrupted."]
    flush(run, keys=keys_of(run), settings=PLAIN, execution=HERE, on_event=silent)
    assert complaints(run) == []


def test_another_machine_is_worth_knowing(run, monkeypatch):
    here = doctor.numeric_environment("cpu", "fp32", 1)
    monkeypatch.setattr(doctor, "numeric_environment", lambda *arguments: here | {"torch": "0.0"})
    (told,) = complaints(run)
    assert (told.check, told.is_problem) == ("environment", False)
    assert f"torch: {here['torch']} then, 0.0 now" in told.what


def test_a_run_at_work_is_left_in_peace(run):
    found: list[Complaint] = []
    with run.locked():
        thread = threading.Thread(target=lambda: found.extend(complaints(run)))
        thread.start()
        thread.join()
    assert [(complaint.check, complaint.is_problem) for complaint in found] == [("lock", False)]


def test_several_faults_are_all_told(run):
    lost_artefact(run)
    lost_key(run)
    leftover(run)
    lost_environment(run)
    assert {complaint.check for complaint in problems(run)} == {"files", "artefacts", "ledger"}


def test_looking_changes_nothing(run):
    before = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file() and path.name != ".lock"}
    complaints(run)
    after = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
