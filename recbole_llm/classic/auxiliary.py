"""The auxiliary recommender: a classic model whose vectors, states and scores an LLM model uses.

One joint for all that borrow: scores (collaborative re-weighting, text-free assistant), item vectors (LLaRA) and
sequence states (the gates of iLoRA).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_llm.classic.training import fit_classic, restore, rows_facts
from recbole_llm.data.rows import Rows, load_rows
from recbole_llm.errors import InputError
from recbole_llm.settings.config import Config
from recbole_llm.settings.recommender_checks import check_own_data, is_of_a_sequence, no_state, no_vectors
from recbole_llm.stages import UNFINISHED, Stage, StageStore, read_manifest

CHECKPOINT = "model.pth"
STAGE = "auxiliary-"


class AuxiliaryRecommender:
    """A RecBole model trained on all training rows, or on the LLM's few ones, as a stage that all runs share.

    ``auxiliary_rows: few`` lends the LLM no knowledge of rows that it does not have itself.

    Args:
        config: the LLM model's config.
        name: the RecBole model.
        stages: where the trained model is kept.
        needs_states: whether :meth:`sequence_states` will be asked for.

    Attributes:
        model: the trained model, in eval mode.
        fingerprint: fingerprint of everything it was trained on.
        known: bool [items], the items it has learned something of.

    Raises:
        InputError: it can give no states: found out before it is trained.
    """

    def __init__(self, config: Config, name: str, stages: StageStore, needs_states: bool = False) -> None:
        check_own_data(config["model"], name, config["recommender_config"] or ())
        self.config = config.for_auxiliary(name)
        if needs_states:
            self._check_inputs()
        few_shot = config["auxiliary_rows"] == "few"
        if few_shot:
            self.config["train_sample_size"] = config["train_sample_size"]
        rows = load_rows(self.config, few_shot)
        folder = stages.run(AuxiliaryStage(self.config, name, rows))
        self.fingerprint = folder.name
        self._states: dict[tuple[int, ...], np.ndarray] = {}
        self.model = self.config.model_class(self.config, rows.train).to(self.config["device"]).eval()
        restore(self.model, folder / CHECKPOINT)
        self.known = _known_items(rows)

    @torch.no_grad()
    def scores(self, interaction: Interaction) -> np.ndarray:
        """Scores of all items for each row, larger is better. Returns: [rows, items]; -inf at the padding item."""
        rows = interaction.to(self.config["device"])
        scores = self.model.full_sort_predict(rows).view(len(interaction), -1).double()
        scores[:, 0] = -torch.inf
        table: np.ndarray = scores.cpu().numpy()
        return table

    def item_vectors(self) -> np.ndarray:
        """The model's item embeddings. Returns: float32 [items, d]; zeros for items it was not trained on."""
        vectors = self._item_embedding()[: len(self.known)].detach().float().cpu().numpy()
        return np.where(self.known[:, None], vectors, np.float32(0))

    @cached_property
    def state_width(self) -> int:
        """Entries of a sequence state."""
        return self._forward([(int(self.known.argmax()),)]).shape[1]

    @torch.no_grad()
    def sequence_states(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """What the model computes from a history before it scores items; each distinct history is computed once.

        Args:
            histories: item ids, oldest first; of the items it knows, the newest ``MAX_ITEM_LIST_LENGTH`` count.

        Returns:
            float32 [histories, d]; zeros where it knows no item of a history.
        """
        keys, size = self._known_of(histories), self.config["eval_batch_size"]
        new = [key for key in dict.fromkeys(keys) if key and key not in self._states]
        for start in range(0, len(new), size):
            part = new[start : start + size]
            self._states.update(zip(part, self._forward(part), strict=True))
        found = np.zeros((len(keys), self.state_width), dtype=np.float32)
        for row, key in enumerate(keys):
            if key:
                found[row] = self._states[key]
        return found

    @torch.no_grad()
    def item_states(self, histories: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """What the model computes for each item of a history, in the order of the history.

        GRU4Rec's and SASRec's states of an item know what came before it, BERT4Rec's the whole history.

        Args:
            histories: item ids, oldest first; of the items it knows, the newest ``MAX_ITEM_LIST_LENGTH`` count.

        Returns:
            float32 [known items, d] for each history.
        """
        keys, size = self._known_of(histories), self.config["eval_batch_size"]
        found = [np.zeros((0, self._item_embedding().shape[1]), dtype=np.float32) for _ in keys]
        rows = [row for row, key in enumerate(keys) if key]
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            own = vars(self._encoder)
            own["gather_indexes"] = lambda output, last: output  # all positions in place of the last one's
            try:
                states = self._run([keys[row] for row in part])
            finally:
                del own["gather_indexes"]
            for row, whole in zip(part, states.cpu().numpy(), strict=True):
                found[row] = whole[: len(keys[row])]
        return found

    def _known_of(self, histories: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """The newest items that the model knows of each history."""
        limit = self.config["MAX_ITEM_LIST_LENGTH"]
        return [tuple(item for item in history if self.known[item])[-limit:] for history in histories]

    @cached_property
    def _encoder(self) -> torch.nn.Module:
        """The model in double precision: a state is the same float32 whichever rows it is computed with."""
        encoder: torch.nn.Module = copy.deepcopy(self.model)
        return encoder.double()

    @torch.no_grad()
    def _forward(self, histories: Sequence[tuple[int, ...]]) -> np.ndarray:
        """States of histories. Returns: float32 [histories, d]."""
        states = self._run(histories)
        if states.ndim != 2:
            raise no_state(self.config["model"])
        return states.cpu().numpy()

    def _run(self, histories: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """What the model's forward computes from histories, float32; an error where that is not finite."""
        device = self.config["device"]
        items = torch.zeros(len(histories), self.config["MAX_ITEM_LIST_LENGTH"], dtype=torch.long, device=device)
        for row, history in enumerate(histories):
            items[row, : len(history)] = torch.tensor(history, device=device)
        lengths = torch.tensor([len(history) for history in histories], device=device)
        given = {"item_seq": items, "item_seq_len": lengths}
        states: torch.Tensor = self._encoder(*(given[name] for name in self._check_inputs())).float()
        if not (finite := torch.isfinite(states).reshape(len(states), -1).all(dim=1)).all():
            history = histories[int((~finite).nonzero()[0])]
            raise InputError(
                f"recommender: {self.config['model']}'s state of the history {list(history)} is not finite; train it "
                "with a lower learning_rate in recommender_config",
                kind="numeric",
            )
        return states

    def _check_inputs(self) -> list[str]:
        """Names of the inputs of the model's forward, which must not ask for more than a sequence."""
        wanted = list(inspect.signature(self.config.model_class.forward).parameters)[1:]
        if not is_of_a_sequence(wanted):
            raise no_state(self.config["model"])
        return wanted

    def _item_embedding(self) -> torch.Tensor:
        embedding = getattr(self.model, "item_embedding", None)
        if not isinstance(embedding, torch.nn.Embedding):
            raise no_vectors(self.config["model"])
        return embedding.weight


class AuxiliaryStage(Stage[Path]):
    """An auxiliary recommender, trained; its result is the folder that holds its checkpoint.

    Args:
        config: config of the auxiliary recommender.
        model: name of the auxiliary recommender.
        rows: rows that it learns from.
    """

    def __init__(self, config: Config, model: str, rows: Rows) -> None:
        self._config, self._rows, self.name = config, rows, f"{STAGE}{model}"

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        settings = {**self._config.learning_facts(), "train_sample_size": None}  # the rows themselves tell
        return {"settings": settings, "rows": rows_facts(self._rows), "n_rows": len(self._rows.train)}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        init_seed(self._config["seed"], self._config["reproducibility"])
        fit_classic(self._config, self._rows, folder / CHECKPOINT, unfinished=folder / UNFINISHED)

    def load(self, folder: Path) -> Path:
        """See :class:`Stage`."""
        return folder


def auxiliary_rows(stages: StageStore) -> int | None:
    """On how many rows (interactions, of a general model) the auxiliary recommender of a run was trained.

    Args:
        stages: stages of the run.

    Returns:
        None where none was asked for.
    """
    found = [folder for stage, folder in stages.used.items() if stage.startswith(STAGE)]
    if not found:
        return None
    return int(read_manifest(stages.root / found[-1])["facts"]["n_rows"])


def _known_items(rows: Rows) -> np.ndarray:
    """Items that occur in training rows, as targets or in histories. Returns: bool [items]; False for padding."""
    train, known = rows.train.inter_feat, np.zeros(rows.whole.item_num, dtype=bool)
    for column in (rows.train.iid_field, rows.train.iid_field + rows.train.config["LIST_SUFFIX"]):
        if column in train:
            known[train[column].numpy().ravel()] = True
    known[0] = False
    return known
