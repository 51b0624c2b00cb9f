"""``likelihood``: the probability of every title."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from recbole_llm.grounding.base import PromptedRows
from recbole_llm.grounding.titles import TitleGrounding
from recbole_llm.llm.assistant import Assistant
from recbole_llm.llm.capabilities import FastPath
from recbole_llm.llm.likelihood import Way, choose_way, estimate_likelihoods, title_likelihoods
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.progress import Bar

log = logging.getLogger(__name__)


class LikelihoodGrounding(TitleGrounding):
    """The log-likelihood of every title: what constrained beams would rank if there were no end of them.

    Of candidates it scores the titles listed, and no others: they are the only titles there are.
    """

    chooses: ClassVar[bool] = True
    fast_paths: ClassVar[frozenset[FastPath]] = frozenset({FastPath.TREE})

    def prepare(self) -> None:
        """Make sure that the LLM can score as many titles as there are."""
        if self._way(n_titles := self.config["candidates"] or self.trie.n_titles) == "rows":
            log.warning("grounding=likelihood scores %d titles per prompt one by one", n_titles)
        elif not self.config["candidates"]:
            tokens = self.model.generation_budget.tokens
            estimate = estimate_likelihoods(self.model.llm, self.trie, tokens, self.declared.title_renormalize)
            log.info("grounding=likelihood: %s.", estimate)

    def _way(self, n_titles: int, row_inputs: Mapping[str, Tensor] | None = None) -> Way:
        """All titles of a prompt as one tree, or a row for each where the LLM does not take a tree."""
        return choose_way(self.model.llm, self.model.longest_prompt + self.trie.max_length, n_titles, row_inputs)

    def _title_scores(self, rows: PromptedRows) -> Tensor:
        progress, options = self.config["show_progress"], self._options(rows)
        way = self._way(self.trie.n_titles, options["row_inputs"])
        with self.model.autocast():
            return title_likelihoods(
                self.model.llm,
                rows.prompt_ids,
                self.trie,
                progress=progress,
                way=way,
                keep=self.model.keep,
                **options,
            )

    def candidate_scores(self, rows: PromptedRows) -> np.ndarray:
        """See :class:`Grounding`; a row without a prompt has no scores."""
        if rows.candidates is None:
            raise ValueError("the rows list no candidates")
        scores = np.full(rows.candidates.shape, -np.inf)
        prompted = rows.prompted
        options = self._options(rows.take(prompted)) if len(prompted) else {}
        bar = Bar(prompted, desc="score candidates", unit="row", disable=not self.config["show_progress"])
        prompts = rows.prompt_ids
        way = self._way(rows.candidates.shape[1], options.get("row_inputs"))
        for index, row in enumerate(bar):
            items = rows.candidates[row][rows.candidates[row] > 0].tolist()
            trie = TitleTrie([self.model.response(item) for item in items], self.model.backbone.eos_token_id)
            with self.model.autocast():
                one = _of_row(options, index, items)
                own = title_likelihoods(self.model.llm, [prompts[index]], trie, way=way, **one)
            scores[row, : len(items)] = own[0].cpu().numpy()
        return scores


def _of_row(options: dict[str, Any], index: int, items: list[int]) -> dict[str, Any]:
    """The options of one row, whose assistant knows no items but these."""
    assistant: Assistant | None = options["assistant"]
    if assistant is not None:
        assistant = replace(assistant, item_scores=assistant.item_scores[[index]][:, items])
    inputs = {name: values[[index]] for name, values in options["row_inputs"].items()}
    return {**options, "assistant": assistant, "row_inputs": inputs}
