"""SOLID's codebook: class vectors of a model that reads classes alone, on one of RecBole's sequential models."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recbole_llm.data.rows import rows_digest
from recbole_llm.hashing import hash_arrays
from recbole_llm.semantic_ids.heads import Condition, GeneratedHead, SequenceVectors
from recbole_llm.settings.models import find_model
from recbole_llm.stages import UNFINISHED, Stage, stage_seed
from recbole_llm.training_state import OPTIMIZER, load_training, pack_optimizer, save_training, seeded, unpack_optimizer

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.settings.config import Config

# What the model of classes depends on, beside rows and classes.
SIZES = (
    *("solid_backbone", "head_layers", "semantic_epochs", "hidden_size", "embedding_size", "inner_size", "n_layers"),
    *("n_heads", "num_layers", "hidden_dropout_prob", "attn_dropout_prob", "dropout_prob", "hidden_act"),
    *("layer_norm_eps", "initializer_range", "MAX_ITEM_LIST_LENGTH", "learning_rate", "train_batch_size", "seed"),
)
FILE = "codebook.npy"
JUDGED_ROWS = 2048  # at once
log = logging.getLogger(__name__)


class _Ids:
    """What RecBole's sequential models ask a data set for: how many ids there are."""

    def __init__(self, count: int) -> None:
        self._count = count

    def num(self, field: str) -> int:
        return self._count


class SequentialBackbone(nn.Module):
    """One of RecBole's sequential models, which gives a state of a sequence of ids.

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
            ids: int64 [b, t], 0 after the last one.
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
    """SOLID's network on classes in place of items, without a branch of items; its class vectors are the codebook.

    Args:
        config: the resolved config.
        n_classes: classes, padding not among them.
    """

    def __init__(self, config: Config, n_classes: int) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.backbone = SequentialBackbone(config, n_classes + 1)
        self.vectors = SequenceVectors(width, config["MAX_ITEM_LIST_LENGTH"])
        self.condition = Condition(width)
        self.head = GeneratedHead(width, config["head_layers"], clip=None)
        self.translate = identity_layer(width)

    def forward(self, classes: Tensor, lengths: Tensor) -> Tensor:
        """Scores of the next class.

        Args:
            classes: int64 [b, t], 0 after the last one.
            lengths: int64 [b].

        Returns:
            [b, classes + 1]; -inf for padding.
        """
        embedded = self.vectors(self.backbone.embeddings[classes])
        state = self.head(self.backbone(classes, lengths), self.condition(embedded, lengths))
        scores: Tensor = state @ self.translate(self.backbone.embeddings).T
        scores[:, 0] = -torch.inf
        return scores


def identity_layer(width: int) -> nn.Linear:
    """A linear map that begins as the identity."""
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class CodebookStage(Stage[Tensor]):
    """The class vectors of the model of classes, trained, at the epoch of least validation loss.

    Args:
        config: the resolved config.
        classes: int64 [items], of :func:`recbole_llm.model.solid_classes.item_classes`.
        train: the training rows.
        valid: the validation rows, which choose the epoch; None for the last.
        device: device to train on.
    """

    name = "semantic-codebook"
    is_resumable = True

    def __init__(
        self, config: Config, classes: np.ndarray, train: Dataset, valid: Dataset | None, device: torch.device
    ) -> None:
        self._config, self._classes, self._train, self._valid = config, classes, train, valid
        self._device = device

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        digests = [rows_digest(part) for part in (self._train, self._valid) if part is not None]
        settings = {name: self._config[name] for name in SIZES}
        return {"settings": settings, "classes": hash_arrays(self._classes), "rows": digests}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        states = folder / UNFINISHED / "epochs"
        table = train_classes(self._config, self._classes, self._train, self._valid, self._device, states)
        np.save(folder / FILE, table.cpu().numpy())

    def load(self, folder: Path) -> Tensor:
        """See :class:`Stage`. Returns: float32 [classes, d]."""
        return torch.from_numpy(np.load(folder / FILE))


def train_classes(
    config: Config,
    classes: np.ndarray,
    train: Dataset,
    valid: Dataset | None,
    device: torch.device,
    states: Path | None = None,
) -> Tensor:
    """Train the model of classes.

    Args:
        config: see :class:`CodebookStage`, as for the next four.
        classes: int64 [items], class of each item.
        train: the training rows.
        valid: the validation rows, which choose the epoch; None for the last.
        device: device to train on.
        states: folder of its state after every epoch, from which it goes on; None for none.

    Returns:
        Its class vectors, float32 [classes, d].
    """
    with seeded(stage_seed(config["seed"], "solid", "codebook"), device):
        model = SemanticModel(config, int(classes.max())).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
        rows, judged = (_class_rows(part, classes, device) for part in (train, valid))
        first, best, kept = _resumed(model, optimizer, states, device)
        for epoch in range(first, config["semantic_epochs"]):
            if states is not None and epoch > first:
                _save(model, optimizer, states, epoch, best, kept, device)
            model.train()
            order = torch.randperm(len(rows[2])).to(device)  # drawn on the CPU: the same on every device
            for index in order.split(config["train_batch_size"]):
                optimizer.zero_grad()
                loss = cross_entropy(model(rows[0][index], rows[1][index]), rows[2][index])
                loss.backward()
                optimizer.step()
            loss_valid = _loss_of(model, judged) if len(judged[2]) else -float(epoch)
            if loss_valid < best:
                best, kept = loss_valid, copy.deepcopy(model.state_dict())
            told = f"validation loss {loss_valid:.4f}" if len(judged[2]) else "no validation rows"
            log.info("SOLID: classes, epoch %d, %s", epoch + 1, told)
        model.load_state_dict(kept)
    return model.backbone.embeddings[1:].detach().float()


def _save(
    model: SemanticModel,
    optimizer: torch.optim.Optimizer,
    states: Path,
    epoch: int,
    best: float,
    kept: dict[str, Tensor],
    device: torch.device,
) -> None:
    """Keep a training after so many epochs, with the weights of its best one."""
    tensors = {
        **{f"model.{name}": value for name, value in model.state_dict().items()},
        **{f"best.{name}": value for name, value in kept.items()},
        **pack_optimizer(optimizer, OPTIMIZER),
        "random": torch.get_rng_state(),
        **({"random.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}),  # dropout's
    }
    save_training(states, tensors, {"epoch": epoch, "best": best})


def _resumed(
    model: SemanticModel, optimizer: torch.optim.Optimizer, states: Path | None, device: torch.device
) -> tuple[int, float, dict[str, Tensor]]:
    """Go on from the last state, if there is one. Returns: epochs so far, the least loss, the weights that had it."""
    found = None if states is None else load_training(states)
    if found is None:
        return 0, np.inf, copy.deepcopy(model.state_dict())
    tensors, told = found
    names = list(model.state_dict())
    model.load_state_dict({name: tensors[f"model.{name}"] for name in names})
    unpack_optimizer(optimizer, tensors, OPTIMIZER)
    torch.set_rng_state(tensors["random"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    log.info("Resuming after epoch %d of SOLID's model of classes.", told["epoch"])
    return told["epoch"], told["best"], {name: tensors[f"best.{name}"] for name in names}


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
def _loss_of(model: SemanticModel, rows: tuple[Tensor, Tensor, Tensor]) -> float:
    """Mean loss of rows, see :func:`_class_rows`."""
    model.eval()
    histories, lengths, targets = rows
    parts = torch.arange(len(targets), device=targets.device).split(JUDGED_ROWS)
    losses = [cross_entropy(model(histories[i], lengths[i]), targets[i], reduction="sum") for i in parts]
    return float(torch.stack(losses).sum()) / len(targets)
