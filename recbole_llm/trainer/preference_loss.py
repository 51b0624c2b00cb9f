"""The loss of a preference stage: right answers against wrong ones, all answers of a row in one pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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


def wrong_kinds(count: int) -> list[str]:
    """Names of the k wrong answers of a row."""
    return [f"wrong {number}" for number in range(1, count + 1)]


@dataclass(frozen=True)
class Opposites:
    """What a preference stage knows of its rows besides prompts and right answers.

    Attributes:
        mask: bool [rows, k], True where a row has a wrong answer.
        reference: float32 [rows, 1 + k], log-probabilities of right and wrong answers before the stage; where there is
            no wrong answer, that of the right one.
        across: bool [rows, rows * k], True where a row's right answer may stand against another row's wrong one; None
            where rows are apart.
        prompts: float32 [rows, d], vectors of the prompts; None where all are alike.
    """

    mask: np.ndarray
    reference: np.ndarray
    across: np.ndarray | None = None
    prompts: np.ndarray | None = None


def answer_sums(passes: Passes, one: Pass, kinds: Sequence[str], reader: AnswerReader) -> Tensor:
    """Log-probability of each row's each answer, EOS included. Returns: float32 [rows of the pass, kinds]."""
    tokens = passes.read(one, kinds, reader, tau=1.0)
    if tokens.log_probs is None:
        raise ValueError("the reader reads no log-probabilities")
    n_rows = sum(map(len, one.trees))
    sums = tokens.log_probs.new_zeros(n_rows * len(kinds))
    return sums.index_add(0, tokens.rows * len(kinds) + tokens.answers, tokens.log_probs).view(n_rows, len(kinds))


def rows_of(one: Pass) -> np.ndarray:
    """The rows of a pass in its order."""
    return np.array([row for tree in one.trees for row in tree], dtype=np.int64)


class PreferenceLoss(StepLoss):
    """A preference loss, the mean over the step's rows that have a wrong answer.

    Dropout is off, as for the reference. Where rows stand against one another's answers, a step of several passes is
    computed twice: log-ratios without gradient first, whose derivatives the passes with gradient then carry on.

    Args:
        passes: of the training; their answers are the right one and the wrong ones.
        objective: the loss of contrasts.
        beta: strength.
        temperature: of the weights by likeness of prompts.
        opposites: of the rows.
        reader: reads the log-probabilities.
    """

    dropout = False
    scheduled_prompts = False

    def __init__(
        self,
        passes: Passes,
        objective: PreferenceObjective,
        beta: float,
        temperature: float,
        opposites: Opposites,
        reader: AnswerReader,
    ) -> None:
        super().__init__(passes)
        self.objective, self.beta, self.temperature = objective, beta, temperature
        self.opposites, self.reader = opposites, reader
        self.kinds = [REAL, *wrong_kinds(opposites.mask.shape[1])]
        self._ratios = np.zeros(3)  # sums over rows of a and of the mean b, and the number of rows

    def lengths(self, kinds: Collection[str]) -> np.ndarray:
        """See :class:`StepLoss`; all answers of a row are computed."""
        return super().lengths(self.kinds)

    def backward(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """See :class:`StepLoss`; a step without wrong answers has a loss of 0 and no gradient."""
        passes, me = self.passes.of_step(rows, self.kinds, lengths), process()
        total = int(self.opposites.mask[rows].any(axis=1).sum())
        if not total and not self.objective.across_rows:
            return np.zeros(1)
        if self.objective.across_rows and len(passes) > 1:
            return np.array([self._in_two(passes)])
        loss = 0.0
        for one in me.own(passes):
            own = rows_of(one)
            share = 1.0 if self.objective.across_rows else int(self.opposites.mask[own].any(axis=1).sum()) / total
            with self._autocast():
                value = self._value(self._log_ratios(one, own), own) * share
            self.tokens += one.n_tokens
            value.backward()
            loss += float(value.detach())
        return np.array([loss])

    def _in_two(self, passes: Sequence[Pass]) -> float:
        """A step whose rows stand against one another, from passes that are not kept."""
        rows, me = [rows_of(one) for one in passes], process()
        with torch.no_grad(), self._autocast():
            found = me.share_out(passes, lambda one: self._log_ratios(one, rows_of(one), told=False).cpu())
        ratios = torch.cat(found).to(self.passes.model.device).requires_grad_()
        loss = self._value(ratios, np.concatenate(rows))
        (slopes,) = torch.autograd.grad(loss, ratios)
        parts = list(zip(passes, rows, slopes.split([len(own) for own in rows]), strict=True))
        for one, own, slope in me.own(parts):
            with self._autocast():
                carried = (self._log_ratios(one, own) * slope).sum()
            self.tokens += one.n_tokens
            carried.backward()
        return float(loss.detach()) if me.is_main else 0.0

    def _log_ratios(self, one: Pass, rows: np.ndarray, told: bool = True) -> Tensor:
        """Log-ratios of right and wrong answers of a pass. Returns: float32 [rows, 1 + k]."""
        sums = answer_sums(self.passes, one, self.kinds, self.reader).float()
        ratios = sums - torch.from_numpy(self.opposites.reference[rows]).to(sums)
        if told:
            mask = self.opposites.mask[rows]
            values, kept = ratios.detach().cpu().double().numpy(), mask.any(axis=1)
            wrong = (values[:, 1:] * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
            self._ratios += [values[kept, 0].sum(), wrong[kept].sum(), kept.sum()]
        return ratios

    def _value(self, ratios: Tensor, rows: np.ndarray) -> Tensor:
        opposites, device = self.opposites, ratios.device
        mask = torch.from_numpy(opposites.mask[rows]).to(device)
        across = vectors = None
        if opposites.across is not None:
            k = mask.shape[1]
            columns = (rows[:, None] * k + np.arange(k)).flatten()
            across = torch.from_numpy(opposites.across[np.ix_(rows, columns)]).to(device)
        if opposites.prompts is not None:
            vectors = torch.from_numpy(opposites.prompts[rows]).to(device)
        contrasts = Contrasts(ratios[:, 0], ratios[:, 1:], mask, across, vectors)
        return self.objective.loss(contrasts, self.beta, self.temperature)

    def record(self) -> dict[str, Any]:
        """See :class:`StepLoss`; mean log-ratios of right and wrong answers over the epoch's rows."""
        right, wrong, count = process().sum(self._ratios)
        self._ratios = np.zeros(3)
        return {"right_ratio": right / count, "wrong_ratio": wrong / count} if count else {}
