"""The objective that a run's settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from recbole_llm.objective.token_objective import TokenObjective
from recbole_llm.registry import find_choice


def make_objective(settings: Mapping[str, Any]) -> TokenObjective | None:
    """The loss of an answer's tokens; None where it is the mean negative log-likelihood.

    Args:
        settings: ``objective`` and what its value reads.

    Raises:
        InputError: no such objective.

    Example:
        >>> make_objective({"objective": "cft", "cft_weight": 0.2})
        CFTObjective(weight=0.2)
        >>> make_objective({"objective": "nll"})
    """
    choice = cast("type[TokenObjective] | None", find_choice("objective", settings["objective"]))
    return None if choice is None else choice.from_settings(settings)
