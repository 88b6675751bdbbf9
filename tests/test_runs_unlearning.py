from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chains import QUICK, TINY_TEXT, run_of
from fairsisa.errors import RunError, TrainingError, VerificationError
from fairsisa.execution import Event
from fairsisa.runs import evaluating, unlearning
from fairsisa.runs.directory import DEGRADED, WHOLE, Run
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.unlearning import flush
from fairsisa.settings import PartitionSettings, UnlearningSettings
from fairsisa.sisa.certificate import Certificate, decode
from unlearning_cases import (
    HERE,
    PLAIN,
    TABULAR,
    WITH_BASELINES,
    copied,
    forget,
    held_out,
    holders_of,
    in_slice,
    keys_of,
    ledger_of,
    planted,
    request,
    served_digests,
    silent,
    train_again,
    trained_in,
    verified,
)

IN_STEPS = replace(PLAIN, degraded=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"))


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with baselines, evaluated."""
    run = trained_in(tmp_path_factory.mktemp("compared"), WITH_BASELINES)
    evaluate_run(run, execution=HERE, on_event=silent)
    return run


def flushed(run: Run, settings: UnlearningSettings = PLAIN) -> Any:
    return flush(run, keys=keys_of(run), settings=settings, execution=HERE, on_event=silent)


def certificate(run: Run, path: Path) -> Certificate:
    return decode(path.read_bytes(), ledger_of(run).key)


def states(run: Run) -> list[str]:
    return [event.state for event in ledger_of(run).history()]


def test_only_what_a_deletion_touches_is_made_again(run):
    before, events = run.ensemble, list[Event]()
    forget(run, *in_slice(run, 1, 2), on_event=events.append)
    after = run.ensemble
    trained = {(e.constituent, e.slice) for e in events if e.kind == "slice_done" and e.values["status"] == "trained"}
    assert trained == {("shard-1", 2)}
    assert {e.constituent for e in events if e.kind == "predicted"} == {"shard-1"}
    assert after.checkpoints["shard-0"] == before.checkpoints["shard-0"]
    assert after.checkpoints["shard-1"][:2] == before.checkpoints["shard-1"][:2]
    for split, made in before.predictions.items():
        assert after.predictions[split]["shard-0"] == made["shard-0"]
        assert after.predictions[split]["shard-1"] != made["shard-1"]
    gone = before.names - after.names
    assert len(gone) == 3
    assert not any(map(run.store.has, gone))
    assert set(run.store.names()) == after.names


def test_all_that_stands_on_an_artefact_goes_whatever_made_it(run):
    first, other = run.ensemble.checkpoints["shard-0"][0], run.ensemble.checkpoints["shard-1"][-1]
    test_id = held_out(run, "test", 2)[1]
    child = planted(run.store, [first])
    grandchild = planted(run.store, [child, other], kind="quantised")
    scores = planted(run.store, [run.ensemble.predictions["test"]["shard-0"]], kind="evaluation")
    report, spared = planted(run.store, [], kind="report", examples=(test_id,)), planted(run.store, [other])
    out = forget(run, *in_slice(run, 0, 0))
    assert not any(map(run.store.has, (child, grandchild, scores)))
    assert run.store.has(spared)
    assert run.store.has(report)
    kinds = {made.kind: made.names for made in certificate(run, out.certificates[0]).purged}
    assert (kinds["student"], kinds["quantised"], kinds["evaluation"]) == ((child,), (grandchild,), (scores,))
    forget(run, test_id)
    assert not run.store.has(report)


def test_nothing_is_left_of_what_was_forgotten(compared, tmp_path):
    run = copied(compared, tmp_path)
    for folder in ("logs", "wandb/offline-run-1", "tensorboard", "lightning_logs", "jobs/old"):
        run.path(folder).mkdir(parents=True)
        run.path(folder, "metrics.csv").write_text("loss of " + in_slice(run, 0, 1)[0])
    run.path("tables", "examples-7.parquet.partial").write_bytes(b"left")
    ids = (*in_slice(run, 0, 1, 2), *held_out(run, "test"), *held_out(run, "calibration"))
    rows = run.examples.frame.set_index("example_id")
    cells = [repr(value) for value in rows.loc[list(ids), "feature:mixed_0"]]
    subjects = set(rows.loc[list(ids), "subject_id"]) - set(rows.drop(index=list(ids))["subject_id"])
    words = [*ids, *cells, *subjects]
    assert {"run/tables/examples-0.parquet", "run/logs/metrics.csv"} <= holders_of(tmp_path, words)
    forget(run, *ids, settings=replace(PLAIN, evaluate=True))
    assert holders_of(tmp_path, words) == set()
    assert {path.name for path in run.path("tables").iterdir()} == {"examples-1.parquet", "partition-1.parquet"}
    for folder in ("logs", "wandb", "tensorboard", "lightning_logs", "jobs"):
        assert not run.path(folder).exists()
    assert set(rows.index) - set(run.examples.example_ids) == set(ids)
    assert (verified(run).findings, verified(run).notes) == ((), ())


def test_texts_and_their_features_go(tmp_path):
    settings = run_of(
        replace(TINY_TEXT, trains="head"),
        replace(QUICK, max_epochs=1.0),
        data={"name": "synthetic_text", "options": {"num_examples": 40}},
        partition=PartitionSettings(num_shards=1, num_slices=2),
    )
    run = trained_in(tmp_path, settings)
    (gone,) = in_slice(run, 0, 1)
    text = run.examples.frame.set_index("example_id").loc[gone, "text"]
    before = set(run.store.names("features"))
    forget(run, gone, settings=replace(PLAIN, membership=True))
    assert holders_of(tmp_path, [gone, text]) == set()
    after = set(run.store.names("features"))
    assert (len(before), len(after), len(before & after)) == (4, 4, 3)
    assert after <= run.store.claims()[str(run.directory.resolve())]


def test_reports_that_tell_of_the_old_ensemble_go(compared, tmp_path):
    run = copied(compared, tmp_path)
    assert all(run.path(name).is_file() for name in (*evaluating.REPORTS, "derived.json"))
    out = forget(run, *in_slice(run, 0, 0))
    assert out.report is None
    assert not any(run.path(name).exists() for name in (*evaluating.REPORTS, "derived.json"))
    table = pd.read_csv(run.path("training.csv"))
    assert set(table["checkpoint"]) <= run.ensemble.names


def test_another_run_keeps_what_it_needs_until_it_forgets_too(run):
    other = trained_in(run.directory.parent, name="other")
    (gone,) = in_slice(run, 0, 1)
    held = run.ensemble.names
    out = forget(run, gone)
    written = certificate(run, out.certificates[0])
    assert set(written.held_by_others) == {str(other.directory.resolve())}
    assert written.purged == ()
    assert all(map(run.store.has, held))
    assert [note for note in verified(run).notes if f"belong to another run, {other.directory.resolve()}" in note]
    assert verified(run).findings == ()
    assert all(other.store.get(name).lineage.name == name for name in other.ensemble.names)
    doomed = set(written.held_by_others[str(other.directory.resolve())])
    out = forget(other, gone)
    assert certificate(other, out.certificates[0]).held_by_others == {}
    assert not any(map(run.store.has, doomed))
    assert run.ensemble.checkpoints == other.ensemble.checkpoints
    assert verified(run).notes == ()


def test_a_degraded_ensemble_serves_while_the_rest_is_retrained(run, monkeypatch):
    before, (gone,), seen = run.ensemble, in_slice(run, 1, 1), dict[str, Any]()
    train_missing = unlearning.train_missing

    def watched(*arguments: Any) -> Any:
        seen["pointer"], seen["examples"] = run.pointer, run.examples.example_ids
        seen["left"] = [name for name in before.names if run.store.has(name)]
        seen["holders"] = holders_of(run.directory.parent, [gone])
        return train_missing(*arguments)

    monkeypatch.setattr(unlearning, "train_missing", watched)
    forget(run, gone, settings=IN_STEPS)
    pointer = seen["pointer"]
    assert (pointer.status, run.pointer.status) == (DEGRADED, WHOLE)
    assert {split: set(made) for split, made in pointer.predictions.items()} == {
        "calibration": {"shard-0"},
        "test": {"shard-0"},
    }
    assert pointer.checkpoints["shard-1"] == before.checkpoints["shard-1"][:1]
    assert gone not in seen["examples"]
    assert set(seen["left"]) == pointer.names
    assert seen["holders"] == set()
    assert set(run.ensemble.predictions["test"]) == {"shard-0", "shard-1"}


def test_a_degraded_ensemble_can_be_measured_and_ends_as_any_other(run, original, monkeypatch, tmp_path):
    (gone,) = in_slice(run, 1, 1)

    def fail(*arguments: Any) -> Any:
        raise TrainingError("the power went")

    with monkeypatch.context() as broken:
        broken.setattr(unlearning, "train_missing", fail)
        with pytest.raises(TrainingError, match="the power went"):
            forget(run, gone, settings=IN_STEPS)
    assert (run.pointer.status, states(run)[-1]) == (DEGRADED, "failed")
    report = evaluate_run(run, execution=HERE, on_event=silent)
    assert {name for name in report.evaluation.predictors if "shard-" in name} == {"constituent shard-0"}
    flushed(run)
    straight = copied(original, tmp_path / "straight")
    forget(straight, gone)
    assert served_digests(run) == served_digests(straight)
    assert run.ensemble.predictions == straight.ensemble.predictions
    assert set(run.store.names()) == set(straight.store.names())


@pytest.mark.parametrize("degraded", [False, True])
def test_a_request_that_failed_is_carried_out_by_the_same_command(run, original, monkeypatch, tmp_path, degraded):
    settings, ids = replace(PLAIN, degraded=degraded, membership=True), (*in_slice(run, 0, 0), *held_out(run, "test"))
    train_missing, calls = unlearning.train_missing, list[int]()

    def fail_once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise TrainingError(f"{ids[0]} was too much")
        return train_missing(*arguments)

    monkeypatch.setattr(unlearning, "train_missing", fail_once)
    with pytest.raises(TrainingError, match="was too much"):
        forget(run, *ids, settings=settings)
    (failed,) = ledger_of(run).requests()
    assert failed.state == "failed"
    assert ledger_of(run).history()[-1].detail == {"error": "TrainingError"}
    out = forget(run, *ids, settings=settings)
    assert out.request_ids == (failed.request_id,)
    written = certificate(run, out.certificates[0])
    assert written.num_examples == {"train": 1, "test": 1}
    straight = copied(original, tmp_path / "straight")
    forget(straight, *ids)
    assert served_digests(run) == served_digests(straight)
    ledger_of(run).check()
    assert verified(run, "replay").passed


def test_held_out_examples_are_forgotten_without_training(run):
    before, events = run.ensemble, list[Event]()
    gone = (*held_out(run, "test", 2), *held_out(run, "calibration"))
    out = forget(run, *gone, on_event=events.append)
    assert not [event for event in events if event.kind == "slice_done" and event.values["status"] == "trained"]
    assert run.ensemble.checkpoints == before.checkpoints
    for split in ("test", "calibration"):
        ids = run.examples.split(split)["example_id"].tolist()
        assert not set(gone) & set(ids)
        for name in run.ensemble.predictions[split].values():
            assert run.store.get(name).lineage.examples == tuple(ids)
    written = certificate(run, out.certificates[0])
    assert (written.num_examples, written.constituents) == ({"test": 2, "calibration": 1}, ())


def test_scores_of_rows_that_stay_do_not_change_when_others_go(run):
    before = {name: run.store.get(made) for name, made in run.ensemble.predictions["test"].items()}
    forget(run, *held_out(run, "test", 3))
    for name, made in run.ensemble.predictions["test"].items():
        after = run.store.get(made)
        rows = [before[name].lineage.examples.index(example) for example in after.lineage.examples]
        expected = before[name].tensors["scores"].numpy()[rows]  # batches of other sizes may round otherwise
        np.testing.assert_allclose(after.tensors["scores"].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_an_emptied_shard_leaves_the_vote(run):
    gone = [example for place in range(3) for example in run.partition.slice_ids(0, place)]
    out = forget(run, *gone, settings=replace(PLAIN, evaluate=True))
    assert set(run.ensemble.predictions["test"]) == {"shard-1"}
    assert out.report is not None
    assert {name for name in out.report.evaluation.predictors if "shard-" in name} == {"constituent shard-1"}
    (part,) = certificate(run, out.certificates[0]).constituents
    assert (part.name, part.first_slice, part.new) == ("shard-0", 0, ())
    assert verified(run, "replay").passed


def test_a_class_may_lose_all_its_examples(run):
    frame = run.examples.frame
    gone = frame.loc[(frame["split"] == "train") & (frame["label"] == 1), "example_id"].tolist()
    forget(run, *gone, settings=replace(PLAIN, membership=True))
    assert set(run.examples.split("train")["label"]) == {0}
    assert run.examples.classes == ("unhappy", "happy")
    assert verified(run, "replay").passed


def test_every_training_example_may_go(run):
    gone = run.partition.example_ids
    out = forget(run, *gone, settings=replace(PLAIN, membership=True, evaluate=True))
    assert (out.report, run.partition.example_ids) == (None, ())
    assert run.ensemble.predictions == {"calibration": {}, "test": {}}
    assert holders_of(run.directory.parent, gone[:5]) == set()
    with pytest.raises(RunError, match="has nothing to measure: no test example is left, or no constituent that votes"):
        evaluate_run(run, execution=HERE, on_event=silent)


def test_everything_may_go(run):
    gone = run.examples.example_ids
    out = forget(run, *gone)
    assert holders_of(run.directory.parent, gone[:5]) == set()
    assert (len(run.examples), run.partition.example_ids) == (0, ())
    assert [verified(run, level).passed for level in ("lineage", "disk", "replay")] == [True, True, True]
    assert certificate(run, out.certificates[0]).level == "disk"
    assert states(run)[-1] == "attested"
    assert forget(run, *gone).certificates == ()
    train_again(run)
    assert (len(run.examples), states(run)[-1]) == (0, "attested")


@pytest.mark.parametrize("level", ["lineage", "disk", "replay"])
def test_a_certificate_states_the_level_it_was_checked_at(run, level):
    out = forget(run, *in_slice(run, 0, 2), settings=replace(PLAIN, verify=level))
    assert certificate(run, out.certificates[0]).level == level
    assert ledger_of(run).history()[-1].detail["level"] == level


def test_what_is_found_afterwards_keeps_the_request_open(run, monkeypatch):
    (gone,) = in_slice(run, 0, 2)
    with monkeypatch.context() as forgetful:
        forgetful.setattr(type(run), "prune", lambda self: ())
        with pytest.raises(VerificationError, match=r"2 findings at level disk after unlearning, the first: .*former"):
            forget(run, gone)
    assert states(run)[-1] == "failed"
    assert not run.path("certificates").exists()
    assert len(flushed(run).certificates) == 1
    assert holders_of(run.directory.parent, [gone]) == set()


def test_baselines_that_held_the_examples_go_until_they_are_trained_again(compared, tmp_path):
    run = copied(compared, tmp_path)
    before = run.ensemble.baselines
    forget(run, *in_slice(run, 1, 1))
    assert run.ensemble.baselines == {"baseline-fraction": before["baseline-fraction"]}
    forget(run, *in_slice(run, 0, 2))
    assert run.ensemble.baselines == {}
    train_again(run, WITH_BASELINES)
    assert set(run.ensemble.baselines) == {"baseline-whole", "baseline-fraction"}
    assert not set(before["baseline-whole"]) & set(run.ensemble.baselines["baseline-whole"])
    whole = run.store.example_ids(run.ensemble.baselines["baseline-whole"][-1])
    assert whole == set(run.partition.example_ids)


def test_training_again_does_not_bring_back_what_was_forgotten(run):
    (gone,) = in_slice(run, 0, 1)
    forget(run, gone)
    after, digests = run.ensemble, served_digests(run)
    results = train_again(run, TABULAR)
    assert {result.status for result in results} == {"reused"}
    assert (run.ensemble, served_digests(run)) == (after, digests)
    assert holders_of(run.directory.parent, [gone]) == set()
    assert verified(run).passed


def test_deletions_one_by_one_and_together_end_the_same(run, original, tmp_path):
    ids = (*in_slice(run, 0, 1), *in_slice(run, 1, 2, 2), *held_out(run, "test"))
    for example in ids:
        forget(run, example)
    together = copied(original, tmp_path / "together")
    forget(together, *ids)
    assert served_digests(run) == served_digests(together)
    assert run.ensemble.predictions == together.ensemble.predictions
    assert set(run.store.names()) == set(together.store.names())
    assert run.path("tables", "examples-4.parquet").read_bytes() == together.table("examples").read_bytes()


def test_what_was_trained_is_on_record_to_the_last_presentation(run):
    events = list[Event]()
    out = forget(run, *in_slice(run, 0, 1), *in_slice(run, 1, 2), on_event=events.append)
    written = certificate(run, out.certificates[0])
    table = pd.read_csv(run.path("training.csv")).set_index(["shard", "slice"])
    redone = [("shard-0", 1), ("shard-0", 2), ("shard-1", 2)]
    stages = [run.store.manifest(table.loc[place, "checkpoint"]).lineage.settings["presentations"] for place in redone]
    assert written.presentations_done == written.presentations_planned == sum(stages)
    seconds = sum(float(table.loc[place, "seconds"]) for place in redone)
    assert written.core_seconds == pytest.approx(seconds, rel=1e-6)


def test_the_examples_of_each_request_are_counted_in_its_own_certificate(run):
    first, second = in_slice(run, 0, 1, 2), in_slice(run, 1, 2, 3)
    for ids in (first, second):
        unlearning.queue_request(run, request(*ids), keys=keys_of(run))
    counts = [certificate(run, path).num_examples for path in flushed(run).certificates]
    assert counts == [{"train": 2}, {"train": 3}]


def test_another_command_at_work_leaves_the_request_waiting(run):
    (gone,) = in_slice(run, 0, 1)
    with run.locked(), pytest.raises(RunError, match=r"Another command is at work on .* unlearn flush run=.* later"):
        forget(run, gone)
    assert states(run) == ["received"]
    assert gone in run.examples.example_ids
    assert len(flushed(run).certificates) == 1
    assert gone not in run.examples.example_ids


def test_ledger_and_certificates_tell_no_name(run):
    ids = (*in_slice(run, 0, 1), *held_out(run, "test"))
    forget(run, *ids, reason="asked by mail")
    subjects = run.examples.frame["subject_id"].tolist()
    assert not holders_of(run.path("certificates"), [*ids, *run.examples.example_ids, *subjects])
    told = json.dumps([dict(event.detail) for event in ledger_of(run).history()], default=str)
    assert not [name for name in (*ids, *run.examples.example_ids, *subjects) if name in told]
