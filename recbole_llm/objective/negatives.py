"""Which drawn items are valid wrong answers, and how lists of several answers are merged."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_llm.arrays import Array, like, to_ids, to_numpy


def false_negative_mask(candidates: Array, target: int, history: Array, representative: Array, rankable: Array) -> Any:
    """True for drawn items that are wrong answers: rankable, not the target, not of the history, not drawn before.

    All but the first is decided by titles: an item stands for its title's representative.

    Args:
        candidates: int64 [k], drawn items in order.
        target: the right item.
        history: int64 [any], items the user has had (to the user's other training items, if they are to count too).
        representative: int64 [items], the lowest item of each item's title.
        rankable: bool [items].

    Returns:
        bool [k], an array or a tensor as ``candidates`` is.

    Raises:
        ValueError: an item is not one of those that have a representative.

    Example:
        >>> titles, rankable = [0, 1, 2, 1, 4, 5, 5, 7], [False] + [True] * 7
        >>> false_negative_mask([3, 5, 6, 2, 7, 0], 1, [2], titles, rankable).tolist()
        [False, True, False, False, True, False]
    """
    titles = to_numpy(representative)
    items = to_ids(candidates, len(titles), "item")
    drawn = titles[items]
    known = np.append(titles[to_ids(history, len(titles), "item")], titles[to_ids(target, len(titles), "item")])
    allowed = to_numpy(rankable).astype(bool)[items] & ~np.isin(drawn, known)
    first = np.zeros(len(items), dtype=bool)
    positions = np.flatnonzero(allowed)
    first[positions[np.unique(drawn[positions], return_index=True)[1]]] = True
    return like(first, candidates)


def interleave(distances: Array) -> tuple[Any, Any]:
    """One ranking of the lists of several answers, round-robin without repeats: CFT's adjusted grounding (2410.22809).

    The best item of the first answer, of the second, ..., then second items, each item at its first occurrence. In
    closed form an item's score is ``-min over b of (rank in list b * answers + b)``.

    Args:
        distances: [answers, items], the best answer first; ties within an answer go to the lower item.

    Returns:
        int64 [items], items best first; float64 [items], the scores by item.

    Raises:
        ValueError: distances are not [answers >= 1, items], or hold NaN.

    Example:
        >>> order, scores = interleave([[0.3, 0.1, 0.9, 0.5], [0.8, 0.7, 0.2, 0.6]])
        >>> order.tolist(), scores.tolist()
        ([1, 2, 0, 3], [-2.0, 0.0, -1.0, -3.0])
    """
    table = to_numpy(distances)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"distances [answers, items] of at least one answer are needed, not {table.shape}")
    if np.isnan(table).any():
        raise ValueError("the distances hold NaN")
    ranks: NDArray[np.int64] = np.empty(table.shape, dtype=np.int64)
    np.put_along_axis(ranks, np.argsort(table, axis=1, kind="stable"), np.arange(table.shape[1])[None], axis=1)
    scores = 0.0 - (ranks * len(table) + np.arange(len(table))[:, None]).min(axis=0)  # no minus zero
    return like(np.argsort(-scores, kind="stable"), distances), like(scores, distances)
