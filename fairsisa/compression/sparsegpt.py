"""Pruning that moves what it removes onto the weights that stay (Frantar and Alistarh 2023, SparseGPT)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from fairsisa.compression.calibration import counted_rows, measured, refuse_unseen, run_body, smallest_body
from fairsisa.compression.layers import LayerWeight
from fairsisa.compression.pruning import wanda_mask
from fairsisa.errors import ConfigError
from fairsisa.models.network import Batch

Totals = dict[str, tuple[Tensor, int]]
"""By layer, the sum of its inputs' outer products in fp32, shape (in_features, in_features), over how many tokens."""


def sparsegpt(
    weights: Tensor,
    hessian: Tensor,
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> Tensor:
    """Return pruned weights, shape (out_features, in_features), that answer nearly as `weights` do on calibration.

    Algorithm 1 of Frantar and Alistarh (2023): column by column the removed weights' errors are made up for by the
    columns to the right, through the Cholesky factor of the inverse of `hessian` = X X^T, shape (in_features,
    in_features), up to any positive factor (see `input_products`), to whose diagonal `damping` times its mean is
    added. Which weights go is chosen once for every `block` columns over all rows, by w_c^2 / [H^-1]_cc; with
    `pattern` (N, M), each M consecutive inputs of a row keep their N highest. By `sparsity`,
    `int(num_weights * sparsity)` are removed in all. An input that was never active weighs nothing: its weights go
    first, and those that stay do not change (the authors' code removes them all, whatever the sparsity). Removing
    nothing returns an equal copy. Computed in fp32, the factor in fp64; the result has the dtype of `weights`.

    Raises:
        ConfigError: unless exactly one of `sparsity`, in [0, 1), and `pattern`, 1 <= N <= M, is given and M divides
            in_features; when `block` or `damping` is not positive, or a number is not finite.
        ValueError: when the shapes do not fit.
    """
    _check(weights, hessian, block, damping)
    wanda_mask(weights, torch.ones_like(weights[0]), sparsity, pattern)  # It asks the same of sparsity and pattern.
    share = sparsity or 0.0
    if int(weights.numel() * share) == 0 and (pattern is None or pattern[0] == pattern[1]):
        return weights.detach().clone()
    if pattern is not None:
        block = max(pattern[1], block // pattern[1] * pattern[1])
    root, norms = _inverse_root(hessian.to(weights.device), damping)
    work = weights.detach().float().clone()
    num_rows, num_inputs = work.shape
    for start in range(0, num_inputs, block):
        stop = min(start + block, num_inputs)
        here = slice(start, stop)
        counts = [int(num_rows * end * share) for end in (start, stop)]
        errors = _prune_block(work[:, here], root[here, here], norms[here], counts[1] - counts[0], pattern)
        work[:, stop:] -= errors @ root[here, stop:]
    return work.to(weights.dtype)


def input_products(model: nn.Module, batches: Iterable[Batch], layers: Mapping[str, LayerWeight]) -> dict[str, Tensor]:
    """Return, for each layer, the mean outer product of its inputs, fp32, shape (in_features, in_features).

    Over the tokens of all `batches`, in one pass as `calibration.feature_norms` makes it; its square-rooted diagonal
    is what that returns. A matrix for each of `layers` is held: give them in groups where memory is short.

    Raises:
        ConfigError: as `feature_norms`.
    """
    totals: Totals = {}
    body = smallest_body(model, layers)
    device = next(model.parameters()).device
    with torch.no_grad(), measured(model):
        for batch in batches:
            placed = {key: value.to(device) for key, value in batch.items()}
            with ExitStack() as hooks:
                for layer in layers.values():
                    hook = partial(_add_products, totals, layer.name, placed.get("mask"))
                    hooks.callback(layer.module.register_forward_pre_hook(hook).remove)
                run_body(body, placed)
    refuse_unseen(totals, layers)
    return {name: totals[name][0] / totals[name][1] for name in layers}


def _add_products(
    totals: Totals, name: str, mask: Tensor | None, _module: nn.Module, arguments: tuple[Tensor, ...]
) -> None:
    rows = counted_rows(name, arguments[0], mask).float()
    if name not in totals:
        totals[name] = (rows.new_zeros(rows.shape[1], rows.shape[1]), 0)
    total, count = totals[name]
    totals[name] = (total.addmm_(rows.t(), rows), count + len(rows))


def _check(weights: Tensor, hessian: Tensor, block: int, damping: float) -> None:
    if weights.ndim != 2 or hessian.shape != (weights.shape[1], weights.shape[1]):
        raise ValueError(
            "Expected weights (out_features, in_features) with a Hessian (in_features, in_features), got "
            f"{tuple(weights.shape)} with {tuple(hessian.shape)}."
        )
    if block < 1 or not damping > 0:
        raise ConfigError(f"Expected block of at least 1 and damping above 0, got {block} and {damping}.")
    if not bool(hessian.isfinite().all()):
        raise ConfigError("Expected a finite Hessian, got NaN or infinity: the model diverges on its calibration set.")


def _inverse_root(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return U, upper triangular with U^T U = H^-1 damped, and what |w| is to be multiplied by to rank a column."""
    damped = hessian.detach().double().clone()
    diagonal = damped.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not bool(dead.all()) else diagonal.new_ones(())
    diagonal[dead] = mean
    diagonal += damping * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    root = torch.linalg.cholesky(inverse, upper=True)
    norms = torch.where(dead, 0.0, 1 / root.diagonal())
    return root.float(), norms.float()


def _prune_block(
    columns: Tensor, root: Tensor, norms: Tensor, num_removed: int, pattern: tuple[int, int] | None
) -> Tensor:
    """Prune a block's columns in place, and return the errors that the columns to its right have to make up for."""
    kept = torch.ones_like(columns, dtype=torch.bool)
    if pattern is None:
        lowest = (columns.abs() * norms).flatten().argsort(stable=True)[:num_removed]
        kept.view(-1)[lowest] = False
    errors = torch.zeros_like(columns)
    for column in range(columns.shape[1]):
        if pattern is not None and column % pattern[1] == 0:
            some = slice(column, column + pattern[1])
            kept[:, some] = wanda_mask(columns[:, some], norms[some], pattern=pattern)
        errors[:, column] = (columns[:, column] / root[column, column]).masked_fill(kept[:, column], 0.0)
        columns[:, column:] -= torch.outer(errors[:, column], root[column, column:])
    columns.masked_fill_(~kept, 0.0)
    return errors
