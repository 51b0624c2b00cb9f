"""The second targets of a fine-tuning under a curriculum, and the distance that the curriculum may go by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from recbole_llm.curriculum import Curriculum


@dataclass
class DistilledTargets:
    """What a curriculum adds to fine-tuning: a second target per example, and its weight in each epoch.

    Attributes:
        curriculum: gives the weight.
        answers: token ids of the distilled answer to each example's prompt; empty if there is none, and such an
            example has its true answer alone.
        distances: mean distance of generated and true titles before training and after each epoch; empty where the
            curriculum asks for none.
        measure: gives that distance for the model as it stands.
    """

    curriculum: Curriculum
    answers: Sequence[list[int]]
    distances: list[float] = field(default_factory=list)
    measure: Callable[[], float] | None = None

    @property
    def weight(self) -> float:
        """Weight of the distilled answers in the coming epoch."""
        return self.curriculum.weight(self.distances)

    def measured(self, has_next: bool) -> float | None:
        """The distance after an epoch; None, and not measured, where no other epoch asks for it."""
        if self.measure is None or not has_next:
            return None
        self.distances.append(self.measure())
        return self.distances[-1]
