"""The page on the architecture says which package may import which; here the code is held to it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.processes import REPOSITORY, fresh_python

PACKAGE = REPOSITORY / "recbole_llm"
# Know nothing of RecBole.
ALONE = (
    *("llm", "adapter", "coreset", "curriculum", "grounding", "history", "objective", "prompt", "report", "rerank"),
    "semantic_ids",
)
# Are imported before it is known what is needed.
LIGHT = ("registry", "settings", "curriculum", "objective", "evaluation", "report")
HEAVY = ("torch", "transformers", "recbole", "pandas", "matplotlib")


def places_in_order() -> list[list[str]]:
    """Names of the first column of the page's table, a list per line."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Packages")[2].partition("##")[0]
    return [
        [name.strip("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
        for line in table.splitlines()
        if line.startswith("| `")
    ]


def imported(file: Path) -> Iterator[str]:
    """Packages and modules of ours that a file imports, by their first name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            yield from node.module.split(".")[1:2] or [alias.name for alias in node.names]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def loaded_with(file: Path, modules: set[str]) -> set[str]:
    """Modules of ours that importing a file imports: those named at its top level, outside ``if TYPE_CHECKING``."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= below or {node.module} & modules
    return found


def test_the_page_names_every_package_and_module():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {name for line in places_in_order() for name in line} == there - {"__init__"}


def test_no_import_runs_against_the_order_of_the_page():
    order = {name: place for place, name in enumerate(name for line in places_in_order() for name in line)}
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in PACKAGE.rglob("*.py")
        for own in [file.relative_to(PACKAGE).parts[0].removesuffix(".py")]
        for name in imported(file)
        if name != own and own != "__init__" and order[name] >= order[own]
    ]
    assert not wrong


def test_no_modules_import_each_other():
    files = {module_of(file): file for file in PACKAGE.rglob("*.py")}
    graph = {module: loaded_with(file, set(files)) - {module} for module, file in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(error.args[1][::-1])) from None


def test_what_can_be_used_alone_imports_no_recbole():
    for place in ALONE:
        for file in (PACKAGE / place).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(from|import) recbole\b", text, re.MULTILINE), file


def test_importing_is_light_and_what_can_be_used_alone_loads_no_recbole():
    """One process: what an import loads stays loaded, so the light ones come first."""
    code = """
        import importlib, sys
        light, heavy, alone = (words.split() for words in sys.argv[1:])
        for room in ["recbole_llm", *(f"recbole_llm.{name}" for name in light)]:
            importlib.import_module(room)
            found = [name for name in heavy if name in sys.modules]
            assert not found, f"{room} loads {', '.join(found)}"
        for name in alone:
            importlib.import_module(f"recbole_llm.{name}")
            assert "recbole" not in sys.modules, f"recbole_llm.{name} loads recbole"
    """
    fresh_python(*map(" ".join, (LIGHT, HEAVY, ALONE)), code=code)
