"""CCS: coverage of all levels of difficulty, without the hardest rows (Zheng et al. 2023, arXiv 2210.15809)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from recbole_llm.coreset.scores import stratified_sample
from recbole_llm.coreset.selector import EL2N, Selector
from recbole_llm.declare import Setting


@dataclass(frozen=True, repr=False)
class CCSSelector(Selector):
    """Difficulty is EL2N; its hardest rows, often mislabelled, are cut, and the rest is drawn from stratum by stratum.

    Attributes:
        n_groups: strata of equal width, >= 1.
        hard_prune_ratio: share of the hardest rows that is cut, in [0, 1); the paper searches 0 to 0.5 and takes more
            the smaller the budget is.

    Example:
        >>> selection = CCSSelector(n_groups=2, hard_prune_ratio=0.5).select(np.arange(8), 2, el2n=np.arange(8.0))
        >>> int(selection.ids.max()) < 4  # the harder half is cut
        True
    """

    n_groups: Annotated[int, Setting("strata of equal width", low=1, high=1_000_000)] = 50
    hard_prune_ratio: Annotated[float, Setting("share of the highest scores that is removed first", low=0, below=1)] = (
        0.1
    )

    name = "ccs"
    needs = (EL2N,)

    def uncut(self) -> CCSSelector:
        """See :class:`Selector`."""
        return replace(self, hard_prune_ratio=0.0) if self.hard_prune_ratio else self

    def _select(self, n_rows: int, budget: int, seed: int, *, el2n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return stratified_sample(el2n, budget, self.n_groups, self.hard_prune_ratio, seed), el2n
