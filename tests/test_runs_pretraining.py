from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fairsisa.data.texts import find_text
from fairsisa.errors import ConfigError, ModelError, RunError
from fairsisa.models.language import load_language_model
from fairsisa.models.text_tokenizers import find_tokenizer
from fairsisa.report.perplexity import PerplexityReport
from fairsisa.runs.pretrained import Pretrained
from fairsisa.runs.pretraining import pretrain
from fairsisa.settings import PathSettings, PretrainingSettings, TrainerSettings

WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WIDE |= {"max_position_embeddings": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "llama": {**WIDE, "num_key_value_heads": 1},
    "gpt_neox": WIDE,
    "bert": WIDE,
}
TRAINER = TrainerSettings(
    batch_size=4, learning_rate=0.01, precision="fp32", accelerator="cpu", log_every_n_steps=3, warmup=0.0
)
DRIVER = """
import hashlib, json, os, signal, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from fairsisa.compression import language_student, stored_logits
from fairsisa.models import language, step_checkpoints
from fairsisa.runs import pretrained
from fairsisa.runs.pretraining import pretrain
from fairsisa.settings import PathSettings, PretrainingSettings, TrainerSettings, settings_from

root, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
trainer = settings_from(TrainerSettings, asked["trainer"], "trainer")

def run(settings, folder, fault=None):
    if fault is not None:
        install(*fault)
    pretrain(settings_from(PretrainingSettings, settings, ""), trainer, folder, paths=PathSettings())

def install(place, count):
    module, name = {
        "step": (language, "summed_loss"),
        "taught step": (language_student, "distillation_loss"),
        "teacher": (stored_logits, "publish"),
        "weights": (language, "publish"),
        "state": (step_checkpoints, "write_training_state"),
        "tokenizer": (pretrained, "publish"),
    }[place]
    function, left = getattr(module, name), [count]
    def deadly(*args, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    setattr(module, name, deadly)

def killed(settings, folder, fault):
    child = os.fork()
    if not child:
        try:
            run(settings, folder, fault)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def digest(folder):
    names = [*sorted((folder / "checkpoints").rglob("*.safetensors")), folder / "curve.csv", folder / "report.json"]
    parts = [path.read_bytes() for path in names[:-1]]
    rows = json.loads(names[-1].read_text())["rows"]
    parts.append(repr([row["loss"] for row in rows]).encode())
    return [hashlib.sha256(part).hexdigest() for part in parts]

told = {}
for name, settings in asked["settings"].items():
    whole, broken = root / f"{name}-whole", root / f"{name}-broken"
    statuses = [killed(settings, broken, fault) for fault in asked["faults"][name]]
    run(settings, broken)
    run(settings, whole)
    told[name] = {"statuses": statuses, "whole": digest(whole), "broken": digest(broken)}
print(json.dumps(told))
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    sentences = [f"the {animal} sat on the {thing}." for animal in ("cat", "dog", "ox") for thing in ("mat", "log")]
    for name, times in (("train", 8), ("held_out", 2)):
        (folder / f"{name}.txt").write_text("<|endoftext|>".join(sentences * times), encoding="utf-8")
    return folder


def asked(texts: Path, architecture: str | None = "gpt2", **changes: Any) -> PretrainingSettings:
    own = {
        "corpus": str(texts / "train.txt"),
        "held_out": (str(texts / "held_out.txt"),),
        "architecture": architecture,
        "shape": SHAPES[architecture] if architecture else {},
        "vocab_size": 280,
        "block_length": 12,
        "num_steps": 9,
        "checkpoint_steps": (0, 4),
    }
    return PretrainingSettings(**{**own, **changes})


def trained(settings: PretrainingSettings, folder: Path, **changes: Any) -> PerplexityReport:
    return pretrain(settings, replace(TRAINER, **changes), folder, paths=PathSettings())


def same(left: Path, right: Path) -> bool:
    first, second = (load_language_model(folder).state_dict() for folder in (left, right))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("architecture", SHAPES)
def test_each_shape_is_trained_and_measured_where_checkpoints_were_asked_for(architecture, texts, tmp_path):
    report = trained(asked(texts, architecture, num_steps=40), tmp_path)
    kept = Pretrained(tmp_path)
    assert [*kept.checkpoints] == [0, 4, 40]
    assert report.table["step"].tolist() == [0, 4, 40]
    assert report.table["perplexity"].iloc[2] < 0.7 * report.table["perplexity"].iloc[0]
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve["step"].tolist() == [*range(3, 40, 3), 40]
    assert curve["loss"].iloc[-1] < curve["loss"].iloc[0]
    assert find_tokenizer(str(kept.checkpoints[40]))("the cat")["input_ids"] == kept.tokenizer("the cat")["input_ids"]
    model: Any = load_language_model(kept.checkpoints[40])
    assert model.config.model_type == architecture
    assert model.config.vocab_size == len(kept.tokenizer)
    assert {"report.html", "report.csv", "report.json", "environment.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


def require_same_end(settings: dict[str, dict[str, Any]], faults: dict[str, list[tuple[str, int]]], root: Path) -> None:
    """Train each in a process that is killed at its faults and begun again, and once more in one go."""
    given = {"settings": settings, "trainer": vars(TRAINER), "faults": faults}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(root), json.dumps(given)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, told in json.loads(done.stdout.splitlines()[-1]).items():
        assert told["statuses"] == [-9] * len(faults[name])
        assert told["broken"] == told["whole"]


def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bits(texts, tmp_path):
    settings = {name: vars(asked(texts, name)) | {"checkpoint_steps": [4, 6]} for name in ("gpt2", "bert")}
    faults = {"gpt2": [("tokenizer", 0), ("step", 2), ("weights", 0), ("state", 0), ("step", 5), ("state", 1)]}
    faults["bert"] = [("step", 5), ("step", 1)]
    require_same_end(settings, faults, tmp_path)


def test_a_student_that_is_killed_ends_with_the_same_bits(texts, tmp_path):
    trained(asked(texts), tmp_path / "teacher")
    teacher = str(tmp_path / "teacher" / "checkpoints" / "step-000009")
    taught = {"checkpoint_steps": [4, 6], "teacher": teacher, "num_layers": 1}
    settings = {"live": vars(asked(texts, None, **taught, soft=2.0, hard=1.0, hidden=0.5, attention=0.5))}
    settings["stored"] = vars(asked(texts, None, **taught, teacher_outputs="stored"))
    faults = {"live": [("taught step", 5), ("weights", 0)], "stored": [("teacher", 0), ("taught step", 5)]}
    require_same_end(settings, faults, tmp_path)


def test_the_same_command_again_changes_nothing(texts, tmp_path):
    settings = asked(texts)
    first = trained(settings, tmp_path)
    file = tmp_path / "checkpoints" / "step-000009" / "model.safetensors"
    before = file.stat().st_mtime_ns
    again = trained(settings, tmp_path)
    assert file.stat().st_mtime_ns == before
    assert again.table["loss"].tolist() == first.table["loss"].tolist()
    assert again.curve.equals(first.curve)


def test_a_directory_takes_no_other_settings(texts, tmp_path):
    trained(asked(texts), tmp_path)
    with pytest.raises(RunError, match="holds a pretraining with num_steps=9, but 10 was asked for"):
        trained(asked(texts, num_steps=10), tmp_path)
    with pytest.raises(RunError, match=r"with trainer\.learning_rate=0\.01, but 0\.02"):
        trained(asked(texts), tmp_path, learning_rate=0.02)
    corpus = tmp_path / "train.txt"
    corpus.write_text("one<|endoftext|>two " * 20)
    settings = asked(texts, corpus=str(corpus), block_length=4)
    trained(settings, tmp_path / "own")
    corpus.write_text("one<|endoftext|>three " * 20)
    with pytest.raises(RunError, match=r"corpus of .* has changed"):
        trained(settings, tmp_path / "own")


def test_training_goes_on_from_any_checkpoint(texts, tmp_path):
    trained(asked(texts), tmp_path / "first")
    start = tmp_path / "first" / "checkpoints" / "step-000009"
    more = asked(texts, None, start=str(start), checkpoint_steps=(0,), num_steps=6)
    report = trained(more, tmp_path / "second", schedule="constant")
    assert same(start, tmp_path / "second" / "checkpoints" / "step-000000")
    assert not same(start, tmp_path / "second" / "checkpoints" / "step-000006")
    assert report.table["loss"].iloc[1] < report.table["loss"].iloc[0]


def test_an_encoder_gets_a_head_and_may_keep_all_else(texts, tmp_path):
    trained(asked(texts, "bert", num_steps=2, checkpoint_steps=()), tmp_path / "whole")
    encoder = load_language_model(tmp_path / "whole" / "checkpoints" / "step-000002").base_model
    start = tmp_path / "encoder"
    encoder.save_pretrained(start)
    Pretrained(tmp_path / "whole").tokenizer.save_pretrained(start)
    lonely = asked(texts, None, start=str(start), num_steps=3, checkpoint_steps=())
    with pytest.raises(ModelError, match=r"lacks .* weights of a language model"):
        trained(lonely, tmp_path / "lonely")
    before = {name: value.clone() for name, value in encoder.state_dict().items() if "pooler" not in name}
    for trains in ("head", "full"):
        trained(replace(lonely, new_head=True, trains=trains), tmp_path / trains)
        made = load_language_model(tmp_path / trains / "checkpoints" / "step-000003")
        after = made.base_model.state_dict()
        moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
        tied = {name for name in before if "word_embeddings" in name}
        assert moved == (tied if trains == "head" else set(before))
    first, again = (load_language_model(start, head_seed=0).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(ConfigError, match="new_head=true needs start"):
        asked(texts, "bert", new_head=True)


def test_a_head_is_new_where_the_encoder_is_whole_only(texts, tmp_path):
    trained(asked(texts, "bert", num_steps=1, checkpoint_steps=()), tmp_path / "whole")
    start = tmp_path / "encoder"
    encoder = load_language_model(tmp_path / "whole" / "checkpoints" / "step-000001").base_model
    state = {name: value for name, value in encoder.state_dict().items() if "layer.1.output" not in name}
    encoder.save_pretrained(start, state_dict=state)
    with pytest.raises(ModelError, match=r"lacks .* weights of a language model, bert\.encoder"):
        load_language_model(start, head_seed=0)


def test_a_checkpoint_taken_away_is_missed(texts, tmp_path):
    settings = asked(texts)
    trained(settings, tmp_path)
    (tmp_path / "checkpoints" / "step-000009").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="lacks the checkpoint of step 9, from which training goes on"):
        trained(settings, tmp_path)
    (tmp_path / "training.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is no saved state of training"):
        trained(settings, tmp_path)


def test_a_pretraining_needs_no_held_out_text(texts, tmp_path):
    report = trained(asked(texts, held_out=()), tmp_path)
    assert not len(report.table)
    assert "nothing was measured" in (tmp_path / "report.html").read_text()


def test_settings_that_do_not_fit_are_refused(texts, tmp_path):
    with pytest.raises(ConfigError, match=r"has no slices: leave out trainer\.max_epochs"):
        trained(asked(texts), tmp_path, max_epochs=7.0)
    with pytest.raises(ConfigError, match="architecture and start each say how the model begins: keep one"):
        asked(texts, start="gpt2")
    with pytest.raises(ConfigError, match="has its shape already"):
        PretrainingSettings(architecture=None, start="gpt2", shape={"n_layer": 2})
    with pytest.raises(ConfigError, match=r"keep_zeros=true needs start="):
        asked(texts, keep_zeros=True)
    with pytest.raises(ConfigError, match="checkpoint_steps to be at most 9"):
        asked(texts, checkpoint_steps=(10,))
    with pytest.raises(ConfigError, match="at most 16 tokens"):
        trained(asked(texts, block_length=17), tmp_path / "long")
    train = find_text(str(texts / "train.txt"), cache=tmp_path)
    assert len(train.documents) == 48
    with pytest.raises(RunError, match="holds no pretraining"):
        _ = Pretrained(tmp_path / "nowhere").settings


@pytest.mark.parametrize(
    ("num_steps", "num_checkpoints", "listed", "kept"),
    [
        (1000, 10, (), tuple(range(100, 1001, 100))),
        (10, 3, (), (3, 6, 10)),
        (2, 10, (), (1, 2)),
        (50, 1, (0, 5, 20), (0, 5, 20, 50)),
    ],
)
def test_checkpoints_are_spaced_evenly_or_as_listed(num_steps, num_checkpoints, listed, kept):
    settings = PretrainingSettings(num_steps=num_steps, num_checkpoints=num_checkpoints, checkpoint_steps=listed)
    assert settings.kept_steps == kept
    assert math.isclose(settings.mask_share, 0.15)
