"""Tokenizers for language models: found in a folder or on the hub, or trained on the text at hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fairsisa.data.corpus_blocks import END_OF_TEXT
from fairsisa.errors import ConfigError, ModelError
from fairsisa.models.base import folder_of, read_tokenizer

MASK = "<mask>"
ENCODER, MERGES = "encoder.json", "vocab.bpe"
"""The two files of GPT-2's tokenizer as OpenAI published it (Radford et al. 2019)."""
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", ENCODER)
"""Of these, a folder that holds a tokenizer has at least one."""
SMALLEST = 258
"""256 bytes, the end of a text and the mask."""


def holds_tokenizer(folder: Path) -> bool:
    """Return whether a model folder holds a tokenizer too."""
    return any((folder / name).is_file() for name in FILES)


def find_tokenizer(name: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a folder or hub id; a folder may hold GPT-2's encoder.json and vocab.bpe instead.

    Raises:
        ModelError: when there is none, or as `models.base.folder_of` and `read_tokenizer` do.
    """
    folder = folder_of(name, revision)
    if (folder / ENCODER).is_file():
        return read_gpt2_tokenizer(folder)
    return read_tokenizer(folder)


def read_gpt2_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return GPT-2's tokenizer, made of encoder.json (token to id) and vocab.bpe (a line of version, then merges).

    Raises:
        ModelError: when a file is missing, or does not hold this.
    """
    try:
        vocabulary = json.loads((folder / ENCODER).read_text(encoding="utf-8"))
        lines = (folder / MERGES).read_text(encoding="utf-8").splitlines()
        merges = [(left, right) for left, right in (line.split(" ") for line in lines[1:] if line)]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # tokenizers raises Exception itself
        raise ModelError(f"No tokenizer of GPT-2 can be read from {folder}: {error}. Copy both files anew.") from error
    return _byte_level(tokenizer)


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, masked: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer (Radford et al. 2019) trained on texts; the same texts give the same.

    Its ids count up to `vocab_size`, or fewer where the texts hold no more pairs to merge: 0 is the end of a text, and
    with `masked` 1 is the mask of a masked language model.

    Raises:
        ConfigError: when `vocab_size` leaves no room for every byte.
    """
    if vocab_size < SMALLEST:
        raise ConfigError(f"Expected vocab_size of at least {SMALLEST}, one a byte and two beside, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *([MASK] if masked else [])],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _byte_level(tokenizer, **({"mask_token": MASK} if masked else {}))


def end_of(tokenizer: Any) -> int:
    """Return the id that ends a text: the tokenizer's end token, or its separator.

    Raises:
        ModelError: when it has neither.
    """
    for number in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if number is not None:
            return int(number)
    raise ModelError("The tokenizer has neither an end token nor a separator, which must follow each text: add one.")


def _byte_level(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **tokens)
