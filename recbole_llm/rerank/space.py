"""What items are like: vectors, and the distances of a few items at a time."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
N_COMPONENTS = 8


@dataclass(frozen=True)
class ItemSpace:
    """Items as vectors, and how far apart two of them are.

    Args:
        vectors: float64 [items, d]; 0 and 1 where categories are compared by ``jaccard``.
        distance: ``cosine`` (1 - cos), ``euclid`` (half the distance of unit vectors) or ``jaccard``. An item whose
            vector is 0 is at distance 1 from all others, by ``euclid`` at 1/2.

    Example:
        >>> space = ItemSpace(np.array([[1.0, 0], [0, 2], [1, 1]]), "cosine")
        >>> space.distances([0, 1, 2]).round(3).tolist()
        [[0.0, 1.0, 0.293], [1.0, 0.0, 0.293], [0.293, 0.293, 0.0]]
    """

    vectors: Floats
    distance: str = "cosine"

    def distances(self, items: Sequence[int] | np.ndarray) -> Floats:
        """Distances of some items. Returns: float64 [n, n], symmetric, 0 on the diagonal."""
        chosen = self.vectors[np.asarray(items, dtype=np.int64)]
        table: Floats
        if self.distance == "jaccard":
            shared = chosen @ chosen.T
            sizes = chosen.sum(axis=1)
            either = sizes[:, None] + sizes[None] - shared
            table = 1 - np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
        else:
            unit = unit_rows(chosen)
            cosines = unit @ unit.T
            if self.distance == "cosine":
                table = 1 - cosines
            else:
                lengths = (unit**2).sum(axis=1)
                table = np.sqrt(np.maximum(lengths[:, None] + lengths[None] - 2 * cosines, 0.0)) / 2
        np.fill_diagonal(table, 0.0)
        symmetric: Floats = (table + table.T) / 2
        return symmetric

    def components(self, count: int = N_COMPONENTS) -> Floats:
        """The items on the first principal axes of their unit vectors, at unit variance along the first.

        Args:
            count: how many axes, at most d.

        Returns:
            float64 [items, at most count]; the item 0, which is padding, is at the mean.
        """
        unit = unit_rows(self.vectors)
        centred = unit - unit[1:].mean(axis=0)
        centred[0] = 0
        _, values, axes = np.linalg.svd(centred[1:], full_matrices=False)
        kept = int((values[:count] > 1e-9 * max(float(values[0]), 1e-300)).sum()) if len(values) else 0
        axes = axes[:kept]
        signs = np.sign(axes[np.arange(kept), np.abs(axes).argmax(axis=1)])
        projected: Floats = centred @ (axes * signs[:, None]).T
        scale = projected[1:, :1].std() if kept else 1.0
        return projected / (scale or 1.0)


def unit_rows(vectors: Floats) -> Floats:
    """Each row over its length; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return found


def category_vectors(categories: Sequence[Collection[Hashable]]) -> Floats:
    """Which item has which category.

    Args:
        categories: the categories of every item by item id.

    Returns:
        float64 [items, categories] of 0 and 1.

    Example:
        >>> category_vectors([[], ["a"], ["b", "a"]]).tolist()
        [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
    """
    columns = {name: column for column, name in enumerate(dict.fromkeys(name for own in categories for name in own))}
    table = np.zeros((len(categories), len(columns)))
    for item, own in enumerate(categories):
        table[item, [columns[name] for name in own]] = 1
    return table
