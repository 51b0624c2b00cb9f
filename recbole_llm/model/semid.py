"""SemID: items are named by codes of their meaning, and the next code is generated (TIGER 2305.05065, LC-Rec)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from recbole_llm.grounding import PromptedRows
from recbole_llm.grounding.titles import TitleGrounding
from recbole_llm.llm.constrained import search_titles
from recbole_llm.model.base import TokenPair
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
        with model.autocast():
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
                pairs = ((encoder.prompt(example), encoder.response(example)) for example in examples)
                found += [(prompt, self.fitted(prompt, response)) for prompt, response in pairs]
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

    def _longest_answer(self) -> int:
        return self.grounding.longest_answer

    # ---- what a grounding asks for

    def embed_answers(self, rows: PromptedRows) -> np.ndarray:
        """Refuse: codes are not compared by embeddings.

        Raises:
            ValueError: always.
        """
        raise ValueError("codes are searched for or scored; there are no answers to compare")
