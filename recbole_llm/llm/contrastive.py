"""Contrastive losses of item and user vectors: LLMEmb's soft targets, InfoNCE, and Laser's softmax over all items.

LLMEmb: arXiv 2409.19925 (the forms are those of its code); Laser: arXiv 2409.01605.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from recbole_llm.arrays import computes_in_torch, to_ids
from recbole_llm.objective.means import products, unit

T = TypeVar("T")


def thin_attributes(attributes: Sequence[T], ratio: float, order: Sequence[int]) -> list[T]:
    """One view of an item: its attributes in a given order, without the last share of them (LLMEmb, SCFT).

    Args:
        attributes: n attributes.
        ratio: share that is left out, in [0, 1].
        order: a permutation of 0 ... n - 1.

    Returns:
        The first ``max(1, n - floor(ratio * n))`` in that order: an item never becomes nothing. [] for no attributes.

    Raises:
        ValueError: the ratio is out of range, or the order is no permutation.

    Example:
        >>> thin_attributes(["title", "brand", "genre"], ratio=0.4, order=[2, 0, 1])
        ['genre', 'title']
    """
    n = len(attributes)
    if not 0 <= ratio <= 1:
        raise ValueError(f"the ratio must lie in [0, 1], not {ratio}")
    if sorted(order) != list(range(n)):
        raise ValueError(f"the order must be a permutation of {n} positions, not {list(order)}")
    share = float(str(ratio)) * n + 1e-9  # .2 * 5 is 1, whatever its rounding and its number of bits
    kept = max(1, n - math.floor(share))
    return [attributes[position] for position in order[:kept]]


@computes_in_torch("x", "y", wide=True)
def soft_targets(x: Tensor, y: Tensor, tau: float) -> Tensor:
    """How alike the items of a batch are: rows of softmax(tau / 2 (X X^T + Y Y^T)).

    Args:
        x: [b, d], one view of each item, not normalised.
        y: [b, d], the other.
        tau: temperature; it multiplies here and divides in the loss.

    Returns:
        [b, b], rows sum to 1.

    Raises:
        ValueError: x and y are not two views of the same items.

    Example:
        >>> soft_targets([[1.0, 0], [0, 1]], [[0.8, 0.6], [0, 1]], tau=1.0).round(6).tolist()
        [[0.668188, 0.331812], [0.331812, 0.668188]]
    """
    _check_views(x, y)
    targets: Tensor = (tau / 2 * (products(x, x) + products(y, y))).softmax(dim=1)
    return targets


@computes_in_torch("x", "y", wide=True)
def soft_target_loss(x: Tensor, y: Tensor, tau: float, detach_targets: bool = False) -> Tensor:
    """Cross-entropy of X Y^T / tau and its transpose with ``soft_targets``, mean over items and directions.

    The transposed targets' rows need not sum to 1, and a gradient flows through the targets, as in the authors' code.

    Args:
        x: [b, d].
        y: [b, d].
        tau: temperature, > 0.
        detach_targets: no gradient through the targets.

    Returns:
        A scalar; 0 for no items, as of the other losses.

    Raises:
        ValueError: x and y are not two views of the same items, or tau is not positive.

    Example:
        >>> round(float(soft_target_loss([[1.0, 0], [0, 1]], [[0.8, 0.6], [0, 1]], tau=2.0)), 6)
        0.616752
    """
    _check_temperature(tau)
    targets = soft_targets(x, y, tau)
    targets = targets.detach() if detach_targets else targets
    logits = products(x, y) / tau
    rows = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    columns = -(targets.T * logits.T.log_softmax(dim=1)).sum(dim=1)
    loss: Tensor = (rows + columns).sum() / (2 * max(len(x), 1))
    return loss


@computes_in_torch("x", "y", wide=True)
def infonce_loss(x: Tensor, y: Tensor, tau: float) -> Tensor:
    """InfoNCE of cosines, mean of both directions: each item's other view against the batch's.

    Args:
        x: [b, d].
        y: [b, d].
        tau: temperature, > 0.

    Returns:
        A scalar.

    Raises:
        ValueError: x and y are not two views of the same items, or tau is not positive.

    Example:
        >>> round(float(infonce_loss([[1.0, 0], [0, 1]], [[0.8, 0.6], [0, 1]], tau=0.5)), 6)
        0.298736
    """
    _check_views(x, y)
    _check_temperature(tau)
    logits = products(unit(x), unit(y)) / tau
    own = torch.arange(len(x), device=x.device)
    return (_mean_loss(logits, own) + _mean_loss(logits.T, own)) / 2


@computes_in_torch("users", "items", others=("targets",), wide=True)
def all_item_loss(users: Tensor, items: Tensor, targets: Tensor, tau: float) -> Tensor:
    """Cross-entropy of the target among all items by cosine, mean over users (Laser, L_iic).

    Args:
        users: [b, d].
        items: [n, d].
        targets: int64 [b].
        tau: temperature, > 0.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not match, a target is not one of the items, or tau is not positive.

    Example:
        >>> items = [[1.0, 0], [0.6, 0.8], [0, 1]]
        >>> [round(float(all_item_loss([[1.0, 0]], items, [target], tau=0.05)), 6) for target in (0, 1)]
        [0.000335, 8.000335]
    """
    if not users.ndim == items.ndim == 2 or users.shape[1] != items.shape[1] or targets.shape != users.shape[:1]:
        shapes = ", ".join(str(tuple(given.shape)) for given in (users, items, targets))
        raise ValueError(f"users [b, d], items [n, d] and targets [b] do not match: {shapes}")
    _check_temperature(tau)
    to_ids(targets, len(items), "target")  # torch leaves -100 out
    return _mean_loss(products(unit(users), unit(items)) / tau, targets.long())


def _check_views(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"x and y, both [b, d], do not match: {tuple(x.shape)}, {tuple(y.shape)}")


def _check_temperature(tau: float) -> None:
    if tau <= 0:  # one that is not a number shows in the result
        raise ValueError(f"tau must be > 0, not {float(tau)}")


def _mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy; 0, with a gradient of 0, for no rows."""
    return cross_entropy(logits, targets, reduction="sum") / max(len(targets), 1)
