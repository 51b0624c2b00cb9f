"""States of small trainings in a folder, without pickled objects, so that a killed run continues."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from recbole_llm.disk import write_json
from recbole_llm.distributed import sharded_like, whole_tensor

Tensors = Mapping[str, torch.Tensor]
OPTIMIZER = "optimizer."  # beginning of the names of an optimiser's tensors among others
_TENSORS, _TOLD = "tensors.safetensors", "told.json"


def save_training(folder: Path, tensors: Tensors, told: Mapping[str, Any]) -> None:
    """Put a state in place of the one before it.

    It is written beside that one, the JSON last.

    Args:
        folder: folder of the state alone.
        tensors: dense ones of any device.
        told: the rest, as JSON values.
    """
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write_tensors(aside / _TENSORS, {name: value.detach().cpu().clone() for name, value in tensors.items()})
    write_json(aside / _TOLD, dict(told))
    _put(folder)


def write_tensors(file: Path, tensors: Tensors) -> None:
    """Write tensors, and return once they are on the disk.

    Args:
        file: gets them, as safetensors.
        tensors: dense ones, no two of which share memory.
    """
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    with open(file, "rb+") as written:
        os.fsync(written.fileno())


def load_training(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The tensors and the rest of the last whole state, as :func:`save_training` was given them; None without one."""
    if (_aside(folder) / _TOLD).is_file():  # whole, and only not in its place yet
        _put(folder)
    if not (folder / _TOLD).is_file():
        return None
    return load_file(folder / _TENSORS), json.loads((folder / _TOLD).read_text(encoding="utf-8"))


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + ".new")


def _put(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(_aside(folder), folder)


def pack_optimizer(optimizer: torch.optim.Optimizer, beginning: str = "") -> dict[str, torch.Tensor]:
    """An optimiser's state as whole tensors on the CPU, ``<beginning><parameter index>.<name>``.

    Args:
        optimizer: all processes take part where its weights are sharded.
        beginning: prefix of the names, which tells them from those of other tensors.
    """
    return {
        f"{beginning}{index}.{name}": torch.as_tensor(whole_tensor(value)).detach().cpu().clone()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, beginning: str = "") -> None:
    """Put what :func:`pack_optimizer` gave back into a fresh optimiser over the same weights.

    Args:
        optimizer: over whole weights or sharded ones.
        tensors: tensors by name; those of other names are left out.
        beginning: as it was given.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, value in tensors.items():
        if key.startswith(beginning):
            index, name = key.removeprefix(beginning).split(".", 1)
            state.setdefault(int(index), {})[name] = sharded_like(value, weights[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> dict[str, torch.Tensor]:
    """States of the generators that all of this process shares, as tensors: torch's, numpy's, Python's."""
    kind, words, position, has_gauss, gauss = np.random.get_state()
    assert kind == "MT19937"
    version, own, next_gauss = random.getstate()
    found = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.append(words, np.uint32(position)).astype(np.int64)),
        "numpy_gauss": torch.tensor([has_gauss, gauss], dtype=torch.float64),
        "python": torch.tensor([version, *own], dtype=torch.int64),
    }
    if next_gauss is not None:
        found["python_gauss"] = torch.tensor([next_gauss], dtype=torch.float64)
    for device in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        found[f"cuda:{device}"] = torch.cuda.get_rng_state(device)
    return found


def set_random_state(state: Tensors) -> None:
    """Put all generators into the state that :func:`random_state` gave; those of devices that are gone are left out."""
    torch.set_rng_state(state["torch"])
    *words, position = state["numpy"].tolist()
    has_gauss, gauss = state["numpy_gauss"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, int(has_gauss), gauss))
    version, *own = state["python"].tolist()
    next_gauss = state["python_gauss"].item() if "python_gauss" in state else None
    random.setstate((version, tuple(own), next_gauss))
    for name in (name for name in state if name.startswith("cuda:")):
        device = int(name.partition(":")[2])
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(state[name], device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A context in which torch's generators of the CPU and of one device start from a seed; then they are as before.

    Those of other devices are left alone, which ``torch.manual_seed`` would reseed.

    Args:
        seed: seed.
        device: what is computed on.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for own in devices:
            with torch.cuda.device(own):
                torch.cuda.manual_seed(seed)
        yield
