"""From generated text to items: exact nearest items and ranks, and re-weighting. Knows nothing of RecBole."""

from recbole_llm.grounding.index import ItemIndex
from recbole_llm.grounding.ranking import Ranking, rank_listed, rank_scores
from recbole_llm.grounding.reweight import (
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
    "ItemIndex",
    "Ranking",
    "collaborative_weights",
    "gamma_ranks",
    "popularity_weights",
    "rank_listed",
    "rank_scores",
    "reweight",
    "search_gamma",
]
