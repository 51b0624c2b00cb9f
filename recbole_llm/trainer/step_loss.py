"""The loss of an optimiser step and its gradient, however the step's rows are cut into forward passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch

from recbole_llm.distributed import process
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.objective.token_objective import FirstTokens, TokenObjective
from recbole_llm.objective.tokens import AnswerTokens
from recbole_llm.prompt.trunk import Pass
from recbole_llm.trainer.passes import Passes


class StepLoss(ABC):
    """Adds the gradient of a step's loss to the weights.

    Args:
        passes: passes of the training.

    Attributes:
        passes: passes of the training.
        tokens: tokens that went through forward passes so far.
    """

    dropout: ClassVar[bool] = True
    """Whether the model is in training mode, where it drops out."""
    scheduled_prompts: ClassVar[bool] = True
    """Whether prompts may be others by the step, as LLaRA's are at first."""

    def __init__(self, passes: Passes) -> None:
        self.passes, self.tokens = passes, 0

    @abstractmethod
    def backward(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """Compute the loss of a step on each kind of answer, and its gradient: this process's part of both.

        Parts are sums over passes, which several processes share; a part of the whole step is the main process's. Where
        memory has run out, it is called again for the same step.

        Args:
            rows: rows of the step.
            weights: weights of the loss of each kind of answer.
            lengths: int64 [all rows], of :meth:`lengths`.

        Returns:
            [kinds], the losses.
        """

    def lengths(self, kinds: Collection[str]) -> np.ndarray:
        """Tokens that a row costs: prompt and answers of these kinds. Returns: int64 [rows]."""
        passes = self.passes
        total: np.ndarray = passes.prompt_lengths + sum(passes.answer_lengths[kind] for kind in kinds)
        return total

    def undo_step(self) -> None:  # noqa: B027
        """Called before a step that was computed, completely or in part, is computed again."""

    def after_step(self) -> None:  # noqa: B027
        """Called once the weights have changed."""

    def after_epoch(self) -> None:  # noqa: B027
        """Called once the steps of an epoch are done, before it is validated and kept."""

    def record(self) -> dict[str, Any]:
        """The record of an epoch besides its loss, as JSON values."""
        return {}

    def state(self) -> dict[str, Any]:
        """What decides how training continues after a step, and what :meth:`record` will tell, as JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from what :meth:`state` gave."""


class MeanNll(StepLoss):
    """Negative log-likelihood, the mean over all tokens of a kind of answer in the step."""

    def backward(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """See :class:`StepLoss`; a kind of which no row has an answer has a loss of 0."""
        passes, kinds = self.passes, list(weights)
        counts = np.array([passes.answer_lengths[name][rows].sum() for name in weights]).clip(min=1)
        scale = torch.tensor(list(weights.values()) / counts, dtype=torch.float32, device=passes.model.device)
        totals = np.zeros(len(weights))
        for one, share in passes.own(passes.of_step(rows, kinds, lengths)):
            with self.passes.model.autocast():
                losses = passes.loss(one, kinds)
                weighted = (losses * scale).sum() * share
            self.tokens += one.n_tokens if share else 0
            weighted.backward()
            totals += losses.detach().cpu().numpy() * share
        totals /= counts
        return totals


class WithSideLoss(MeanNll):
    """The mean loss of answers (:class:`MeanNll`) plus a loss of the model's own, computed once per step."""

    def __init__(self, passes: Passes) -> None:
        super().__init__(passes)
        self._side: list[float] = []
        self._n_before = 0  # steps noted before the one that is computed
        self._n_rows = len(passes.prompts) - passes.model.n_more_examples

    def backward(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """See :class:`StepLoss`; the losses are those of the answers."""
        self._n_before = len(self._side)
        totals = super().backward(rows, weights, lengths)
        if not process().is_main:
            return totals
        histories = [self.passes.histories[row] for row in rows if row < self._n_rows]
        self.passes.draws.forget_tokens()
        with self.passes.model.autocast():
            side = self.passes.model.side_loss(
                histories, [int(row) - self._n_rows for row in rows if row >= self._n_rows]
            )
        if side is not None:
            side.backward()
            self._side.append(float(side.detach()))
        return totals

    def undo_step(self) -> None:
        """See :class:`StepLoss`."""
        del self._side[self._n_before :]

    def record(self) -> dict[str, Any]:
        """See :class:`StepLoss`: the mean over the epoch's steps."""
        found, self._side = self._side, []
        return {"side_loss": float(np.mean(found))} if found else {}

    def state(self) -> dict[str, Any]:
        """See :class:`StepLoss`."""
        return {"side": list(self._side)} if self._side else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`StepLoss`."""
        self._side = list(state["side"])


class ObjectiveMeans(StepLoss):
    """The weighted means of an objective, each over all tokens of a kind of answer in the step.

    Where the sum of weights is known only after the forward pass, the gradient of the one mean is divided by it once
    the step is computed; two means need their sums first, from passes without gradient whose dropout is the same.

    Args:
        passes: passes of the training.
        objective: the loss of tokens and what they count.
        reader: reads what the objective needs.
        trainable: the weights that learn.
    """

    def __init__(
        self, passes: Passes, objective: TokenObjective, reader: AnswerReader, trainable: Sequence[torch.nn.Parameter]
    ) -> None:
        super().__init__(passes)
        self.objective, self.reader, self.trainable = objective, reader, trainable
        self.tau, self._first = objective.start_tau, FirstTokens([], [], [])
        self._step_tau = self.tau
        branching: Mapping[str, np.ndarray] = passes.answer_lengths  # not read where no legal tokens are
        if (legal := reader.legal) is not None:
            branching = {kind: legal.branching(legal.titles(answers)) for kind, answers in passes.answers.items()}
        known = {kind: objective.known_weights(of, branching[kind]) for kind, of in passes.answer_lengths.items()}
        self._known = {kind: weights for kind, weights in known.items() if weights is not None}

    def lengths(self, kinds: Collection[str]) -> np.ndarray:
        """See :class:`StepLoss`."""
        answers = super().lengths(kinds) - self.passes.prompt_lengths
        total: np.ndarray = super().lengths(kinds) + self.reader.extra_tokens(answers)
        return total

    def backward(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """See :class:`StepLoss`; a kind of which no token counts has a loss of 0."""
        kinds, self._first = list(weights), FirstTokens([], [], [])
        passes = process().own(self.passes.of_step(rows, kinds, lengths))
        self._step_tau = self._tau_by(kinds, passes) if self.objective.adapts_before else self.tau
        known = self._sums_before(rows, kinds, passes)
        scale = np.array(list(weights.values())) / (1.0 if known is None else np.where(known > 0, known, 1.0))
        factors = torch.tensor(scale, dtype=torch.float32, device=self.passes.model.device)
        totals, counted = np.zeros(len(kinds)), np.zeros(len(kinds))
        for one in passes:
            with self.passes.model.autocast():
                sums, of_weights = self._sums(one, kinds)
            self.tokens += one.n_tokens
            (sums * factors).sum().backward()
            totals += sums.detach().cpu().numpy()
            counted += of_weights.cpu().numpy()
        found: np.ndarray = process().sum(counted) if known is None else known
        found = np.where(found > 0, found, 1.0)
        if known is None:
            for weight in self.trainable:
                if weight.grad is not None:
                    weight.grad /= float(found[0])
        losses: np.ndarray = totals / found
        return losses

    def _sums_before(self, rows: np.ndarray, kinds: Sequence[str], passes: Sequence[Pass]) -> np.ndarray | None:
        """Sum of the weights of each kind; None where there is one kind alone and its sum shows afterwards."""
        if all(kind in self._known for kind in kinds):
            return np.array([self._known[kind][rows].sum() for kind in kinds], dtype=np.float64)
        if len(kinds) == 1:
            return None
        totals = np.zeros(len(kinds))
        with self._beforehand():
            for one in passes:
                with self.passes.model.autocast():
                    totals += self._sums(one, kinds, note=False)[1].cpu().numpy()
        return process().sum(totals)

    def _tau_by(self, kinds: Sequence[str], passes: Sequence[Pass]) -> float:
        """The temperature that the logits of a step give it, from passes without gradient."""
        first, self._step_tau = FirstTokens([], [], []), self.tau
        with self._beforehand():
            for one in passes:
                with self.passes.model.autocast():
                    first.add(self.read(one, kinds))
        return self.objective.next_tau(FirstTokens.together(process().gather(first)), self.tau)

    @contextmanager
    def _beforehand(self) -> Iterator[None]:
        """Passes without gradient, which drop out what those with gradient will."""
        device = self.passes.model.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield

    def _sums(self, one: Pass, kinds: Sequence[str], note: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted losses and weights of a pass, summed by kind. Returns: both [kinds], the second without gradient."""
        tokens = self.read(one, kinds)
        if note and self._adapts_after:
            self._first.add(tokens)
        losses, weights = self.objective.terms(tokens)
        weights = weights.detach()
        counted = torch.where(weights > 0, losses, 0.0) * weights
        zeros = losses.new_zeros(len(kinds))
        return zeros.index_add(0, tokens.answers, counted), zeros.index_add(0, tokens.answers, weights)

    def read(self, one: Pass, kinds: Collection[str]) -> AnswerTokens:
        """The answer tokens of a pass."""
        return self.passes.read(one, kinds, self.reader, self._step_tau)

    def after_step(self) -> None:
        """See :class:`StepLoss`; an adaptive temperature follows the logits of the whole step."""
        if self.objective.adapts_before:
            self.tau = self._step_tau
            return
        first = FirstTokens.together(process().gather(self._first)) if self.objective.adapts else self._first
        self.tau, self._first = self.objective.next_tau(first, self.tau), FirstTokens([], [], [])
        self._step_tau = self.tau

    @property
    def _adapts_after(self) -> bool:
        return self.objective.adapts and not self.objective.adapts_before

    def record(self) -> dict[str, Any]:
        """See :class:`StepLoss`."""
        return {"tau": self.tau} if self.objective.adapts else {}

    def state(self) -> dict[str, Any]:
        """See :class:`StepLoss`."""
        return {"tau": self.tau}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`StepLoss`."""
        self.tau = self._step_tau = state["tau"]
