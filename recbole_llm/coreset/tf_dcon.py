"""TF-DCon's clusters as a selector: typical rows of every group of users (arXiv 2310.09874)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from recbole_llm.coreset.selector import LLM_VECTORS, RECOMMENDER_VECTORS, Selector
from recbole_llm.coreset.vectors import k_means, unit_vectors
from recbole_llm.declare import Setting


@dataclass(frozen=True, repr=False)
class TFDConSelector(Selector):
    """K-means on the recommender's and the LLM's view of a row, each of length 1, side by side.

    Every cluster gives its share of the budget: the members nearest to its centre. The original condenses data into
    synthetic users; only its clustering is kept here, as DEALRec's comparison does. The score is the negative distance
    from the own centre.

    Attributes:
        n_clusters: at least 1; DEALRec searches 25, 50 and 75.

    Example:
        >>> vectors = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> selector, inputs = TFDConSelector(n_clusters=2), {"recommender_vectors": vectors, "llm_vectors": vectors}
        >>> ids, _ = selector.select(np.arange(4), 2, **inputs)
        >>> sorted(int(row) // 2 for row in ids)  # one of each cluster
        [0, 1]
    """

    n_clusters: Annotated[int, Setting("clusters of rows", low=1)] = 50

    name = "tf_dcon"
    needs = (RECOMMENDER_VECTORS, LLM_VECTORS)

    def _select(
        self, n_rows: int, budget: int, seed: int, *, recommender_vectors: np.ndarray, llm_vectors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        points = np.concatenate([unit_vectors(recommender_vectors), unit_vectors(llm_vectors)], axis=1)
        labels, centres = k_means(points, self.n_clusters, seed)
        points -= centres[labels].astype(points.dtype)
        scores = -np.sqrt(np.einsum("nd,nd->n", points, points, dtype=np.float64))
        quotas = proportional_quotas(np.bincount(labels, minlength=len(centres)), budget)
        by_cluster = np.lexsort((-scores, labels))
        rank = np.arange(n_rows) - np.searchsorted(labels[by_cluster], labels[by_cluster])  # within the own cluster
        return by_cluster[rank < quotas[labels[by_cluster]]], scores


def proportional_quotas(sizes: np.ndarray, budget: int) -> np.ndarray:
    """A budget in proportion to sizes, by largest remainders; of equal ones the first.

    Args:
        sizes: int ``[groups]``, with a positive sum.
        budget: at most that sum; then no quota exceeds its group.

    Returns:
        int64 ``[groups]``, which sums to ``budget``.
    """
    whole, remainder = np.divmod(np.asarray(sizes, dtype=np.int64) * budget, np.sum(sizes))
    whole[np.argsort(-remainder, kind="stable")[: budget - whole.sum()]] += 1
    return whole
