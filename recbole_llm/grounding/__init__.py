"""From an LLM's answers to ranked items: groundings, the catalogue's index, re-weighting. Knows nothing of RecBole."""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.grounding.base import Answerer, Grounding, PromptedRows
    from recbole_llm.grounding.embedding import EmbeddingGrounding
    from recbole_llm.grounding.index import ItemIndex
    from recbole_llm.grounding.ranking import Ranking, rank_listed, rank_scores
    from recbole_llm.grounding.reweighting import (
        COLLABORATIVE_GAMMAS,
        POPULARITY_GAMMAS,
        collaborative_weights,
        gamma_ranks,
        popularity_weights,
        reweight,
        search_gamma,
    )

__all__ = [
    "COLLABORATIVE_GAMMAS",
    "POPULARITY_GAMMAS",
    "Answerer",
    "EmbeddingGrounding",
    "Grounding",
    "ItemIndex",
    "PromptedRows",
    "Ranking",
    "collaborative_weights",
    "gamma_ranks",
    "popularity_weights",
    "rank_listed",
    "rank_scores",
    "reweight",
    "search_gamma",
]

__getattr__ = lazy_exports(__name__, __file__)
