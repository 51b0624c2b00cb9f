"""Preference losses, one scalar per call, computed with softplus and logsumexp only.

Log-ratios are a = s - s_ref of the right answer and b = s - s_ref of a wrong one, with s the sum of log-probabilities
over an answer's tokens, EOS included. In the literature a row has one negative (DPO, arXiv 2305.18290) or several
(S-DPO, 2406.09215; DMPO, 2405.16127, whose form for several is ours). A row whose negatives are all masked counts
neither above nor below the line.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch, to_ids
from recbole_llm.objective.means import softplus, weighted_mean

COUNTED = ("mask", "row_weights")


@computes_in_torch("chosen", "rejected", others=(*COUNTED, "smoothing"), wide=True)
def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    mask: Tensor | None = None,
    row_weights: Tensor | None = None,
    smoothing: Tensor | float = 0.0,
) -> Tensor:
    """DPO: softplus(-beta (a - b)), mean over a row's negatives, then over rows.

    Args:
        chosen: [m], log-ratios a of the right answers.
        rejected: [m, k] or [m], log-ratios b of the negatives.
        beta: strength, > 0.
        mask: bool [m, k], True where a negative counts.
        row_weights: [m], >= 0, in numerator and denominator.
        smoothing: probability, a number or [m], that the preference is the other way round (the form of RosePO,
            2410.12519); .5 has its minimum at a = b.

    Returns:
        A scalar; log 2 where policy and reference agree, 0 where no negative counts.

    Example:
        >>> round(float(dpo_loss([1.0, -0.4], [[0.2, -0.4, 0.1], [0.6, 0.6, -1.0]], beta=0.1)), 6)
        0.680182
    """
    chosen, rejected, kept = _aligned(chosen, rejected, mask)
    margins = beta * (chosen[:, None] - rejected)
    flip = torch.as_tensor(smoothing, dtype=margins.dtype, device=margins.device).reshape(-1, 1)
    flipped = torch.where(flip > 0, flip * softplus(margins), 0.0)  # an impossible answer's margin is infinite
    losses = (1 - flip) * softplus(-margins) + flipped
    return _over_rows(_over_negatives(losses, kept), kept, row_weights)


@computes_in_torch("chosen", "rejected", others=COUNTED, wide=True)
def sdpo_loss(
    chosen: Tensor, rejected: Tensor, beta: float, mask: Tensor | None = None, row_weights: Tensor | None = None
) -> Tensor:
    """S-DPO: -log softmax of the right answer among itself and its negatives, at beta (arXiv 2406.09215).

    Args:
        chosen: [m], log-ratios a of the right answers.
        rejected: [m, k] or [m], log-ratios b of the negatives.
        beta: strength, > 0.
        mask: bool [m, k], True where a negative counts.
        row_weights: [m], >= 0, in numerator and denominator.

    Returns:
        A scalar; log(1 + k) where policy and reference agree; with one negative it is DPO.

    Example:
        >>> round(float(sdpo_loss([1.0], [[0.2, -0.4, 0.1]], beta=0.1)), 6)
        1.310063
    """
    chosen, rejected, kept = _aligned(chosen, rejected, mask)
    gaps = beta * (rejected - chosen[:, None])
    # At infinite gaps logsumexp has a gradient of nan, so they stay out of it. A gap of -inf (impossible negative) adds
    # nothing; a gap of +inf (impossible right answer, or certain negative) makes the loss infinite, and takes DPO's
    # gradient.
    finite_gaps, infinite_gaps = kept & ~torch.isinf(gaps), kept & torch.isposinf(gaps)
    some = finite_gaps.any(dim=1)
    summed = torch.where(finite_gaps, gaps, torch.where(some, -torch.inf, 0.0).to(gaps)[:, None])  # no row is all -inf
    losses = torch.where(some, softplus(torch.logsumexp(summed, dim=1)), 0.0)
    losses = torch.where(infinite_gaps.any(dim=1), _over_negatives(softplus(gaps), infinite_gaps), losses)
    return _over_rows(losses, kept, row_weights)


@computes_in_torch("chosen", "rejected", others=COUNTED, wide=True)
def dmpo_loss(
    chosen: Tensor, rejected: Tensor, beta: float, mask: Tensor | None = None, row_weights: Tensor | None = None
) -> Tensor:
    """DMPO: softplus(-beta (a - mean of b)) (arXiv 2405.16127; the mean over several negatives is our reading).

    Args:
        chosen: [m], log-ratios a of the right answers.
        rejected: [m, k] or [m], log-ratios b of the negatives.
        beta: strength, > 0.
        mask: bool [m, k], True where a negative counts.
        row_weights: [m], >= 0, in numerator and denominator.

    Returns:
        A scalar; log 2 where policy and reference agree; never above S-DPO.

    Example:
        >>> round(float(dmpo_loss([1.0, -0.4], [[0.2, -0.4, 0.1], [0.6, 0.6, -1.0]], beta=0.1)), 6)
        0.679784
    """
    chosen, rejected, kept = _aligned(chosen, rejected, mask)
    return _over_rows(softplus(-beta * (chosen - _over_negatives(rejected, kept))), kept, row_weights)


@computes_in_torch("chosen", "rejected", others=COUNTED, wide=True)
def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    gamma: float,
    mask: Tensor | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """SimPO, without a reference: softplus(-(beta (mean right - mean wrong) - gamma)), mean over negatives, then rows.

    Args:
        chosen: [m], mean log-probability per token of the right answers.
        rejected: [m, k] or [m], mean log-probability per token of the negatives.
        beta: strength, > 0.
        gamma: margin aimed at.
        mask: bool [m, k], True where a negative counts.
        row_weights: [m], >= 0, in numerator and denominator.

    Returns:
        A scalar.

    Example:
        >>> round(float(simpo_loss([-0.8 / 3], [[-0.65]], beta=2.0, gamma=0.5)), 6)
        0.568677
    """
    chosen, rejected, kept = _aligned(chosen, rejected, mask)
    losses = softplus(gamma - beta * (chosen[:, None] - rejected))
    return _over_rows(_over_negatives(losses, kept), kept, row_weights)


@computes_in_torch("log_probs", others=("labels", "row_weights"), wide=True)
def choice_loss(log_probs: Tensor, labels: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """-log softmax of the right answer among those offered, by their log-probabilities: no reference, beta 1.

    Args:
        log_probs: [b, k], log-probability of each answer offered: "Yes." and "No.", or a list of candidates.
        labels: int64 [b], which of them is right.
        row_weights: [b], >= 0, in numerator and denominator.

    Returns:
        A scalar.

    Raises:
        ValueError: labels are not one for each row, among its answers, or weights are not one for each row.

    Example:
        >>> round(float(choice_loss([[-0.3, -1.9]], [0])), 6)
        0.183901
    """
    if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1]:
        raise ValueError(
            f"log_probs [b, k] and labels [b] do not match: {tuple(log_probs.shape)}, {tuple(labels.shape)}"
        )
    to_ids(labels, log_probs.shape[1], "label")
    losses = -log_probs.log_softmax(dim=1).gather(1, labels.long()[:, None])[:, 0]
    return weighted_mean(losses, _row_weights(row_weights, losses))


def _aligned(chosen: Tensor, rejected: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[m], [m, k] and the bool mask [m, k]; masked negatives are 0, so that not even an infinite one has a part."""
    rejected = rejected[:, None] if rejected.ndim == 1 else rejected
    if chosen.ndim != 1 or len(rejected) != len(chosen):
        raise ValueError(
            f"chosen [m] and rejected [m, k] are needed, not {tuple(chosen.shape)}, {tuple(rejected.shape)}"
        )
    if mask is not None and (mask := mask[:, None] if mask.ndim == 1 else mask).shape != rejected.shape:
        raise ValueError(f"mask {tuple(mask.shape)} is not one of rejected answers {tuple(rejected.shape)}")
    kept = torch.ones_like(rejected, dtype=torch.bool) if mask is None else mask.bool()
    return chosen, torch.where(kept, rejected, 0.0), kept


def _over_negatives(values: Tensor, kept: Tensor) -> Tensor:
    """[m], the mean over each row's kept negatives; 0 if there is none."""
    return torch.where(kept, values, 0.0).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def _over_rows(losses: Tensor, kept: Tensor, row_weights: Tensor | None) -> Tensor:
    return weighted_mean(losses, kept.any(dim=1).to(losses) * _row_weights(row_weights, losses))


def _row_weights(row_weights: Tensor | None, losses: Tensor) -> Tensor:
    """[m], the weights of rows; 1 if none are given."""
    if row_weights is None:
        return torch.ones_like(losses)
    if row_weights.shape != losses.shape:
        raise ValueError(f"row_weights [{len(losses)}] are needed, not {tuple(row_weights.shape)}")
    return row_weights.to(losses)
