"""The largest values of rows under one tie rule: of equal ones the lower index first."""

from __future__ import annotations

import torch
from torch import Tensor

TIED_ROWS = 64  # at a time, for which numbers of all columns are made


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their indices: like ``values.topk(k)``, but equal values by lower index.

    Which of several equal infinite values are taken is not defined: -inf marks what must not be chosen.

    Args:
        values: ``[rows, n]``, without NaN.
        k: how many; more than n gives all of them.

    Returns:
        Values ``[rows, min(k, n)]``, the largest first, and their indices, int64 of the same shape.

    Example:
        >>> values, index = top_k(torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0]]), k=3)
        >>> values.tolist(), index.tolist()
        ([[3.0, 3.0, 2.0]], [[1, 3, 2]])
    """
    k = min(k, values.shape[1])
    top, index = values.topk(min(k + 1, values.shape[1]), dim=1)
    if top.shape[1] > k > 0:
        # topk is free in which of several equal values it takes: that matters only if a tie runs across the cut
        tied = (top[:, k - 1] == top[:, k]) & top[:, k].isfinite()
        if tied.any():
            index[tied, :k] = _lowest_of_equals(values[tied], top[tied, :k], index[tied, :k])
    index, order = index[:, :k].sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top, index.gather(1, order)


def _lowest_of_equals(values: Tensor, top: Tensor, index: Tensor) -> Tensor:
    """The lower indices where equal values run across the cut; there is no need to order the others.

    Args:
        values: [rows, n].
        top: [rows, k], the largest values.
        index: int64 [rows, k], where some of them stand.

    Returns:
        int64 [rows, k], where they stand, of the least among them the lowest indices.
    """
    k, n = top.shape[1], values.shape[1]
    order = torch.arange(n, 0, -1, dtype=torch.int32, device=values.device)  # the lower the index, the larger
    parts = zip(values.split(TIED_ROWS), top[:, -1:].split(TIED_ROWS), strict=True)
    lowest = n - torch.cat([torch.where(own == cut, order, 0).topk(k, dim=1).values for own, cut in parts]).long()
    n_above = (top > top[:, -1:]).sum(dim=1, keepdim=True)
    behind = torch.arange(k, device=values.device) - n_above
    return torch.where(behind < 0, index, lowest.gather(1, behind.clamp(min=0)))
