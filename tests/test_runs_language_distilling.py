from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairsisa.cli.composing import compose
from fairsisa.cli.language import _own
from fairsisa.cli.main import run_command
from fairsisa.compression.compressing import compress
from fairsisa.compression.distilling import DistillationWeights
from fairsisa.compression.folders import save_compressed
from fairsisa.compression.language_student import LanguageDistillation, distil_language_model
from fairsisa.compression.stored_logits import store_logits
from fairsisa.compression.students import kept_layers, truncated_student
from fairsisa.data.corpus_blocks import Blocks, encode_blocks
from fairsisa.data.texts import find_text
from fairsisa.errors import ConfigError, ModelError, RunError
from fairsisa.models.language import load_language_model
from fairsisa.models.text_tokenizers import end_of, find_tokenizer
from fairsisa.report.perplexity import PerplexityReport
from fairsisa.runs import language_teacher
from fairsisa.runs.perplexities import masking_of
from fairsisa.runs.pretrained import TEACHER, Pretrained
from fairsisa.runs.pretraining import pretrain
from fairsisa.settings import (
    PathSettings,
    PretrainingSettings,
    TrainerSettings,
    check_pretraining_trainer,
    read_steps,
    settings_from,
)

GPT2 = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 16}
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WIDE |= {"max_position_embeddings": 16}
SHAPES: dict[str, dict[str, Any]] = {"gpt2": GPT2, "bert": WIDE}
TRAINER = TrainerSettings(
    batch_size=4, learning_rate=0.01, precision="fp32", accelerator="cpu", log_every_n_steps=3, warmup=0.0
)
LOSSES = {"soft": 5.0, "hard": 2.0, "hidden": 1.0, "attention": 0.5, "temperature": 2.0}
RECIPES = ("distilbert_recipe", "distilgpt2_recipe")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.txt"
    sentences = [f"the {animal} sat on the {thing}." for animal in ("cat", "dog", "ox") for thing in ("mat", "log")]
    path.write_text("<|endoftext|>".join(sentences * 8), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def teachers(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with a tokenizer, trained for a while."""
    root = tmp_path_factory.mktemp("teachers")
    for name, shape in SHAPES.items():
        own = {"architecture": name, "shape": shape, "vocab_size": 280, "num_steps": 25, "num_checkpoints": 1}
        trained(asked(text, **own), root / name)
    return {name: root / name / "checkpoints" / "step-000025" for name in SHAPES}


def asked(text: Path, **changes: Any) -> PretrainingSettings:
    own = {"corpus": str(text), "held_out": (), "block_length": 12, "num_steps": 9, "checkpoint_steps": (0, 4)}
    if "num_checkpoints" in changes:
        own["checkpoint_steps"] = ()
    return PretrainingSettings(**{**own, **changes})


def trained(settings: PretrainingSettings, folder: Path, **changes: Any) -> PerplexityReport:
    return pretrain(settings, replace(TRAINER, **changes), folder, paths=PathSettings())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_language_model(folder).state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def blocks_of(text: Path, tokenizer: Any) -> Blocks:
    documents = find_text(str(text), cache=text.parent).documents
    return encode_blocks(documents, tokenizer, length=12, end_id=end_of(tokenizer))


def pruned(teacher: Path, folder: Path) -> Path:
    made = compress(load_language_model(teacher), read_steps([{"method": "magnitude", "sparsity": 0.6}]))
    save_compressed(made, folder, find_tokenizer(str(teacher)))
    return folder


def num_tokens(folder: Path) -> int:
    model: Any = load_language_model(folder)
    return int(model.get_output_embeddings().weight.shape[0])


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value == 0 for name, value in weights(folder).items() if value.ndim == 2 and "mlp" in name}


@pytest.mark.parametrize(("architecture", "outputs"), [("gpt2", "live"), ("gpt2", "stored"), ("bert", "live")])
def test_a_student_is_what_the_teacher_makes_of_some_of_its_layers(architecture, outputs, text, teachers, tmp_path):
    losses = LOSSES if outputs == "live" else {"soft": 1.0}
    folder = teachers[architecture]
    settings = asked(text, teacher=str(folder), num_layers=2, keep="first", teacher_outputs=outputs, **losses)
    trained(settings, tmp_path)
    teacher, tokenizer = load_language_model(folder), find_tokenizer(str(folder))
    student = truncated_student(teacher, 2, "first")
    kept = Pretrained(tmp_path)
    assert same(weights(kept.checkpoints[0]), student.state_dict())
    assert kept.tokenizer.get_vocab() == tokenizer.get_vocab()
    masking = masking_of(tokenizer, share=0.15, seed=0) if architecture == "bert" else None
    blocks = blocks_of(text, tokenizer)
    plan = LanguageDistillation(DistillationWeights(**losses), TRAINER, 9, 4, seed=0, masking=masking)
    told = teacher if outputs == "live" else store_logits(tmp_path / "told", teacher, blocks, batch_size=16)
    distil_language_model(student, told, blocks, plan)
    assert same(weights(kept.checkpoints[9]), student.state_dict())
    assert (tmp_path / TEACHER).is_file() == (outputs == "stored")


def test_a_student_comes_closer_to_its_teacher(text, teachers, tmp_path):
    trained(asked(text, teacher=str(teachers["gpt2"]), num_layers=1, num_steps=40), tmp_path)
    blocks = blocks_of(text, find_tokenizer(str(teachers["gpt2"])))
    tokens = torch.from_numpy(blocks.tokens[: 12 * 8].astype(np.int64).reshape(8, 12))
    with torch.no_grad():
        said = [
            torch.log_softmax(load_language_model(folder)(input_ids=tokens).logits, dim=-1)
            for folder in (teachers["gpt2"], *Pretrained(tmp_path).checkpoints.values())
        ]
    apart = [float((said[0].exp() * (said[0] - other)).sum(-1).mean()) for other in said[1:]]
    assert apart[2] < 0.5 * apart[0]


def test_a_teacher_that_is_stored_speaks_once(text, teachers, tmp_path, monkeypatch):
    settings = asked(text, teacher=str(teachers["gpt2"]), num_layers=2, teacher_outputs="stored")
    monkeypatch.setattr(language_teacher, "store_logits", partial(store_logits, max_bytes=1000))
    with pytest.raises(ConfigError, match=r"more than max_bytes=1000: .* \(teacher_outputs=live\)"):
        trained(settings, tmp_path)
    monkeypatch.undo()
    trained(settings, tmp_path)
    before = (tmp_path / TEACHER).stat().st_mtime_ns
    (tmp_path / "training.safetensors").unlink()
    monkeypatch.delattr(language_teacher, "store_logits")
    trained(settings, tmp_path)
    assert (tmp_path / TEACHER).stat().st_mtime_ns == before


def test_masks_of_every_epoch_are_stored(text, teachers, tmp_path):
    settings = asked(text, teacher=str(teachers["bert"]), num_layers=1, teacher_outputs="stored", num_steps=22)
    trained(settings, tmp_path)
    assert [*Pretrained(tmp_path).checkpoints] == [0, 4, 22]


@pytest.mark.parametrize("taught", [True, False])
def test_zeros_of_a_pruned_model_stay_where_asked(taught, text, teachers, tmp_path):
    start = pruned(teachers["gpt2"], tmp_path / "pruned")
    own: dict[str, Any] = {"start": str(start)} | ({"teacher": str(teachers["gpt2"])} if taught else {})
    trained(asked(text, **own, keep_zeros=True), tmp_path / "kept")
    trained(asked(text, **own), tmp_path / "free")
    before = zeros(start)
    assert all(0.5 < float(mask.float().mean()) < 0.7 for mask in before.values())
    for name, after in zeros(tmp_path / "kept" / "checkpoints" / "step-000009").items():
        assert torch.equal(after, before[name])
    assert not any(mask.any() for mask in zeros(tmp_path / "free" / "checkpoints" / "step-000009").values())
    with pytest.raises(ConfigError, match=r"No weight layer of start=.* holds a zero: leave out keep_zeros"):
        trained(asked(text, start=str(teachers["gpt2"]), keep_zeros=True), tmp_path / "none")


def test_a_student_of_another_architecture_reads_as_its_teacher_does(text, teachers, tmp_path):
    settings = asked(text, teacher=str(teachers["gpt2"]), architecture="llama", shape={**WIDE, "hidden_size": 8})
    trained(settings, tmp_path)
    model: Any = load_language_model(Pretrained(tmp_path).checkpoints[9])
    assert (model.config.model_type, model.config.vocab_size) == ("llama", num_tokens(teachers["gpt2"]))


def test_teachers_that_do_not_fit_are_refused(text, teachers, tmp_path):
    (tmp_path / "other.txt").write_text("nothing like that stood in the other text " * 20)
    own = {"architecture": "gpt2", "shape": GPT2, "vocab_size": 280, "num_steps": 1, "num_checkpoints": 1}
    trained(asked(tmp_path / "other.txt", **own), tmp_path / "other")
    other, teacher = tmp_path / "other" / "checkpoints" / "step-000001", str(teachers["gpt2"])
    for name in ("start", "tokenizer"):
        more = {"start": str(other)} if name == "start" else {"num_layers": 1, "tokenizer": str(other)}
        with pytest.raises(ConfigError, match=rf"tokens of teacher=.* are not those of {name}=.* Give another {name}"):
            trained(asked(text, teacher=teacher, **more), tmp_path / name)
    shape = {**GPT2, "vocab_size": 300}
    expected = f"student of the teacher's {num_tokens(teachers['gpt2'])} tokens, got one of 300"
    with pytest.raises(ConfigError, match=expected):
        trained(asked(text, teacher=teacher, architecture="gpt2", shape=shape), tmp_path / "wide")
    with pytest.raises(ConfigError, match="bert is a masked language model"):
        trained(asked(text, teacher=str(teachers["bert"]), architecture="gpt2", shape=GPT2), tmp_path / "kinds")
    with pytest.raises(ConfigError, match="num_layers to be at most 4"):
        trained(asked(text, teacher=teacher, num_layers=5), tmp_path / "deep")
    with pytest.raises(ModelError, match=r"\./nowhere is no folder"):
        trained(asked(text, teacher="./nowhere", num_layers=1), tmp_path / "none")


def test_a_teacher_may_not_change_on_the_way(text, teachers, tmp_path):
    teacher = pruned(teachers["gpt2"], tmp_path / "teacher")
    settings = asked(text, teacher=str(teacher), num_layers=2)
    trained(settings, tmp_path / "run")
    trained(settings, tmp_path / "run")
    save_compressed(compress(load_language_model(teachers["gpt2"]), read_steps(["round_to_nearest_2"])), teacher)
    with pytest.raises(RunError, match=r"The teacher of .*run has changed since it began: choose another run="):
        trained(settings, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 2}, "num_layers=2 is about a teacher: set teacher="),
        ({"hard": 1.0}, "hard=1.0 is about a teacher"),
        ({"teacher_outputs": "stored"}, "teacher_outputs=stored is about a teacher"),
        ({"teacher": "t"}, "Set num_layers=..., start=... or architecture=...: how does the student begin?"),
        ({"teacher": "t", "num_layers": 2, "start": "s"}, "start and num_layers each say how the model begins"),
        ({"teacher": "t", "num_layers": 2, "shape": {"n_layer": 1}}, "num_layers=2 has its shape already"),
        ({"teacher": "t", "num_layers": 0}, "num_layers to be at least 1"),
        ({"teacher": "t", "num_layers": 2, "keep": "last"}, "keep to be one of alternate, first"),
        ({"teacher": "t", "num_layers": 2, "soft": 0.0}, "Expected one of soft, hard, hidden, attention to be above 0"),
        ({"teacher": "t", "num_layers": 2, "temperature": 0.0}, "temperature to be greater than 0"),
        (
            {"teacher": "t", "num_layers": 2, "hidden": 1.0, "teacher_outputs": "stored"},
            "set hidden=0 and attention=0, or teacher_outputs=live",
        ),
    ],
)
def test_settings_of_a_teacher_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        PretrainingSettings(**changes)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_those_of_the_papers(name):
    config = compose("pretrain", ["run=x", f"experiment={name}"])
    settings = _own(config, PretrainingSettings)
    losses = (settings.soft, settings.hard, settings.hidden, settings.attention, settings.temperature)
    assert losses == (5.0, 2.0, 1.0, 0.0, 2.0)
    assert kept_layers(12, int(settings.num_layers or 0), settings.keep) == (0, 2, 4, 7, 9, 11)
    assert settings.new_architecture is None
    trainer = settings_from(TrainerSettings, config["trainer"], "trainer")
    check_pretraining_trainer(trainer)
    assert (trainer.learning_rate, trainer.weight_decay, trainer.warmup) == (5e-4, 0.0, 0.05)
    assert trainer.gradient_clip == 5.0


def test_the_verb_distils(text, teachers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"teacher='{teachers['gpt2']}'", "num_layers=2", f"corpus='{text}'", "held_out=[]", "block_length=12"]
    trainer = ["trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.batch_size=4"]
    status = run_command(["distil", "lm", "run=out", "num_steps=2", "num_checkpoints=1", *words, *trainer])
    assert (status, capsys.readouterr().err) == (0, "")
    assert Pretrained("out").settings.teacher == str(teachers["gpt2"])
    assert run_command(["distil", "lm", "run=out", "num_layer=2"]) == 2
    assert "Did you mean 'num_layers'?" in capsys.readouterr().err
