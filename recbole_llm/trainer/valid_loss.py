"""Loss of the validation rows' answers: how an epoch is chosen without generating anything."""

from __future__ import annotations

from typing import Any

import torch

from recbole_llm.errors import InputError
from recbole_llm.model.base import LLMRecommender
from recbole_llm.modes import evaluating
from recbole_llm.prompt.batches import micro_batches


class ValidLoss:
    """Negative log-likelihood per token of the true answers to the validation rows.

    Rows without a titled history or target are left out.

    Args:
        model: the recommender.
        rows: the validation rows, a RecBole data set.
        batch_tokens: tokens per forward pass, padding included.
    """

    def __init__(self, model: LLMRecommender, rows: Any, batch_tokens: int) -> None:
        histories = model.histories(rows.inter_feat)
        pairs = zip(model.token_pairs(rows.inter_feat), histories, strict=True)
        self._model = model
        self._rows = [(*pair, history) for pair, history in pairs if pair is not None]
        lengths = [len(prompt) + len(response) for prompt, response, _ in self._rows]
        self._batches = micro_batches(lengths, batch_tokens, sort=True)

    @torch.no_grad()
    def measure(self) -> float | None:
        """The loss of the model as it stands, in nats per token; None where no row can be read.

        Raises:
            FloatingPointError: it is not finite.
        """
        if not self._rows:
            return None
        total, n_tokens = 0.0, 0
        with evaluating(self._model):
            for batch in self._batches:
                prompts, responses, histories = zip(*(self._rows[row] for row in batch), strict=True)
                with self._model.conditioned_on(histories):
                    total += float(self._model.answer_loss(prompts, [[response] for response in responses])[0])
                n_tokens += sum(map(len, responses))
        loss = total / n_tokens
        if not torch.isfinite(torch.tensor(loss)):
            raise FloatingPointError(f"the loss of the validation rows is {loss}")
        return loss

    def require(self) -> float:
        """The same where an epoch is chosen by it.

        Raises:
            InputError: no row can be read.
        """
        loss = self.measure()
        if loss is None:
            message = "no validation row has a titled history and target to take the loss of; set another metric"
            raise InputError("valid_metric", message, kind="data")
        return loss
