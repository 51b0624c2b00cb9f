"""The exchanges of the authors' code, for comparison: another score, another order (arXiv 2506.04015)."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from recbole_llm.coreset.goracs.costs import Costs
from recbole_llm.coreset.goracs.transport import Transport


def reference_pairs(
    costs: Costs, members: np.ndarray, own: np.ndarray, transport: Transport, n_candidates: int
) -> Generator[tuple[int, int], Transport, None]:
    """Exchanges by the score of the published code, which departs from the paper's formula in three points.

    It evaluates the dual at the ceil(m / n)-th largest reduced cost, while the maximum lies at the ceil(m / n)-th
    smallest; its mask that leaves a member's own potential out has no effect; and among the members chosen it begins
    with the one whose removal promises least. No pair is ruled out by a bound.
    """
    nearest = (own - transport.potentials[:, None]).min(axis=0)
    scores = np.concatenate([upper_tail_scores(block - nearest, len(members)) for _, block in costs.blocks()])
    leaving = np.argsort(scores[members], kind="stable")[-n_candidates:]
    scores[members] = np.inf
    others = np.argsort(scores, kind="stable")[: min(n_candidates, costs.shape[0] - len(members))]
    yield from ((int(index), int(row)) for index in leaving for row in others)


def upper_tail_scores(reduced: np.ndarray, n_members: int) -> np.ndarray:
    """``y / n + mean_j min(A_j - y, 0)`` with y the ceil(m / n)-th largest of the reduced costs A; ``[rows]``.

    Args:
        reduced: float ``[rows, m]``.
        n_members: n, of the selection with the row.
    """
    n_columns = reduced.shape[1]
    rank = n_columns - -(-n_columns // n_members)
    level = np.partition(reduced, rank, axis=1)[:, rank]
    below: np.ndarray = np.minimum(reduced - level[:, None], 0).mean(axis=1, dtype=np.float64)
    scores: np.ndarray = level / n_members + below
    return scores
