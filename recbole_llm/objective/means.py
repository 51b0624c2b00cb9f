"""Weighted means that are 0, with gradient 0, where all weights are 0; number types."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from recbole_llm.arrays import to_ids


def softplus(values: Tensor) -> Tensor:
    """log(1 + exp(x)), everywhere to the last digit: torch's own gives x itself above 20, off by 2e-9."""
    return -logsigmoid(-values)


def unit(vectors: Tensor) -> Tensor:
    """Vectors [n, d] of length 1, whatever their scale; zeros stay zeros, with a gradient of ordinary size.

    Equals torch's ``normalize`` between lengths of 1e-12 and the square root of the largest number. Beyond, that is
    wrong, and a vector of zeros has a gradient of 1e12 there.
    """
    if not vectors.numel():
        return vectors
    largest = vectors.detach().abs().amax(dim=1, keepdim=True)
    safe = (largest == 0) | ((largest > 1e-9) & (largest < 1e15))
    scaled = vectors / torch.where(safe, 1.0, largest)
    return scaled / torch.where(largest > 0, scaled.norm(dim=1, keepdim=True), 1.0)


def products(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of the rows of x [m, d] and y [n, d], [m, n]; autocast, which would halve their digits, is off."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(dtype) @ y.to(dtype).T


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * values over the sum of weights; 0, still part of the graph, where that is 0.

    Args:
        values: [...].
        weights: [...], >= 0. Values of weight 0 do not count, even where they are not finite.
    """
    counted = torch.where(weights > 0, values, 0.0) * weights
    total = weights.sum()
    return counted.sum() / torch.where(total > 0, total, 1.0)


def token_weights(like: Tensor, rows: Tensor | None, row_weights: Tensor | None) -> Tensor:
    """[n], the weight of each token's row; 1 without row weights.

    Raises:
        ValueError: row weights without the row of each token, or rows that are not one for each token with a weight.
    """
    if row_weights is None:
        return torch.ones_like(like)
    if rows is None:
        raise ValueError("row_weights need rows, the row of each token")
    if rows.shape != like.shape:
        raise ValueError(f"rows [{len(like)}] are needed, one for each token, not {tuple(rows.shape)}")
    to_ids(rows, len(row_weights), "row")
    return row_weights.to(like)[rows.long()]
