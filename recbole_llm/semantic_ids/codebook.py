"""SOLID's codebook and generated head (arXiv 2408.00123): quantised vectors, weights made of two branches."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch
from recbole_llm.semantic_ids.quantise import nearest_codes


@computes_in_torch("vectors", "codebook")
def snap_to_codebook(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codeword of each vector.

    Args:
        vectors: [n, d].
        codebook: [k, d].

    Returns:
        int64 [n], codes, ties to the lower one; [n, d], the codewords, with a gradient to the codebook alone. For one
        to the vectors too, add ``vectors - vectors.detach()`` (straight-through).

    Raises:
        ValueError: widths differ, or there is no codeword.

    Example:
        >>> codes, snapped = snap_to_codebook([[0.9, 0.4], [2.2, 0.1]], [[0.0, 0], [1, 1], [3, 0]])
        >>> codes.tolist(), snapped.tolist()
        ([1, 2], [[1.0, 1.0], [3.0, 0.0]])
    """
    codes = nearest_codes(vectors, codebook)
    return codes, codebook[codes]


@computes_in_torch("semantic", "snapped", wide=True)
def codebook_loss(semantic: Tensor, snapped: Tensor) -> Tensor:
    """Mean square between the class vectors of a sequence and the codewords its items were snapped to.

    Args:
        semantic: [n, d].
        snapped: [n, d]; detach it where the codebook is frozen.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> round(float(codebook_loss([[0.9, 0.4], [2.2, 0.1]], [[1.0, 1.0], [3.0, 0.0]])), 6)
        0.255
    """
    if semantic.shape != snapped.shape:
        raise ValueError(f"vectors and codewords do not match: {tuple(semantic.shape)}, {tuple(snapped.shape)}")
    squares = (semantic - snapped).square()
    return squares.sum() / max(squares.numel(), 1)


@computes_in_torch("x", "item_weight", "item_bias", "semantic_weight", "semantic_bias")
def dynamic_head(
    x: Tensor, item_weight: Tensor, item_bias: Tensor, semantic_weight: Tensor, semantic_bias: Tensor, clip: float
) -> Tensor:
    """One layer with weights of each row's own, before its activation: ``x W + b``.

    W and b are the semantic branch's plus the item branch's clipped to [-clip, clip]: the classes decide, the items
    correct.

    Args:
        x: [b, d].
        item_weight: [b, d, e], generated from the items.
        item_bias: [b, e].
        semantic_weight: [b, d, e], generated from the classes; or [d, e], the same for all rows.
        semantic_bias: [b, e] or [e].
        clip: n >= 0; 0 leaves the item branch out.

    Returns:
        [b, e].

    Raises:
        ValueError: shapes do not match, or clip is negative.

    Example:
        >>> x, weight, bias = [[1.0, 2.0]], [[[0.5, -0.003], [0.2, -0.7]]], [[0.05, -0.004]]
        >>> dynamic_head(x, weight, bias, [[[0.1, 0.2], [0.3, 0.4]]], [[0.0, 1.0]], clip=0.01).round(6).tolist()
        [[0.74, 1.973]]
    """
    if not clip >= 0:
        raise ValueError(f"clip must be >= 0, not {clip}")
    shape = (*x.shape, *item_bias.shape[1:])
    if (
        item_weight.shape != shape
        or item_bias.shape != shape[::2]
        or semantic_weight.shape not in (shape, shape[1:])
        or semantic_bias.shape not in (shape[::2], shape[2:])
    ):
        given = (x, item_weight, item_bias, semantic_weight, semantic_bias)
        raise ValueError(
            "x [b, d], weights [b, d, e] and biases [b, e] do not match: "
            + ", ".join(str(tuple(one.shape)) for one in given)
        )
    weight = item_weight.clamp(-clip, clip) + semantic_weight
    bias = item_bias.clamp(-clip, clip) + semantic_bias
    return torch.einsum("bd,bde->be", x, weight) + bias
