"""The ways from an LLM to item scores: free text and its distance to titles, or the LLM's own probability of titles."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from tqdm import tqdm

from recbole_llm.errors import InputError
from recbole_llm.llm.constrained import Assistant, beam_item_scores, search_titles
from recbole_llm.llm.likelihood import check_attention, title_likelihoods
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.model.bigrec import Grounding

TITLE_SETTINGS = ("title_length_penalty", "title_renormalize", "lm_weight")


class EmbeddingGrounding(Grounding):
    """Minus the distance of each title's embedding to that of the generated text (BIGRec, arXiv 2308.08434)."""

    @classmethod
    def check(cls, config: Any) -> None:
        """See :class:`Grounding`."""
        if config["lm_weight"] < 1:
            raise InputError("lm_weight: it mixes probabilities of titles; set --grounding=constrained or likelihood")

    def prepare(self) -> None:
        """Embed the catalogue, or find its embeddings."""
        _ = self.model.index

    def scores(self, interaction: Interaction) -> torch.Tensor:
        """See :class:`Grounding`; the distances are re-weighted if asked."""
        distances = self.model.distances(interaction)
        if self.model.rescore is not None:
            distances = self.model.rescore(distances, interaction)
        return -torch.from_numpy(np.ascontiguousarray(distances)).to(self.model.device)


class TitleGrounding(Grounding):
    """Scores by the probability that the LLM gives to titles, as answers in full, their EOS included."""

    settings: ClassVar[tuple[str, ...]] = TITLE_SETTINGS

    @classmethod
    def check(cls, config: Any) -> None:
        """See :class:`Grounding`."""
        if config["reweight"] != "none":
            raise InputError(
                f"reweight: it weighs distances, which grounding: {config['grounding']} has not; set --reweight=none, "
                "or --grounding=embedding"
            )

    @cached_property
    def trie(self) -> TitleTrie:
        """The answers that name items."""
        prompts, has_title = self.model.prompts, self.model.catalog.has_title
        answers = [prompts.item_response(item) if titled else None for item, titled in enumerate(has_title)]
        return TitleTrie(answers, self.model.backbone.eos_token_id)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest title."""
        return self.trie.max_length

    def prepare(self) -> None:
        """Train the text-free assistant, or find it."""
        if self.model.config["lm_weight"] < 1:
            _ = self.model.auxiliary

    def scores(self, interaction: Interaction) -> torch.Tensor:
        """See :class:`Grounding`."""
        model = self.model
        histories = model.histories(interaction)
        rows = model.readable_rows(histories)
        shape = (len(histories), model.catalog.n_items)
        scores = torch.full(shape, -math.inf, dtype=torch.float64, device=model.device)
        if rows:
            readable = interaction[torch.tensor(rows)]
            prompts, options = model.row_prompts(readable), self._options(readable)
            options["progress"] = model.show_progress
            scores[rows] = self._title_scores(prompts, options).to(model.device)
        return scores

    def _options(self, interaction: Interaction) -> dict[str, Any]:
        """What search and likelihood have in common, for rows of which each has a prompt."""
        model = self.model
        return {
            "pad_token_id": model.backbone.pad_token_id,
            "length_penalty": model.config["title_length_penalty"],
            "renormalize": model.config["title_renormalize"],
            "assistant": self._assistant(interaction),
            "row_inputs": model.row_inputs(model.histories(interaction)),
            "max_batch_tokens": model.config["generation_batch_tokens"],
        }

    def _assistant(self, interaction: Interaction) -> Assistant | None:
        """The auxiliary recommender's opinion of these rows, where the LLM's is not all that counts."""
        weight = self.model.config["lm_weight"]
        if weight == 1:
            return None
        return Assistant(torch.from_numpy(self.model.auxiliary.scores(interaction)), weight)

    @abstractmethod
    def _title_scores(self, prompts: list[list[int]], options: dict[str, Any]) -> torch.Tensor:
        """Scores [prompts, items] of all items; `options` are what search and likelihood have in common."""


class ConstrainedGrounding(TitleGrounding):
    """The score of the beam that names an item, in a search that generates titles alone (D3, arXiv 2406.14900).

    Items that no beam names are not ranked.
    """

    @classmethod
    def check(cls, config: Any) -> None:
        """See :class:`Grounding`."""
        super().check(config)
        longest, beams = max(config["topk"]), config["num_beams"]
        if longest > beams:
            raise InputError(f"topk: {beams} constrained beams do not rank {longest} items; set --num_beams={longest}")
        if sampled := [mode for mode in config["eval_args"]["mode"].values() if mode != "full"]:
            raise InputError(
                f"eval_args: mode: {sampled[0]}: constrained beams search the whole catalogue, not sampled candidates; "
                "set mode: full, or --grounding=likelihood"
            )

    def _title_scores(self, prompts: list[list[int]], options: dict[str, Any]) -> torch.Tensor:
        beams = search_titles(self.model.llm, prompts, self.trie, num_beams=self.model.config["num_beams"], **options)
        return beam_item_scores(self.trie, beams)


class LikelihoodGrounding(TitleGrounding):
    """The log-likelihood of every title: what constrained beams would rank if there were no end of them.

    Of candidates it scores the titles listed, and no others: they are the only titles there are.
    """

    chooses: ClassVar[bool] = True

    def prepare(self) -> None:
        """Also make sure that the LLM can take a tree of titles."""
        super().prepare()
        check_attention(self.model.llm, self.model.prompts.max_prompt_tokens + self.trie.max_length)

    def _title_scores(self, prompts: list[list[int]], options: dict[str, Any]) -> torch.Tensor:
        return title_likelihoods(self.model.llm, prompts, self.trie, **options)

    def candidate_scores(self, interaction: Interaction) -> np.ndarray:
        """See :class:`Grounding`; a row without a prompt has no scores."""
        model = self.model
        listed, prompts = model.candidates.of(interaction), model.row_prompts(interaction)
        scores = np.full(listed.shape, -np.inf)
        rows = [row for row, prompt in enumerate(prompts) if prompt is not None]
        options = self._options(interaction[torch.tensor(rows)]) if rows else {}
        bar = tqdm(rows, desc="score candidates", unit="row", disable=not model.show_progress)
        for place, row in enumerate(bar):
            items = listed[row][listed[row] > 0].tolist()
            trie = TitleTrie([model.prompts.item_response(item) for item in items], model.backbone.eos_token_id)
            own = title_likelihoods(model.llm, [prompts[row]], trie, **_of_row(options, place, items))
            scores[row, : len(items)] = own[0].cpu().numpy()
        return scores


def _of_row(options: dict[str, Any], place: int, items: list[int]) -> dict[str, Any]:
    """The options of one row, whose assistant knows no items but these."""
    assistant: Assistant | None = options["assistant"]
    if assistant is not None:
        assistant = replace(assistant, item_scores=assistant.item_scores[[place]][:, items])
    inputs = {name: values[[place]] for name, values in options["row_inputs"].items()}
    return {**options, "assistant": assistant, "row_inputs": inputs}
