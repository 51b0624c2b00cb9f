"""Metrics of targets that are frequent (head) and rare (tail) in training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recbole_llm.grounding.rank_metrics import RANK_METRICS

FAMILIES = ("hit", "ndcg")


def head_items(counts: np.ndarray, share: float) -> np.ndarray:
    """The most popular items.

    Args:
        counts: int64 [items], interactions in training; the first item is the padding and is none.
        share: share of the items, rounded up.

    Returns:
        bool [items]; among equals the lower id first.

    Example:
        >>> head_items(np.array([9, 1, 5, 5, 0]), 0.5).tolist()
        [False, False, True, True, False]
    """
    order = np.argsort(-counts[1:], kind="stable")[: math.ceil(share * (len(counts) - 1) - 1e-9)]
    head = np.zeros(len(counts), dtype=bool)
    head[1 + order] = True
    return head


def head_tail_metrics(
    ranks: np.ndarray, targets: np.ndarray, head: np.ndarray, topk: Sequence[int]
) -> dict[str, float]:
    """Hit ratio and NDCG of the rows whose target is in the head, and of the others.

    Args:
        ranks: int64 [rows], 0-based, -1 where the target was not ranked.
        targets: int64 [rows].
        head: bool [items].
        topk: cut-offs.

    Returns:
        ``ndcg_head@10``, ``ndcg_tail@10`` and so on; a part without rows has none.

    Example:
        >>> found = head_tail_metrics(np.array([0, 1]), np.array([1, 2]), np.array([False, True, False]), [1])
        >>> found["hit_head@1"], found["hit_tail@1"]
        (1.0, 0.0)
    """
    parts = {"head": head[targets], "tail": ~head[targets]}
    return {
        f"{family}_{part}@{k}": float(RANK_METRICS[family](ranks[rows], k).mean())
        for family in FAMILIES
        for part, rows in parts.items()
        for k in topk
        if rows.any()
    }
