from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fairsisa.errors import ModelError
from fairsisa.models.base import read_tokenizer
from fairsisa.models.language import load_language_model
from fairsisa.models.llama2c import convert_llama2c, read_llama2c, read_llama2c_tokenizer

OPENING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
# A vocabulary as sentencepiece makes it: pieces by score, then single letters.
PIECES = [" a", "ab", "ba", "aba", " ab", "bb", "éa", " ", "a", "b", "é"]


def write_tokenizer(path: Path, pieces: list[str]) -> Path:
    entries = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256))]
    entries += [(piece, -float(rank)) for rank, piece in enumerate(pieces)]
    content = struct.pack("<i", 7)
    for piece, score in entries:
        content += struct.pack("<fi", score, len(piece.encode())) + piece.encode()
    path.write_bytes(content)
    return path


def write_checkpoint(path: Path, *, shared: bool, seed: int = 0) -> Path:
    """A model of 2 layers, 4 heads of 6 on 2 key-value heads, with random weights."""
    header = (24, 20, 2, 4, 2, 270 if shared else -270, 16)
    width, hidden, layers, words, kv = 24, 20, 2, 270, 12
    sizes = [words * width, layers * width, layers * width**2, *[layers * kv * width] * 2, layers * width**2]
    sizes += [layers * width, *[layers * hidden * width] * 3, width, 16 * 6]
    sizes += [] if shared else [words * width]
    values = np.random.default_rng(seed).normal(0, 0.3, size=sum(sizes)).astype("<f4")
    path.write_bytes(struct.pack("<7i", *header) + values.tobytes())
    return path


class Llama2C:
    """llama2.c's run.c in numpy, position by position: what its checkpoints mean."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        d, h, n, heads, kvs, words, positions = struct.unpack_from("<7i", content)
        self.shape, kv = (d, n, heads, kvs), d // heads * kvs
        values, place = np.frombuffer(content, dtype="<f4", offset=28).astype(np.float64), 0

        def taken(*size: int) -> np.ndarray:
            nonlocal place
            place += int(np.prod(size))
            return values[place - int(np.prod(size)) : place].reshape(size)

        self.embedding, self.rms_att = taken(abs(words), d), taken(n, d)
        self.wq, self.wk, self.wv, self.wo = taken(n, d, d), taken(n, kv, d), taken(n, kv, d), taken(n, d, d)
        self.rms_ffn, self.w1, self.w2, self.w3 = taken(n, d), taken(n, h, d), taken(n, d, h), taken(n, h, d)
        self.rms_final = taken(d)
        taken(positions, d // heads)
        self.head = self.embedding if words > 0 else taken(-words, d)

    def logits(self, tokens: list[int]) -> np.ndarray:
        d, n, heads, _ = self.shape
        size = d // heads
        keys: list[list[np.ndarray]] = [[] for _ in range(n)]
        values: list[list[np.ndarray]] = [[] for _ in range(n)]
        return np.stack([self.step(token, place, keys, values, size) for place, token in enumerate(tokens)])

    def step(self, token: int, place: int, keys: Any, values: Any, size: int) -> np.ndarray:
        _, n, heads, kvs = self.shape
        x = self.embedding[token]
        for layer in range(n):
            read = rms(x, self.rms_att[layer])
            q, k, v = self.wq[layer] @ read, self.wk[layer] @ read, self.wv[layer] @ read
            q, k = turned(q, place, size), turned(k, place, size)
            keys[layer].append(k.reshape(kvs, size))
            values[layer].append(v.reshape(kvs, size))
            out = []
            for head in range(heads):
                own = head // (heads // kvs)
                scores = np.array([q[head * size : (head + 1) * size] @ key[own] for key in keys[layer]]) / size**0.5
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out.append(sum(weight * value[own] for weight, value in zip(weights, values[layer], strict=True)))
            x = x + self.wo[layer] @ np.concatenate(out)
            read = rms(x, self.rms_ffn[layer])
            gate = self.w1[layer] @ read
            x = x + self.w2[layer] @ (gate / (1 + np.exp(-gate)) * (self.w3[layer] @ read))
        return self.head @ rms(x, self.rms_final)


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt((x**2).mean() + 1e-5)


def turned(x: np.ndarray, place: int, size: int) -> np.ndarray:
    x = x.copy()
    for i in range(0, len(x), 2):
        angle = place / 10000.0 ** (i % size / size)
        x[i], x[i + 1] = (
            x[i] * np.cos(angle) - x[i + 1] * np.sin(angle),
            x[i] * np.sin(angle) + x[i + 1] * np.cos(angle),
        )
    return x


def greedy(path: Path, text: str) -> list[int]:
    """llama2.c's encode: letters or their bytes, then the best-scored neighbours merge until none can."""
    content, place, ids, scores = path.read_bytes(), 4, {}, []
    while place < len(content):
        score, length = struct.unpack_from("<fi", content, place)
        ids[content[place + 8 : place + 8 + length].decode()] = len(scores)
        scores.append(score)
        place += 8 + length
    letters = " " + text if text else ""
    pieces = [
        part for one in letters for part in ([one] if one in ids else [f"<0x{byte:02X}>" for byte in one.encode()])
    ]
    while True:
        unions = [left + right for left, right in pairwise(pieces)]
        known = [(scores[ids[union]], -place) for place, union in enumerate(unions) if union in ids]
        if not known:
            return [ids[piece] for piece in pieces]
        place = -max(known)[1]
        pieces[place : place + 2] = [unions[place]]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("made") / "tok.bin", PIECES)


@given(text=st.text(alphabet="ab é\nz", max_size=12))
def test_tokens_are_those_of_greedy_merging_and_turn_back_into_the_text(tokenizer_file, text):
    tokenizer = read_llama2c_tokenizer(tokenizer_file)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens == greedy(tokenizer_file, text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer(text)["input_ids"] == [1, *tokens]


@pytest.mark.parametrize("shared", [True, False])
def test_logits_are_those_of_llama2c(shared, tmp_path):
    path = write_checkpoint(tmp_path / "model.bin", shared=shared)
    tokens = [1, 5, 269, 5, 0, 77, 12, 200]
    with torch.no_grad():
        found = read_llama2c(path)(torch.tensor([tokens])).logits[0]
    np.testing.assert_allclose(found, Llama2C(path).logits(tokens), rtol=1e-4, atol=1e-4)


def test_a_converted_folder_is_a_plain_one(tokenizer_file, tmp_path):
    convert_llama2c(write_checkpoint(tmp_path / "model.bin", shared=True), tokenizer_file, tmp_path / "out")
    loaded: Any = load_language_model(tmp_path / "out")
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for tokenizer in (read_tokenizer(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")):
        assert tokenizer("ab ba\n")["input_ids"] == [1, *greedy(tokenizer_file, "ab ba\n")]
        assert tokenizer.decode(tokenizer("ab ba\n")["input_ids"], skip_special_tokens=True) == "ab ba\n"
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 1)


def test_files_that_are_something_else_are_refused(tokenizer_file, tmp_path):
    model = write_checkpoint(tmp_path / "model.bin", shared=True)
    other = write_tokenizer(tmp_path / "other.bin", PIECES[:-1])
    with pytest.raises(ModelError, match=r"other\.bin has 269 tokens, but .*model\.bin reads 270"):
        convert_llama2c(model, other, tmp_path / "out")
    cut = tmp_path / "cut.bin"
    for length in (0, 20, 1000, -4):
        cut.write_bytes(model.read_bytes()[:length])
        with pytest.raises(ModelError, match=r"cut\.bin is no llama2\.c checkpoint of version 0"):
            read_llama2c(cut)
    cut.write_bytes(struct.pack("<7i", 24, 20, 2, 4, 3, 11, 16) + bytes(400))
    with pytest.raises(ModelError, match="does not fit its 428 bytes"):
        read_llama2c(cut)
    for content in (b"", tokenizer_file.read_bytes()[:-1], tokenizer_file.read_bytes() + b"ab", model.read_bytes()):
        cut.write_bytes(content)
        with pytest.raises(ModelError, match=r"cut\.bin is no llama2\.c tokenizer"):
            read_llama2c_tokenizer(cut)
    with pytest.raises(ModelError, match=r"Cannot read .*nowhere"):
        read_llama2c(tmp_path / "nowhere")


@pytest.mark.real_data
def test_stories260k_tells_its_known_opening(data_root, tmp_path):
    source = data_root / "models" / "stories260K"
    convert_llama2c(source / "stories260K.bin", source / "tok512.bin", tmp_path / "stories")
    model: Any = load_language_model(tmp_path / "stories")
    tokenizer = read_tokenizer(tmp_path / "stories")
    expected = tokenizer(OPENING)["input_ids"]
    assert expected[1:] == greedy(source / "tok512.bin", OPENING)
    told = model.generate(torch.tensor([[1]]), max_new_tokens=len(expected) - 1, do_sample=False)
    assert tokenizer.decode(told[0], skip_special_tokens=True) == OPENING
    with torch.no_grad():
        found = model(torch.tensor([expected])).logits[0]
    np.testing.assert_allclose(found, Llama2C(source / "stories260K.bin").logits(expected), rtol=1e-4, atol=1e-3)
