"""Self-distillation and its schedule: the weight of the model's own easier answers, by epoch."""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.curriculum.choice import make_curricula
    from recbole_llm.curriculum.schedule import (
        DISTILLED,
        REAL,
        AdaptiveCurriculum,
        Curriculum,
        FixedCurriculum,
        SelfDistillation,
        target_weights,
    )
    from recbole_llm.curriculum.weight import adaptive_weight, mean_distance

__all__ = [
    "DISTILLED",
    "REAL",
    "AdaptiveCurriculum",
    "Curriculum",
    "FixedCurriculum",
    "SelfDistillation",
    "adaptive_weight",
    "make_curricula",
    "mean_distance",
    "target_weights",
]

__getattr__ = lazy_exports(__name__, __file__)
