"""The state of a training survives whatever it is killed in: the last whole one is found, and gone on with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_llm import training_state
from recbole_llm.model import solid_codebook
from recbole_llm.training_state import OPTIMIZER, load_training, pack_optimizer, save_training, seeded, unpack_optimizer

WRITES = ((shutil, "rmtree"), (os, "replace"), (Path, "mkdir"), (training_state, "save_file"))


def save(folder: Path, number: int) -> None:
    save_training(folder, {"weight": torch.full((3, 2), float(number)).T}, {"step": number})


def step_of(folder: Path) -> int | None:
    """The step of the state that is found, which must be whole."""
    found = load_training(folder)
    if found is None:
        return None
    tensors, told = found
    assert torch.equal(tensors["weight"], torch.full((2, 3), float(told["step"])))
    return int(told["step"])


def test_of_states_the_last_is_found(tmp_path):
    assert load_training(tmp_path / "state") is None
    for number in (1, 2, 3):
        save(tmp_path / "state", number)
        assert step_of(tmp_path / "state") == number


@pytest.mark.parametrize("behind", [False, True])
def test_a_kill_leaves_the_state_before_or_the_new_one(tmp_path, monkeypatch, behind):
    """Before and behind everything that is written or removed, and once more while the next run saves."""
    left = [10**6]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not behind:
                raise KeyboardInterrupt
            found = function(*arguments, **options)
            if left[0] == 0:
                raise KeyboardInterrupt
            return found

        return called

    for owner, name in WRITES:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    for first in range(1, 6):
        for second in range(1, 6):
            folder, known = tmp_path / f"{first}-{second}" / "state", 1
            save(folder, 1)
            for number, at in ((2, first), (3, second)):
                left[0] = at
                try:
                    save(folder, number)
                except KeyboardInterrupt:
                    left[0] = 10**6
                    assert (found := step_of(folder)) in (known, number)
                    known = found
                else:
                    known = number
            left[0] = 10**6
            save(folder, 4)
            assert step_of(folder) == 4


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.SGD])
def test_an_optimiser_goes_on_as_if_it_had_not_been_put_away(kind, tmp_path):
    def steps(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (weight.square() * torch.arange(1.0, 4.0)).sum().backward()
            optimizer.step()

    whole, part = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    steps(kind([whole], lr=0.1), whole, 5)
    steps(optimizer := kind([part], lr=0.1), part, 2)
    save_training(tmp_path / "state", {"weight": part, **pack_optimizer(optimizer, OPTIMIZER)}, {})
    tensors, _ = load_training(tmp_path / "state") or ({}, {})
    again = torch.nn.Parameter(tensors["weight"])
    unpack_optimizer(optimizer := kind([again], lr=0.1), tensors, OPTIMIZER)
    steps(optimizer, again, 3)
    assert torch.equal(again, whole)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """What ``torch.cuda`` draws from, on a machine without one."""
    own = torch.Generator().manual_seed(7)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": own.get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": own.set_state(state))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, own.manual_seed)
    return own


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_seed_is_that_of_a_stage_alone(gpu, device):
    """On whatever device it draws, the generators of the CPU and of the others are afterwards as they were."""
    before, drawn = (torch.get_rng_state(), gpu.get_state()), []
    for _ in range(2):
        with seeded(3, torch.device(device)):
            drawn.append([*torch.rand(2).tolist(), *torch.rand(2, generator=gpu).tolist()])
            inside = gpu.get_state()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(gpu.get_state(), before[1] if device == "cuda" else inside)
    assert drawn[0][:2] == drawn[1][:2] and (drawn[0] == drawn[1]) == (device == "cuda")


def test_solids_classes_go_on_with_what_a_device_draws(gpu, tmp_path):
    model: Any = torch.nn.Linear(2, 1)
    for device, goes_on in (("cuda", True), ("cpu", False)):
        words = (model, torch.optim.Adam(model.parameters()), tmp_path / device)
        solid_codebook._save(*words, 1, 0.5, model.state_dict(), torch.device(device))
        drawn = torch.rand(2, generator=gpu)
        assert solid_codebook._resumed(*words, torch.device(device))[:2] == (1, 0.5)
        assert torch.equal(torch.rand(2, generator=gpu), drawn) == goes_on
