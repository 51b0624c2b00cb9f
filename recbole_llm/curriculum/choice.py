"""The curricula that a run's settings name."""

from __future__ import annotations

from typing import cast

from recbole_llm.curriculum.schedule import Curriculum
from recbole_llm.declare import Settings
from recbole_llm.registry import find_choice


def make_curricula(settings: Settings) -> list[Curriculum]:
    """One curriculum per value of ``alpha``; none where every row is trained towards its true title alone.

    Args:
        settings: ``curriculum`` and ``alpha``.

    Raises:
        InputError: no such curriculum.

    Example:
        >>> make_curricula({"curriculum": "adaptive", "alpha": [0.5, 1.0]})
        [AdaptiveCurriculum(alpha=0.5), AdaptiveCurriculum(alpha=1.0)]
        >>> make_curricula({"curriculum": "none", "alpha": 1.0})
        []
    """
    value, alpha = settings["curriculum"], settings["alpha"]
    choice = cast("type[Curriculum] | None", find_choice("curriculum", value))
    if choice is None:
        return []
    alphas = alpha if isinstance(alpha, list | tuple) else [alpha]
    made = [choice.from_value(value, {"alpha": one}) for one in alphas]
    different = {str(curriculum.facts()): curriculum for curriculum in made}
    return [curriculum for curriculum in different.values() if curriculum.needs_distilled]
