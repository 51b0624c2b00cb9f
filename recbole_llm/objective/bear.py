"""BEAR: tokens weighted by their position relative to the threshold of a beam search (arXiv 2601.22925).

The authors' code raises the weight of tokens that exceed the threshold, without a gradient (``weights``, the default);
summaries of the paper speak of a penalty on the margin, with one (``margin``, ours, not verified against its text).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch
from recbole_llm.objective.legal_tokens import LegalTokens
from recbole_llm.objective.means import token_weights, weighted_mean

Form = Literal["weights", "margin"]


@computes_in_torch("logits", others=("targets", "rows", "row_weights"))
def bear_loss(
    logits: Tensor,
    targets: Tensor,
    legal: Sequence[Sequence[int]],
    tau: float = 1.0,
    k: int = 10,
    xi: float = 1.0,
    weight: float = 1.0,
    rows: Tensor | None = None,
    row_weights: Tensor | None = None,
    form: Form = "weights",
) -> Tensor:
    """MSL's loss over branching tokens, each weighted by ``bear_weights``.

    Args:
        logits: [n, V], an answer token each, EOS included.
        targets: int64 [n].
        legal: for each answer token the ids of its legal tokens.
        tau: temperature, > 0.
        k: beams: the threshold is the k-th likeliest legal token, or the least likely where there are fewer.
        xi: width of the sigmoid of the margin, in log-probability, > 0.
        weight: lambda_B; 0 is MSL's mean over branching tokens.
        rows: int64 [n], the row of each token, where rows have weights.
        row_weights: [b], >= 0, in numerator and denominator.
        form: ``weights``; or ``margin``, MSL plus ``weight`` times the sigmoid of how far the token is below the bar.

    Returns:
        A scalar; 0, with a gradient of 0, where every token is forced.

    Raises:
        ValueError: k or xi out of range, a form is unknown, a right token is not legal, or row weights without rows.

    Example:
        >>> import torch
        >>> logits, targets = torch.tensor([[1.5, 0.5, 3.0], [0.0, 0.2, 1.0]]), torch.tensor([0, 2])
        >>> round(float(bear_loss(logits, targets, [[0, 1], [1, 2]], k=2, xi=2.75, weight=0.25)), 6)
        0.342125
    """
    losses, weights = bear_terms(LegalTokens.of(logits, targets, legal, tau), k, xi, weight, form)
    return weighted_mean(losses, weights * token_weights(losses, rows, row_weights))


def bear_terms(tokens: LegalTokens, k: int, xi: float, weight: float, form: Form = "weights") -> tuple[Tensor, Tensor]:
    """Loss of each answer token, and what it counts in the mean.

    Args:
        tokens: n answer tokens.
        k: see :func:`bear_loss`.
        xi: see :func:`bear_loss`.
        weight: see :func:`bear_loss`.
        form: see :func:`bear_loss`.

    Returns:
        Both [n]; what a token counts has no gradient, and is 0 where it is forced.

    Raises:
        ValueError: k or xi out of range, or the form is unknown.
    """
    if form not in ("weights", "margin"):
        raise ValueError(f"form {form!r} is not known; choose weights or margin")
    losses = -tokens.log_probs()
    branching = (tokens.counts > 1).to(losses)
    if form == "weights":
        return losses, branching * _weights(tokens, k, xi, weight)
    above = tokens.margins(_checked(k, xi)) - losses + losses.detach()  # the bar is a constant, log p is not
    return losses + weight * torch.sigmoid(-above / xi), branching


@computes_in_torch("logits", others=("targets", "rows", "row_weights"))
def bear_weights(
    logits: Tensor,
    targets: Tensor,
    legal: Sequence[Sequence[int]],
    tau: float = 1.0,
    k: int = 10,
    xi: float = 1.0,
    weight: float = 1.0,
    rows: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """1 + lambda_B * sigmoid((log p of the right token - log p of the threshold) / xi), without a gradient.

    Args:
        logits: [n, V]; this and the rest as ``bear_loss`` takes them.
        targets: int64 [n].
        legal: for each answer token the ids of its legal tokens.
        tau: temperature.
        k: beams.
        xi: width of the sigmoid.
        weight: lambda_B.
        rows: int64 [n], the row of each token, where rows have weights.
        row_weights: [b]; multiplies the weights of a row's tokens.

    Returns:
        [n]; forced tokens, too, have a weight, though no loss.

    Raises:
        ValueError: as ``bear_loss``.

    Example:
        >>> logits, targets = torch.zeros(1, 8), torch.tensor([5])
        >>> bear_weights(logits, targets, legal=[[3, 5]], k=1).tolist()
        [1.5]
    """
    tokens = LegalTokens.of(logits, targets, legal, tau)
    return _weights(tokens, k, xi, weight) * token_weights(tokens.right.detach(), rows, row_weights)


def _weights(tokens: LegalTokens, k: int, xi: float, weight: float) -> Tensor:
    return 1 + weight * torch.sigmoid(tokens.margins(_checked(k, xi)) / xi)


def _checked(k: int, xi: float) -> int:
    """The number of beams, if both are in range."""
    if k < 1 or not xi > 0:
        raise ValueError(f"k must be >= 1 and xi > 0, not {k} and {xi}")
    return k
