"""SemID: items are named by codes of their meaning, and the next code is generated (TIGER 2305.05065, LC-Rec)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.grounding import Grounding, PromptedRows, Ranking
from recbole_llm.grounding.titles import TitleGrounding
from recbole_llm.llm.capabilities import FastPath
from recbole_llm.llm.constrained import search_titles
from recbole_llm.model.base import TokenPair
from recbole_llm.model.bigrec import find_grounding
from recbole_llm.model.coded import CodedRecommender
from recbole_llm.model.free_answers import FreeAnswers
from recbole_llm.prompt import Example
from recbole_llm.prompt.codes import TASKS


class CodeAnswers(FreeAnswers):
    """Answers among the codes that there are, written by the names of their tokens."""

    _model: SemID

    def _texts(
        self, prompts: Sequence[list[int] | None], histories: Sequence[Sequence[int]], all_beams: bool
    ) -> list[list[str]]:
        """See :class:`FreeAnswers`."""
        model, rows = self._model, PromptedRows(histories, prompts)
        texts = [[""] for _ in histories]
        grounding = model.grounding
        assert isinstance(grounding, TitleGrounding)
        found = search_titles(
            model.llm,
            rows.prompt_ids,
            grounding.trie,
            pad_token_id=model.backbone.pad_token_id,
            num_beams=model.generation.num_beams,
            row_inputs=model.row_inputs(rows.take(rows.prompted).histories),
            max_batch_tokens=model.generation_budget,
            progress=model.show_progress,
            keep=model.keep,
        )
        for row, beams in zip(rows.prompted.tolist(), found, strict=True):
            named = [model.backbone.decode(beam.token_ids) for beam in beams]
            texts[row] = named if all_beams else named[:1]
        return texts


class SemID(CodedRecommender):
    """Items have codes of a few tokens, made from vectors of their texts; the answer to a history of codes is a code.

    Answers are searched for among the catalogue's codes (``grounding: constrained``), or all are scored
    (``likelihood``). Every item with a title is named, also where several share one.
    """

    answers_by: ClassVar[type[FreeAnswers]] = CodeAnswers

    # ---- training

    def more_examples(self) -> list[TokenPair]:
        """See :class:`LLMRecommender`: of the tasks beside the next item, each item once."""
        limit = int(self.prompts.max_prompt_tokens or 0)
        found: list[TokenPair] = []
        for task in self.code_settings.tasks:
            if task in TASKS:
                encoder = self._encoder_of(TASKS[task], limit)
                examples = [Example(history=(), target=int(item)) for item in self.items]
                found += [(encoder.prompt(example), encoder.response(example)) for example in examples]
        return found

    @property
    def n_more_examples(self) -> int:
        """See :class:`LLMRecommender`."""
        return sum(task in TASKS for task in self.code_settings.tasks) * len(self.items)

    # ---- answering

    @property
    def n_answers(self) -> int:
        """Items with a code."""
        return len(self.items)

    @cached_property
    def grounding(self) -> Grounding:
        """How items are ranked, with the codes as they are now."""
        return find_grounding(self.config["grounding"])(self, self.config.final_config_dict)

    def _longest_answer(self) -> int:
        return self.grounding.longest_answer

    def fast_paths(self) -> set[FastPath]:
        """See :class:`LLMRecommender`."""
        return super().fast_paths() | self.grounding.fast_paths

    def prepare(self) -> None:
        """See :class:`LLMRecommender`."""
        super().prepare()
        self.grounding.prepare()
        if self.grounding.declared.lm_weight < 1:
            _ = self.auxiliary

    def rows(self, interaction: Interaction) -> PromptedRows:
        """Histories and prompts, and another recommender's scores where they are mixed in."""
        self.readable_rows(self.histories(interaction))
        mixed = self.grounding.declared.lm_weight < 1
        scores = self.auxiliary.scores(interaction) if mixed else None
        return PromptedRows(self.histories(interaction), self.row_prompts(interaction), scores)

    def rank(self, interaction: Interaction, k: int, targets: Tensor | None = None) -> Ranking:
        """See :class:`LLMRecommender`."""
        return self.grounding.rank(self.rows(interaction), self._targets(interaction, targets), k)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """See :class:`LLMRecommender`; -inf for an item without a code, or that no beam names."""
        return self.grounding.scores(self.rows(interaction)).to(self.device)

    # ---- what a grounding asks for

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt, at most."""
        return int(self.prompts.max_prompt_tokens or 0)

    @property
    def item_embeddings(self) -> np.ndarray:
        """Vectors of the titles, by which re-ranked lists are diverse; codes are not grounded by them."""
        return self.title_states

    def embed_answers(self, rows: PromptedRows) -> np.ndarray:
        """There are none.

        Raises:
            ValueError: always.
        """
        raise ValueError("codes are searched for or scored; there are no answers to compare")

    def response(self, item: int) -> list[int]:
        """Token ids of the answer that names an item."""
        return self.prompts.item_response(item)
