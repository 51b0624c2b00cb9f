"""The catalogue's titles as vectors, computed once per LLM and titles and shared by all runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.distributed import process
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.model.backbones import number_facts
from recbole_llm.stages import Stage

if TYPE_CHECKING:
    from recbole_llm.model.base import LLMRecommender

FILE = "embeddings.npy"


class TitleEmbeddingsStage(Stage[np.ndarray]):
    """Embeddings of the titles by item id, zeros where an item has none.

    Args:
        catalog: the items.
        encoder: what an embedding depends on besides its text, as plain data.
        embed: texts to vectors, float32 ``[texts, d]``.
    """

    name = "item-embeddings"
    is_joint = True

    def __init__(
        self, catalog: ItemCatalog, encoder: Mapping[str, Any], embed: Callable[[Sequence[str]], np.ndarray]
    ) -> None:
        self._catalog, self._encoder, self._embed = catalog, encoder, embed

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {**self._encoder, "catalog": self._catalog.fingerprint()}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        titled = np.flatnonzero(self._catalog.has_title)
        vectors = self._embed([self._catalog.titles[item] for item in titled])
        table = np.zeros((self._catalog.n_items, vectors.shape[1]), dtype=np.float32)
        table[titled] = vectors
        if process().is_main:
            np.save(folder / FILE, table)

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`. Returns: float32 [items, d]."""
        table: np.ndarray = np.load(folder / FILE)
        return table


def encoder_facts(model: LLMRecommender, encoder: TextEncoder) -> dict[str, Any]:
    """What a vector by a recommender's untuned LLM depends on besides its text, as JSON values."""
    numbers = number_facts(model.config)
    return {"llm": model.backbone.fingerprint, **numbers, "encoder": encoder.fingerprint_facts()}
