"""The interface of groundings: from an LLM's answers to ranked items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from recbole_llm.arrays import Array
from recbole_llm.declare import Settings
from recbole_llm.grounding.ranking import Ranking, rank_scores
from recbole_llm.grounding.settings import GroundingSettings
from recbole_llm.kept import Facts, KeptRows
from recbole_llm.llm.backbone import Backbone
from recbole_llm.llm.budget import TokenBudget
from recbole_llm.llm.capabilities import FastPath
from recbole_llm.llm.settings import GenerationSettings


class Catalog(Protocol):
    """The items that are ranked."""

    @property
    def n_items(self) -> int:
        """Number of items, the padding item included."""

    @property
    def titles(self) -> Sequence[str | None]:
        """Title of each item; None where it has none."""

    @property
    def has_title(self) -> np.ndarray:
        """bool ``[items]``."""

    @property
    def rankable(self) -> np.ndarray:
        """bool ``[items]``: the item has a title and is the first that has it."""

    @property
    def representative(self) -> np.ndarray:
        """int64 ``[items]``, the first item of the same title."""


@dataclass(frozen=True)
class PromptedRows:
    """The rows to rank for, in plain data.

    Attributes:
        histories: item ids of each row's history, oldest first.
        prompts: token ids of each row's prompt; None for a row without one, which is not ranked.
        item_scores: float ``[rows, items]``, another recommender's scores, where a setting (``lm_weight``) mixes them
            in.
        candidates: int64 ``[rows, n]``, the items that each prompt lists, 0 behind a shorter list; None where prompts
            list nothing.

    Example:
        >>> rows = PromptedRows(histories=[[1, 2], []], prompts=[[5, 6], None])
        >>> rows.prompted.tolist(), rows.prompt_ids
        ([0], [[5, 6]])
    """

    histories: Sequence[Sequence[int]]
    prompts: Sequence[list[int] | None]
    item_scores: np.ndarray | None = None
    candidates: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.histories)

    @property
    def prompted(self) -> np.ndarray:
        """int64, the rows that have a prompt."""
        return np.array([row for row, prompt in enumerate(self.prompts) if prompt is not None], dtype=np.int64)

    @property
    def prompt_ids(self) -> list[list[int]]:
        """Token ids of the prompts of the rows that have one."""
        return [prompt for prompt in self.prompts if prompt is not None]

    def take(self, rows: Sequence[int] | np.ndarray) -> PromptedRows:
        """Some of the rows, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return PromptedRows(
            [self.histories[row] for row in chosen],
            [self.prompts[row] for row in chosen],
            None if self.item_scores is None else self.item_scores[chosen],
            None if self.candidates is None else self.candidates[chosen],
        )


class Answerer(Protocol):
    """What a grounding asks of the recommender whose answers it grounds."""

    @property
    def catalog(self) -> Catalog:
        """The items."""

    @property
    def backbone(self) -> Backbone:
        """Special token ids."""

    @property
    def llm(self) -> nn.Module:
        """The tuned LLM."""

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt, at most."""

    @property
    def generation_budget(self) -> TokenBudget:
        """Tokens of a forward pass."""

    @property
    def item_embeddings(self) -> np.ndarray:
        """float32 ``[items, d]``: embeddings of the titles by the untuned LLM; zeros where an item has none."""

    def keep(self, name: str, facts: Facts) -> KeptRows:
        """What finished rows of a computation by the weights as they stand are kept in."""

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for passes of the LLM, in the numbers that it is tuned in."""

    def response(self, item: int) -> list[int]:
        """Token ids of the answer that names an item, its end included."""

    def row_inputs(self, histories: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
        """What the LLM's forward needs to know of rows of these histories besides their tokens: ``[rows, ...]``."""

    def embed_answers(self, rows: PromptedRows) -> np.ndarray:
        """Embedding of each row's generated answer, float32 ``[rows, d]``."""

    def embed_beams(self, rows: PromptedRows) -> list[np.ndarray]:
        """Embeddings of all beams of each row, float32 ``[beams, d]``, the best beam first."""


class Grounding(ABC):
    """How a generative recommender ranks items: a value of the axis ``grounding``.

    A subclass defines :meth:`scores`, and :meth:`rank` where it need not score all items to rank them.

    Args:
        model: the recommender whose answers are grounded.
        settings: settings of the run.

    Attributes:
        declared: the settings of this axis.
        generation: how answers are searched for.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    """Keys that decide the ranking, besides those of generation."""
    chooses: ClassVar[bool] = False
    """Whether it scores the candidates that a prompt lists; if not, generated text names one."""
    fast_paths: ClassVar[frozenset[FastPath]] = frozenset()
    """Ways of saving forward passes that it takes besides those of generation."""

    def __init__(self, model: Answerer, settings: Mapping[str, Any]) -> None:
        self.model, self.config = model, settings
        self.declared = GroundingSettings.from_settings(settings)
        self.generation = GenerationSettings.from_settings(settings)

    @classmethod  # noqa: B027
    def check(cls, settings: Settings) -> None:
        """Refuse settings that do not go together, before anything is loaded.

        Raises:
            InputError: they do not.
        """

    @property
    def longest_answer(self) -> int:
        """Tokens for which this grounding needs room after a prompt."""
        return 0

    def prepare(self) -> None:  # noqa: B027
        """Compute what ranking needs besides the weights: called before training, so that mistakes show first."""

    @abstractmethod
    def scores(self, rows: PromptedRows) -> Tensor:
        """Scores of all items, larger is better.

        Returns:
            float64 ``[rows, items]``; -inf where an item is not ranked, as everywhere in a row without a prompt.
        """

    def rank(self, rows: PromptedRows, targets: Array | None, k: int) -> Ranking:
        """Ranks the items for each row; a row without a prompt ranks none.

        Args:
            rows: rows to rank items for.
            targets: item ids, int64 ``[rows]``; None for none.
            k: length of the lists of best items.
        """
        return rank_scores(self.scores(rows), targets, k)

    def candidate_scores(self, rows: PromptedRows) -> np.ndarray:
        """Scores of each row's candidates, if it :attr:`chooses`.

        Returns:
            float64 ``[rows, n]``; -inf for missing candidates.
        """
        raise NotImplementedError(f"{type(self).__name__} scores no candidates")
