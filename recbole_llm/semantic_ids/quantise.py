"""Residual quantisation: a vector is a codeword, its residual another codeword, and so on.

Used by the line of TIGER and LC-Rec and by TTDS / ED2 (arXiv 2409.09253). Notation: levels l, codes k of width d per
level; r_0 is the vector and r_l = r_{l-1} - C_l[k_l].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch, to_ids, widened

CHUNK = 1 << 24  # entries of a table of differences


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """int64 [n], the codeword nearest to each vector [n, d] among [k, d]; ties go to the lower code.

    Raises:
        ValueError: widths differ, there is no codeword, or a vector or codeword holds NaN.
    """
    check_widths(vectors, codebook)
    if not len(codebook):
        raise ValueError("the codebook has no codewords")
    if vectors.isnan().any() or codebook.isnan().any():
        raise ValueError("the vectors or the codebook hold NaN")
    codebook = widened(codebook.detach())
    parts = []
    for block in widened(vectors.detach()).split(max(CHUNK // max(codebook.numel(), 1), 1)):
        # Differences, not the expansion of the square, whose rounding decides between near codewords.
        distances = (block[:, None] - codebook[None]).square().sum(dim=2)
        parts.append((distances == distances.amin(dim=1, keepdim=True)).int().argmax(dim=1))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=vectors.device)


def check_widths(vectors: Tensor, codebook: Tensor) -> None:
    """Raises a ValueError unless vectors [n, d] and codewords [k, d] are of one width."""
    if not vectors.ndim == codebook.ndim == 2 or vectors.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"vectors [n, d] and a codebook [k, d] do not match: {tuple(vectors.shape)}, {tuple(codebook.shape)}"
        )


@computes_in_torch("vectors", "codebooks", wide=True)
def residual_quantise(vectors: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Names each vector by the nearest codeword of every level, each applied to what the levels before leave.

    Args:
        vectors: [n, d].
        codebooks: [l, k, d].

    Returns:
        int64 [n, l], the codes (ties to the lower one); [n, l, d], the residual after each level; [n, d], the sum of
        the codewords.

    Raises:
        ValueError: widths differ, or a level has no codeword.

    Example:
        >>> codes, residuals, found = residual_quantise([[4.9, 1.2]], [[[0.0, 0], [4, 0]], [[0.0, 0], [1, 1]]])
        >>> codes.tolist(), residuals.round(6).tolist(), found.tolist()
        ([[1, 1]], [[[0.9, 1.2], [-0.1, 0.2]]], [[5.0, 1.0]])
    """
    if vectors.ndim != 2 or codebooks.ndim != 3 or vectors.shape[1] != codebooks.shape[2]:
        raise ValueError(
            f"vectors [n, d] and codebooks [l, k, d] do not match: {tuple(vectors.shape)}, {tuple(codebooks.shape)}"
        )
    if not len(codebooks):
        none = torch.zeros(len(vectors), 0, dtype=torch.long, device=vectors.device)
        return none, vectors.new_zeros(len(vectors), *codebooks.shape[::2]), torch.zeros_like(vectors)
    residual, codes, residuals = vectors, [], []
    for codebook in codebooks:
        codes.append(nearest_codes(residual, codebook))
        residual = residual - codebook[codes[-1]]
        residuals.append(residual)
    words = [codebook[chosen] for codebook, chosen in zip(codebooks, codes, strict=True)]
    return torch.stack(codes, dim=1), torch.stack(residuals, dim=1), torch.stack(words).sum(dim=0)


@computes_in_torch("vectors", "codebooks", others=("codes",), wide=True)
def quantisation_loss(
    vectors: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    commitment: float = 0.25,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Pulls codewords to the residuals they stand for, and the residuals to their codewords.

    The squared distance counts once with a gradient for the codebooks alone and ``commitment`` times with one for the
    vectors alone.

    Args:
        vectors: [n, d].
        codebooks: [l, k, d].
        codes: int64 [n, l].
        commitment: weight of the vectors' side.
        reduction: ``sum``, over levels and width; ``mean``, over both, as ED2's code has it. Rows are averaged.

    Returns:
        A scalar.

    Raises:
        ValueError: the reduction is unknown, shapes do not match, or a code has no codeword.

    Example:
        >>> loss = quantisation_loss([[4.9, 1.2]], [[[0.0, 0], [4, 0]], [[0.0, 0], [1, 1]]], [[1, 1]])
        >>> round(float(loss), 6)
        2.875
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction {reduction!r} is not known; choose sum or mean")
    if codes.shape != (len(vectors), len(codebooks)):
        raise ValueError(f"codes [{len(vectors)}, {len(codebooks)}] are needed, not {tuple(codes.shape)}")
    to_ids(codes, codebooks.shape[1], "code")
    residual, total = vectors, vectors.new_zeros(())
    for level, codebook in enumerate(codebooks):
        words = codebook[codes[:, level].long()]
        to_words, to_vectors = (residual.detach() - words).square(), (residual - words.detach()).square()
        total = total + (to_words + commitment * to_vectors).sum()
        residual = residual - words.detach()  # a level's codewords learn from its own residuals alone
    entries = len(codebooks) * vectors.shape[1] if reduction == "mean" else 1
    return total / max(len(vectors) * entries, 1)


@computes_in_torch("vectors", "codebook", wide=True)
def assignment_probabilities(vectors: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """softmax(-squared distance / temperature) over codewords, for sampling them in training.

    ED2's released code has the opposite sign, by which the farthest codeword is likeliest.

    Args:
        vectors: [n, d].
        codebook: [k, d].
        temperature: > 0; towards 0 the nearest codeword gets all.

    Returns:
        [n, k], rows sum to 1.

    Raises:
        ValueError: the temperature is not positive, or widths differ.

    Example:
        >>> assignment_probabilities([[0.0]], [[0.1**0.5], [2**0.5]], temperature=2.0).round(6).tolist()
        [[0.721115, 0.278885]]
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be > 0, not {temperature}")
    check_widths(vectors, codebook)
    squared = (vectors[:, None] - codebook[None]).square().sum(dim=2)
    return (-squared / temperature).softmax(dim=1)


@computes_in_torch("distances", wide=True)
def sinkhorn_assignment(distances: Tensor, epsilon: float, iterations: int = 50) -> Tensor:
    """A soft assignment that uses every codeword equally often.

    Distances are centred and scaled to [-1, 1]; exp(-c / epsilon) is scaled in turn so that rows sum to 1/n and
    columns to 1/k, in logarithms.

    Args:
        distances: [n, k].
        epsilon: > 0; small values are near an assignment.
        iterations: iterations of one pass over rows and one over columns.

    Returns:
        [n, k], n times the plan: rows sum to about 1, columns to n / k.

    Raises:
        ValueError: epsilon is not positive.

    Example:
        >>> sinkhorn_assignment([[0.0, 1.0], [0.0, 0.9]], epsilon=0.1).round(2).tolist()
        [[0.73, 0.27], [0.27, 0.73]]
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0, not {epsilon}")
    if not distances.numel():
        return distances
    low, high = distances.amin(), distances.amax()
    costs = (distances - (high + low) / 2) / ((high - low) / 2 + 1e-5)
    n, k = distances.shape
    logs = -costs / epsilon
    logs = logs - logs.flatten().logsumexp(dim=0)
    for _ in range(iterations):
        logs = logs - logs.logsumexp(dim=1, keepdim=True) - math.log(n)
        logs = logs - logs.logsumexp(dim=0, keepdim=True) - math.log(k)
    return (logs + math.log(n)).exp()
