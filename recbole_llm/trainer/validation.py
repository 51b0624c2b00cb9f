"""Evaluation of an epoch's weights, and the choice of the best epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Scored(Protocol):
    """What a validation gives."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metric name to value, unrounded."""


@dataclass(frozen=True)
class Validation:
    """How the weights of an epoch are evaluated.

    Attributes:
        evaluate: evaluates the model as it stands; None where the loss alone is asked for, and nothing is generated.
        metric: the metric that chooses the epoch, or ``loss``.
        bigger: whether a larger value of it is better.
        loss: gives the loss of the validation rows' answers; None if not needed, or where no row can be read.
    """

    evaluate: Callable[[], Scored] | None
    metric: str
    bigger: bool = True
    loss: Callable[[], float | None] | None = None

    def score(self, record: Mapping[str, Any]) -> float:
        """Validation score of a validated epoch by its record, larger is better."""
        score: float = record["valid"][self.metric]
        return score if self.bigger else -score


def best_epoch(history: Sequence[Mapping[str, Any]], validation: Validation | None) -> int:
    """The first epoch (1-based) with the best validation score; the last one without validation."""
    validated = [record for record in history if "valid" in record]
    if not validated or validation is None:
        return len(history)
    return int(max(validated, key=validation.score)["epoch"])
