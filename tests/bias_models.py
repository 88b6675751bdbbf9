"""Tiny models with real vocabularies, of each kind that bias benchmarks ask; the same folder gives the same model."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

from fairsisa.bias.candidate import CAUSAL, MASKED, Candidate
from fairsisa.models.language import new_language_model
from fairsisa.models.llama2c import read_llama2c, read_llama2c_tokenizer
from fairsisa.models.text_tokenizers import read_gpt2_tokenizer

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WIDE = {"initializer_range": 0.5}
"""Weights this large make scores differ clearly, which those of a new model do not."""
ROBERTA_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
ROBERTA_MASK = AddedToken("<mask>", lstrip=True, normalized=False)
ROBERTA_SPECIAL: dict[str, Any] = {
    **dict.fromkeys(("bos_token", "cls_token"), "<s>"),
    **dict.fromkeys(("eos_token", "sep_token"), "</s>"),
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": ROBERTA_MASK,
}


@functools.cache
def bert_tokenizer(data_root: Path) -> Any:
    return BertTokenizer(str(data_root / "models" / "bert_base_uncased_vocab" / "vocab.txt"), do_lower_case=True)


@functools.cache
def gpt2_tokenizer(data_root: Path) -> Any:
    return read_gpt2_tokenizer(data_root / "models" / "gpt2_bpe")


@functools.cache
def roberta_tokenizer(data_root: Path) -> Any:
    """GPT-2's byte-level BPE with RoBERTa's special tokens and template; ids differ from RoBERTa's, pieces do not."""
    folder = data_root / "models" / "gpt2_bpe"
    pieces = [*json.loads((folder / "encoder.json").read_text(encoding="utf-8"))]
    merges = [
        tuple(line.split(" ")) for line in (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:] if line
    ]
    vocabulary = {piece: number for number, piece in enumerate([*ROBERTA_FIRST, *pieces, "<mask>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in ROBERTA_FIRST])
    tokenizer.add_special_tokens([ROBERTA_MASK])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **ROBERTA_SPECIAL)


@functools.cache
def tiny_bert(data_root: Path, seed: int = 0) -> Candidate:
    tokenizer = bert_tokenizer(data_root)
    shape = {**SHAPE, **NO_DROPOUT, **WIDE, "max_position_embeddings": 128, "vocab_size": len(tokenizer)}
    return _candidate("tiny-bert", MASKED, new_language_model("bert", shape, seed), tokenizer, seed)


@functools.cache
def tiny_roberta(data_root: Path, seed: int = 0) -> Candidate:
    tokenizer = roberta_tokenizer(data_root)
    shape = {**SHAPE, **NO_DROPOUT, **WIDE, "max_position_embeddings": 130, "vocab_size": len(tokenizer)}
    shape |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    return _candidate("tiny-roberta", MASKED, new_language_model("roberta", shape, seed), tokenizer, seed)


@functools.cache
def tiny_gpt2(data_root: Path, seed: int = 0) -> Candidate:
    tokenizer = gpt2_tokenizer(data_root)
    end = tokenizer.eos_token_id
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": len(tokenizer), **WIDE}
    shape |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": end, "eos_token_id": end}
    return _candidate("tiny-gpt2", CAUSAL, new_language_model("gpt2", shape, seed), tokenizer, seed)


@functools.cache
def tiny_llama(data_root: Path) -> Candidate:
    """The trained stories260K: 5 layers of width 64, 512 tokens, 512 positions."""
    folder = data_root / "models" / "stories260K"
    network = read_llama2c(folder / "stories260K.bin")
    return _candidate("stories260k", CAUSAL, network, read_llama2c_tokenizer(folder / "tok512.bin"), 0)


def _candidate(name: str, kind: str, network: Any, tokenizer: Any, seed: int) -> Candidate:
    digest = hashlib.sha256(f"{name} {seed}".encode()).hexdigest()
    return Candidate(name=name, digest=digest, kind=kind, network=network.eval(), tokenizer=tokenizer)
