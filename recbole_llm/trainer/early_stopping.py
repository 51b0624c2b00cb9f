"""When training stops, and which epoch's weights are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """First strict best; an equal value is no improvement (SOFT, arXiv 2505.20771).

    Attributes:
        patience: stop after this many validations in a row without improvement; 0 never stops.
        bigger: whether a larger score is better.
    """

    patience: int
    bigger: bool = True
    best_score: float | None = None
    best_epoch: int = 0
    waited: int = 0

    def update(self, epoch: int, score: float) -> bool:
        """Take the score of an epoch (1-based). Returns: whether it is the best so far."""
        best = self.best_score
        if best is None or math.isnan(best):
            better = best is None or not math.isnan(score)
        else:
            better = score > best if self.bigger else score < best
        if better:
            self.best_score, self.best_epoch, self.waited = score, epoch, 0
        else:
            self.waited += 1
        return better

    @property
    def stop(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.waited
