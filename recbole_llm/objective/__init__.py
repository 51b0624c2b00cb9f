"""Losses of answers: among legal titles, counterfactual, and preferences.

Tensors or arrays in, a scalar out; independent of RecBole. Gradients flow through logits and log-ratios.
"""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.objective.bear import bear_loss, bear_weights
    from recbole_llm.objective.cft import cft_loss, cft_weights
    from recbole_llm.objective.choice import make_objective
    from recbole_llm.objective.legal_tokens import LegalTokens, masked_log_probs
    from recbole_llm.objective.msl import adaptive_temperature, msl_loss
    from recbole_llm.objective.negatives import false_negative_mask, interleave
    from recbole_llm.objective.preference import choice_loss, dmpo_loss, dpo_loss, sdpo_loss, simpo_loss
    from recbole_llm.objective.rpo import rpo_diagonal_loss, rpo_loss, rpo_weights
    from recbole_llm.objective.token_objective import TokenObjective
    from recbole_llm.objective.token_objectives import BEARObjective, CFTObjective, MSLObjective
    from recbole_llm.objective.tokens import AnswerTokens

__all__ = [
    "AnswerTokens",
    "BEARObjective",
    "CFTObjective",
    "LegalTokens",
    "MSLObjective",
    "TokenObjective",
    "adaptive_temperature",
    "bear_loss",
    "bear_weights",
    "cft_loss",
    "cft_weights",
    "choice_loss",
    "dmpo_loss",
    "dpo_loss",
    "false_negative_mask",
    "interleave",
    "make_objective",
    "masked_log_probs",
    "msl_loss",
    "rpo_diagonal_loss",
    "rpo_loss",
    "rpo_weights",
    "sdpo_loss",
    "simpo_loss",
]

__getattr__ = lazy_exports(__name__, __file__)
