from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fairsisa.compression.compressing import compress
from fairsisa.compression.folders import save_compressed
from fairsisa.data.corpus_blocks import Document, encode_blocks
from fairsisa.data.texts import Text
from fairsisa.errors import ConfigError, DataError, ModelError
from fairsisa.models.language import load_language_model, new_language_model, save_language_model
from fairsisa.models.perplexity import BlockLosses, block_losses, perplexity
from fairsisa.models.text_tokenizers import train_tokenizer
from fairsisa.report.perplexity import PERPLEXITIES
from fairsisa.runs.perplexities import masking_of, measure_language_models, model_names, perplexity_run
from fairsisa.settings import PathSettings, PerplexitySettings, Step

SENTENCES = [f"the {animal} sat on the {thing}." for animal in ("cat", "dog", "ox") for thing in ("mat", "log", "hut")]
TEXT = Text("held", tuple(Document(f"held-{row}", sentence) for row, sentence in enumerate(SENTENCES)))
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SETTINGS = PerplexitySettings(block_length=8, batch_size=4, num_replicates=200)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(SENTENCES, 280, masked=True)


@pytest.fixture(scope="module")
def folders(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two untrained GPT-2s as checkpoints of one run, a BERT, and one of the first without half of its weights."""
    root = tmp_path_factory.mktemp("models")
    shape = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    places = {"0": root / "one" / "checkpoints" / "step-000000", "1": root / "one" / "checkpoints" / "step-000010"}
    places |= {"bert": root / "bert", "pruned": root / "pruned"}
    for seed in (0, 1):
        model = new_language_model("gpt2", {**GPT2, **shape}, seed)
        save_language_model(model, places[str(seed)], tokenizer)
    save_language_model(new_language_model("bert", {**BERT, **shape}, 0), places["bert"], tokenizer)
    steps = [Step("magnitude", sparsity=0.5)]
    save_compressed(compress(load_language_model(places["0"]), steps), places["pruned"])
    return places


def measured(*chosen: Path, **changes: Any) -> pd.DataFrame:
    return measure_language_models(chosen, [TEXT], PerplexitySettings(**{**vars(SETTINGS), **changes})).table


def test_numbers_are_those_of_each_model_on_its_own(folders, tokenizer):
    table = measured(folders["0"], folders["1"], folders["bert"])
    assert tuple(table.columns) == PERPLEXITIES
    assert table["model"].tolist() == ["one/step-000000", "one/step-000010", "bert"]
    assert table["family"].tolist() == ["one", "one", "bert"]
    assert table["step"].tolist()[:2] == [0, 10]
    assert math.isnan(table["step"].iloc[2])
    blocks = encode_blocks(TEXT.documents, tokenizer, length=8, end_id=0)
    masking = masking_of(tokenizer, share=0.15, seed=0)
    for row, name in enumerate(("0", "1", "bert")):
        model = load_language_model(folders[name])
        expected = perplexity(model, blocks, 100, masking=masking if name == "bert" else None)
        found = table.iloc[row]
        assert found["perplexity"] == pytest.approx(expected, rel=1e-5) == pytest.approx(math.exp(found["loss"]))
        assert found["num_parameters"] == sum(p.numel() for p in model.parameters())
        assert found["bytes_on_disk"] == (folders[name] / "model.safetensors").stat().st_size
        assert (found["num_blocks"], found["sparsity"]) == (len(blocks), 0.0)
        assert found["tokens_per_second"] > 0
    assert table["num_targets"].tolist()[:2] == [len(blocks.tokens) - len(blocks)] * 2


def test_differences_are_paired_by_block_with_the_first_model(folders, tokenizer):
    table = measured(folders["1"], folders["0"], folders["1"], folders["bert"])
    blocks = encode_blocks(TEXT.documents, tokenizer, length=8, end_id=0)
    first, second = (block_losses(load_language_model(folders[name]), blocks, 4) for name in ("1", "0"))
    by_block = second.totals - first.totals
    assert table["difference"].iloc[1] == pytest.approx(by_block.sum() / first.num_targets.sum(), rel=1e-5)
    assert table["difference_low"].iloc[1] < table["difference"].iloc[1] < table["difference_high"].iloc[1]
    rng = np.random.default_rng(9)
    drawn = [rng.integers(len(by_block), size=len(by_block)) for _ in range(4000)]
    ratios = [by_block[rows].sum() / first.num_targets[rows].sum() for rows in drawn]
    low, high = np.quantile(ratios, [0.025, 0.975])
    width = high - low
    assert table["difference_low"].iloc[1] == pytest.approx(low, abs=0.2 * width)
    assert table["difference_high"].iloc[1] == pytest.approx(high, abs=0.2 * width)
    assert table.loc[2, ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    assert table.loc[[0, 3], "difference"].isna().all()


def test_the_standard_error_is_that_of_a_ratio_of_sums():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, size=400)
    totals = counts * 2.0 + rng.normal(0, np.sqrt(counts))
    losses = BlockLosses(totals, counts)
    assert losses.mean == pytest.approx(totals.sum() / counts.sum())
    drawn = [rng.integers(400, size=400) for _ in range(2000)]
    spread = np.std([totals[rows].sum() / counts[rows].sum() for rows in drawn])
    assert losses.standard_error == pytest.approx(spread, rel=0.1)
    equal = BlockLosses(totals, np.full(400, 7))
    assert equal.standard_error == pytest.approx((totals / 7).std(ddof=1) / 20)
    assert math.isnan(BlockLosses(totals[:1], counts[:1]).standard_error)


def test_compressed_models_stand_beside_the_others(folders):
    with pytest.raises(ModelError, match=r"pruned holds no tokenizer: set tokenizer="):
        measured(folders["0"], folders["pruned"])
    table = measured(folders["0"], folders["pruned"], tokenizer=str(folders["0"]))
    assert table["model"].tolist() == ["one/step-000000", "pruned"]
    assert table["sparsity"].tolist() == [0.0, pytest.approx(0.5, abs=0.01)]
    assert table["num_parameters"].nunique() == 1
    assert table["difference"].iloc[1] != 0


def test_names_tell_folders_apart(tmp_path):
    root = tmp_path.resolve()
    both = [root / "a" / "checkpoints" / "step-000001", root / "b" / "step-000001"]
    assert model_names(both) == ["a/step-000001", "b/step-000001"]
    assert model_names([root / "a" / "checkpoints" / "step-000001"]) == ["step-000001"]
    assert model_names([root / "a", root / "b"]) == ["a", "b"]


def test_a_run_writes_its_table(folders, tmp_path):
    text = tmp_path / "held.txt"
    text.write_text("<|endoftext|>".join(SENTENCES), encoding="utf-8")
    settings = PerplexitySettings(
        models=(str(folders["0"]), str(folders["1"])), corpora=(str(text),), block_length=8, num_replicates=200
    )
    told: list[tuple[str, int, int]] = []
    report = perplexity_run(
        tmp_path / "out", settings, paths=PathSettings(), on_progress=lambda *words: told.append(words), command="typed"
    )
    assert told == [("step-000000", 0, 2), ("step-000010", 1, 2), ("", 2, 2)]
    read = pd.read_csv(tmp_path / "out" / "perplexity.csv")
    assert read["perplexity"].tolist() == pytest.approx(report.table["perplexity"].tolist())
    values = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert values["rows"][0]["difference"] is None
    assert values["settings"]["block_length"] == 8
    assert "typed" in (tmp_path / "out" / "perplexity.html").read_text()


def test_what_cannot_be_measured_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"Set corpora=\[<names or paths>\]"):
        perplexity_run(tmp_path, PerplexitySettings(models=("x",)), paths=PathSettings())
    (tmp_path / "held.txt").write_text("a b c")
    with pytest.raises(ConfigError, match="Expected a model to measure"):
        perplexity_run(tmp_path, PerplexitySettings(corpora=(str(tmp_path / "held.txt"),)), paths=PathSettings())
    with pytest.raises(DataError, match="Expected a text file at"):
        perplexity_run(tmp_path, PerplexitySettings(corpora=("x.txt",), models=("x",)), paths=PathSettings())
    with pytest.raises(ConfigError, match="Expected a model to measure"):
        measured()
    with pytest.raises(ModelError, match="holds no"):
        measured(tmp_path)
    with pytest.raises(ConfigError, match="at most 16 tokens"):
        measured(folders["0"], block_length=17)
    plain = train_tokenizer(SENTENCES, 280)
    with pytest.raises(ConfigError, match="needs a tokenizer with a mask token"):
        masking_of(plain, share=0.1, seed=0)
