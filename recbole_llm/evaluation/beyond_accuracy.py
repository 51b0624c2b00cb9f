"""Beyond-accuracy metrics of a run: coverage, popularity, list distance, and accuracy by groups of targets.

These are the columns of ``beyond_accuracy``, all at the cut-off of the metric of the comparisons. Popularity is that
before the split, the same for all models of a command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array

from recbole_llm.evaluation.recbole_metrics import gini_index, item_bits, item_coverage, mean_value
from recbole_llm.grounding.rank_metrics import RANK_METRICS
from recbole_llm.report.diversity import embedding_distance

if TYPE_CHECKING:
    from recbole_llm.data.rows import Rows
    from recbole_llm.evaluation.base import Evaluation

HEAD = 0.2  # share of the items whose targets are the head's, where head_share is not set
SIZE = 32  # of the vectors that distances are between


@dataclass(frozen=True)
class Popularity:
    """What is known of the items from the interactions before the split.

    Attributes:
        counts: int64 [items], interactions of each item; item 0 is padding.
        vectors: float64 [items, d]: items that the same users had are near.
    """

    counts: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> Popularity:
        """The popularity of items in a run's data."""
        counts = rows.whole.item_counts
        return cls(counts, item_vectors(rows.whole.pairs_before, len(counts)))


def item_vectors(pairs: np.ndarray, n_items: int) -> np.ndarray:
    """Vectors of items by who had them: the truncated singular value decomposition of the table of interactions.

    Args:
        pairs: int64 [interactions, 2], user and item.
        n_items: items, padding included.

    Returns:
        float64 [items, d], ``d`` at most :data:`SIZE`; zeros for an item without interactions.

    Example:
        >>> vectors = item_vectors(np.array([[1, 1], [1, 2], [2, 1], [2, 2], [3, 3]]), n_items=4)
        >>> np.allclose(vectors[1], vectors[2]), bool(vectors[0].any())
        (True, False)
    """
    from sklearn.decomposition import TruncatedSVD  # slow to import, and few runs ask for it

    users = np.unique(pairs[:, 0], return_inverse=True)[1].reshape(-1)
    shape = n_items, int(users.max(initial=0)) + 1
    table = coo_array((np.ones(len(pairs)), (pairs[:, 1], users)), shape=shape).tocsr()
    table.data[:] = 1.0  # an item counts once for a user
    size = min(SIZE, *shape)
    return np.asarray(TruncatedSVD(size, algorithm="randomized", random_state=0).fit_transform(table))


def beyond_accuracy(
    evaluation: Evaluation,
    histories: np.ndarray,
    popularity: Popularity,
    metric: str,
    k: int,
) -> dict[str, float]:
    """The columns of ``beyond_accuracy``.

    Args:
        evaluation: evaluation of rows with ranks and best items.
        histories: int64 [rows, n], the items each row's model was shown, 0 for padding.
        popularity: popularity of the data.
        metric: what a row is worth by its rank, such as ``ndcg``.
        k: the cut-off.

    Returns:
        ``itemcoverage@k``: share of the catalogue recommended to anybody; ``giniindex@k``: inequality of how often;
        ``novelty@k``: mean bits of an item's share of the interactions; ``popularitylift@k``: mean popularity of what
        is recommended over that of the histories, less 1 (Abdollahpouri et al., RecSys 2020); ``embeddingdistance@k``:
        mean cosine distance within lists; and ``<metric>_warm@k`` and ``<metric>_cold@k``: the metric of the rows whose
        target has interactions before the split, or none, where there are such.
    """
    items, n_items = evaluation.top_items[:, :k], len(popularity.counts) - 1
    filled = items[(items > 0).all(axis=1)]
    usual = mean_value(histories, popularity.counts.astype(np.float64))
    found = {
        "itemcoverage": item_coverage(items, n_items),
        "giniindex": gini_index(items, n_items),
        "novelty": mean_value(items, item_bits(popularity.counts)),
        "popularitylift": mean_value(items, popularity.counts.astype(np.float64)) / usual - 1 if usual else 0.0,
        "embeddingdistance": float(embedding_distance(filled, popularity.vectors).mean()) if len(filled) else 0.0,
    }
    worth, is_cold = RANK_METRICS[metric](evaluation.ranks, k), popularity.counts[evaluation.pairs[:, 1]] == 0
    for name, own in (("warm", ~is_cold), ("cold", is_cold)):
        if own.any():
            found[f"{metric}_{name}"] = float(worth[own].mean())
    return {f"{name}@{k}": value for name, value in found.items()}
