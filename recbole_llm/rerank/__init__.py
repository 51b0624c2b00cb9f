"""Re-ranking of any model's best items: maximal marginal relevance, and a bandit of relevance and dispersion.

Arrays in, arrays out; independent of RecBole.
"""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.rerank.bandit import ModularDispersionBandit
    from recbole_llm.rerank.lists import greedy_list, list_value, mmr_list, rerank_scores
    from recbole_llm.rerank.rerankers import LMDHReranker, MMRReranker, Reranker, RerankExample, reordered, standardised
    from recbole_llm.rerank.settings import RerankSettings, check_rerank
    from recbole_llm.rerank.simulation import ListWorld, simulated_regret
    from recbole_llm.rerank.space import ItemSpace, category_vectors, interaction_vectors

__all__ = [
    "RerankExample",
    "ItemSpace",
    "LMDHReranker",
    "ListWorld",
    "MMRReranker",
    "ModularDispersionBandit",
    "RerankSettings",
    "Reranker",
    "category_vectors",
    "check_rerank",
    "greedy_list",
    "interaction_vectors",
    "list_value",
    "mmr_list",
    "reordered",
    "rerank_scores",
    "simulated_regret",
    "standardised",
]

__getattr__ = lazy_exports(__name__, __file__)
