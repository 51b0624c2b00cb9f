"""Rankings without the items that were seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recbole_llm.grounding.ranking import Ranking


def without_seen(ranking: Ranking, seen: Sequence[np.ndarray], k: int) -> Ranking:
    """The k best items of each row that are not among its seen ones.

    Args:
        ranking: long enough: lists of k items and as many as the row has seen.
        seen: int64 [any] for each row.
        k: length of the new lists.
    """
    items, scores = ranking.top_items, ranking.top_scores
    hidden = np.stack([np.isin(own, had) for own, had in zip(items, seen, strict=True)]) if len(items) else items > 0
    hidden |= items == 0
    order = np.argsort(hidden, axis=1, kind="stable")[:, :k]
    kept = ~np.take_along_axis(hidden, order, axis=1)
    shorter = Ranking.nothing(len(items), k)
    width = order.shape[1]
    shorter.top_items[:, :width] = np.where(kept, np.take_along_axis(items, order, axis=1), 0)
    shorter.top_scores[:, :width] = np.where(kept, np.take_along_axis(scores, order, axis=1), -np.inf)
    return shorter
