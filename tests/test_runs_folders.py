from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fairsisa.compression.folders import load_compressed, load_model
from fairsisa.errors import ConfigError, DataError, ModelError, RunError
from fairsisa.models.base import digest_of, read_tokenizer
from fairsisa.models.text_tokenizers import train_tokenizer
from fairsisa.runs.folders import Places, calibration_blocks, compress_folder
from fairsisa.settings import CalibrationSettings, read_steps

SENTENCES = [f"the {animal} sat on the {place} and ate {count} fish" for animal in ("cat", "dog", "fox", "owl", "hen")
             for place in ("mat", "hill", "boat") for count in ("two", "three", "many")]  # fmt: skip
LENGTH = 8
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
    },
}
KINDS = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM),
}
every_kind = pytest.mark.parametrize("kind", SHAPES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and two models, each with a tokenizer trained on that text."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text("\n".join(SENTENCES) + "<|endoftext|>" + "\n".join(reversed(SENTENCES)))
    for kind, (config, model) in KINDS.items():
        tokenizer = train_tokenizer(SENTENCES, 290, masked=kind == "bert")
        torch.manual_seed(3)
        model(config(vocab_size=len(tokenizer), **SHAPES[kind])).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder


def calibration(made: Path, **changes: Any) -> CalibrationSettings:
    return CalibrationSettings(
        **{"num_examples": 5, "corpus": str(made / "text.txt"), "block_length": LENGTH, **changes}
    )


def compressed(made: Path, kind: str, out: Path, *steps: Any, **changes: Any) -> Any:
    places = Places(None, made / "cache")
    settings = calibration(made, **changes)
    return compress_folder(str(made / kind), out, read_steps(steps), calibration=settings, places=places)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


@every_kind
@pytest.mark.parametrize("method", ["wanda_2to4", "sparsegpt"])
def test_a_folder_is_compressed_into_another_with_its_tokenizer_and_card(made, kind, method, tmp_path):
    card = compressed(made, kind, tmp_path / "out", method)
    assert card.parents == (digest_of(made / kind),)
    assert card.num_calibration_texts == 5
    assert len(card.calibration_digest) == 64
    assert card == load_compressed(tmp_path / "out").card
    assert json.loads((tmp_path / "out" / "compression.json").read_text())["card"]["parents"] == list(card.parents)
    zeros = {name: int((value == 0).sum()) for name, value in weights_of(tmp_path / "out").items()}
    assert {layer.name: layer.num_zeros for layer in card.layers} == {
        layer.name: zeros[f"{layer.name}.weight"] for layer in card.layers
    }
    assert card.sparsity == pytest.approx(0.5)
    page = (tmp_path / "out" / "README.md").read_text()
    assert card.calibration_digest in page
    assert card.parents[0] in page
    text = SENTENCES[0]
    assert read_tokenizer(tmp_path / "out")(text)["input_ids"] == read_tokenizer(made / kind)(text)["input_ids"]


def test_the_same_seed_draws_the_same_texts_and_gives_the_same_bits(made, tmp_path):
    one = compressed(made, "gpt2", tmp_path / "one", "wanda")
    two = compressed(made, "gpt2", tmp_path / "two", "wanda")
    other = compressed(made, "gpt2", tmp_path / "other", "wanda", seed=1)
    assert one == two
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert one.calibration_digest != other.calibration_digest
    assert one.parents == other.parents


def test_the_digest_is_that_of_the_texts(made, tmp_path):
    one = compressed(made, "gpt2", tmp_path / "one", "wanda")
    changed = tmp_path / "text.txt"
    changed.write_text((made / "text.txt").read_text().replace("fish", "worms"))
    other = compressed(made, "gpt2", tmp_path / "other", "wanda", corpus=str(changed))
    assert one.calibration_digest != other.calibration_digest


@every_kind
def test_blocks_are_whole_drawn_once_and_no_more_than_there_are(made, kind):
    tokenizer, places = read_tokenizer(made / kind), Places(None, made / "cache")
    blocks, few = calibration_blocks(tokenizer, calibration(made), places)
    _, all_of_them = calibration_blocks(tokenizer, calibration(made, num_examples=10**6), places)
    assert len(few) == len(set(few)) == 5
    assert all_of_them[:5] == few
    assert sorted(all_of_them) == np.flatnonzero(blocks.lengths == LENGTH).tolist()
    assert all(len(blocks.block_tokens(row)) == LENGTH for row in all_of_them)
    text = " ".join(SENTENCES)
    words = set(tokenizer.decode(blocks.block_tokens(few[0]), skip_special_tokens=True).split()[1:-1])
    assert words <= set(text.split())


@every_kind
def test_methods_without_calibration_need_no_text(made, kind, tmp_path):
    card = compressed(made, kind, tmp_path / "out", "magnitude_global", "round_to_nearest_4", corpus="not there")
    assert (card.calibration_digest, card.num_calibration_texts) == (None, 0)
    assert {layer.bits for layer in card.layers if layer.shape[1] > 0} <= {4, 32}


def test_nothing_removed_changes_no_weight(made, tmp_path):
    for kind in SHAPES:
        compressed(made, kind, tmp_path / kind, {"method": "wanda", "sparsity": 0.0})
        before, after = weights_of(made / kind), weights_of(tmp_path / kind)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_compressed_folder_may_be_compressed_again_and_names_its_parent(made, tmp_path):
    compressed(made, "bert", tmp_path / "once", "wanda")
    card = compress_folder(
        str(tmp_path / "once"),
        tmp_path / "twice",
        read_steps(["int8_dynamic"]),
        calibration=CalibrationSettings(),
        places=Places(None, made),
    )
    assert card.parents == (digest_of(tmp_path / "once"),) != (digest_of(made / "bert"),)
    assert {layer.stored_bits for layer in card.layers} == {8}


def test_an_older_folder_is_replaced(made, tmp_path):
    compressed(made, "bert", tmp_path / "out", "int8_dynamic")
    (tmp_path / "out" / "stray.txt").write_text("old")
    compressed(made, "bert", tmp_path / "out", "random")
    assert not (tmp_path / "out" / "stray.txt").exists()
    assert [step.method for step in load_compressed(tmp_path / "out").card.steps] == ["random"]


@pytest.mark.parametrize("way", ["same", "dotted", "link"])
def test_the_models_own_folder_is_never_written(made, way, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(made / "gpt2")
    out = {"same": made / "gpt2", "dotted": made / "bert" / ".." / "gpt2", "link": link}[way]
    before = digest_of(made / "gpt2")
    with pytest.raises(RunError, match=r"another folder than the model's own, .*: nothing was written"):
        compressed(made, "gpt2", out, "random")
    assert digest_of(made / "gpt2") == before


@pytest.mark.parametrize(
    "case",
    [
        ("gpt2", "int8_dynamic", {}, (ConfigError, "silently leave alone .*of type Conv1D")),
        ("gpt2", "torchao_int8_weight_only", {}, (ConfigError, "Conv1D")),
        ("gpt2", "wanda", {"corpus": None}, (ConfigError, r"Set calibration\.corpus to the text to calibrate on")),
        ("gpt2", "wanda", {"corpus": "nowhere.txt"}, (DataError, "nowhere")),
        ("gpt2", "wanda", {"block_length": 4096}, (ConfigError, "calibration")),
        ("gpt2", "wanda", {"block_length": 33}, (ConfigError, r"calibration\.block_length of at most 32, which")),
        ("gpt2", {"method": "drop_layers", "num_layers": 9}, {}, (ConfigError, "9")),
        ("bert", {"method": "wanda", "pattern": "2:5"}, {}, (ConfigError, "Layer .*5")),
        ("none", "random", {}, (ModelError, "none")),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(case, made, tmp_path):
    kind, step, changes, (error, problem) = case
    with pytest.raises(error, match=problem):
        compressed(made, kind, tmp_path / "out", step, **changes)
    assert list(tmp_path.iterdir()) == []
