"""Vectors on a plane: their first two principal components, reproducibly."""

from __future__ import annotations

import numpy as np


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along the first two principal components, and their shares of the variance.

    Of a component's two directions that is taken whose largest coefficient is positive, so that equal vectors give
    equal pictures. Memory besides the vectors is that of one copy and of a table [d, d].

    Args:
        vectors: [n, d].

    Returns:
        float64 [n, 2] and [2]; zeros for a component that is not there.

    Example:
        >>> points, shares = principal_plane(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]))
        >>> points[:, 0].tolist(), shares.tolist()
        ([-2.0, 0.0, 2.0], [1.0, 0.0])
    """
    from scipy.linalg import eigh

    centred = np.array(vectors, dtype=np.result_type(vectors, np.float32))
    centred -= centred.mean(axis=0, dtype=np.float64).astype(centred.dtype)
    width = centred.shape[1]
    moments = (centred.T @ centred).astype(np.float64)  # [d, d], however many rows there are
    values, directions = eigh(moments, subset_by_index=(max(width - 2, 0), width - 1))
    values, directions = np.maximum(values[::-1], 0), directions[:, ::-1]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    points, shares = np.zeros((len(centred), 2)), np.zeros(2)
    points[:, : directions.shape[1]] = centred @ (directions * np.where(largest < 0, -1.0, 1.0))
    if (total := np.trace(moments)) > 0:
        shares[: len(values)] = values / total
    return points, shares


def map_points(train: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' vectors on the plane along which they differ most, see :func:`principal_plane`.

    Args:
        train: ``[n, d]``.
        valid: ``[m, d]``.

    Returns:
        float64 ``[n, 2]`` and ``[m, 2]``; 0 in a second component that does not exist.

    Example:
        >>> train, valid = map_points(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 0.0]]))
        >>> train.shape, valid.round(6).tolist()
        ((2, 2), [[0.0, 0.0]])
    """
    points, _ = principal_plane(np.concatenate([train, valid], dtype=np.result_type(train, valid, np.float32)))
    return points[: len(train)], points[len(train) :]
