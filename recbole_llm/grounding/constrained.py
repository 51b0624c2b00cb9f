"""``constrained``: beams that can only be titles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from recbole_llm.arrays import Array, to_numpy
from recbole_llm.declare import Settings
from recbole_llm.grounding.base import PromptedRows
from recbole_llm.grounding.ranking import Ranking, rank_listed
from recbole_llm.grounding.rules import check_by_beam
from recbole_llm.grounding.titles import TitleGrounding
from recbole_llm.llm.constrained import beam_item_scores, search_titles
from recbole_llm.llm.generation import Generation
from recbole_llm.llm.trie import TitleTrie


class ConstrainedGrounding(TitleGrounding):
    """The score of the beam that names an item, in a search that generates titles alone (D3, arXiv 2406.14900).

    Items that no beam names are not ranked.
    """

    @classmethod
    def check(cls, settings: Settings) -> None:
        """See :class:`Grounding`."""
        check_by_beam(settings)

    def rank(self, rows: PromptedRows, targets: Array | None, k: int) -> Ranking:
        """See :class:`Grounding`; the items that beams name are ranked, and no others."""
        prompted = rows.prompted
        if not len(prompted):
            return Ranking.nothing(len(rows), k)
        items, scores = listed_items(self.trie, self._beams(rows.take(prompted)))
        wanted = None if targets is None else to_numpy(targets)[prompted]
        return rank_listed(items, scores, wanted, k).spread(prompted, len(rows))

    def _beams(self, rows: PromptedRows) -> list[list[Generation]]:
        with self.model.autocast():
            return search_titles(
                self.model.llm,
                rows.prompt_ids,
                self.trie,
                num_beams=self.generation.num_beams,
                progress=self.config["show_progress"],
                keep=self.model.keep,
                **self._options(rows),
            )

    def _title_scores(self, rows: PromptedRows) -> Tensor:
        return beam_item_scores(self.trie, self._beams(rows))


def listed_items(trie: TitleTrie, beams: Sequence[Sequence[Generation]]) -> tuple[np.ndarray, np.ndarray]:
    """The items that each row's beams name, with the beams' scores.

    Returns:
        Items int64 and scores float64, both ``[rows, listed]``; item 0 and score -inf behind a row's last.
    """
    rows = [[(item, beam.score) for beam in found for item in trie.items(beam.token_ids)] for found in beams]
    items = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
    scores = np.full(items.shape, -np.inf)
    for row, named in enumerate(rows):
        for position, (item, score) in enumerate(named):
            items[row, position], scores[row, position] = item, score
    return items, scores
