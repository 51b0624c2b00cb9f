"""CCS: all levels of difficulty, without the hardest rows (Zheng et al. 2023, arXiv 2210.15809)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recbole_llm.coreset.checks import checked_count, checked_ratio
from recbole_llm.coreset.scores import stratified_sample
from recbole_llm.coreset.selector import EL2N, Selector


@dataclass(frozen=True)
class CCSSelector(Selector):
    """Difficulty is EL2N; its hardest rows, often mislabelled, are cut, and the rest is drawn from stratum by stratum.

    Attributes:
        n_groups: strata of equal width, >= 1.
        hard_prune_ratio: share of the hardest rows that is cut, in [0, 1); the paper searches 0 to 0.5 and takes more
            the smaller the budget is.
    """

    n_groups: int = 50
    hard_prune_ratio: float = 0.1

    name = "ccs"
    needs = (EL2N,)

    def __post_init__(self) -> None:
        checked_count("ccs_n_groups", self.n_groups, low=1)
        checked_ratio("ccs_hard_prune_ratio", self.hard_prune_ratio)

    def _select(self, n_rows: int, budget: int, seed: int, *, el2n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return stratified_sample(el2n, budget, self.n_groups, self.hard_prune_ratio, seed), el2n
