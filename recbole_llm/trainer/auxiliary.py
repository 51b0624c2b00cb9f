"""The auxiliary recommender: a classic model whose knowledge an LLM model borrows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_llm.config import Config
from recbole_llm.data.rows import Rows, load_rows, rows_digest
from recbole_llm.stages import StageStore
from recbole_llm.trainer.classic import fit_classic, restore

CHECKPOINT = "model.pth"


class AuxiliaryRecommender:
    """A RecBole model trained on all training rows, as a stage that all runs share.

    Args:
        config: the LLM model's config.
        name: the RecBole model.
        stages: where the trained model is kept.
    """

    def __init__(self, config: Config, name: str, stages: StageStore) -> None:
        self.config = config.for_auxiliary(name)
        rows = load_rows(self.config, few_shot=False)
        folder = stages.get(f"auxiliary-{name}", self._facts(rows), lambda place: self._train(rows, place))
        self.model = self.config.model_class(self.config, rows.train).to(self.config["device"]).eval()
        restore(self.model, folder / CHECKPOINT)

    def _facts(self, rows: Rows) -> dict[str, Any]:
        train = rows.train.inter_feat
        pairs = torch.stack([train[rows.train.uid_field], train[rows.train.iid_field]], dim=1)
        return {
            "settings": self.config.learning_facts(),
            "rows": [rows_digest(rows.valid), int(pairs.sum()), len(pairs), _digest(pairs)],
        }

    def _train(self, rows: Rows, folder: Path) -> None:
        init_seed(self.config["seed"], self.config["reproducibility"])
        fit_classic(self.config, rows, folder / CHECKPOINT)

    @torch.no_grad()
    def scores(self, interaction: Interaction) -> np.ndarray:
        """Scores of all items for each row, larger is better. Returns: [rows, items]; -inf at the padding item."""
        rows = interaction.to(self.config["device"])
        scores = self.model.full_sort_predict(rows).view(len(interaction), -1).double()
        scores[:, 0] = -torch.inf
        return scores.cpu().numpy()


def _digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
