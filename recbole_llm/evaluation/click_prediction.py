"""The protocol ``ClickPrediction``: the probability of each row's label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recbole_llm.data.labels import label_rule
from recbole_llm.evaluation.base import Evaluation, Protocol, outside_ids
from recbole_llm.evaluation.collector import as_floats, collecting

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.trainer import Trainer

LEAST = 1e-15  # a probability below is taken for this, so that one row cannot weigh without bound


class ClickPrediction(Protocol):
    """Every row asks whether its user likes its item; AUC and LogLoss are RecBole's.

    Example:
        >>> ClickPrediction.gains(pd.DataFrame({"label": [1, 0], "score": [0.5, 0.5]})).round(4).tolist()
        [-0.6931, -0.6931]
    """

    name = "clicks"
    columns = ("user_id", "item_id", "label", "score")
    outcome = ("label", "score")
    gain = "log-likelihood"
    compared_metric = "logloss"
    has_labels = True

    def notes(self) -> tuple[str, ...]:
        """What counts as a like."""
        return (f"a like is {label_rule(self.config)}",)

    def words(self) -> dict[str, str]:
        """See :class:`Protocol`."""
        return {
            "Candidates": f"Every row asks whether its user likes its item; a like is {label_rule(self.config)}.",
            "Ties": "Rows of equal probability share their ranks in the AUC.",
            "Metrics": "AUC and LogLoss over all test rows, unrounded.",
        }

    def evaluate(self, trainer: Trainer, loader: AbstractDataLoader, show_progress: bool = False) -> Evaluation:
        """See :class:`Protocol`."""
        with collecting(trainer) as collector:
            metrics = trainer.evaluate(loader, load_best_model=False, show_progress=show_progress)
        pairs, (labels, scores) = collector.pairs, collector.clicks.T
        rows = {**outside_ids(loader.dataset, pairs), "label": labels.astype(np.int64), "score": scores}
        return Evaluation(as_floats(metrics), pd.DataFrame(rows), pairs)

    @staticmethod
    def gains(rows: pd.DataFrame) -> np.ndarray:
        """Log-likelihood of each row's label under its predicted probability."""
        labels, scores = rows["label"].to_numpy(), rows["score"].to_numpy(dtype=np.float64)
        gains: np.ndarray = np.log(np.clip(np.where(labels == 1, scores, 1 - scores), LEAST, 1))
        return gains
