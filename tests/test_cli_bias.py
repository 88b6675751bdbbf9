from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from bias_models import tiny_bert, tiny_gpt2
from fairsisa.bias.catalogue import benchmarks
from fairsisa.cli import bias as verbs
from fairsisa.cli.composing import compose, defaults_of, leaves
from fairsisa.cli.main import run_command
from fairsisa.errors import ConfigError
from fairsisa.models.language import save_language_model
from fairsisa.runs import bias as asking
from fairsisa.settings import BiasSettings, ComparisonSettings
from fairsisa.store import Store

Command = Callable[..., tuple[int, str, str]]
QUICK = ["limit=6", "num_replicates=100", "check_capability=false"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """Folders of tiny random models: masked ones of two seeds, the first also under odd names, and a causal one."""
    folder = tmp_path_factory.mktemp("models")
    made = {"masked": tiny_bert(data_root), "second": tiny_bert(data_root, 1), "causal": tiny_gpt2(data_root)}
    for name, candidate in made.items():
        save_language_model(candidate.network, folder / name, candidate.tokenizer)
    for name in ("with blank", "100%=it"):
        shutil.copytree(folder / "masked", folder / name)
    return folder


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data_root: Path
) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("FAIRSISA_DATA", str(data_root))

    def give(*words: str) -> tuple[int, str, str]:
        status = run_command(words)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return give


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[BiasSettings]:
    """The settings that would have been asked; nothing is."""
    found: list[BiasSettings] = []

    def stop(directory: Path, settings: BiasSettings, *_: object, **__: object) -> None:
        found.append(settings)
        raise ConfigError(f"reached {directory}")

    monkeypatch.setattr(asking, "bias_run", stop)
    monkeypatch.setattr(verbs.comparing, "compare_run", stop)
    return found


def csv_metrics(directory: Path) -> pd.DataFrame:
    (found,) = directory.rglob("metrics.csv")
    return pd.read_csv(found)


# Lists and help


def test_every_benchmark_is_listed_with_kinds_readouts_and_licence(command):
    status, out, err = command("bias", "list")
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()}
    for name, each in benchmarks().items():
        told = lines[name]
        assert each.licence in told
        for readout in each.readouts:
            assert f"{readout.kind}: " in told
            assert readout.name in told


@pytest.mark.parametrize("verb", ["bias", "compare"])
def test_help_lists_every_setting(command, verb):
    status, out, err = command(verb, "--help")
    assert (status, err) == (0, "")
    for key, value in leaves(defaults_of(verb)):
        assert f"  {key}={'null' if value is None else value}\n" in out
    for key in ("benchmarks", "limit", "num_replicates", "scoring.precision", "judge.url", "paths.root"):
        assert f"  {key}=" in out


def test_the_settings_are_those_of_the_library():
    assert verbs._own(compose("bias", []), BiasSettings) == BiasSettings()
    assert verbs._own(compose("compare", ["base=a"]), ComparisonSettings) == ComparisonSettings(base="a")


# How settings are written


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=a"], ("a",)),
        (["model=with blank"], ("with blank",)),
        (["model=100%=it"], ("100%=it",)),
        (["model=runs/*/final"], ("runs/*/final",)),
        (["model='quoted'"], ("quoted",)),
        (["model=007"], ("007",)),
        (["model=org/name:part"], ("org/name:part",)),
        (["model=[a, b c]"], ("a", "b c")),
        (["models=[a,1e5]"], ("a", "1e5")),
        (["models=a"], ("a",)),
    ],
)
def test_models_are_taken_as_they_are_written(command, reached, words, expected):
    status, _, err = command("bias", *words, "benchmarks=crows_pairs")
    assert (status, "reached" in err) == (2, True), err
    assert [settings.models for settings in reached] == [expected]
    assert reached[0].benchmarks == ("crows_pairs",)


def test_lists_of_a_comparison_are_taken_as_they_are_written(command, reached):
    words = ["base=a b%", "other=[c, d*]", "benchmarks=[piqa,bbq:letters]", "corpora=mine.txt"]
    assert command("compare", *words)[0] == 2
    assert command("compare", "base=a", "other=c", "benchmarks=[]")[0] == 2
    both, one = reached
    assert (both.base, both.other, both.benchmarks) == ("a b%", ("c", "d*"), ("piqa", "bbq:letters"))
    assert (both.corpora, one.other, one.benchmarks) == (("mine.txt",), ("c",), ())


def test_the_directory_is_named_after_what_is_asked(command, reached):
    words = ["model=a", "benchmarks=piqa"]
    told = [
        command("bias", *words, *more)[1]
        for more in ((), ("logger=wandb",), ("seed=0",), ("limit=3",), ("scoring.precision=bf16",))
    ]
    assert told[0].startswith("out: runs/bias-")
    assert len({*told[:3]}) == 1
    assert len({*told}) == 3
    assert command("bias", *words, "out=my place")[1] == "out: my place\n"
    assert command("compare", "base=a", "other=b")[1].startswith("out: runs/compare-")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bias", "benchmarks=crows_pairs"], "Expected a model to ask, got none: set model="),
        (["bias", "{}", "benchmarks=crow_pairs"], "Unknown benchmark 'crow_pairs'. Did you mean 'crows_pairs'?"),
        (["bias", "{}", "benchmarks=crows_pairs:modifed"], "Did you mean 'modified'?"),
        (["bias", "{}", "benchmarks=hatecheck"], "hatecheck asks classifier models"),
        (["bias", "{}", "benchmark=piqa"], "Did you mean 'benchmarks'"),
        (["bias", "{}", "limit=0"], "limit"),
        (["bias", "{}", "judge.url=http://else.where/v1", "judge.model=x"], "https"),
        (["bias", "masked"], "key=value"),
        pytest.param(
            ["compare", "other={}/masked", "benchmarks=crows_pairs"],
            "base",
        ),
        pytest.param(
            ["compare", "base={}/masked", "benchmarks=crows_pairs", *QUICK],
            "other",
        ),
    ],
)
@pytest.mark.real_data
def test_what_is_asked_wrongly_is_said(command, models, words, told):
    verb, *rest = (f"model={models}/masked" if word == "{}" else word.format(models) for word in words)
    status, _, err = command(verb, *rest)
    assert (status, told in err) == (2, True), err


@pytest.mark.parametrize("word", ["logger=[]", "~logger"])
@pytest.mark.parametrize("words", [("bias", "model=a"), ("compare", "base=a", "other=b")])
def test_no_logger_at_all_is_a_choice(command, reached, words, word):
    assert "reached" in command(*words, word)[2]


@pytest.mark.real_data
def test_a_pattern_that_matches_nothing_is_said(command):
    status, _, err = command("bias", "model=gone/*", "benchmarks=crows_pairs")
    assert (status, "Expected folders that match gone/*; there are none." in err) == (1, True)


# From end to end


@pytest.mark.real_data
def test_a_model_is_asked_once(command, models):
    words = ["bias", f"model={models}/with blank", "benchmarks=[crows_pairs,stereoset_intrasentence]", *QUICK]
    status, out, err = command(*words)
    assert (status, err) == (0, "")
    out_line, *_, page = [line for line in out.splitlines() if line.startswith(("out: ", "page: "))]
    directory = Path(out_line.removeprefix("out: "))
    assert page == f"page: {directory / 'bias.html'}"
    assert words[1] in (directory / "bias.html").read_text(encoding="utf-8")
    measures = pd.read_csv(directory / "bias_measures.csv")
    whole = measures[measures["group"].isna() & (measures["metric"] == "stereotype_score")]
    logged = csv_metrics(directory)
    for row in whole.itertuples():
        assert logged[f"{row.model}/{row.benchmark}/{row.readout}/{row.metric}"].tolist() == pytest.approx([row.value])
    kept = Store(Path("runs/store")).names("answers")
    assert len(kept) == 2
    status, again, err = command(*words)
    assert (status, err) == (0, "")
    assert out_line in again.splitlines()
    assert Store(Path("runs/store")).names("answers") == kept
    pd.testing.assert_frame_equal(pd.read_csv(directory / "bias_measures.csv"), measures)


@pytest.mark.real_data
def test_folders_of_a_pattern_are_asked_side_by_side(command, models):
    status, _, err = command("bias", f"model={models}/*", "benchmarks=crows_pairs", "out=all here", *QUICK)
    assert (status, err) == (0, "")
    told = json.loads(Path("all here/bias.json").read_text(encoding="utf-8"))
    assert told["settings"]["models"] == [f"{models}/*"]
    found = pd.read_csv("all here/bias_models.csv")
    assert sorted(found["name"]) == ["100%=it", "causal", "masked", "second", "with blank"]
    same = pd.read_csv("all here/bias_measures.csv").pivot(
        columns="model", index=["benchmark", "metric", "group"], values="value"
    )
    pd.testing.assert_series_equal(same["with blank"], same["100%=it"], check_names=False)


@pytest.mark.real_data
def test_models_are_compared(command, models):
    words = [f"base={models}/masked", f"other=[{models}/with blank,{models}/second]", "benchmarks=[crows_pairs]"]
    status, out, err = command("compare", *words, "out=side", *QUICK)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "page: side/compare.html"
    found = pd.read_csv("side/compare_comparisons.csv")
    twin = found[found["other"] == "with blank"]
    assert (twin["difference"].fillna(0.0) == 0).all()
    assert (found[found["other"] == "second"]["difference"].fillna(0.0) != 0).any()


@pytest.mark.real_data
def test_wandb_is_told_offline_wherever_its_process_was_started(command, models, monkeypatch):
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(Path.cwd() / "told"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    words = [f"model={models}/masked", "benchmarks=crows_pairs", "logger=wandb", "logger.wandb.offline=true"]
    for place in ("here", "there"):  # one process of W&B's serves both
        Path(place).mkdir()
        with monkeypatch.context() as moved:
            moved.chdir(place)
            status, _, err = command("bias", *words, *QUICK, "out=told")
        assert status == 0, err
        (record,) = Path(place).glob("told/wandb/offline-run-*/*.wandb")
        end, wanted = time.monotonic() + 60.0, b"masked/crows_pairs/modified/stereotype_score"
        while wanted not in record.read_bytes():
            assert time.monotonic() < end, f"Expected W&B's own process to have written the metric to {record}."
            time.sleep(0.1)


@pytest.mark.real_data
def test_a_sweep_takes_the_flag_anywhere_and_models_one_by_one(command, models):
    words = [f"model={models}/masked,{models}/second", "benchmarks=crows_pairs", *QUICK, "-m", "seed=0,1"]
    status, out, err = command("bias", *words, "paths.root=swept")
    assert status == 0, err
    assert len({line for line in out.splitlines() if line.startswith("page: ")}) == 4
    found = [pd.read_csv(path)["name"].tolist() for path in Path("swept").glob("bias-*/bias_models.csv")]
    assert sorted(found) == [["masked"], ["masked"], ["second"], ["second"]]


@pytest.mark.real_data
def test_a_readout_for_models_of_another_kind_is_refused(command, models):
    status, _, err = command("bias", f"model={models}/masked", "benchmarks=crows_pairs:joint", *QUICK, "out=none")
    assert status != 0
    assert "crows_pairs:joint asks causal models, and none of yours is one." in err
    status, _, err = command("bias", f"model={models}/masked", "benchmarks=crows_pairs:jiont", *QUICK, "out=none")
    assert status != 0
    assert "no readout 'jiont'" in err


def test_an_out_that_is_a_file_is_named(command, models):
    Path("taken").write_text("mine")
    for out in ("taken", "taken/below"):
        status, _, err = command("bias", f"model={models}/masked", "benchmarks=crows_pairs", *QUICK, f"out={out}")
        assert status != 0
        assert f"The folder {out} cannot be made" in err
        assert "Traceback" not in err
    assert Path("taken").read_text() == "mine"
