"""Epochs of RecBole's trainers that a killed command does not train again.

RecBole's own checkpoint holds the best epoch, so that going on from it would end with other numbers. Here a state is
written after every epoch, with all random generators and with what a model changes in itself besides weights. Trainers
of a kind of their own (knowledge graphs, RecVAE, NCL, RaCT, S3Rec), and models that change what is neither a number nor
a dense tensor, begin anew.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from torch import Tensor, nn

from recbole_llm.hashing import hash_arrays
from recbole_llm.timeline import timeline
from recbole_llm.training_state import (
    load_optimizer,
    load_training,
    optimizer_tensors,
    random_state,
    save_training,
    set_random_state,
)

OnScore = Callable[[int, float], None]  # told epoch, from 1, and validation score
_OF_TORCH = {*vars(nn.Module()), "training"}  # attributes that every module has
_PLAIN = (bool, int, float, str, type(None))
log = logging.getLogger(__name__)


class KeptEpochs:
    """The epochs of one training by RecBole's plain trainer, kept in a folder.

    Args:
        folder: of this training alone; the checkpoint of the best epoch lies there as well until the end.
        trainer: RecBole's, its model untrained.
        loader: of the training rows.
        on_score: told of every validated epoch, of those of an earlier run first.
    """

    def __init__(self, folder: Path, trainer: Any, loader: Any, on_score: OnScore | None = None) -> None:
        self._state, self._best = folder / "state", folder / "best.pth"
        self._trainer, self._loader, self._on_score = trainer, loader, on_score
        self._scores: list[tuple[int, float]] = []
        self._random: dict[str, Tensor] = {}
        self._fresh = dict(_own_values(trainer.model))  # holds the values, so that no other takes their place
        self._versions = {name: _mark(value) for name, value in self._fresh.items()}

    @staticmethod
    def serves(trainer: Any, loader: Any) -> bool:
        """Whether it is RecBole's plain trainer and loader, and the weights can be written down."""
        is_plain = type(trainer) is Trainer and isinstance(getattr(loader, "generator", None), torch.Generator)
        return is_plain and all(map(_is_dense, trainer.model.state_dict().values()))

    def fit(self, checkpoint: Path, valid_data: Any, **options: Any) -> None:
        """Train to the end, from the last state if there is one.

        Args:
            checkpoint: gets what RecBole writes of the best epoch.
            valid_data: loader of the validation rows, or None.
            **options: of RecBole's ``fit``.
        """
        trainer = self._trainer
        self._best.parent.mkdir(parents=True, exist_ok=True)
        trainer.saved_model_file = str(self._best)
        self._resume()
        train_epoch = trainer._train_epoch

        def kept_epoch(loader: Any, epoch: int, *more: Any, **rest: Any) -> Any:
            if self._random:
                self._loader.generator.set_state(self._random.pop("loader"))
                set_random_state(self._random)
                self._random = {}
            elif epoch > trainer.start_epoch:
                self._save(epoch)
            return train_epoch(loader, epoch, *more, **rest)

        trainer._train_epoch = kept_epoch
        trainer.fit(self._loader, valid_data, callback_fn=self._scored, **options)
        if self._best.exists():  # a trainer without epochs may save none
            shutil.copyfile(self._best, checkpoint)

    def _scored(self, epoch: int, score: float) -> None:
        self._scores.append((epoch, float(score)))
        if self._on_score is not None:
            self._on_score(epoch + 1, float(score))

    def _save(self, epoch: int) -> None:
        """Keep what there is after so many epochs."""
        trainer, changed = self._trainer, self._changed()
        if changed is None:
            return
        own = {name: value for name, value in changed.items() if not isinstance(value, Tensor)}
        tensors = {
            **{f"model.{name}": value for name, value in trainer.model.state_dict().items()},
            **{f"own.{name}": value for name, value in changed.items() if isinstance(value, Tensor)},
            **{f"random.{name}": value for name, value in random_state().items()},
            "random.loader": self._loader.generator.get_state(),
            **optimizer_tensors(trainer.optimizer),
        }
        result = trainer.best_valid_result
        told = {
            "epoch": epoch,
            "cur_step": int(trainer.cur_step),
            "best_valid_score": float(trainer.best_valid_score),
            "best_valid_result": None if result is None else {name: float(value) for name, value in result.items()},
            "losses": {index: float(loss) for index, loss in trainer.train_loss_dict.items()},
            "scores": self._scores,
            "own": own,
        }
        save_training(self._state, tensors, told)

    def _resume(self) -> None:
        """Give the trainer the last state, if there is one, and tell again what was told of its epochs."""
        found = load_training(self._state)
        if found is None:
            return
        trainer, (tensors, told) = self._trainer, found
        device = trainer.device
        trainer.model.load_state_dict({name: tensors[f"model.{name}"] for name in trainer.model.state_dict()})
        for name, value in {**_part(tensors, "own."), **told["own"]}.items():
            path, _, attribute = name.rpartition(".")
            moved = value.to(device) if isinstance(value, Tensor) else value
            setattr(trainer.model.get_submodule(path), attribute, moved)
        load_optimizer(trainer.optimizer, tensors)
        self._random = _part(tensors, "random.")
        trainer.start_epoch, trainer.cur_step = told["epoch"], told["cur_step"]
        trainer.best_valid_score, trainer.best_valid_result = told["best_valid_score"], told["best_valid_result"]
        trainer.train_loss_dict = {int(index): loss for index, loss in told["losses"].items()}
        log.info("Going on after epoch %d of %s.", told["epoch"], trainer.config["model"])
        timeline().resumed()
        for epoch, loss in trainer.train_loss_dict.items():
            trainer._add_train_loss_to_tensorboard(epoch, loss)
        for epoch, score in told["scores"]:
            trainer.tensorboard.add_scalar("Vaild_score", score, epoch)
            self._scored(epoch, score)

    def _changed(self) -> dict[str, Any] | None:
        """What the model has changed of itself besides weights; None where some of it cannot be written down."""
        now = dict(_own_values(self._trainer.model))
        changed = {
            name: value
            for name, value in now.items()
            if name not in self._fresh
            or _mark(value) != self._versions[name]
            or (value is not self._fresh[name] and not isinstance(value, (*_PLAIN, np.ndarray)))
        }
        odd = [name for name, value in changed.items() if not isinstance(value, _PLAIN) and not _is_dense(value)]
        if odd:
            log.debug("No state is kept of %s, which changes %s.", self._trainer.config["model"], odd[0])
        return None if odd else changed


def _part(tensors: dict[str, Tensor], beginning: str) -> dict[str, Tensor]:
    return {name.removeprefix(beginning): value for name, value in tensors.items() if name.startswith(beginning)}


def _own_values(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes of a model and its modules, besides weights, in which training may leave something."""
    kinds = (*_PLAIN, Tensor, np.ndarray, list, tuple, dict, set)
    known = set(model.state_dict())
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        buffers = {name: value for name, value in module._buffers.items() if f"{start}{name}" not in known}
        own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
        yield from ((f"{start}{name}", value) for name, value in {**own, **buffers}.items() if isinstance(value, kinds))


def _mark(value: Any) -> Any:
    """What differs once a value has changed in place."""
    if isinstance(value, Tensor):
        return value._version
    if isinstance(value, np.ndarray):
        return hash_arrays(value) if value.dtype != object else len(value)
    return value if isinstance(value, _PLAIN) else len(value)


def _is_dense(value: Any) -> bool:
    """Whether it is a tensor that a state can hold."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()
