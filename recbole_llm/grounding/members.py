"""Items that share a title share one point of the index; this maps points to items and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Members:
    """Which items stand at which point: those of a shared title at one.

    Attributes:
        items: int64 ``[members]``, item ids, those of one point side by side and ascending.
        starts: int64 ``[points + 1]``; the items of point ``p`` are ``items[starts[p] : starts[p + 1]]``, at least one.
    """

    items: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, point_of_item: np.ndarray, n_points: int) -> Members:
        """Members of each point, from the point of each item, int64 ``[items]``; -1 for an item without one."""
        order = np.argsort(point_of_item, kind="stable")
        items = order[np.count_nonzero(point_of_item < 0) :]
        return cls(items, np.searchsorted(point_of_item[items], np.arange(n_points + 1)))

    @cached_property
    def extra(self) -> np.ndarray:
        """int64 ``[points]``: items at each point beyond the first."""
        extra: np.ndarray = np.diff(self.starts) - 1
        return extra

    @cached_property
    def _keys(self) -> np.ndarray:
        """int64 ``[members]``: points and items as one ascending number."""
        points = np.repeat(np.arange(len(self.starts) - 1), self.extra + 1)
        keys: np.ndarray = points * (self.items.max() + 1) + self.items
        return keys

    def below(self, points: np.ndarray, items: np.ndarray) -> np.ndarray:
        """How many items at each of the points have a lower id than the given item. Returns: int64 of their shape."""
        limit = self.items.max() + 1
        keys = points * limit + np.minimum(items, limit)
        found: np.ndarray = np.searchsorted(self._keys, keys) - self.starts[points]
        return found

    def expand(self, points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All items at the listed points, each with the value of its point.

        Args:
            points: int64 ``[rows, listed]``; -1 for none.
            values: float64 ``[rows, listed]``.

        Returns:
            Items int64 and values float64, both ``[rows, width]``; item 0 and value +inf behind a row's last.
        """
        sizes = np.where(points >= 0, self.extra[points] + 1, 0)
        if (sizes == 1).all():
            return self.items[self.starts[points]], values
        flat, n_items = sizes.ravel(), sizes.sum(axis=1)
        first = np.repeat(self.starts[points].ravel() - (flat.cumsum() - flat), flat)
        rows = np.repeat(np.arange(len(points)), n_items)
        columns = np.arange(len(rows)) - np.repeat(n_items.cumsum() - n_items, n_items)
        items = np.zeros((len(points), int(n_items.max(initial=0))), dtype=np.int64)
        spread = np.full(items.shape, np.inf)
        items[rows, columns] = self.items[first + np.arange(len(rows))]
        spread[rows, columns] = np.repeat(values.ravel(), flat)
        return items, spread
