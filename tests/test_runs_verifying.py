from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fairsisa.errors import ConfigError, LedgerError, RunError, VerificationError
from fairsisa.models import device
from fairsisa.runs import making
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import evaluate_run
from fairsisa.runs.verifying import affected_slices
from fairsisa.sisa import training
from fairsisa.sisa.certificate import decode
from fairsisa.sisa.keys import open_key
from fairsisa.sisa.ledger import Head, Ledger
from fairsisa.store.manifest import encode
from fairsisa.store.payload import to_bytes
from fairsisa.tables import Examples, write_examples
from unlearning_cases import (
    HERE,
    WITH_BASELINES,
    copied,
    forget,
    in_slice,
    keys_of,
    ledger_of,
    planted,
    silent,
    train_again,
    trained_in,
    verified,
    vouched,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("whole"), WITH_BASELINES)


@pytest.fixture(scope="module")
def forgot(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str, Examples]:
    """A run that forgot one example; that example, and the table before."""
    run = copied(whole, tmp_path_factory.mktemp("forgot"))
    (gone,), before = in_slice(run, 1, 1), run.examples
    forget(run, gone)
    evaluate_run(run, execution=HERE, on_event=silent)
    return run, gone, before


@pytest.fixture
def case(forgot: tuple[Run, str, Examples], tmp_path: Path) -> tuple[Run, str, Examples]:
    source, gone, before = forgot
    run = copied(source, tmp_path)
    (tmp_path / "keys").mkdir()
    for key in keys_of(source).iterdir():
        (tmp_path / "keys" / key.name).write_bytes(key.read_bytes())
        (tmp_path / "keys" / key.name).chmod(0o600)
    (tmp_path / "keys").chmod(0o700)
    return run, gone, before


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def payload(run: Run, name: str) -> Path:
    (found,) = run.store.root.rglob(f"{name}.safetensors")
    return found


def test_a_run_that_forgot_is_clean_at_every_level(case):
    run, _, _ = case
    for level, compared in (("lineage", 0), ("disk", 0), ("replay", 2)):
        found = verified(run, level)
        assert (found.level, found.findings, found.num_compared, found.passed) == (level, (), compared, True)
    assert affected_slices(ledger_of(run)) == {"shard-1": 1}


def test_a_replay_of_all_trains_every_chain_from_scratch(case):
    run, _, _ = case
    before = {path: path.read_bytes() for path in run.store.root.rglob("*.safetensors")}
    found = verified(run, "replay", "all")
    assert (found.findings, found.num_not_comparable) == ((), 0)
    assert found.num_compared == sum(len(steps) for steps in run.ensemble.chains.values())
    assert {path: path.read_bytes() for path in run.store.root.rglob("*.safetensors")} == before


def put_back_row(run: Run, gone: str, before: Examples) -> None:
    write_examples(before, run.table("examples"))
    vouched(run)


def put_back_place(run: Run, gone: str, before: Examples) -> None:
    partition = pd.read_parquet(run.table("partition"))
    partition.loc[0, "example_id"] = gone
    header = pq.read_schema(run.table("partition")).metadata
    pq.write_table(pa.Table.from_pandas(partition).replace_schema_metadata(header), run.table("partition"))
    vouched(run)


def put_back_artefact(run: Run, gone: str, before: Examples) -> None:
    planted(run.store, [], examples=(gone,))


def put_back_child(run: Run, gone: str, before: Examples) -> None:
    parent = planted(run.store, [], kind="checkpoint", examples=(gone,))
    planted(run.store, [parent])


def leave_partial(run: Run, gone: str, before: Examples) -> None:
    run.path("report.html.partial").write_text("half")


def leave_partial_in_store(run: Run, gone: str, before: Examples) -> None:
    name = run.ensemble.checkpoints["shard-0"][0]
    payload(run, name).with_name(f"{name}.safetensors.1.partial").write_bytes(b"half")


def leave_orphan_in_store(run: Run, gone: str, before: Examples) -> None:
    place = run.store.root / "objects" / "ab"
    place.mkdir(exist_ok=True)
    (place / f"{'ab' * 32}.safetensors").write_bytes(b"weights without a manifest")


def leave_old_table(run: Run, gone: str, before: Examples) -> None:
    write_examples(before, run.table("examples", 0))


def leave_jobs(run: Run, gone: str, before: Examples) -> None:
    run.path("jobs").mkdir()


def change_report(run: Run, gone: str, before: Examples) -> None:
    run.path("report.md").write_text("All is well.")


def lose_report(run: Run, gone: str, before: Examples) -> None:
    run.path("metrics.json").unlink()


def change_training_table(run: Run, gone: str, before: Examples) -> None:
    table = pd.read_csv(run.path("training.csv"))
    table.loc[0, "checkpoint"] = "ab" * 32
    table.to_csv(run.path("training.csv"), index=False)


def flip_a_bit(run: Run, gone: str, before: Examples) -> None:
    flip(payload(run, run.ensemble.checkpoints["shard-0"][0]))


def change_ledger(run: Run, gone: str, before: Examples) -> None:
    with sqlite3.connect(run.path("ledger.sqlite")) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE events SET time = '2020-01-01T00:00:00.000000+00:00' WHERE seq = 1")
    connection.close()


DEFECTS: list[tuple[Callable[[Run, str, Examples], None], str, str]] = [
    (put_back_row, "lineage", r"The table examples-1\.parquet holds 1 examples that were forgotten"),
    (put_back_place, "lineage", r"The table partition-1\.parquet holds 1 examples that were forgotten"),
    (put_back_artefact, "lineage", "The store holds 1 student made from forgotten examples"),
    (put_back_child, "lineage", "The store holds 1 checkpoint, 1 student made from forgotten examples"),
    (change_ledger, "lineage", "The ledger is damaged: "),
    (leave_partial, "disk", r"The run holds a file of unfinished work, report\.html\.partial"),
    (leave_partial_in_store, "disk", r"The store holds a file of unfinished work, .*\.partial"),
    (leave_orphan_in_store, "disk", "The store holds a file of unfinished work, .*abab"),
    (leave_old_table, "disk", r"table of a former generation, examples-0\.parquet"),
    (leave_jobs, "disk", "jobs of an interrupted command"),
    (change_report, "disk", "Reports are not those of the ensemble that is served"),
    (lose_report, "disk", "Reports are not those of the ensemble that is served"),
    (change_training_table, "disk", r"training\.csv tells of 1 checkpoints that are not served"),
    (flip_a_bit, "disk", "What the run serves is damaged: "),
]


@pytest.mark.parametrize(("plant", "level", "said"), DEFECTS, ids=[plant.__name__ for plant, _, _ in DEFECTS])
def test_every_planted_defect_is_found(case, plant, level, said):
    run, gone, before = case
    plant(run, gone, before)
    found = verified(run, level)
    assert not found.passed
    assert pd.Series(found.findings).str.contains(said).sum() == 1, found.findings
    assert not any(gone in finding for finding in found.findings)
    if level == "disk":
        assert verified(run, "lineage").passed


@pytest.mark.parametrize("level", ["lineage", "disk", "replay"])
@pytest.mark.parametrize(("plant", "name"), [(put_back_row, "examples"), (put_back_place, "partition")])
def test_a_table_that_the_pointer_does_not_vouch_for_is_refused(case, plant, name, level):
    run, gone, before = case
    pointer = run.path("ensemble.json").read_bytes()
    plant(run, gone, before)
    run.path("ensemble.json").write_bytes(pointer)
    said = rf"{name}-1\.parquet is damaged \(its SHA-256 is not the one in ensemble\.json\): restore it from a backup"
    with pytest.raises(RunError, match=said) as refused:
        verified(run, level)
    assert gone not in str(refused.value)


def test_weights_that_were_changed_with_their_manifest_are_found_by_a_replay(case):
    run, _, _ = case
    name = run.ensemble.checkpoints["shard-1"][2]
    artefact, manifest = run.store.get(name), run.store.manifest(name)
    forged = {key: tensor + 1e-3 if tensor.is_floating_point() else tensor for key, tensor in artefact.tensors.items()}
    path = payload(run, name)
    content = to_bytes(forged)
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    path.with_suffix(".json").write_bytes(encode(replace(manifest, sha256=digest, num_bytes=len(content))))
    assert verified(run, "disk").passed
    found = verified(run, "replay")
    assert [finding for finding in found.findings if finding.startswith("shard-1, slice 2: training again gives")]
    assert len(found.findings) == 1


def test_what_another_machine_made_is_not_comparable_and_never_equal(case, monkeypatch):
    run, _, _ = case
    here = device.numeric_environment("cpu", "fp32", 1)
    monkeypatch.setattr(training, "numeric_environment", lambda *arguments: here | {"torch": "0.0"})
    found = verified(run, "replay")
    assert (found.passed, found.num_compared, found.num_not_comparable) == (True, 0, 2)
    assert "2 checkpoints come from another numeric environment: not comparable here." in found.notes


def test_a_replay_runs_where_tasks_are_told_to_run(case, monkeypatch):
    run, _, _ = case
    tasks = list[str]()
    run_tasks = making.run_tasks

    def counted(function, given, **options):
        tasks.extend(task.chain.constituent for task in given if function.__name__ == "train_shard")
        return run_tasks(function, given, **options)

    monkeypatch.setattr(making, "run_tasks", counted)
    verified(run, "replay")
    assert tasks == ["shard-1"]


def test_files_of_others_are_noted_and_left_alone(case):
    run, _, _ = case
    run.path("notes").mkdir()
    run.path("notes", "mine.txt").write_text("mine")
    found = verified(run)
    assert found.passed
    assert found.notes == ("notes/mine.txt was not made by fairsisa and was not looked into.",)


def test_requests_that_wait_are_not_looked_for(case):
    run, _, _ = case
    ledger_of(run).receive(in_slice(run, 0, 0))
    assert verified(run, "disk").findings == ()


@pytest.mark.parametrize(("level", "scope"), [("disc", "all"), ("disk", "al")])
def test_an_unknown_level_or_scope_is_refused(case, level, scope):
    with pytest.raises(ConfigError, match=r"Expected (level|scope) to be one of .* Did you mean '(disk|all)'"):
        verified(case[0], level, scope)


def test_training_again_makes_reports_stale_and_the_evaluation_cures_it(case):
    run, _, _ = case
    train_again(run, WITH_BASELINES)
    assert [finding for finding in verified(run).findings if "Reports are not those of the ensemble" in finding]
    evaluate_run(run, execution=HERE, on_event=silent)
    assert verified(run).passed


def test_a_certificate_is_evidence_only_as_it_was_written(case, tmp_path):
    run, _, _ = case
    (path,) = run.path("certificates").glob("*.json")
    text, ledger = path.read_bytes(), ledger_of(run)
    certificate = decode(text, ledger.key)
    assert certificate.num_deleted == 1
    ledger.check([Head(certificate.ledger_seq, certificate.ledger_digest)])
    changed = json.loads(text)
    changed["num_examples"] = {"train": 2}
    tampered = json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises(VerificationError, match=r"signature does not match what it says|as it was written"):
        decode(tampered, ledger.key)
    for place in range(0, len(text), 97):
        flipped = bytearray(text)
        flipped[place] ^= 1
        with pytest.raises(VerificationError, match=r"\S"):
            decode(bytes(flipped), ledger.key)
    with pytest.raises(VerificationError, match="Another key signed the certificate"):
        decode(text, open_key(tmp_path / "others", "cd" * 16, create=True))


def test_a_ledger_cut_short_no_longer_holds_what_a_certificate_quotes(case):
    run, _, _ = case
    (path,) = run.path("certificates").glob("*.json")
    certificate = decode(path.read_bytes(), ledger_of(run).key)
    run.path("ledger.sqlite").unlink()
    blank = Ledger.begin(run.path("ledger.sqlite"), keys_of(run))
    with pytest.raises(LedgerError, match=r"\S"):
        blank.check([Head(certificate.ledger_seq, certificate.ledger_digest)])


def test_damaged_notes_on_the_reports_are_a_finding(case):
    run, _, _ = case
    run.path("derived.json").write_text("{")
    assert not verified(run).passed
