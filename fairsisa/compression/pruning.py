"""Which weights a pruned matrix keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fairsisa.errors import ConfigError


def magnitude_mask(weights: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return True where a weight is kept: all but the `int(num_weights * sparsity)` smallest in absolute value.

    `weights` has any shape, the mask the same; of equal weights the earlier one, row by row, goes first.

    Raises:
        ConfigError: when `sparsity` is not in [0, 1), or a weight is not finite.
    """
    _check_sparsity(sparsity)
    scores = _magnitudes(weights).flatten()
    return _keep_highest(scores, int(scores.numel() * sparsity)).view(weights.shape)


def global_magnitude_masks(matrices: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """Return `magnitude_mask` of all matrices laid end to end, cut up again: one threshold for the whole model.

    Raises:
        ConfigError: when there is no matrix, `sparsity` is not in [0, 1), or a weight is not finite.
    """
    if not matrices:
        raise ConfigError("Expected one matrix or more to prune together, got none.")
    everything = torch.cat([matrix.detach().flatten() for matrix in matrices.values()])
    parts = torch.split(magnitude_mask(everything, sparsity), [matrix.numel() for matrix in matrices.values()])
    return {name: part.view(matrices[name].shape) for name, part in zip(matrices, parts, strict=True)}


def wanda_mask(
    weights: torch.Tensor,
    feature_norms: torch.Tensor,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Return True where a weight is kept by its score |W_ij| * ||X_j||_2 (Sun et al. 2024, equation 1).

    `weights` is (out_features, in_features), `feature_norms` (in_features,) up to any positive factor. With
    `sparsity`, each row loses its `int(in_features * sparsity)` lowest scores. With `pattern` (N, M), each block of
    M consecutive inputs of a row keeps its N highest; the authors' code removes N, which at 2:4 and 4:8 is the same.
    Of equal scores the earlier one goes first, as in their stable sort.

    Raises:
        ConfigError: unless exactly one of `sparsity`, in [0, 1), and `pattern`, 1 <= N <= M, is given and M divides
            in_features; or when a score is not finite.
        ValueError: when the shapes do not fit.
    """
    if weights.ndim != 2 or feature_norms.shape != weights.shape[1:]:
        raise ValueError(
            f"Expected weights (out_features, in_features) with norms (in_features,), "
            f"got {tuple(weights.shape)} with {tuple(feature_norms.shape)}."
        )
    scores = _magnitudes(weights) * _magnitudes(feature_norms.to(weights.device))
    if pattern is not None and sparsity is None:
        return _keep_pattern(scores, pattern)
    if sparsity is None or pattern is not None:
        raise ConfigError(f"Expected either a sparsity or a pattern, got {sparsity} with {pattern}.")
    _check_sparsity(sparsity)
    return _keep_highest(scores, int(scores.shape[1] * sparsity))


def random_mask(shape: tuple[int, ...], sparsity: float, seed: int) -> torch.Tensor:
    """Return True where a weight is kept: all but `int(num_weights * sparsity)` drawn from `seed`, on the CPU.

    Raises:
        ConfigError: when `sparsity` is not in [0, 1).
    """
    _check_sparsity(sparsity)
    num_weights = math.prod(shape)
    order = torch.randperm(num_weights, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(num_weights, dtype=torch.bool)
    mask[order[: int(num_weights * sparsity)]] = False
    return mask.view(shape)


def _keep_pattern(scores: torch.Tensor, pattern: tuple[int, int]) -> torch.Tensor:
    kept, block = pattern
    if not 1 <= kept <= block:
        raise ConfigError(f"Expected a pattern (N, M) with 1 <= N <= M, got {pattern}.")
    if scores.shape[1] % block:
        raise ConfigError(
            f"Expected in_features to be a multiple of {block} for the pattern {kept}:{block}, got {scores.shape[1]}: "
            "leave this layer out, or prune it by sparsity."
        )
    return _keep_highest(scores.reshape(-1, block), block - kept).view(scores.shape)


def _keep_highest(scores: torch.Tensor, num_removed: int) -> torch.Tensor:
    """Return True for all but the `num_removed` lowest scores along the last axis, the earlier of equals first.

    A selection and a count of ties: the same mask as a stable sort's, two to six times faster.
    """
    if num_removed == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(num_removed, dim=-1, keepdim=True).values
    tied = scores == threshold
    num_tied_removed = num_removed - (scores < threshold).sum(dim=-1, keepdim=True)
    return (scores > threshold) | (tied & (tied.cumsum(dim=-1) > num_tied_removed))


def _magnitudes(values: torch.Tensor) -> torch.Tensor:
    """Return absolute values in fp32, so that 16-bit weights are not rounded into ties."""
    magnitudes = values.detach().float().abs()
    if not magnitudes.isfinite().all():
        raise ConfigError("Expected finite weights and norms, got NaN or infinity: the model has diverged.")
    return magnitudes


def _check_sparsity(sparsity: float) -> None:
    if not 0.0 <= sparsity < 1.0:
        raise ConfigError(f"Expected a sparsity in [0, 1), the share of weights to remove, got {sparsity}.")
