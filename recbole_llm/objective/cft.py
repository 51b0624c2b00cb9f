"""CFT, counterfactual fine-tuning: the history's effect on the logits must predict the answer too (arXiv 2410.22809).

An answer is scored after its prompt and after the same prompt without a history; the loss is that of the first logits
plus that of the difference. Facts come from the authors' code; the plain loss is the paper's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recbole_llm.arrays import computes_in_torch, to_ids
from recbole_llm.objective.means import token_weights, weighted_mean


def cft_weights(length: int, beta: float) -> Tensor:
    """Weights of an answer's tokens: falling evenly from 1 at the first to beta at the last, EOS.

    Args:
        length: n >= 1, tokens of the answer, EOS included.
        beta: weight of the last token of several; a single token weighs 1.

    Returns:
        float64 [length].

    Raises:
        ValueError: length < 1.

    Example:
        >>> cft_weights(4, beta=0.25).tolist()
        [1.0, 0.75, 0.5, 0.25]
    """
    if length < 1:
        raise ValueError(f"an answer has at least one token, not {length}")
    steps = torch.arange(length, dtype=torch.float64)
    return 1 - (1 - beta) * steps / max(length - 1, 1)


@computes_in_torch("factual", "counterfactual", others=("targets", "rows", "row_weights"), wide=True)
def cft_loss(
    factual: Tensor,
    counterfactual: Tensor,
    targets: Tensor,
    rows: Tensor,
    beta: float = 0.25,
    weight: float = 0.1,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Weighted mean loss of the logits, plus lambda_C times that of what the history adds to them.

    The gradient flows through both logits, as in the authors' code; a token's gradient of the second term with respect
    to the counterfactual logits is minus that with respect to the factual ones.

    Args:
        factual: [n, V], logits after the prompt.
        counterfactual: [n, V], logits of the same tokens after the prompt without a history.
        targets: int64 [n].
        rows: int64 [n], the row of each token; a row's tokens in the order of the answer.
        beta: weight of an answer's last token.
        weight: lambda_C; 0 leaves the second term out.
        row_weights: [b], >= 0, in numerator and denominator.

    Returns:
        A scalar; 0, with a gradient of 0, where no token counts. beta 1 and lambda_C 0 give the plain loss.

    Raises:
        ValueError: shapes differ, or a target is not in the vocabulary.

    Example:
        >>> import torch
        >>> factual = torch.tensor([[2.0, 0, 1], [0, 1, 0.5], [0.3, 0.2, 1.5]])
        >>> without = torch.tensor([[1.0, 0, 1], [0, 1.2, 0], [0.3, 0, 1.5]])
        >>> round(float(cft_loss(factual, without, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]))), 5)
        0.59773
    """
    if factual.shape != counterfactual.shape or not len(factual) == len(targets) == len(rows):
        raise ValueError(
            f"logits {tuple(factual.shape)} and {tuple(counterfactual.shape)}, {len(targets)} targets and {len(rows)} "
            "rows do not match"
        )
    to_ids(targets, factual.shape[1], "target")  # torch leaves -100 out
    weights = position_weights(rows.long(), beta).to(factual) * token_weights(factual[:, 0], rows, row_weights)
    loss = weighted_mean(functional.cross_entropy(factual, targets.long(), reduction="none"), weights)
    if weight == 0:
        return loss
    effect = torch.where(factual == -torch.inf, factual, factual - counterfactual)  # a token that cannot come stays so
    effects = functional.cross_entropy(effect, targets.long(), reduction="none")
    return loss + weight * weighted_mean(effects, weights)


def position_weights(rows: Tensor, beta: float) -> Tensor:
    """``cft_weights`` of every token of several answers, at once.

    Args:
        rows: int64 [n], a number >= 0 for the answer of each token; an answer's tokens in their order.
        beta: weight of an answer's last token.

    Returns:
        float64 [n].
    """
    order = torch.argsort(rows, stable=True)
    counts = torch.bincount(rows)
    starts = counts.cumsum(0) - counts
    step = torch.empty_like(rows)
    step[order] = torch.arange(len(rows), device=rows.device) - starts[rows[order]]
    return 1 - (1 - beta) * step.double() / (counts[rows] - 1).clamp(min=1)
