"""Training state on disk without pickled objects: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from recbole_llm.disk import write_json
from recbole_llm.training_state import Tensors, write_tensors

TENSORS = ("trainable", "best", "optimizer")  # of every state, a file each


@dataclass
class TrainingState:
    """Everything that decides how training continues after an epoch, or after a step inside the next one.

    Attributes:
        epoch: completed epochs.
        trainable: the weights that learn.
        best: the same weights at the best epoch so far.
        optimizer: state of the optimiser, :func:`recbole_llm.training_state.pack_optimizer`.
        progress: plain data: scheduler, best score, patience, history; inside an epoch also what it has gathered.
        step: completed steps of the next epoch; 0 between epochs.
        random: random states of inside an epoch, :func:`recbole_llm.training_state.random_state`.
    """

    epoch: int
    trainable: Tensors
    best: Tensors
    optimizer: Tensors
    progress: dict[str, Any]
    step: int = 0
    random: Tensors = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder name; sorts after that of any earlier state."""
        inside = f"-step-{self.step:07d}" if self.step else ""
        return f"epoch-{self.epoch:04d}{inside}"


@dataclass
class EpochSoFar:
    """What an epoch has gathered, so that it can be left after a step and gone on with.

    Attributes:
        losses: sums over steps of the loss on each kind of answer.
        counted: steps with an answer of each kind.
        step: steps done.
        tokens: tokens that went through forward passes of all processes; known where a state is kept.
        seconds: wall time of the epoch so far, that of earlier processes included.
    """

    losses: np.ndarray
    counted: np.ndarray
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def means(self) -> np.ndarray:
        """Mean loss of the steps with an answer of each kind; 0 where there were none."""
        means: np.ndarray = self.losses / self.counted.clip(min=1)
        return means

    def to_dict(self) -> dict[str, Any]:
        """The gathered numbers as JSON values; :meth:`from_dict` reads them."""
        return {**vars(self), "losses": self.losses.tolist(), "counted": self.counted.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochSoFar:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**values, "losses": np.array(values["losses"]), "counted": np.array(values["counted"])})


def save_state(folder: Path, state: TrainingState) -> None:
    """Write a state beside the previous one, then drop that one.

    The JSON is written last, once the tensors are on the disk: a folder without it is a write that was cut short.
    """
    for torn in set(folder.glob("epoch-*")).difference(_whole_states(folder)):
        shutil.rmtree(torn)
    own = folder / state.name
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    for name in (*TENSORS, *(("random",) if state.random else ())):
        write_tensors(own / f"{name}.safetensors", getattr(state, name))
    write_json(own / "progress.json", state.progress)
    for older in _whole_states(folder)[:-1]:
        shutil.rmtree(older)


def load_state(folder: Path) -> TrainingState | None:
    """The newest whole state in the folder, or None."""
    states = _whole_states(folder)
    if not states:
        return None
    newest = states[-1]
    _, epoch, *inside = newest.name.split("-")
    names = (*TENSORS, *(("random",) if inside else ()))
    tensors = {name: load_file(newest / f"{name}.safetensors") for name in names}
    progress = json.loads((newest / "progress.json").read_text(encoding="utf-8"))
    return TrainingState(int(epoch), progress=progress, step=int(inside[-1]) if inside else 0, **tensors)


def _whole_states(folder: Path) -> list[Path]:
    return sorted(state for state in folder.glob("epoch-*") if (state / "progress.json").exists())
