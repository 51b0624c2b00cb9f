"""Metrics of single rows from the rank of the target; one that is not ranked is a miss at every cut-off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from recbole_llm.arrays import Array

NOT_RANKED = -1  # the rank of a target that stands in no ranking


def hit_at(ranks: Array, k: int) -> np.ndarray:
    """Hit@k of each row: 1 where the target is among the first k.

    Args:
        ranks: int ``[rows]``, 0-based ranks of the one target per row; :data:`NOT_RANKED` for a miss.
        k: cut-off, at least 1; may exceed the catalogue.

    Returns:
        float64 ``[rows]``; the mean over rows is the metric.

    Raises:
        ValueError: the cut-off is below 1, or what is given is no rank.

    Example:
        >>> hit_at([0, 5, NOT_RANKED], k=5).tolist()
        [1.0, 0.0, 0.0]
    """
    places = _checked_ranks(ranks, k)
    hits: np.ndarray = (places != NOT_RANKED) & (places < k)
    return hits.astype(np.float64)


def recall_at(ranks: Array, k: int) -> np.ndarray:
    """Recall@k of each row ``[rows]``: with one target per row the same as ``hit_at``."""
    return hit_at(ranks, k)


def ndcg_at(ranks: Array, k: int) -> np.ndarray:
    """NDCG@k of each row ``[rows]`` with one target: ``1 / log2(rank + 2)`` within the first k, else 0."""
    gains: np.ndarray = hit_at(ranks, k) / np.log2(_places(ranks) + 2.0)
    return gains


def mrr_at(ranks: Array, k: int) -> np.ndarray:
    """Reciprocal rank of each row ``[rows]``: ``1 / (rank + 1)`` within the first k, else 0."""
    reciprocal: np.ndarray = hit_at(ranks, k) / (_places(ranks) + 1.0)
    return reciprocal


RANK_METRICS: Mapping[str, Callable[[Any, int], np.ndarray]] = MappingProxyType(
    {"recall": recall_at, "ndcg": ndcg_at, "mrr": mrr_at, "hit": hit_at}
)


def metric_means(ranks: Array, topk: Iterable[int], metrics: Iterable[str] = tuple(RANK_METRICS)) -> dict[str, float]:
    """Means over rows, unrounded, under RecBole's names: ``{"recall@1": ..., "recall@5": ..., "ndcg@1": ...}``.

    Args:
        ranks: int ``[rows]``, 0-based ranks, at least one; :data:`NOT_RANKED` for a miss.
        topk: cut-offs.
        metrics: names of ``RANK_METRICS``.
    """
    cutoffs = tuple(topk)
    return {f"{name}@{k}": float(RANK_METRICS[name](ranks, k).mean()) for name in metrics for k in cutoffs}


def _checked_ranks(ranks: Array, k: int) -> np.ndarray:
    values = np.asarray(ranks)
    if k < 1:
        raise ValueError(f"the cut-off must be at least 1, got {k}")
    if values.ndim != 1 or not ((values >= NOT_RANKED) & (values == np.floor(values))).all():
        raise ValueError(f"ranks must be [rows], 0 for the best or {NOT_RANKED} for a target that is not ranked")
    return values


def _places(ranks: Array) -> np.ndarray:
    """The ranks ``[rows]``, with any place for a target that has none: its gain is 0."""
    return np.maximum(np.asarray(ranks), 0)
