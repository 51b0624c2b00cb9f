"""The common part of the tuning stages, and their result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from recbole_llm.curriculum.settings import DistillationSettings
from recbole_llm.data.rows import rows_digest
from recbole_llm.data.sampled_modes import is_sampled
from recbole_llm.evaluation import Evaluation, Protocol
from recbole_llm.model.base import LLMRecommender
from recbole_llm.objective import TokenObjective, make_objective
from recbole_llm.registry import find_choice
from recbole_llm.selection.training_rows import TrainingRows
from recbole_llm.selection.trunk_rows import trunk_facts
from recbole_llm.settings.config import Config
from recbole_llm.settings.task_checks import LOSS
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer.optimizer import group_options
from recbole_llm.trainer.validation import Validation

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
        mode = config["eval_args"]["mode"]["valid"]
        drawn = config["candidates"] or is_sampled(mode)  # what validation rows are ranked among
        return {
            "model": model.facts(),
            "recommender": type(model).__name__,
            "rows": rows_digest(self.rows.data),
            "valid_rows": None if self.valid_rows is None else rows_digest(self.valid_rows),
            "valid_metric": self.protocol.valid_metric,
            "answering": {name: config[name] for name in answering},
            "candidates": mode,
            **({"sample_seed": config["sample_seed"]} if drawn else {}),
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
        evaluation: evaluation of the validation rows under these weights, where training has just evaluated them.
        initial_distance: distance of the untuned LLM's answers, where the curriculum uses it.
        settings: settings of the curriculum, such as ``{"alpha": 1.0}``.
        warnings: warnings of :mod:`recbole_llm.trainer.guards`, each beginning with the stage's name.
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
        return validation.score(self.history[self.best_epoch - 1])


def load_adapter(model: LLMRecommender, folder: Path) -> None:
    """Load a saved adapter, checked against its own manifest."""
    model.adapter.load(model.llm, folder, model.adapter_owner)
