"""SOLID: heads generated from the semantic classes of a history, on RecBole's sequential models (arXiv 2408.00123)."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recbole_llm.data.catalog import ItemCatalog, read_categories
from recbole_llm.data.general import told_interactions
from recbole_llm.data.rows import rows_digest
from recbole_llm.errors import InputError
from recbole_llm.evaluation.categories import drop_common
from recbole_llm.hashing import hash_arrays
from recbole_llm.rerank import interaction_vectors
from recbole_llm.semantic_ids.codebook import codebook_loss, snap_to_codebook
from recbole_llm.semantic_ids.heads import (
    Condition,
    GeneratedHead,
    SequenceVectors,
    classes_of_sets,
    classes_of_vectors,
    default_classes,
)
from recbole_llm.semantic_ids.solid_settings import SolidSettings
from recbole_llm.settings.models import find_model
from recbole_llm.stages import StageStore, stage_seed

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction

    from recbole_llm.settings.config import Config

DECODER_WIDTH = 64
# What the model of classes depends on, beside rows and classes.
SIZES = (
    *("solid_backbone", "head_layers", "semantic_epochs", "hidden_size", "embedding_size", "inner_size", "n_layers"),
    *("n_heads", "num_layers", "hidden_dropout_prob", "attn_dropout_prob", "dropout_prob", "hidden_act"),
    *("layer_norm_eps", "initializer_range", "MAX_ITEM_LIST_LENGTH", "learning_rate", "train_batch_size", "seed"),
)
log = logging.getLogger(__name__)


class _Ids:
    """What RecBole's sequential models ask a data set for: how many ids there are."""

    def __init__(self, count: int) -> None:
        self._count = count

    def num(self, field: str) -> int:
        return self._count


class Backbone(nn.Module):
    """One of RecBole's sequential models as what makes a state of a sequence of ids.

    Args:
        config: the resolved config; its sizes are the backbone's.
        n_ids: ids to embed, 0 for padding among them.
    """

    def __init__(self, config: Config, n_ids: int) -> None:
        super().__init__()
        self.inner = find_model(config["solid_backbone"])(config, _Ids(n_ids))
        self._n_ids = n_ids

    @property
    def embeddings(self) -> Tensor:
        """[ids, d]."""
        table: Tensor = self.inner.item_embedding.weight[: self._n_ids]  # BERT4Rec has one more, for its mask
        return table

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The state of each sequence before it scores ids.

        Args:
            ids: int64 [b, t], 0 behind the last one.
            lengths: int64 [b].

        Returns:
            [b, d].
        """
        state: Tensor
        if hasattr(self.inner, "reconstruct_test_data"):  # BERT4Rec: what stands where the next one is masked
            states = self.inner(self.inner.reconstruct_test_data(ids, lengths))
            state = self.inner.gather_indexes(states, lengths - 1)
        else:
            state = self.inner(ids, lengths)
        return state


class SemanticModel(nn.Module):
    """The same network on classes in place of items, without a branch of items; its class vectors are the codebook.

    Args:
        config: the resolved config.
        n_classes: classes, padding not among them.
    """

    def __init__(self, config: Config, n_classes: int) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.backbone = Backbone(config, n_classes + 1)
        self.vectors = SequenceVectors(width, config["MAX_ITEM_LIST_LENGTH"])
        self.condition = Condition(width)
        self.head = GeneratedHead(width, config["head_layers"], clip=None)
        self.translate = _identity(width)

    def forward(self, classes: Tensor, lengths: Tensor) -> Tensor:
        """Scores of the next class.

        Args:
            classes: int64 [b, t], 0 behind the last one.
            lengths: int64 [b].

        Returns:
            [b, classes + 1]; -inf for padding.
        """
        embedded = self.vectors(self.backbone.embeddings[classes])
        state = self.head(self.backbone(classes, lengths), self.condition(embedded, lengths))
        scores: Tensor = state @ self.translate(self.backbone.embeddings).T
        scores[:, 0] = -torch.inf
        return scores


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
        self.backbone = Backbone(config, self.n_items)
        self.item_vectors = SequenceVectors(width, self.max_seq_length)
        self.class_vectors = SequenceVectors(width, self.max_seq_length)
        self.class_embedding = nn.Embedding(n_classes + 1, width, padding_idx=0)
        self.decoder = nn.Sequential(
            nn.Linear(width, DECODER_WIDTH), nn.LeakyReLU(0.1), nn.Linear(DECODER_WIDTH, width)
        )
        self.item_condition, self.class_condition = Condition(width), Condition(width)
        self.head = GeneratedHead(width, settings.head_layers, settings.hyper_clip)
        self.translate = _identity(width)
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
        digests = [rows_digest(part) for part in (train, valid) if part is not None]
        facts = {"settings": {name: config[name] for name in SIZES}, "classes": hash_arrays(classes), "rows": digests}
        store = StageStore(Path(config["checkpoint_dir"]) / "stages")
        folder = store.get(
            "semantic-codebook", facts, lambda path: _train_classes(config, classes, train, valid, path, self.device)
        )
        table = torch.from_numpy(np.load(folder / "codebook.npy")).to(self.codebook)
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

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """See RecBole's trainer."""
        valid = None if valid_data is None else valid_data.dataset
        self.model.learn_codebook(self.config, train_data.dataset, valid)
        return super().fit(train_data, valid_data, *args, **kwargs)


SOLID.trainer_class = SOLIDTrainer


def _identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# ----------------------------------------------------------------------------------------------------------- classes


def item_classes(config: Config, settings: SolidSettings, train: Dataset, most: int) -> np.ndarray:
    """The semantic class of every item.

    Args:
        config: the resolved config.
        settings: of the model.
        train: the training rows, with the item columns that are needed.
        most: classes, at most.

    Returns:
        int64 [items], from 1 on; 0 for padding.

    Raises:
        InputError: the field is not loaded, or the encoder cannot be read.
    """
    seed = stage_seed(config["seed"], "solid", "classes")
    if settings.semantic_source == "field":
        found = read_categories(train, config["category_field"])
        if found is None:
            raise InputError("category_field", "load_col does not load it; add it to load_col", kind="data")
        return classes_of_sets(drop_common(found), most, seed)
    if settings.semantic_source == "kmeans_llm":
        return classes_of_vectors(_title_vectors(config, settings, train), most, seed)
    pairs = told_interactions(train)[:, :2]
    return classes_of_vectors(interaction_vectors(pairs, train.user_num, train.item_num), most, seed)


def _title_vectors(config: Config, settings: SolidSettings, train: Dataset) -> np.ndarray:
    """A text encoder's vectors of titles, zeros for an item without one."""
    from recbole_llm.llm.text_encoders import find_text_encoder, load_text_encoder

    catalog = ItemCatalog.from_dataset(train, config["title_field"], config["title_with"])
    try:
        encoder = load_text_encoder(find_text_encoder(settings.semantic_encoder), device=str(config["device"]))
    except InputError as error:  # a reader of encoders names the setting of coresets
        text = str(error).removeprefix("coreset_encoder: ")
        raise InputError("semantic_encoder", text.replace(", or give llm", ""), kind=error.kind) from error
    titled = np.flatnonzero(catalog.has_title)
    vectors = encoder.encode([catalog.titles[item] for item in titled])
    table = np.zeros((catalog.n_items, vectors.shape[1]), dtype=np.float32)
    table[titled] = vectors
    return table


def _train_classes(
    config: Config, classes: np.ndarray, train: Dataset, valid: Dataset | None, folder: Path, device: Any
) -> None:
    """Train the model of classes; its class vectors, at the epoch of least validation loss, go into the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(config["seed"], "solid", "codebook"))
        model = SemanticModel(config, int(classes.max())).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
        rows, judged = (_class_rows(part, classes, device) for part in (train, valid))
        best, kept = np.inf, copy.deepcopy(model.state_dict())
        for epoch in range(config["semantic_epochs"]):
            model.train()
            for index in torch.randperm(len(rows[2]), device=device).split(config["train_batch_size"]):
                optimizer.zero_grad()
                loss = cross_entropy(model(rows[0][index], rows[1][index]), rows[2][index])
                loss.backward()
                optimizer.step()
            loss_valid = _loss_of(model, judged) if len(judged[2]) else -float(epoch)
            if loss_valid < best:
                best, kept = loss_valid, copy.deepcopy(model.state_dict())
            log.info("SOLID: classes, epoch %d, validation loss %.4f", epoch + 1, loss_valid)
        model.load_state_dict(kept)
    np.save(folder / "codebook.npy", model.backbone.embeddings[1:].detach().float().cpu().numpy())


def _class_rows(part: Dataset | None, classes: np.ndarray, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Histories and targets of rows as classes, with the lengths. Returns: [rows, t], [rows], [rows]."""
    if part is None:
        none = torch.zeros(0, dtype=torch.long)
        return none[:, None], none, none
    rows, table = part.inter_feat, torch.from_numpy(classes).to(device)
    histories = rows[part.iid_field + part.config["LIST_SUFFIX"]].to(device)
    lengths, targets = rows[part.item_list_length_field].to(device), rows[part.iid_field].to(device)
    return table[histories], lengths, table[targets]


@torch.no_grad()
def _loss_of(model: SemanticModel, rows: tuple[Tensor, Tensor, Tensor], size: int = 2048) -> float:
    model.eval()
    histories, lengths, targets = rows
    parts = torch.arange(len(targets), device=targets.device).split(size)
    losses = [cross_entropy(model(histories[i], lengths[i]), targets[i], reduction="sum") for i in parts]
    return float(torch.stack(losses).sum()) / len(targets)
