"""The key-value cache of a causal language model, kept in few bits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, QuantizedLayer

from fairsisa.errors import ConfigError
from fairsisa.models.base import is_bidirectional

FEW_BITS = (2, 4, 8)
FULL_BITS = 16
"""With this many bits a cache is exact, as without any number of bits."""

LARGEST_GROUP = 64


@dataclass(frozen=True)
class CacheLayout:
    """How a quantised cache is cut up; it is not read where the cache is exact.

    `group_size` consecutive numbers of one head's key (or value) of one token share their levels; it divides the head
    dimension, and None is its largest divisor up to 64. `residual_length` tokens that follow the prompt are gathered
    exact before all are quantised: 1 quantises each once it was read, transformers' own default is 128. A prompt is
    quantised whole, whatever its length.

    Raises:
        ConfigError: when a number is below 1.
    """

    group_size: int | None = None
    residual_length: int = 1

    def __post_init__(self) -> None:
        for name in ("group_size", "residual_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Expected a cache's {name} to be 1 or more, got {value}.")


@dataclass(frozen=True)
class FewBitStates:
    """Numbers on 2**bits evenly spaced levels from `low` to `high`, the extremes of each group.

    `packed` is uint8, shape (..., bytes a head); `low` and `high` have shape (..., number of groups, 1) and the dtype
    that the numbers had. `width` is the head dimension.
    """

    packed: Tensor
    low: Tensor
    high: Tensor
    bits: int
    width: int


def encode_states(states: Tensor, bits: int, group_size: int | None = None) -> FewBitStates:
    """Return `states`, shape (..., head dimension), each rounded to the nearest level of its group.

    A group is `group_size` consecutive numbers of the last axis, so that no token's levels depend on another token, on
    padding or on other rows of a batch. The levels are those of quanto's cache in transformers, asymmetric from the
    group's smallest number to its largest (KIVI, Liu et al. 2024, groups keys by channel instead). An error is at most
    (high - low) / (2**bits - 1) / 2, up to rounding in the numbers' own format; rounding twice changes nothing more.

    Raises:
        ConfigError: when `group_size` does not divide the head dimension.
    """
    width, top = states.shape[-1], 2**bits - 1
    groups = _cut(states, _size_of_group(width, group_size))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    wide = torch.promote_types(states.dtype, torch.float32)
    span = high.to(wide) - low.to(wide)
    steps = (groups.to(wide) - low.to(wide)) / torch.where(span > 0, span, torch.ones_like(span))
    codes = (steps * top).round().to(torch.uint8).flatten(-2)
    return FewBitStates(_pack(codes, bits), low, high, bits, width)


def decode_states(few: FewBitStates) -> Tensor:
    """Return the numbers, shape (..., head dimension), in the dtype they had; a group's extremes come back exact."""
    codes = _cut(_unpack(few.packed, few.bits)[..., : few.width], few.width // few.low.shape[-2])
    wide = torch.promote_types(few.low.dtype, torch.float32)
    # low + (high - low) * 1 may miss `high` by a rounding error, which would grow each time a cache is quantised again.
    states = torch.lerp(few.low.to(wide), few.high.to(wide), codes.to(wide) / (2**few.bits - 1))
    return states.flatten(-2).to(few.low.dtype)


class FewBitLayer(QuantizedLayer):  # type: ignore[misc]  # transformers has no types
    """transformers' quantised cache of one attention layer, holding `FewBitStates`.

    When to quantise is transformers' business: the first states given, a prompt's, are returned exact and kept
    quantised. Its own layers are not used: hqq slows down every import of transformers and warns there, and quanto
    compiles C++ into its installation at the first use on a CPU.
    """

    def __init__(self, bits: int, layout: CacheLayout) -> None:
        super().__init__(nbits=bits, residual_length=layout.residual_length)
        self.group_size = layout.group_size

    def _quantize(self, tensor: Tensor, axis: int) -> FewBitStates:
        return encode_states(tensor, self.nbits, self.group_size)

    def _dequantize(self, q_tensor: FewBitStates) -> Tensor:
        return decode_states(q_tensor)


def new_cache(model: nn.Module, cache_bits: int | None = None, layout: CacheLayout | None = None) -> Any:
    """Return an empty transformers cache for `model`: exact with None or 16 bits, else quantised to 2, 4 or 8.

    It may also be passed to a model's own `generate` as `past_key_values`. The quantised one is smaller; nothing is
    promised about speed: it is decoded whole for each token, which costs time, above all on a CPU.

    Raises:
        ConfigError: when the model keeps no cache of keys and values (a masked language model, a classifier), not of
            all tokens (sliding windows, recurrent layers), or there is no such number of bits.
    """
    config: Any = model.config
    _require_cache(model)
    exact: Any = DynamicCache(config=config)
    if cache_bits is None or cache_bits == FULL_BITS:
        return exact
    if cache_bits not in FEW_BITS:
        raise ConfigError(f"cache_bits={cache_bits}: use 2, 4 or 8, or 16 (or none) for an exact cache.")
    others = sorted({type(layer).__name__ for layer in exact.layers if type(layer) is not DynamicLayer})
    if others:
        raise ConfigError(
            f"Only layers that attend to all tokens have a cache to quantise; {config.model_type} also keeps "
            f"{', '.join(others)}: leave cache_bits out."
        )
    layout = CacheLayout() if layout is None else layout
    return Cache(layers=[FewBitLayer(cache_bits, layout) for _ in exact.layers])


def read_tokens(model: nn.Module, tokens: Tensor, mask: Tensor, cache: Any, *, keep: int = 1) -> Tensor:
    """Return next-token logits in fp32 after each of the last `keep` tokens, shape (num_rows, keep, vocabulary).

    `tokens`, shape (num_rows, num_new), follow what `cache` holds, and are added to it. `mask`, shape (num_rows,
    num_held + num_new), is 1 for tokens and 0 for padding, on whichever side: positions count tokens alone.
    """
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    extra = {"position_ids": positions, "logits_to_keep": keep}
    known = inspect.signature(model.forward).parameters
    extra = {name: value for name, value in extra.items() if name in known}
    output = model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
    logits: Tensor = output.logits[:, -keep:].float()
    return logits


def pad_rows(
    rows: Sequence[Sequence[int]], side: Literal["left", "right"], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return `rows` of token ids as one int64 matrix padded with zeros on the `side`, and its mask (1 for tokens)."""
    width = max(len(row) for row in rows)
    tokens = torch.zeros((len(rows), width), dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[number, place] = torch.as_tensor(row, dtype=torch.int64)
        mask[number, place] = 1
    return tokens.to(device), mask.to(device)


def require_readable(model: nn.Module, prompts: Sequence[Sequence[int]], num_read: Sequence[int]) -> None:
    """Raise ConfigError unless the model, in evaluation mode, can read `num_read` tokens a row, these prompts first."""
    config: Any = model.config
    _require_cache(model)
    if model.training:
        raise ConfigError("Expected a model in evaluation mode, got one that drops out at random: call model.eval().")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ConfigError("Expected prompts of at least one token, got an empty one: give a text's first token.")
    for prompt in prompts:
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ConfigError(
                f"Expected token ids from 0 to {config.vocab_size - 1}, got {min(prompt)} to {max(prompt)}: "
                "another tokenizer?"
            )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max(num_read, default=0) > positions:
        raise ConfigError(f"The model reads at most {positions} tokens, prompt and all, got {max(num_read)}.")


def _require_cache(model: nn.Module) -> None:
    config: Any = model.config
    writes = getattr(model, "can_generate", lambda: False)()
    if not writes or is_bidirectional(model) or getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"Expected a causal language model, which keeps keys and values; {type(model).__name__} keeps none."
        )


def _size_of_group(width: int, wanted: int | None) -> int:
    if wanted is None:
        return max(size for size in range(1, min(width, LARGEST_GROUP) + 1) if width % size == 0)
    if width % wanted:
        raise ConfigError(f"group_size={wanted} does not divide the head dimension, {width}: use a divisor, or null.")
    return wanted


def _cut(numbers: Tensor, size: int) -> Tensor:
    """Return runs of `size` numbers of the last axis, shape (..., number of runs, size)."""
    return numbers.reshape(*numbers.shape[:-1], -1, size)


def _pack(codes: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    filled = _cut(nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte)), per_byte)
    packed: Tensor = (filled << _shifts(bits, codes.device)).sum(dim=-1, dtype=torch.uint8)
    return packed


def _unpack(packed: Tensor, bits: int) -> Tensor:
    codes: Tensor = (packed.unsqueeze(-1) >> _shifts(bits, packed.device)) & (2**bits - 1)
    return codes.flatten(-2)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
