"""The loss of a run's objective, built from its model and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from recbole_llm.errors import InputError
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.legal import LegalSets
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.objective import TokenObjective
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import MeanNll, ObjectiveMeans, StepLoss, WithSideLoss


def make_reader(model: LLMRecommender, objective: TokenObjective) -> AnswerReader:
    """What reads the answers of a model's rows as an objective needs them."""
    legal = LegalSets(cast(BIGRec, model).trie, model.device) if objective.reads_legal else None
    bare = None
    if objective.reads_effects:
        bare = model.prompt_kind.without_history(model.backbone.tokenizer, model.backbone.bos_token_id)
    per_row = bare is not None and model.adapter.needs_states
    return AnswerReader(model.scorer, legal, bare, per_row, model.takes_branches)


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


def check_titles(objective: str, answers: Mapping[str, Sequence[Any]], legal: LegalSets) -> None:
    """Refuse answers that are no titles.

    Raises:
        InputError: with how many they are.
    """
    for kind, own in answers.items():
        wrong = sum(title < 0 and len(answer) > 0 for title, answer in zip(legal.titles(own), own, strict=True))
        if wrong:
            raise InputError(
                "objective",
                f"{objective} is a loss among titles, and {wrong} of {len(own)} {kind} answers are no titles; distil "
                "with distil_on_trie: True, or set --objective=nll",
                kind="data",
            )
