"""Codes as names of items: collisions, a counter that makes them unique, and their trie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recbole_llm.arrays import Array, like, to_numpy


def collision_rate(codes: Array) -> float:
    """Share of items that are one too many for their code: (items - different codes) / items.

    Args:
        codes: int64 [n, l], a code per item.

    Returns:
        In [0, 1); 0 for no items.

    Example:
        >>> round(collision_rate([[2, 5], [1, 1], [2, 5]]), 4)
        0.3333
    """
    table = to_numpy(codes)
    return (len(table) - len(np.unique(table, axis=0))) / len(table) if len(table) else 0.0


def disambiguate(codes: Array) -> Any:
    """Appends how many earlier items have the same code, which makes codes unique.

    Args:
        codes: int64 [n, l], a code per item.

    Returns:
        int64 [n, l + 1]. Permuting the items changes the last column only.

    Example:
        >>> disambiguate([[2, 5], [1, 1], [2, 5]]).tolist()
        [[2, 5, 0], [1, 1, 0], [2, 5, 1]]
    """
    table = to_numpy(codes).astype(np.int64)
    if not len(table):
        return like(np.zeros((0, table.shape[1] + 1 if table.ndim == 2 else 1), dtype=np.int64), codes)
    group = np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    earlier = np.empty(len(table), dtype=np.int64)
    earlier[order] = np.arange(len(table)) - (sizes.cumsum() - sizes)[group[order]]
    return like(np.column_stack([table, earlier]), codes)


class CodeTrie:
    """Which codes may follow a beginning, and which item a whole code names.

    Codes are kept sorted: what begins alike is one interval, found by bisection. 100,000 items take as much memory as
    their codes twice.

    Args:
        codes: int64 [n, l], a code for each item; of several items of one code it is the lowest one's
            (:func:`disambiguate` gives each its own).

    Raises:
        ValueError: codes are no table.

    Example:
        >>> trie = CodeTrie([[0, 1], [0, 2], [3, 1]])
        >>> trie.allowed([0]), trie.item([3, 1]), trie.item([3, 2])
        ([1, 2], 2, None)
    """

    def __init__(self, codes: Array) -> None:
        table = to_numpy(codes).astype(np.int64)
        if not table.size and table.ndim == 1:
            table = table.reshape(0, 0)  # an empty list
        if table.ndim != 2:
            raise ValueError(f"codes [items, levels] are needed, not {table.shape}")
        self._items = np.lexsort(table.T[::-1]) if table.shape[1] else np.arange(len(table))
        self._codes = table[self._items]

    def allowed(self, prefix: Sequence[int]) -> list[int]:
        """The codes that continue a beginning, ascending; none after a whole code, or where no code begins so."""
        start, end = self._interval(prefix)
        if start == end or len(prefix) >= self._codes.shape[1]:
            return []
        return [int(code) for code in np.unique(self._codes[start:end, len(prefix)])]

    def item(self, sequence: Sequence[int]) -> int | None:
        """The item that a whole code names, or None."""
        start, end = self._interval(sequence)
        whole = len(sequence) == self._codes.shape[1] and start < end  # the sort is stable: the lowest is first
        return int(self._items[start]) if whole else None

    def _interval(self, prefix: Sequence[int]) -> tuple[int, int]:
        """The sorted codes that begin so, as a half-open interval."""
        start, end = 0, len(self._codes)
        if len(prefix) > self._codes.shape[1]:
            return 0, 0
        for level, code in enumerate(prefix):
            column = self._codes[start:end, level]
            start, end = (start + int(np.searchsorted(column, code, side)) for side in ("left", "right"))
        return start, end
