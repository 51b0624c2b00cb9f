"""Herding: rows whose mean approximates the mean of all (Welling 2009; as in iCaRL, arXiv 1611.07725)."""

from __future__ import annotations

import numpy as np

from recbole_llm.coreset.selector import VECTORS, Selector


class HerdingSelector(Selector):
    """Greedy matching of the mean: each row brings the mean of the selected ones as near to that of all as it can.

    The score is by how much a row brings the sum of the selected ones nearer to where it should be (half the decrease
    of the squared distance): when it was selected, of a selected row; in the next step, of any other.

    Example:
        >>> HerdingSelector().select(np.arange(4), 2, vectors=[[-1.0], [1.0], [9.0], [-9.0]]).ids.tolist()
        [0, 1]
    """

    name = "herding"
    needs = (VECTORS,)

    def _select(self, n_rows: int, budget: int, seed: int, *, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # From the mean on: far from it, the digits of single precision would go into what all rows share.
        vectors = (vectors - vectors.mean(axis=0, dtype=np.float64)).astype(vectors.dtype)
        mean = vectors.mean(axis=0, dtype=np.float64)
        half_squares = 0.5 * np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
        missing = mean.copy()  # t times the mean of all, less the sum of the t - 1 rows selected so far
        chosen = np.empty(budget, dtype=np.int64)
        at_selection = np.empty(budget)
        for turn in range(budget):
            gains = vectors @ missing.astype(vectors.dtype) - half_squares
            gains[chosen[:turn]] = -np.inf
            row = int(gains.argmax())
            chosen[turn], at_selection[turn] = row, gains[row]
            missing += mean - vectors[row]
        scores = vectors @ missing.astype(vectors.dtype) - half_squares
        scores[chosen] = at_selection
        return chosen, scores
