"""Losses of rows as a function of some weights, and the derivatives of them that influence is made of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from recbole_llm.errors import InputError

log = logging.getLogger(__name__)

Losses = Callable[[Tensor, Any], Tensor]
"""``losses(params, batch) -> [rows]``, the loss of each row of a batch as a function of one tensor of weights."""


def influence_scores(per_sample_loss: Callable[[Tensor], Tensor], params: Any, direction: Any) -> Tensor:
    """Derivative of every row's loss in one direction: ``<grad L(s), direction>``.

    One pass in forward mode. Where an operation of the model has no forward mode, the same is done by two backward
    passes, with a line in the log.

    Args:
        per_sample_loss: ``per_sample_loss(params) -> [n]``, deterministic: no dropout, no negatives drawn anew.
        params: weights, any shape.
        direction: of the same number of elements.

    Returns:
        ``[n]``.

    Raises:
        InputError: the direction, or a loss, is not finite.
        ValueError: shapes do not fit.
    """
    losses, scores = _along(per_sample_loss, params, direction)
    _check_losses(losses)
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
            _check_losses(losses)
            (gradients,) = torch.autograd.grad(losses.sum(), states)
        return (gradients * tangents).flatten(1).sum(dim=1)


def parameter_losses(
    model: nn.Module, names: Iterable[str], losses: Callable[[nn.Module, Any], Tensor]
) -> tuple[Tensor, Losses]:
    """Some of a model's weights as one vector, and the losses, or whatever else of it, as a function of that.

    Args:
        model: in eval mode.
        names: of the weights, as in ``model.named_parameters()``.
        losses: ``losses(model, batch) -> [rows]``.

    Returns:
        The weights ``[m]`` (a copy), and ``losses(params, batch)``, which leaves the model unchanged.

    Raises:
        InputError: the model has no weight of such a name.
        ValueError: the model is in training mode, in which dropout makes every call another function.
    """
    if model.training:
        raise ValueError("influence needs a model in eval mode: dropout makes every call another function")
    own = dict(model.named_parameters())
    names = list(names)
    if unknown := [name for name in names if name not in own]:
        raise InputError(f"{type(model).__name__} has no weight {unknown[0]!r}; it has {', '.join(own)}")
    shapes = [own[name].shape for name in names]
    sizes = [own[name].numel() for name in names]
    called = _Call(model, losses)

    def at(params: Tensor, batch: Any) -> Tensor:
        parts = params.reshape(-1).split(sizes)
        weights = {f"model.{name}": part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(called, weights, (batch,))

    return torch.cat([own[name].detach().reshape(-1) for name in names]), at


class MeanLoss:
    """The mean loss of a data set as a function of some weights, with one batch in memory at a time.

    How the rows are cut into batches changes nothing but rounding.

    Args:
        losses: see :data:`Losses`.
        params: the weights' values, any shape.
        batches: all rows; gone through once per product.
        sample: ``sample(step)`` gives the batch that stands in for all rows in a step of a stochastic recursion. Draw
            what it gives from a seeded generator in advance.
        progress: show a bar.
    """

    def __init__(
        self,
        losses: Losses,
        params: Tensor,
        batches: Sequence[Any],
        sample: Callable[[int], Any] | None = None,
        progress: bool = False,
    ) -> None:
        self.losses = losses
        self.params = params.detach()
        self.batches = batches
        self.sample = sample
        self.progress = progress

    def gradient(self) -> Tensor:
        """Gradient, of the shape of the weights."""
        return self._mean(self.batches, lambda point, losses: torch.autograd.grad(losses.sum(), point)[0])

    def gradient_size(self) -> float:
        """Root mean square of the norms of the rows' gradients, estimated with one backward pass per batch.

        The squared norm of a sum of gradients with weights drawn from N(0, 1) is in the mean the sum of the squares.
        """
        rng = np.random.default_rng(0)

        def square(point: Tensor, losses: Tensor) -> Tensor:
            drawn = torch.from_numpy(rng.normal(size=len(losses))).to(losses)
            return torch.autograd.grad(losses @ drawn, point)[0].double().square().sum()

        return float(self._mean(self.batches, square).sqrt())

    def hvp(self, vector: Tensor, step: int | None = None) -> Tensor:
        """Hessian times a vector of the shape of the weights; of the sampled batch alone if a step is given."""

        def product(point: Tensor, losses: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
            if not gradient.requires_grad:  # a linear loss
                return torch.zeros_like(point)
            return torch.autograd.grad(gradient, point, vector.reshape(point.shape), materialize_grads=True)[0]

        sampled = step is not None and self.sample is not None
        return self._mean([self.sample(step)] if sampled else self.batches, product)

    def hessian(self, chunk_size: int = 64) -> Tensor:
        """The Hessian ``[m, m]``; ``chunk_size`` columns at once, which decides memory and speed only."""
        identity = torch.eye(self.params.numel()).to(self.params)

        def columns(point: Tensor, losses: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
            if not gradient.requires_grad:
                return torch.zeros_like(identity)
            chunks = [
                torch.autograd.grad(
                    gradient,
                    point,
                    units.reshape(-1, *point.shape),
                    retain_graph=True,
                    is_grads_batched=True,
                    materialize_grads=True,
                )[0]
                for units in identity.split(chunk_size)
            ]
            return torch.cat(chunks).reshape(identity.shape)

        return self._mean(self.batches, columns)

    def scores(self, direction: Tensor) -> Tensor:
        """``<grad L(s), direction>`` of every row, in the order of the batches. Returns: float64 ``[n]``."""
        return torch.cat([self._scores(batch, direction).double() for batch in self._bar(self.batches)])

    def _scores(self, batch: Any, direction: Tensor) -> Tensor:
        if isinstance(self.losses, StagedLosses):
            return self.losses.scores(self.params, batch, direction)
        return influence_scores(lambda params: self.losses(params, batch), self.params, direction)

    def _mean(self, batches: Iterable[Any], term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum of what ``term`` makes of the losses of each batch, divided by the number of rows."""
        total, n_rows = None, 0
        for batch in self._bar(batches):
            point = self.params.clone().requires_grad_()
            with torch.enable_grad(), _differentiable_attention():
                losses = self.losses(point, batch)
                _check_losses(losses)
                part = term(point, losses).detach()
            total = part if total is None else total + part
            n_rows += len(losses)
        if not n_rows:
            raise InputError("influence: there are no rows to compute it from")
        return total / n_rows

    def _bar(self, batches: Iterable[Any]) -> Iterable[Any]:
        return tqdm(batches, "influence", leave=False, disable=not self.progress)


@contextmanager
def frozen(weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these weights ask for no gradient: no graph is kept for them."""
    thawed = [weight for weight in weights if weight.requires_grad]
    for weight in thawed:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in thawed:
            weight.requires_grad_()


class _Call(nn.Module):
    """Any function of a model as a module's forward pass, whose weights can be replaced for the time of a call."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, batch: Any) -> Tensor:
        return self.function(self.model, batch)


def _along(function: Callable[[Tensor], Tensor], params: Any, direction: Any) -> tuple[Tensor, Tensor]:
    """Values of a function of some weights, and their derivatives in a direction."""
    point = torch.as_tensor(params).detach()
    tangent = torch.as_tensor(direction).detach().to(point)
    if tangent.numel() != point.numel():
        raise ValueError(f"the direction has {tangent.numel()} elements and the weights {point.numel()}")
    if not tangent.isfinite().all():
        raise InputError("influence: the direction holds NaN or infinity; check the solver that gave it")
    tangent = tangent.reshape(point.shape)
    with _differentiable_attention():
        try:
            values, derivatives = torch.func.jvp(function, (point,), (tangent,))
        except NotImplementedError as error:
            log.info("No forward-mode derivative (%s): two backward passes instead.", str(error).splitlines()[0])
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


def _check_losses(losses: Tensor) -> None:
    if losses.ndim != 1:
        raise ValueError(f"losses must be [rows], got {[*losses.shape]}")
    wrong = (~losses.detach().isfinite()).nonzero().flatten()
    if len(wrong):
        raise InputError(
            f"influence: {len(wrong)} of {len(losses)} rows of a batch have a loss of NaN or infinity (first "
            f"{int(wrong[0])}); check the recommender"
        )


def _differentiable_attention() -> AbstractContextManager[None]:
    """Fused attention kernels have neither second derivatives nor forward mode."""
    return sdpa_kernel(SDPBackend.MATH)
