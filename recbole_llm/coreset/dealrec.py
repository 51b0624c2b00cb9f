"""DEALRec: rows with influence on a small recommender and effort for the LLM (Lin et al. 2024, arXiv 2401.17197)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from recbole_llm.coreset.scores import SCALINGS, combine_scores, stratified_sample
from recbole_llm.coreset.selector import EFFORT, INFLUENCE, Selector
from recbole_llm.declare import Setting


@dataclass(frozen=True, repr=False)
class DEALRecSelector(Selector):
    """Influence plus weighted effort, drawn from stratum by stratum.

    Attributes:
        weight: lambda of the effort, >= 0; the paper searches 0.1 to 2.
        n_groups: strata of equal width, >= 1; the paper searches 25, 50 and 75.
        hard_prune_ratio: share of the highest scores that is cut first, in [0, 1). The paper has no such step (0), its
            code cuts 0.1.
        scaling: how both scores are brought to [0, 1], see :func:`scale_scores`.

    Example:
        >>> selector = DEALRecSelector(weight=0.5, n_groups=2)
        >>> influence, effort = [0.0, 1.0, 2.0, 4.0], [4.0, 2.0, 0.0, 0.0]
        >>> selector.select(np.arange(4), 1.0, influence=influence, effort=effort).scores.tolist()
        [0.5, 0.5, 0.5, 1.0]
    """

    weight: Annotated[float, Setting("weight of effort against influence", low=0)] = 0.5
    n_groups: Annotated[int, Setting("strata of equal width", low=1, high=1_000_000)] = 50
    hard_prune_ratio: Annotated[
        float, Setting("share of the highest scores that is removed first", low=0, below=1, note="the paper has none")
    ] = 0.1
    scaling: Annotated[str, Setting("how both scores are scaled to [0, 1]", choices=SCALINGS)] = "minmax"

    name = "dealrec"
    needs = (INFLUENCE, EFFORT)

    def uncut(self) -> DEALRecSelector:
        """See :class:`Selector`."""
        return replace(self, hard_prune_ratio=0.0) if self.hard_prune_ratio else self

    def _select(
        self, n_rows: int, budget: int, seed: int, *, influence: np.ndarray, effort: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = combine_scores(influence, effort, self.weight, scaling=self.scaling)
        return stratified_sample(scores, budget, self.n_groups, self.hard_prune_ratio, seed), scores
