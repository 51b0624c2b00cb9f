"""Training state on disk without pickled objects: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from recbole_llm.stages import write_json
from recbole_llm.trainer.shards import like, whole_tensor

Tensors = Mapping[str, torch.Tensor]


@dataclass
class TrainingState:
    """Everything that decides how training goes on after an epoch.

    Attributes:
        epoch: completed epochs.
        trainable: the weights that learn.
        best: the same weights at the best epoch so far.
        optimizer: state of the optimiser, :func:`pack_optimizer`.
        progress: plain data: scheduler, best score, patience, history.
    """

    epoch: int
    trainable: Tensors
    best: Tensors
    optimizer: Tensors
    progress: dict[str, Any]


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat named tensors, ``<parameter index>.<name>``; dealt out weights' too."""
    return {
        f"{index}.{name}": torch.as_tensor(whole_tensor(value)).detach().cpu().clone()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: Tensors) -> None:
    """Put :func:`pack_optimizer`'s tensors back into a fresh optimiser over the same parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, value in packed.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = like(value, weights[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_state(folder: Path, state: TrainingState) -> None:
    """Write the state of one epoch beside the previous one, then drop the previous one.

    The JSON is written last: a folder without it is a write that was cut short.
    """
    own = folder / f"epoch-{state.epoch:04d}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    for name in ("trainable", "best", "optimizer"):
        tensors = {key: value.contiguous() for key, value in getattr(state, name).items()}
        save_file(tensors, own / f"{name}.safetensors")
    write_json(own / "progress.json", state.progress)
    for older in _whole_states(folder)[:-1]:
        shutil.rmtree(older)


def load_state(folder: Path) -> TrainingState | None:
    """The newest whole state in the folder, or None."""
    states = _whole_states(folder)
    if not states:
        return None
    newest = states[-1]
    tensors = {name: load_file(newest / f"{name}.safetensors") for name in ("trainable", "best", "optimizer")}
    progress = json.loads((newest / "progress.json").read_text(encoding="utf-8"))
    return TrainingState(epoch=int(newest.name.split("-")[1]), progress=progress, **tensors)


def clear_states(folder: Path) -> None:
    """Remove all states: the stage is whole and needs none."""
    for state in folder.glob("epoch-*"):
        shutil.rmtree(state)


def _whole_states(folder: Path) -> list[Path]:
    return sorted(state for state in folder.glob("epoch-*") if (state / "progress.json").exists())
