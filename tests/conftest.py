"""What the end-to-end tests share: one small world and one folder whose stages are computed once per session."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

HOSTILE = Path(__file__).with_name("hostile")

# With Python's own threshold, 700 objects, the collector takes every 14th second of a command and a fifth of imports.
gc.set_threshold(50_000)
settings.register_profile("default", deadline=None)  # a busy processor is no fault of an example's
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; a second thread only costs on small models


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rounding=1``: as on another machine; see ``tests/rounding.py``."""
    parser.addoption("--rounding", type=int, default=0, help="another machine's rounding; 0: this one's")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test imports RecBole's sequential models, as importing them turns on autograd's anomaly mode."""
    for name in ("default", "ci") if "not hostile" in config.getoption("markexpr") else ():
        settings.register_profile(name, settings.get_profile(name), max_examples=50)  # other ones every time
    hands_out = not hasattr(config, "workerinput") and config.getoption("numprocesses", None)
    if not hands_out:  # a process that only hands tests to workers imports nothing
        from recbole_llm import compat

        compat.apply()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A folder of hostile tests alone makes thousands of cases, of which ``-m "not hostile"`` asks for none."""
    asked = config.getoption("markexpr")
    unasked = asked == "slow" or asked.endswith("not hostile")
    return True if unasked and collection_path == HOSTILE else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What passes is told without its output: the logs of hundreds of commands would go from process to process."""
    report = yield
    if report.passed and hasattr(item.config, "workerinput"):
        report.sections = []
    return report


def pytest_collection_finish() -> None:
    """What is imported by now stays: every full collection would look at a million objects of it, for half a second."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Commands first, which stand at the top of ``tests``: a long file at the end would leave the other worker idle."""
    items.sort(key=lambda item: len(item.path.parts))


@pytest.fixture(scope="session", autouse=True)
def rounding(request: pytest.FixtureRequest) -> Iterator[None]:
    """Rounds as another machine does, if asked to, here and in the processes that tests start."""
    seed = request.config.getoption("--rounding")
    if not seed:
        yield
        return
    from tests.processes import ROUNDING
    from tests.rounding import OtherRounding

    with pytest.MonkeyPatch.context() as patch, OtherRounding(seed):
        patch.setenv(ROUNDING, str(seed))
        yield


@pytest.fixture(scope="session", autouse=True)
def pictures() -> Iterator[None]:
    """Draws pictures for the tests that look at them; others have their size."""
    from tests.pictures import made_once

    with made_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def paths() -> Iterator[None]:
    """Finds out once which fast paths an LLM takes that many commands load."""
    from tests.probes import remembered

    with remembered():
        yield


@pytest.fixture(scope="session", autouse=True)
def disk() -> Iterator[None]:
    """No test cuts the power, so nothing waits until the disk has what was written; it must be a file that is open."""

    def written(file: Any) -> None:
        os.fstat(file if isinstance(file, int) else file.fileno())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", written)
        yield


@pytest.fixture(scope="session", autouse=True)
def seeds() -> Iterator[None]:
    """A seed for a kind of device that is not there waits for it, with a traceback of who gave it; here none does."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for kind in (torch.cuda, torch.xpu, torch.mtia):
            if not kind.is_available():
                for name in ("manual_seed", "manual_seed_all"):
                    patch.setattr(kind, name, lambda seed: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def templates() -> Iterator[None]:
    """Compiles each template once; peft does so anew for the page beside each adapter, as long as a step takes."""
    from jinja2 import Environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "compile", lru_cache(maxsize=32)(Environment.compile))
        yield


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
    """Folder of an LLM with random weights: it needs no stage, and its answers differ from row to row.

    It has one layer: what a second one could change is a matter of ``tests/llm``, ``tests/adapter`` and :func:`deep`.
    """
    from tests.families import save_family

    return save_family("llama", tmp_path_factory.mktemp("llm") / "llama", n_layers=1)


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two layers, for whole commands in which every layer has something of its own."""
    from tests.families import save_family

    return save_family("llama", tmp_path_factory.mktemp("llm") / "deep")


@pytest.fixture(scope="session")
def side_by_side(command: Callable[..., Any]) -> Any:
    """Pop, SASRec and BIGRec in one command."""
    return command("Pop,SASRec,BIGRec")
