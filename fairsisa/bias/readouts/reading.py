"""Reading tokens with a language model whose head is applied only where it is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from fairsisa.bias.readouts.trees import Tree, grow_trees, seen_by
from fairsisa.models.base import is_bidirectional
from fairsisa.models.kv_cache import pad_rows
from fairsisa.models.masked_network import vocabulary_head

NO_LIMIT = 1 << 30
HEAD_NUMBERS = 1 << 23
"""How many logits are computed at a time: enough for a fast matrix product, few enough to need little memory."""
NUM_PROBED, ROUNDING, HALF_ROUNDING = 8, 1e-4, 0.05


@dataclass(frozen=True, eq=False)
class Reader:
    """A language model in two steps: `body` from tokens to a state at each position, `head` from states to logits.

    `num_words` is the size of its vocabulary. Trees of texts of up to `depth` tokens can be read, none if that is 0.
    """

    body: Callable[..., Tensor]
    head: Callable[[Tensor], Tensor]
    num_words: int
    depth: int = 0

    def logits(self, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield, part by part, which of the states, shape (num_states, width), and their logits in fp32."""
        step = max(1, HEAD_NUMBERS // self.num_words)
        for start in range(0, len(states), step):
            part = slice(start, min(start + step, len(states)))
            yield part, self.head(states[part]).float()


@torch.inference_mode()
def reader_of(network: Any) -> Reader:
    """Return how the model is read: its base network and its head where these two are all of it, else the model itself.

    Some models scale or cap logits after the head. So the two steps are tried on a few tokens, and taken only if they
    give the model's own logits bit for bit (a masked model's up to rounding). Trees are tried likewise.
    """
    reader, module = whole_reader(network), network
    if network.base_model is not network:
        steps = _in_steps(network)
        if steps is not None and _agree(steps, reader, network):
            reader, module = steps, network.base_model
    shared = replace(reader, depth=_shared_depth(network, module))
    return shared if shared.depth and _reads_trees(network, shared) else reader


def whole_reader(network: Any) -> Reader:
    """Return a reader whose states are the logits of the model's own forward pass."""
    return Reader(lambda **inputs: network(**inputs).logits, lambda states: states, int(network.config.vocab_size))


def read_trees(network: Any, reader: Reader, trees: Sequence[Tree], *, shared: bool) -> Tensor:
    """Return the reader's states of a batch of trees, (num_trees, longest, width).

    Without `shared` no tree has a branch, and the model makes masks and positions itself.
    """
    device = next(network.parameters()).device
    tokens, mask = pad_rows([tree.tokens.tolist() for tree in trees], "right", device)
    inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
    if not shared:
        return reader.body(**inputs, attention_mask=mask)
    positions, _ = pad_rows([tree.positions.tolist() for tree in trees], "right", device)
    seen = torch.from_numpy(seen_by(trees)).unsqueeze(1).to(device)
    hidden = torch.full(seen.shape, torch.finfo(network.dtype).min, dtype=network.dtype, device=device)
    return reader.body(**inputs, position_ids=positions, attention_mask=hidden.masked_fill_(seen, 0.0))


def _in_steps(network: Any) -> Reader | None:
    head = vocabulary_head(network) if is_bidirectional(network) else network.get_output_embeddings()
    if head is None:
        return None
    return Reader(lambda **inputs: network.base_model(**inputs).last_hidden_state, head, network.config.vocab_size)


def _agree(steps: Reader, whole: Reader, network: Any) -> bool:
    inputs = {"input_ids": _probe(network).unsqueeze(0)}
    found, expected = steps.head(steps.body(**inputs).flatten(0, 1)), whole.body(**inputs).flatten(0, 1)
    return torch.equal(found, expected) or (is_bidirectional(network) and _is_close(found, expected))


def _is_close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results differ by rounding alone, which is that of their format."""
    rounding = ROUNDING if found.dtype == torch.float32 else HALF_ROUNDING
    found, expected = found.float(), expected.float()
    return found.shape == expected.shape and bool((found - expected).abs().max() <= rounding * expected.abs().max())


def _shared_depth(network: Any, module: nn.Module) -> int:
    """Return up to how many tokens each attends to all before it, as masks and positions that are given tell it to."""
    config = network.config
    if is_bidirectional(network):
        return 0
    if "position_ids" not in inspect.signature(module.forward).parameters or getattr(config, "alibi", False):
        return 0
    if config._attn_implementation not in ("eager", "sdpa") or "local" in getattr(config, "attention_layers", ()):
        return 0
    layers: list[Any] = DynamicCache(config=config).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=NO_LIMIT)


def _reads_trees(network: Any, reader: Reader) -> bool:
    """Return whether a small tree gives the states that its texts give alone: a model may ignore what it is given."""
    ids = _probe(network).tolist()
    texts = [tuple(ids[:5]), (*ids[:3], *ids[5:])]
    trees = grow_trees(texts, depth=NO_LIMIT, width=NO_LIMIT)
    together = read_trees(network, reader, trees, shared=True)[0]
    for number, nodes in trees[0].paths:
        alone = reader.body(input_ids=torch.tensor([texts[number]], device=together.device), use_cache=False)[0]
        if not _is_close(together[nodes], alone):
            return False
    return True


def _probe(network: Any) -> Tensor:
    """Return token ids from all over the vocabulary, different ones if it is large enough."""
    num_words = int(network.config.vocab_size)
    ids = torch.arange(NUM_PROBED) * max(1, num_words // NUM_PROBED) % num_words
    return ids.to(next(network.parameters()).device)
