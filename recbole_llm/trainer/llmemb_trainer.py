"""Training of LLMEmb: contrastive tuning, item vectors, a recommender of ids, and the aligned sequential model."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.utils import init_seed

from recbole_llm.classic.kept_vectors import write_item_vectors
from recbole_llm.classic.training import best_epoch, fit_classic
from recbole_llm.classic.with_vectors import VectorInputs
from recbole_llm.data.rows import Rows, load_rows, rows_digest
from recbole_llm.disk import write_json
from recbole_llm.hashing import hash_arrays
from recbole_llm.model.item_vectors import ADAPTER
from recbole_llm.model.llmemb import CHECKPOINT, LLMEmb
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import AlignmentSettings
from recbole_llm.stages import UNFINISHED, Stage
from recbole_llm.timeline import EVALUATE, timeline
from recbole_llm.trainer.llm_trainer import LLMTrainer
from recbole_llm.trainer.tuning import TuningResult

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader

HISTORY = "history.json"
log = logging.getLogger(__name__)


class AlignmentStage(Stage[TuningResult]):
    """The sequential model on the item vectors, trained by RecBole's trainer (RAT).

    Args:
        model: with its vectors.
        on_score: told epoch and validation score of every validated epoch.
    """

    name = "alignment"

    def __init__(self, model: LLMEmb, on_score: Callable[[int, float], None] | None = None) -> None:
        self.model, self._on_score = model, on_score

    @cached_property
    def _rows(self) -> Rows:
        return load_rows(self.model.backbone_config, few_shot=True)

    @property
    def n_rows(self) -> int:
        """Rows trained on."""
        return len(self._rows.train)

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        model, rows = self.model, self._rows
        train = rows.train.inter_feat
        pairs = torch.stack([train[rows.train.uid_field], train[rows.train.iid_field]], dim=1)
        rat = AlignmentSettings.from_settings(model.config.final_config_dict)
        return {
            "vectors": model.item_vectors.fingerprint,
            "aligned": model.auxiliary.fingerprint if rat.alpha else None,
            "settings": {**model.backbone_config.learning_facts(), "train_sample_size": None},
            "rat": {
                "loss": rat.loss,
                "alpha": rat.alpha,
                "tau": rat.tau,
                "items": rat.align_items,
                "freeze": rat.freeze,
            },
            "rows": [rows_digest(rows.valid), int(pairs.sum()), len(pairs), hash_arrays(pairs.numpy())],
        }

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        model = self.model
        vectors = torch.from_numpy(model.item_vectors.table).to(model.device)
        aligned = torch.from_numpy(model.auxiliary.item_vectors()) if model.rat.alpha else None
        table = VectorInputs(vectors, model.rat, aligned)
        config = model.backbone_config
        init_seed(config["seed"], config["reproducibility"])
        trainer = fit_classic(
            config,
            self._rows,
            folder / CHECKPOINT,
            self._on_score,
            lambda *_: model.build(table),
            unfinished=folder / UNFINISHED,
        )
        losses = [{"epoch": 1 + epoch, "train_loss": float(loss)} for epoch, loss in trainer.train_loss_dict.items()]
        write_json(folder / HISTORY, {"epochs": losses, "best": best_epoch(trainer, bool(len(self._rows.valid)))})

    def load(self, folder: Path) -> TuningResult:
        """See :class:`Stage`; the model gets the trained one."""
        self.model.restore(folder)
        found = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
        return TuningResult(self.name, folder, found["epochs"], found["best"])


class LLMEmbTrainer(LLMTrainer):
    """Runs the stages of LLMEmb and evaluates the sequential model like any other."""

    model: LLMEmb

    @classmethod
    def stage_names(cls, config: Config) -> list[str]:
        """See :class:`LLMTrainer`."""
        return [AlignmentStage.name]

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """None of its own: RecBole's trainer of the sequential model has one."""
        return torch.optim.SGD([torch.zeros(1)], lr=1.0)

    def fit(
        self,
        train_data: Any,
        valid_data: AbstractDataLoader | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float | None, dict[str, float] | None]:
        """See :class:`LLMTrainer`; it is RecBole's trainer of the sequential model that validates."""
        self.eval_collector.data_collect(train_data)
        timeline().begin(AlignmentStage.name)
        _ = self.model.item_vectors.table  # by all processes, of which the main one trains alone
        stage = AlignmentStage(self.model, callback_fn)
        self.tuned = [self.model.stages.run(stage)]
        self.n_train_rows = stage.n_rows
        timeline().begin(EVALUATE)
        return self._best_of(self.protocol.evaluate(self, valid_data, show_progress) if valid_data else None)

    def write_run(self, folder: Path) -> None:
        """The sequential model; the vectors, and the adapter of the LLM that made them, which serving does not need."""
        shutil.copy(self.tuned[-1].folder / CHECKPOINT, folder / CHECKPOINT)
        items = self.model.item_vectors
        write_item_vectors(folder, items.dataset.field2id_token[items.dataset.iid_field], items.table)
        if items.settings.steps:
            shutil.copytree(items.stages.run(items.tuning) / ADAPTER, folder / ADAPTER)
