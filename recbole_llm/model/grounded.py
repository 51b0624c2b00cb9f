"""The base of recommenders whose LLM names an item, and whose ranking is a value of the axis ``grounding``."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.errors import InputError
from recbole_llm.grounding import Grounding, PromptedRows, Ranking
from recbole_llm.llm.capabilities import FastPath
from recbole_llm.model.base import LLMRecommender
from recbole_llm.prompt import TitlePromptEncoder
from recbole_llm.prompt.codes import CodePromptEncoder
from recbole_llm.registry import find_choice
from recbole_llm.settings.config import Config


class GroundedRecommender(LLMRecommender):
    """Ranks by a grounding, for which it is the :class:`recbole_llm.grounding.Answerer`."""

    prompts: TitlePromptEncoder | CodePromptEncoder

    @classmethod
    def borrows(cls, config: Config) -> bool:
        """See :class:`LLMRecommender`: a grounding may mix in another recommender's scores."""
        return super().borrows(config) or config["lm_weight"] < 1

    @cached_property
    def grounding(self) -> Grounding:
        """How items are ranked."""
        return find_grounding(self.config["grounding"])(self, self.config.final_config_dict)

    @property
    def _mixes(self) -> bool:
        """Whether the grounding mixes in the auxiliary recommender's scores."""
        return self.grounding.declared.lm_weight < 1

    def _longest_answer(self) -> int:
        return max(super()._longest_answer(), self.grounding.longest_answer)

    def fast_paths(self) -> set[FastPath]:
        """See :class:`LLMRecommender`."""
        return super().fast_paths() | self.grounding.fast_paths

    def prepare(self) -> None:
        """See :class:`LLMRecommender`."""
        super().prepare()
        if not self.n_candidates or self.grounding.chooses:
            self.grounding.prepare()
            if self._mixes:
                _ = self.auxiliary

    def rows(self, interaction: Interaction) -> PromptedRows:
        """Histories, prompts and whatever else a grounding reads, in plain data."""
        return PromptedRows(
            self.histories(interaction),
            self.row_prompts(interaction),
            self.auxiliary.scores(interaction) if self._mixes else None,
            None if self.candidates is None else self.candidates.of(interaction),
        )

    def _rows_to_rank(self, interaction: Interaction) -> PromptedRows:
        """The rows of a full ranking; the log says how many have no prompt.

        Raises:
            ValueError: the prompts list candidates, the target among them.
        """
        if self.n_candidates:
            raise ValueError("candidates: prompts that hold the target rank nothing; use generate_text")
        self.readable_rows(self.histories(interaction))
        return self.rows(interaction)

    def rank(self, interaction: Interaction, k: int, targets: torch.Tensor | None = None) -> Ranking:
        """See :class:`LLMRecommender`; the grounding of the run is asked.

        Raises:
            ValueError: the prompts list candidates, the target among them.
        """
        return self.grounding.rank(self._rows_to_rank(interaction), self._targets(interaction, targets), k)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, where a dense table is wanted. Returns: float64 [rows, items]; -inf for unranked items.

        Raises:
            ValueError: the prompts list candidates, the target among them.
        """
        return self.grounding.scores(self._rows_to_rank(interaction)).to(self.device)

    # ---- what a grounding asks for

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt, at most."""
        return int(self.prompts.max_prompt_tokens or 0)

    @property
    def item_embeddings(self) -> np.ndarray:
        """Embeddings of the titles, float32 [items, d]: what answers are grounded by, and lists are re-ranked by."""
        return self.title_states

    def response(self, item: int) -> list[int]:
        """Token ids of the answer that names an item."""
        return self.prompts.item_response(item)


def find_grounding(name: str) -> type[Grounding]:
    """The class behind a value of ``grounding``.

    Raises:
        InputError: there is none of this name.
    """
    found = find_choice("grounding", name)
    if found is None or not issubclass(found, Grounding):
        raise InputError("grounding", f"'{name}' is no {Grounding.__module__}.{Grounding.__name__}")
    return found
