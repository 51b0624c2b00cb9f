"""QDIT: rows of high quality that are close to all others (Bukharin and Zhao 2023, arXiv 2311.14736)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np

from recbole_llm.coreset.checks import checked_scores
from recbole_llm.coreset.lazy_greedy import lazy_argmin
from recbole_llm.coreset.scores import scale_scores
from recbole_llm.coreset.selector import VECTORS, Input, Selector
from recbole_llm.coreset.vectors import unit_vectors
from recbole_llm.declare import Setting

_BLOCK_ELEMENTS = 2**21

QUALITY = Input("quality", "[n]: how good a row is, larger is better", partial(checked_scores, "quality"))


@dataclass(frozen=True, repr=False)
class QDITSelector(Selector):
    """Greedy on ``(1 - weight) * sum over rows of the similarity to the nearest selected row + weight * quality``.

    Similarity is (1 + cosine) / 2, quality is scaled to [0, 1] over all rows. The score is by how much a row raises the
    sum: when it was selected, of a selected row; in the next step, of any other.

    Attributes:
        weight: alpha of the quality, in [0, 1].
        n_targets: rows, drawn at random, that stand for all in the first sum, >= 1.

    Example:
        >>> selector = QDITSelector(weight=1.0)  # quality alone
        >>> vectors, quality = np.eye(3), [0.1, 0.9, 0.3]
        >>> selector.select(np.arange(3), 1, vectors=vectors, quality=quality).ids.tolist()
        [1]
    """

    weight: Annotated[float, Setting("weight of quality against diversity", low=0, high=1)] = 0.5
    n_targets: Annotated[int, Setting("rows drawn by seed that represent all", low=1)] = 10_000

    name = "qdit"
    needs = (VECTORS, QUALITY)

    def _select(
        self, n_rows: int, budget: int, seed: int, *, vectors: np.ndarray, quality: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        points = unit_vectors(vectors)
        drawn = np.random.default_rng(seed).permutation(n_rows)[: self.n_targets]
        return qdit_select(points, points[np.sort(drawn)], scale_scores(quality), budget, self.weight)


def qdit_select(
    points: np.ndarray, targets: np.ndarray, quality: np.ndarray, budget: int, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """The greedy search; a row is considered again only when its last gain would win.

    Args:
        points: float ``[n, d]``, rows of length 1.
        targets: float ``[m, d]``, those of the rows that stand for all n.
        quality: ``[n]``.
        budget: 0 to n.
        weight: alpha, in [0, 1].

    Returns:
        Indices in the order of selection, int64 ``[budget]``, and scores ``[n]``.
    """
    near = np.zeros(len(targets))  # similarity to the nearest selected row
    step = max(1, _BLOCK_ELEMENTS // len(targets))
    scale = (1 - weight) * len(points) / len(targets)

    def similarities(rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = (1 + points[rows] @ targets.T) / 2
        return found

    def costs(rows: np.ndarray) -> np.ndarray:
        gains = [
            np.maximum(similarities(rows[start : start + step]) - near, 0).sum(axis=1, dtype=np.float64)
            for start in range(0, len(rows), step)
        ]
        raised: np.ndarray = scale * np.concatenate(gains) + weight * quality[rows]
        return -raised

    bounds = costs(np.arange(len(points)))
    chosen = np.empty(budget, dtype=np.int64)
    at_selection = np.empty(budget)
    for turn in range(budget):
        row = lazy_argmin(bounds, costs)
        chosen[turn], at_selection[turn] = row, -bounds[row]
        bounds[row] = np.inf
        near = np.maximum(near, similarities(np.array([row]))[0])
    scores = -costs(np.arange(len(points)))
    scores[chosen] = at_selection
    return chosen, scores
