"""The stages that tune the adapter: on true answers, continued from earlier weights, with distilled answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from recbole_llm.curriculum import Curriculum
from recbole_llm.disk import write_json
from recbole_llm.distributed import on_main, process
from recbole_llm.evaluation import Evaluation
from recbole_llm.model.base import TokenPair
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.stages import UNFINISHED, Stage, fingerprint
from recbole_llm.trainer.distillation import DistanceMeter
from recbole_llm.trainer.finetune import DistilledTargets, FineTuning
from recbole_llm.trainer.guards import plateau, plateau_warning, warmup_warning, weight_warning
from recbole_llm.trainer.objective_loss import objective_loss
from recbole_llm.trainer.optimizer import at_rate, group_options
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import StepLoss
from recbole_llm.trainer.tuning import State, Tuning, TuningResult, load_adapter
from recbole_llm.trainer.validation import best_epoch

OnRecord = Callable[[dict[str, Any]], None]


class FineTuneStage(Stage[TuningResult]):
    """The adapter, tuned on true answers.

    Args:
        tuning: what it is tuned on, and how it is evaluated.
    """

    name = "fine-tune"
    group = ""
    is_resumable = True
    is_joint = True
    begun: Path | None = None
    """Folder of a state that the tuning starts from, where another has computed its first epochs."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self._evaluation: Evaluation | None = None
        self._has_told = False

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return self.tuning.facts

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from what they are now."""
        model = self.tuning.model
        run = self.fine_tuning(lambda record: self.tuning.on_epoch(self.group, record), self.tuning.tell)
        self._has_told = True
        history = run.run(on_main(lambda: _states(folder)), self.begun)
        if process().is_main:
            write_json(folder / "history.json", history)
            model.adapter.save(model.llm, folder / "adapter", model.adapter_owner)
        self._evaluation = cast("Evaluation | None", run.best_evaluation)

    def fine_tuning(self, on_epoch: OnRecord, on_validated: OnRecord) -> FineTuning:
        """The tuning, of the weights as they are now.

        Args:
            on_epoch: see :class:`FineTuning`, as for the next.
            on_validated: told of every validated epoch.
        """
        tuning = self.tuning
        examples, histories, trunks = self.examples()
        return FineTuning(
            tuning.model,
            examples,
            histories,
            self.settings,
            self.make_optimizer(),
            tuning.validation,
            self.distilled(),
            on_epoch=on_epoch,
            progress=tuning.show_progress,
            trunks=trunks,
            make_loss=self.make_loss,
            on_validated=on_validated,
            more_answers=self.more_answers(),
            renewed=self.renewed if self.follows else None,
        )

    @property
    def follows(self) -> bool:
        """Whether examples may change between epochs."""
        return self.tuning.model.changes_examples

    def renewed(self) -> list[TokenPair]:
        """The examples as the model makes them now."""
        model = self.tuning.model
        pairs = [pair for pair in model.token_pairs(self.tuning.rows.readable) if pair is not None]
        return [*pairs, *model.more_examples()]

    def load(self, folder: Path) -> TuningResult:
        """See :class:`Stage`; the model gets the weights."""
        load_adapter(self.tuning.model, folder / "adapter")
        history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        for record in () if self._has_told else history:
            self.tuning.tell(record)
        best = best_epoch(history, self.tuning.validation)
        warnings = tuple(f"{self.name}: {warning}" for warning in self.doubts(history))
        return TuningResult(self.name, folder, history, best, self._evaluation, **self.told(), warnings=warnings)

    def examples(self) -> tuple[list[TokenPair], list[list[int]], Trunks | None]:
        """What is trained on: token ids of prompts and answers, histories, and trunks if there are some."""
        return self.tuning.rows.beside(self.tuning.model.more_examples())

    @property
    def settings(self) -> FineTuneSettings:
        """How it is tuned."""
        return FineTuneSettings.from_settings(self.tuning.config.final_config_dict)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser over the adapter's weights."""
        return self.tuning.make_optimizer()

    def make_loss(self, passes: Passes, trainable: Sequence[torch.nn.Parameter]) -> StepLoss:
        """The loss of a step.

        Args:
            passes: forward passes of the training.
            trainable: the weights that learn.

        Raises:
            InputError: the answers are none that the objective can be computed of.
        """
        return objective_loss(self.tuning.model, self.tuning.objective, passes, trainable)

    def more_answers(self) -> Mapping[str, Sequence[list[int]]]:
        """Further answers to each row's prompt, by kind, that the loss reads."""
        return {}

    def doubts(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """What there is to doubt of a training with this history, a line each."""
        tuning = self.tuning
        found = self.warmup_doubts(len(tuning.rows.examples) + tuning.model.n_more_examples)
        if tuning.objective is not None:  # the plateau is one of the mean log-likelihood
            return found
        level = plateau(tuning.model.n_answers, [len(response) for _, response in tuning.rows.examples])
        return [*found, *plateau_warning(history, level)]

    def warmup_doubts(self, n_examples: int) -> list[str]:
        """What there is to doubt of the warm-up of a training on so many examples, a line each."""
        steps = self.settings.steps(n_examples)
        return warmup_warning(self.settings.warmup(steps), steps)

    def distilled(self) -> DistilledTargets | None:
        """The second targets of the rows, if there are some."""
        return None

    def told(self) -> dict[str, Any]:
        """Further facts of the result."""
        return {}


@dataclass(frozen=True)
class Start:
    """The weights that a stage begins with.

    Attributes:
        name: what tells them from others.
        restore: gives them to the model.
    """

    name: str
    restore: Callable[[], None]

    @classmethod
    def of(cls, tuning: Tuning, result: TuningResult) -> Start:
        """Start from the weights of a tuning stage's best epoch."""
        return cls(result.folder.name, lambda: load_adapter(tuning.model, result.folder / "adapter"))

    @classmethod
    def untuned(cls, tuning: Tuning) -> Start:
        """Start from the weights before any tuning: the bare LLM's answers are the reference."""
        model = tuning.model
        weights = model.adapter.trainable_state(model.llm)
        name = f"untuned-{fingerprint(tuning.facts)}"
        return cls(name, lambda: model.adapter.load_trainable_state(model.llm, weights))


class ContinuedStage(FineTuneStage):
    """A tuning that continues from the weights of an earlier one, for epochs and at a learning rate of its own.

    Args:
        tuning: what it is tuned on, and how it is evaluated.
        start: the weights that it begins with.
        epochs: largest number of epochs.
        learning_rate: largest learning rate; None is a tenth of fine-tuning's.
    """

    def __init__(self, tuning: Tuning, start: Start, epochs: int, learning_rate: float | None) -> None:
        super().__init__(tuning)
        self.start, self._epochs, self._learning_rate = start, epochs, learning_rate

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        settings = {**self.settings.facts(), **group_options(self.tuning.config, self.tuning.model)}
        return {**super().facts(), "settings": settings}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from those of the start."""
        self.start.restore()
        super().compute(folder)

    @property
    def settings(self) -> FineTuneSettings:
        """Settings of fine-tuning, with this stage's epochs and learning rate."""
        own = super().settings
        return replace(own, epochs=self._epochs, learning_rate=self._learning_rate or own.learning_rate / 10)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser at its learning rate."""
        return at_rate(self.tuning.make_optimizer(), self.settings.learning_rate / super().settings.learning_rate)


class CurriculumStage(FineTuneStage):
    """A fresh adapter, tuned on true and distilled answers under one curriculum.

    Args:
        tuning: what it is tuned on, and how it is evaluated.
        curriculum: gives the weights of the targets.
        answers: token ids of the distilled answer to each row; empty for a row that has none.
        source: what the distilled answers depend on, as plain data.
        untuned: the adapter's weights before any tuning.
        meter: measures the distance between epochs, where the curriculum uses it.
        initial_distance: distance of the untuned LLM's answers, where the curriculum uses it.
        group: what stands before TensorBoard's names.
    """

    name = "curriculum"

    def __init__(
        self,
        tuning: Tuning,
        curriculum: Curriculum,
        answers: Sequence[list[int]],
        source: Any,
        untuned: State,
        meter: DistanceMeter | None = None,
        initial_distance: float | None = None,
        group: str = "Curriculum/",
    ) -> None:
        super().__init__(tuning)
        self.curriculum, self.answers, self.source, self.untuned = curriculum, answers, source, untuned
        self.meter, self.initial_distance, self.group = meter, initial_distance, group

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        names = ("sd_empty", "sd_permuted", *(("distance_rows",) if self.meter else ()))
        facts = super().facts()
        return {
            **facts,
            "settings": {**facts["settings"], "epochs": self.settings.epochs},
            "distilled": self.source,
            **{name: self.tuning.config[name] for name in names},
            "curriculum": self.curriculum.facts(),
            **(self.tuning.on_trie if self.meter else {}),
        }

    @property
    def settings(self) -> FineTuneSettings:
        """Settings of fine-tuning, with ``curriculum_epochs`` epochs where that is set."""
        own = super().settings
        return replace(own, epochs=self.tuning.distillation.curriculum_epochs or own.epochs)

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from the untuned ones."""
        self._restore()
        super().compute(folder)

    def begin(self, folder: Path) -> None:
        """Train for the first epoch and leave the state after it in a folder."""
        self._restore()
        self.fine_tuning(_tell_nobody, _tell_nobody).run(folder, until=1)

    @property
    def first_weight(self) -> float:
        """Weight of the distilled answers in the first epoch."""
        return self.distilled().weight

    def _restore(self) -> None:
        self.tuning.model.adapter.load_trainable_state(self.tuning.model.llm, self.untuned)

    def distilled(self) -> DistilledTargets:
        """The distilled answers of the rows."""
        distances = [] if self.initial_distance is None else [self.initial_distance]
        return DistilledTargets(self.curriculum, self.answers, distances, self.meter.measure if self.meter else None)

    def told(self) -> dict[str, Any]:
        """Settings and distance at the start."""
        return {"initial_distance": self.initial_distance, "settings": self.curriculum.facts()}

    def doubts(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """See :class:`FineTuneStage`; a weight that is fixed is not expected to fall."""
        return [*super().doubts(history), *(weight_warning(history) if self.curriculum.uses_distance else ())]


class FirstEpochStage(Stage[Path]):
    """The first epoch of several curricula, which differ only in what they make of later distances.

    Args:
        one: any of them.
    """

    name = "first-epoch"
    is_resumable = True
    is_joint = True

    def __init__(self, one: CurriculumStage) -> None:
        self._one = one

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {**self._one.facts(), "curriculum": {"first_weight": self._one.first_weight}}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from the untuned ones."""
        self._one.begin(folder)

    def load(self, folder: Path) -> Path:
        """See :class:`Stage`: the folder of the state after the epoch."""
        return folder


def _tell_nobody(record: dict[str, Any]) -> None:
    """The curricula that go on from an epoch tell of it, each for itself."""


def _states(folder: Path) -> Path:
    """Where training states are kept until a stage is whole; what an earlier version left beside it is moved there."""
    states = folder / UNFINISHED
    states.mkdir(exist_ok=True)
    for state in folder.glob("epoch-*"):
        os.replace(state, states / state.name)
    return states
