"""Packages that import their contents on first use (PEP 562), so that one name does not load all of them."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_llm.errors import InputError

_CORE = "OPENBLAS_CORETYPE"
_CORES = {"AVX512": "SkylakeX", "AVX2": "Haswell"}  # torch's name of what a CPU can do, OpenBLAS's name of such a CPU


def needs_package(key: str, package: str, instead: str) -> InputError:
    """The refusal of a setting whose package is not installed.

    Args:
        key: the setting.
        package: its name on PyPI.
        instead: what else the user can do.
    """
    return InputError(key, f"it needs the package {package}: pip install {package}, or {instead}", kind="environment")


def lazy_exports(package: str, file: str) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (and ``__dir__``): it imports a name of the package's ``if TYPE_CHECKING:`` block.

    That block is thus the one list of names, for type checkers and at run time::

        if TYPE_CHECKING:
            from recbole_llm.coreset.ccs import CCSSelector

        __all__ = ["CCSSelector"]
        __getattr__ = lazy_exports(__name__, __file__)

    Args:
        package: ``__name__``.
        file: ``__file__``.
    """
    modules = {
        alias.asname or alias.name: (node.module, alias.name)
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }

    if clash := [name for name, (module, _) in modules.items() if module == f"{package}.{name}"]:
        raise ValueError(f"{package}: {clash[0]} is a module of the package too, which would hide what it exports")

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = modules[name]
        return getattr(importlib.import_module(module), original)

    vars(sys.modules[package])["__dir__"] = lambda: sorted({*vars(sys.modules[package]), *modules})
    return load


def load_faiss() -> Any:
    """The faiss module; None where it is not installed."""
    try:
        with _known_core():
            import faiss
    except ImportError:
        return None
    return faiss


@contextmanager
def _known_core() -> Iterator[None]:
    """Name the CPU's kind to the OpenBLAS inside faiss-cpu while that is loaded.

    The OpenBLAS 0.3.15 of its wheels does not know CPUs made after it, and falls back to code without AVX, in which a
    search takes three times as long.
    """
    import torch

    core = _CORES.get(torch.backends.cpu.get_cpu_capability())
    if "faiss" in sys.modules or core is None or _CORE in os.environ:
        yield
        return
    os.environ[_CORE] = core
    try:
        yield
    finally:
        del os.environ[_CORE]
