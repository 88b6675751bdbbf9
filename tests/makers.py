from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fairsisa.settings import ModelSettings

TINY_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
TINY_SHAPES = {
    "bert": TINY_BERT,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": TINY_BERT,
}


def tiny_bert_settings(folder: Path, **changes: Any) -> ModelSettings:
    values: dict[str, Any] = {"base": str(folder), "architecture": "bert", "shape": TINY_BERT, "max_length": 16}
    return ModelSettings(**{**values, "dropout": 0.0, **changes})


def tokenizer_folder(data_root: Path, tmp: Path) -> Path:
    folder = tmp / "bert_tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data_root / "models" / "bert_base_uncased_vocab" / "vocab.txt", folder / "vocab.txt")
    return _with_class(folder, "BertTokenizer", do_lower_case=True)


def gpt2_folder(data_root: Path, tmp: Path) -> Path:
    folder = tmp / "gpt2_tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}.items():
        shutil.copyfile(data_root / "models" / "gpt2_bpe" / source, folder / name)
    return _with_class(folder, "GPT2Tokenizer")


def _with_class(folder: Path, name: str, **values: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **values}))
    return folder
