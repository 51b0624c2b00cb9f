"""BIGRec: generate a title, then ground it to the nearest items (arXiv 2308.08434)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.grounding import ItemIndex
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.model.base import LLMRecommender
from recbole_llm.prompt import TitlePromptEncoder
from recbole_llm.prompt.titles import clean_answer
from recbole_llm.registry import find_choice


class BIGRec(LLMRecommender):
    """Bi-step grounding: language space to generated title by tuning, generated title to items by L2 distance.

    Item titles and generated titles are embedded by the untuned LLM; an item's score is minus the distance of its
    title's embedding to the generated one, or what another ``grounding`` makes of the LLM's probabilities. All items
    of a shared title have the same score.

    Attributes:
        rescore: turns distances [rows, items] of an interaction into re-weighted ones, smaller is better; set by the
            trainer once gamma is known.
    """

    prompts: TitlePromptEncoder

    def __init__(self, config: Any, dataset: Any) -> None:
        find_choice("grounding", config["grounding"]).check(config)
        super().__init__(config, dataset)
        self.rescore: Callable[[np.ndarray, Interaction], np.ndarray] | None = None
        self._kept: dict[tuple[int, ...], np.ndarray] | None = None

    @cached_property
    def grounding(self) -> Grounding:
        """How item scores come about."""
        return find_choice("grounding", self.config["grounding"])(self)

    def _longest_answer(self) -> int:
        return max(super()._longest_answer(), self.grounding.longest_answer)

    @cached_property
    def index(self) -> ItemIndex:
        """The catalogue's embeddings, computed once per LLM and titles and shared by all runs."""
        facts = {
            "llm": self.backbone.fingerprint,
            "dtype": self.config["llm_dtype"],
            "quant": self.config["quant"],
            "catalog": self.catalog.fingerprint(),
            "encoder": self._encoder_facts(),
        }
        folder = self.stages.get("item-embeddings", facts, self._embed_catalog)
        return ItemIndex(
            np.load(folder / "embeddings.npy"),
            rankable=self.catalog.rankable,
            representative=self.catalog.representative,
            factory=self.config["faiss_index"],
        )

    def prepare(self) -> None:
        """Compute what scores and curriculum need besides the weights, such as the catalogue's embeddings."""
        if not self.n_candidates or self.grounding.chooses:
            self.grounding.prepare()
        if self.config["curriculum"] != "none":
            _ = self.index

    def _encoder(self, llm: torch.nn.Module) -> TextEncoder:
        return TextEncoder(llm, self.backbone.tokenizer, max_batch_tokens=self.config["generation_batch_tokens"])

    def _encoder_facts(self) -> dict[str, Any]:
        return self._encoder(self.llm).fingerprint_facts()

    def embed(self, texts: Sequence[str], progress: bool = False) -> np.ndarray:
        """Embed texts with the untuned LLM. Returns: float32 [texts, d]."""
        with self.untuned() as llm:
            return self._encoder(llm).encode(texts, progress=progress)

    def _embed_catalog(self, folder: Path) -> None:
        titled = np.flatnonzero(self.catalog.has_title)
        vectors = self.embed([self.catalog.titles[item] for item in titled], progress=self.show_progress)
        table = np.zeros((self.catalog.n_items, vectors.shape[1]), dtype=np.float32)
        table[titled] = vectors
        np.save(folder / "embeddings.npy", table)

    def ground(self, texts: Sequence[str]) -> np.ndarray:
        """Embed generated texts for the search; an exact title takes its item's stored row, so its distance is 0.

        Args:
            texts: raw generated texts.

        Returns:
            float32 [texts, d].
        """
        answers = [clean_answer(text) for text in texts]
        items = [self.catalog.lookup(answer) for answer in answers]
        unknown = sorted({answer for answer, item in zip(answers, items, strict=True) if item is None})
        table = self.index.embeddings
        queries = np.zeros((len(answers), table.shape[1]), dtype=np.float32)
        if unknown:
            place = {answer: row for row, answer in enumerate(unknown)}
            vectors = self.embed(unknown)
        for row, (answer, item) in enumerate(zip(answers, items, strict=True)):
            queries[row] = table[item] if item is not None else vectors[place[answer]]
        return queries

    def title_vectors(self, items: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embeddings of the items' titles. Returns: float32 [items, d]."""
        return self.index.embeddings[np.asarray(items)]

    def answer_vectors(self, interaction: Interaction) -> np.ndarray:
        """Embedding of each row's generated answer. Returns: float32 [rows, d]."""
        if self._kept is None:
            return self.ground(self.generate_text(interaction))
        histories = [tuple(history) for history in self.histories(interaction)]
        missing = [row for row, history in enumerate(histories) if history not in self._kept]
        if missing:
            vectors = self.ground(self.generate_text(interaction[torch.tensor(missing)]))
            self._kept.update((histories[row], vector) for row, vector in zip(missing, vectors, strict=True))
        return np.stack([self._kept[history] for history in histories])

    @contextmanager
    def answers_kept(self) -> Iterator[None]:
        """Answer each history once for the duration of the context, in which the weights must not change."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def distances(self, interaction: Interaction) -> np.ndarray:
        """L2 distance of every item to each row's answer. Returns: [rows, items]; inf where an item is not rankable."""
        found = self.index.distances(self.answer_vectors(interaction), expand=True)
        readable = self.readable_rows(self.histories(interaction))
        found[np.setdiff1d(np.arange(len(found)), readable)] = np.inf
        return found

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items by the grounding of the run. Returns: float64 [rows, items]; -inf for unranked items.

        Raises:
            ValueError: the prompts list candidates, the target among them.
        """
        if self.n_candidates:
            raise ValueError("candidates: prompts that hold the target rank nothing; use generate_text")
        return self.grounding.scores(interaction)


class Grounding(ABC):
    """How a generative recommender scores items: a value of the axis ``grounding``.

    Args:
        model: the recommender.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    """Keys that decide the scores, besides those of generation."""
    chooses: ClassVar[bool] = False
    """Whether it scores the candidates that a prompt lists; if not, generated text names one."""

    def __init__(self, model: BIGRec) -> None:
        self.model = model

    @classmethod
    @abstractmethod
    def check(cls, config: Any) -> None:
        """Refuse settings that do not go together, before anything is loaded."""

    @property
    def longest_answer(self) -> int:
        """Tokens for which this grounding needs room behind a prompt."""
        return 0

    @abstractmethod
    def prepare(self) -> None:
        """Compute what scores need besides the weights."""

    @abstractmethod
    def scores(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, larger is better. Returns: float64 [rows, items]; -inf where an item is not ranked."""

    def candidate_scores(self, interaction: Interaction) -> np.ndarray:
        """Scores of each row's candidates, if it :attr:`chooses`. Returns: float64 [rows, n]; -inf where none is."""
        raise NotImplementedError
