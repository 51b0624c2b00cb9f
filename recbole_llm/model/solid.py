"""SOLID: heads generated from the semantic classes of a history, on RecBole's sequential models (arXiv 2408.00123)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recbole_llm.model.solid_classes import item_classes
from recbole_llm.model.solid_codebook import CodebookStage, SequentialBackbone, identity_layer
from recbole_llm.semantic_ids.codebook import codebook_loss, snap_to_codebook
from recbole_llm.semantic_ids.heads import Condition, GeneratedHead, SequenceVectors, default_classes
from recbole_llm.semantic_ids.solid_settings import SolidSettings
from recbole_llm.stages import StageStore

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction

    from recbole_llm.settings.config import Config

DECODER_WIDTH = 64
log = logging.getLogger(__name__)


class SOLID(SequentialRecommender):
    """A sequential model whose head is generated for each history: by its classes, and in small by its items.

    The state x of the backbone goes through layers whose weights two conditions make: the classes of the history,
    and its items, whose vectors are first snapped to a codebook of class vectors. A state is compared with all items.

    Args:
        config: the resolved config.
        dataset: the training rows.

    Attributes:
        class_of: int64 [items], the class of each item; 0 for padding, and for all before training.
        codebook: [classes, d], class vectors of a model of classes alone; those of the first ``n_used`` count.
    """

    trainer_class: ClassVar[type]
    class_of: Tensor
    n_used: Tensor

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self._settings = settings = SolidSettings.from_settings(config.final_config_dict)
        width = config["hidden_size"]
        n_classes = settings.n_semantic or default_classes(self.n_items - 1)
        self.backbone = SequentialBackbone(config, self.n_items)
        self.item_vectors = SequenceVectors(width, self.max_seq_length)
        self.class_vectors = SequenceVectors(width, self.max_seq_length)
        self.class_embedding = nn.Embedding(n_classes + 1, width, padding_idx=0)
        self.decoder = nn.Sequential(
            nn.Linear(width, DECODER_WIDTH), nn.LeakyReLU(0.1), nn.Linear(DECODER_WIDTH, width)
        )
        self.item_condition, self.class_condition = Condition(width), Condition(width)
        self.head = GeneratedHead(width, settings.head_layers, settings.hyper_clip)
        self.translate = identity_layer(width)
        self.codebook = nn.Parameter(torch.zeros(n_classes, width), requires_grad=settings.codebook_trainable)
        self.register_buffer("class_of", torch.zeros(self.n_items, dtype=torch.long))
        self.register_buffer("n_used", torch.tensor(1))

    # ---- what comes before training

    def learn_codebook(self, config: Config, train: Dataset, valid: Dataset | None) -> None:
        """Name every item's class, and train a model of classes alone for the codebook, as a stage.

        Args:
            config: the resolved config.
            train: the training rows.
            valid: the validation rows, which choose its epoch; None for the last.
        """
        classes = item_classes(config, self._settings, train, len(self.codebook))
        n_used = int(classes.max())
        sizes = np.bincount(classes[1:])[1:]
        log.info("SOLID: %d classes of %d to %d items", n_used, sizes.min(), sizes.max())
        stage = CodebookStage(config, classes, train, valid, self.device)
        table = StageStore(Path(config["checkpoint_dir"]) / "stages").run(stage).to(self.codebook)
        self.class_of.copy_(torch.from_numpy(classes))
        self.n_used.fill_(n_used)
        with torch.no_grad():
            self.codebook[:n_used] = table

    # ---- the network

    def _states(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """What is compared with items [b, d], and the distance of class vectors to codewords (a scalar)."""
        ids, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        items = self.item_vectors(self.backbone.embeddings[ids])
        classes = self.class_vectors(self.class_embedding(self.class_of[ids]))
        real = ids > 0
        snapped = torch.zeros_like(items)
        _, words = snap_to_codebook(items[real], self.codebook[: int(self.n_used)])
        distance = codebook_loss(classes[real], words if self._settings.codebook_trainable else words.detach())
        words = words.detach()  # the codebook learns from the distance alone
        if self._settings.straight_through:
            words = words + items[real] - items[real].detach()
        snapped[real] = words
        by_items = self.item_condition(self.decoder(snapped), lengths)
        state = self.head(self.backbone(ids, lengths), self.class_condition(classes, lengths), by_items)
        return state, distance

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Cross-entropy over the catalogue, and ``codebook_weight`` times the distance to the codebook."""
        state, distance = self._states(interaction)
        scores = state @ self.translate(self.backbone.embeddings).T
        return cross_entropy(scores, interaction[self.ITEM_ID]) + self._settings.codebook_weight * distance

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of each row's item. Returns: [rows]."""
        items = self.translate(self.backbone.embeddings[interaction[self.ITEM_ID]])
        scores: Tensor = (self._states(interaction)[0] * items).sum(dim=1)
        return scores

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items. Returns: [rows, items]."""
        scores: Tensor = self._states(interaction)[0] @ self.translate(self.backbone.embeddings).T
        return scores


class SOLIDTrainer(Trainer):
    """RecBole's trainer, after the classes and the codebook are known."""

    keeps_epochs: ClassVar[bool] = True

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """See RecBole's trainer."""
        if not self.start_epoch:  # a training that goes on has them, and what it has made of the codebook
            valid = None if valid_data is None else valid_data.dataset
            self.model.learn_codebook(self.config, train_data.dataset, valid)
        return super().fit(train_data, valid_data, *args, **kwargs)


SOLID.trainer_class = SOLIDTrainer
