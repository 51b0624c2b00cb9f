"""RecBole's sequential models on frozen item vectors, with an adapter in place of item embeddings (LLMEmb, RAT)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.llm.contrastive import soft_target_loss

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.settings.config import Config
    from recbole_llm.settings.training import AlignmentSettings

_Model: Any = object  # a mixin before a model, whose methods it calls: untyped, as RecBole is


@dataclass(frozen=True)
class VectorInputs:
    """What a model learns from beside its rows.

    Attributes:
        vectors: float32 [items, p], zeros for the padding item.
        settings: settings of the loss and of the alignment.
        aligned: float32 [items, d], the embeddings of a trained model; None where nothing is aligned.
    """

    vectors: Tensor
    settings: AlignmentSettings
    aligned: Tensor | None = None


class VectorEmbedding(nn.Module):
    """In place of an item embedding: e = W2 (W1 v + b1) + b2 of each item's vector v, p -> p / 2 -> d, no activation.

    The padding item is zero. Rows behind the items, such as BERT4Rec's mask, learn as in any embedding.

    Args:
        vectors: float32 [items, p].
        width: d.
        n_more: rows behind the items.
        frozen: whether vectors stay as they are.
    """

    vectors: Tensor

    def __init__(self, vectors: Tensor, width: int, n_more: int = 0, frozen: bool = True) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors) if frozen else self.register_parameter(
            "vectors", nn.Parameter(vectors)
        )
        self.embedding_dim, half = width, max(1, vectors.shape[1] // 2)
        self.first, self.second = nn.Linear(vectors.shape[1], half), nn.Linear(half, width)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.more = nn.Parameter(torch.empty(n_more, width).normal_(std=0.02)) if n_more else None

    @property
    def weight(self) -> Tensor:
        """The embeddings [items + more, d], computed again."""
        # Both maps are linear, so they are one: the wide half is never made for all items.
        joint = self.second.weight @ self.first.weight
        bias = self.second.weight @ self.first.bias + self.second.bias
        items = F.linear(self.vectors[1:], joint, bias)
        parts = [items.new_zeros(1, self.embedding_dim), items]
        return torch.cat(parts if self.more is None else [*parts, self.more])

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of items [..., d]."""
        return F.embedding(ids, self.weight)


class _AgainstOne(nn.Module):
    """BCE(positive, 1) + BCE(negative, 0), in place of RecBole's loss of pairs."""

    def forward(self, positive: Tensor, negative: Tensor) -> Tensor:
        return (F.softplus(-positive) + F.softplus(negative)).mean()


class _ReadsVectors(_Model):
    """A mixin for sequential models: the item embedding is computed from vectors, and may be aligned with another."""

    item_embedding: Any

    def __init__(self, config: Config, dataset: Dataset, table: VectorInputs) -> None:
        super().__init__(config, dataset)
        plain = self.item_embedding
        n_more = plain.num_embeddings - self.n_items
        self.item_embedding = VectorEmbedding(table.vectors, plain.embedding_dim, n_more, table.settings.freeze)
        self.rat, self._aligned = table.settings, table.aligned
        if table.settings.loss == "bce":
            self.loss_fct = _AgainstOne()

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The model's own loss, and the weighted alignment of the batch's targets, each once."""
        loss: Tensor = super().calculate_loss(interaction)
        if self._aligned is None or not self.rat.alpha:
            return loss
        return loss + self.rat.alpha * self.alignment(self._targets(interaction))

    def alignment(self, targets: Tensor) -> Tensor:
        """The alignment of some items, each once however often it stands there (LLMEmb, L_soft).

        Args:
            targets: item ids, 0 for none.
        """
        items = targets.unique()
        items = items[items > 0]
        if len(items) > self.rat.align_items:
            items = items[torch.randperm(len(items), device=items.device)[: self.rat.align_items]]
        if self._aligned is None:
            raise ValueError("there are no embeddings to be aligned with")
        known = self._aligned.to(items.device)[items]
        found: Tensor = soft_target_loss(known, self.item_embedding(items), self.rat.tau)
        return found

    def _targets(self, interaction: Interaction) -> Tensor:
        """The items that the rows, or their masked places, ask for."""
        targets: Tensor = interaction[self.POS_ITEMS if hasattr(self, "POS_ITEMS") else self.POS_ITEM_ID]
        return targets


@cache
def with_vectors(model_class: type) -> type:
    """The class of a RecBole model that reads vectors, built as ``(config, dataset, table)``.

    Args:
        model_class: SASRec, GRU4Rec or BERT4Rec: a model that scores by ``item_embedding``.
    """
    return type(model_class.__name__, (_ReadsVectors, model_class), {"__doc__": model_class.__doc__})
