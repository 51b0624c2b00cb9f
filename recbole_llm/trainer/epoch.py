"""One epoch of fine-tuning: its optimiser steps, from the first or from where a killed process left it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from recbole_llm.curriculum import DISTILLED, REAL, target_weights
from recbole_llm.distributed import process
from recbole_llm.model.base import LLMRecommender
from recbole_llm.progress import Bar
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.timeline import timeline
from recbole_llm.trainer.checkpoint import EpochSoFar
from recbole_llm.trainer.guards import check_alike
from recbole_llm.trainer.optimizer_step import OptimizerStep
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.shards import Shards
from recbole_llm.trainer.step_loss import StepLoss
from recbole_llm.training_state import set_random_state


class EpochSteps:
    """Takes the optimiser steps of epochs.

    Args:
        model: the recommender.
        passes: passes over its examples.
        loss: loss of a step.
        step: takes one optimiser step.
        settings: settings of the training.
        shards: the LLM's weights where they are dealt out over processes, else None.
        progress: whether to show a progress bar.
        after_step: called after every step with what the epoch has gathered.
    """

    def __init__(
        self,
        model: LLMRecommender,
        passes: Passes,
        loss: StepLoss,
        step: OptimizerStep,
        settings: FineTuneSettings,
        shards: Shards | None,
        progress: bool,
        after_step: Callable[[EpochSoFar], None],
    ) -> None:
        self._model, self._passes, self._loss, self._step = model, passes, loss, step
        self._settings, self._shards, self._progress, self._after_step = settings, shards, progress, after_step

    def take(
        self,
        epoch: int,
        last: int,
        weight: float,
        so_far: EpochSoFar | None = None,
        random: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, Any]:
        """Take the steps of an epoch.

        Args:
            epoch: number of the epoch, from 1.
            last: number of the last epoch of the training.
            weight: weight of the distilled answers in it.
            so_far: what a killed process had gathered.
            random: states of the random generators as it left them.

        Returns:
            What is told of the epoch; see :meth:`recbole_llm.trainer.finetune.FineTuning.run`.

        Raises:
            AstrayError: the loss or the gradient of a step is no number.
        """
        self._model.train(self._loss.dropout)
        seed, weights = self._model.stage_seed("fine-tune", epoch), target_weights(weight)
        torch.manual_seed(seed)  # what is not drawn by row and token does not depend on a resumption before the epoch
        lengths = self._loss.lengths(weights)
        steps = self._passes.steps(np.random.default_rng(seed), lengths, self._passes.rows_with(weights))
        if random is not None:
            set_random_state(random)
        so_far = so_far or EpochSoFar(np.zeros(len(weights)), np.zeros(len(weights)))
        self._loss.tokens = so_far.tokens if process().is_main else 0  # the main process goes on for all
        started = time.perf_counter() - so_far.seconds
        with self._shards.in_use() if self._shards is not None else nullcontext():
            self._take(steps, epoch, last, weights, lengths, so_far, started)
        self._loss.after_epoch()
        check_alike([weight for weight in self._model.llm.parameters() if weight.requires_grad])
        return self._record(epoch, weight, so_far, time.perf_counter() - started)

    def _take(
        self,
        steps: Sequence[np.ndarray],
        epoch: int,
        last: int,
        weights: Mapping[str, float],
        lengths: np.ndarray,
        so_far: EpochSoFar,
        started: float,
    ) -> None:
        """Take the steps that are still to be taken.

        Args:
            steps: the rows of each.
            epoch: see :meth:`take`.
            last: see :meth:`take`.
            weights: weights of the loss of each kind of answer.
            lengths: int64 [all rows], of :meth:`StepLoss.lengths`.
            so_far: what the epoch has gathered; it is gone on with.
            started: when the epoch began, had it begun in this process.
        """
        done_before, epochs = so_far.step, self._settings.epochs
        bar = Bar(
            steps[done_before:],
            desc=f"Train {epoch}/{epochs}",
            ncols=100,
            initial=done_before,
            total=len(steps),
            disable=not self._progress,
        )

        def advance(done: int) -> None:  # the share of all epochs
            timeline().advance((epoch - 1 + done / max(1, len(steps))) / last)

        advance(done_before)
        for done, rows in enumerate(bar, start=done_before + 1):
            place = (epoch - 1) * len(steps) + done - 1
            drawn = self._passes.draws.step(self._model.stage_seed("dropout", epoch, done))
            scheduled = self._loss.scheduled_prompts
            with self._model.training_step(place, epochs * len(steps)) if scheduled else nullcontext(), drawn:
                so_far.losses += self._step.take(rows, weights, lengths)
            so_far.counted += [self._passes.answer_lengths[name][rows].any() for name in weights]
            so_far.step, so_far.seconds = done, time.perf_counter() - started
            mean = so_far.means @ list(weights.values())
            advance(done)
            left = f", {found}" if (found := timeline().left()) else ""
            bar.set_postfix_str(f"loss {mean:.4f}, {self._loss.tokens / so_far.seconds:,.0f} tokens/s{left}")
            self._after_step(so_far)

    def _record(self, epoch: int, weight: float, so_far: EpochSoFar, seconds: float) -> dict[str, Any]:
        """What is told of an epoch whose steps are taken."""
        weights, losses = target_weights(weight), so_far.means
        n_tokens = sum(process().gather(self._loss.tokens))
        record: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": float(losses @ list(weights.values())),
            "learning_rate": self._step.learning_rate,
            "seconds": seconds,
            "tokens_per_second": n_tokens / seconds,
            **self._loss.record(),
        }
        record |= self._model.adapter.row_facts(self._model.llm, self._passes.histories)
        if DISTILLED in self._passes.answer_lengths:
            by_target = dict(zip(weights, losses.tolist(), strict=True))
            record |= {"weight": weight, **{f"{name}_loss": by_target.get(name) for name in (REAL, DISTILLED)}}
        return record
