"""K-center: rows that leave no row far from a selected one (Sener and Savarese 2018, arXiv 1708.00489)."""

from __future__ import annotations

import numpy as np

from recbole_llm.coreset.selector import VECTORS, Selector


class KCenterSelector(Selector):
    """Farthest-first traversal: start next to the mean, then always take the row farthest from all selected ones.

    The largest distance of a row from its nearest selected one is at most twice the smallest possible. The score of a
    selected row is its distance from the rows selected before it (of the first, the largest distance from it), that of
    any other its distance from the nearest selected row.

    Example:
        >>> KCenterSelector().select(np.arange(4), 2, vectors=[[0.0], [0.1], [0.2], [5.0]]).ids.tolist()
        [2, 3]
    """

    name = "k_center"
    needs = (VECTORS,)

    def _select(self, n_rows: int, budget: int, seed: int, *, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = vectors - vectors.mean(axis=0)
        squares = np.einsum("nd,nd->n", points, points)
        chosen = np.empty(budget, dtype=np.int64)
        at_selection = np.empty(budget)
        nearest = -squares  # squared distance from the nearest selected row; before the first: from the mean, reversed
        for turn in range(budget):
            row = int(nearest.argmax())
            chosen[turn], at_selection[turn] = row, nearest[row]
            distances = np.maximum(squares - 2 * (points @ points[row]) + squares[row], 0)
            if turn == 0:
                at_selection[0], nearest = distances.max(), distances
            nearest = np.minimum(nearest, distances)
            nearest[row] = -np.inf
        scores = np.abs(nearest)
        scores[chosen] = at_selection
        return chosen, np.sqrt(scores)
