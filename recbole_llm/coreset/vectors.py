"""Geometry shared by selectors: unit vectors, nearest neighbours, clusters, computed by blocks."""

from __future__ import annotations

import warnings

import numpy as np

_BLOCK_ELEMENTS = 2**23  # of one block of distances: 32 MB in float32


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rows ``[n, d]`` of length 1; a zero row stays zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    units: np.ndarray = vectors / np.where(lengths > 0, lengths, 1).astype(vectors.dtype)[:, None]
    return units


def nearest_neighbours(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other rows of every row, by blocks of distances, exact up to rounding.

    Args:
        vectors: float ``[n, d]``.
        k: at least 1.

    Returns:
        Distances, float64 ``[n, min(k, n - 1)]`` (L2, not squared), nearest first, and the rows' indices.
    """
    import torch

    n_rows = len(vectors)
    k = min(k, n_rows - 1)
    points = torch.from_numpy(np.ascontiguousarray(vectors - vectors.mean(axis=0)))  # centred: fewer digits are lost
    squares = points.square().sum(dim=1)
    step = max(1, _BLOCK_ELEMENTS // max(n_rows, k * points.shape[1]))
    distances, neighbours = np.empty((n_rows, k)), np.empty((n_rows, k), dtype=np.int64)
    for start in range(0, n_rows if k > 0 else 0, step):
        block = points[start : start + step]
        table = squares - 2 * block @ points.T  # the row's own square changes no order
        table[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        found = table.topk(k, dim=1, largest=False).indices.sort(dim=1).values
        exact = (points[found].double() - block[:, None].double()).norm(dim=2)
        exact, order = exact.sort(dim=1, stable=True)
        distances[start : start + step] = exact
        neighbours[start : start + step] = found.gather(1, order)
    return distances, neighbours


def k_means(vectors: np.ndarray, n_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of rows, by scikit-learn.

    Args:
        vectors: float ``[n, d]``, n >= 1.
        n_clusters: at most n are made.
        seed: seed of the starting points.

    Returns:
        The cluster of every row, int ``[n]``, and the centres ``[clusters, d]``.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(min(n_clusters, len(vectors)), n_init=1, random_state=seed % 2**32)  # it takes no longer ones
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: some stay empty
        labels = model.fit_predict(vectors)
    return labels, model.cluster_centers_
