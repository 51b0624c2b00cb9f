"""One optimiser step over all processes; NaN losses and gradients are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from recbole_llm.distributed import process
from recbole_llm.trainer.step_loss import StepLoss

_TOLD = 5  # rows that a message names


class AstrayError(FloatingPointError):
    """A step whose loss or gradient is no number.

    Args:
        what: is no number, in words.
        rows: rows of the step, or those of its broken part.
    """

    def __init__(self, what: str, rows: Sequence[int]) -> None:
        super().__init__(what)
        self.rows = sorted(rows)

    @property
    def told_rows(self) -> str:
        """The first of the rows, by their index among the training rows."""
        return ", ".join(map(str, self.rows[:_TOLD])) + (", ..." if len(self.rows) > _TOLD else "")


class OptimizerStep:
    """Takes the optimiser steps of a training.

    Args:
        loss: loss of a step, and its gradient.
        optimizer: over the trainable weights.
        scheduler: scheduler of its learning rate.
        trainable: the weights that learn.
        max_grad_norm: norm that the gradient is clipped at; None does not clip.
        add_up: gives the weights the sum of their gradients over all processes; None where that has been done.
    """

    def __init__(
        self,
        loss: StepLoss,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        trainable: Sequence[torch.nn.Parameter],
        max_grad_norm: float | None,
        add_up: Callable[[Sequence[torch.nn.Parameter]], None] | None,
    ) -> None:
        self._loss, self._optimizer, self._scheduler, self._trainable = loss, optimizer, scheduler, trainable
        self._max_grad_norm, self._add_up = max_grad_norm, add_up

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step (first parameter group)."""
        rate: float = self._optimizer.param_groups[0]["lr"]
        return rate

    def take(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """Take one step.

        Args:
            rows: rows of the step.
            weights: weights of the loss of each kind of answer.
            lengths: int64 [all rows], of :meth:`StepLoss.lengths`.

        Returns:
            [kinds], the loss on each, 0 where no row has such an answer: a mean over all its tokens in the step,
            however its rows are cut into batches.

        Raises:
            AstrayError: the loss or the gradient is no number; no weight has changed.
        """
        totals = process().sum(self._backward(rows, weights, lengths))
        if self._add_up is not None:
            self._add_up(self._trainable)
        if not np.isfinite(totals).all():
            loss = float(totals @ list(weights.values()))
            raise AstrayError(f"the training loss is {loss}", self._broken(rows, weights, lengths))
        if self._max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._trainable, self._max_grad_norm)
            if not torch.isfinite(norm):  # clipped by it, every weight would become NaN
                raise AstrayError(f"the norm of the gradient is {float(norm)}", rows.tolist())
        self._optimizer.step()
        self._scheduler.step()
        self._loss.after_step()
        return totals

    def _backward(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """Losses of a step and its gradient, this process's part; where memory runs out, again in smaller passes."""
        found, tokens = list[np.ndarray](), self._loss.tokens

        def run() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            self._loss.tokens = tokens
            found.append(self._loss.backward(rows, weights, lengths))

        self._loss.passes.within_memory(rows, lengths, run, self._loss.undo_step)
        return found[-1]

    def _broken(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> list[int]:
        """The rows of a step whose loss alone is no number; all of them where each alone has one."""
        losses = {int(row): self._loss.backward(np.array([row]), weights, lengths) for row in rows}
        self._optimizer.zero_grad(set_to_none=True)
        return [row for row, loss in losses.items() if not np.isfinite(loss).all()] or list(losses)
