"""The loss of a run's objective, built from its model and settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.objective_reader import check_titles, make_reader
from recbole_llm.objective import TokenObjective
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import MeanNll, ObjectiveMeans, StepLoss, WithSideLoss


def objective_loss(
    model: LLMRecommender,
    objective: TokenObjective | None,
    passes: Passes,
    trainable: Sequence[torch.nn.Parameter],
) -> StepLoss:
    """The loss of a training's steps.

    Args:
        model: the recommender.
        objective: objective of the run; None for the mean negative log-likelihood.
        passes: forward passes of the training.
        trainable: the weights that learn.

    Raises:
        InputError: the objective is among titles, and an answer is not a title.
    """
    if objective is None:
        return WithSideLoss(passes) if model.has_side_loss else MeanNll(passes)
    reader = make_reader(model, objective)
    if reader.legal is not None:
        check_titles(objective.name, passes.answers, reader.legal)
    return ObjectiveMeans(passes, objective, reader, trainable)
