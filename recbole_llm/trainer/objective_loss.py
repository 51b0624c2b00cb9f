"""The loss of a run's objective, built from its model and settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.objective_reader import check_titles, make_reader
from recbole_llm.objective import TokenObjective
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import MeanNll, ObjectiveMeans, StepLoss, WithSideLoss

__all__ = ["LossMaker", "check_titles", "make_reader"]


class LossMaker:
    """Makes the loss of a training's steps, once it knows the answers.

    Args:
        model: the recommender.
        objective: objective of the run; None for the mean negative log-likelihood.
    """

    def __init__(self, model: LLMRecommender, objective: TokenObjective | None) -> None:
        self._model, self._objective = model, objective

    def __call__(self, passes: Passes, trainable: Sequence[torch.nn.Parameter]) -> StepLoss:
        """The loss of these passes.

        Raises:
            InputError: the objective is among titles, and an answer is not a title.
        """
        if self._objective is None:
            return WithSideLoss(passes) if self._model.has_side_loss else MeanNll(passes)
        reader = make_reader(self._model, self._objective)
        if reader.legal is not None:
            check_titles(self._objective.name, passes.answers, reader.legal)
        return ObjectiveMeans(passes, self._objective, reader, trainable)
