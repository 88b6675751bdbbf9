from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fairsisa.cli.catalogue import VERBS
from fairsisa.cli.main import run_command
from fairsisa.runs.directory import Run
from fairsisa.runs.evaluating import evaluate_run
from unlearning_cases import (
    HERE,
    copied,
    forget,
    held_out,
    holders_of,
    in_slice,
    keys_of,
    ledger_of,
    planted,
    silent,
    trained_in,
)

Command = Callable[..., tuple[int, str, str]]
NEW_VERBS = ("plan", "unlearn", "unlearn flush", "add", "ledger", "verify", "doctor", "store gc")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"))


@pytest.fixture
def untouched(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path / "two words")


@pytest.fixture
def run(untouched: Run) -> Run:
    """A run that forgot two examples for one reason, and one that no longer is."""
    forget(untouched, *in_slice(untouched, 1, 2, 2), reason="asked by mail, because of a very long story")
    return untouched


@pytest.fixture
def command(untouched: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(untouched.directory.parent)
    monkeypatch.setenv("COLUMNS", "400")

    def give(*words: str, at: str | None = None) -> tuple[int, str, str]:
        place = [f"run='{at or untouched.directory}'", f"paths.keys='{keys_of(untouched)}'"]
        status = run_command([*words, *place])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return give


@pytest.mark.parametrize("name", NEW_VERBS)
def test_every_new_verb_has_help(capsys, name):
    assert run_command([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert VERBS[name].summary in out
    assert VERBS[name].example in out
    assert ("  run=null\n" if name in ("plan", "store gc") else "  run=???\n") in out
    assert "  paths.keys=null\n" in out


def test_the_ledger_is_shown_without_a_name(command, run):
    (request,) = ledger_of(run).requests()
    status, out, err = command("ledger")
    assert (status, err) == (0, "")
    (row,) = [line for line in out.splitlines() if line.split()[:1] == [request.request_id[:12]]]
    assert row.split()[1:5] == ["attested", "2", "0", "0"]
    assert "asked by mail" in row
    assert f"1 requests; the chain is whole, its head is {ledger_of(run).head.seq}." in out
    names = [*run.examples.example_ids, *run.examples.frame["subject_id"]]
    assert not [name for name in names if name in out]


def test_the_events_of_one_request_are_shown(command, run):
    (request,) = ledger_of(run).requests()
    states = [event.state for event in ledger_of(run).history()]
    status, out, _ = command("ledger", f"id={request.request_id[:6]}", "format=json")
    told = json.loads(out)
    assert (status, [row["state"] for row in told["rows"]]) == (0, states)
    assert told["ledger"] == ledger_of(run).ledger_id
    assert told["head"] == {"seq": ledger_of(run).head.seq, "digest": ledger_of(run).head.digest}
    assert told["rows"][-1]["detail"]["level"] == "disk"
    status, out, _ = command("ledger", f"id={request.request_id}")
    assert (status, f"{len(states)} events; the chain is whole" in out) == (0, True)


def test_the_ledger_as_json_holds_all(command, run):
    forget(run, *held_out(run, "test"))
    status, out, _ = command("ledger", "format=json")
    rows = json.loads(out)["rows"]
    assert (status, [row["state"] for row in rows]) == (0, ["attested", "attested"])
    assert [row["request"] for row in rows] == [request.request_id for request in ledger_of(run).requests()]
    assert rows[0]["reason"] == "asked by mail, because of a very long story"


@pytest.mark.parametrize("verb", ["ledger", "verify"])
def test_a_run_without_a_ledger_is_told(command, untouched, verb):
    status, _, err = command(verb)
    assert (status, err.count("\n")) == (1, 1)
    assert "has no ledger: no request was ever received there" in err
    assert not untouched.path("ledger.sqlite").exists()


@pytest.mark.parametrize(
    ("level", "more"), [("lineage", ""), ("disk", ""), ("replay", "; 1 checkpoints trained again")]
)
def test_a_clean_run_is_said_to_be_clean(command, run, level, more):
    status, out, err = command("verify", f"level={level}")
    assert (status, err) == (0, "")
    assert f"clean at level {level}: nothing made from forgotten examples was found{more}" in out


def test_a_replay_of_all_is_a_choice(command, run):
    status, out, _ = command("verify", "level=replay", "scope=all")
    assert (status, "6 checkpoints trained again, all bit for bit equal" in out) == (0, True)


def test_what_is_found_is_told_and_fails(command, run):
    run.path("report.html.partial").write_text("half")
    run.path("mine.txt").write_text("mine")
    status, out, err = command("verify")
    assert status == 1
    assert "mine.txt was not made by fairsisa and was not looked into." in out
    assert "found: The run holds a file of unfinished work, report.html.partial." in err
    assert "is not clean: 1 findings." in err
    assert command("verify", "level=lineage")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "level=al"), "Expected level to be one of lineage, disk, replay"),
        (("verify", "level=replay", "scope=al"), "Did you mean 'all'?"),
        (("ledger", "format=xml"), "Expected format to be one of table, json"),
        (("verify", "levl=disk"), "Did you mean 'level'?"),
        (("doctor", "level=disk"), "Unknown setting 'level'"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(command, run, words, said):
    status, _, err = command(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert said in err


def test_an_unknown_request_is_told(command, run):
    status, _, err = command("ledger", "id=ffffffff")
    assert (status, err.count("\n")) == (1, 1)


def test_a_request_may_be_named_by_digits_alone(command, run):
    for digits in ("123456", "1e5000"):
        status, _, err = command("ledger", f"id={digits}")
        assert (status, digits in err) == (1, True)


def test_a_certificate_is_verified_or_refused(command, run, tmp_path):
    (path,) = run.path("certificates").glob("*.json")
    status, out, err = command("verify", f"certificate='{path}'")
    assert (status, err) == (0, "")
    assert f"The certificate of request {path.stem[:12]} is signed by this ledger's key" in out
    assert "2 examples deleted, verified at level disk." in out
    copy = tmp_path / "changed.json"
    copy.write_text(path.read_text().replace("asked by mail", "asked by nail"))
    status, _, err = command("verify", f"certificate='{copy}'")
    assert (status, "signature does not match what it says" in err) == (1, True)
    status, _, err = command("verify", "certificate=nowhere.json")
    assert (status, "Cannot read the certificate nowhere.json" in err) == (1, True)
    other = copied(run, tmp_path / "other")
    other.path("ledger.sqlite").unlink()
    forget(other, *in_slice(other, 0, 0))
    status = run_command(
        ["verify", f"run='{other.directory}'", f"paths.keys='{keys_of(other)}'", f"certificate='{path}'"]
    )
    assert status == 1


def test_the_doctor_finds_a_healthy_run_well(command, run):
    evaluate_run(run, execution=HERE, on_event=silent)
    status, out, err = command("doctor")
    assert (status, err, out.strip()) == (0, "", f"{run.directory} is well.")


def test_the_doctor_tells_what_is_wrong_and_what_helps(command, run):
    run.store.unclaim(run.directory)
    planted(run.store, run.ensemble.checkpoints["shard-0"][:1])
    status, out, err = command("doctor")
    assert status == 1
    assert "problem" in out
    assert "no claim on its artefacts" in out
    assert "run the same train command again" in out
    assert err == f"fairsisa: {run.directory} has 1 problem.\n"


def test_the_doctor_says_that_nobody_asked(command, untouched):
    status, out, _ = command("doctor")
    assert (status, "note" in out, "No request was ever received." in out) == (0, True, True)


def test_the_doctor_needs_a_run(command):
    status, _, err = command("doctor", at="nowhere")
    assert (status, "nowhere holds no run" in err) == (1, True)
    assert not Path("nowhere").exists()


def test_store_gc_applies_a_policy_and_frees_what_no_run_needs(capsys, monkeypatch, run):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(run.directory.parent)
    stray = planted(run.store, run.ensemble.checkpoints["shard-0"][:1])
    words = ["store", "gc", f"run='{run.directory}'", "store.retention=last"]
    assert run_command([*words, "dry_run=true"]) == 0
    assert "would free 1 artefacts that no run needs" in capsys.readouterr().out
    assert run.store.has(stray)
    assert run.storage.retention == "all"
    assert run_command(words) == 0
    out = capsys.readouterr().out
    assert "dropped the weights of 4 checkpoints" in out
    assert "freed 1 artefacts that no run needs" in out
    assert (run.store.has(stray), run.storage.retention) == (False, "last")
    assert run_command(["store", "gc", f"run='{run.directory}'", "store.retention=optimal", "store.max_bytes=1"]) in (
        1,
        2,
    )
    assert "the smallest valid value is" in capsys.readouterr().err
    assert run_command(["store", "gc", f"run='{run.directory}'", "store.retention=optimal", "store.max_bytes=2e9"]) == 0
    assert run_command(["store", "ls", f"run='{run.directory}'"]) == 0
    assert "dropped" in capsys.readouterr().out


def test_a_policy_that_cannot_hold_is_not_kept(capsys, run):
    before = run.storage
    assert run_command(["store", "gc", f"run='{run.directory}'", "store.max_bytes=1"]) == 2
    assert "the smallest valid value is" in capsys.readouterr().err
    assert run.storage == before


@pytest.mark.parametrize("words", [("without_claims=no",), ("dry_run=maybe",)])
def test_what_is_neither_true_nor_false_deletes_nothing(capsys, run, words):
    run.store.unclaim(run.directory)
    names = set(run.store.names())
    status = run_command(["store", "gc", f"paths.store='{run.store.root}'", *words])
    assert set(run.store.names()) == names
    assert (status, words[0].partition("=")[0] in capsys.readouterr().err) == (2, True)


def test_json_is_not_decorated(command, run):
    forget(run, *in_slice(run, 0, 0), reason="[bold]:x: [/]")
    _, out, _ = command("ledger", "format=json")
    assert json.loads(out)["rows"][1]["reason"] == "[bold]:x: [/]"


def test_what_was_forgotten_is_shown_nowhere(command, run):
    gone = in_slice(run, 0, 0)
    forget(run, *gone)
    shown = "".join("".join(command(*verb.split())[1:]) for verb in ("ledger", "verify", "doctor"))
    assert gone[0] not in shown
    assert holders_of(run.directory, gone) == set()
