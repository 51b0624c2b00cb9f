"""RPO: each right answer of a batch against each wrong one, weighted by how alike their prompts are (2402.10958)."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch
from recbole_llm.objective.means import products, softplus, unit, weighted_mean


@computes_in_torch("chosen_prompts", "rejected_prompts", others=("mask",), wide=True)
def rpo_weights(
    chosen_prompts: Tensor, rejected_prompts: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Weights of the contrasts of each right answer: softmax over wrong ones of minus the prompts' cosine distance.

    Args:
        chosen_prompts: [m, d], vectors of the right answers' prompts; their length does not matter, zeros are at right
            angles to all.
        rejected_prompts: [n, d], of the wrong answers'.
        temperature: > 0.
        mask: bool [m, n], True where a contrast counts.

    Returns:
        [m, n], without a gradient; a row sums to 1, or is 0 where nothing counts.

    Raises:
        ValueError: the temperature is not positive, or shapes do not match.

    Example:
        >>> rpo_weights([[1.0, 0.0]], [[2.0, 0.0], [0.5, 3**0.5 / 2]], temperature=0.5).round(6).tolist()
        [[0.731059, 0.268941]]
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be > 0, not {temperature}")
    shapes = tuple(chosen_prompts.shape), tuple(rejected_prompts.shape)
    if not len(shapes[0]) == len(shapes[1]) == 2 or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"chosen_prompts [m, d] and rejected_prompts [n, d] do not match: {shapes[0]}, {shapes[1]}")
    cosines = products(unit(chosen_prompts.detach()), unit(rejected_prompts.detach()))
    logits = (cosines - 1) / temperature
    kept = _kept(mask, logits)
    weights = torch.where(kept, logits, -torch.inf).softmax(dim=1) if logits.numel() else logits
    return torch.where(kept, weights, 0.0)


@computes_in_torch("chosen", "rejected", "weights", others=("mask",), wide=True)
def rpo_loss(chosen: Tensor, rejected: Tensor, weights: Tensor, beta: float, mask: Tensor | None = None) -> Tensor:
    """-log sigmoid(beta w_ij (a_i - b_j)), mean over the pairs that count of a row, then over rows that have any.

    The weight stands inside the logistic, so that beta acts together with the size of the batch. Weights of 1 are the
    uniform variant; one row is DPO.

    Args:
        chosen: [m], log-ratios a.
        rejected: [n], log-ratios b, of their own prompts.
        weights: [m, n], from ``rpo_weights``.
        beta: strength, > 0.
        mask: bool [m, n], True where a contrast counts.

    Returns:
        A scalar; log 2 where policy and reference agree, 0 where nothing counts.

    Raises:
        ValueError: shapes do not match.

    Example:
        >>> weights = [[0.731059, 0.268941], [0.268941, 0.731059]]
        >>> round(float(rpo_loss([1.0, 0.5], [0.2, -0.4], weights, beta=0.1)), 6)
        0.672186
    """
    if weights.shape != (shape := (*chosen.shape, *rejected.shape)):
        raise ValueError(f"weights {shape}, of chosen and rejected answers, are needed, not {tuple(weights.shape)}")
    kept = _kept(mask, weights)
    gaps = torch.where(kept, chosen[:, None] - rejected, 0.0)  # a masked answer may be infinite
    losses = torch.where(kept, softplus(-beta * weights.to(gaps) * gaps), 0.0)
    counts = kept.sum(dim=1)
    return weighted_mean(losses.sum(dim=1) / counts.clamp(min=1), (counts > 0).to(losses))


@computes_in_torch("chosen", "rejected", others=("mask",), wide=True)
def rpo_diagonal_loss(
    chosen: Tensor, rejected: Tensor, beta: float, diagonal: float = 0.8, mask: Tensor | None = None
) -> Tensor:
    """RPO's diagonal variant: a share of each row's own pairs, the rest the mean over the other rows' wrong answers.

    Args:
        chosen: [m], log-ratios a.
        rejected: [m] or [m, k], log-ratios b of the same prompts.
        beta: strength, > 0.
        diagonal: share of the own pairs. A row without others is DPO, one without own pairs has the others alone.
        mask: bool [m, m * k], True where a contrast counts.

    Returns:
        A scalar, the mean over rows that have any contrast; 0 where nothing counts.

    Raises:
        ValueError: shapes do not match.

    Example:
        >>> round(float(rpo_diagonal_loss([1.0, 0.5], [0.2, -0.4], beta=0.1)), 6)
        0.651628
    """
    if chosen.ndim != 1 or not 1 <= rejected.ndim <= 2 or len(rejected) != len(chosen):
        raise ValueError(f"chosen [m] and rejected [m, k] do not match: {tuple(chosen.shape)}, {tuple(rejected.shape)}")
    n_rows, n_own = len(chosen), rejected.numel() // max(len(chosen), 1)
    own = torch.eye(n_rows, dtype=torch.bool, device=chosen.device).repeat_interleave(n_own, dim=1)
    kept = _kept(mask, own)
    gaps = torch.where(kept, chosen[:, None] - rejected.flatten(), 0.0)
    losses = softplus(-beta * gaps)
    means, found = [], []
    for part in (kept & own, kept & ~own):
        counts = part.sum(dim=1)
        means.append(torch.where(part, losses, 0.0).sum(dim=1) / counts.clamp(min=1))
        found.append(counts > 0)
    share = torch.where(found[0] & found[1], diagonal, found[0].to(losses))
    return weighted_mean(share * means[0] + (1 - share) * means[1], (found[0] | found[1]).to(losses))


def _kept(mask: Tensor | None, contrasts: Tensor) -> Tensor:
    """bool, which of the contrasts count: those of the mask, or all."""
    if mask is None:
        return torch.ones_like(contrasts, dtype=torch.bool)
    if mask.shape != contrasts.shape:
        raise ValueError(f"mask {tuple(contrasts.shape)} is needed, not {tuple(mask.shape)}")
    return mask.bool()
