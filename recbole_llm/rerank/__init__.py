"""Re-ordering of the best items of any model: maximal marginal relevance, and a bandit of relevance and dispersion.

Arrays in, arrays out; knows nothing of RecBole.
"""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.rerank.bandit import ModularDispersionBandit
    from recbole_llm.rerank.lists import greedy_list, list_value, mmr_list, rerank_scores

__all__ = ["ModularDispersionBandit", "greedy_list", "list_value", "mmr_list", "rerank_scores"]

__getattr__ = lazy_exports(__name__, __file__)
