"""In which order examples are shown: batches as explicit rows, from a seed and nothing else."""

from __future__ import annotations

import numpy as np

from fairsisa.lineage import derive_seed


def training_batches(lengths: np.ndarray, num_presentations: int, *, batch_size: int, seed: int) -> list[np.ndarray]:
    """Return the rows of every training batch, in order: whole epochs, then a part of one.

    Each epoch is a permutation from (seed, epoch); rows of equal or neighbouring length share a batch, and the
    batches are shuffled. `lengths` has shape (num_examples,).
    """
    batches: list[np.ndarray] = []
    num_examples, epoch = len(lengths), 0
    while num_examples and num_presentations > 0:
        generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "epoch", epoch)))
        rows = generator.permutation(num_examples)[:num_presentations]
        batches += _shuffled(_by_length(rows, lengths, batch_size), generator)
        num_presentations -= len(rows)
        epoch += 1
    return batches


def inference_batches(lengths: np.ndarray, *, max_tokens: int) -> list[np.ndarray]:
    """Return rows of equal length together, at most `max_tokens` tokens a batch (or one row), longest first.

    Equal lengths need no padding and no mask. `lengths` has shape (num_examples,).
    """
    batches: list[np.ndarray] = []
    for length in sorted(set(lengths.tolist()), reverse=True):
        rows = np.flatnonzero(lengths == length)
        size = max(1, max_tokens // length)
        batches += [rows[start : start + size] for start in range(0, len(rows), size)]
    return batches


def _by_length(rows: np.ndarray, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def _shuffled(batches: list[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    return [batches[index] for index in generator.permutation(len(batches))]
