"""Language models of llama2.c (Karpathy 2023), in Hugging Face's layout."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from fairsisa.errors import ModelError
from fairsisa.models.language import new_language_model, save_language_model

HEADER = struct.Struct("<7i")
ENTRY = struct.Struct("<fi")
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
NUM_SPECIAL, NUM_BYTES = 3, 256


@dataclass(frozen=True)
class _Shape:
    """The header of a checkpoint."""

    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    num_positions: int
    shares_head: bool

    @property
    def kv_width(self) -> int:
        return self.width // self.num_heads * self.num_kv_heads

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of each array of the file, in order; matrices are (out, in), stacked over layers."""
        layers, width, hidden = self.num_layers, self.width, self.hidden
        yield "embedding", (self.vocab_size, width)
        yield "input_layernorm", (layers, width)
        yield "self_attn.q_proj", (layers, width, width)
        yield "self_attn.k_proj", (layers, self.kv_width, width)
        yield "self_attn.v_proj", (layers, self.kv_width, width)
        yield "self_attn.o_proj", (layers, width, width)
        yield "post_attention_layernorm", (layers, width)
        yield "mlp.gate_proj", (layers, hidden, width)
        yield "mlp.down_proj", (layers, width, hidden)
        yield "mlp.up_proj", (layers, hidden, width)
        yield "norm", (width,)
        yield "rotary", (2, self.num_positions, width // self.num_heads // 2)
        if not self.shares_head:
            yield "head", (self.vocab_size, width)


def convert_llama2c(checkpoint: Path, tokenizer: Path, folder: Path) -> None:
    """Write a llama2.c checkpoint (version 0) and its tokenizer as a plain Hugging Face folder.

    Raises:
        ModelError: as `read_llama2c` and `read_llama2c_tokenizer` do, or when the two are of different vocabularies.
        StoreError: when the folder cannot be written.
    """
    model, words = read_llama2c(checkpoint), read_llama2c_tokenizer(tokenizer)
    num_tokens = int(model.get_input_embeddings().num_embeddings)
    if len(words) != num_tokens:
        raise ModelError(f"{tokenizer} has {len(words)} tokens, but {checkpoint} reads {num_tokens}: take its own.")
    save_language_model(model, folder, words)


def read_llama2c(path: Path) -> Any:
    """Return the Llama model of a llama2.c checkpoint of version 0 (legacy), in fp32 and evaluation mode.

    llama2.c turns neighbouring pairs (x0, x1) of a head by its rotary embedding, Hugging Face the pairs of its halves:
    the rows of queries and keys are put in the other's order. A text ends where the next begins, so that the token
    "<s>" stands for both.

    Raises:
        ModelError: when the file is missing, or is not such a checkpoint, whole.
    """
    content = _content(path)
    shape = _read_shape(path, content)
    parts, place = {}, HEADER.size
    for name, size in shape.arrays():
        values = np.frombuffer(content, dtype="<f4", count=math.prod(size), offset=place)
        parts[name] = torch.from_numpy(values.astype(np.float32)).view(size)
        place += values.nbytes
    model: Any = new_language_model("llama", _hub_shape(shape), seed=0)
    model.load_state_dict(_hub_state(shape, parts), strict=True)
    return model.eval()


def read_llama2c_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a llama2.c tokenizer file, which gives the tokens that llama2.c's own encoder gives.

    A blank is put before a text; letters that are no token become their UTF-8 bytes; then the neighbours whose union
    scores best are merged, until none is a token. "<s>" comes first unless special tokens are turned off.

    Raises:
        ModelError: when the file is missing, or is not such a tokenizer, whole.
    """
    scores = _read_scores(path)
    vocabulary = {piece: number for number, piece in enumerate(scores)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(scores), unk_token=UNKNOWN, byte_fallback=True, fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in (UNKNOWN, BEGIN, END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, vocabulary[BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=BEGIN,
        clean_up_tokenization_spaces=False,
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error}. Check the path.") from error


def _read_shape(path: Path, content: bytes) -> _Shape:
    wrong = f"{path} is no llama2.c checkpoint of version 0 (legacy), or not a whole one"
    if len(content) < HEADER.size:
        raise ModelError(f"{wrong}: it has {len(content)} bytes.")
    width, hidden, layers, heads, kv_heads, words, positions = HEADER.unpack_from(content)
    shape = _Shape(width, hidden, layers, heads, kv_heads, abs(words), positions, shares_head=words > 0)
    divides = min(width, hidden, layers, heads, kv_heads, abs(words), positions) > 0 and not (
        width % (2 * heads) or heads % kv_heads
    )
    # Checked before anything is made of these numbers: those of another file may ask for any amount of memory.
    expected = HEADER.size + 4 * sum(math.prod(size) for _, size in shape.arrays()) if divides else None
    if expected != len(content):
        raise ModelError(f"{wrong}: its header {HEADER.unpack_from(content)} does not fit its {len(content):,} bytes.")
    return shape


def _hub_shape(shape: _Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.num_positions,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": shape.shares_head,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }


def _hub_state(shape: _Shape, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stacks = {name: part for name, part in parts.items() if name not in ("embedding", "norm", "rotary", "head")}
    stacks["self_attn.q_proj"] = _halved(stacks["self_attn.q_proj"], shape.num_heads)
    stacks["self_attn.k_proj"] = _halved(stacks["self_attn.k_proj"], shape.num_kv_heads)
    head = parts["embedding" if shape.shares_head else "head"]
    state = {"model.embed_tokens.weight": parts["embedding"], "model.norm.weight": parts["norm"]}
    state["lm_head.weight"] = head
    for name, stack in stacks.items():
        state |= {f"model.layers.{layer}.{name}.weight": stack[layer] for layer in range(shape.num_layers)}
    return state


def _halved(weights: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Put the rows (0, 1, 2, 3, ...) of each head in the order (0, 2, ..., 1, 3, ...)."""
    layers, _, width = weights.shape
    return weights.view(layers, num_heads, -1, 2, width).transpose(2, 3).reshape(weights.shape)


def _read_scores(path: Path) -> dict[str, float]:
    """Return the score of each token, in the order of ids."""
    content = _content(path)
    scores: dict[str, float] = {}
    place, count = 4, 0
    try:
        while place < len(content):
            score, length = ENTRY.unpack_from(content, place)
            place += ENTRY.size + length
            piece = content[place - length : place].decode("utf-8")
            scores[piece.strip("\n") if count < NUM_SPECIAL else piece] = score
            count += 1
    except (struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no llama2.c tokenizer, or not a whole one: {error}.") from error
    letters = [*scores][:NUM_SPECIAL], [*scores][NUM_SPECIAL : NUM_SPECIAL + NUM_BYTES]
    expected = [UNKNOWN, BEGIN, END], [f"<0x{byte:02X}>" for byte in range(NUM_BYTES)]
    if place != len(content) or count != len(scores) or letters != expected:
        raise ModelError(
            f"{path} is no llama2.c tokenizer, or not a whole one: expected {UNKNOWN}, {BEGIN}, {END}, 256 bytes and "
            f"different pieces, got {count} entries in {len(content):,} bytes."
        )
    return scores


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return every pair of tokens whose union is a token, the best union first: as a rank, its score."""
    pieces = [*scores][NUM_SPECIAL + NUM_BYTES :]
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
