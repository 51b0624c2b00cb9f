"""A stand-in for FDMat: a selection distributed as all rows are, by optimal transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from recbole_llm.coreset.goracs.select import Labels, select_rows
from recbole_llm.coreset.goracs.selector import outcome_of
from recbole_llm.coreset.goracs.settings import GoracsSettings
from recbole_llm.coreset.labels import LABELS
from recbole_llm.coreset.selector import VECTORS, Selector
from recbole_llm.declare import Setting


@dataclass(frozen=True, repr=False)
class FDMatSelector(Selector):
    """Feature-distribution matching, class by class.

    This is not the authors' procedure (Xiao et al., AAAI 2024) but what it is for: the transport between the selection
    and all rows, minimised as GORACS does, with the rows themselves for validation and no gradient norms. All costs
    are in one table where that takes at most 1 GiB; for more rows (134,000 for 2,000 targets) the search goes over
    pools of them.

    Attributes:
        n_targets: rows, drawn at random, that stand for all, >= 1.
        max_exchanges: after the greedy start, >= 0.

    Example:
        >>> FDMatSelector().select(np.arange(4), 2, vectors=[[0.0], [0.1], [5.0], [5.1]]).ids.tolist()
        [0, 2]
    """

    n_targets: Annotated[int, Setting("rows drawn by seed that represent all", low=1)] = 2000
    max_exchanges: Annotated[int, Setting("exchanges after the greedy start", low=0)] = 100

    name = "fdmat"
    needs = (VECTORS, LABELS)

    def _select(
        self, n_rows: int, budget: int, seed: int, *, vectors: np.ndarray, labels: np.ndarray
    ) -> tuple[Any, ...]:
        if not budget:
            return np.zeros(0, dtype=np.int64), np.zeros(n_rows)
        drawn = np.random.default_rng(seed).choice(n_rows, size=min(self.n_targets, n_rows), replace=False)
        settings = GoracsSettings(gradient_weight=0.0, max_exchanges=self.max_exchanges)
        classes = Labels(labels, labels[drawn])
        chosen, info = select_rows(vectors, vectors[drawn], np.zeros(n_rows), budget, settings, classes, seed)
        return chosen, info.scores, outcome_of(info)
