"""Log-probabilities and logits that objectives need, from one forward pass of prompts with their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from recbole_llm.adapter.dropout import NOBODY
from recbole_llm.adapter.gates import gates_of
from recbole_llm.llm.branch_batch import BranchBatch, Tokens, branch_batch
from recbole_llm.llm.effects import token_effects
from recbole_llm.llm.legal import LegalSets
from recbole_llm.llm.loss import token_log_probs
from recbole_llm.llm.rows import row_sizes
from recbole_llm.llm.trunks import TrunkScorer, tree_size, trunk_batch
from recbole_llm.objective.legal_tokens import LegalTokens
from recbole_llm.objective.tokens import AnswerTokens, answer_steps

Answers = Sequence[Sequence[Tokens]]
Trees = Sequence[Sequence[int]]


class AnswerReader:
    """Reads the tokens of answers as an objective needs them, in the passes that plain fine-tuning makes.

    Without a history the prompt is one for all rows: its answers are branches behind a few copies of it, each filled up
    to the longest line of the pass. Where weights depend on the row, each row has a copy of its own.

    Args:
        scorer: scorer of the LLM.
        legal: the titles, where the softmax among them is read; every answer must then be one.
        bare_prompt: token ids of the prompt without a history, where answers are read after it as well.
        bare_per_row: whether each row needs its own copy of it: the context's rows are then those of the pass, twice.
        takes_branches: whether the LLM computes branches as it computes separate sequences of so many tokens; by
            default the scorer is asked.
        lines_are_rows: whether the lines of a forward pass are its rows in their order, which gradient norms of rows
            need: the prompt without history then has a pass of its own. For rows of one answer each.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from recbole_llm.llm import TitleTrie
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> scorer = TrunkScorer(LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)), pad_token_id=0)
        >>> legal = LegalSets(TitleTrie([[5, 6], [5, 7], [8]], eos_token_id=2))
        >>> tokens = AnswerReader(scorer, legal).read([[1, 9, 9]], [[[5, 7, 2]]])
        >>> tokens.steps.tolist(), tokens.legal.counts.tolist()
        ([0, 1, 2], [2, 2, 1])
    """

    def __init__(
        self,
        scorer: TrunkScorer,
        legal: LegalSets | None = None,
        bare_prompt: Tokens | None = None,
        bare_per_row: bool = False,
        takes_branches: Callable[[int], bool] | None = None,
        lines_are_rows: bool = False,
    ) -> None:
        self.lines_are_rows = lines_are_rows
        self.scorer, self.legal, self.bare_prompt, self.bare_per_row = scorer, legal, bare_prompt, bare_per_row
        self._takes_branches = takes_branches or scorer.takes_branches

    def read(
        self,
        prompts: Sequence[Tokens],
        answers: Answers,
        tau: float = 1.0,
        trees: Sequence[Sequence[int]] | None = None,
    ) -> AnswerTokens:
        """Read the answers to some prompts.

        Args:
            prompts: token ids of each row's prompt.
            answers: the answers to each prompt, as many for each; all but one of a prompt may be empty.
            tau: temperature of the softmax among titles.
            trees: the rows of each tree, where rows are computed as trees: every row once.

        Raises:
            ValueError: the softmax among titles is read, and an answer is none.
        """
        if trees is not None:
            return self._pass(prompts, answers, tau, trees)
        if self.lines_are_rows and self.bare_prompt is not None:
            return self._two_passes(prompts, answers, self.bare_prompt)
        width = max(row_sizes(prompts, answers))
        shares = self.bare_prompt is not None and not self.bare_per_row
        branches = (len(answers[0]) > 1 or shares) and self._takes_branches(width)
        if branches or len(answers[0]) == 1:
            return self._pass(prompts, answers, tau, None, apart=not branches)
        parts = []
        for index in range(len(answers[0])):
            having = [row for row, own in enumerate(answers) if own[index]]
            if not having:
                continue
            own_prompts, own_answers = [prompts[row] for row in having], [[answers[row][index]] for row in having]
            with gates_of(self.scorer.model, having, len(prompts)):
                part = self._pass(own_prompts, own_answers, tau, None, apart=True, lines=having)
            rows = torch.tensor(having, device=part.rows.device)[part.rows]
            parts.append(replace(part, rows=rows, answers=torch.full_like(part.answers, index)))
        return AnswerTokens.join(parts)

    def extra_tokens(self, answer_lengths: np.ndarray) -> np.ndarray:
        """Tokens that a row costs besides its prompt and answers, about. Returns: int64, as ``answer_lengths``."""
        if self.bare_prompt is None:
            return np.zeros_like(answer_lengths)
        return answer_lengths + (len(self.bare_prompt) if self.bare_per_row else 0)

    def _pass(
        self,
        prompts: Sequence[Tokens],
        answers: Answers,
        tau: float,
        trees: Trees | None,
        apart: bool = False,
        lines: Sequence[int] | None = None,
    ) -> AnswerTokens:
        """One forward pass.

        Args:
            prompts: see :meth:`read`, as for the next three.
            answers: answers of each prompt.
            tau: temperature.
            trees: the rows of each tree.
            apart: whether each row gets a copy of the prompt without history.
            lines: the caller's row that each prompt belongs to, where they are not all.
        """
        n_rows, n_answers, pad = len(prompts), len(answers[0]), self.scorer.pad_token_id
        bare: list[list[int]] = []  # numbers of the answers after each copy of the prompt without history
        if self.bare_prompt is not None:
            bare = self._copies(prompts, answers, trees, apart)
            flat = [answer for own in answers for answer in own]
            prompts = [*prompts, *([self.bare_prompt] * len(bare))]
            answers = [*answers, *([flat[number] for number in own] for own in bare)]
        if trees is None:
            n_head = 0 if self.lines_are_rows else self.scorer.head_size(prompts, answers)
            batch = branch_batch(prompts, answers, pad, n_head)
            own_lines = [*(lines or range(n_rows)), *([NOBODY] * len(bare))]
        else:
            extra = ([row] for row in range(n_rows, len(prompts)))
            batch = trunk_batch([*map(list, trees), *extra], prompts, answers, pad)
            own_lines = [NOBODY] * (len(trees) + len(bare))
        batch = batch.to(self.scorer.device)
        steps = answer_steps(batch.rows, batch.answers)
        logits = self.scorer.logits(batch, own_lines)
        if bare:
            return self._effects(batch, logits, steps, n_rows, n_answers, bare)
        if self.legal is None:
            values = token_log_probs(logits, batch.queries, batch.targets)
            return AnswerTokens(batch.rows, batch.answers, steps, log_probs=values)
        titles = torch.tensor(self._titles(answers), device=steps.device)[batch.rows, batch.answers]
        lists = self.legal.of(titles, steps)
        found = LegalTokens.at(logits, batch.queries, batch.targets, *lists, tau)
        return AnswerTokens(batch.rows, batch.answers, steps, legal=found)

    def _two_passes(self, prompts: Sequence[Tokens], answers: Answers, bare: Tokens) -> AnswerTokens:
        """The answers behind their prompts, and behind the one without history, each pass a line for each row."""
        lines = list(range(len(prompts)))
        batches = [
            branch_batch(own, answers, self.scorer.pad_token_id).to(self.scorer.device)
            for own in (prompts, [bare] * len(prompts))
        ]
        batch, logits = batches[0], [self.scorer.logits(one, lines) for one in batches]
        without = batches[1].queries + len(logits[0])
        values, effects = token_effects(torch.cat(logits), batch.queries, without, batch.targets)
        steps = answer_steps(batch.rows, batch.answers)
        return AnswerTokens(batch.rows, batch.answers, steps, log_probs=values, effects=effects)

    def _titles(self, answers: Answers) -> list[list[int]]:
        """The title of each row's each answer; 0 for one that is empty, of which no token asks."""
        legal = self.legal
        found = [legal.titles(own) for own in answers] if legal is not None else []
        asked = [
            (title, answer) for own in zip(found, answers, strict=False) for title, answer in zip(*own, strict=True)
        ]
        if any(title < 0 and answer for title, answer in asked):
            raise ValueError("an answer is no title of the catalogue")
        return [[max(title, 0) for title in own] for own in found]

    def _copies(self, prompts: Sequence[Tokens], answers: Answers, trees: Trees | None, apart: bool) -> list[list[int]]:
        """Which answers, numbered row by row, stand after each copy of the prompt without history."""
        n_answers = len(answers[0])
        if self.bare_per_row or (apart and trees is None):
            return [list(range(row * n_answers, (row + 1) * n_answers)) for row in range(len(prompts))]
        if trees is None:
            width = max(row_sizes(prompts, answers))
        else:
            width = max(tree_size([prompts[row] for row in tree], [answers[row] for row in tree]) for tree in trees)
        copies: list[list[int]] = []
        room = 0
        for number, answer in enumerate(answer for own in answers for answer in own):
            if not answer:
                continue
            if not copies or len(answer) > room:
                copies.append([])
                room = width - len(self.bare_prompt or ())
            copies[-1].append(number)
            room -= len(answer)
        return copies

    @staticmethod
    def _effects(
        batch: BranchBatch, logits: Tensor, steps: Tensor, n_rows: int, n_answers: int, bare: list[list[int]]
    ) -> AnswerTokens:
        """Each answer token after its prompt, beside the same one after the prompt without a history."""
        table = np.zeros((len(bare), max(map(len, bare))), dtype=np.int64)
        for copy, numbers in enumerate(bare):
            table[copy, : len(numbers)] = numbers
        numbers_of = torch.from_numpy(table).to(steps.device)
        after = batch.rows < n_rows
        own = batch.rows * n_answers + batch.answers
        # A row's answers are fewer than a copy's: both sides of ``where`` are looked up, so each stays in range.
        other = numbers_of[(batch.rows - n_rows).clamp(min=0), torch.where(after, 0, batch.answers)]
        order = torch.where(after, own, other) * (int(steps.max()) + 1) + steps
        with_history, without = (side.nonzero()[:, 0] for side in (after, ~after))
        with_history = with_history[order[with_history].argsort()]
        without = without[order[without].argsort()]
        asked = batch.queries[with_history], batch.queries[without], batch.targets[with_history]
        values, effects = token_effects(logits, *asked)
        return AnswerTokens(
            batch.rows[with_history],
            batch.answers[with_history],
            steps[with_history],
            log_probs=values,
            effects=effects,
        )
