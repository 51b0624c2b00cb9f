"""Ranks and lists of best items under one tie rule: the higher score first, the lower item id among equals.

An item without a finite score is not ranked: it is in no list, however long, and as a target it has no rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_llm.arrays import Array, to_tensor
from recbole_llm.grounding.rank_metrics import NOT_RANKED
from recbole_llm.top_k import top_k


@dataclass(frozen=True)
class Ranking:
    """How one model ranks the items for some rows.

    Attributes:
        ranks: int64 ``[rows]``, 0-based rank of the target; -1 where it is not ranked, or where there is no target.
        top_items: int64 ``[rows, k]``, the best items, the best first; 0 after the last item that is ranked.
        top_scores: float64 ``[rows, k]``, their scores, larger is better; -inf after the last one.

    Example:
        >>> Ranking.nothing(n_rows=1, k=2).top_items.tolist()
        [[0, 0]]
    """

    ranks: np.ndarray
    top_items: np.ndarray
    top_scores: np.ndarray

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ranks)

    @classmethod
    def nothing(cls, n_rows: int, k: int) -> Ranking:
        """The ranking of rows for which no item is ranked."""
        return cls(
            np.full(n_rows, NOT_RANKED, dtype=np.int64),
            np.zeros((n_rows, k), dtype=np.int64),
            np.full((n_rows, k), -np.inf),
        )

    @classmethod
    def join(cls, parts: Sequence[Ranking]) -> Ranking:
        """The rows of several rankings, one after another; all have lists of one length."""
        return cls(
            np.concatenate([part.ranks for part in parts]),
            np.concatenate([part.top_items for part in parts]),
            np.concatenate([part.top_scores for part in parts]),
        )

    def first(self, k: int) -> Ranking:
        """This ranking with lists of the ``k`` best items."""
        return Ranking(self.ranks, self.top_items[:, :k], self.top_scores[:, :k])

    def spread(self, rows: Sequence[int] | np.ndarray, n_rows: int) -> Ranking:
        """This ranking as that of ``rows`` among ``n_rows``; the others rank nothing."""
        whole = Ranking.nothing(n_rows, self.top_items.shape[1])
        index = np.asarray(rows, dtype=np.int64)
        whole.ranks[index], whole.top_items[index], whole.top_scores[index] = (
            self.ranks,
            self.top_items,
            self.top_scores,
        )
        return whole


def rank_scores(scores: Array, targets: Array | None, k: int) -> Ranking:
    """Ranks all items by a dense table of scores.

    Args:
        scores: ``[rows, items]``, array or tensor, larger is better; an item without a finite score is not ranked.
        targets: int ``[rows]``, item ids; None for none.
        k: length of the lists, at least 1; may exceed the number of items.

    Raises:
        ValueError: a score is not a number, or ``k`` is below 1.

    Example:
        >>> ranking = rank_scores([[-torch.inf, 0.2, 0.9, 0.2]], targets=[3], k=2)
        >>> ranking.ranks.tolist(), ranking.top_items.tolist()
        ([2], [[2, 1]])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    table = to_tensor(scores)
    if torch.isnan(table).any():
        raise ValueError(f"the scores of row {int(torch.isnan(table).any(dim=1).nonzero()[0])} are not all numbers")
    values, ids = top_k(table, k)
    values, ranked = values.double(), torch.isfinite(values)
    ranking = Ranking.nothing(len(table), k)
    width = ids.shape[1]
    ranking.top_items[:, :width] = ids.masked_fill(~ranked, 0).cpu().numpy()
    ranking.top_scores[:, :width] = values.masked_fill(~ranked, -torch.inf).cpu().numpy()
    if targets is not None:
        wanted = torch.as_tensor(targets).to(table.device, torch.int64)
        ranking.ranks[:] = target_ranks(table, wanted).cpu().numpy()
    return ranking


def rank_listed(items: np.ndarray, scores: np.ndarray, targets: Array | None, k: int) -> Ranking:
    """Ranks the items that a search has listed for each row; the others are not ranked.

    Args:
        items: int64 ``[rows, listed]``, in any order, none twice in a row; 0 fills up a shorter list.
        scores: float64 ``[rows, listed]``, larger is better; not read where the item is 0.
        targets: int ``[rows]``, item ids; None for none. A target beyond the k-th position has a rank if it is listed.
        k: length of the lists, at least 1.

    Example:
        >>> ranking = rank_listed(np.array([[4, 7, 0]]), np.array([[0.1, 0.9, 0.0]]), targets=[4], k=2)
        >>> ranking.ranks.tolist(), ranking.top_items.tolist()
        ([1], [[7, 4]])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    listed = (items > 0) & np.isfinite(scores)
    order = np.lexsort((items, np.where(listed, -scores, np.inf)), axis=1)
    listed = np.take_along_axis(listed, order, axis=1)
    items = np.where(listed, np.take_along_axis(items, order, axis=1), 0)
    scores = np.where(listed, np.take_along_axis(scores, order, axis=1), -np.inf)
    ranking = Ranking.nothing(len(items), k)
    width = min(k, items.shape[1])
    ranking.top_items[:, :width], ranking.top_scores[:, :width] = items[:, :width], scores[:, :width]
    if targets is not None:
        is_target = listed & (items == np.asarray(targets)[:, None])
        rows, positions = np.nonzero(is_target)
        ranking.ranks[rows] = positions
    return ranking


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """0-based rank of each row's target under the rule of :func:`~recbole_llm.top_k.top_k`, by counting.

    Args:
        scores: ``[rows, items]``; an item without a finite score is not ranked.
        targets: int64 ``[rows]``.

    Returns:
        int64 ``[rows]``; -1 where the target itself is not ranked.
    """
    own = scores.gather(1, targets[:, None])
    before = (scores == own) & (torch.arange(scores.shape[1], device=scores.device) < targets[:, None])
    ranks = ((scores > own) | before).sum(dim=1)
    return ranks.masked_fill(~torch.isfinite(own[:, 0]), NOT_RANKED)
