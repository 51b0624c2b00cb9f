"""``interleaved``: the lists of all beams, merged round-robin."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from recbole_llm.arrays import Array, to_numpy
from recbole_llm.declare import Settings
from recbole_llm.grounding.base import PromptedRows
from recbole_llm.grounding.distances import blocks
from recbole_llm.grounding.embedding import EmbeddingGrounding
from recbole_llm.grounding.ranking import Ranking, rank_scores
from recbole_llm.grounding.rules import check_interleaved
from recbole_llm.objective.negatives import interleave


class InterleavedGrounding(EmbeddingGrounding):
    """Each beam's text ranks all items by distance; the lists are merged round-robin, without repeats.

    This is the adjusted grounding of CFT (arXiv 2410.22809): one answer alone cannot rank well behind its own title. An
    item's score is ``-min over beams b of (its rank in list b * beams + b)``, the best beam first, equal ranks by the
    lower id; all items of a title share it. An empty or repeated text has a list as any other. The authors keep the
    first 500 entries; here the ranking is whole.
    """

    settings: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """See :class:`Grounding`."""
        check_interleaved(settings)

    def scores(self, rows: PromptedRows) -> Tensor:
        """See :class:`Grounding`."""
        return torch.from_numpy(self._scores(self.model.embed_beams(rows), rows))

    def rank(self, rows: PromptedRows, targets: Array | None, k: int) -> Ranking:
        """See :class:`Grounding`; no table of all rows is made."""
        beams, wanted = self.model.embed_beams(rows), None if targets is None else to_numpy(targets)
        if not len(rows):
            return Ranking.nothing(0, k)
        parts = []
        for block in blocks(len(rows), self.model.catalog.n_items):
            own = rows.take(np.arange(block.start, block.stop))
            scores = self._scores(beams[block], own)
            parts.append(rank_scores(scores, None if wanted is None else wanted[block], k))
        return Ranking.join(parts)

    def _scores(self, beams: list[np.ndarray], rows: PromptedRows) -> np.ndarray:
        """Scores float64 [rows, items] by the embeddings of each row's beams, [beams, d]."""
        catalog = self.model.catalog
        found = np.full((len(rows), catalog.n_items), -np.inf)
        for row in rows.prompted:
            distances = self.index.distances(beams[row])
            ranked = np.flatnonzero(np.isfinite(distances[0]))
            found[row, ranked] = interleave(distances[:, ranked])[1]
        shared = catalog.has_title & (catalog.representative != np.arange(catalog.n_items))
        found[:, shared] = found[:, catalog.representative[shared]]
        return found
