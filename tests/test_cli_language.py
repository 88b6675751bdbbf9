from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from fairsisa.cli.composing import compose, options
from fairsisa.cli.language import _own
from fairsisa.cli.main import run_command
from fairsisa.data.texts import TEXTS
from fairsisa.models.language import language_config
from fairsisa.settings import (
    PerplexitySettings,
    PretrainingSettings,
    TrainerSettings,
    check_pretraining_trainer,
    plain,
    settings_from,
)

Command = Callable[..., tuple[int, str, str]]
SENTENCES = [f"the {animal} sat on the {thing}." for animal in ("cat", "dog", "ox") for thing in ("mat", "log")]
SMALL = [
    *("+shape.n_embd=16", "+shape.n_layer=1", "+shape.n_head=2", "+shape.n_positions=16"),
    "vocab_size=270",
    "block_length=8",
    "num_steps=4",
    "num_checkpoints=2",
    "trainer.batch_size=4",
    "trainer.precision=fp32",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    for name, times in (("train", 8), ("held", 2)):
        Path(f"{name}.txt").write_text("<|endoftext|>".join(SENTENCES * times), encoding="utf-8")

    def give(*words: str) -> tuple[int, str, str]:
        before = torch.get_num_threads()
        status = run_command(words)
        assert torch.get_num_threads() == before
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return give


@pytest.mark.parametrize("name", ["tinystories_gpt2", "wikitext2_bert"])
def test_the_shipped_choices_fit_together(name):
    assert name in options()["experiment"]
    config = compose("pretrain", ["run=x", f"experiment={name}"])
    settings = _own(config, PretrainingSettings)
    assert {settings.corpus, *settings.held_out} <= set(TEXTS)
    assert settings.corpus not in settings.held_out
    made = language_config(str(settings.architecture), settings.shape)
    assert made.max_position_embeddings >= settings.block_length
    trainer = settings_from(TrainerSettings, config["trainer"], "trainer")
    check_pretraining_trainer(trainer)
    assert (trainer.learning_rate, trainer.weight_decay) == (1e-3, 0.1)


def test_the_settings_are_those_of_the_library():
    assert _own(compose("pretrain", ["run=x"]), PretrainingSettings) == PretrainingSettings()
    assert _own(compose("perplexity", ["run=x"]), PerplexitySettings) == PerplexitySettings()
    given = _own(compose("perplexity", ["run=x", "models=a", "corpora=[b,c]"]), PerplexitySettings)
    assert (given.models, given.corpora) == (("a",), ("b", "c"))
    assert plain(PretrainingSettings())["held_out"] == ["tinystories_held_out"]


def test_a_model_is_pretrained_and_measured_again(command):
    words = ["pretrain", "run=out", "corpus=train.txt", "held_out=held.txt", *SMALL]
    status, out, err = command(*words)
    assert (status, err) == (0, "")
    assert "[2/4] loss " in out
    assert "held: step-000004 predicts it best of 2 models, perplexity " in out
    assert "page: out/report.html" in out
    assert "fairsisa pretrain run=out corpus=train.txt" in Path("out/report.html").read_text()
    status, out, _ = command("perplexity", "run=out", "corpora=[held.txt,train.txt]", "num_replicates=100")
    assert status == 0
    assert "train: step-000004 predicts it best" in out
    table = pd.read_csv("out/perplexity.csv")
    assert table["corpus"].tolist() == ["held", "train"] * 2
    report = pd.read_csv("out/report.csv")
    assert table["loss"].iloc[[0, 2]].tolist() == report["loss"].tolist()
    two = "models=[out/checkpoints/step-000004,out/checkpoints/step-000002]"
    status, out, _ = command("perplexity", "run=two", two, "corpora=held.txt", "block_length=8")
    assert (status, out.splitlines()[-1]) == (0, "page: two/perplexity.html")
    assert pd.read_csv("two/perplexity.csv")["loss"].tolist() == report["loss"].tolist()[::-1]
    status, out, err = command(*words, "num_steps=6")
    assert (status, out.splitlines()) == (1, ["run: out"])
    assert "holds a pretraining with num_steps=4, but 6 was asked for" in err


def test_what_is_asked_wrongly_is_said(command):
    status, _, err = command("pretrain", "run=out", "architectur=llama")
    assert (status, "Did you mean 'architecture'" in err) == (2, True)
    status, _, err = command("perplexity", "run=out")
    assert (status, "Set corpora=[<names or paths>]" in err) == (2, True)
    status, _, err = command("perplexity", "run=out", "corpora=held.txt")
    assert (status, "set models=[<folders>]" in err) == (2, True)
    status, _, err = command("pretrain", "run=out", "corpus=gone.txt", "held_out=[]")
    assert (status, "Expected a text file at gone.txt" in err) == (1, True)
    for verb in ("pretrain", "perplexity"):
        status, out, _ = command(verb, "--help")
        assert status == 0
        assert "block_length=" in out
