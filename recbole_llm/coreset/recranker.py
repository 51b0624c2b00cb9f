"""RecRanker's sampling: active users and all clusters of users, without too much of either (arXiv 2312.16018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from recbole_llm.coreset.selector import HISTORY_LENGTHS, RECOMMENDER_VECTORS, Selector, gumbel_top
from recbole_llm.coreset.vectors import k_means
from recbole_llm.declare import Setting

_SHARE = 0.6  # of the budget, drawn in each of the two ways
_REPEAT = 0.95  # what an entry weighs less with every time its row was drawn


@dataclass(frozen=True, repr=False)
class RecRankerSelector(Selector):
    """Two draws with replacement, then one without from what they gave.

    0.6 of the budget is drawn in proportion to the logarithm of the number of interactions, 0.6 in proportion to the
    size of clusters. A row drawn c times then has weight c * 0.95^(c - 1), which is its score. The original keeps a
    row as often as it is drawn; here rows differ, and if fewer than the budget were drawn, others join them at random.

    Attributes:
        n_clusters: number of clusters of users, >= 1; 10 in RecRanker, while DEALRec searches 25, 50 and 75.

    Example:
        >>> selector, vectors = RecRankerSelector(n_clusters=2), np.eye(10)
        >>> len(selector.select(np.arange(10), 4, history_lengths=np.arange(1, 11), recommender_vectors=vectors).ids)
        4
    """

    n_clusters: Annotated[int, Setting("clusters of rows", low=1)] = 10

    name = "recranker"
    needs = (RECOMMENDER_VECTORS, HISTORY_LENGTHS)

    def _select(
        self,
        n_rows: int,
        budget: int,
        seed: int,
        *,
        recommender_vectors: np.ndarray,
        history_lengths: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels, _ = k_means(recommender_vectors, self.n_clusters, seed)
        active = _draw_active(history_lengths, round(_SHARE * budget), rng)
        counts = np.bincount(active, minlength=n_rows) + _draw_clusters(labels, _SHARE * budget, rng)
        scores = counts * _REPEAT ** np.maximum(counts - 1, 0)
        with np.errstate(divide="ignore"):
            return gumbel_top(np.log(scores), budget, rng), scores


def _draw_active(lengths: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn with replacement, weight ln(length); uniformly where no row has any."""
    weights = np.log(np.maximum(lengths, 1))
    total = weights.sum()
    return rng.choice(len(lengths), size=count, p=weights / total if total > 0 else None)


def _draw_clusters(labels: np.ndarray, count: float, rng: np.random.Generator) -> np.ndarray:
    """How often each row is drawn when every cluster gives its share, with replacement."""
    counts = np.zeros(len(labels), dtype=np.int64)
    for cluster in range(labels.max() + 1):
        members = np.flatnonzero(labels == cluster)
        drawn = rng.choice(members, size=round(len(members) / len(labels) * count)) if len(members) else members
        counts += np.bincount(drawn, minlength=len(labels))
    return counts
