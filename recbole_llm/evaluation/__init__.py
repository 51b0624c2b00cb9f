"""How rows are evaluated: three protocols, their metrics, and how sure a difference is.

:func:`protocol_of` says which protocol a config asks for: the catalogue is ranked, one of a few listed candidates is
chosen, or clicks are predicted.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_llm.evaluation.answers import answer_metrics
    from recbole_llm.evaluation.base import Evaluation, Protocol
    from recbole_llm.evaluation.candidate_choice import CandidateChoice
    from recbole_llm.evaluation.categories import category_hit_ratio
    from recbole_llm.evaluation.click_prediction import ClickPrediction
    from recbole_llm.evaluation.full_ranking import FullRanking
    from recbole_llm.evaluation.protocols import PROTOCOLS, check_together, protocol_of
    from recbole_llm.evaluation.statistics import minimal_detectable_difference, paired_bootstrap

_WHERE = {
    "Evaluation": "base",
    "Protocol": "base",
    "FullRanking": "full_ranking",
    "CandidateChoice": "candidate_choice",
    "ClickPrediction": "click_prediction",
    "PROTOCOLS": "protocols",
    "protocol_of": "protocols",
    "check_together": "protocols",
    "answer_metrics": "answers",
    "category_hit_ratio": "categories",
    "paired_bootstrap": "statistics",
    "minimal_detectable_difference": "statistics",
}
__all__ = [
    "PROTOCOLS",
    "CandidateChoice",
    "ClickPrediction",
    "Evaluation",
    "FullRanking",
    "Protocol",
    "answer_metrics",
    "category_hit_ratio",
    "check_together",
    "minimal_detectable_difference",
    "paired_bootstrap",
    "protocol_of",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that importing the package loads neither torch nor RecBole."""
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
