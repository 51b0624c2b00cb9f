"""``embedding``: the distance of free text to titles."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from recbole_llm.arrays import Array, to_numpy
from recbole_llm.declare import Settings
from recbole_llm.grounding.base import Grounding, PromptedRows
from recbole_llm.grounding.index import ItemIndex
from recbole_llm.grounding.ranking import Ranking
from recbole_llm.grounding.rules import check_by_distance

log = logging.getLogger(__name__)


class EmbeddingGrounding(Grounding):
    """Minus the distance of each title's embedding to that of the generated text (BIGRec, arXiv 2308.08434).

    Ranks come from the index (``faiss_index``); all distances are computed for re-weighting and :meth:`scores` alone.
    """

    settings: ClassVar[tuple[str, ...]] = ("faiss_index", "faiss_search")

    @classmethod
    def check(cls, settings: Settings) -> None:
        """See :class:`Grounding`."""
        check_by_distance(settings)

    @cached_property
    def index(self) -> ItemIndex:
        """The catalogue's embeddings."""
        catalog = self.model.catalog
        return ItemIndex(
            self.model.item_embeddings,
            rankable=catalog.rankable,
            representative=catalog.representative,
            factory=self.declared.faiss_index,
            search_parameters=self.declared.faiss_search or "",
            device=str(self.model.backbone.model.device),
        )

    def prepare(self) -> None:
        """Embed the catalogue, or find its embeddings; build the index."""
        exact = self.index.exact
        if not exact and self.config["reweight"] != "none":
            log.warning(
                "faiss_index=%s does not apply: reweight=%s needs the distances of all items, which are exact",
                *(self.declared.faiss_index, self.config["reweight"]),
            )

    def rank(self, rows: PromptedRows, targets: Array | None, k: int) -> Ranking:
        """See :class:`Grounding`; the index is asked."""
        prompted = rows.prompted
        answers = self.model.embed_answers(rows)[prompted]
        wanted = None if targets is None else to_numpy(targets)[prompted]
        return self.index.rank(answers, wanted, k).spread(prompted, len(rows))

    def distances(self, rows: PromptedRows) -> np.ndarray:
        """L2 distance of every item to each row's answer.

        Returns:
            float64 ``[rows, items]``; +inf where an item is not ranked.
        """
        found: np.ndarray = self.index.distances(self.model.embed_answers(rows), expand=True)
        found[np.setdiff1d(np.arange(len(rows)), rows.prompted)] = np.inf
        return found

    def scores(self, rows: PromptedRows) -> Tensor:
        """See :class:`Grounding`."""
        return -torch.from_numpy(self.distances(rows))
