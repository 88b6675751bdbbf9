"""Folders hold models whole, tell what they are, and are read without running anything from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from compressor_contract import answers, make_batches, make_model
from fairsisa.compression import folders
from fairsisa.compression.compressing import Compressed, compress
from fairsisa.compression.folders import load_compressed, load_model, save_compressed
from fairsisa.errors import ModelError, StoreError
from fairsisa.models.language import load_language_model
from fairsisa.settings.steps import Step, read_steps

ARCHITECTURES = ["gpt2", "llama", "masked", "classifier"]


def made_by(*steps: str, architecture: str = "llama") -> Compressed:
    return compress(make_model(architecture), read_steps(steps), make_batches())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(answers(one), answers(other), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_only_pruned_is_read_by_transformers_itself(architecture, tmp_path):
    made = made_by("wanda", architecture=architecture)
    save_compressed(made, tmp_path / "m")
    kind = getattr(transformers, type(made.model).__name__)
    theirs, info = kind.from_pretrained(tmp_path / "m", attn_implementation="eager", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(made.model, theirs.eval())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_of_transformers_is_read_as_what_it_says_it_is(architecture, tmp_path):
    model = make_model(architecture)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.config._attn_implementation == "eager"
    assert same(model, loaded)


def test_sixteen_bits_are_read_as_fp32_and_kept_as_they_are_in_ours(tmp_path):
    model = make_model("llama").bfloat16()
    model.save_pretrained(tmp_path / "plain")
    assert {p.dtype for p in load_model(tmp_path / "plain").parameters()} == {torch.float32}
    made = compress(model, [Step("magnitude")])
    save_compressed(made, tmp_path / "ours")
    assert same(made.model, load_model(tmp_path / "ours"))


def test_the_one_door_opens_our_folders_too(tmp_path):
    made = made_by("wanda_2to4", "int8_dynamic")
    save_compressed(made, tmp_path / "m")
    assert same(made.model, load_model(tmp_path / "m"))
    assert load_compressed(tmp_path / "m").card == made.card
    page = (tmp_path / "m" / "README.md").read_text()
    assert f"{(tmp_path / 'm' / 'model.safetensors').stat().st_size:,} bytes" in page


def test_int8_takes_a_byte_a_weight_and_no_one_reads_it_as_something_else(tmp_path):
    made = made_by("int8_dynamic")
    save_compressed(made, tmp_path / "m")
    weights = sum(each.num_weights for each in made.card.layers)
    others = 4 * (made.card.num_parameters - weights)
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert weights + others < size < weights + others + 400 * len(made.card.layers)
    with pytest.raises(ModelError, match="lacks 15 weights"):
        load_language_model(tmp_path / "m")


def test_generation_settings_and_tokenizer_come_along(tmp_path):
    made = made_by("magnitude")
    made.model.generation_config.max_new_tokens = 7
    core = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    save_compressed(made, tmp_path / "m", tokenizer)
    assert load_compressed(tmp_path / "m").model.generation_config.max_new_tokens == 7
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert back("a")["input_ids"] == [1]


def test_a_save_that_fails_leaves_the_old_folder_and_the_next_one_replaces_it(tmp_path, monkeypatch):
    first, second = made_by("magnitude"), made_by("random")
    save_compressed(first, tmp_path / "m")

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "save_file", full)
        with pytest.raises(StoreError, match="free disk space"):
            save_compressed(second, tmp_path / "m")
    assert same(load_model(tmp_path / "m"), first.model)
    save_compressed(second, tmp_path / "m")
    assert same(load_model(tmp_path / "m"), second.model)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_no_config_tells_how_to_build_is_not_saved(tmp_path):
    with pytest.raises(ModelError, match=r"got Sequential: keep it by `packing.pack`"):
        save_compressed(compress(nn.Sequential(nn.Linear(2, 2)), [Step("random")]), tmp_path / "m")
    bare = compress(make_model("classifier").bert, [Step("random")])
    with pytest.raises(ModelError, match="got architecture 'BertModel'"):
        save_compressed(bare, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_weights_that_would_be_random_are_refused(tmp_path):
    make_model("classifier").bert.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="got architecture 'BertModel' of type 'bert'"):
        load_model(tmp_path)
    change(tmp_path / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelError, match="lacks 2 weights of a BertForSequenceClassification, classifier"):
        load_model(tmp_path)
    change(tmp_path / "config.json", architectures=["GPT2LMHeadModel"])
    with pytest.raises(ModelError, match="got architecture 'GPT2LMHeadModel' of type 'bert'"):
        load_model(tmp_path)
    change(tmp_path / "config.json", architectures=None)
    with pytest.raises(ModelError, match="got architecture None"):
        load_model(tmp_path)


def test_pickled_weights_and_strangers_code_are_not_touched(tmp_path):
    model = make_model("gpt2")
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="fairsisa loads no pickled weights"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    change(tmp_path / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="No config can be read"):
        load_model(tmp_path)


def test_checkpoints_quantised_elsewhere_go_through_their_own_reader(tmp_path, monkeypatch):
    make_model("llama").save_pretrained(tmp_path)
    change(tmp_path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    read = nn.Identity()
    monkeypatch.setattr(folders, "load_foreign", lambda folder: read if folder == tmp_path else None)
    assert load_model(tmp_path) is read


def test_damaged_folders_are_told(tmp_path):
    with pytest.raises(ModelError, match=r"holds no compression.json: .* load_model"):
        load_compressed(tmp_path)
    save_compressed(made_by("int8_dynamic"), tmp_path / "m")
    record = tmp_path / "m" / "compression.json"
    whole = record.read_text()
    for text, message in [
        (whole[:50], "no compressed model that can be read"),
        ("{}", "KeyError|layout"),
        (whole.replace('"parents"', '"grandparents"'), "card is damaged"),
        (whole.replace('"format": "int8_dynamic"', '"format": "pickle"'), "format of layers"),
    ]:
        record.write_text(text)
        with pytest.raises(ModelError, match=message):
            load_compressed(tmp_path / "m")
    record.write_text(whole)
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ModelError, match="no compressed model that can be read"):
        load_model(tmp_path / "m")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
