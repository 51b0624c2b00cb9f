"""``likelihood``: the probability of every title."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from recbole_llm.distributed import alone, process
from recbole_llm.grounding.base import PromptedRows
from recbole_llm.grounding.titles import TitleGrounding
from recbole_llm.hashing import hash_arrays
from recbole_llm.llm.assistant import Assistant
from recbole_llm.llm.capabilities import FastPath
from recbole_llm.llm.likelihood import Way, choose_way, estimate_likelihoods, title_likelihoods
from recbole_llm.llm.rows import prompt_facts
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
        """See :class:`Grounding`; a row without a prompt has no scores. Several processes share the rows."""
        if rows.candidates is None:
            raise ValueError("the rows list no candidates")
        scores, prompted = np.full(rows.candidates.shape, -np.inf), rows.prompted
        if not len(prompted):
            return scores
        asked, candidates = rows.take(prompted), rows.candidates[prompted]
        options, prompts = self._options(asked), asked.prompt_ids
        way = self._way(candidates.shape[1], options["row_inputs"])

        def facts() -> dict[str, Any]:
            opinion = None if asked.item_scores is None else hash_arrays(asked.item_scores)
            how = [options["length_penalty"], options["renormalize"], way, self.declared.lm_weight, opinion]
            asked_for = {"candidates": candidates.tolist(), "scores": how}
            return {**prompt_facts(prompts, options["row_inputs"]), **asked_for}

        def scores_of(batch: Sequence[int]) -> dict[int, list[float]]:
            found: dict[int, list[float]] = {}
            for row in batch:
                items = candidates[row][candidates[row] > 0].tolist()
                own = _of_row(options, row, items)
                found[row] = self._scores_of(prompts[row], items, way=way, **own).tolist()
            return found

        found, kept = scores[prompted], self.model.keep("candidates", facts)
        batches = [[row] for row in range(len(prompted))]
        progress = self.config["show_progress"]
        for batch in Bar(process().own(batches), desc="score candidates", unit="row", disable=not progress):
            for row, values in kept.batch(batch, scores_of).items():
                found[row, : len(values)] = values
        process().complete(found, batches)
        scores[prompted] = found
        return scores

    def _scores_of(self, prompt: list[int], items: Sequence[int], **options: Any) -> Tensor:
        """The scores of some items behind a prompt, float64 [items], computed by this process alone."""
        trie = TitleTrie([self.model.response(item) for item in items], self.model.backbone.eos_token_id)
        with self.model.autocast(), alone():
            return title_likelihoods(self.model.llm, [prompt], trie, **options)[0]


def _of_row(options: dict[str, Any], index: int, items: list[int]) -> dict[str, Any]:
    """The options of one row, whose assistant knows no items but these."""
    assistant: Assistant | None = options["assistant"]
    if assistant is not None:
        assistant = replace(assistant, item_scores=assistant.item_scores[[index]][:, items])
    inputs = {name: values[[index]] for name, values in options["row_inputs"].items()}
    return {**options, "assistant": assistant, "row_inputs": inputs}
