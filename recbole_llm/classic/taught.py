"""A RecBole model trained on another model's rankings beside its own rows (ranking distillation, 1809.07428)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_llm.data.rows import SAMPLE_ID

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.settings.config import Config

_Model: Any = object  # a mixin before a model, whose methods it calls: untyped, as RecBole is


@dataclass(frozen=True)
class Lessons:
    """The lists that a teacher gave for training rows.

    Attributes:
        items: int64 [lists, k], the best items, the best first; 0 after the last.
        list_of: int64 [sample ids], the list of each row; -1 where it has none.
        weight: share of the lists in the loss, in [0, 1].
        decay: ranks over which an item's part falls to 1 / e.
    """

    items: Tensor
    list_of: Tensor
    weight: float
    decay: float

    @classmethod
    def of(cls, sample_ids: np.ndarray, items: np.ndarray, weight: float, decay: float) -> Lessons:
        """The lists of rows by their sample ids."""
        list_of = torch.full((int(sample_ids.max()) + 1,), -1, dtype=torch.int64)
        list_of[torch.from_numpy(sample_ids)] = torch.arange(len(sample_ids))
        return cls(torch.from_numpy(items), list_of, weight, decay)


def list_loss(scores: Tensor, items: Tensor, decay: float) -> Tensor:
    """Cross-entropy of lists: an item at rank r has a part that falls as e^(-r / decay), the parts of a list sum to 1.

    Ranks, not scores: those of an LLM are distances under one grounding and log-probabilities under another.

    Args:
        scores: [rows, items] of the model that learns.
        items: int64 [rows, k], the best first; 0 for none.
        decay: in ranks.

    Returns:
        The mean over rows that have a list; 0, with a gradient of 0, where none has.

    Example:
        >>> round(float(list_loss(torch.zeros(1, 4), torch.tensor([[2, 1]]), decay=1.0)), 6)  # log 4
        1.386294
    """
    real = items > 0
    ranks = torch.arange(items.shape[1], device=scores.device, dtype=scores.dtype)
    parts = torch.exp(-ranks / decay) * real
    totals = parts.sum(dim=1, keepdim=True)
    parts = parts / totals.clamp(min=torch.finfo(parts.dtype).tiny)
    losses = -(parts * scores.log_softmax(dim=1).gather(1, items)).sum(dim=1)
    taught = totals[:, 0] > 0
    mean: Tensor = losses[taught].sum() / taught.sum().clamp(min=1)
    return mean


class _LearnsLists(_Model):
    """Mixed in before a sequential model: (1 - weight) of its own loss, weight of the lists, where a row has one."""

    def __init__(self, config: Config, dataset: Dataset, lessons: Lessons) -> None:
        super().__init__(config, dataset)
        self._lessons = lessons

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The model's own loss and that of the lists; rows without a list count in the first alone."""
        own: Tensor = super().calculate_loss(interaction)
        lessons = self._lessons
        numbers = interaction[SAMPLE_ID].cpu()
        known = numbers < len(lessons.list_of)
        lists = torch.where(known, lessons.list_of[numbers.clamp(max=len(lessons.list_of) - 1)], -1)
        rows = (lists >= 0).nonzero()[:, 0]
        if not len(rows):
            return own
        scores = super().full_sort_predict(interaction)[rows.to(own.device)]
        taught = list_loss(scores, lessons.items[lists[rows]].to(own.device), lessons.decay)
        weight = lessons.weight * len(rows) / len(numbers)
        mixed: Tensor = (1 - weight) * own + weight * taught
        return mixed


@cache
def taught(model_class: type) -> type:
    """The class of a RecBole model that learns lists, built as ``(config, dataset, lessons)``; it has no other weights.

    Args:
        model_class: a sequential model whose scores of all items are a differentiable function of a history.
    """
    return type(model_class.__name__, (_LearnsLists, model_class), {"__doc__": model_class.__doc__})
