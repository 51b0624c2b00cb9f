"""RecBole's sequential models as click models: the score of a history and an item, trained on labels."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from torch.nn import functional as F

from recbole_llm.settings.models import CLICK_BY_DESIGN, task_of

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.settings.config import Config

_Model: Any = object  # a mixin before a model, whose methods it calls: untyped, as RecBole is


class _LearnsLabels(_Model):
    """Mixed in before a sequential model: its score of (history, item) is the logit of a like.

    So TALLRec's authors train the sequential models beside theirs (arXiv 2305.00447, section 4.1). The rows are the
    same; the loss over the whole catalogue, which takes every target for a like, gives way to the logistic one.
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.LABEL = config["LABEL_FIELD"]

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean binary cross-entropy of the labels."""
        return F.binary_cross_entropy_with_logits(super().predict(interaction), interaction[self.LABEL].float())

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Probability that each row's user likes its target. Returns: float64 [rows]."""
        return torch.sigmoid(super().predict(interaction).double())


@cache
def by_labels(model_class: type) -> type:
    """The class that learns from labels: itself where RecBole made it for clicks, else one with the same layers.

    Args:
        model_class: a RecBole model that can be evaluated by labels (:func:`recbole_llm.settings.models.task_of`).
    """
    if task_of(model_class) == "click" or model_class.__name__ in CLICK_BY_DESIGN:
        return model_class
    return type(model_class.__name__, (_LearnsLabels, model_class), {"__doc__": model_class.__doc__})
