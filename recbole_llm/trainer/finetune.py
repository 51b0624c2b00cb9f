"""Fine-tuning: epochs of token-mean steps on one or two targets, validation, the best epoch kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from recbole_llm.curriculum import DISTILLED, REAL, Curriculum, target_weights
from recbole_llm.errors import InputError
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.prompt.batches import epoch_steps, micro_batches
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer.checkpoint import TrainingState, load_state, pack_optimizer, save_state, unpack_optimizer

LENGTH_WINDOW = 16  # optimiser steps among whose rows ``group_by_length`` sorts
log = logging.getLogger(__name__)


@dataclass
class EarlyStopping:
    """First strict best; an equal value is no improvement (SOFT, arXiv 2505.20771).

    Attributes:
        patience: stop after this many validations in a row without improvement; 0 never stops.
        bigger: whether a larger score is better.
    """

    patience: int
    bigger: bool = True
    best_score: float | None = None
    best_epoch: int = 0
    waited: int = 0

    def update(self, epoch: int, score: float) -> bool:
        """Take the score of an epoch (1-based). Returns: whether it is the best so far."""
        better = self.best_score is None or (score > self.best_score if self.bigger else score < self.best_score)
        if better:
            self.best_score, self.best_epoch, self.waited = score, epoch, 0
        else:
            self.waited += 1
        return better

    @property
    def stop(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.waited


def make_schedule(optimizer: torch.optim.Optimizer, settings: FineTuneSettings, steps: int) -> LambdaLR:
    """The learning rate by step, from the first value that is not 0.

    Without a floor the schedules are Hugging Face's from their second value on: the first is 0 and would waste a step.
    In a few-shot run an epoch can be that one step, and its weights would be the untuned ones.
    """
    warmup = settings.warmup(steps)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if settings.lr_floor > 0 or settings.lr_scheduler not in ("constant", "linear", "cosine"):
        first = 0 if settings.lr_floor > 0 else 1
        name, floor = settings.lr_scheduler, settings.lr_floor
        return LambdaLR(optimizer, lambda step: rate_share(step + first, steps + first, warmup, name, floor))
    if settings.lr_scheduler == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup, last_epoch=0)
    schedules = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}
    return schedules[settings.lr_scheduler](optimizer, warmup, steps + 1, last_epoch=0)


def rate_share(step: int, steps: int, warmup: int, schedule: str, floor: float = 0.0) -> float:
    """Learning rate at a step as a share of the largest one.

    It rises from ``floor`` to 1 over the warm-up and, unless it is constant, falls to ``floor`` at the last step.

    Args:
        step: counted from 0.
        steps: of the whole training.
        warmup: steps of warm-up.
        schedule: ``constant``, ``linear``, ``cosine`` over the steps after the warm-up, or ``cosine_unshifted`` over
            all steps, which drops a little where the warm-up ends (the code of LLaRA, arXiv 2312.02445).
        floor: in [0, 1).
    """
    if step < warmup:
        return floor + (1 - floor) * step / warmup
    if schedule == "constant":
        return 1.0
    first = 0 if schedule == "cosine_unshifted" else warmup
    passed = min((step - first) / max(steps - first, 1), 1.0)
    left = 1 - passed if schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2
    return floor + (1 - floor) * left


@dataclass
class Lessons:
    """What a curriculum adds to fine-tuning: a second target per example, and its weight in each epoch.

    Attributes:
        curriculum: gives the weight.
        distilled: token ids of the distilled answer to each example's prompt.
        distances: mean distance of generated and true titles before training and after each epoch; empty where the
            curriculum asks for none.
        measure: gives that distance for the model as it stands.
    """

    curriculum: Curriculum
    distilled: Sequence[list[int]]
    distances: list[float] = field(default_factory=list)
    measure: Callable[[], float] | None = None


class FineTuning:
    """One fine-tuning of a model's adapter on a list of examples.

    The loss of an epoch is (1 - weight) * L_real + weight * L_distilled, each the mean over its own response tokens of
    a step (SOFT, arXiv 2505.20771); without lessons it is L_real.

    Args:
        model: the recommender; its adapter's weights are trained in place.
        examples: prompt and response token ids of every row.
        settings: see :class:`FineTuneSettings`.
        optimizer: over the trainable weights.
        validate: gives the validation metrics of the model as it stands, or None when there is nothing to validate on.
        valid_metric: the metric that chooses the epoch.
        bigger: whether a larger value of it is better.
        on_epoch: called with the epoch's record and whether its validation is the best so far.
        progress: whether to show a progress bar.
        lessons: the curriculum, if there is one.
        histories: item ids of each example's history, for models whose weights depend on whose row they compute.
    """

    def __init__(
        self,
        model: LLMRecommender,
        examples: Sequence[TokenPair],
        settings: FineTuneSettings,
        optimizer: torch.optim.Optimizer,
        validate: Callable[[], dict[str, float]] | None,
        valid_metric: str,
        bigger: bool,
        on_epoch: Callable[[dict[str, Any], bool], None] = lambda record, is_best: None,
        progress: bool = False,
        lessons: Lessons | None = None,
        histories: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.model, self.settings, self.optimizer, self.lessons = model, settings, optimizer, lessons
        self.validate, self.valid_metric, self.on_epoch, self.progress = validate, valid_metric, on_epoch, progress
        self.histories = histories
        self.prompts = [prompt for prompt, _ in examples]
        self.prompt_lengths = np.array([len(prompt) for prompt in self.prompts])
        self.targets: dict[str, Sequence[list[int]]] = {REAL: [response for _, response in examples]}
        if lessons is not None:
            self.targets[DISTILLED] = lessons.distilled
        self.answer_lengths = {
            name: np.array([len(answer) for answer in answers]) for name, answers in self.targets.items()
        }
        self.trainable = [weight for group in optimizer.param_groups for weight in group["params"]]
        steps = math.ceil(len(examples) / settings.train_batch_size) * settings.epochs
        if settings.warmup(steps) >= steps:
            log.warning("warmup_steps %d is not shorter than training (%d steps).", settings.warmup(steps), steps)
        self.scheduler = make_schedule(optimizer, settings, steps)
        self.stopping = EarlyStopping(settings.stopping_step if validate else 0, bigger)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.epoch = 0

    def run(self, folder: Path) -> list[dict[str, Any]]:
        """Train from the newest state in ``folder``, or from the start, to the end or to early stopping.

        Afterwards the model is in the state of the best epoch.

        Returns:
            One record per epoch: epoch, train_loss, learning_rate, seconds, tokens_per_second, valid metrics; with
            gates also their usage and entropy over the training rows; with lessons also the weight of the epoch, the
            losses on both targets (None where not computed) and the distance after it (None where not needed).
        """
        self._resume(folder)
        while self.epoch < self.settings.epochs and not self.stopping.stop:
            self.epoch += 1
            record = self._train_epoch()
            try:
                self._validate_epoch(record)
                self._measure_distance(record)
            except FloatingPointError as error:  # the last step went astray, and no later loss can show it
                raise InputError(f"learning_rate: after epoch {self.epoch}, {error}; set a lower one") from error
            self.history.append(record)
            self.on_epoch(record, "valid" in record and self.stopping.best_epoch == self.epoch)
            save_state(folder, self._state())
        if self.stopping.best_score == 0 and self.stopping.bigger:
            log.warning("%s was 0 in every epoch: the choice of epoch 1 is arbitrary.", self.valid_metric)
        self.model.adapter.load_trainable_state(self.model.llm, self.best)
        return self.history

    def _train_epoch(self) -> dict[str, Any]:
        self.model.train()
        seed = self.model.stage_seed("fine-tune", self.epoch)
        torch.manual_seed(seed)  # dropout of an epoch does not depend on whether the run was resumed before it
        weight = self._weight()
        weights = target_weights(weight)
        lengths = self.prompt_lengths + sum(self.answer_lengths[name] for name in weights)
        steps = epoch_steps(
            len(self.prompts),
            self.settings.train_batch_size,
            np.random.default_rng(seed),
            lengths=lengths,
            length_window=LENGTH_WINDOW if self.settings.group_by_length else 0,
        )
        started, losses, tokens = time.perf_counter(), np.zeros(len(weights)), 0
        title = f"Train {self.epoch}/{self.settings.epochs}"
        for done, rows in enumerate(bar := tqdm(steps, desc=title, ncols=100, disable=not self.progress), start=1):
            with self._training_step((self.epoch - 1) * len(steps) + done - 1, self.settings.epochs * len(steps)):
                losses += self._step(rows, weights, lengths)
            tokens += int(lengths[rows].sum())
            speed = tokens / (time.perf_counter() - started)
            bar.set_postfix_str(f"loss {losses @ list(weights.values()) / done:.4f}, {speed:,.0f} tokens/s")
        seconds = time.perf_counter() - started
        losses /= len(steps)
        record = {
            "epoch": self.epoch,
            "train_loss": float(losses @ list(weights.values())),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }
        if self.histories is not None:
            record |= self.model.adapter.row_facts(self.model.llm, self.histories)
        if self.lessons is not None:
            by_target = dict(zip(weights, losses.tolist(), strict=True))
            record |= {"weight": weight, **{f"{name}_loss": by_target.get(name) for name in (REAL, DISTILLED)}}
        return record

    def _weight(self) -> float:
        """Weight of the distilled answers in this epoch."""
        return 0.0 if self.lessons is None else self.lessons.curriculum.weight(self.lessons.distances)

    def _step(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """One optimiser step; returns the loss on each target.

        A loss is the mean over all tokens of that target in the step, however its rows are cut into batches.
        """
        counts = np.array([self.answer_lengths[name][rows].sum() for name in weights])
        scale = torch.tensor(list(weights.values()) / counts, dtype=torch.float32, device=self.model.device)
        self.optimizer.zero_grad(set_to_none=True)
        totals = np.zeros(len(weights))
        for batch in micro_batches(lengths[rows], self.settings.micro_batch_tokens, sort=True):
            chosen = rows[batch]
            answers = [[self.targets[name][row] for name in weights] for row in chosen]
            with self._autocast(), self._conditioned_on(chosen):
                losses = self.model.answer_loss([self.prompts[row] for row in chosen], answers)
                weighted = (losses * scale).sum()
            weighted.backward()
            totals += losses.detach().cpu().numpy()
        totals /= counts
        if not np.isfinite(totals).all():
            loss = float(totals @ list(weights.values()))
            raise InputError(f"learning_rate: the training loss is {loss} in epoch {self.epoch}; set a lower one")
        if self.settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trainable, self.settings.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        return totals

    def _training_step(self, step: int, n_steps: int) -> AbstractContextManager[Any]:
        return nullcontext() if self.histories is None else self.model.training_step(step, n_steps)

    def _conditioned_on(self, rows: np.ndarray) -> AbstractContextManager[Any]:
        if self.histories is None:
            return nullcontext()
        return self.model.conditioned_on([self.histories[row] for row in rows])

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.settings.enable_amp)

    def _validate_epoch(self, record: dict[str, Any]) -> None:
        if not self.validate or self.settings.eval_step <= 0 or self.epoch % self.settings.eval_step:
            if self.stopping.best_score is None:  # nothing has chosen an epoch yet: the last one stands
                self._keep_best()
            return
        record["valid"] = self.validate()
        if self.stopping.update(self.epoch, record["valid"][self.valid_metric]):
            self._keep_best()

    def _measure_distance(self, record: dict[str, Any]) -> None:
        """Measure how far the answers are from the true titles, where another epoch will ask for it."""
        if self.lessons is None:
            return
        record["distance"] = None
        if self.lessons.measure and self.epoch < self.settings.epochs and not self.stopping.stop:
            record["distance"] = self.lessons.measure()
            self.lessons.distances.append(record["distance"])

    def _keep_best(self) -> None:
        self.best = self.model.adapter.trainable_state(self.model.llm)

    def _state(self) -> TrainingState:
        progress = {
            "history": self.history,
            "scheduler": self.scheduler.state_dict(),
            "stopping": asdict(self.stopping),
        }
        if self.lessons is not None:
            progress["distances"] = self.lessons.distances
        trainable = self.model.adapter.trainable_state(self.model.llm)
        return TrainingState(self.epoch, trainable, self.best, pack_optimizer(self.optimizer), progress)

    def _resume(self, folder: Path) -> None:
        state = load_state(folder)
        if state is None:
            return
        log.info("Resuming after epoch %d.", state.epoch)
        self.epoch, self.best = state.epoch, dict(state.best)
        self.model.adapter.load_trainable_state(self.model.llm, state.trainable)
        unpack_optimizer(self.optimizer, state.optimizer)
        self.scheduler.load_state_dict(state.progress["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.history = state.progress["history"]
        self.stopping = EarlyStopping(**state.progress["stopping"])
        if self.lessons is not None:
            self.lessons.distances = state.progress["distances"]
