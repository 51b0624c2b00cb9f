"""The derivative of every row's loss in one direction: one forward-mode pass per batch, none per row."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from recbole_llm.arrays import Array, to_tensor
from recbole_llm.coreset.checks import check_losses
from recbole_llm.coreset.influence.losses import Losses
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)

ORIGIN, ADVICE = "influence", "check the recommender"  # of losses that are no numbers


def influence_scores(per_sample_loss: Callable[[Tensor], Tensor], params: Array, direction: Array) -> Tensor:
    """Derivative of every row's loss in one direction: ``<grad L(s), direction>``.

    One pass in forward mode. Where an operation of the model has no forward mode, the same is done by two backward
    passes, with a line in the log.

    Args:
        per_sample_loss: ``per_sample_loss(params) -> [n]``, deterministic: no dropout, no negatives drawn again.
        params: weights, any shape.
        direction: direction of the derivative, with as many elements as the weights.

    Returns:
        ``[n]``.

    Raises:
        InputError: the direction, or a loss, is not finite.
        ValueError: shapes do not fit.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> influence_scores(lambda weights: (x @ weights) ** 2 / 2, torch.tensor([1.0, 0.0]), [0.0, 1.0])
        tensor([ 2., 12.])
    """
    losses, scores = _along(per_sample_loss, params, direction)
    check_losses(losses, ORIGIN, ADVICE)
    return scores


@dataclass(frozen=True)
class StagedLosses:
    """Losses that depend on the weights through a state of each row alone, such as that before the scores of all items.

    The derivative of all losses in one direction is then one backward pass that ends at the states, times the
    derivative of the states in that direction: nothing of the size of the scores is differentiated forwards.

    Attributes:
        states: ``states(params, batch) -> [rows, d]``.
        losses: ``losses(states, batch) -> [rows]``.
    """

    states: Losses
    losses: Losses

    def __call__(self, params: Tensor, batch: Any) -> Tensor:
        """See :data:`Losses`."""
        return self.losses(self.states(params, batch), batch)

    def scores(self, params: Tensor, batch: Any, direction: Tensor) -> Tensor:
        """:func:`influence_scores` of a batch."""
        states, tangents = _along(lambda point: self.states(point, batch), params, direction)
        states.requires_grad_()
        with torch.enable_grad():
            losses = self.losses(states, batch)
            check_losses(losses, ORIGIN, ADVICE)
            (gradients,) = torch.autograd.grad(losses.sum(), states)
        return (gradients * tangents).flatten(1).sum(dim=1)


def _along(function: Callable[[Tensor], Tensor], params: Array, direction: Array) -> tuple[Tensor, Tensor]:
    """Values of a function of some weights, and their derivatives in a direction."""
    point = to_tensor(params).detach()
    point = point if point.is_floating_point() else point.double()
    tangent = to_tensor(direction).detach().to(point)
    if tangent.numel() != point.numel():
        raise ValueError(f"the direction has {tangent.numel()} elements and the weights {point.numel()}")
    if not tangent.isfinite().all():
        raise InputError(
            "influence: the direction holds NaN or infinity; check the solver that gave it", kind="numeric"
        )
    tangent = tangent.reshape(point.shape)
    with differentiable_attention():
        try:
            values, derivatives = torch.func.jvp(function, (point,), (tangent,))[:2]
        except NotImplementedError as error:
            log.info("No forward-mode derivative (%s): using two backward passes instead", str(error).splitlines()[0])
            values, derivatives = _jvp_by_backward(function, point, tangent)
    return values.detach(), derivatives.detach()


def _jvp_by_backward(function: Callable[[Tensor], Tensor], point: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """J' u is linear in u, and the derivative of <J' u, tangent> by u is J tangent."""
    point = point.clone().requires_grad_()
    with torch.enable_grad():
        values = function(point)
        weights = torch.zeros_like(values, requires_grad=True)
        (pulled,) = torch.autograd.grad(values, point, weights, create_graph=True)
        return values.detach(), torch.autograd.grad(pulled, weights, tangent)[0]


def differentiable_attention() -> AbstractContextManager[None]:
    """Fused attention kernels have neither second derivatives nor forward mode."""
    return sdpa_kernel(SDPBackend.MATH)
