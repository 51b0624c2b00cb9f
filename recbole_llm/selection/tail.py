"""The last part of a transformer recommender, from its last block's output map on, as a module.

Influence by one map near the output asks for the losses of all rows dozens of times. What lies before the map is the
same each time, and of a row's positions the last one alone has a part in its scores: both are computed once and kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

CONTEXT, RESIDUAL = "context", "residual"
_TOLERANCE = 1e-4  # of a loss


class TransformerTail(nn.Module):
    """Output map of the last attention block, norm, feed-forward block, scores of all items; shares all weights.

    Args:
        recommender: RecBole's model, in eval mode.
        name: name of the last transformer layer in it.
    """

    items: Tensor

    def __init__(self, recommender: AbstractRecommender, name: str) -> None:
        super().__init__()
        self.recommender = [recommender]  # in a list, so that it is no part of this model
        self.prefix = name + "."
        self.layer: Any = recommender.get_submodule(name)  # RecBole's, of which the names below are known
        self.register_buffer("items", recommender.item_embedding.weight.detach(), persistent=False)
        self.eval()

    @classmethod
    def of(cls, recommender: nn.Module, names: Sequence[str]) -> TransformerTail | None:
        """The tail that all the named weights are in; None where the recommender has none of this form."""
        found = [re.fullmatch(r"(.+)\.(multi_head_attention\.dense|feed_forward\.\w+)\.\w+", name) for name in names]
        layers = {match[1] if match else "" for match in found}
        has_items = isinstance(getattr(recommender, "item_embedding", None), nn.Embedding)
        if len(layers) != 1 or "" in layers or not has_items:
            return None
        return cls(recommender, layers.pop())

    def names(self, names: Sequence[str]) -> list[str]:
        """The recommender's weights under their names here."""
        return ["layer." + name.removeprefix(self.prefix) for name in names]

    def states(self, batch: Interaction) -> Tensor:
        """States after the histories. Returns: [rows, d]."""
        attention = self.layer.multi_head_attention
        hidden = attention.LayerNorm(attention.out_dropout(attention.dense(batch[CONTEXT])) + batch[RESIDUAL])
        states: Tensor = self.layer.feed_forward(hidden)
        return states

    def losses(self, states: Tensor, batch: Interaction) -> Tensor:
        """Cross entropy of each row's target, from its state. Returns: [rows]."""
        return row_losses(states @ self.items.T, batch[self.recommender[0].ITEM_ID])

    @torch.no_grad()
    def inputs(self, batch: Interaction) -> Interaction | None:
        """What the tail needs to know of rows; None where its losses are not those of the whole recommender."""
        (recommender,), attention = self.recommender, self.layer.multi_head_attention
        seen: dict[str, Tensor] = {}
        hooks = [
            attention.register_forward_pre_hook(lambda _, args: seen.update({RESIDUAL: args[0]})),
            attention.dense.register_forward_pre_hook(lambda _, args: seen.update({CONTEXT: args[0]})),
        ]
        try:
            losses = row_losses(recommender.full_sort_predict(batch), batch[recommender.ITEM_ID])
        finally:
            for hook in hooks:
                hook.remove()
        rows, last = torch.arange(len(batch)), batch[recommender.ITEM_SEQ_LEN].cpu() - 1
        kept = {name: values[rows, last].clone() for name, values in seen.items()}
        found = Interaction({recommender.ITEM_ID: batch[recommender.ITEM_ID], **kept})
        own = self.losses(self.states(found), found)
        return found if torch.allclose(own, losses, rtol=_TOLERANCE, atol=_TOLERANCE) else None


def row_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each row's target over all items but padding.

    Args:
        scores: [rows, items], or flat.
        targets: int64 [rows].

    Returns:
        [rows].
    """
    scores = scores.view(len(targets), -1)
    return F.cross_entropy(scores[:, 1:], targets.to(scores.device) - 1, reduction="none")
