"""LLMEmb: an LLM's item vectors in a sequential model (arXiv 2409.19925); it serves without the LLM."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.classic.with_vectors import VectorInputs, with_vectors
from recbole_llm.grounding.ranking import Ranking, rank_scores
from recbole_llm.llm.backbone import Backbone
from recbole_llm.model.backbones import load_llm
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.item_vectors import ItemVectors
from recbole_llm.recbole_checkpoints import load_checkpoint
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import AlignmentSettings
from recbole_llm.settings.vectors import TRAINING

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

CHECKPOINT = "model.pth"
ROWS = 1024  # scored at once


class LLMEmb(LLMRecommender):
    """RecBole's SASRec, GRU4Rec or BERT4Rec whose item embeddings are computed from vectors that a tuned LLM gives.

    The LLM reads each item's attributes and is tuned so that two thinned views of an item lie near each other. The
    vectors are computed once, reduced and frozen; the sequential model learns two linear maps of them with its own
    weights, pulled towards the item embeddings of a recommender that knows ids alone. What is kept is that model: it
    ranks natively, on a CPU, and the LLM is not loaded again.

    Attributes:
        recommender: the sequential model, once it is trained or loaded.
    """

    reads_items: ClassVar[bool] = True
    trainer: ClassVar[str] = "recbole_llm.trainer.llmemb_trainer:LLMEmbTrainer"

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.rat = AlignmentSettings.from_settings(config.final_config_dict)
        self.dataset = dataset
        self.recommender: Any = None

    # ---- the LLM, where vectors have to be computed

    @cached_property
    def item_vectors(self) -> ItemVectors:
        """The vectors and how they come about."""
        loaded: list[Backbone] = []

        def load() -> Backbone:
            return loaded.pop() if loaded else load_llm(self.config, self.device, self.stages, self.build_tiny)

        @cache
        def fingerprint() -> str:
            loaded.append(load())  # kept until it is tuned or read with
            return loaded[0].fingerprint

        return ItemVectors(self.config, self.dataset, self.stages, load, fingerprint)

    # ---- the sequential model

    @cached_property
    def backbone_config(self) -> Config:
        """The config of the sequential model: the data and training of the run, and ``rat_config``."""
        given = {key: self.config[key] for key in TRAINING}
        pairs = {"loss_type": "CE" if self.rat.loss == "ce" else "BPR"}
        own = self.config.for_auxiliary(self.rat.backbone, {**given, **pairs, **(self.rat.config or {})})
        own["train_sample_size"] = self.config["train_sample_size"]
        return own

    def build(self, table: VectorInputs) -> Any:
        """An untrained sequential model on some vectors."""
        config = self.backbone_config
        return with_vectors(config.model_class)(config, self.dataset, table).to(self.device)

    def restore(self, folder: Path) -> None:
        """Take the sequential model that was trained, vectors included, from a run folder or a stage."""
        state = load_checkpoint(folder / CHECKPOINT, map_location=self.device)["state_dict"]
        vectors = torch.zeros_like(state["item_embedding.vectors"], device=self.device)
        self.recommender = self.build(VectorInputs(vectors, self.rat))
        self.recommender.load_state_dict(state)
        self.recommender.eval()

    def facts(self) -> dict[str, Any]:
        """What the vectors depend on."""
        return self.item_vectors.encoding.facts()

    def prepare(self) -> None:
        """Nothing: what ranks is the sequential model."""

    # ---- ranking

    @property
    def item_embeddings(self) -> np.ndarray:
        """The LLM's vectors of the items, as the sequential model has them. Returns: float32 [items, p]."""
        vectors: np.ndarray = self.recommender.item_embedding.vectors.detach().cpu().numpy()
        return vectors

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items by the sequential model. Returns: float64 [rows, items]; -inf for the padding item."""
        rows = interaction.to(self.device)
        scores: torch.Tensor = self.recommender.full_sort_predict(rows).view(len(interaction), -1).double()
        scores[:, 0] = -torch.inf
        return scores

    def rank(self, interaction: Interaction, k: int, targets: torch.Tensor | None = None) -> Ranking:
        """See :class:`LLMRecommender`."""
        targets = self._targets(interaction, targets)
        parts = torch.arange(len(interaction)).split(ROWS)
        return Ranking.join(
            [
                rank_scores(self.full_sort_predict(interaction[part]), None if targets is None else targets[part], k)
                for part in parts
            ]
        )
