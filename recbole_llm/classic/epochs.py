"""Resumable epochs of RecBole's trainers: a killed command continues after the last one.

RecBole's own checkpoint holds the best epoch, so that going on from it would end with other numbers. Here a state is
written after an epoch, with all random generators and optimisers and what a model changes in itself besides weights:
after every one that is longer than a second, else about once a second.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recbole import trainer as recbole_trainers
from torch import Tensor

from recbole_llm.classic.own_values import OwnValues, is_dense, pack, unpack
from recbole_llm.timeline import timeline
from recbole_llm.training_state import (
    OPTIMIZER,
    load_training,
    pack_optimizer,
    random_state,
    save_training,
    set_random_state,
    unpack_optimizer,
)

OnScore = Callable[[int, float], None]  # told epoch, from 1, and validation score
SAVE_SECONDS = 1.0  # of training between two states, at least; what comes after the last one is trained again
FORMAT = 2  # of a state; one of another format is not read, and its training restarts
# RecBole's trainers between whose epochs nothing is left but what is written here. Those of memory-based models have
# one epoch, those of decision trees train nothing that ranks, and KGAT's graph library has no release for this torch.
_KEPT = ("Trainer", "KGTrainer", "MKRTrainer", "S3RecTrainer", "RaCTTrainer", "RecVAETrainer", "NCLTrainer")
log = logging.getLogger(__name__)


class KeptEpochs:
    """The epochs of one training by one of RecBole's trainers, kept in a folder.

    A trainer of another package is kept if its class says ``keeps_epochs = True``: what it knows between two epochs is
    then in its optimisers, its model, its loader's ``generator`` and the generators that all of a process shares.

    Args:
        folder: folder of this training alone; the checkpoint of the best epoch lies there as well until the end.
        trainer: RecBole's, its model untrained.
        loader: loader of the training rows.
        on_score: called for every validated epoch, first for those of an earlier run.
    """

    def __init__(self, folder: Path, trainer: Any, loader: Any, on_score: OnScore | None = None) -> None:
        self._state, self._best = folder / "state", folder / "best.pth"
        self._trainer, self._loader, self._on_score = trainer, loader, on_score
        self._scores: list[tuple[int, float]] = []
        self._losses: dict[int, Any] = {}
        self._random: dict[str, Tensor] = {}
        self._own = OwnValues(trainer.model)
        self._saved = 0.0

    @staticmethod
    def serves(trainer: Any, loader: Any) -> bool:
        """Whether a state can hold all that this training depends on."""
        kind = type(trainer)
        is_kept = kind in [getattr(recbole_trainers, name) for name in _KEPT] or vars(kind).get("keeps_epochs", False)
        return is_kept and bool(_generators(loader)) and all(map(is_dense, trainer.model.state_dict().values()))

    def fit(self, checkpoint: Path, valid_data: Any, n_epochs: int | None = None, **options: Any) -> None:
        """Train to the end, from the last state if there is one.

        Args:
            checkpoint: gets what RecBole writes of the best epoch.
            valid_data: loader of the validation rows, or None.
            n_epochs: epochs of a stage that others follow, whose last epoch is kept too; None for the last stage.
            **options: options of RecBole's ``fit``.
        """
        trainer = self._trainer
        self._best.parent.mkdir(parents=True, exist_ok=True)
        trainer.saved_model_file = str(self._best)
        self._resume()
        self._saved = time.monotonic()
        train_epoch, loaders = trainer._train_epoch, [self._loader]

        def kept_epoch(loader: Any, epoch: int, *more: Any, **rest: Any) -> Any:
            loaders[0] = loader  # a trainer may have put one of its own around that of the rows
            if self._random:
                self._set_random(loader)
            elif epoch > trainer.start_epoch and time.monotonic() - self._saved >= SAVE_SECONDS:
                self._save(epoch, loader)
            loss = train_epoch(loader, epoch, *more, **rest)
            self._losses[epoch] = tuple(map(float, loss)) if isinstance(loss, tuple) else float(loss)
            return loss

        trainer._train_epoch = kept_epoch
        trainer.fit(self._loader, valid_data, callback_fn=self._scored, **options)
        if n_epochs is not None and trainer.start_epoch < n_epochs:
            self._save(n_epochs, loaders[0])
        if self._best.exists():  # a trainer without epochs may save none
            shutil.copyfile(self._best, checkpoint)

    def _scored(self, epoch: int, score: float) -> None:
        self._scores.append((epoch, float(score)))
        if self._on_score is not None:
            self._on_score(epoch + 1, float(score))

    def _set_random(self, loader: Any) -> None:
        """Put the generators of a loader, and those that all of this process shares, into the state that was kept."""
        for name, generator in _generators(loader).items():
            generator.set_state(self._random.pop(name))
        set_random_state(self._random)
        self._random = {}

    def _save(self, epoch: int, loader: Any) -> None:
        """Keep what there is after so many epochs."""
        trainer, own = self._trainer, dict[str, Tensor]()
        try:
            changed = {name: pack(value, name, own) for name, value in self._own.changed().items()}
        except TypeError as error:
            log.debug("No state is kept of %s: %s", trainer.config["model"], error)
            return
        tensors = {
            **{f"model.{name}": value for name, value in trainer.model.state_dict().items()},
            **{f"own.{name}": value for name, value in own.items()},
            **{f"random.{name}": value for name, value in random_state().items()},
            **{f"random.{name}": generator.get_state() for name, generator in _generators(loader).items()},
        }
        for name, optimizer in _optimizers(trainer).items():
            tensors |= pack_optimizer(optimizer, f"{name}/{OPTIMIZER}")
        result = trainer.best_valid_result
        told = {
            "format": FORMAT,
            "epoch": epoch,
            "cur_step": int(trainer.cur_step),
            "best_valid_score": float(trainer.best_valid_score),
            "best_valid_result": None if result is None else {name: float(value) for name, value in result.items()},
            "losses": self._losses,
            "scores": self._scores,
            "own": changed,
        }
        save_training(self._state, tensors, told)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        """Give the trainer the last state, if there is one, and repeat the reports of its epochs."""
        found = load_training(self._state)
        if found is None or found[1].get("format") != FORMAT:
            return
        trainer, (tensors, told) = self._trainer, found
        trainer.model.load_state_dict({name: tensors[f"model.{name}"] for name in trainer.model.state_dict()})
        own = _part(tensors, "own.")
        self._own.restore({name: unpack(value, own, trainer.device) for name, value in told["own"].items()})
        for name, optimizer in _optimizers(trainer).items():
            unpack_optimizer(optimizer, tensors, f"{name}/{OPTIMIZER}")
        self._random = _part(tensors, "random.")
        trainer.start_epoch, trainer.cur_step = told["epoch"], told["cur_step"]
        trainer.best_valid_score, trainer.best_valid_result = told["best_valid_score"], told["best_valid_result"]
        log.info("Resuming after epoch %d of %s.", told["epoch"], trainer.config["model"])
        timeline().resumed()
        for index, kept in told["losses"].items():
            epoch, loss = int(index), tuple(kept) if isinstance(kept, list) else kept
            self._losses[epoch] = loss
            trainer.train_loss_dict[epoch] = sum(loss) if isinstance(loss, tuple) else loss
            trainer._add_train_loss_to_tensorboard(epoch, loss)
        for epoch, score in told["scores"]:
            trainer.tensorboard.add_scalar("Vaild_score", score, epoch)
            self._scored(epoch, score)


def _part(tensors: dict[str, Tensor], beginning: str) -> dict[str, Tensor]:
    return {name.removeprefix(beginning): value for name, value in tensors.items() if name.startswith(beginning)}


def _generators(loader: Any) -> dict[str, Any]:
    """What a loader draws with, by a name: generators of torch, or what has their ``get_state`` and ``set_state``.

    RecBole's loader of a knowledge graph consists of two.
    """
    parts = {
        "loader": loader,
        "loader_rows": getattr(loader, "general_dataloader", None),
        "loader_graph": getattr(loader, "kg_dataloader", None),
    }
    found = {name: getattr(part, "generator", None) for name, part in parts.items()}
    return {name: generator for name, generator in found.items() if hasattr(generator, "get_state")}


def _optimizers(trainer: Any) -> dict[str, torch.optim.Optimizer]:
    """A trainer's optimisers by its attributes; where ``optimizer`` is one of the others for a while, the others."""
    found = {name: value for name, value in vars(trainer).items() if isinstance(value, torch.optim.Optimizer)}
    plain = found.pop("optimizer")
    return found if any(other is plain for other in found.values()) else {"optimizer": plain, **found}
