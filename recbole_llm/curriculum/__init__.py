"""Self-distillation and its schedule: how much a model learns from its own easier answers, and for how long."""

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
    "mean_distance",
    "target_weights",
]
