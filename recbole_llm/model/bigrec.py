"""BIGRec: generate a title, then ground it to the nearest items (arXiv 2308.08434)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from heapq import nlargest
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.grounding import EmbeddingGrounding, ItemIndex, PromptedRows, Ranking, rank_scores
from recbole_llm.grounding.titles import TitleGrounding, title_trie
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.model.free_answers import Asked, answer_keys
from recbole_llm.model.grounded import GroundedRecommender, find_grounding
from recbole_llm.prompt import TitlePromptEncoder
from recbole_llm.settings.training import is_tuned

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.settings.config import Config


class Rescore(Protocol):
    """Turns distances [rows, items] of an interaction into re-weighted ones, smaller is better."""

    @property
    def gamma(self) -> float:
        """How strongly the weights count."""

    def __call__(self, distances: np.ndarray, interaction: Interaction, /) -> np.ndarray:
        """Distances [rows, items]."""


class BIGRec(GroundedRecommender):
    """Bi-step grounding: the tuned LLM generates a title, and items are ranked by their L2 distance to it.

    The untuned LLM embeds item titles and generated titles; an item's score is minus the distance between the two, or
    what another ``grounding`` computes from the LLM's probabilities. Items that share a title have the same score.

    Attributes:
        rescore: turns distances [rows, items] of an interaction into re-weighted ones, smaller is better; set by the
            trainer once gamma is known.
    """

    prompts: TitlePromptEncoder

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.check(config)
        super().__init__(config, dataset)
        self.rescore: Rescore | None = None
        self._kept: dict[Asked, np.ndarray] | None = None

    @classmethod
    def check(cls, config: Config) -> None:
        """See :class:`LLMRecommender`."""
        find_grounding(config["grounding"]).check(config)

    # ---- grounding

    @classmethod
    def borrows(cls, config: Config) -> bool:
        """See :class:`GroundedRecommender`: a re-weighting may read another recommender's scores, too."""
        return super().borrows(config) or config["reweight"] == "collaborative"

    @cached_property
    def _embedding(self) -> EmbeddingGrounding:
        """The grounding by distances, which curricula and re-weighting use whatever ranks."""
        grounding = self.grounding
        if isinstance(grounding, EmbeddingGrounding):
            return grounding
        return EmbeddingGrounding(self, self.config.final_config_dict)

    @cached_property
    def trie(self) -> TitleTrie:
        """The answers that name items, as a tree of tokens: the grounding's, where it has one."""
        grounding = self.grounding
        return grounding.trie if isinstance(grounding, TitleGrounding) else title_trie(self)

    @property
    def index(self) -> ItemIndex:
        """The catalogue's embeddings, as what is searched."""
        return self._embedding.index

    def _longest_target(self) -> int:
        if not is_tuned(self.config):
            return 0
        sizes = {item: len(title) for item, title in enumerate(self.catalog.titles) if title is not None}
        # Of the longest texts: to tokenise a million titles takes a minute, and paths are compared well beyond.
        return max((len(self.response(item)) for item in nlargest(100, sizes, key=sizes.__getitem__)), default=0)

    def prepare(self) -> None:
        """Compute what ranks and curriculum need besides the weights, such as the catalogue's embeddings."""
        super().prepare()
        if self.config["curriculum"] != "none":
            _ = self.item_embeddings

    def rank(self, interaction: Interaction, k: int, targets: torch.Tensor | None = None) -> Ranking:
        """See :class:`GroundedRecommender`; re-weighted distances rank where there are some."""
        if self.rescore is None:
            return super().rank(interaction, k, targets)
        weighted = self.rescore(self.distances(interaction), interaction)
        return rank_scores(-weighted, self._targets(interaction, targets), k)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """See :class:`GroundedRecommender`; minus the re-weighted distances where there are some."""
        if self.rescore is None:
            return super().full_sort_predict(interaction)
        weighted = self.rescore(self.distances(interaction), interaction)
        return -torch.from_numpy(np.ascontiguousarray(weighted)).to(self.device)

    def distances(self, interaction: Interaction) -> np.ndarray:
        """L2 distance of every item to each row's answer. Returns: [rows, items]; inf where an item is not rankable."""
        return self._embedding.distances(self._rows_to_rank(interaction))

    def candidate_scores(self, interaction: Interaction) -> np.ndarray:
        """Scores of each row's candidates, if the grounding chooses. Returns: float64 [rows, n]; -inf where none is."""
        return self.grounding.candidate_scores(self.rows(interaction))

    # ---- what a grounding asks for

    def embed_answers(self, rows: PromptedRows) -> np.ndarray:
        """Embedding of each row's generated answer. Returns: float32 [rows, d]."""
        if self._kept is None:
            return self.ground(self._answers(rows))
        keys = answer_keys(rows.prompts, rows.histories)
        missing = [row for row, key in enumerate(keys) if key not in self._kept]
        if missing:
            vectors = self.ground(self._answers(rows.take(missing)))
            self._kept.update((keys[row], vector) for row, vector in zip(missing, vectors, strict=True))
        return np.stack([self._kept[key] for key in keys])

    def embed_beams(self, rows: PromptedRows) -> list[np.ndarray]:
        """Embeddings of all beams of each row, the best first. Returns: float32 [beams, d] for each row."""
        texts = self.free_answers.beams(rows.prompts, rows.histories)
        vectors = self.ground([text for own in texts for text in own])
        return np.split(vectors, np.cumsum([len(own) for own in texts])[:-1])

    def _answers(self, rows: PromptedRows) -> list[str]:
        return self.free_answers.best(rows.prompts, rows.histories)

    # ---- answers as vectors

    def ground(self, texts: Sequence[str]) -> np.ndarray:
        """Embed generated texts for the search; an exact title takes its item's stored row, so its distance is 0.

        Args:
            texts: raw generated texts.

        Returns:
            float32 [texts, d].
        """
        answers = [self.prompts.layout.title_of(text) for text in texts]
        items = [self.catalog.lookup(answer) for answer in answers]
        unknown = sorted({answer for answer, item in zip(answers, items, strict=True) if item is None})
        table = self.item_embeddings
        queries = np.zeros((len(answers), table.shape[1]), dtype=np.float32)
        if unknown:
            row_of = {answer: row for row, answer in enumerate(unknown)}
            vectors = self.embed(unknown)
        for row, (answer, item) in enumerate(zip(answers, items, strict=True)):
            queries[row] = table[item] if item is not None else vectors[row_of[answer]]
        return queries

    def title_vectors(self, items: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embeddings of the items' titles. Returns: float32 [items, d]."""
        vectors: np.ndarray = self.item_embeddings[np.asarray(items)]
        return vectors

    def top_items(self, interaction: Interaction) -> np.ndarray:
        """The item ranked first for each row. Returns: int64 [rows]; 0 where none is."""
        found: np.ndarray = self.grounding.rank(self._rows_to_rank(interaction), None, 1).top_items[:, 0]
        return found

    def answer_vectors(self, interaction: Interaction) -> np.ndarray:
        """Embedding of each row's generated answer, or of the title ranked first (``distil_on_trie``).

        Returns:
            float32 [rows, d].
        """
        if self.config["distil_on_trie"]:
            return self.title_vectors(self.top_items(interaction))
        return self.embed_answers(PromptedRows(self.histories(interaction), self.row_prompts(interaction)))

    @contextmanager
    def answers_kept(self) -> Iterator[None]:
        """See :class:`LLMRecommender`; each answer is embedded once, too."""
        self._kept = {}
        try:
            with super().answers_kept():
                yield
        finally:
            self._kept = None
