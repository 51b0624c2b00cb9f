"""MSL: the softmax of tuning sees only tokens that continue a title (arXiv 2504.04178), and its adaptive temperature.

Spec facts come from the authors' code; the paper's body was not available. Two means are offered, since the code has
both: over all answer tokens (fixed temperature) and over branching ones (adaptive temperature).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch
from recbole_llm.objective.legal_tokens import LegalTokens
from recbole_llm.objective.means import token_weights, weighted_mean

Reduction = Literal["answer", "branching"]
TEMPERATURES = (1.5, 5.0)  # bounds of an estimated temperature


@computes_in_torch("logits", others=("targets", "rows", "row_weights"))
def msl_loss(
    logits: Tensor,
    targets: Tensor,
    legal: Sequence[Sequence[int]],
    tau: float = 1.0,
    reduction: Reduction = "answer",
    rows: Tensor | None = None,
    row_weights: Tensor | None = None,
    times_tau: bool = False,
) -> Tensor:
    """Mean negative log-probability of the right tokens among the legal ones.

    With every token legal and tau 1 it is the plain loss. Adding a constant to the legal logits of a token, or anything
    to illegal ones, changes nothing; a title on a path of its own costs nothing.

    Args:
        logits: [n, V], an answer token each, EOS included.
        targets: int64 [n].
        legal: for each answer token the ids of its legal tokens.
        tau: temperature, > 0.
        reduction: ``answer``, the mean over all tokens; ``branching``, over those with more than one legal token.
        rows: int64 [n], the row of each token, where rows have weights.
        row_weights: [b], >= 0; in numerator and denominator, so that their scale does not matter.
        times_tau: multiply the loss by tau, as the authors do with an adaptive temperature.

    Returns:
        A scalar; 0, with a gradient of 0, where no token counts.

    Raises:
        ValueError: a right token is not legal, a reduction is unknown, or row weights come without rows.

    Example:
        >>> import torch
        >>> loss = msl_loss(torch.tensor([[1.5, 0.5, 3.0]]), torch.tensor([0]), [[0, 1]], tau=2.0)
        >>> round(float(loss), 6)
        0.474077
    """
    losses, weights = msl_terms(LegalTokens.of(logits, targets, legal, tau), reduction, times_tau)
    return weighted_mean(losses, weights * token_weights(losses, rows, row_weights))


def msl_terms(tokens: LegalTokens, reduction: Reduction, times_tau: bool = False) -> tuple[Tensor, Tensor]:
    """Loss of each answer token, and what it counts in the mean.

    Args:
        tokens: n answer tokens.
        reduction: see :func:`msl_loss`.
        times_tau: see :func:`msl_loss`.

    Returns:
        Both [n].

    Raises:
        ValueError: the reduction is unknown.
    """
    if reduction not in ("answer", "branching"):
        raise ValueError(f"reduction {reduction!r} is not known; choose answer or branching")
    losses = -tokens.log_probs()
    weights = torch.ones_like(losses) if reduction == "answer" else (tokens.counts > 1).to(losses)
    return losses * (tokens.tau if times_tau else 1.0), weights


@computes_in_torch("positive", "legal_logits")
def adaptive_temperature(
    positive: Tensor,
    legal_logits: Tensor,
    n_root: float,
    previous: float,
    eta: float = 0.25,
    momentum: float = 0.05,
    bounds: tuple[float, float] = TEMPERATURES,
) -> float:
    """MSL's next temperature: that at which the right first token has a probability of about eta, smoothed.

    With G = mean right - mean legal logit, s2 the unbiased variance of the legal ones and C = log(eta * n_root), the
    larger root of C t^2 - G t + s2 / 2 = 0, or its real part where there is none, clipped to ``bounds``.

    Args:
        positive: [b], logits of the right first tokens.
        legal_logits: [b, m], logits of all legal first tokens, right ones included; any shape, pooled. -inf is none, as
            where rows have fewer than m.
        n_root: m_1, number of first tokens (or the mean number, where rows branch later).
        previous: the temperature so far.
        eta: probability aimed at.
        momentum: weight of the new estimate.
        bounds: least and largest estimate.

    Returns:
        The smoothed temperature; ``previous`` where the estimate is not defined (``eta * n_root <= 1``, fewer than two
        legal logits, no right one, or infinite ones that cancel out).

    Example:
        >>> legal = [[9, 1, 0, 2, -1, 1, 0, 1], [2, 7, 1, 0, 0, -2, 1, 1]]
        >>> round(adaptive_temperature([9, 7], legal, n_root=8, previous=1.5), 6)
        1.675
    """
    positive, pooled = positive.detach().double(), legal_logits.detach().double().flatten()
    pooled = pooled[pooled != -math.inf]
    spread = math.log(eta * n_root) if eta * n_root > 0 else -math.inf
    if spread <= 0 or len(pooled) < 2 or not positive.numel():
        return float(previous)
    gap, variance = float(positive.mean() - pooled.mean()), float(pooled.var())
    root = math.sqrt(max(gap**2 - 2 * spread * variance, 0.0))
    if math.isnan(gap + root):
        return float(previous)
    estimate = min(max((gap + root) / (2 * spread), bounds[0]), bounds[1])
    return (1 - momentum) * float(previous) + momentum * estimate
