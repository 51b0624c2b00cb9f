"""The trials of a search in an SQLite file, shared by processes and resumable.

A trial is held by a lock on a file, which the operating system releases when its process ends in whatever way. So a
trial that is running and not locked is one whose process was killed: the next process that looks continues it, under
its own number and with what was drawn for it. What is drawn for a trial depends on the trials before it and on its
number, not on how often the search was stopped.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from recbole_llm.experiment.tune_plan import Plan
from recbole_llm.stages import stage_seed

DATABASE = "study.db"
WAIT = 1.0  # seconds between looks at the trials of other processes
BUSY = 120  # seconds that a process waits for another one's transaction
log = logging.getLogger(__name__)


class Pruned(Exception):
    """A trial has fallen behind and is ended; its settings are not refused, they are not worth more epochs."""


def is_rung(step: int, first: int, reduction: int) -> bool:
    """Whether trials are compared after as many validated epochs: ``first``, ``first * reduction``, and so on.

    Example:
        >>> [step for step in range(1, 30) if is_rung(step, 2, 3)]
        [2, 6, 18]
    """
    while first < step:
        first *= reduction
    return first == step


def falls_behind(score: float, others: Sequence[float], reduction: int, bigger: bool) -> bool:
    """Whether a score is outside the best one in ``reduction`` of all scores at its rung, itself included (ASHA).

    Li et al., A System for Massively Parallel Hyperparameter Tuning, arXiv 1810.05934, algorithm 2, in its stopping
    form: a trial goes on at once instead of waiting for its promotion. Equal scores go on together, and the first does.

    Args:
        score: score of the trial.
        others: scores of other trials after as many epochs.
        reduction: one in so many goes on, at least one.
        bigger: whether larger is better.

    Example:
        >>> falls_behind(0.2, [0.1, 0.3], 3, bigger=True), falls_behind(0.3, [0.1, 0.3], 3, bigger=True)
        (True, False)
    """
    scores = sorted([score, *others], reverse=bigger)
    last = scores[max(1, len(scores) // reduction) - 1]
    return score < last if bigger else score > last


class Attempt:
    """A trial that this process holds.

    Args:
        study: study of the trial.
        trial: Optuna's.
        lock: lock of the trial's file, held.

    Attributes:
        number: number of the trial, from 0.
        values: setting to value.
    """

    def __init__(self, study: Study, trial: optuna.Trial, lock: FileLock) -> None:
        self._study, self._trial, self._lock = study, trial, lock
        self._known, self._step = trial.storage.get_trial(trial._trial_id).intermediate_values, 0
        self.number = trial.number
        self.values = study.draw(trial)

    def report(self, epoch: int, score: float) -> None:
        """Note the score of a validated epoch; those of all training stages count on.

        Raises:
            Pruned: the trial has fallen behind.
        """
        self._step += 1
        if self._step not in self._known:  # else it is a killed process's trial that comes by here again
            self._trial.report(score, self._step)
        if self._study.is_behind(self.number, self._step, score):
            raise Pruned

    def finish(self, score: float, **facts: Any) -> None:
        """End it with its score, and facts as plain data."""
        self._end(TrialState.COMPLETE, score, facts)

    def prune(self) -> None:
        """End it as one that has fallen behind."""
        self._end(TrialState.PRUNED, None, {"epochs": self._step})

    def fail(self, reason: str) -> None:
        """End it as one that gave no score."""
        self._end(TrialState.FAIL, None, {"reason": reason, "epochs": self._step})

    def release(self) -> None:
        """Give the trial up as it is, for whoever takes it up."""
        self._lock.release()

    def _end(self, state: TrialState, score: float | None, facts: dict[str, Any]) -> None:
        for name, value in facts.items():
            self._trial.set_user_attr(name, value)
        self._study.tell(self._trial, score, state)
        self.release()


class Study:
    """The trials of one search.

    Args:
        folder: keeps them.
        plan: what is searched, and how.
        bigger: whether a larger score is better.
        seed: what is drawn depends on it.
    """

    def __init__(self, folder: Path, plan: Plan, bigger: bool, seed: int) -> None:
        self.folder, self.plan, self.bigger, self.seed = folder, plan, bigger, seed
        (folder / ".trials").mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".trials" / "draw.lock")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._lock:
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{(folder / DATABASE).resolve()}", engine_kwargs={"connect_args": {"timeout": BUSY}}
            )
            self._study = optuna.create_study(
                storage=storage, study_name="tune", direction="maximize" if bigger else "minimize", load_if_exists=True
            )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by number."""
        found: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return found

    def attempts(self) -> Generator[Attempt, None, None]:
        """Trials for this process to run, until the last one of the search has ended in whatever process.

        What is taken is held until it ends, or the iterator goes on or is closed.
        """
        told = False
        while True:
            with self._lock:
                attempt = self._take()
                is_over = attempt is None and not any(trial.state == TrialState.RUNNING for trial in self.trials)
            if is_over:
                return
            if attempt is None:
                if not told:
                    log.info("All trials are taken; waiting for those that other processes run.")
                told = True
                time.sleep(WAIT)
                continue
            try:
                yield attempt
            finally:
                attempt.release()

    def _take(self) -> Attempt | None:
        trials = self.trials
        for trial in trials:
            if trial.state == TrialState.RUNNING and (lock := self._try(trial.number)):
                if self.trials[trial.number].state != TrialState.RUNNING:  # it ended between the list and the lock
                    lock.release()
                    continue
                log.info("Trial %d was stopped before its end; resuming it.", trial.number + 1)
                self._study.sampler = self._sampler(trial.number)
                return Attempt(self, optuna.Trial(self._study, trial._trial_id), lock)
        if len(trials) >= self.plan.n_trials:
            return None
        lock = self._try(len(trials))
        assert lock is not None, "a trial that does not exist yet is held"
        self._study.sampler = self._sampler(len(trials))
        return Attempt(self, self._study.ask(), lock)

    def _try(self, number: int) -> FileLock | None:
        lock = FileLock(self.folder / ".trials" / f"{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """The values of a trial by setting, those that are not drawn yet drawn.

        What is drawn for all of them at once comes first, by the trial's sampler. Any other has a sampler of its own,
        as a process may be killed between two.
        """
        _ = trial.relative_params  # Optuna computes it when it is first read
        values = {}
        for name, dimension in self.plan.space.items():
            self._study.sampler = self._sampler(trial.number, name)
            values[name] = dimension.value(dimension.draw(trial, name))
        return values

    def _sampler(self, number: int, *setting: str) -> BaseSampler:
        """Draws for one trial, or for one setting of it, from a seed of its own."""
        seed = stage_seed(self.seed, "tune", number, *setting) % 2**32
        if self.plan.sampler == "tpe":
            return TPESampler(seed=seed)
        if self.plan.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls this sampler experimental
            return PartialFixedSampler(self.plan.point(number), RandomSampler(seed=seed))

    def is_behind(self, number: int, step: int, score: float) -> bool:
        """Whether a trial is to end after as many validated epochs."""
        plan = self.plan
        if plan.pruner == "none" or not is_rung(step, plan.asha_min_epochs, plan.asha_reduction):
            return False
        others = [
            trial.intermediate_values[step]
            for trial in self.trials
            if trial.number != number and step in trial.intermediate_values
        ]
        return falls_behind(score, others, plan.asha_reduction, self.bigger)

    def tell(self, trial: optuna.Trial, score: float | None, state: TrialState) -> None:
        """End a trial."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.tell(trial, score, state=state)

    def scores_of(self, run: str) -> dict[int, float]:
        """Validation scores by epoch of a trial that ended with this run; none where there is no such trial."""
        same = (trial for trial in self.trials if trial.user_attrs.get("run") == run)
        return next((trial.intermediate_values for trial in same), {})

    @property
    def best(self) -> FrozenTrial | None:
        """The trial with the best score, the first of equals; None where none has ended with one."""
        ended = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        sign = 1.0 if self.bigger else -1.0
        return max(ended, key=lambda trial: sign * float(trial.value or 0.0), default=None)

    def importances(self) -> dict[str, float]:
        """How much each setting decides whether a trial is among the best (PED-ANOVA, arXiv 2304.10255), largest first.

        The numbers sum to 1; there are none before two trials have ended with different scores.
        """
        ended = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        if len({trial.value for trial in ended}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found: dict[str, float] = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return found
