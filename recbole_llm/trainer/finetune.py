"""Fine-tuning: epochs of token-mean steps on one or two targets, validation, the best epoch kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recbole_llm.curriculum import DISTILLED, REAL, target_weights
from recbole_llm.distributed import needs_whole_llm, process
from recbole_llm.errors import InputError
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.settings.task_checks import LOSS
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer.checkpoint import EpochSoFar, TrainingState, load_state, save_state
from recbole_llm.trainer.distilled_targets import DistilledTargets
from recbole_llm.trainer.early_stopping import EarlyStopping
from recbole_llm.trainer.epoch import EpochSteps
from recbole_llm.trainer.guards import warmup_warning
from recbole_llm.trainer.optimizer_step import AstrayError, OptimizerStep
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.schedules import make_schedule
from recbole_llm.trainer.shards import Shards, deals_weights_out
from recbole_llm.trainer.step_loss import MeanNll, StepLoss
from recbole_llm.trainer.validation import Scored, Validation
from recbole_llm.training_state import pack_optimizer, random_state, unpack_optimizer

__all__ = ["DistilledTargets", "FineTuning", "MakeLoss"]
MakeLoss = Callable[[Passes, Sequence[torch.nn.Parameter]], StepLoss]
log = logging.getLogger(__name__)


class FineTuning:
    """One fine-tuning of a model's adapter on a list of examples.

    The loss of an epoch is (1 - weight) * L_real + weight * L_distilled, each the mean over its own response tokens of
    a step (SOFT, arXiv 2505.20771); without distilled targets it is L_real. An epoch goes over the examples that have
    an answer of a kind that counts in it.

    Args:
        model: the recommender; its adapter's weights are trained in place.
        examples: prompt and response token ids of every row.
        histories: item ids of each example's history; what differs between rows besides their prompts depends on them.
        settings: see :class:`FineTuneSettings`.
        optimizer: over the trainable weights.
        validation: how epochs are evaluated; None when there is nothing to validate on: then the last one stands.
        distilled: the second targets and their curriculum, if there are some.
        on_epoch: called with the record of every epoch.
        progress: whether to show a progress bar.
        trunks: trunks of the examples, where those of a user are computed together; None computes each apart.
        make_loss: gives the loss of a step, from the passes and the weights that learn; by default the mean negative
            log-likelihood of the answers.
        on_validated: called with the record of every validated epoch once it is kept, of those before a resumption
            too; may raise to end the training, which then can be resumed.
        more_answers: further answers to each example's prompt, by kind, that the loss reads.
        renewed: gives the examples as the model makes them now, where they may change between epochs.

    Attributes:
        best_evaluation: what the validation of the best epoch found; None where it was in an earlier process.
    """

    def __init__(
        self,
        model: LLMRecommender,
        examples: Sequence[TokenPair],
        histories: Sequence[Sequence[int]],
        settings: FineTuneSettings,
        optimizer: torch.optim.Optimizer,
        validation: Validation | None = None,
        distilled: DistilledTargets | None = None,
        *,
        on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
        progress: bool = False,
        trunks: Trunks | None = None,
        make_loss: MakeLoss = lambda passes, trainable: MeanNll(passes),
        on_validated: Callable[[dict[str, Any]], None] = lambda record: None,
        more_answers: Mapping[str, Sequence[list[int]]] | None = None,
        renewed: Callable[[], Sequence[TokenPair]] | None = None,
    ) -> None:
        self.model, self.settings, self.optimizer, self.distilled = model, settings, optimizer, distilled
        self.validation, self.on_epoch, self.on_validated = validation, on_epoch, on_validated
        prompts = [prompt for prompt, _ in examples]
        answers: dict[str, Sequence[list[int]]] = {REAL: [response for _, response in examples]}
        if distilled is not None:
            answers[DISTILLED] = distilled.answers
        self.passes = Passes(model, prompts, histories, {**answers, **(more_answers or {})}, settings, trunks)
        self.shards = self._deal_out() if deals_weights_out() else None
        trainable = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.loss = make_loss(self.passes, trainable)
        if self.shards is not None and type(self.loss) is not MeanNll:
            raise needs_whole_llm("objective", "this loss")  # of another package's model: settings do not tell
        self.scheduler = self._make_schedule()
        add_up = None if self.shards is not None else process().sum_gradients  # shards are added up as they are dealt
        self.step = OptimizerStep(self.loss, optimizer, self.scheduler, trainable, settings.max_grad_norm, add_up)
        self.steps = EpochSteps(
            model, self.passes, self.loss, self.step, settings, self.shards, progress, after_step=self._save_if_due
        )
        self.stopping = EarlyStopping(settings.stopping_step, validation.bigger) if validation else EarlyStopping(0)
        self._renewed = renewed
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.best_evaluation: Scored | None = None
        self.epoch, self._last = 0, settings.epochs
        # Of the epoch that is gone on with: what it had gathered, and the random generators
        self._left: tuple[EpochSoFar | None, Mapping[str, torch.Tensor] | None] = (None, None)
        self._folder: Path | None = None
        self._saved = time.monotonic()

    def run(self, folder: Path, begun: Path | None = None, until: int | None = None) -> list[dict[str, Any]]:
        """Train from the newest state in ``folder``, or from the start, to the end or to early stopping.

        Afterwards the model is in the state of the best epoch.

        Args:
            folder: where states are kept.
            begun: folder of a state to start from, of a training that is the same up to there.
            until: the last epoch, where it is not that of the settings.

        Returns:
            One record per epoch: epoch, train_loss, learning_rate, seconds, tokens_per_second; where it was validated,
            valid metrics and valid_loss; with gates also their usage and entropy over the training rows; with distilled
            targets also the weight of the epoch, the losses on both targets (None where not computed) and the distance
            after it (None where not needed).
        """
        self._folder, self._last = folder, until or self.settings.epochs
        self._resume(folder, begun)
        if self.shards is not None:
            self.shards.scatter()
        while self.epoch < self._last and not self.stopping.stop:
            self.epoch += 1
            record = self._train_epoch()
            try:
                self._validate_epoch(record)
                self._measure_distance(record)
            except FloatingPointError as error:  # the last step went astray, and no later loss can show it
                raise self._ended(f"after epoch {self.epoch}, {error}") from error
            self._end_epoch(record)
            self.history.append(record)
            self.on_epoch(record)
            self._save(self._state())
            if "valid" in record:
                self.on_validated(record)
        if self.validation and self.validation.bigger and self.stopping.best_score == 0:
            log.warning("%s was 0 in every epoch: the choice of epoch 1 is arbitrary.", self.validation.metric)
        self.model.adapter.load_trainable_state(self.model.llm, self.best)
        return self.history

    def _deal_out(self) -> Shards:
        """The LLM as shards, once what decides its passes is found out with the whole one."""
        if len(self.passes.answer_lengths) > 1:
            self.model.takes_branches(
                int((self.passes.prompt_lengths + sum(self.passes.answer_lengths.values())).max())
            )
        self.passes.prepare()
        shards = Shards(self.model, self.optimizer)
        self.passes.draws, self.passes.is_sharded = shards.draws, True
        return shards

    def _make_schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        steps = self._expected_steps()
        for warning in warmup_warning(self.settings.warmup(steps), steps):
            log.warning("%s.", warning)
        return make_schedule(self.optimizer, self.settings, steps)

    def _end_epoch(self, record: dict[str, Any]) -> None:
        """Let the model change what examples look like, where another epoch will read them."""
        if self._renewed is None or self.stopping.stop:
            return
        found = self.model.end_epoch(self.epoch, self.settings.epochs)
        if found is not None:
            record |= found
            self._renew()

    def _renew(self) -> None:
        """Read the examples as they are now."""
        if self._renewed is not None:
            examples = self._renewed()
            prompts = [prompt for prompt, _ in examples]
            self.passes.renew(prompts, {REAL: [response for _, response in examples]})

    def _expected_steps(self) -> int:
        """Optimiser steps of all epochs, estimated beforehand: an adaptive weight starts at 1."""
        epochs = self.settings.epochs
        first = later = len(self.passes.prompt_lengths)
        if self.distilled is not None and epochs:
            first = len(self.passes.rows_with(target_weights(self._weight())))
            later = later if self.distilled.curriculum.uses_distance else first
        of_first, of_later = (math.ceil(n / self.settings.train_batch_size) for n in (first, later))
        return of_first + (epochs - 1) * of_later if epochs else 0

    def _train_epoch(self) -> dict[str, Any]:
        """Take the steps of an epoch, those that a killed process has not taken."""
        left, self._left = self._left, (None, None)
        try:
            return self.steps.take(self.epoch, self._last, self._weight(), *left)
        except AstrayError as error:
            raise self._ended(f"{error} in epoch {self.epoch} (training rows {error.told_rows})") from error

    def _save_if_due(self, so_far: EpochSoFar) -> None:
        """Keep a state inside an epoch, where it is time."""
        if self._is_due():
            self._save(self._state(so_far))

    def _is_due(self) -> bool:
        """Whether it is time to save a state inside an epoch, for all processes alike; never with sharded weights."""
        minutes = self.settings.checkpoint_minutes
        if minutes is None or self.shards is not None:
            return False
        return process().from_main(time.monotonic() - self._saved >= 60 * minutes)

    def _save(self, state: TrainingState) -> None:
        if self._folder is not None and process().is_main:
            save_state(self._folder, state)
        self._saved = time.monotonic()

    def _weight(self) -> float:
        """Weight of the distilled answers in this epoch."""
        return 0.0 if self.distilled is None else self.distilled.weight

    def _ended(self, what: str) -> InputError:
        """The end of a training whose loss, gradient or weights are no numbers."""
        return InputError(f"learning_rate: {what}; set a lower one{self._kept()}", kind="numeric")

    def _kept(self) -> str:
        """Where the last whole epoch is, if there is one."""
        return f" (the state of epoch {self.epoch - 1} is in {self._folder})" if self.epoch > 1 else ""

    def _validate_epoch(self, record: dict[str, Any]) -> None:
        if not self.validation or self.settings.eval_step <= 0 or self.epoch % self.settings.eval_step:
            if self.stopping.best_score is None:  # nothing has chosen an epoch yet: the last one stands
                self._keep_best()
            return
        evaluation = self.validation.evaluate() if self.validation.evaluate else None
        loss = self.validation.loss() if self.validation.loss else None
        record["valid"] = {LOSS: loss} if evaluation is None else dict(evaluation.metrics)
        record |= {} if loss is None else {"valid_loss": loss}
        if self.stopping.update(self.epoch, record["valid"][self.validation.metric]):
            self._keep_best()
            self.best_evaluation = evaluation

    def _measure_distance(self, record: dict[str, Any]) -> None:
        """Measure how far the answers are from the true titles, where another epoch will ask for it."""
        if self.distilled is not None:
            has_next = self.epoch < self.settings.epochs and not self.stopping.stop
            record["distance"] = self.distilled.measured(has_next)

    def _keep_best(self) -> None:
        self.best = self.model.adapter.trainable_state(self.model.llm)

    def _state(self, so_far: EpochSoFar | None = None) -> TrainingState:
        """How training stands: after an epoch, or inside one that has gathered so much."""
        progress: dict[str, Any] = {
            "history": self.history,
            "scheduler": self.scheduler.state_dict(),
            "stopping": asdict(self.stopping),
        }
        if self.distilled is not None:
            progress["distances"] = self.distilled.distances
        if loss := self.loss.state():
            progress["loss"] = loss
        trainable = self.model.adapter.trainable_state(self.model.llm)
        tensors = (trainable, self.best, pack_optimizer(self.optimizer))
        if so_far is None:
            return TrainingState(self.epoch, *tensors, progress)
        so_far.tokens = sum(process().gather(self.loss.tokens))
        progress["epoch"] = so_far.to_dict()
        return TrainingState(self.epoch - 1, *tensors, progress, so_far.step, random_state())

    def _resume(self, folder: Path, begun: Path | None) -> None:
        """Go on from the newest state in one of two folders, if there is one."""
        state = load_state(folder)
        if state is not None:
            inside = f", step {state.step} of the next" if state.step else ""
            log.info("Resuming after epoch %d%s.", state.epoch, inside)
            self._go_on(state)
        elif begun is not None and (state := load_state(begun)) is not None:
            self._go_on(state)
            for record in self.history:
                self.on_epoch(record)
        for record in self.history:
            if "valid" in record:
                self.on_validated(record)

    def _go_on(self, state: TrainingState) -> None:
        """Bring everything to a state."""
        self.epoch, self.best = state.epoch, dict(state.best)
        if state.step:
            self._left = EpochSoFar.from_dict(state.progress["epoch"]), state.random
        self.model.adapter.load_trainable_state(self.model.llm, state.trainable)
        self._renew()
        unpack_optimizer(self.optimizer, state.optimizer)
        self.scheduler.load_state_dict(state.progress["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.history = state.progress["history"]
        self.stopping = EarlyStopping(**state.progress["stopping"])
        if self.distilled is not None:
            self.distilled.distances = state.progress["distances"]
        if "loss" in state.progress:
            self.loss.load_state(state.progress["loss"])
