"""Mixtures of LoRAs in one layer: routers, and the update that they compute.

RecLoRA (arXiv 2408.03533): gates from a recommender's state, products or factors mixed. Laser (2409.01605): a router
that picks one expert for a sequence, and the balance of its load.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch

Mix = Literal["product", "factors"]


@computes_in_torch("logits", wide=True)
def gate_weights(
    logits: Tensor, temperature: float = 1.0, square_root: bool = False, top_k: int | None = None
) -> Tensor:
    """softmax(logits / temperature), over all experts or the best few.

    Args:
        logits: [b, n], of n experts.
        temperature: T > 0; the larger, the more even.
        square_root: the square root of the weights, an option of RecLoRA's code; they no longer sum to 1.
        top_k: experts that keep a weight; the others' logits are -inf. Ties go to the lower expert.

    Returns:
        [b, n].

    Raises:
        ValueError: temperature or top_k out of range.

    Example:
        >>> gate_weights([[1.0, 0.0]], temperature=10.0).round(6).tolist()
        [[0.524979, 0.475021]]
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be > 0, not {temperature}")
    if top_k is not None:
        if not 1 <= top_k <= logits.shape[1]:
            raise ValueError(f"top_k must lie in 1 ... {logits.shape[1]}, the number of experts, not {top_k}")
        best = torch.argsort(logits, dim=1, descending=True, stable=True)[:, :top_k]
        logits = torch.full_like(logits, -torch.inf).scatter(1, best, logits.gather(1, best))
    if square_root:  # by logarithms: the root of a weight of 0 has no gradient
        roots: Tensor = ((logits / temperature).log_softmax(dim=1) / 2).exp()
        return roots
    return (logits / temperature).softmax(dim=1)


@computes_in_torch("x", "A", "B", "weights")
def mixed_lora(
    x: Tensor,
    A: Tensor,  # noqa: N803 - the factors' names in every paper on LoRA
    B: Tensor,  # noqa: N803
    weights: Tensor,
    scaling: float,
    mix: Mix = "product",
) -> Tensor:
    """The low-rank branch of a row's own mixture of LoRAs.

    ``product``, the method: ``scaling * sum_k w_k B_k A_k``, of rank up to n r, one multiply on the stacked ranks (the
    layer of iLoRA with n experts). ``factors``, what RecLoRA's released commands run:
    ``scaling * (sum_k w_k B_k)(sum_k w_k A_k)``, of rank r.

    Args:
        x: [b, t, m].
        A: [n, r, m].
        B: [n, o, r].
        weights: [b, n].
        scaling: alpha / r.
        mix: which of the two.

    Returns:
        [b, t, o].

    Raises:
        ValueError: mix is unknown.

    Example:
        >>> A, B = [[[1.0, 0]], [[0, 1.0]]], [[[1.0], [0]], [[0], [1.0]]]
        >>> mixed_lora([[[1.0, 0], [0, 1.0]]], A, B, [[0.75, 0.25]], scaling=1.0).tolist()
        [[[0.75, 0.0], [0.0, 0.25]]]
        >>> mixed_lora([[[1.0, 0], [0, 1.0]]], A, B, [[0.75, 0.25]], scaling=1.0, mix="factors").tolist()
        [[[0.5625, 0.1875], [0.1875, 0.0625]]]
    """
    n, r, m = A.shape
    weights = weights.to(x.dtype)
    if mix == "product":
        ranks = x @ A.reshape(n * r, m).T * weights.repeat_interleave(r, dim=1)[:, None]
        return scaling * (ranks @ B.permute(0, 2, 1).reshape(n * r, -1))
    if mix == "factors":
        a, b = torch.einsum("bn,nrm->brm", weights, A), torch.einsum("bn,nor->bor", weights, B)
        return scaling * torch.einsum("btm,brm,bor->bto", x, a, b)
    raise ValueError(f"mix {mix!r} is not known; choose product or factors")


@computes_in_torch("states", "router", others=("mask",), wide=True)
def route_experts(states: Tensor, router: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
    """Laser's router: each item votes by a softmax over experts, and the expert with the largest sum is taken.

    Args:
        states: [n, d], states of a sequence's items.
        router: [k, d], without a bias.
        mask: bool [n], True for real items; padding's votes do not count.

    Returns:
        [n, k], the votes, padding's too; [k], sums of those that count; the chosen expert, the lower one on a tie.
        Sums that differ by no more than rounding are a tie.

    Raises:
        ValueError: shapes do not match, or there is no expert.

    Example:
        >>> votes, scores, expert = route_experts([[2.0, 0], [0, 1], [1, 0]], [[1.0, 0], [0, 1]])
        >>> scores.round(6).tolist(), expert
        ([1.880797, 1.119203], 0)
    """
    if not states.ndim == router.ndim == 2 or states.shape[1] != router.shape[1] or not len(router):
        raise ValueError(
            f"states [n, d] and a router [k, d] do not match: {tuple(states.shape)}, {tuple(router.shape)}"
        )
    votes = (states.double() @ router.double().T).softmax(dim=1)  # rounded less than what tells two experts apart
    counted = votes if mask is None else torch.where(_real(mask, len(votes))[:, None], votes, 0.0)
    sums = counted.sum(dim=0)
    best = sums.max()
    rounding = torch.finfo(sums.dtype).eps * len(states) * best  # a sum depends on the order of its terms
    dtype = torch.promote_types(states.dtype, router.dtype)
    return votes.to(dtype), sums.to(dtype), int((sums >= best - rounding).int().argmax())


@computes_in_torch("probabilities", others=("mask",), wide=True)
def load_balance_loss(probabilities: Tensor, mask: Tensor | None = None) -> Tensor:
    """Switch's balance of the load: ``K sum_j f_j P_j``, 1 where it is even.

    f_j is the share of items whose likeliest expert is j (no gradient; ties to the lower), P_j their mean probability.

    Args:
        probabilities: [n, k], of all real items of a batch.
        mask: bool [n], True for real items.

    Returns:
        A scalar; 0, with a gradient of 0, without items.

    Raises:
        ValueError: the mask is not one of the items.

    Example:
        >>> votes = [[0.880797, 0.119203], [0.268941, 0.731059], [0.731059, 0.268941]]
        >>> round(float(load_balance_loss(votes)), 6)
        1.084622
    """
    n = len(probabilities)
    real = torch.ones(n, dtype=torch.bool) if mask is None else _real(mask, n)
    real = real.to(probabilities.device)
    kept = torch.where(real[:, None], probabilities, 0.0)
    n_items, k = real.sum().clamp(min=1), probabilities.shape[1]
    chosen = (kept == kept.amax(dim=1, keepdim=True)).int().argmax(dim=1)[real]
    shares = torch.bincount(chosen, minlength=k).to(kept) / n_items
    return k * (shares * kept.sum(dim=0) / n_items).sum()


def _real(mask: Tensor, n: int) -> Tensor:
    """bool [n], which of n items are real."""
    if mask.shape != (n,):
        raise ValueError(f"mask [{n}] is needed, True for real items, not {tuple(mask.shape)}")
    return mask.bool()
