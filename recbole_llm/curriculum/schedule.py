"""The values of the axis ``curriculum``: the weight of distilled answers in each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole_llm.curriculum.weight import adaptive_weight
from recbole_llm.errors import InputError

REAL, DISTILLED = "real", "distilled"
NEGLIGIBLE = 1e-12  # below what a float32 loss can resolve


def target_weights(weight: float) -> dict[str, float]:
    """Weights of the losses on real and on distilled answers; a target that carries none is left out.

    The loss of an epoch is (1 - weight) * L_real + weight * L_distilled, each the mean over its own tokens (SOFT,
    arXiv 2505.20771).

    Args:
        weight: lambda, in [0, 1]. At 1 the real answers need not be computed, below 1e-12 the distilled ones.

    Example:
        >>> target_weights(0.25), target_weights(1.0)
        ({'real': 0.75, 'distilled': 0.25}, {'distilled': 1.0})
    """
    if weight < NEGLIGIBLE:
        return {REAL: 1.0}
    return {DISTILLED: 1.0} if weight >= 1 else {REAL: 1 - weight, DISTILLED: weight}


class Curriculum(ABC):
    """Says with which weight the distilled answers are learnt in each epoch."""

    uses_distance: ClassVar[bool] = False
    """Whether the distance of generated and true titles must be measured."""

    @classmethod
    @abstractmethod
    def from_value(cls, value: str, settings: Mapping[str, Any]) -> Curriculum:
        """The curriculum of a value of the key ``curriculum`` and the run's settings."""

    @abstractmethod
    def weight(self, distances: Sequence[float]) -> float:
        """Weight of the next epoch.

        Args:
            distances: d_0, ..., d_t after t completed epochs; empty where they are not measured.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the result depends on, as JSON values: equal where two curricula are the same in all epochs."""

    @property
    def needs_distilled(self) -> bool:
        """Whether there is an epoch in which distilled answers count."""
        return True


@dataclass(frozen=True)
class FixedCurriculum(Curriculum):
    """A curriculum of equal weight in all epochs.

    Attributes:
        fixed: the weight, in [0, 1].

    Example:
        >>> FixedCurriculum(0.3).weight(distances=[]), FixedCurriculum(0.0).needs_distilled
        (0.3, False)
    """

    fixed: float

    @classmethod
    def from_value(cls, value: str, settings: Mapping[str, Any]) -> Curriculum:
        """``fixed:0.5``."""
        try:
            weight = float(value.partition(":")[2])
        except ValueError:
            weight = -1.0
        if not 0 <= weight <= 1:
            raise InputError(f"curriculum: {value!r} is not allowed; give fixed:<weight> with a weight in [0, 1]")
        return cls(weight)

    def weight(self, distances: Sequence[float]) -> float:
        """See :class:`Curriculum`."""
        return self.fixed

    def facts(self) -> dict[str, Any]:
        """See :class:`Curriculum`."""
        return {"weight": self.fixed}

    @property
    def needs_distilled(self) -> bool:
        """See :class:`Curriculum`."""
        return bool(target_weights(self.fixed).get(DISTILLED))


class SelfDistillation(FixedCurriculum):
    """Distilled answers only: SOFT without its self-adaptive part.

    Example:
        >>> SelfDistillation.from_value("sd_only", {}).weight(distances=[])
        1.0
    """

    @classmethod
    def from_value(cls, value: str, settings: Mapping[str, Any]) -> Curriculum:
        """``sd_only``."""
        return cls(1.0)


@dataclass(frozen=True)
class AdaptiveCurriculum(Curriculum):
    """SOFT's own: the weight falls as the model's answers approach the true titles.

    Attributes:
        alpha: how fast.

    Example:
        >>> curriculum = AdaptiveCurriculum(alpha=1.0)
        >>> [round(curriculum.weight(distances), 3) for distances in ([2.0], [2.0, 1.0], [2.0, 1.0, 0.0])]
        [1.0, 0.607, 0.368]
    """

    alpha: float
    uses_distance: ClassVar[bool] = True

    @classmethod
    def from_value(cls, value: str, settings: Mapping[str, Any]) -> Curriculum:
        """``adaptive``, with the key ``alpha``."""
        return cls(float(settings["alpha"]))

    def weight(self, distances: Sequence[float]) -> float:
        """See :class:`Curriculum`."""
        return adaptive_weight(distances[-1], distances[0], self.alpha, epoch=len(distances) - 1)

    def facts(self) -> dict[str, Any]:
        """See :class:`Curriculum`."""
        return {"alpha": self.alpha}
