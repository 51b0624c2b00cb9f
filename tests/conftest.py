"""What the end-to-end tests share: one small world and one folder whose stages are computed once per session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_llm import compat

# Before any test imports RecBole's sequential models: importing them turns on autograd's anomaly mode.
compat.apply()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that a second thread only costs


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a data set of 12 users and 20 items."""
    from tests.worlds import make_world

    return make_world(tmp_path_factory.mktemp("data") / "world", n_users=12, n_items=20)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``checkpoint_dir`` of all tests that need no fresh stages."""
    return tmp_path_factory.mktemp("session") / "saved"


@pytest.fixture(scope="session")
def command(world: Path, saved: Path) -> Callable[..., Any]:
    """``command("Pop,BIGRec", "--topk=5")``: run on the world, with the session's stages unless ``saved`` is given."""
    from tests.runs import run

    return lambda models, *words, saved=saved, world=world: run(models, world, saved, *words)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an LLM with random weights: it needs no stage, and its answers differ from row to row."""
    from tests.families import save_family

    return save_family("llama", tmp_path_factory.mktemp("llm") / "llama")


@pytest.fixture(scope="session")
def side_by_side(command: Callable[..., Any]) -> Any:
    """Pop, SASRec and BIGRec in one command."""
    return command("Pop,SASRec,BIGRec")
