"""The progress of a command through its stages, and the estimated time left.

Time left is claimed only where all of it was measured: stages of an earlier run of the same model in this command, or
of an earlier command with the same settings, and how far the training that is running has come. What was found on disk
took no work, so it is no measure of the work that it stands for; what it took when it was computed is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from statistics import mean

PREPARE, TRAIN, EVALUATE = "prepare", "train", "evaluate"
"""Stages of every run: its beginning (data and models), the training of a RecBole model, the evaluation."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """What a run is to consist of.

    Attributes:
        label: the model's name in the table; runs of one label differ in their seed at most.
        stages: names of its stages, in their order.
        known: seconds by stage, as an earlier command with the same settings has measured them.
    """

    label: str
    stages: Sequence[str]
    known: Mapping[str, float] = field(default_factory=dict)


class _Running:
    """A run as it goes.

    Args:
        plan: its stages.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan, self.index = plan, -1
        self.began = self.credit = self.share = 0.0
        self.is_partial = False
        self.base: tuple[float, float] | None = None

    @property
    def stage(self) -> str:
        """Name of the stage that is running; empty before the first."""
        return self.plan.stages[self.index] if self.index >= 0 else ""

    def begin(self, index: int, now: float) -> None:
        """Go on to a stage."""
        self.index, self.began = index, now
        self.credit, self.is_partial = 0.0, False  # seconds that what was found once took; whether a part was found
        self.base, self.share = None, 0.0  # when progress was first told, and how far it was then; how far it is


class Timeline:
    """The runs of one command.

    Args:
        plans: plans of all its runs, in their order.
        clock: tells seconds.

    Attributes:
        n_runs: number of runs of the command.
        n_done: runs that have ended or were found.

    Example:
        >>> timeline = Timeline([RunPlan("Pop", ["train"], {"train": 60.0})] * 2, clock=lambda: 0.0)
        >>> with timeline.running(RunPlan("Pop", ["train"], {"train": 60.0})):
        ...     timeline.begin("train")
        ...     timeline.left()
        'about 2 min left'
    """

    def __init__(self, plans: Sequence[RunPlan] = (), clock: Callable[[], float] = time.perf_counter) -> None:
        self._ahead, self._clock = list(plans), clock
        self.n_runs, self.n_done = len(self._ahead), 0
        self._run: _Running | None = None
        self._seconds: dict[tuple[str, str], list[float]] = {}  # by label and stage
        self._computed: set[str] = set()  # folders of stages that this command has computed
        self._inside = ""

    # ---- runs

    @contextmanager
    def running(self, plan: RunPlan) -> Iterator[Timeline]:
        """A context for a run; one that was not planned is the command's as well."""
        if not self._drop(plan.label):
            self.n_runs += 1
        before, self._run = self._run, _Running(plan)
        try:
            yield self
            self.end_stage()
        finally:
            self._run = before
            self.n_done += 1

    def found(self, label: str) -> None:
        """A run that was to come was found on disk."""
        self.n_done += self._drop(label)

    def skip(self, label: str) -> None:
        """Leave out a run that was to come."""
        self.n_runs -= self._drop(label)

    def limit(self, n_runs: int) -> None:
        """Limit the runs to come to ``n_runs``: others have ended elsewhere."""
        del self._ahead[: max(0, len(self._ahead) - n_runs)]

    def _drop(self, label: str) -> bool:
        """Take the next run of a label off what is to come; whether there was one."""
        for index, plan in enumerate(self._ahead):
            if plan.label == label:
                del self._ahead[index]
                return True
        return False

    # ---- stages

    def begin(self, name: str) -> None:
        """Start the next stage of this name and log it; without effect if the run plans none."""
        run = self._run
        later = () if run is None else run.plan.stages[run.index + 1 :]
        if run is None or name not in later:
            return
        self.end_stage()
        names = run.plan.stages
        run.begin(run.index + 1 + list(later).index(name), self._clock())
        done, ahead = names[: run.index], names[run.index + 1 :]
        told = [f"done: {', '.join(done)}"] if done else []
        told += [f"next: {', '.join(ahead)}"] if ahead else []
        around = f" ({'; '.join(told)})" if told else ""
        left = f", {found}" if (found := self.left()) else ""
        log.info("%s, stage %d of %d: %s%s%s", run.plan.label, run.index + 1, len(names), name, around, left)

    def end_stage(self) -> None:
        """Note what the running stage took, where all of it was done."""
        run = self._run
        if run is None or run.index < 0 or run.is_partial:
            return
        seconds = self._clock() - run.began + run.credit
        self._seconds.setdefault((run.plan.label, run.stage), []).append(seconds)
        run.is_partial = True  # it is noted once

    def measured(self) -> dict[str, float]:
        """Mean seconds by stage of the running run's model, of the stages that this command has done as a whole."""
        label = "" if self._run is None else self._run.plan.label
        return {stage: mean(seconds) for (own, stage), seconds in self._seconds.items() if own == label}

    @contextmanager
    def computing(self, stage: str, folder: str, has_parts: bool) -> Iterator[None]:
        """A context in which a stage's result is computed.

        Args:
            stage: its name.
            folder: name of the folder that it is kept in.
            has_parts: whether an earlier run has left a part of it.
        """
        if has_parts:
            self.resumed()
        before, self._inside = self._inside, stage
        try:
            yield
            self._computed.add(folder)
        finally:
            self._inside = before

    def reused(self, folder: str, seconds: float) -> None:
        """A stage's result was found.

        Args:
            folder: name of the folder that it is kept in.
            seconds: wall time that it once took.
        """
        if self._run is not None and folder not in self._computed:  # what this command has computed is found each time
            self._run.credit += seconds

    def resumed(self) -> None:
        """A part of the running stage was found, so the time of the whole is unknown."""
        if self._run is not None:
            self._run.is_partial = True

    def advance(self, share: float) -> None:
        """Tell how far a training has come.

        Args:
            share: share of all its steps, those of earlier processes included; heeded where the training is a stage
                that the run plans, and not a part of one.
        """
        run = self._run
        if run is None or self._inside != run.stage:
            return
        run.share = share
        if run.base is None:
            run.base = (self._clock(), share)

    # ---- time

    def left(self) -> str:
        """How long the command may still take, such as ``about 3 min left``; empty where nothing tells."""
        own = 0.0 if self._run is None else self._left_of(self._run)
        ahead = [self._of_stages(plan, plan.stages) for plan in self._ahead]
        parts = [own, *ahead]
        if any(part is None for part in parts):
            return ""
        seconds = sum(part for part in parts if part is not None)
        if seconds < 60:
            return f"about {seconds:.0f} s left"
        return f"about {seconds / 60:.0f} min left" if seconds < 7200 else f"about {seconds / 3600:.1f} h left"

    def _left_of(self, run: _Running) -> float | None:
        """Seconds left of a run."""
        later = self._of_stages(run.plan, run.plan.stages[run.index + 1 :])
        if run.index < 0 or later is None:
            return later
        now = self._clock()
        if run.base is not None and run.share > run.base[1]:
            began, base = run.base
            return later + (now - began) / (run.share - base) * (1 - run.share)
        expected = self._expected(run.plan, run.stage)
        return None if expected is None else later + max(0.0, expected - (now - run.began))

    def _of_stages(self, plan: RunPlan, names: Sequence[str]) -> float | None:
        """Seconds of some of a run's stages; None where one of them was never measured."""
        parts = [self._expected(plan, name) for name in names]
        return None if None in parts else sum(part for part in parts if part is not None)

    def _expected(self, plan: RunPlan, name: str) -> float | None:
        """Seconds that a stage takes; None if unknown."""
        measured = self._seconds.get((plan.label, name))
        return mean(measured) if measured else plan.known.get(name)


_idle = Timeline()
_current: ContextVar[Timeline] = ContextVar("timeline", default=_idle)


def timeline() -> Timeline:
    """The running command's timeline; outside a command an idle one, which says nothing."""
    return _current.get()


@contextmanager
def in_command(plans: Sequence[RunPlan]) -> Iterator[Timeline]:
    """A context in which the runs of a command are made."""
    token = _current.set(Timeline(plans))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


@contextmanager
def in_run(plan: RunPlan) -> Iterator[Timeline]:
    """A context for one run, of the command that is running or as one of its own."""
    if timeline() is not _idle:
        with timeline().running(plan) as own:
            yield own
        return
    with in_command([plan]) as own, own.running(plan):
        yield own
