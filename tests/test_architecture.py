"""The page on the architecture says which package may import which; here the code is held to it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "recbole_llm"


def places_in_order() -> list[list[str]]:
    """Names of the first column of the page's table, a list per line."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
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


def test_what_can_be_used_alone_imports_no_recbole():
    for place in ("llm", "adapter", "coreset", "curriculum", "grounding", "prompt", "report"):
        for file in (PACKAGE / place).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(from|import) recbole\b", text, re.MULTILINE), file
