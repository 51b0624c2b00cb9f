"""The loss of a preference stage: right against wrong answers, all answers of a row in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.curriculum import REAL
from recbole_llm.distributed import process
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.objective.preferences import Contrasts, PreferenceObjective
from recbole_llm.prompt.trunk import Pass
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import StepLoss


def wrong_kinds(count: int, first: int = 1) -> list[str]:
    """Names of k wrong answers of a row, numbered from ``first``."""
    return [f"wrong {number}" for number in range(first, first + count)]


CrossRowMask = Callable[[np.ndarray], np.ndarray]
"""From m rows, int64 [m], to bool [m, m * k]: True where a row's right answer may be contrasted with a wrong one."""


@dataclass(frozen=True)
class ContrastRows:
    """Wrong answers of the rows of a preference stage: where there are some, their reference and their contrasts.

    Attributes:
        mask: bool [rows, k], True where a row has a wrong answer.
        reference: float32 [rows, 1 + k], log-probabilities of right and wrong answers before the stage; where there is
            no wrong answer, that of the right one.
        across: which right and wrong answers of some rows may stand against one another; None where rows are apart.
        prompts: float32 [rows, d], vectors of the prompts; None where all are alike.
    """

    mask: np.ndarray
    reference: np.ndarray
    across: CrossRowMask | None = None
    prompts: np.ndarray | None = None

    def of_draw(self, number: int, count: int, across: CrossRowMask | None = None) -> ContrastRows:
        """The rows with the k wrong answers of one draw, where those of several draws lie side by side.

        Args:
            number: number of the draw, from 0.
            count: k.
            across: mask across rows for the wrong answers of this draw; None where rows are apart.
        """
        own = np.arange(number * count, (number + 1) * count)
        return replace(self, mask=self.mask[:, own], reference=self.reference[:, [0, *(own + 1)]], across=across)


def answer_sums(passes: Passes, one: Pass, kinds: Sequence[str], reader: AnswerReader) -> Tensor:
    """Log-probability of each row's each answer, EOS included. Returns: float32 [rows of the pass, kinds]."""
    tokens = passes.read(one, kinds, reader, tau=1.0)
    if tokens.log_probs is None:
        raise ValueError("the reader reads no log-probabilities")
    n_rows = len(one.rows)
    sums = tokens.log_probs.new_zeros(n_rows * len(kinds))
    return sums.index_add(0, tokens.rows * len(kinds) + tokens.answers, tokens.log_probs).view(n_rows, len(kinds))


class PreferenceLoss(StepLoss):
    """A preference loss, the mean over the step's rows that have a wrong answer; beside it, if asked, the right ones'.

    Dropout is off, as for the reference. Where rows stand against one another's answers, a step of several passes is
    computed twice: log-ratios without gradient first, whose derivatives the passes with gradient then carry on.

    Args:
        passes: passes of the training; their answers are the right one and the wrong ones of all draws.
        objective: the loss of contrasts.
        beta: strength.
        temperature: temperature of the weights by likeness of prompts.
        draws: draws of the rows; a draw for every epoch, or one for all.
        reader: reads the log-probabilities.
        nll_weight: weight of the right answers' negative log-likelihood, the mean over their tokens in the step, those
            of rows without a wrong answer among them.
    """

    dropout = False
    scheduled_prompts = False

    def __init__(
        self,
        passes: Passes,
        objective: PreferenceObjective,
        beta: float,
        temperature: float,
        draws: Sequence[ContrastRows],
        reader: AnswerReader,
        nll_weight: float = 0.0,
    ) -> None:
        super().__init__(passes)
        self.objective, self.beta, self.temperature = objective, beta, temperature
        self.draws, self.reader, self.nll_weight = list(draws), reader, nll_weight
        self._draw = 0
        self._ratios = np.zeros(3)  # sums over rows of a and of the mean b, and the number of rows
        self._right = np.zeros(2)  # loss and tokens of the right answers
        self._begun = (self._ratios, self._right)  # both as they were before the step

    @property
    def contrast_rows(self) -> ContrastRows:
        """The contrast rows of the current epoch."""
        return self.draws[self._draw % len(self.draws)]

    @property
    def kinds(self) -> list[str]:
        """The answers of the epoch, the right one first."""
        count = self.contrast_rows.mask.shape[1]
        return [REAL, *wrong_kinds(count, 1 + count * (self._draw % len(self.draws)))]

    def lengths(self, kinds: Collection[str]) -> np.ndarray:
        """See :class:`StepLoss`; all answers of a row are computed."""
        return super().lengths(self.kinds)

    def backward(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """See :class:`StepLoss`; a step without wrong answers has no preference loss, and no gradient of one."""
        self._begun = self._ratios.copy(), self._right.copy()
        return self._step(rows, lengths)

    def undo_step(self) -> None:
        """See :class:`StepLoss`."""
        self._ratios, self._right = self._begun

    def _step(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        total = int(self.contrast_rows.mask[rows].any(axis=1).sum())
        if not total and not self.objective.across_rows and not self.nll_weight:
            return np.zeros(1)
        passes = self.passes.of_step(rows, self.kinds, lengths)
        n_tokens = int(self.passes.answer_lengths[REAL][rows].sum())
        if self.objective.across_rows and len(passes) > 1:
            return np.array([self._in_two(passes, n_tokens)])
        loss = 0.0
        for one in process().own(passes):
            own = np.array(one.rows)
            with self.passes.model.autocast():
                sums = self._sums(one)
            share = int(self.contrast_rows.mask[own].any(axis=1).sum()) / max(total, 1)
            value = self._value(self._log_ratios(sums, own), own)  # in float32, as where a step has several passes
            value = value * (1.0 if self.objective.across_rows else share) + self._nll(sums, own, n_tokens)
            self.tokens += one.n_tokens
            value.backward()
            loss += float(value.detach())
        return np.array([loss])

    def _in_two(self, passes: Sequence[Pass], n_tokens: int) -> float:
        """A step whose rows stand against one another, from passes that are not kept."""
        rows, me = [np.array(one.rows) for one in passes], process()
        with torch.no_grad(), self.passes.model.autocast():
            found = me.share_out(
                passes, lambda one: self._log_ratios(self._sums(one), np.array(one.rows), told=False).cpu()
            )
        ratios = torch.cat(found).to(self.passes.model.device).requires_grad_()
        value = self._value(ratios, np.concatenate(rows))
        (slopes,) = torch.autograd.grad(value, ratios)
        loss = float(value.detach()) if me.is_main else 0.0
        parts = list(zip(passes, rows, slopes.split([len(own) for own in rows]), strict=True))
        for one, own, slope in me.own(parts):
            with self.passes.model.autocast():
                sums = self._sums(one)
                nll = self._nll(sums, own, n_tokens)
                carried = (self._log_ratios(sums, own) * slope).sum() + nll
            self.tokens += one.n_tokens
            carried.backward()
            loss += float(nll.detach())
        return loss

    def _sums(self, one: Pass) -> Tensor:
        """Log-probabilities of right and wrong answers of a pass. Returns: float32 [rows, 1 + k]."""
        return answer_sums(self.passes, one, self.kinds, self.reader).float()

    def _nll(self, sums: Tensor, rows: np.ndarray, n_tokens: int) -> Tensor:
        """The part of some rows in the weighted loss of the step's right answers, which have ``n_tokens``."""
        if not self.nll_weight:
            return sums.new_zeros(())
        total = -sums[:, 0].sum()
        self._right += [float(total.detach()), self.passes.answer_lengths[REAL][rows].sum()]
        return self.nll_weight / n_tokens * total

    def _log_ratios(self, sums: Tensor, rows: np.ndarray, told: bool = True) -> Tensor:
        """Log-ratios of right and wrong answers of rows. Returns: float32 [rows, 1 + k]."""
        ratios = sums - torch.from_numpy(self.contrast_rows.reference[rows]).to(sums)
        if told:
            mask = self.contrast_rows.mask[rows]
            values, kept = ratios.detach().cpu().double().numpy(), mask.any(axis=1)
            wrong = (values[:, 1:] * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
            self._ratios += [values[kept, 0].sum(), wrong[kept].sum(), kept.sum()]
        return ratios

    def _value(self, ratios: Tensor, rows: np.ndarray) -> Tensor:
        contrast_rows, device = self.contrast_rows, ratios.device
        mask = torch.from_numpy(contrast_rows.mask[rows]).to(device)
        across = vectors = None
        if contrast_rows.across is not None:
            across = torch.from_numpy(contrast_rows.across(rows)).to(device)
        if contrast_rows.prompts is not None:
            vectors = torch.from_numpy(contrast_rows.prompts[rows]).to(device)
        contrasts = Contrasts(ratios[:, 0], ratios[:, 1:], mask, across, vectors)
        return self.objective.loss(contrasts, self.beta, self.temperature)

    def after_epoch(self) -> None:
        """See :class:`StepLoss`; the next epoch has the next draw."""
        self._draw += 1

    def record(self) -> dict[str, Any]:
        """See :class:`StepLoss`; mean log-ratios of the epoch's right and wrong answers, and the right ones' loss."""
        right, wrong, count, loss, tokens = process().sum(np.concatenate([self._ratios, self._right]))
        self._ratios, self._right = np.zeros(3), np.zeros(2)
        found = {"right_ratio": right / count, "wrong_ratio": wrong / count} if count else {}
        return {**found, "right_loss": loss / tokens} if self.nll_weight and tokens else found

    def state(self) -> dict[str, Any]:
        """See :class:`StepLoss`."""
        gathered = process().sum(np.concatenate([self._ratios, self._right]))
        drawn = {"draw": self._draw} if len(self.draws) > 1 else {}
        return {**drawn, "gathered": gathered.tolist()} if gathered.any() else drawn

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`StepLoss`."""
        self._draw = state.get("draw", self._draw)
        if "gathered" in state and process().is_main:  # it goes on for all
            self._ratios, self._right = np.split(np.array(state["gathered"]), [3])
