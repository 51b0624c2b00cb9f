"""The items of a history that are most similar to one item."""

from __future__ import annotations

from typing import Any

import numpy as np

from recbole_llm.arrays import Array, like, to_numpy

DECIMALS = 9  # of a cosine: what rounding makes of equal vectors is no difference


def similar_positions(history: Array, target: int, vectors: Array, length: int) -> Any:
    """Where in a history its ``length`` items stand whose vectors have the largest cosines with the target's.

    Of items that are equally similar the newer ones come first. A vector of zeros has the cosine 0 with all.

    Args:
        history: int64 [n], item ids, oldest first, without padding.
        target: item that they are compared with.
        vectors: [items, d], a vector for each item id.
        length: items to keep; more than there are keeps all.

    Returns:
        int64 [min(n, length)], indices in ``history``, ascending: the items they give are in the order of time.

    Raises:
        ValueError: length < 0.

    Example:
        >>> vectors = [[0, 0], [1, 0], [0, 1], [3, 1]]
        >>> similar_positions([2, 1, 3, 1], target=1, vectors=vectors, length=2).tolist()
        [1, 3]
        >>> similar_positions([2, 1, 3, 2], target=1, vectors=vectors, length=3).tolist()
        [1, 2, 3]
    """
    items, table = to_numpy(history).astype(np.int64), to_numpy(vectors)
    if length < 0:
        raise ValueError(f"length must be >= 0, not {length}")
    if length >= len(items):
        return like(np.arange(len(items)), history)
    distinct, place = np.unique(items, return_inverse=True)
    own, other = table[distinct].astype(np.float64), table[target].astype(np.float64)
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(other)
    cosines = np.round(np.divide(own @ other, norms, out=np.zeros(len(own)), where=norms > 0), DECIMALS)[place]
    best = np.lexsort((-np.arange(len(items)), -cosines))[:length]
    return like(np.sort(best), history)
