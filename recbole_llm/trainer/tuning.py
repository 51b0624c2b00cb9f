"""The two stages that tune the adapter: fine-tuning on true answers, and a curriculum that adds distilled ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from recbole_llm.curriculum import Curriculum
from recbole_llm.curriculum.settings import DistillationSettings
from recbole_llm.data.rows import rows_digest
from recbole_llm.disk import write_json
from recbole_llm.distributed import on_main, process
from recbole_llm.evaluation import Evaluation, Protocol
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.objective import TokenObjective, make_objective
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.registry import find_choice
from recbole_llm.selection.training_rows import TrainingRows
from recbole_llm.selection.trunk_rows import trunk_facts
from recbole_llm.settings.config import Config
from recbole_llm.settings.task_checks import LOSS
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.stages import UNFINISHED, Stage
from recbole_llm.trainer.distillation import DistanceMeter
from recbole_llm.trainer.finetune import DistilledTargets, FineTuning, MakeLoss, Validation
from recbole_llm.trainer.guards import plateau, plateau_warning, warmup_warning, weight_warning
from recbole_llm.trainer.objective_loss import LossMaker
from recbole_llm.trainer.optimizer import group_options

# What decides a generated answer besides the weights, and what decides the validation score of an epoch.
GENERATION = ("num_beams", "max_new_tokens", "length_penalty", "first_line")
ANSWERING = (*GENERATION, "grounding", "repeatable")
State = Mapping[str, Tensor]
"""All trainable weights (:meth:`Adapter.trainable_state`)."""


@dataclass(frozen=True)
class Tuning:
    """What the tuning stages of one run share.

    Attributes:
        model: the recommender, its adapter attached.
        config: the resolved config.
        protocol: how rows are evaluated.
        rows: the training rows.
        valid_rows: the validation rows, a RecBole data set; None without.
        validation: how epochs are evaluated; None without.
        make_optimizer: gives a fresh optimiser over the adapter's weights.
        on_epoch: called with the group of the stage, such as ``Curriculum/``, and the record of every epoch.
        show_progress: whether to show progress bars.
        on_score: called with the epoch and validation score of every validated epoch, of those that were found too; may
            raise to end the run.
    """

    model: LLMRecommender
    config: Config
    protocol: Protocol
    rows: TrainingRows
    valid_rows: Any
    validation: Validation | None
    make_optimizer: Callable[[], torch.optim.Optimizer]
    on_epoch: Callable[[str, dict[str, Any]], None]
    show_progress: bool = False
    on_score: Callable[[int, float], None] | None = None

    def tell(self, record: Mapping[str, Any]) -> None:
        """Pass the score of a validated epoch on to who asked for it."""
        if self.on_score is not None and self.validation is not None and "valid" in record:
            self.on_score(record["epoch"], record["valid"][self.validation.metric])

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What fine-tuning depends on, as plain data."""
        config, model = self.config, self.model
        answering: tuple[str, ...] = ()  # a click, and the loss of an answer, are told by the weights alone
        if not self.protocol.has_labels and self.protocol.valid_metric != LOSS:
            grounding = cast(Any, find_choice("grounding", config["grounding"]))
            answering = (*ANSWERING, *grounding.settings)
        settings = FineTuneSettings.from_settings(config.final_config_dict).facts()
        return {
            "model": model.facts(),
            "recommender": type(model).__name__,
            "rows": rows_digest(self.rows.data),
            "valid_rows": None if self.valid_rows is None else rows_digest(self.valid_rows),
            "valid_metric": self.protocol.valid_metric,
            "answering": {name: config[name] for name in answering},
            "candidates": config["eval_args"]["mode"]["valid"],
            **({"trunks": trunk_facts(config)} if self.rows.trunks else {}),
            "settings": {**settings, **group_options(config, model)},
            "seed": config["seed"],
            **({"objective": self.objective.facts()} if self.objective else {}),
            **model.draws.facts(),
        }

    @cached_property
    def objective(self) -> TokenObjective | None:
        """The loss of an answer's tokens; None for the mean negative log-likelihood."""
        return make_objective(self.config.final_config_dict)

    @property
    def on_trie(self) -> dict[str, Any]:
        """What decides which title is ranked first, where distilled answers are such titles; else nothing."""
        if not self.distillation.distil_on_trie:
            return {}
        grounding = cast(Any, find_choice("grounding", self.config["grounding"]))
        return {"on_trie": {name: self.config[name] for name in (*ANSWERING, *grounding.settings)}}

    @property
    def distillation(self) -> DistillationSettings:
        """Which answers are distilled, and what is measured of them."""
        return DistillationSettings.from_settings(self.config.final_config_dict)

    @property
    def generation(self) -> dict[str, Any]:
        """What decides a generated answer of distillation besides the weights."""
        beams = self.distillation.sd_num_beams or self.config["num_beams"]
        return {**{name: self.config[name] for name in GENERATION}, "num_beams": beams}


@dataclass(frozen=True)
class TuningResult:
    """The result of a tuning stage, whose weights the model has.

    Attributes:
        stage: its name.
        folder: where it is kept; ``adapter/`` holds the weights of the best epoch.
        history: one record per epoch.
        best_epoch: the epoch (1-based) whose weights were kept.
        evaluation: of the validation rows under these weights, where training has just evaluated them.
        initial_distance: of the untuned LLM's answers, where the curriculum uses it.
        settings: of the curriculum, such as ``{"alpha": 1.0}``.
        warnings: what there is to doubt (:mod:`recbole_llm.trainer.guards`), each led by the stage's name.
    """

    stage: str
    folder: Path
    history: list[dict[str, Any]]
    best_epoch: int
    evaluation: Evaluation | None = None
    initial_distance: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def best_score(self, validation: Validation) -> float:
        """Validation score of the best epoch, larger is better."""
        return _score(self.history[self.best_epoch - 1], validation)


class FineTuneStage(Stage[TuningResult]):
    """The adapter, tuned on true answers.

    Args:
        tuning: what it is tuned on, and how it is evaluated.
    """

    name = "fine-tune"
    group = ""
    is_resumable = True
    is_joint = True

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self._evaluation: Evaluation | None = None
        self._has_told = False

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return self.tuning.facts

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from what they are now."""
        tuning, model = self.tuning, self.tuning.model
        examples, histories, trunks = self.examples()
        run = FineTuning(
            model,
            examples,
            histories,
            self.settings,
            self.make_optimizer(),
            tuning.validation,
            self.distilled(),
            lambda record: tuning.on_epoch(self.group, record),
            tuning.show_progress,
            trunks,
            self.make_loss(),
            tuning.tell,
            self.more_answers(),
            self.renewed if self.follows else None,
        )
        self._has_told = True
        history = run.run(on_main(lambda: _states(folder)))
        if process().is_main:
            write_json(folder / "history.json", history)
            model.adapter.save(model.llm, folder / "adapter", model.adapter_owner)
        self._evaluation = cast("Evaluation | None", run.best_evaluation)

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

    def make_loss(self) -> MakeLoss:
        """Gives the loss of a step."""
        return LossMaker(self.tuning.model, self.tuning.objective)

    def more_answers(self) -> Mapping[str, Sequence[list[int]]]:
        """Further answers to each row's prompt, by kind, that the loss reads."""
        return {}

    def doubts(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """What there is to doubt of a training with this history, a line each."""
        tuning = self.tuning
        steps = self.settings.steps(len(tuning.rows.examples) + len(tuning.model.more_examples()))
        found = warmup_warning(self.settings.warmup(steps), steps)
        if tuning.objective is not None:  # the plateau is one of the mean log-likelihood
            return found
        level = plateau(tuning.model.n_answers, [len(response) for _, response in tuning.rows.examples])
        return [*found, *plateau_warning(history, level)]

    def distilled(self) -> DistilledTargets | None:
        """The second targets of the rows, if there are some."""
        return None

    def told(self) -> dict[str, Any]:
        """What else is told of the result."""
        return {}


class CurriculumStage(FineTuneStage):
    """A fresh adapter, tuned on true and distilled answers under one curriculum.

    Args:
        tuning: what it is tuned on, and how it is evaluated.
        curriculum: gives the weights of the targets.
        answers: token ids of the distilled answer to each row; empty for a row that has none.
        source: what the distilled answers depend on, as plain data.
        untuned: the adapter's weights before any tuning.
        meter: measures the distance between epochs, where the curriculum uses it.
        initial_distance: of the untuned LLM's answers, where the curriculum uses it.
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
        """As fine-tuning, for epochs of its own number."""
        own = super().settings
        return replace(own, epochs=self.tuning.distillation.curriculum_epochs or own.epochs)

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from the untuned ones."""
        self.tuning.model.adapter.load_trainable_state(self.tuning.model.llm, self.untuned)
        super().compute(folder)

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


def _states(folder: Path) -> Path:
    """Where training states are kept until a stage is whole; what an earlier version left beside it is moved there."""
    states = folder / UNFINISHED
    states.mkdir(exist_ok=True)
    for state in folder.glob("epoch-*"):
        os.replace(state, states / state.name)
    return states


def load_adapter(model: LLMRecommender, folder: Path) -> None:
    """Load a saved adapter, checked against its own manifest."""
    model.adapter.load(model.llm, folder, model.adapter_owner)


def best_epoch(history: Sequence[Mapping[str, Any]], validation: Validation | None) -> int:
    """The first epoch (1-based) with the best validation score; the last one without validation."""
    validated = [record for record in history if "valid" in record]
    if not validated or validation is None:
        return len(history)
    return int(max(validated, key=lambda record: _score(record, validation))["epoch"])


def _score(record: Mapping[str, Any], validation: Validation) -> float:
    """Validation score of an epoch, larger is better."""
    score: float = record["valid"][validation.metric]
    return score if validation.bigger else -score
