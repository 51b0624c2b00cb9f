"""How much of a history a model sees: returns and losses of SAR's actor-critic, the cut itself, and similar items.

Arrays or tensors in, the same out; independent of RecBole.
"""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.history.actor_critic import actor_critic_losses, discounted_returns
    from recbole_llm.history.cut import last_items
    from recbole_llm.history.policy import LengthPolicy, learn_by_table, newest, policy_loss
    from recbole_llm.history.settings import HistorySettings, SarSettings
    from recbole_llm.history.similar import similar_positions

__all__ = [
    "HistorySettings",
    "LengthPolicy",
    "SarSettings",
    "actor_critic_losses",
    "discounted_returns",
    "last_items",
    "learn_by_table",
    "newest",
    "policy_loss",
    "similar_positions",
]

__getattr__ = lazy_exports(__name__, __file__)
