from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fairsisa.cli.composing import compose
from fairsisa.cli.main import run_command
from fairsisa.cli.planning import MOST_SHOWN, batch_rows, candidate_rows
from fairsisa.runs.directory import Run
from fairsisa.settings import SimulationSettings, plain, settings_from
from fairsisa.sisa.advice import Needs, advise
from unlearning_cases import TABULAR, trained_in, tree_of

Command = Callable[..., tuple[int, str, str]]
NEEDS = (
    "simulate.requests_per_day=3",
    "simulate.num_examples=2000",
    "simulate.bytes_per_checkpoint=1000",
    "simulate.examples_per_second=50",
)
FEW = ("simulate.shards=[5]", "simulate.slices=[1,4]", "simulate.windows=[1,200]", "simulate.num_trials=20")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("run"), TABULAR)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def give(*words: str) -> tuple[int, str, str]:
        status = run_command(["plan", *words])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return give


def table(num_shards: tuple[int, ...], max_delay_days: float) -> pd.DataFrame:
    needs = Needs(4_000, 3.0, 50.0, 1_000, max_delay_days)
    return advise(needs, shards=num_shards, slices=(1, 2, 4), windows=(1, 8)).table


@pytest.mark.parametrize("name", ["uniform", "group_skewed", "risk_weighted"])
def test_a_simulation_prints_its_advice_and_writes_one_page(command, tmp_path, name):
    status, out, err = command(f"simulate={name}", *NEEDS, *FEW)
    assert (status, err) == (0, "")
    assert out.startswith("Recommended: 5 shards, ")
    assert out.count("Accuracy is not considered") == 1
    assert "needs 66.3" in out
    assert f"{name.replace('_', '-')} requests" in out
    rows = [line.split() for line in out.splitlines() if re.match(r" +(1|2|5|10|50|100) +[\d,]+ ", line)]
    assert [row[0] for row in rows[-6:]] == ["1", "2", "5", "10", "50", "100"]
    assert all(row.count("±") == 2 for row in rows[-6:])
    page = Path(re.search(r"page: (.*)", out)[1])
    assert page.parent.parent == Path("runs/plans")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["plan.html", "plan.json"]


def test_json_is_all_that_is_printed(command):
    status, out, err = command(
        "simulate=uniform", *NEEDS, *FEW, "simulate.max_bytes=2000", "format=json", "paths.root=x"
    )
    found = json.loads(out)
    assert (status, err, found["recommended"]) == (0, "", [])
    assert found["shortfalls"][0].startswith("simulate.max_bytes binds: every candidate needs at least 5,000 bytes")
    kept = json.loads(Path(found["page"]).with_name("plan.json").read_text())
    assert {key: value for key, value in found.items() if key not in ("shortfalls", "page")} == kept
    assert Path(found["page"]).parts[:2] == ("x", "plans")


def test_nothing_feasible_is_told_with_what_binds(command):
    status, out, _ = command("simulate=uniform", *NEEDS, *FEW, "simulate.max_bytes=2000")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "None of 4 candidates meets the limits."
    assert lines[1].startswith("simulate.max_bytes binds: ")
    assert lines[2].startswith("The nearest, 5 shards, ")
    assert "3,000 bytes of checkpoints too much" in lines[2]


def test_checkpoints_that_do_not_fit_are_told(command):
    words = ("simulate=uniform", *NEEDS, *FEW, "simulate.slices=[4]")
    assert "6 of 20 checkpoints kept in trials, all in closed form:" in command(*words, "simulate.max_bytes=6000")[1]
    assert "kept in trials" not in command(*words)[1]


def test_a_run_tells_what_was_measured_and_stays_as_it_is(command, run):
    before = tree_of(run.directory.parent)
    words = (f"run={run.directory}", "simulate=group_skewed", "simulate.requests_per_day=1", *FEW)
    status, out, err = command(*words, "simulate.windows=[1]")
    assert (status, err) == (0, "")
    count = len(run.partition.example_ids)
    assert f"Measured in {run.directory}: num_examples={count}, bytes_per_checkpoint=" in out
    assert tree_of(run.directory.parent) == before
    status, _, err = command(f"run={run.directory}", "simulate=risk_weighted", "simulate.requests_per_day=1")
    assert (status, "have no column 'risk'" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Set run=..., the run to plan a deletion from, or simulate=uniform, group_skewed or risk_weighted"),
        (("request.ids=[a]",), "Set run=..., the run to plan a deletion from"),
        (("simulate=uniform",), "Set simulate.requests_per_day=..., simulate.num_examples=..."),
        (("simulate=uniform", *NEEDS, "request.ids=[a]"), "leave one of them out"),
        (("simulate=unifrm",), "Unknown simulate 'unifrm'. Did you mean 'uniform'?"),
        (NEEDS, "simulate.requests_per_day acts on what simulate=... chooses: give simulate=group_skewed or "),
        (("simulate=uniform", *NEEDS, "simulate.max_byte=1"), "Did you mean 'simulate.max_bytes'?"),
        (("simulate=uniform", *NEEDS, "simulate.num_examples=1"), "the nearest valid value is 2."),
        (("simulate=uniform", *NEEDS, "simulate.strategy=risk_aware"), "deals by risk, and with"),
        (("simulate=uniform", *NEEDS, "simulate.shards=[]"), "Expected simulate.shards to name at least one candidate"),
        (("simulate=uniform", *NEEDS, "format=xml"), "Expected format to be one of table, json"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(command, tmp_path, words, said):
    status, out, err = command(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not list(tmp_path.iterdir())


def test_without_a_choice_there_is_no_simulation():
    assert compose("plan", ["run=x"])["simulate"] is None
    for name in ("uniform", "group_skewed", "risk_weighted"):
        found = settings_from(SimulationSettings, compose("plan", [f"simulate={name}"])["simulate"], "simulate")
        assert plain(found) == {**plain(SimulationSettings()), "distribution": name}


def test_help_lists_what_a_simulation_takes(command):
    out = command("--help")[1]
    assert "simulate=group_skewed | risk_weighted | uniform" in out
    for key, value in plain(SimulationSettings()).items():
        assert f"  simulate.{key}={'null' if value is None else value}\n" in out


def test_at_most_twelve_candidates_are_shown_the_feasible_first():
    shown = candidate_rows(table((1, 2, 5, 10, 20), max_delay_days=2.0))
    reasons = [row["outside the limits"] for row in shown]
    assert len(shown) == MOST_SHOWN == 12
    assert [bool(reason) for reason in reasons] == [False] * 8 + [True] * 4
    assert "days of delay, at most 2 allowed" in reasons[-1]
    assert [bool(row["outside the limits"]) for row in candidate_rows(table((1, 2, 5, 10, 20), 30.0))] == [False] * 12
    few = candidate_rows(table((1,), max_delay_days=2.0))
    assert [bool(row["outside the limits"]) for row in few] == [False] * 3 + [True] * 3
    none = candidate_rows(table((1, 2, 5), max_delay_days=1e-9))
    assert [bool(row["outside the limits"]) for row in none] == [True] * 12


def test_batches_are_printed_with_their_standard_errors():
    numbers = {"num_requests": 1000, "sequential": 4e6, "batch": 3e6, "slicing": 2e6, "combined": 1e6}
    trials = {"simulated_cost": 1.5e6, "simulated_error": 1234.4, "mean": 2.345, "standard_error": 0.014}
    (row,) = batch_rows(pd.DataFrame([{**numbers, **trials}]))
    assert row == {
        "requests": "1,000",
        "sequential": "4,000,000",
        "batch": "3,000,000",
        "slicing": "2,000,000",
        "combined": "1,000,000",
        "Monte Carlo ± s.e.": "1,500,000 ± 1,234",
        "speed-up ± s.e.": "2.35 ± 0.01",
    }
