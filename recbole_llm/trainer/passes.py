"""From rows to optimiser steps and forward passes: each row by itself, or rows of a user together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from recbole_llm.adapter.dropout import TokenDraws
from recbole_llm.distributed import process
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.budget import TokenBudget
from recbole_llm.llm.rows import common_prefix
from recbole_llm.llm.settings import AUTO
from recbole_llm.llm.trunks import tree_size
from recbole_llm.model.base import LLMRecommender
from recbole_llm.objective.tokens import AnswerTokens
from recbole_llm.prompt.batches import epoch_steps, micro_batches
from recbole_llm.prompt.trunk import Pass, Tree, Trunks, trunk_passes, trunk_steps
from recbole_llm.settings.training import FineTuneSettings

LENGTH_WINDOW = 16  # optimiser steps among whose rows ``group_by_length`` sorts


class Passes:
    """The steps of an epoch, the forward passes of a step, and the losses of a pass.

    Args:
        model: the recommender.
        prompts: token ids of each row's prompt.
        histories: item ids of each row's history.
        answers: token ids of each row's answer, by kind.
        settings: batch size and memory are read.
        trunks: trunks of the rows, where those of a user are computed together; None computes each apart.

    Attributes:
        prompt_lengths: int64 [rows], tokens of each prompt.
        answer_lengths: int64 [rows] by kind, tokens of each answer.
        budget: tokens of a forward pass; smaller once memory has run out.
        draws: what the model's dropout is drawn from: a row is known by its index here.
        is_sharded: whether every process holds a part of the LLM's weights, so that each pass needs all of them.
    """

    def __init__(
        self,
        model: LLMRecommender,
        prompts: Sequence[list[int]],
        histories: Sequence[Sequence[int]],
        answers: Mapping[str, Sequence[list[int]]],
        settings: FineTuneSettings,
        trunks: Trunks | None = None,
    ) -> None:
        self.model, self.prompts, self.histories, self.answers = model, prompts, histories, answers
        self.settings, self.trunks = settings, trunks
        self.draws: TokenDraws = model.draws
        self.is_sharded = False
        self.budget = TokenBudget.of_setting("micro_batch_tokens", settings.micro_batch_tokens, model.llm, True)
        if settings.micro_batch_tokens == AUTO:
            self.budget.agree()
        self.prompt_lengths = np.array([len(prompt) for prompt in prompts])
        self.answer_lengths = {kind: np.array([len(answer) for answer in own]) for kind, own in answers.items()}

    def renew(self, prompts: Sequence[list[int]], answers: Mapping[str, Sequence[list[int]]]) -> None:
        """Let the same rows have other prompts and answers."""
        self.prompts, self.answers = prompts, answers
        self.prompt_lengths = np.array([len(prompt) for prompt in prompts])
        self.answer_lengths = {kind: np.array([len(answer) for answer in own]) for kind, own in answers.items()}
        self.__dict__.pop("_n_head", None)

    def rows_with(self, kinds: Collection[str]) -> np.ndarray:
        """The rows that have an answer of one of these kinds. Returns: int64, ascending."""
        return np.flatnonzero(sum(self.answer_lengths[kind] for kind in kinds))

    def steps(self, generator: np.random.Generator, lengths: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
        """The rows of each optimiser step of an epoch.

        Args:
            generator: draws the order.
            lengths: int64 [rows], tokens of prompt and answers.
            chosen: int64, the rows of the epoch, ascending.
        """
        batch_size = self.settings.train_batch_size
        if self.trunks is not None:
            return trunk_steps(self.trunks.only(chosen), batch_size, generator)
        window = LENGTH_WINDOW if self.settings.group_by_length else 0
        own = lengths[chosen].tolist()
        steps = epoch_steps(len(chosen), batch_size, generator, lengths=own, length_window=window)
        return [chosen[step] for step in steps]

    def of_step(self, rows: np.ndarray, kinds: Collection[str], lengths: np.ndarray) -> list[Pass]:
        """The forward passes of an optimiser step.

        Args:
            rows: rows of the step.
            kinds: kinds of answers that are computed.
            lengths: int64 [all rows], tokens of prompt and these answers.
        """
        budget = self.budget.tokens
        if self._trunk_of_row is None:
            batches = [rows[batch] for batch in micro_batches(lengths[rows].tolist(), budget)]
            return [Pass([[int(row)] for row in batch], int(lengths[batch].sum())) for batch in batches]

        def size(tree: Tree) -> int:
            return tree_size([self.prompts[row] for row in tree], self._answers(tree, kinds))

        return trunk_passes(rows.tolist(), self._trunk_of_row, size, self._n_head, budget)

    def prepare(self) -> None:
        """Find out now whether the model takes trees of rows, which needs passes of its own."""
        _ = self._trunk_of_row

    def own(self, passes: Sequence[Pass]) -> list[tuple[Pass, float]]:
        """This process's share of a step's passes, and the weight of each in the loss.

        Where the LLM's weights are sharded, all processes have equally many, as every pass needs all of them: one
        that has fewer computes the first again, which counts nothing.
        """
        me = process()
        found = [(one, 1.0) for one in me.own(passes)]
        missing = -(-len(passes) // me.count) - len(found) if self.is_sharded else 0
        return found + [(passes[0], 0.0)] * missing

    def within_memory(
        self, rows: np.ndarray, lengths: np.ndarray, run: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> None:
        """Compute the passes of a step; where memory runs out, in any of several processes, again in smaller ones.

        Where the LLM's weights are sharded, a pass is one of all processes, and none restarts.

        Args:
            rows: rows of the step.
            lengths: int64 [all rows], tokens of each; a pass of one row is not divided.
            run: computes them all, from the start.
            undo: called before they are computed again.
        """
        if self.is_sharded:
            run()
            return
        before = torch.get_rng_state()
        longest = int(lengths[rows].max(initial=0))
        while not self.budget.attempt_together(run, self.budget.tokens, divisible=self.budget.tokens > longest):
            torch.set_rng_state(before)
            if undo is not None:
                undo()

    def loss(self, one: Pass, kinds: Collection[str]) -> torch.Tensor:
        """Negative log-likelihood of a pass's answers, summed by kind. Returns: float32 [kinds]."""
        rows, trees = self._laid_out(one)
        prompts, answers = [self.prompts[row] for row in rows], self._answers(rows, kinds)
        self.draws.use_rows(rows, by_path=self.trunks is not None)
        if trees is not None:
            return self.model.trunk_loss(trees, prompts, answers)
        with self.model.conditioned_on([self.histories[row] for row in rows]):
            return self.model.answer_loss(prompts, answers)

    def read(self, one: Pass, kinds: Collection[str], reader: AnswerReader, tau: float) -> AnswerTokens:
        """What an objective reads of a pass's answers; its rows are those of the pass, in their order.

        Args:
            one: the pass.
            kinds: kinds of answers that are read.
            reader: reads them.
            tau: temperature of the softmax among titles.
        """
        rows, trees = self._laid_out(one)
        prompts, answers = [self.prompts[row] for row in rows], self._answers(rows, kinds)
        histories = [self.histories[row] for row in rows] * (2 if reader.bare_per_row else 1)
        self.draws.use_rows(rows, by_path=self.trunks is not None)
        with self.model.conditioned_on(histories):
            return reader.read(prompts, answers, tau, trees)

    def _laid_out(self, one: Pass) -> tuple[list[int], list[list[int]] | None]:
        """The rows of a pass in their order, and its trees by their positions; None where rows are computed apart."""
        if self._trunk_of_row is None:
            return one.rows, None
        ends = np.cumsum([len(tree) for tree in one.trees])
        return one.rows, [list(range(end - len(tree), end)) for tree, end in zip(one.trees, ends.tolist(), strict=True)]

    @cached_property
    def _trunk_of_row(self) -> np.ndarray | None:
        """The trunk of each row; None where rows are computed apart, if only because the model takes no trees."""
        if self.trunks is None:
            return None
        longest = max(len(answer) for own in self.answers.values() for answer in own)
        n_tokens = max(map(len, self.prompts)) + longest
        return self.trunks.of_row if self.model.takes_trunks(n_tokens) else None

    @cached_property
    def _n_head(self) -> int:
        """Tokens that all prompts begin with."""
        return len(common_prefix(self.prompts))

    def _answers(self, rows: Sequence[int], kinds: Collection[str]) -> list[list[list[int]]]:
        """Each row's answers of these kinds."""
        return [[self.answers[kind][row] for kind in kinds] for row in rows]
