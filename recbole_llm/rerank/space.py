"""Item vectors and the distances of a few items at a time."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
N_COMPONENTS = 8
ID_WIDTH = 32  # of item vectors that are computed from interactions


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
        table: Any
        if self.distance == "jaccard":
            shared = chosen @ chosen.T
            sizes = chosen.sum(axis=1)
            either = sizes[:, None] + sizes[None] - shared
            table = 1.0 - np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
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


def category_members(categories: Sequence[Collection[Hashable]]) -> NDArray[np.bool_]:
    """Which item has which category. Returns: bool [items, categories], categories as they are first met."""
    columns = {name: column for column, name in enumerate(dict.fromkeys(name for own in categories for name in own))}
    members = np.zeros((len(categories), len(columns)), dtype=bool)
    for item, own in enumerate(categories):
        members[item, [columns[name] for name in own]] = True
    return members


def category_vectors(categories: Sequence[Collection[Hashable]]) -> Floats:
    """Items as vectors of the categories that they have.

    Args:
        categories: the categories of every item by item id.

    Returns:
        float64 [items, categories] of 0 and 1.

    Example:
        >>> category_vectors([[], ["a"], ["b", "a"]]).tolist()
        [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
    """
    return category_members(categories).astype(np.float64)


def interaction_vectors(pairs: np.ndarray, n_users: int, n_items: int, width: int = ID_WIDTH) -> np.ndarray:
    """Items as the first singular vectors of the table of users and items, its entries over the root of both counts.

    Args:
        pairs: int64 [pairs, 2], users and items by id, 0 for padding.
        n_users: users, padding included.
        n_items: items, padding included.
        width: how many, at most.

    Returns:
        float64 [items, d]; zeros for an item without interactions.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    table = csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_users, n_items))
    table.data[:] = 1.0
    weights = [1 / np.sqrt(np.maximum(np.asarray(table.sum(axis=axis)).ravel(), 1)) for axis in (1, 0)]
    scaled = table.multiply(weights[0][:, None]).multiply(weights[1][None]).tocsr()
    width = min(width, min(table.shape) - 1)
    start = np.random.default_rng(0).normal(size=min(table.shape))
    _, values, axes = svds(scaled, k=width, v0=start)
    order = np.argsort(-values)
    signs = np.sign(axes[np.arange(width), np.abs(axes).argmax(axis=1)])
    found: np.ndarray = ((axes * signs[:, None]).T * values)[:, order]
    return found
