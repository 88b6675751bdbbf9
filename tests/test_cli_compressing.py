from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chains import QUICK, TINY_TEXT, run_of
from fairsisa.cli import compressing
from fairsisa.cli.catalogue import VERBS
from fairsisa.cli.composing import compose
from fairsisa.cli.main import run_command
from fairsisa.compression.folders import load_compressed
from fairsisa.models.text_tokenizers import train_tokenizer
from fairsisa.runs.descendants import Recipe
from fairsisa.runs.directory import Run
from fairsisa.settings import (
    CalibrationSettings,
    CompressionSettings,
    DistillationSettings,
    PartitionSettings,
    read_steps,
)
from fairsisa.settings.steps import Step
from unlearning_cases import copied, trained_in

Command = Callable[..., tuple[int, str, str]]
TEXTS = run_of(
    TINY_TEXT,
    replace(QUICK, max_epochs=1.0),
    data={"name": "synthetic_text", "options": {"num_examples": 50}},
    partition=PartitionSettings(num_shards=2, num_slices=1),
)
ALONE = "execution.num_workers=1"
MAKING = ("distil", "compress", "prune", "quantise", "export")
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
STORY = "the cat sat on the mat and the dog sat on the hill " * 20


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_in(tmp_path_factory.mktemp("original"), TEXTS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT-shaped and a GPT-2-shaped model, and a text."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "story.txt").write_text(STORY)
    tokenizer = train_tokenizer([STORY], 280, masked=True)
    torch.manual_seed(0)
    bert = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **SMALL)
    gpt2 = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=32)
    for name, model in {
        "bert": transformers.BertForMaskedLM(bert),
        "gpt2": transformers.GPT2LMHeadModel(gpt2),
    }.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def give(*words: str) -> tuple[int, str, str]:
        status = run_command(words)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return give


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What a command would make of a run, in place of making it."""
    recipes: list[Recipe] = []
    monkeypatch.setattr(compressing, "_descend", lambda config, recipe: recipes.append(recipe))
    return recipes


def test_a_student_and_its_copy_are_made_measured_saved_and_removed(command, original, tmp_path):
    run = copied(original, tmp_path)
    status, out, err = command("distil", "run=run", ALONE, "num_layers=1", "trainer.max_epochs=1", "name=mini")
    assert (status, err) == (0, "")
    assert "name: mini" in out
    assert "page: run/compression.html" in out
    assert run.path("compression.html").is_file()
    assert run.path("report.html").is_file()
    assert list(run.ensemble.descendants) == ["mini"]
    words = ("compress", "run=run", ALONE, "source=mini", "compression=[wanda_2to4,int8_dynamic]")
    status, out, err = command(*words, "calibration.num_examples=4")
    assert (status, err) == (0, "")
    assert "name: mini.wanda-2-4.int8_dynamic" in out
    assert "decides" in out
    status, out, err = command("export", "run=run", "name=mini", "out=small", ALONE)
    assert (status, err) == (0, "")
    assert "model folder: small" in out
    assert "Later deletions do not reach a folder" in out
    assert load_compressed(tmp_path / "small").card.steps == ()
    status, _, err = command("distil", "run=run", "name=mini", "remove=true")
    assert (status, "are copies of mini: remove them first" in err) == (2, True)
    assert command(*words, "remove=true")[0] == 0
    status, out, err = command("distil", "run=run", "name=mini", "remove=true")
    assert (status, err) == (0, "")
    assert out == "mini is out of run; its reports are made again by `fairsisa evaluate`.\n"
    assert run.ensemble.descendants == {}
    assert not run.path("compression.html").exists()


def test_copies_are_removed_by_their_name_alone(command, original, tmp_path):
    copied(original, tmp_path)
    status, _, err = command("compress", "run=run", "name=gone", "remove=true")
    assert (status, "has no student or compressed copy 'gone'" in err) == (2, True)
    assert command("compress", "run=run", "remove=true")[2].startswith("fairsisa: Set compression=[...]")


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (("prune",), Step("wanda")),
        (("prune", "sparsity=0.3"), Step("wanda", sparsity=0.3)),
        (("prune", "pattern=2:4", "include_head=true"), Step("wanda", pattern="2:4", include_head=True)),
        (("prune", "method=magnitude", "pool=model", "sparsity=0"), Step("magnitude", sparsity=0.0, pool="model")),
        (("prune", "method=random", "seed=3"), Step("random", seed=3)),
        (
            ("prune", "method=drop_layers", "num_layers=2", "keep=first"),
            Step("drop_layers", num_layers=2, keep="first"),
        ),
        (("quantise",), Step("int8_dynamic")),
        (
            ("quantise", "method=round_to_nearest", "bits=4", "group_size=32", "symmetric=false"),
            Step("round_to_nearest", bits=4, group_size=32, symmetric=False),
        ),
        (("quantise", "method=torchao", "scheme=int4_weight_only"), Step("torchao", scheme="int4_weight_only")),
        (("quantise", "method=bitsandbytes", "bits=8"), Step("bitsandbytes", bits=8)),
    ],
)
def test_one_step_is_asked_for_by_its_settings(command, asked, words, step):
    assert command(words[0], "run=x", *words[1:], "name=it", "calibration.seed=2") == (0, "", "")
    (recipe,) = asked
    assert recipe.compress is not None
    assert recipe.compress[0].steps == (step,)
    assert recipe.compress[0].chosen_name == "it"
    assert recipe.compress[1] == CalibrationSettings(seed=2)


def test_chains_and_students_are_asked_for_by_theirs(command, asked):
    steps = "compression=[{method:magnitude,sparsity:0.3},wanda_2to4,{method:wanda,pattern:1:4},int8_dynamic]"
    assert command("compress", "run=x", steps, "when_outdated=stale")[0] == 0
    given: list[Any] = [{"method": "magnitude", "sparsity": 0.3}, "wanda_2to4", {"method": "wanda", "pattern": "1:4"}]
    wanted = CompressionSettings((*given, "int8_dynamic"), when_outdated="stale")
    words = ("teacher=fair", "postprocessor=rule", "model.dropout=0.2", "trainer.max_epochs=2", "soft=0.5", "hard=1")
    assert command("distil", "run=x", *words)[0] == 0
    assert asked == [
        Recipe(compress=(wanted, CalibrationSettings())),
        Recipe(
            distil=DistillationSettings(
                teacher="fair",
                postprocessor="rule",
                soft=0.5,
                hard=1.0,
                model={"dropout": 0.2},
                trainer={"max_epochs": 2},
            )
        ),
    ]


def test_without_a_word_the_settings_are_those_of_the_library(asked):
    compressing.distil(compose("distil", ["run=x"]), [])
    compressing.compress(compose("compress", ["run=x", "compression=[wanda]"]), [])
    assert asked == [
        Recipe(distil=DistillationSettings()),
        Recipe(compress=(CompressionSettings(("wanda",)), CalibrationSettings())),
    ]


def test_a_model_folder_is_pruned_and_quantised(command, models, tmp_path):
    words = (f"calibration.corpus={models / 'story.txt'}", "calibration.block_length=8", "calibration.num_examples=3")
    status, out, err = command("prune", f"folder={models / 'bert'}", "out=sparse", "pattern=2:4", *words)
    assert (status, err) == (0, "")
    assert "wanda 2:4: 50.0% of the compressed weights are zero." in out
    assert out.endswith("model folder: sparse\n")
    assert load_compressed(tmp_path / "sparse").card.num_calibration_texts == 3
    status, out, err = command("quantise", "folder=sparse", "out=low")
    assert (status, err) == (0, "")
    card = load_compressed(tmp_path / "low").card
    assert f"In memory {card.bytes_after:,} bytes, {card.bytes_before:,} before." in out
    assert card.bytes_after < card.bytes_before
    assert (
        command("compress", f"folder={models / 'gpt2'}", "out=two", "compression=[random,round_to_nearest_4]")[0] == 0
    )
    assert load_compressed(tmp_path / "two").card.steps == read_steps(["random", "round_to_nearest_4"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compress compression=[wanda]", "Set run=... to compress a run's models, or folder=... and out=..."),
        (
            "compress run=x folder=y compression=[wanda]",
            "Set run=... to compress a run's models, or folder=... and out=",
        ),
        ("prune", "Set run=... to compress a run's models, or folder=... and out=..."),
        ("quantise run=x folder=y", "Set run=... to compress a run's models, or folder=... and out=..."),
        ("compress run=x", "Set compression=[...] to one step or more, such as [wanda_2to4,int8_dynamic];"),
        ("compress folder=x out=y", "Expected at least one step of compression."),
        ("compress folder=x compression=[random]", "Set out=... to the folder that the compressed model goes to."),
        ("prune folder=x out=y remove=true", "remove=true takes copies out of a run"),
        ("compress run=x compression=[wonda]", "Unknown step of compression 'wonda'. Did you mean 'wanda'?"),
        ("compress run=x compression=wanda", "Expected compression to be a list, got 'wanda'; write [wanda]."),
        ("compress run=x compression=[3]", "Expected compression to be a mapping, got 3."),
        ("compress run=x compression=[int8_dynamic,wanda]", "int8_dynamic must come last"),
        ("prune run=x method=wnda", "Expected method to be one of magnitude, wanda,"),
        ("prune run=x method=wnda", "Did you mean 'wanda'?"),
        ("prune run=x method=int8_dynamic", "Expected method to be one of magnitude, wanda,"),
        ("quantise run=x method=wanda", "Expected method to be one of round_to_nearest, int8_dynamic,"),
        ("quantise run=x bits=4", "compression method int8_dynamic does not read bits=4"),
        ("prune run=x sparsity=1", "Expected compression.sparsity below 1, the share removed, got 1.0."),
        ("prune run=x sparsity=half", "Expected compression.sparsity to be a number, got 'half'."),
        ("prune run=x sparsity=0.5 pattern=2:4", "Expected compression.sparsity or compression.pattern, got both."),
        ("prune run=x sparsty=0.5", "Unknown setting 'sparsty'. Did you mean 'sparsity'?"),
        ("prune run=x calibration.split=test", "Expected calibration.split to be one of calibration, train"),
        ("prune run=x name=ensemble", "Expected name to be letters"),
        ("prune run=x remove=no", "Expected remove to be true or false, got 'no'."),
        ("distil run=x teacher=fair", "Set teacher=fair and postprocessor=<its name> together, or neither."),
        ("distil run=x temperature=0", "Expected temperature to be greater than 0.0, got 0.0."),
        ("distil run=x scope=shards", "Did you mean 'shard'?"),
        ("distil run=x name=majority_vote", "Expected name to be letters"),
        ("distil", "Set run=...: only you can know."),
        ("export run=x name=y", "Set out=...: only you can know."),
    ],
)
def test_what_cannot_be_asked(command, tmp_path, words, said):
    status, out, err = command(*words.split())
    assert (status, out) == (2, "")
    assert said in err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


@pytest.mark.parametrize(
    "words", ["distil", "prune", "quantise", "compress compression=[random]", "export name=a out=b"]
)
def test_what_is_not_trained_has_no_smaller_models(command, words):
    verb, *rest = words.split()
    status, out, err = command(verb, "run=nowhere", *rest)
    assert (status, out) == (1, "")
    assert "nowhere has no ensemble.json: train it first" in err


def test_int8_names_the_layers_that_it_would_leave_alone(command, models, tmp_path):
    status, out, err = command("quantise", f"folder={models / 'gpt2'}", "out=low")
    assert (status, out) == (2, "")
    assert "of type Conv1D. Round to nearest instead" in err
    assert not (tmp_path / "low").exists()
    status, _, err = command("prune", f"folder={models / 'gpt2'}", "out=low")
    assert (status, "Set calibration.corpus to the text to calibrate on" in err) == (2, True)
    status, _, err = command("prune", f"folder={models / 'gpt2'}", f"out={models / 'gpt2'}", "method=random")
    assert (status, "nothing was written" in err) == (1, True)


def test_what_does_not_fit_the_run_is_said(command, original, tmp_path):
    run = copied(original, tmp_path)
    before = run.path("ensemble.json").read_bytes()
    for words, said in {
        "distil teacher=shard-7": "Unknown teacher 'shard-7'. Did you mean 'shard-",
        "distil teacher=fair postprocessor=rule": "The run has no post-processor 'rule'.",
        "distil hidden=1": "set teacher=shard-0",
        "quantise source=mini": "Expected source to be 'ensemble' or a student of the run, got 'mini'",
        "prune method=drop_layers num_layers=9": "9",
        "export name=mini out=low": "has no student or compressed copy 'mini'. It has none",
    }.items():
        verb, *rest = words.split()
        status, out, err = command(verb, "run=run", ALONE, *rest)
        assert (status, out) == (2, "")
        assert said in err
    assert run.path("ensemble.json").read_bytes() == before


@pytest.mark.parametrize("verb", MAKING)
def test_help_says_what_each_does(command, verb):
    status, out, err = command(verb, "--help")
    assert (status, err) == (0, "")
    assert VERBS[verb].summary in out
    assert "run=" in out
    assert VERBS[verb].example in out
