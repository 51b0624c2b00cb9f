"""Moderate coreset: rows at the median distance from their class centre (Xia et al., ICLR 2023)."""

from __future__ import annotations

import numpy as np

from recbole_llm.coreset.labels import LABELS
from recbole_llm.coreset.selector import VECTORS, Selector, highest
from recbole_llm.coreset.tf_dcon import proportional_quotas


class ModerateSelector(Selector):
    """Neither the most typical nor the strangest: rows whose distance from the centre is closest to its median.

    Every class gives its share of the budget; without ``labels`` there is one class. The score is minus the distance
    from the median.

    Example:
        >>> ModerateSelector().select(np.arange(5), 1, vectors=[[0.0], [1.0], [-2.0], [3.0], [-8.0]]).ids.tolist()
        [1]
    """

    name = "moderate"
    needs = (VECTORS, LABELS)

    def _select(
        self, n_rows: int, budget: int, seed: int, *, vectors: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        classes, sizes = np.unique(labels, return_counts=True)
        scores = np.empty(n_rows)
        chosen = []
        for label, quota in zip(classes, proportional_quotas(sizes, budget), strict=True):
            rows = np.flatnonzero(labels == label)
            difference = vectors[rows] - vectors[rows].mean(axis=0, dtype=np.float64)
            distances = np.sqrt(np.einsum("nd,nd->n", difference, difference))
            scores[rows] = -np.abs(distances - np.median(distances))
            chosen.append(rows[highest(scores[rows], quota)])
        return np.concatenate(chosen), scores
