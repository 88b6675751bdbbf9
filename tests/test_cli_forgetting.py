from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fairsisa.cli.composing import compose
from fairsisa.cli.main import run_command
from fairsisa.cli.reading import request_of
from fairsisa.data.synthetic_samples import load_synthetic_tabular
from fairsisa.runs.directory import Run
from fairsisa.runs.planning import plan_deletion
from fairsisa.settings import plain
from unlearning_cases import (
    PLAIN,
    TABULAR,
    WITH_BASELINES,
    copied,
    forget,
    held_out,
    in_slice,
    keys_of,
    ledger_of,
    trained_in,
    tree_of,
)

Command = Callable[..., tuple[int, str, str]]
QUIETLY = ("unlearning.evaluate=false", "unlearning.membership=false")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"), WITH_BASELINES)


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    return copied(original, tmp_path / "two words")


@pytest.fixture
def command(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Give a command for the run, as a shell would hand it over."""
    monkeypatch.chdir(run.directory.parent)
    monkeypatch.setenv("COLUMNS", "300")

    def give(*words: str, at: str | None = None) -> tuple[int, str, str]:
        run_words = [f"run='{at or run.directory}'", f"paths.keys='{keys_of(run)}'"]
        status = run_command([*words, *run_words])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return give


def listed(ids: tuple[str, ...]) -> str:
    return f"request.ids=[{','.join(ids)}]"


def reason_of(word: str) -> str:
    return str(compose("unlearn", ["run=x", word])["request"]["reason"])


@pytest.mark.parametrize(
    "reason",
    [
        "asked by mail",
        "she said: \"forget me\", and 'him' too",
        '"quoted" in part, "twice"',
        "ends in a backslash \\",
        'a \\" b \\\\" c',
        "a=b, [c], {d: e}, (f)",
        "costs ${5}",
        "$HOME ${oc.env:HOME}",
        "schön, 日本, 🙂",
        "two\nlines",
        "",
        "~null + {",
        "%s %(x)s",
        "# no comment",
    ],
)
@pytest.mark.parametrize("key", ["request.reason", "request.where"])
def test_a_persons_own_words_arrive_as_they_were_written(key, reason):
    found = compose("unlearn", ["run=x", f"{key}={reason}"])["request"][key.partition(".")[2]]
    assert found == reason


def test_words_that_are_quoted_for_hydra_lose_its_quotes():
    assert reason_of('request.reason="asked by mail"') == "asked by mail"


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("[17,b4]", ("17", "b4")),
        ("[007]", ("007",)),
        ("['17','1.50']", ("17", "1.50")),
        ("[007,'b 4']", ("007", "b 4")),
        ("[-3]", ("-3",)),
        ("[]", ()),
        ("[a-1, b_2]", ("a-1", "b_2")),
        ("[1_000]", ("1_000",)),
        ("[1e5,0x1f,.5]", ("1e5", "0x1f", ".5")),
        ("[1.50,inf,nan]", ("1.50", "inf", "nan")),
        ("[true,No,null,~]", ("true", "No", "null", "~")),
        ("[a=b,c:d,{e},(f)]", ("a=b", "c:d", "{e}", "(f)")),
        ("[${HOME},10%,#1,schön]", ("${HOME}", "10%", "#1", "schön")),
        ("['a,b']", ("a,b",)),
    ],
)
def test_ids_are_text_exactly_as_typed(given, ids):
    config = compose("unlearn", ["run=x", f"request.ids={given}", f"request.subjects={given}"])
    request = request_of(config)
    assert (request.ids, request.subjects) == (ids, ids)


@pytest.mark.parametrize("key", ["ids", "subjects"])
@pytest.mark.parametrize("given", ["a17", "12", "'a17'", "null", "{a: b}", "['007',true]"])
def test_what_is_no_list_of_ids_is_refused(command, key, given):
    status, out, err = command("plan", f"request.{key}={given}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"request.{key}" in err


def test_a_single_id_is_told_how_to_be_a_list(command):
    assert "Expected request.ids to be a list, got 'a17'; write [a17]." in command("plan", "request.ids=a17")[2]
    assert "Expected request.ids to be a list, got 12; write [12]." in command("plan", "request.ids=12")[2]


def test_a_plan_says_what_matters_and_touches_nothing(command, run):
    ids = (*in_slice(run, 0, 1, 2), *held_out(run, "test"))
    found, before = plan_deletion(run, ids), tree_of(run.directory.parent)
    status, out, err = command("plan", listed(ids))
    assert (status, err) == (0, "")
    assert "3 examples would be forgotten: " in out
    assert "2 train" in out
    assert "1 test" in out
    (row,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["shard-0"]]
    assert row[:5] == ["shard-0", "2", "1", "1", str(found.presentations)]
    assert f"Retraining: {found.presentations:,} example-epochs" in out
    assert "core-seconds" in out
    assert f"{found.scores:,} scores" in out
    assert f"{len(found.doomed.kinds['checkpoint'])} of kind checkpoint" in out
    assert "Baselines that saw them are purged and not trained again: baseline-whole, baseline-fraction." in out
    after = tree_of(run.directory.parent)
    assert {name: file for name, file in after.items() if not name.endswith(".lock")} == {
        name: file for name, file in before.items() if not name.endswith(".lock")
    }
    assert not run.path("ledger.sqlite").exists()


def test_a_plan_as_json_is_the_plan(command, run):
    ids = in_slice(run, 1, 2)
    status, out, _ = command("plan", listed((*ids, "nobody")), "format=json")
    told = json.loads(out)
    found = plan_deletion(run, ids)
    assert (status, told.pop("unknown")) == (0, 1)
    assert told == json.loads(json.dumps(found.plain()))
    assert "1 ids or subjects are not in the run." in command("plan", listed((*ids, "nobody")))[1]


def test_a_plan_tells_of_other_runs(command, run):
    trained_in(run.directory.parent, WITH_BASELINES, name="other")
    _, out, _ = command("plan", listed(in_slice(run, 1, 2)))
    assert "belong to another run: unlearn them in" in out
    assert "To be purged: nothing (0.0 MiB)." in out


def test_unlearn_ends_with_a_certificate_and_a_report(command, run):
    ids = in_slice(run, 1, 2)
    status, out, err = command("unlearn", listed(ids), 'request.reason=asked by "mail", he\'s sure')
    assert (status, err) == (0, "")
    (path,) = run.path("certificates").glob("*.html")
    assert f"certificate: {path}" in out
    assert f"report: {run.path('report.html')}" in out
    assert "asked by &#34;mail&#34;" in path.read_text() or 'asked by "mail"' in path.read_text()
    assert ledger_of(run).requests()[0].reason == 'asked by "mail", he\'s sure'
    status, out, _ = command("unlearn", listed(ids))
    assert (status, "Nothing to do: these requests were attested before." in out) == (0, True)


def test_requests_are_queued_and_flushed(command, run):
    for place in range(2):
        status, out, _ = command("unlearn", listed(in_slice(run, 1, place)), "queue=true")
        request_id = ledger_of(run).requests()[-1].request_id
        assert (status, out.strip()) == (
            0,
            f"received {request_id}; it waits for `fairsisa unlearn flush run={run.directory}`",
        )
    status, out, _ = command("unlearn", "flush", *QUIETLY)
    assert (status, out.count("certificate: ")) == (0, 2)
    status, out, _ = command("unlearn", "flush", *QUIETLY)
    assert (status, out.strip()) == (0, "No request waits.")


def test_a_condition_needs_no_quotes_of_hydras_own(command, run):
    frame = run.examples.frame
    chosen = (frame["sensitive:region"] == "southern") & (frame["label"] == 1) & (frame["split"] == "test")
    assert chosen.any()
    wanted = frame[(frame["sensitive:region"] == "southern") & (frame["label"] == 1)]
    status, out, err = command("plan", "request.where=region == 'southern' and label == \"happy\"", "format=json")
    assert (status, err) == (0, "")
    assert sum(json.loads(out)["num_examples"].values()) == len(wanted)
    status, out, err = command("plan", 'request.where="southern" == region and label == "happy"', "format=json")
    assert (status, err) == (0, "")
    assert sum(json.loads(out)["num_examples"].values()) == len(wanted)


def test_ids_come_from_a_file_too(command, run):
    Path("my ids.txt").write_text("\n".join(in_slice(run, 0, 2, 2)))
    status, out, _ = command("plan", "request.file='my ids.txt'", "format=json")
    assert (status, json.loads(out)["num_examples"]) == (0, {"train": 2})


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("unlearn",), 1, "Name whom to forget: request.ids, request.subjects, request.file or request.where."),
        (("plan",), 1, "Name whom to forget"),
        (("unlearn", "request.ids=[nobody]"), 1, "holds no 'nobody': correct the request, or pass over them"),
        (("unlearn", "request.ids=[nobody]", "request.unknown=skip"), 1, "nothing was received"),
        (("unlearn", "request.unknown=no", "request.ids=[x]"), 2, "Expected request.unknown to be "),
        (("unlearn", "unlearning.verify=al", "request.ids=[x]"), 2, "Expected unlearning.verify to be one of"),
        (("unlearn", "request.id=[x]"), 2, "Did you mean 'request.ids'?"),
        (("unlearn", "flsh"), 2, "Expected settings written key=value, got 'flsh'"),
        (("plan", "format=xml", "request.ids=[x]"), 2, "Expected format to be one of table, json, got 'xml'."),
        (("unlearn", "queue=maybe", "request.ids=[x]"), 2, "queue"),
        (("add", "data.path=nowhere.csv"), 1, "data.path: only the corpus 'own' takes it, not 'synthetic_tabular'"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(command, run, words, status, said):
    before = run.ensemble
    found, _, err = command(*words)
    assert (found, err.count("\n")) == (status, 1)
    assert said in err
    assert run.ensemble == before
    assert not run.path("ledger.sqlite").exists() or ledger_of(run).requests() == ()


@pytest.mark.parametrize("words", [("plan",), ("unlearn",), ("unlearn", "flush"), ("add",)])
def test_a_run_that_is_not_there_is_told(command, words, tmp_path):
    status, _, err = command(*words, *([] if "flush" in words or "add" in words else ["request.ids=[x]"]), at="nowhere")
    assert (status, err.count("\n")) == (1, 1)
    assert "nowhere has no " in err
    assert "train it first" in err
    assert not Path("nowhere").exists()


def test_new_examples_are_added_from_a_file(command, run):
    frame, folder = load_synthetic_tabular(num_examples=90).frame, run.directory.parent
    frame.iloc[:60].to_csv(folder / "first.csv", index=False)
    frame.iloc[60:].to_csv(folder / "more.csv", index=False)
    columns = {name: name for name in ("label", "example_id", "subject_id", "split")}
    columns |= {"numeric": ["feature:mixed_0", "feature:mixed_1"], "sensitive": ["sensitive:region"]}
    data = {"name": "own", "path": str(folder / "first.csv"), "columns": columns}
    own = trained_in(folder, replace(TABULAR, data=data), name="own one")
    status, out, err = command("add", "data.path=more.csv", "evaluate=false", at=str(own.directory))
    assert (status, err) == (0, "")
    assert "30 new examples; the run has 4 slices in every shard." in out
    assert set(own.examples.example_ids) == set(frame["example_id"])


def test_settings_of_the_verbs_are_those_of_the_library():
    config = compose("unlearn", ["run=x", "request.ids=[a]", *QUIETLY])
    assert config["unlearning"] == plain(PLAIN)
    assert config["queue"] is False


def test_a_certificate_of_an_earlier_request_stays(command, run):
    first = forget(run, *in_slice(run, 1, 0)).certificates[0].read_bytes()
    command("unlearn", listed(in_slice(run, 1, 1)), *QUIETLY)
    assert len(list(run.path("certificates").glob("*.json"))) == 2
    assert first in [path.read_bytes() for path in run.path("certificates").glob("*.json")]
