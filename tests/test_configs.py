from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fairsisa.cli import composing
from fairsisa.cli.catalogue import VERBS
from fairsisa.cli.composing import (
    ALLOWED_TARGETS,
    compose,
    config_folder,
    defaults_of,
    instantiate_loggers,
    leaves,
    options,
)
from fairsisa.cli.verbs import RUN_KEYS
from fairsisa.data.corpora import CORPORA
from fairsisa.errors import ConfigError
from fairsisa.settings import (
    GROUPS,
    EvaluationSettings,
    ExecutionSettings,
    PathSettings,
    RunSettings,
    StudySettings,
    plain,
    run_settings,
    settings_from,
)

FOLDER = config_folder()
FILES = sorted(FOLDER.rglob("*.yaml"))
NAMES = [str(path.relative_to(FOLDER)) for path in FILES]
ROOTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OF_UNLEARN = ("request", "unlearning")
OF_OTHERS = (*OF_UNLEARN, "study", "simulate", "calibration", "scoring", "judge")
OF_MODELS = ("compress", "prune", "quantise")
"""Verbs that a folder will do for, in place of a run."""
OPTIONS = [(group, name) for group, names in options().items() for name in names if group not in OF_OTHERS]
OWN = {
    "own_text": ("data.path=mine.csv", "data.columns.text=comment", "data.columns.label=toxic"),
    "own_table": ("data.path=mine.csv", "data.columns.label=paid", "data.columns.numeric=[age]"),
}
TEXT_CORPORA = {name for name, info in CORPORA.items() if info.kind == "text"}


def settings_of(*overrides: str) -> RunSettings:
    config = compose("train", overrides)
    settings_from(PathSettings, config["paths"], "paths")
    settings_from(ExecutionSettings, config["execution"], "execution")
    return run_settings({key: config[key] for key in RUN_KEYS})


def given_by_hand(group: str, name: str) -> tuple[str, ...]:
    return OWN.get(name, ()) if group in ("data", "experiment") else ()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_opens_with_what_it_is_for(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines[0].startswith("# @package"):
        lines = lines[1:]
    assert lines[0].startswith("# ")
    assert lines[0].endswith((".", ";"))
    assert isinstance(yaml.safe_load("\n".join(lines)), dict)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_experiments_combine_groups(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    group = path.parent.name if path.parent != FOLDER else "a root"
    combines = any(isinstance(entry, dict) for entry in content.get("defaults", []))
    assert combines == (group in ("experiment", "a root"))
    assert path.read_text().startswith("# @package _global_\n") == (group == "experiment")


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_is_read_by_a_verb_and_has_defaults(root):
    assert root in {verb.root for verb in VERBS.values()}
    needs_run = root not in ("data", "plan", "simulate", "store", "store_gc", "train", *OF_MODELS)
    others = {"export": ["run", "name", "out"], "bias": [], "compare": []}
    must = others.get(root, ["run"] * needs_run)
    assert [key for key, value in leaves(defaults_of(root)) if value == "???"] == must


@pytest.mark.parametrize(("group", "name"), OPTIONS, ids=map("=".join, OPTIONS))
def test_every_option_composes_in_the_root_train(group, name):
    settings = settings_of(f"{group}={name}", *given_by_hand(group, name))
    if group in GROUPS and group in plain(settings) and name == "base":
        assert plain(settings)[group] == plain(GROUPS[group]())


@pytest.mark.parametrize("group", OF_UNLEARN)
def test_every_option_composes_in_the_root_unlearn(group):
    assert options()[group] == ["base"]
    config = compose("unlearn", ["run=x", f"{group}=base"])
    assert config[group] == plain(settings_from(GROUPS[group], config[group], group)) == plain(GROUPS[group]())


@pytest.mark.parametrize("name", [name for name in options()["experiment"] if name.startswith("deletions_")])
def test_every_study_composes_in_the_root_simulate(name):
    config = compose("simulate", [f"experiment={name}"])
    asked = settings_from(StudySettings, config["study"], "study")
    assert asked.patterns == ("uniform", "group", "label")
    assert compose("simulate", [])["study"] == plain(StudySettings())


@pytest.mark.parametrize("name", options()["simulate"])
def test_every_simulation_composes_in_the_root_plan(name):
    config = compose("plan", [f"simulate={name}"])["simulate"]
    assert settings_from(GROUPS["simulate"], config, "simulate").distribution == ("uniform" if name == "base" else name)


@pytest.mark.parametrize("name", options()["experiment"])
def test_every_experiment_composes_and_its_parts_fit(name):
    settings = settings_of(f"experiment={name}", *given_by_hand("experiment", name))
    assert settings.data["name"] in CORPORA
    text = settings.data["name"] in TEXT_CORPORA or "text" in (settings.data.get("columns") or {})
    assert (settings.model.kind == "text") == text


@pytest.mark.parametrize("name", options()["data"])
def test_every_corpus_is_known_and_so_are_its_options(name):
    config = compose("data", [f"data={name}", *given_by_hand("data", name)])["data"]
    assert config["name"] in CORPORA
    assert set(config.get("options") or {}) <= set(CORPORA[config["name"]].options)


def test_every_corpus_has_a_config():
    assert {
        compose("data", [f"data={n}", *given_by_hand("data", n)])["data"]["name"] for n in options()["data"]
    } == set(CORPORA)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in GROUPS], ids=lambda path: path.stem)
def test_a_yaml_states_only_what_differs_from_the_default(path):
    defaults = plain(GROUPS[path.parent.name]())
    stated = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "defaults"}
    assert set(stated) <= set(defaults)
    repeated = {key for key, value in stated.items() if value == defaults[key]}
    assert repeated <= {"uniform": {"strategy", "distribution"}, "local": {"kind"}}.get(path.stem, set())


@pytest.mark.parametrize("name", options()["logger"])
def test_every_logger_is_an_allowed_one(name, tmp_path):
    nodes = compose("train", [f"logger={name}"])["logger"]
    assert {node["_target_"] for node in nodes.values()} <= ALLOWED_TARGETS
    assert len(instantiate_loggers(nodes, tmp_path)) == len(nodes)


def test_wandb_stays_offline_until_told_otherwise():
    nodes: Any = compose("train", ["logger=wandb"])["logger"]
    assert nodes["wandb"]["offline"] is True
    assert compose("train", ["logger=wandb", "logger.wandb.offline=false"])["logger"]["wandb"]["offline"] is False


def test_evaluate_changes_nothing_unless_told():
    config = compose("evaluate", ["run=x"])
    assert config["evaluation"] == dict.fromkeys(plain(EvaluationSettings()))
    assert compose("evaluate", ["run=x", "evaluation.level=0.9"])["evaluation"]["level"] == 0.9


def test_values_on_the_command_line_win_over_an_experiment():
    settings = settings_of("experiment=quickstart", "partition.num_shards=2", "model=minilm")
    assert (settings.partition.num_shards, settings.partition.num_slices, settings.model.trains) == (2, 3, "full")


def test_a_networks_shape_can_be_given_on_the_command_line():
    settings = settings_of("model=bert_base", "model.architecture=bert", "+model.shape.hidden_size=16")
    assert settings.model.shape == {"hidden_size": 16}


def test_the_configs_lie_in_the_package_or_beside_it(monkeypatch, tmp_path):
    assert config_folder().name == "conf"
    monkeypatch.setattr(composing, "__file__", str(tmp_path / "fairsisa" / "cli" / "composing.py"))
    with pytest.raises(ConfigError, match=r"The configs of fairsisa are in neither .* reinstall it"):
        composing.config_folder()
    for folder in (tmp_path / "conf", tmp_path / "fairsisa" / "conf"):
        folder.mkdir(parents=True)
        Path(folder / "train.yaml").touch()
        assert composing.config_folder() == folder
