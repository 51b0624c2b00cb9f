"""The mean loss of a data set: its gradient, its Hessian, and each row's contribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.coreset.checks import check_losses
from recbole_llm.coreset.influence.derivative import (
    ADVICE,
    ORIGIN,
    StagedLosses,
    differentiable_attention,
    influence_scores,
)
from recbole_llm.coreset.influence.losses import Losses
from recbole_llm.distributed import process
from recbole_llm.errors import InputError
from recbole_llm.progress import Bar

GATHERED = 2**24  # numbers that processes tell one another at once, at most, unless one batch has more


class MeanLoss:
    """The mean loss of a data set as a function of some weights, with one batch in memory at a time.

    How the rows are cut into batches changes nothing but rounding. Several processes share the batches, and add what
    these give in their order, as one process does.

    Args:
        losses: see :data:`Losses`.
        params: the weights' values, any shape.
        batches: all rows; gone through once per product.
        sample: ``sample(step)`` gives the batch that stands in for all rows in a step of a stochastic recursion. Draw
            what it gives from a seeded generator in advance.
        progress: show a bar.

    Example:
        >>> rows = [torch.tensor([[1.0, 0.0], [0.0, 2.0]])]  # one batch of two rows
        >>> loss = MeanLoss(lambda weights, batch: (batch @ weights) ** 2 / 2, torch.tensor([1.0, 1.0]), rows)
        >>> loss.gradient().tolist(), loss.hessian().tolist()
        ([0.5, 2.0], [[0.5, 0.0], [0.0, 2.0]])
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
        return self._mean(self.batches, lambda index, point, losses: torch.autograd.grad(losses.sum(), point)[0])

    def gradient_size(self) -> float:
        """Root mean square of the norms of the rows' gradients, estimated with one backward pass per batch.

        The squared norm of a sum of gradients with weights drawn from N(0, 1) is in the mean the sum of the squares.
        """

        def square(index: int, point: Tensor, losses: Tensor) -> Tensor:
            drawn = torch.from_numpy(np.random.default_rng(index).normal(size=len(losses))).to(losses)
            return torch.autograd.grad(losses @ drawn, point)[0].double().square().sum()

        return float(self._mean(self.batches, square, size=1).sqrt())

    def hvp(self, vector: Tensor, step: int | None = None) -> Tensor:
        """Hessian times a vector of the shape of the weights; of the sampled batch alone if a step is given."""

        def product(index: int, point: Tensor, losses: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
            if not gradient.requires_grad:  # a linear loss
                return torch.zeros_like(point)
            return torch.autograd.grad(gradient, point, vector.reshape(point.shape), materialize_grads=True)[0]

        if step is None or self.sample is None:
            return self._mean(self.batches, product)
        return self._mean([self.sample(step)], product)

    def hessian(self, chunk_size: int = 64) -> Tensor:
        """The Hessian ``[m, m]``; ``chunk_size`` columns at once, which decides memory and speed only."""
        identity = torch.eye(self.params.numel()).to(self.params)

        def columns(index: int, point: Tensor, losses: Tensor) -> Tensor:
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

        return self._mean(self.batches, columns, size=identity.numel())

    def scores(self, direction: Tensor) -> Tensor:
        """``<grad L(s), direction>`` of every row, in the order of the batches. Returns: float64 ``[n]``."""
        found = self._of_batches(self.batches, lambda _, batch: (self._scores(batch, direction).double(), 0), size=1)
        return torch.cat([scores for scores, _ in found])

    def _scores(self, batch: Any, direction: Tensor) -> Tensor:
        if isinstance(self.losses, StagedLosses):
            return self.losses.scores(self.params, batch, direction)
        return influence_scores(lambda params: self.losses(params, batch), self.params, direction)

    def _mean(self, batches: Sequence[Any], term: Callable[[int, Tensor, Tensor], Tensor], size: int = 0) -> Tensor:
        """The sum of what ``term`` makes of the index, the weights and the losses of each batch, by the number of rows.

        Args:
            batches: all rows.
            term: gives a tensor of one shape for all batches.
            size: numbers in it; 0: as many as there are weights.
        """

        def part(index: int, batch: Any) -> tuple[Tensor, int]:
            point = self.params.clone().requires_grad_()
            with torch.enable_grad(), differentiable_attention():
                losses = self.losses(point, batch)
                check_losses(losses, ORIGIN, ADVICE)
                return term(index, point, losses).detach(), len(losses)

        total: Tensor | None = None
        n_rows = 0
        for found, n_own in self._of_batches(batches, part, size or self.params.numel()):
            total = found if total is None else total + found
            n_rows += n_own
        if total is None or not n_rows:
            raise InputError("influence: there are no rows to compute it from", kind="missing")
        return total / n_rows

    def _of_batches(
        self, batches: Sequence[Any], compute: Callable[[int, Any], tuple[Tensor, int]], size: int
    ) -> Iterator[tuple[Tensor, int]]:
        """What ``compute`` gives for every batch, in their order; several processes share the batches.

        Args:
            batches: all rows.
            compute: computes a batch from its index and itself.
            size: numbers that a batch gives.
        """
        me, numbered = process(), list(enumerate(batches))
        at_once = 1 if me.count == 1 else me.count * max(1, GATHERED // (me.count * size))

        def told(one: tuple[int, Any]) -> tuple[Tensor, int]:
            found, n_rows = compute(*one)
            return (found if me.count == 1 else found.cpu()), n_rows

        for start in self._bar(range(0, len(numbered), at_once)):
            for found, n_rows in me.share_out(numbered[start : start + at_once], told):
                yield found.to(self.params.device), n_rows

    def _bar(self, rounds: Iterable[int]) -> Iterable[int]:
        bar: Iterable[int] = Bar(rounds, "influence", leave=False, disable=not self.progress)
        return bar
