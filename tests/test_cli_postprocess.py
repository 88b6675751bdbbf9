from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from fairsisa.cli.composing import compose
from fairsisa.cli.fairness import frontier_settings, postprocess_settings
from fairsisa.cli.main import run_command
from fairsisa.runs.directory import Run
from fairsisa.runs.fitting import load_fitted
from fairsisa.settings import FrontierSettings, PostprocessSettings
from unlearning_cases import WITH_BASELINES, copied, in_slice, keys_of, trained_in

Command = Callable[..., tuple[int, str, str]]
FAIR = replace(
    WITH_BASELINES, data={"name": "synthetic_tabular", "options": {"num_examples": 400, "repeat_share": 0.3}}
)
RULE = ("strategy=ensemble_vote_count", "sensitive_feature=region", "small_cells=ignore", "tolerance=0.1")
NAME = "region.equalized_odds.ensemble_vote_count"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"), FAIR)


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path / "two words")


@pytest.fixture
def command(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(run.directory.parent)
    monkeypatch.setenv("COLUMNS", "300")

    def give(*words: str, at: str | None = None) -> tuple[int, str, str]:
        status = run_command([*words, f"run='{at or run.directory}'"])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return give


def settings_of(*words: str) -> PostprocessSettings:
    return postprocess_settings(compose("postprocess", ["run=x", *words]))


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ((), {}),
        (("criterion=demographic_parity",), {"criterion": ("demographic_parity",)}),
        (
            ("criterion=[equalized_odds,demographic_parity]", "tolerance=[0.1,0]"),
            {"criterion": ("equalized_odds", "demographic_parity"), "tolerance": (0.1, 0.0)},
        ),
        (("sensitive_feature=sex", "tolerance=1"), {"sensitive_feature": ("sex",), "tolerance": (1.0,)}),
        (("sensitive_feature=[sex,race]",), {"sensitive_feature": ("sex", "race")}),
        (("sensitive_feature=null",), {}),
    ],
)
def test_one_value_or_a_list_will_do(words, changes):
    assert settings_of(*words) == replace(PostprocessSettings(), **changes)


def test_the_frontiers_settings_are_those_of_the_library():
    assert frontier_settings(compose("frontier", ["run=x"])) == FrontierSettings()
    assert FrontierSettings().tolerances == tuple(pytest.approx(0.015 * step) for step in range(21))
    given = frontier_settings(compose("frontier", ["run=x", "tolerances=0.1", "strategies=auto"]))
    assert (given.tolerances, given.strategies) == ((0.1,), ("auto",))


def test_a_run_is_made_fair_and_stays_so_through_a_deletion(command, run):
    status, out, err = command("postprocess", *RULE)
    assert (status, err) == (0, "")
    assert f"post-processor: {NAME}" in out
    assert f"page: {run.path(f'postprocess-{NAME}.html')}" in out
    assert "Accuracy" in out
    metrics = pd.read_csv(run.path("logs", "postprocess", NAME, "logs", "metrics.csv"))
    assert f"test/fair {NAME}/accuracy" in metrics.columns
    first = run.ensemble.postprocessors[NAME]["artefact"]
    ids = in_slice(run, 1, 2)
    quietly = ("unlearning.evaluate=false", "unlearning.membership=false", f"paths.keys='{keys_of(run)}'")
    status, out, err = command("unlearn", f"request.ids=[{','.join(ids)}]", *quietly)
    assert (status, err) == (0, "")
    assert f"post-processor {NAME} is fitted on the votes that are served" in out
    assert run.ensemble.postprocessors[NAME]["artefact"] != first
    load_fitted(run, NAME)
    assert command("evaluate")[0] == 0
    assert "is well" in command("doctor", quietly[-1])[1]
    status, out, err = command("postprocess", *RULE)
    assert (status, err) == (0, "")


def test_a_withdrawn_one_is_said_on_the_terminal(command, run):
    assert command("postprocess", *RULE)[0] == 0
    rows = run.examples.split("calibration")
    ids = rows.loc[rows["sensitive:region"] == rows["sensitive:region"].iloc[0], "example_id"]
    quietly = ("unlearning.evaluate=false", "unlearning.membership=false", f"paths.keys='{keys_of(run)}'")
    status, out, err = command("unlearn", f"request.ids=[{','.join(ids)}]", *quietly)
    assert (status, err) == (0, "")
    assert f"post-processor {NAME} is out of service, the calibration examples that are left do not allow it" in out
    status, out, _ = command("doctor", quietly[-1])
    assert (status, "is out of service, the calibration" in out) == (1, True)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("strategy=outo",), 2, "Expected strategy to be one of"),
        (("strategy=outo",), 2, "Did you mean 'auto'?"),
        (("criterion=equal_odds",), 2, "Did you mean 'equalized_odds'?"),
        (("sensitive_feature=regio",), 2, "Did you mean 'region'? It has region."),
        (
            ("sensitive_feature=null",),
            2,
            "Set sensitive_feature=..., or several as [...]: synthetic_tabular has region.",
        ),
        (("tolerence=0.1",), 2, "Unknown setting 'tolerence'. Did you mean 'tolerance'?"),
        (("tolerance=a lot",), 2, "Expected tolerance to be a number, got 'a lot'."),
        (("tolerance=-1",), 2, "Expected tolerance to be at least 0.0, got -1.0; the nearest valid value is 0.0."),
        (("name=a/b",), 2, "Expected name to be letters, digits"),
        (("min_cell_count=100000", "small_cells=error"), 1, "min_cell_count=100000"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(command, run, words, status, said):
    found, _, err = command("postprocess", "strategy=aggregate_first", "sensitive_feature=region", *words)
    assert (found, err.count("\n")) == (status, 1)
    assert said in err
    assert run.pointer.postprocessors == {}


def test_a_frontier_is_drawn(command, run):
    words = ("strategies=[aggregate_first,ensemble_vote_count]", "tolerances=[0,0.1]", "small_cells=ignore")
    status, out, err = command("frontier", "sensitive_feature=region", *words)
    assert (status, err) == (0, "")
    assert f"page: {run.path('frontier.html')}" in out
    table = pd.read_csv(run.path("frontier.csv"))
    assert {"aggregate_first", "ensemble_vote_count", "baseline whole", "majority_vote"} <= set(table["strategy"])
    assert "tolerances=[0.0,0.1]" in run.path("frontier.html").read_text()
    assert command("frontier", "sensitive_feature=region", "strategies=nothing")[0] == 2
    assert command("frontier", "sensitive_feature=region", "tolerances=[0.2,0.1]")[0] == 2


def test_a_run_that_is_not_there_is_told(command):
    for verb in ("postprocess", "frontier"):
        status, _, err = command(verb, "sensitive_feature=region", at="nowhere")
        assert (status, err.count("\n")) == (1, 1)
        assert "nowhere has no ensemble.json: train it first" in err
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("verb", ["postprocess", "frontier"])
def test_help_lists_every_setting_with_its_default(verb, capsys):
    assert run_command([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert "sensitive_feature=[]" in out
    assert "criterion=['equalized_odds']" in out
    assert "run=???" in out


def test_a_post_processor_is_taken_out_with_all_that_speaks_of_it(run, command):
    assert command("postprocess", *RULE)[0] == 0
    made = run.ensemble.postprocessors[NAME]["artefact"]
    status, _, error = command("postprocess", "remove=true", "name=region.equalized_odds.auto")
    assert (status, run.ensemble.postprocessors.keys()) == (2, {NAME})
    assert f"Did you mean '{NAME}'" in error or NAME in error
    status, said, _ = command("postprocess", "remove=true", f"name={NAME}")
    assert status == 0
    assert f"{NAME} is out of" in said
    assert not run.ensemble.postprocessors
    assert not run.store.has(made)
    assert not list(run.directory.glob("*" + NAME + "*"))
    assert command("evaluate")[0] == 0
    assert command("doctor")[0] == 0


def test_the_run_report_tells_what_each_post_processor_did(run, command):
    _, said, _ = command("postprocess", *RULE)
    page, text = (run.path(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    found = said.splitlines()[1].split(" (change")[0]
    assert found.startswith("On ")
    for shown in (page, text.replace("\\", "")):
        assert f"postprocess-{NAME}.html" in shown
        assert found in shown
    assert 'href="#repairs"' in page
    assert command("postprocess", "remove=true", f"name={NAME}")[0] == 0
    assert command("evaluate")[0] == 0
    assert "repairs" not in run.path("report.html").read_text(encoding="utf-8")
