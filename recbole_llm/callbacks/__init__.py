"""Experiment trackers of a run: Weights & Biases, MLflow, or those of another package."""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.callbacks.base import Callbacks, RunCallback, Scalars, Started
    from recbole_llm.callbacks.choice import check_callbacks, make_callbacks

__all__ = ["Callbacks", "RunCallback", "Scalars", "Started", "check_callbacks", "make_callbacks"]

__getattr__ = lazy_exports(__name__, __file__)
