from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import fairsisa
from fairsisa.cli import composing, verbs
from fairsisa.cli.catalogue import VERBS
from fairsisa.cli.composing import ALLOWED_TARGETS, compose, defaults_of, instantiate_loggers, leaves, options
from fairsisa.cli.main import run_command
from fairsisa.cli.sweeping import flags_first
from fairsisa.data.corpora import CORPORA
from fairsisa.errors import ConfigError, TrainingError
from fairsisa.tables import read_examples

ROOT = Path(fairsisa.__file__).parents[1]
QUICK = [
    "data=synthetic_tabular",
    "model=logistic",
    "trainer=tabular",
    "trainer.max_epochs=1",
    "data.options.num_examples=300",
    "partition.num_shards=2",
    "partition.num_slices=2",
    "evaluation.baselines=[]",
    "evaluation.num_replicates=100",
    "execution.num_workers=1",
]
Fairsisa = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fairsisa_command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: str) -> tuple[int, str, str]:
        status = run_command(words)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


@pytest.fixture
def training(monkeypatch):
    reached: list[Any] = []

    def train_run(settings: Any, run: Any, **options: Any) -> None:
        reached.append((settings, run, options))
        raise TrainingError("reached training")

    monkeypatch.setattr(verbs, "train_run", train_run)
    return reached


def in_a_process(words: Sequence[str], folder: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-c", "from fairsisa.cli import main; main()"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *start, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",)])
def test_the_overview_names_every_verb(fairsisa_command, words):
    status, out, err = fairsisa_command(*words)
    assert (status, err) == (0, "")
    assert fairsisa.__doc__ in out
    for name, verb in VERBS.items():
        assert f"fairsisa {name}" in out
        assert verb.summary in out


def test_the_version_is_the_packages(fairsisa_command):
    assert fairsisa_command("--version") == (0, f"fairsisa {fairsisa.__version__}\n", "")


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("flag", ["-h", "--help", "help"])
def test_help_lists_every_setting_with_its_default(fairsisa_command, name, flag):
    status, out, err = fairsisa_command(*name.split(), flag)
    assert (status, err) == (0, "")
    assert VERBS[name].summary in out
    assert VERBS[name].example in out
    for key, value in leaves(defaults_of(VERBS[name].root)):
        assert f"  {key}={'null' if value is None else value}\n" in out


def test_help_lists_every_choice(fairsisa_command):
    _, out, _ = fairsisa_command("train", "--help")
    for group in ("data", "model", "partition", "trainer", "logger"):
        assert f"  {group}={' | '.join(options()[group])}\n" in out
    told = [out, *(fairsisa_command(verb, "--help")[1] for verb in ("simulate", "pretrain"))]
    found = [re.findall(r"^  experiment=(.*)$", said, flags=re.MULTILINE) for said in told]
    trained, studied, pretrained = (names.split(" | ") for (names,) in found)
    assert sorted([*trained, *studied, *pretrained]) == options()["experiment"]
    assert all(name.startswith("deletions_") for name in studied)
    assert {"quickstart", "hatexplain_minilm"} <= set(trained)
    recipes = {"distilbert_recipe", "distilgpt2_recipe"}
    assert {"tinystories_gpt2", "wikitext2_bert", "minilm_masked", *recipes} == set(pretrained)
    assert "run=???" in fairsisa_command("evaluate", "--help")[1]


@pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
def test_every_verb_has_its_function_and_its_root(verb):
    module, _, function = verb.act.partition(".")
    assert callable(getattr(importlib.import_module(f"fairsisa.cli.{module}"), function))
    assert (composing.config_folder() / f"{verb.root}.yaml").is_file()
    assert verb.example.startswith("fairsisa ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trian",), "Unknown command 'trian'. Did you mean 'train'?"),
        (("data", "lst"), "Unknown command 'data lst'. Did you mean 'data list'?"),
        (("store",), "Unknown command 'store'. Did you mean 'store ls'?"),
        (("evalute", "run=x"), "Unknown command 'evalute'. Did you mean 'evaluate'?"),
        (("qqqq",), f"Unknown command 'qqqq'. Known: {', '.join(sorted(VERBS))}."),
        (("train", "sed=1"), "Unknown setting 'sed'. Did you mean 'seed'?"),
        (("train", "modle=minilm"), "Unknown setting 'modle'. Did you mean 'model'?"),
        (("train", "model.kindd=mlp"), "Unknown setting 'model.kindd'. Did you mean 'model.kind'?"),
        (("train", "trainer.batchsize=3"), "Unknown setting 'trainer.batchsize'. Did you mean 'trainer.batch_size'?"),
        (("train", "model=minlm"), "Unknown model 'minlm'. Did you mean 'minilm'?"),
        (("train", "data=adlt"), "Unknown data 'adlt'. Did you mean 'adult'?"),
        (("train", "experiment=quikstart"), "Unknown experiment 'quikstart'. Did you mean 'quickstart'?"),
        (("train", "logger=null"), "Unknown logger 'null'. Known: csv, wandb."),
        (("train", "model=null", "experiment=null"), "Unknown model 'null'."),
        (("train", "seed"), "Expected settings written key=value, got 'seed'; see fairsisa --help."),
        (("train", "seed=abc"), "Expected seed to be a whole number, got 'abc'."),
        (("train", "seed=0,1"), "To sweep over it, add --multirun"),
        (("train", "~data"), "~data takes away what must be given"),
        (("train", "+sead=1"), "Unknown setting sead. Did you mean 'seed'?"),
        (("train", "+trainer.epochs=1"), "Unknown setting trainer.epochs. Did you mean 'max_epochs'?"),
        (("train", "++paths.rot=x"), "Unknown setting paths.rot. Did you mean 'root'?"),
        (("train", "trainer.max_epochs=0"), "Expected trainer.max_epochs to be greater than 0.0, got 0.0."),
        (("train", "trainer.batch_size=null"), "Expected trainer.batch_size to have a value, got null."),
        (("train", "execution.num_workers=0"), "the nearest valid value is 1."),
        (("train", "data.options.seed=["), "Cannot read data.options.seed=[: quote its value"),
        (("train", "run='${nowhere}'"), "Interpolation key 'nowhere' not found"),
        (("evaluate", "run=x", "evaluation.agregation=y"), "Did you mean 'evaluation.aggregation'?"),
        (("data", "list", "tain=3"), "Unknown setting 'tain'."),
        (("data", "prepare", "data.options.num_examples=0"), "Expected num_examples of at least 1, got 0"),
        (("train", "run=~/mine"), """Cannot read run=~/mine: quote its value, "run='~/mine'"."""),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(fairsisa_command, training, words, said):
    status, _, err = fairsisa_command(*words)
    assert (status, training) == (2, [])
    assert err.startswith("fairsisa: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("evaluate",), ("run",)),
        (("train", "experiment=own_text"), ("data.columns.label", "data.columns.text", "data.path")),
        (("train", "experiment=own_text", "data.path=x"), ("data.columns.label", "data.columns.text")),
        (("data", "prepare", "data=own_table"), ("data.columns.label", "data.path")),
        (("train", "seed=???"), ("seed",)),
    ],
)
def test_what_only_a_person_can_know_is_asked_for(fairsisa_command, training, words, missing):
    wanted = ", ".join(f"{key}=..." for key in missing)
    assert fairsisa_command(*words) == (2, "", f"fairsisa: Set {wanted}: only you can know.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "run=nowhere"), "nowhere has no config.yaml: train it first"),
        (("store", "ls", "run=nowhere"), "nowhere has no config.yaml: train it first"),
        (("data", "prepare", "data=adult", "paths.data=nowhere"), "Expected a folder of data sets at nowhere"),
        (("train", "data.name=adlt"), "adult"),
    ],
)
def test_what_fails_ends_in_one_line_and_status_1(fairsisa_command, words, said):
    status, _, err = fairsisa_command(*words)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("fairsisa: ")
    assert said in err


def test_an_interrupt_says_how_to_go_on(fairsisa_command, monkeypatch):
    def interrupted(config: Any, overrides: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "data_list", interrupted)
    status, _, err = fairsisa_command("data", "list")
    assert (status, err) == (130, "fairsisa: stopped; every finished slice is kept, run the same command to go on.\n")


def test_a_bug_is_not_hidden(fairsisa_command, monkeypatch):
    def broken(config: Any, overrides: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(verbs, "data_list", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fairsisa_command("data", "list")


def test_data_list_names_every_corpus(fairsisa_command):
    status, out, _ = fairsisa_command("data", "list")
    assert status == 0
    for name, info in CORPORA.items():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert info.summary in line
        assert info.licence in line


def test_data_prepare_writes_a_table_and_its_counts(fairsisa_command, tmp_path):
    status, out, _ = fairsisa_command(
        "data", "prepare", "data=synthetic_tabular", "data.options.num_examples=321", "out=deep/er/table.parquet"
    )
    examples = read_examples(tmp_path / "deep" / "er" / "table.parquet")
    assert (status, examples.name, len(examples)) == (0, "synthetic_tabular", 321)
    counts = examples.frame["split"].value_counts()
    line = next(line.split() for line in out.splitlines() if line.split()[:1] == ["all"])
    assert line == ["all", str(counts["train"]), str(counts["calibration"]), str(counts["test"])]
    assert "examples table: deep/er/table.parquet" in out


def test_data_prepare_has_a_place_of_its_own(fairsisa_command, tmp_path):
    fairsisa_command(
        "data", "prepare", "data=synthetic_tabular", "data.options.num_examples=200", "paths.root=elsewhere"
    )
    assert len(read_examples(tmp_path / "elsewhere" / "data" / "synthetic_tabular.parquet")) == 200


def test_an_empty_store_has_no_artefact(fairsisa_command, tmp_path):
    (tmp_path / "empty").mkdir()
    status, out, _ = fairsisa_command("store", "ls", "paths.store=empty")
    assert status == 0
    assert out.strip() == f"0 artefacts, 0.0 MiB in {tmp_path / 'empty'}"


def test_training_gets_what_was_asked_for(fairsisa_command, training, tmp_path):
    status, _, err = fairsisa_command("train", *QUICK, "seed=3", "trainer.gradient_clip=null", "run=here")
    ((settings, run, options),) = training
    assert (status, err) == (1, "fairsisa: reached training\n")
    assert (settings.seed, settings.model.kind, settings.trainer.gradient_clip) == (3, "logistic", None)
    assert settings.data["options"]["num_examples"] == 300
    assert (settings.partition.num_shards, settings.evaluation.baselines) == (2, ())
    assert (run.directory, options["paths"].root, options["execution"].num_workers) == (Path("here"), "runs", 1)
    assert options["command"] == " ".join(["fairsisa train", *QUICK, "seed=3 trainer.gradient_clip=null run=here"])


def test_no_logger_at_all_is_a_choice(fairsisa_command, training):
    for words in (("~logger",), ("logger=[]",), ("~logger.csv",)):
        assert fairsisa_command("train", *QUICK, *words)[2] == "fairsisa: reached training\n"


def directory_of(*words: str) -> str:
    return str(verbs.run_directory(compose("train", words), words))


def test_the_same_settings_share_a_directory_and_others_do_not():
    same = {
        directory_of("experiment=quickstart"),
        directory_of("experiment=quickstart", "seed=0"),
        directory_of("experiment=quickstart", "execution.num_workers=1"),
        directory_of("experiment=quickstart", "logger=wandb"),
    }
    assert len(same) == 1
    others = [
        directory_of("experiment=quickstart", word) for word in ("seed=1", "trainer.threads=2", "data.options.seed=2")
    ]
    assert len({*same, *others}) == 4
    assert next(iter(same)).startswith("runs/quickstart-")
    assert directory_of("paths.root=/else/where", *QUICK).startswith("/else/where/synthetic_tabular-")
    assert directory_of("run='~/mine'") == str(Path("~/mine").expanduser())


def test_another_content_of_the_same_file_is_another_run(tmp_path):
    words = ("experiment=own_text", f"data.path={tmp_path / 'mine.csv'}", "data.columns.text=t", "data.columns.label=l")
    (tmp_path / "mine.csv").write_text("t,l\na,1\n")
    first = directory_of(*words)
    (tmp_path / "mine.csv").write_text("t,l\na,0\n")
    assert directory_of(*words) != first


def test_an_experiments_name_cannot_leave_the_root():
    config = compose("train", ["data.name='../../etc'"])
    assert verbs.run_directory(config, []).parent == Path("runs")


EVIL = [
    ("os.system", {"command": "touch pwned"}),
    ("os.popen", {"cmd": "touch pwned"}),
    ("subprocess.check_call", {"args": ["touch", "pwned"]}),
    ("builtins.open", {"file": "pwned", "mode": "w"}),
    ("pathlib.Path.touch", {"self": "pwned"}),
    ("pytorch_lightning.loggers.CSVLogger.__init__", {}),
    ("pytorch_lightning.loggers.csvlogger", {}),
    ("fairsisa.cli.verbs.train", {}),
    (None, {}),
    ("", {}),
]


@pytest.mark.parametrize(("target", "arguments"), EVIL)
def test_a_target_outside_the_list_is_never_called(monkeypatch, tmp_path, target, arguments):
    monkeypatch.chdir(tmp_path)
    nodes = {"csv": {"_target_": "pytorch_lightning.loggers.CSVLogger"}, "evil": {"_target_": target, **arguments}}
    with pytest.raises(ConfigError, match=rf"logger\.evil\._target_={target} is not allowed\. ?"):
        instantiate_loggers(nodes, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("target", "arguments"), EVIL)
def test_a_nested_target_is_never_called_even_under_an_allowed_one(monkeypatch, tmp_path, target, arguments):
    monkeypatch.chdir(tmp_path)
    node = {"_target_": "pytorch_lightning.loggers.CSVLogger", "prefix": {"deep": {"_target_": target, **arguments}}}
    with pytest.raises(ConfigError, match=r"logger\.csv\.prefix\.deep\._target_ is not allowed"):
        instantiate_loggers({"csv": node}, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("logger.csv._target_=os.system", "logger.csv._target_=os.system is not allowed."),
        ("+logger.x._target_=os.system", "logger.x._target_=os.system is not allowed."),
        ("+logger.csv.prefix={_target_:os.system}", "logger.csv.prefix._target_ is not allowed"),
        ("+logger.x=3", "Expected logger.x to be a mapping with a _target_, got 3."),
        ("+logger.csv.colour=red", "logger.csv does not take these settings: "),
        ("+model._target_=os.system", "Unknown setting model._target_."),
        ("+data._target_=os.system", "reached training"),
    ],
)
def test_a_target_on_the_command_line_is_refused(fairsisa_command, training, word, said):
    status, _, err = fairsisa_command("train", *QUICK, word)
    assert said in err
    assert status == (1 if "reached" in said else 2)


@pytest.mark.parametrize("name", ["CSVLogger", "WandbLogger"])
def test_an_allowed_logger_saves_into_the_run(tmp_path, name):
    node = {"_target_": f"pytorch_lightning.loggers.{name}", "name": "logs", "save_dir": "/elsewhere"}
    (logger,) = instantiate_loggers({"one": node}, tmp_path / "run")
    assert (type(logger).__name__, logger.save_dir) == (name, str(tmp_path / "run"))


def test_only_loggers_of_lightning_are_allowed():
    assert all(target.startswith("pytorch_lightning.loggers.") for target in ALLOWED_TARGETS)


MODULES = "import json, sys; from fairsisa.cli.main import run_command; status = run_command(sys.argv[1:]);"
MODULES += "print('LOADED', json.dumps([status, sorted({name.partition('.')[0] for name in sys.modules})]))"


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("train", "sed=1"), ("--version",)])
def test_help_and_mistakes_need_no_torch(tmp_path, words):
    done = in_a_process(words, tmp_path, MODULES)
    status, loaded = json.loads(done.stdout.rpartition("LOADED ")[2])
    assert status == (2 if "sed=1" in words else 0)
    assert not {"torch", "transformers", "pytorch_lightning", "pandas", "matplotlib", "wandb"} & set(loaded)
    assert {"fairsisa", "hydra"} <= set(loaded) or "--version" not in words


def test_the_process_leaves_with_the_status(tmp_path):
    done = in_a_process(("train", "sed=1"), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fairsisa: Unknown setting 'sed'. Did you mean 'seed'?\n"


def test_a_config_can_be_shown_without_running_it(tmp_path):
    done = in_a_process(("train", "--cfg", "job", *QUICK), tmp_path)
    shown = yaml.safe_load(done.stdout)
    assert (done.returncode, shown["model"]["kind"], shown["data"]["options"]["num_examples"]) == (0, "logistic", 300)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_trains_a_run_for_every_value(tmp_path):
    done = in_a_process(("train", "-m", "seed=0,1", *QUICK, "paths.root=runs", "paths.store=runs/store"), tmp_path)
    assert done.returncode == 0, done.stderr
    runs = [path for path in (tmp_path / "runs").iterdir() if (path / "metrics.json").is_file()]
    assert sorted(yaml.safe_load((run / "config.yaml").read_text())["settings"]["seed"] for run in runs) == [0, 1]
    assert all((run / "report.html").is_file() and (run / "logs" / "metrics.csv").is_file() for run in runs)
    for run in runs:
        assert f"run: runs/{run.name}\n" in done.stdout
        (command,) = json.loads((run / "environment.json").read_text())["commands"]
        seed = yaml.safe_load((run / "config.yaml").read_text())["settings"]["seed"]
        assert command.startswith(f"fairsisa train seed={seed} {QUICK[0]} ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=0,1", "-m"], ["-m", "seed=0,1"]),
        (["-m", "seed=0,1", "limit=2"], ["-m", "seed=0,1", "limit=2"]),
        (["limit=2", "--cfg", "job", "seed=1"], ["--cfg", "job", "limit=2", "seed=1"]),
        (["--info", "limit=2", "-m"], ["--info", "-m", "limit=2"]),
        (["model=a,b", "-m"], ["-m", "models=[a],[b]"]),
        (["model=[a,b]", "-m"], ["-m", "models=[a,b]"]),
    ],
)
def test_flags_of_a_sweep_go_before_the_settings(words, expected):
    assert flags_first("bias", words) == expected
