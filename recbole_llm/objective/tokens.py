"""The answer tokens of one forward pass, as objectives read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_llm.objective.legal_tokens import LegalTokens


@dataclass(frozen=True)
class AnswerTokens:
    """The answer tokens of one pass; those of one answer stand side by side, in their order.

    Attributes:
        rows: int64 [n], the row of each token.
        answers: int64 [n], which of its row's answers it belongs to.
        steps: int64 [n], its position in the answer, from 0.
        log_probs: float [n], among the whole vocabulary; None if not needed.
        legal: the softmax among the tokens that continue a title; None if not needed.
        effects: float [n], log-probability by what the history adds to the logits; None if not needed.
    """

    rows: Tensor
    answers: Tensor
    steps: Tensor
    log_probs: Tensor | None = None
    legal: LegalTokens | None = None
    effects: Tensor | None = None

    def numbers(self) -> Tensor:
        """int64 [n], a number of its own for each row's each answer."""
        return self.rows * (int(self.answers.max()) + 1) + self.answers

    @classmethod
    def join(cls, parts: Sequence[AnswerTokens]) -> AnswerTokens:
        """The tokens of several passes, one after another."""
        found = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
        joined = {
            name: torch.cat(values)
            for name, values in found.items()
            if name != "legal" and all(value is not None for value in values)
        }
        legal = [one for one in found["legal"] if one is not None]
        return cls(**joined, legal=LegalTokens.join(legal) if legal else None)


def answer_steps(rows: Tensor, answers: Tensor) -> Tensor:
    """Position of each token in its answer, whose tokens stand side by side in their order.

    Args:
        rows: int64 [n].
        answers: int64 [n].

    Returns:
        int64 [n], from 0.

    Example:
        >>> answer_steps(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])).tolist()
        [0, 1, 0, 0]
    """
    order = torch.arange(len(rows), device=rows.device)
    begins = torch.ones_like(rows, dtype=torch.bool)
    begins[1:] = (rows[1:] != rows[:-1]) | (answers[1:] != answers[:-1])
    return order - torch.where(begins, order, 0).cummax(dim=0).values
