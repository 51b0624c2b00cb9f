"""Greedy lists: by relevance and distance to the list so far, or by maximal marginal relevance.

The value of a list S is the sum of its items' relevances and of the distances of its pairs,
``F(S) = sum of r_a + sum of d(a, b)``; what an item adds is its relevance and its distances to the items before it.
With relevances and a metric that are not negative, a greedy list with relevance halved has at least half of the best
value (Borodin et al. 2012). Ties go to the lower index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_llm.arrays import Array, like, to_ids, to_numpy


def greedy_list(relevance: Array, distances: Array, length: int, half_relevance: bool = False) -> tuple[Any, Any]:
    """Adds, one after another, the item that adds most to the value of the list.

    Args:
        relevance: [n].
        distances: [n, n], symmetric, in the unit of the relevances.
        length: items of the list; at most n are returned.
        half_relevance: choose by half of the relevance, which has the guarantee above.

    Returns:
        int64 [length], the items in order; float64 [length], what each adds to F, its relevance in full.

    Raises:
        ValueError: shapes do not match.

    Example:
        >>> order, gains = greedy_list([1.0, 0.9, 0.2], [[0, 0.1, 1], [0.1, 0, 1], [1, 1, 0]], length=2)
        >>> order.tolist(), gains.tolist()
        ([0, 2], [1.0, 1.2])
    """
    values, table = _checked(relevance, distances, "distances")
    weight = 0.5 if half_relevance else 1.0
    dispersion, left = np.zeros(len(values)), np.ones(len(values), dtype=bool)
    order: list[int] = []
    gains: list[float] = []
    for _ in range(min(length, len(values))):
        best = best_left(weight * values + dispersion, left)
        order.append(best)
        gains.append(float(values[best] + dispersion[best]))
        left[best] = False
        dispersion = dispersion + table[best]
    return like(np.array(order, dtype=np.int64), relevance), like(np.array(gains, dtype=np.float64), relevance)


def list_value(items: Array, relevance: Array, distances: Array) -> float:
    """F of a list: the relevances of its items and the distances of its pairs.

    Args:
        items: int64 [k], different items; their order does not matter.
        relevance: [n].
        distances: [n, n], symmetric.

    Raises:
        ValueError: shapes do not match, or an item is not one of the n.

    Example:
        >>> list_value([0, 2], [1.0, 0.9, 0.2], [[0, 0.1, 1], [0.1, 0, 1], [1, 1, 0]])
        2.2
    """
    values, table = _checked(relevance, distances, "distances")
    chosen = to_ids(items, len(values), "item")
    pairs = table[np.ix_(chosen, chosen)]
    return float(values[chosen].sum() + np.triu(pairs, 1).sum())


def mmr_list(relevance: Array, similarity: Array, length: int, trade_off: float) -> Any:
    """Maximal marginal relevance (Carbonell & Goldstein 1998): relevance less the largest similarity to the list.

    Adds the item with the largest ``trade_off * r_a - (1 - trade_off) * max over b in S of sim(a, b)``; an empty list
    is similar to nothing.

    Args:
        relevance: [n], used as given; scale it to the similarities' range.
        similarity: [n, n].
        length: items of the list; at most n are returned.
        trade_off: 1 for relevance alone, which leaves the order as it is; 0 for diversity alone.

    Returns:
        int64 [length], the items in order.

    Raises:
        ValueError: shapes do not match, or the trade-off is not in [0, 1].

    Example:
        >>> mmr_list([1.0, 0.9, 0.2], [[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]], length=3, trade_off=0.5).tolist()
        [0, 2, 1]
    """
    values, table = _checked(relevance, similarity, "similarities")
    if not 0 <= trade_off <= 1:
        raise ValueError(f"the trade-off must lie in [0, 1], not {trade_off}")
    # What is not ranked (-inf) stays last, also where its relevance counts nothing: 0 times infinity is no number.
    weighted = np.where(np.isinf(values), values, trade_off * np.nan_to_num(values))
    nearest: NDArray[np.float64] | None = None
    left, order = np.ones(len(values), dtype=bool), []
    for _ in range(min(length, len(values))):
        scores = weighted - (0.0 if nearest is None else (1 - trade_off) * nearest)
        best = best_left(scores, left)
        order.append(best)
        left[best] = False
        nearest = table[best] if nearest is None else np.maximum(nearest, table[best])
    return like(np.array(order, dtype=np.int64), relevance)


def rerank_scores(base: Array, order: Array) -> Any:
    """Scores that rank the re-ordered items first, in their new order, and leave the scores of others.

    Of the n items in ``order`` the last gets ``s + 1`` and the first ``s + n``, with s the n-th highest base score:
    where they are a model's n best items, they stay above all others. Where fewer than n scores are finite, s is the
    lowest of these, and where 1 is lost beside s, the steps are the smallest there are.

    Args:
        base: [items], a model's scores.
        order: int64 [n], the items whose order is re-decided, best first.

    Returns:
        float64 [items], as ``base`` is.

    Raises:
        ValueError: the order names what is no item, or one twice; or a score is NaN.

    Example:
        >>> rerank_scores([0.9, 0.1, 0.8, 0.7], [2, 0]).tolist()
        [1.8, 0.1, 2.8, 0.7]
    """
    scores = to_numpy(base).astype(np.float64)  # a copy
    items = to_ids(order, len(scores), "item")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    if len(np.unique(items)) < len(items):
        raise ValueError("the order names an item twice")
    if len(items):
        scores[items] = _rising(scores, len(items))[::-1]
    return like(scores, base)


def _rising(scores: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """n different finite numbers, ascending, above the n-th highest score, where that is finite."""
    finite = scores[np.isfinite(scores)]
    start = np.partition(scores, len(scores) - n)[len(scores) - n]
    if not len(finite):
        start = 0.0
    elif np.isneginf(start):
        start = finite.min()
    elif np.isposinf(start):
        start = finite.max()
    found: NDArray[np.float64] = start + np.arange(1, n + 1)
    if (np.diff(found, prepend=start) > 0).all():
        return found
    for place in range(n):
        start = found[place] = np.nextafter(start, np.inf)
    return found


def best_left(scores: NDArray[np.float64], left: NDArray[np.bool_]) -> int:
    """The item with the highest score [n] among those left [n], be all of them -inf; the lower one on a tie."""
    remaining = np.flatnonzero(left)
    return int(remaining[np.argmax(scores[remaining])])


def _checked(relevance: Array, table: Array, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, pairs = to_numpy(relevance).astype(np.float64), to_numpy(table).astype(np.float64)
    if values.ndim != 1 or pairs.shape != (len(values), len(values)):
        raise ValueError(f"relevance [n] and {name} [n, n] are needed, not {values.shape} and {pairs.shape}")
    if np.isnan(values).any() or np.isnan(pairs).any():
        raise ValueError(f"relevance or {name} hold NaN")
    return values, pairs
