"""The examples in docstrings come out as they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FILES = [file for file in sorted((REPOSITORY / "recbole_llm").rglob("*.py")) if ">>> " in file.read_text("utf-8")]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("module", [module_of(file) for file in FILES])
def test_the_examples_of_a_module(module, tmp_path, monkeypatch, pytestconfig):
    if pytestconfig.getoption("--rounding"):
        pytest.skip("examples print sums of a few small integers, which every processor gives exactly")
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(module), optionflags=OPTIONS)
    assert found.attempted and not found.failed
