"""What a recommender asks of its LLM: passes for rows of known histories, tuned or not, and losses of answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_llm.adapter import Adapter
from recbole_llm.llm.rows import row_sizes
from recbole_llm.llm.trunks import TrunkScorer
from recbole_llm.model.backbones import computes_in_half
from recbole_llm.model.rows import RowReader


class LLMPasses(RowReader):
    """The part of a recommender whose forward passes are the LLM's.

    Attributes:
        adapter: which weights learn.
        llm: the LLM with the adapter attached; what is trained and what generates.
        scorer: log-probabilities of answers, of several to a prompt or of trees of rows in one pass where the LLM can.
    """

    adapter: Adapter
    llm: torch.nn.Module
    scorer: TrunkScorer
    device: torch.device
    _is_untuned = False

    def conditioned_on(self, histories: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """A context whose forward passes are for rows of these histories, in this order; iLoRA's gates read them."""
        return self.adapter.conditioned_on(self.llm, histories)

    def row_inputs(self, histories: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """What the LLM's forward needs to know of each row besides its tokens, where a pass continues from a cache."""
        return self.adapter.row_inputs(self.llm, histories)

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for passes of the LLM, in the numbers that it is tuned in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=computes_in_half(self.config))

    @contextmanager
    def untuned(self) -> Iterator[torch.nn.Module]:
        """The LLM as it was before tuning, for the duration of the context."""
        before, self._is_untuned = self._is_untuned, True
        try:
            with self.adapter.untuned(self.llm) as llm:
                yield llm
        finally:
            self._is_untuned = before

    # ---- losses of answers

    def answer_loss(self, prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]) -> torch.Tensor:
        """Negative log-likelihood of the answers, summed over all tokens of each kind.

        Args:
            prompts: token ids of each prompt.
            answers: k answers to each prompt, such as the true and the distilled one; all k in one forward pass.

        Returns:
            float32 [k].
        """
        n_tokens = max(row_sizes(prompts, answers))
        if len(answers[0]) > 1:
            self.takes_branches(n_tokens)
        return self.scorer.log_probs(prompts, answers, lines_are_rows=False).losses(len(answers[0]))

    def takes_branches(self, n_tokens: int) -> bool:
        """Whether several answers to a prompt may be computed in one pass; the log says why not.

        Args:
            n_tokens: number of tokens of the longest prompt with all its answers.
        """
        if not self.scorer.knows(n_tokens):
            with self.untuned():  # outside any instance: the compared rows are nobody's
                self.scorer.takes_branches(n_tokens)
        return self.scorer.takes_branches(n_tokens)

    def takes_trunks(self, n_tokens: int) -> bool:
        """Whether rows may be computed with others as trees; the log says why not.

        Args:
            n_tokens: number of tokens of the longest prompt with its longest answer.
        """
        with self.untuned():  # outside any instance: the compared rows are nobody's
            return self.scorer.takes_trunks(n_tokens)

    def trunk_loss(
        self, trees: Sequence[Sequence[int]], prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]
    ) -> torch.Tensor:
        """See :meth:`answer_loss`; what the rows of a tree begin with in common is computed once.

        Args:
            trees: the rows of each tree, as indices in ``prompts``; every row once.
            prompts: token ids of each row's prompt.
            answers: k answers to each prompt.

        Returns:
            float32 [k].
        """
        return self.scorer.tree_log_probs(trees, prompts, answers).losses(len(answers[0]))

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """RecBole's training hook: mean over the response tokens of one batch of rows (BIGRec, arXiv 2308.08434)."""
        rows = zip(self.token_pairs(interaction), self.histories(interaction), strict=True)
        readable = [(pair, history) for pair, history in rows if pair is not None]
        if not readable:
            raise ValueError("no row of the batch has a titled history and a titled target")
        pairs = [pair for pair, _ in readable]
        with self.conditioned_on([history for _, history in readable]):
            loss = self.answer_loss([prompt for prompt, _ in pairs], [[response] for _, response in pairs])
        return loss[0] / sum(len(response) for _, response in pairs)
