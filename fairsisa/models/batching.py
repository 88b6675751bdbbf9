"""From rows to the tensors a network reads: collation, and the Lightning data module of a slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from fairsisa.data.batches import inference_batches
from fairsisa.data.encoding import Inputs
from fairsisa.models.network import Batch

INFERENCE_TOKENS = 2048
INFERENCE_ROWS = 8192


class SliceData(pl.LightningDataModule):
    """The batches of one slice, in the order that was planned; `bundle` of them make one Lightning batch."""

    def __init__(self, inputs: Inputs, batches: Sequence[np.ndarray], *, pad_id: int, bundle: int) -> None:
        super().__init__()
        self.bundles = [batches[start : start + bundle] for start in range(0, len(batches), bundle)]
        self.collate = partial(_collate_bundle, inputs, pad_id)

    def train_dataloader(self) -> DataLoader[list[Batch]]:
        """Return the bundles in order, made into tensors one at a time, in this process."""
        return DataLoader(self.bundles, batch_size=None, shuffle=False, num_workers=0, collate_fn=self.collate)  # type: ignore[arg-type]


def collate(inputs: Inputs, rows: np.ndarray, pad_id: int) -> Batch:
    """Return the rows as a batch: `tokens` (int64, padded on the right) with a `mask` if lengths differ, or `features`.

    `labels` is int64, shape (num_rows,); `teacher`, where the inputs hold targets, fp32 of shape
    (num_rows, num_classes).
    """
    told = {"labels": torch.from_numpy(inputs.labels[rows])}
    if inputs.targets is not None:
        told["teacher"] = torch.from_numpy(inputs.targets[rows])
    if inputs.features is not None:
        return {"features": torch.from_numpy(inputs.features[rows]), **told}
    texts = [inputs.row_tokens(row) for row in rows]
    width = max(len(text) for text in texts)
    tokens = np.full((len(texts), width), pad_id, dtype=np.int64)
    for line, text in zip(tokens, texts, strict=True):
        line[: len(text)] = text
    batch = {"tokens": torch.from_numpy(tokens), **told}
    if any(len(text) < width for text in texts):
        lengths = np.array([len(text) for text in texts])
        batch["mask"] = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
    return batch


@torch.inference_mode()
def run_batched(function: Callable[[Batch], torch.Tensor], inputs: Inputs, *, width: int, device: str) -> np.ndarray:
    """Return `function` of every row in fp32, shape (num_examples, width), by batches of equal length."""
    out = np.empty((len(inputs), width), dtype=np.float32)
    max_tokens = INFERENCE_ROWS if inputs.features is not None else INFERENCE_TOKENS
    for rows in inference_batches(inputs.lengths, max_tokens=max_tokens):
        batch = {key: value.to(device) for key, value in collate(inputs, rows, pad_id=0).items()}
        out[rows] = function(batch).float().cpu().numpy()
    return out


def _collate_bundle(inputs: Inputs, pad_id: int, bundle: Sequence[np.ndarray]) -> list[Batch]:
    return [collate(inputs, rows, pad_id) for rows in bundle]
