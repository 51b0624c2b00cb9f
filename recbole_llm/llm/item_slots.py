"""Item slots in a prompt: tokens whose input embedding is an item's projected vector (LLaRA).

A slot is a negative id: ``-i`` stands for item ``i``. No tokenizer gives negative ids, so no text can be taken for a
slot, the vocabulary and its matrix stay as they are, and what moves ids about (padding, branches, beam search) needs to
know nothing of them. Only the input embedding does, and what asks for the probabilities of tokens: a slot has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.llm.parts import input_embedding


class ItemProjector(nn.Module):
    """Item vectors to the LLM's width: Linear, GELU, Linear (LLaRA, arXiv 2312.02445).

    Args:
        item_vectors: [items, d], frozen; a row of zeros, such as that of padding, says that nothing is known.
        width: width of the LLM's input embedding.
    """

    item_vectors: Tensor

    def __init__(self, item_vectors: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("item_vectors", item_vectors.float(), persistent=False)
        size = item_vectors.shape[1]
        self.layers = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, items: Tensor) -> Tensor:
        """Projected vectors of items [n]. Returns: float32 [n, width]; zeros where nothing is known of an item."""
        vectors = self.item_vectors[items]
        projected: Tensor = self.layers(vectors)
        return projected * vectors.any(dim=-1, keepdim=True)


class ItemSlots:
    """Fills the slots of an LLM's prompts.

    Args:
        llm: the LLM, bare or wrapped by peft.
        projector: gives the vector of a slot.
        neutral_token_id: the token whose own embedding fills every slot while :attr:`hybrid` is False; None for
            the mean of all embeddings as they are now, where the vocabulary has no token to spare.

    Attributes:
        hybrid: whether slots hold their item's vector; otherwise all of them are the neutral token, and the prompt is
            text alone.
    """

    def __init__(self, llm: nn.Module, projector: ItemProjector, neutral_token_id: int | None) -> None:
        self.projector, self.neutral_token_id, self.hybrid = projector, neutral_token_id, True
        self._items: Tensor | None = None
        embedding = input_embedding(llm)
        self._mean = embedding.weight.detach().float().mean(dim=0) if neutral_token_id is None else None
        embedding.register_forward_pre_hook(self._read)
        # First of the hooks: those of gradient checkpointing ask the final embeddings for gradients.
        embedding.register_forward_hook(self._fill, prepend=True)

    def _read(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note where slots are and give the embedding ids that it knows."""
        ids = args[0]
        self._items = -ids.clamp(max=0)
        return (torch.where(ids < 0, self.neutral_token_id or 0, ids), *args[1:])

    def _fill(self, _module: nn.Module, _args: tuple[Any, ...], embedded: Tensor) -> Tensor:
        """Put projected vectors where slots are."""
        items, self._items = self._items, None
        assert items is not None, "_read sees every call first"
        slots = items > 0
        if not slots.any():
            return embedded
        if self.hybrid:
            vectors = self.projector(items[slots]).to(embedded.dtype)
        elif self._mean is not None:
            vectors = self._mean.to(embedded).expand(int(slots.sum()), -1)
        else:
            return embedded
        return embedded.index_put(slots.nonzero(as_tuple=True), vectors)
