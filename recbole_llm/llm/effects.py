"""Log-probabilities of answer tokens, and of the history's effect on their logits (CFT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_llm.llm.loss import LOGSUMEXP_ROWS


def token_effects(logits: Tensor, queries: Tensor, without: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, and by the difference of two rows of logits.

    Both come of one function: each reads the logits, of which there is one copy, and a second of their gradient.

    Args:
        logits: [q, vocabulary].
        queries: int64 [n], the row after the prompt that predicts each token; a row may be asked more than once.
        without: int64 [n], the row that predicts the same token without a history.
        targets: int64 [n], the tokens.

    Returns:
        Log softmax of the rows ``queries`` and of their differences from the rows ``without``, at the targets: both
        float32 [n].

    Example:
        >>> logits = torch.tensor([[2.0, 0, 1], [1.0, 0, 1]])
        >>> values, effects = token_effects(logits, torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
        >>> round(float(values), 4), round(float(effects), 4)
        (-0.4076, -0.5514)
    """
    values, effects = _TokenEffects.apply(logits.float(), queries, without, targets)  # type: ignore[no-untyped-call]
    return values, effects


class _TokenEffects(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, queries: Tensor, without: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        parts = [part.tolist() for part in torch.arange(len(queries)).split(LOGSUMEXP_ROWS)]
        spans = [slice(part[0], part[-1] + 1) for part in parts]
        plain = torch.cat([logits[queries[own]].logsumexp(dim=1) for own in spans])
        added = torch.cat([(logits[queries[own]] - logits[without[own]]).logsumexp(dim=1) for own in spans])
        ctx.save_for_backward(logits, plain, added, queries, without, targets)
        right = logits[queries, targets]
        return right - plain, right - logits[without, targets] - added

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_values: Tensor, of_effects: Tensor) -> tuple[Tensor, None, None, None]:
        logits, plain, added, queries, without, targets = ctx.saved_tensors
        grad = torch.zeros_like(logits)
        for start in range(0, len(queries), LOGSUMEXP_ROWS):
            own = slice(start, start + LOGSUMEXP_ROWS)
            after = logits[queries[own]]
            effect = (after - logits[without[own]]).sub_(added[own, None]).exp_().mul_(of_effects[own, None])
            grad.index_add_(0, without[own], effect)
            after.sub_(plain[own, None]).exp_().mul_(of_values[own, None])
            grad.index_add_(0, queries[own], after.add_(effect), alpha=-1)
        grad.index_put_((queries, targets), of_values + of_effects, accumulate=True)
        return grad.index_put_((without, targets), -of_effects, accumulate=True), None, None, None
