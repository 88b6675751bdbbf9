from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairsisa.errors import ConfigError, ModelError
from fairsisa.models.base import read_tokenizer
from fairsisa.models.text_tokenizers import end_of, find_tokenizer, read_gpt2_tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the cat", "a naïve café"]
AGAIN = """
import sys
from fairsisa.models.text_tokenizers import train_tokenizer
print(train_tokenizer(eval(sys.argv[1]), 280)._tokenizer.to_str())
"""


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, 280)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_from_its_tokens(trained, text):
    tokens = trained(text, add_special_tokens=False)["input_ids"]
    assert trained.decode(tokens) == text
    assert max(tokens, default=0) < len(trained) <= 280


def test_training_merges_what_is_frequent_and_does_so_again(trained):
    assert len(trained(" the cat")["input_ids"]) == 2
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AGAIN, repr(TEXTS)], capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == json.loads(trained._tokenizer.to_str())
    assert len(train_tokenizer(TEXTS, 258)) == 258  # the blank before "the" is the first merge
    assert len(train_tokenizer(["a"], 300)) == 257


def test_a_trained_tokenizer_is_saved_and_found_again(trained, tmp_path):
    masked = train_tokenizer(TEXTS, 270, masked=True)
    for name, tokenizer in {"causal": trained, "masked": masked}.items():
        tokenizer.save_pretrained(tmp_path / name)
        found = find_tokenizer(str(tmp_path / name))
        assert found(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
        assert end_of(found) == found.pad_token_id == 0
    assert masked.mask_token_id == read_tokenizer(tmp_path / "masked").mask_token_id == 1
    assert trained.mask_token_id is None


def test_small_gpt2_files_are_read(tmp_path):
    alphabet = {"a": 0, "b": 1, "Ġ": 2, "Ġa": 3, "ab": 4, "<|endoftext|>": 5}
    (tmp_path / "encoder.json").write_text(json.dumps(alphabet))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ a\na b\n", encoding="utf-8")
    tokenizer = find_tokenizer(str(tmp_path))
    assert tokenizer("ab ab<|endoftext|>")["input_ids"] == [4, 3, 1, 5]
    assert end_of(tokenizer) == 5
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ x\n", encoding="utf-8")
    with pytest.raises(ModelError, match="No tokenizer of GPT-2 can be read from"):
        read_gpt2_tokenizer(tmp_path)


def test_what_cannot_be_a_tokenizer_is_refused(trained, tmp_path):
    with pytest.raises(ConfigError, match="vocab_size of at least 258, one a byte and two beside, got 100"):
        train_tokenizer(TEXTS, 100)
    with pytest.raises(ModelError, match="No tokenizer can be read"):
        find_tokenizer(str(tmp_path))
    endless = type(trained)(tokenizer_object=trained._tokenizer)
    with pytest.raises(ModelError, match="neither an end token nor a separator"):
        end_of(endless)


@pytest.mark.real_data
def test_gpt2s_own_tokenizer_gives_the_known_tokens(data_root, tmp_path):
    tokenizer = find_tokenizer(str(data_root / "models" / "gpt2_bpe"))
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert (len(tokenizer), end_of(tokenizer)) == (50257, 50256)
    text = "It's 2019: naïve café \n\n ok   !"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
