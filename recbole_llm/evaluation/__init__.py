"""How rows are evaluated: three protocols, their metrics, and how sure a difference is.

:func:`protocol_of` says which protocol a config asks for: the catalogue is ranked, one of a few listed candidates is
chosen, or clicks are predicted.
"""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.evaluation.answers import answer_metrics
    from recbole_llm.evaluation.base import Evaluation, Protocol
    from recbole_llm.evaluation.candidate_choice import CandidateChoice
    from recbole_llm.evaluation.categories import category_hit_ratio
    from recbole_llm.evaluation.click_prediction import ClickPrediction
    from recbole_llm.evaluation.full_ranking import FullRanking
    from recbole_llm.evaluation.protocols import PROTOCOLS, check_together, protocol_of
    from recbole_llm.evaluation.spread import answer_spread, spread_warnings
    from recbole_llm.evaluation.statistics import Comparison, compare_two_level, holm

__all__ = [
    "PROTOCOLS",
    "CandidateChoice",
    "ClickPrediction",
    "Comparison",
    "Evaluation",
    "FullRanking",
    "Protocol",
    "answer_metrics",
    "answer_spread",
    "category_hit_ratio",
    "check_together",
    "compare_two_level",
    "holm",
    "protocol_of",
    "spread_warnings",
]

__getattr__ = lazy_exports(__name__, __file__)
