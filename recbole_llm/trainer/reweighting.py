"""Re-weighting of distances by popularity or a collaborative model, each metric under its own gamma (BIGRec, 3.3)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.classic.auxiliary import AuxiliaryRecommender
from recbole_llm.grounding import (
    COLLABORATIVE_GAMMAS,
    POPULARITY_GAMMAS,
    collaborative_weights,
    popularity_weights,
    reweight,
    search_gamma,
)
from recbole_llm.grounding.rank_metrics import RANK_METRICS
from recbole_llm.grounding.settings import ReweightSettings
from recbole_llm.model.bigrec import BIGRec, Rescore
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader

GRIDS = {"popularity": POPULARITY_GAMMAS, "collaborative": COLLABORATIVE_GAMMAS}
Weights = Callable[[Interaction], np.ndarray]  # of an interaction: [items] or [rows, items]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rescorer:
    """See :class:`Rescore`."""

    weights: Weights
    gamma: float

    def __call__(self, distances: np.ndarray, interaction: Interaction) -> np.ndarray:
        found: np.ndarray = reweight(distances, self.weights(interaction), self.gamma)
        return found


class Reweighting:
    """The weights that a run's config names, and how strongly they count.

    Args:
        config: the resolved config; ``reweight`` is not ``none``.
        model: the recommender whose distances are weighted.
        valid_metric: the metric that chooses the epoch, as the results name it.

    Attributes:
        gammas: metric name to gamma, once :meth:`search` has run.
    """

    def __init__(self, config: Config, model: BIGRec, valid_metric: str) -> None:
        self.config, self.model, self.valid_metric = config, model, valid_metric
        self.settings = ReweightSettings.from_settings(config.final_config_dict)
        self.gammas: dict[str, float] = {}
        self._weights = self._popularity() if self.settings.reweight == "popularity" else self._collaboration()

    def search(self, valid_data: AbstractDataLoader | None) -> None:
        """Choose gamma per metric on validation for the model as it stands, or take the one that was set."""
        if self.settings.gamma is not None:
            self.gammas = {self.valid_metric: float(self.settings.gamma)}
        else:
            self.gammas = self._best_gammas(GRIDS[self.settings.reweight], valid_data)
        log.info("re-weighting by %s: gamma %s", self.settings.reweight, self.gammas)

    def rescorer(self, gamma: float) -> Rescore:
        """What turns distances [rows, items] of an interaction into re-weighted ones."""
        return _Rescorer(self._weights, gamma)

    def _popularity(self) -> Weights:
        """Weights by the number of interactions before the split, the same for all rows."""
        counts = np.bincount(self.model.pairs_before_split[:, 1], minlength=self.model.catalog.n_items)
        weights = popularity_weights(counts, rankable=np.arange(len(counts)) > 0)
        return lambda interaction: weights

    def _collaboration(self) -> Weights:
        """Weights of each row by the scores of the auxiliary recommender."""
        auxiliary = AuxiliaryRecommender(self.config, self.config["recommender"], self.model.stages)
        return lambda interaction: collaborative_weights(auxiliary.scores(interaction))

    def _best_gammas(self, grid: Sequence[float], valid_data: AbstractDataLoader) -> dict[str, float]:
        parts = [(self.model.distances(batch), self._weights(batch), targets) for batch, _, _, targets in valid_data]
        distances = np.concatenate([part[0] for part in parts])
        weights = parts[0][1] if parts[0][1].ndim == 1 else np.concatenate([part[1] for part in parts])
        targets = torch.cat([part[2] for part in parts]).numpy()
        ranked = np.isfinite(distances[np.arange(len(targets)), targets])  # the others are misses whatever gamma is
        metrics = [
            (name, k) for name in self.config["metrics"] if name.lower() in RANK_METRICS for k in self.config["topk"]
        ]
        labels = {f"{name.lower()}@{k}": (name, k) for name, k in metrics}
        if not ranked.any():
            return dict.fromkeys(labels, 0.0)
        weights = weights if weights.ndim == 1 else weights[ranked]
        return search_gamma(distances[ranked], weights, targets[ranked], labels, grid)
