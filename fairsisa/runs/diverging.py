"""How far language models are apart on texts, over their whole vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairsisa.bias.candidate import MASKED, Candidate
from fairsisa.bias.divergence import BlockDivergences, block_divergences
from fairsisa.data.corpus_blocks import Blocks, Masking, encode_blocks
from fairsisa.data.texts import Text, find_text
from fairsisa.intervals import Bootstrap, summarise, weight_chunks
from fairsisa.lineage import Lineage
from fairsisa.models.device import numeric_environment
from fairsisa.models.text_tokenizers import end_of
from fairsisa.runs.perplexities import MASK_SHARE, masking_of
from fairsisa.runs.training import data_root
from fairsisa.settings import ComparisonSettings, PathSettings
from fairsisa.store import Store

BATCH_TOKENS = 2048
DIVERGENCES_KIND, DIVERGENCES_VERSION = "divergences", 1


@dataclass(frozen=True)
class Corpora:
    """Texts on which models are held against each other, and how much of each is read."""

    texts: Sequence[Text]
    block_length: int
    num_blocks: int
    seed: int


def find_corpora(settings: ComparisonSettings, paths: PathSettings) -> Corpora:
    """Return the texts that the settings name.

    Raises:
        DataError: when one cannot be found.
    """
    root, cache = data_root(paths), Path(paths.cache).expanduser()
    texts = tuple(find_text(name, root=root, cache=cache) for name in settings.corpora)
    return Corpora(texts, settings.block_length, settings.num_blocks, settings.seed)


def divergence_rows(
    base: Candidate, other: Candidate, corpora: Corpora, *, bootstrap: Bootstrap, store: Store
) -> Iterator[dict[str, Any]]:
    """Yield a row a text, as `report.bias_content.DIVERGED`: nats a token, intervals over blocks.

    What two models predict of a text is an artefact of the store, as answers are: it is not computed twice. Models that
    read the text as other tokens cannot be held against each other token by token: they get no row.
    """
    if base.kind != other.kind or _vocabulary(base) != _vocabulary(other):
        return
    for text in corpora.texts:
        blocks = _blocks(text, base, corpora)
        masking = None
        if base.kind == MASKED:
            masking = masking_of(base.tokenizer, share=MASK_SHARE, seed=corpora.seed)
        found = _kept_or_found(base, other, blocks, masking, store)
        yield {"base": base.name, "other": other.name, "corpus": text.name, **_summary(found, bootstrap)}


def _kept_or_found(
    base: Candidate, other: Candidate, blocks: Blocks, masking: Masking | None, store: Store
) -> BlockDivergences:
    lineage = _lineage(base, other, blocks, masking)
    names = [each.name for each in fields(BlockDivergences)]
    if store.has(lineage.name):
        tensors = store.get(lineage.name).tensors
        return BlockDivergences(**{name: tensors[name].numpy() for name in names})
    found = block_divergences(
        base.network, other.network, blocks, max(1, BATCH_TOKENS // blocks.length), masking=masking
    )
    tensors = {name: torch.from_numpy(getattr(found, name)) for name in names}
    environment: Mapping[str, Any] = lineage.settings["numerics"]
    store.put(lineage, tensors, {"base": base.name, "other": other.name}, environment=dict(environment))
    return found


def _lineage(base: Candidate, other: Candidate, blocks: Blocks, masking: Masking | None) -> Lineage:
    tokens = np.ascontiguousarray(blocks.tokens, dtype="<i4").tobytes()
    hidden = None if masking is None else asdict(masking) | {"special_ids": sorted(masking.special_ids)}
    device = base.device.type
    return Lineage(
        kind=DIVERGENCES_KIND,
        parents=tuple(dict.fromkeys((*base.parents, *other.parents))),
        examples=(),
        inputs=(hashlib.sha256(tokens).hexdigest(),),
        settings={
            "version": DIVERGENCES_VERSION,
            "models": [base.digest, other.digest],
            "block_length": blocks.length,
            "masking": hidden,
            "batch_tokens": BATCH_TOKENS,
            "numerics": dict(numeric_environment(device, "fp32", torch.get_num_threads())),
        },
    )


def _blocks(text: Text, base: Candidate, corpora: Corpora) -> Blocks:
    """Return the first blocks of a text."""
    blocks = encode_blocks(text.documents, base.tokenizer, length=corpora.block_length, end_id=end_of(base.tokenizer))
    most = corpora.num_blocks * corpora.block_length
    return Blocks(blocks.document_ids, blocks.offsets, blocks.tokens[:most], blocks.length)


def _vocabulary(candidate: Candidate) -> tuple[str, int]:
    return candidate.tokenizer.backend_tokenizer.to_str(), int(candidate.network.config.vocab_size)


def _summary(found: BlockDivergences, bootstrap: Bootstrap) -> dict[str, float]:
    row: dict[str, float] = {"num_tokens": int(found.num_targets.sum())}
    for name, sums in (("kl_forward", found.forward), ("kl_backward", found.backward), ("same_top", found.same_top)):
        drawn = [
            sums @ weights / (found.num_targets @ weights) for weights in weight_chunks(np.arange(len(sums)), bootstrap)
        ]
        summary = summarise(np.concatenate(drawn), bootstrap.level)
        row |= {name: float(summary["value"]), f"{name}_low": float(summary["low"])}
        row |= {f"{name}_high": float(summary["high"])}
    return row
