"""D2 pruning: difficult rows that are not near one another (Maharana et al. 2023, arXiv 2310.07931)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from recbole_llm.coreset.selector import EL2N, VECTORS, Selector
from recbole_llm.coreset.vectors import nearest_neighbours, unit_vectors
from recbole_llm.declare import Setting


@dataclass(frozen=True, repr=False)
class D2PruningSelector(Selector):
    """Messages on the graph of nearest neighbours, with distances d between unit vectors.

    Difficulty (EL2N) is first raised by that of a row's neighbours, weighted by exp(-gamma d^2); then the highest row
    is taken again and again, and each time lowers its neighbours in the same way. The score of a selected row is its
    value when it was selected, that of any other its value at the end.

    Attributes:
        n_neighbours: per row, >= 1.
        gamma_forward: gamma of the first step, >= 0; the larger, the less a neighbour adds.
        gamma_reverse: gamma of the second, >= 0; the larger, the less a selected row takes from its neighbours.

    Example:
        >>> vectors = [[1.0, 0.0], [0.999, 0.045], [0.0, 1.0]]  # the first two are nearly alike
        >>> selector, difficulty = D2PruningSelector(n_neighbours=1), [1.0, 0.9, 0.5]
        >>> selector.select(np.arange(3), 2, el2n=difficulty, vectors=vectors).ids.tolist()
        [0, 2]
    """

    n_neighbours: Annotated[int, Setting("neighbours of a row in its graph", low=1)] = 5
    gamma_forward: Annotated[float, Setting("how fast a neighbour's score loses weight with distance", low=0)] = 1.0
    gamma_reverse: Annotated[
        float, Setting("how fast the reduction of neighbours' scores by a selected row falls with distance", low=0)
    ] = 1.0

    name = "d2_pruning"
    needs = (VECTORS, EL2N)

    def _select(
        self, n_rows: int, budget: int, seed: int, *, vectors: np.ndarray, el2n: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        distances, neighbours = nearest_neighbours(unit_vectors(vectors), self.n_neighbours)
        return d2_select(el2n, distances, neighbours, budget, self.gamma_forward, self.gamma_reverse)


def d2_select(
    difficulty: np.ndarray,
    distances: np.ndarray,
    neighbours: np.ndarray,
    budget: int,
    gamma_forward: float,
    gamma_reverse: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The two steps on a given graph.

    Args:
        difficulty: ``[n]``.
        distances: ``[n, k]``, of each row from its neighbours.
        neighbours: int ``[n, k]``.
        budget: 0 to n.
        gamma_forward: see :class:`D2PruningSelector`.
        gamma_reverse: see :class:`D2PruningSelector`.

    Returns:
        Indices in the order of selection, int64 ``[budget]``, and scores ``[n]``.
    """
    squares = distances**2
    values = difficulty + (np.exp(-gamma_forward * squares) * difficulty[neighbours]).sum(axis=1)
    taken_away = np.exp(-gamma_reverse * squares)
    scores = values.copy()
    chosen = np.empty(budget, dtype=np.int64)
    for turn in range(budget):
        row = int(values.argmax())
        chosen[turn], scores[row] = row, values[row]
        values[neighbours[row]] -= taken_away[row] * values[row]
        values[row] = -np.inf
    free = np.isfinite(values)
    scores[free] = values[free]
    return chosen, scores
