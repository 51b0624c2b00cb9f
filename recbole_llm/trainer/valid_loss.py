"""Loss of the validation rows' answers: how an epoch is chosen without generating anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recbole_llm.distributed import process
from recbole_llm.errors import InputError, NonFiniteError
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.budget import TokenBudget, run_batches
from recbole_llm.model.base import LLMRecommender
from recbole_llm.modes import evaluating


class ValidLoss:
    """Negative log-likelihood per token of the true answers to the validation rows.

    Rows without a titled history or target are left out.

    Args:
        model: the recommender.
        rows: the validation rows, a RecBole data set.
        budget: tokens per forward pass, padding included.
        reader: reads the softmax among titles, where the model is tuned on that; then the loss is among titles, too.
    """

    def __init__(
        self, model: LLMRecommender, rows: Any, budget: int | TokenBudget, reader: AnswerReader | None = None
    ) -> None:
        self._model, self._reader, self._data, self._budget = model, reader, rows, TokenBudget.of(budget)
        self._read()

    def _read(self) -> None:
        """Prompts and answers of the rows."""
        feat = self._data.inter_feat
        pairs = zip(self._model.token_pairs(feat), self._model.histories(feat), strict=True)
        self._rows = [(*pair, history) for pair, history in pairs if pair is not None]
        self._lengths = [len(prompt) + len(response) for prompt, response, _ in self._rows]

    @torch.no_grad()
    def measure(self) -> float | None:
        """The loss of the model as it stands, in nats per token; None where no row can be read.

        Raises:
            NonFiniteError: it is not finite.
        """
        if self._model.changes_examples:
            self._read()
        if not self._rows:
            return None

        sums = dict[int, float]()  # by the first row of a batch

        def run(batch: list[int]) -> None:
            prompts, responses, histories = zip(*(self._rows[row] for row in batch), strict=True)
            with self._model.autocast(), self._model.conditioned_on(histories):
                sums[batch[0]] = self._sum(prompts, [[response] for response in responses])

        with evaluating(self._model):
            batches = run_batches(self._lengths, self._budget, run, "shortest first", together=True)
        found = process().gather_rows(sums)
        total = sum(found.pop(batch[0], 0.0) for batch in batches) + sum(found.values())
        loss = total / sum(len(response) for _, response, _ in self._rows)
        if not torch.isfinite(torch.tensor(loss)):
            raise NonFiniteError(
                f"the loss of the validation rows is {loss}; check the weights of the LLM, or its llm_dtype"
            )
        return loss

    def _sum(self, prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]) -> float:
        """Negative log-likelihood of some answers, summed over their tokens."""
        if self._reader is None:
            return float(self._model.answer_loss(prompts, answers)[0])
        legal = self._reader.read(prompts, answers).legal
        if legal is None:
            raise ValueError("the reader reads no titles")
        return float(-legal.log_probs().sum())

    def require(self) -> float:
        """:meth:`measure`, where an epoch is chosen by the loss.

        Raises:
            InputError: no row can be read.
        """
        loss = self.measure()
        if loss is None:
            message = "no validation row has a titled history and target to take the loss of; set another metric"
            raise InputError("valid_metric", message, kind="data")
        return loss
