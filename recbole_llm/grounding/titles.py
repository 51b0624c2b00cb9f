"""The common part of groundings that score titles by the LLM's probabilities."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from recbole_llm.arrays import Array, to_numpy
from recbole_llm.declare import Settings
from recbole_llm.grounding.base import Answerer, Grounding, PromptedRows
from recbole_llm.grounding.ranking import Ranking
from recbole_llm.grounding.rules import check_by_title
from recbole_llm.llm.assistant import Assistant
from recbole_llm.llm.trie import TitleTrie

log = logging.getLogger(__name__)

TABLE_BYTES = 2**28  # of a table of scores float64 [rows, items]


def title_trie(model: Answerer) -> TitleTrie:
    """The answers that name items of a model's catalogue."""
    has_title = model.catalog.has_title
    answers = [model.response(item) if titled else None for item, titled in enumerate(has_title)]
    trie = TitleTrie(answers, model.backbone.eos_token_id)
    n_different = len({title for title in model.catalog.titles if title is not None})
    if trie.n_titles < n_different:
        log.warning(
            "%d of %d different titles have the same tokens as another, and with it one score: the tokenizer does not "
            "tell them apart",
            n_different - trie.n_titles,
            n_different,
        )
    return trie


class TitleGrounding(Grounding):
    """Scores by the probability that the LLM gives to titles, as answers in full, their EOS included."""

    settings: ClassVar[tuple[str, ...]] = ("title_length_penalty", "title_renormalize", "lm_weight")

    @classmethod
    def check(cls, settings: Settings) -> None:
        """See :class:`Grounding`."""
        check_by_title(settings)

    @cached_property
    def trie(self) -> TitleTrie:
        """The answers that name items."""
        return title_trie(self.model)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest title."""
        return self.trie.max_length

    def scores(self, rows: PromptedRows) -> Tensor:
        """See :class:`Grounding`."""
        shape, prompted = (len(rows), self.model.catalog.n_items), rows.prompted
        if not len(prompted):
            return torch.full(shape, -math.inf, dtype=torch.float64)
        found = self._title_scores(rows.take(prompted))
        scores = found.new_full(shape, -math.inf)
        scores[torch.from_numpy(prompted).to(found.device)] = found
        return scores

    def rank(self, rows: PromptedRows, targets: Array | None, k: int) -> Ranking:
        """See :class:`Grounding`; rows are scored in blocks, of which one table is there at a time."""
        at_once = max(1, TABLE_BYTES // (8 * self.model.catalog.n_items))
        blocks = [np.arange(start, min(start + at_once, len(rows))) for start in range(0, max(len(rows), 1), at_once)]
        wanted = None if targets is None else to_numpy(targets)
        parts = (
            super(TitleGrounding, self).rank(rows.take(own), wanted if wanted is None else wanted[own], k)
            for own in blocks
        )
        return Ranking.join(list(parts))

    @abstractmethod
    def _title_scores(self, rows: PromptedRows) -> Tensor:
        """Scores float64 ``[rows, items]`` of rows that all have a prompt."""

    def _options(self, rows: PromptedRows) -> dict[str, Any]:
        """What search and likelihood have in common, for rows that all have a prompt."""
        weight = self.declared.lm_weight
        assistant = None
        if weight < 1:
            if rows.item_scores is None:
                raise ValueError("lm_weight: the rows have no scores of another recommender")
            assistant = Assistant(torch.from_numpy(rows.item_scores), weight)
        return {
            "pad_token_id": self.model.backbone.pad_token_id,
            "length_penalty": self.declared.title_length_penalty,
            "renormalize": self.declared.title_renormalize,
            "assistant": assistant,
            "row_inputs": self.model.row_inputs(rows.histories),
            "max_batch_tokens": self.model.generation_budget,
        }
