"""What the pages show works: Python blocks run, commands are accepted, and what a comment says comes out comes out."""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from recbole_llm.experiment.command import VERBS
from recbole_llm.settings.command import parse_command, settings_for
from recbole_llm.settings.models import model_names
from tests.processes import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
# A block that is not run says why in a comment before it.
BLOCK = re.compile(r"^(?P<skip><!-- not run: .+ -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("python run_recbole_llm.py ", "recbole-llm ")


def blocks(page: Path, kind: str) -> list[str]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block["text"] for block in found if block["kind"] == kind and not block["skip"]]


def case(page: Path) -> Any:
    """A page whose blocks train a model is slow."""
    trains = re.search(r"\b(run|compare|run_recbole_llm)\(", "".join(blocks(page, "python")))
    return pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if trains else [])


@pytest.mark.parametrize("page", [case(page) for page in PAGES[1:] if blocks(page, "python")])
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    """In a folder that holds the page's YAML files; an expression with a value in its comment has that value.

    The README has a test of its own (``tests/test_readme.py``).
    """
    monkeypatch.chdir(tmp_path)
    for text in blocks(page, "yaml"):
        if name := re.match(r"# (\S+\.yaml)\n", text):
            (tmp_path / name[1]).write_text(text)
    names: dict[str, Any] = {"__name__": "__main__"}
    for text in blocks(page, "python"):
        for statement in ast.parse(text).body:
            source = ast.get_source_segment(text, statement)
            if not isinstance(statement, ast.Expr):
                exec(compile(ast.Module([statement], []), page.name, "exec", dont_inherit=True), names)
                continue
            value = eval(compile(source, page.name, "eval"), names)
            comment = text.splitlines()[statement.end_lineno - 1].partition("  # ")[2]
            try:
                expected = ast.literal_eval(comment)
            except (SyntaxError, ValueError):
                continue
            assert value == expected, source


def commands(page: Path) -> list[list[str]]:
    """The words behind the program's name, of every command on a page; a backslash goes on with the next line."""
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [
        shlex.split(line.strip().removeprefix(program), comments=True)
        for line in lines
        for program in PROGRAMS
        if line.strip().startswith(program)
    ]


def test_the_commands_of_all_pages_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("epochs: 1\n")
    (mine,) = [text for page in PAGES for text in blocks(page, "yaml") if text.startswith("# mine.yaml\n")]
    (tmp_path / "mine.yaml").write_text(mine)
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) > 20
    for words in found:
        if words[0] in VERBS:
            import_module(VERBS[words[0]]).parse(words[1:])
            continue
        command = parse_command(words)
        assert command.models and set(command.models) <= set(model_names()), words
        for model in command.models:
            settings_for(model, command)


def test_a_wrong_command_and_a_wrong_comment_would_be_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\n1 + 1  # 3\n```\n\n    recbole-llm --model=BIGRec \\\n        --dataset=x --epohcs=1\n")
    with pytest.raises(AssertionError, match=r"1 \+ 1"):
        test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch)
    (words,) = commands(page)
    with pytest.raises(ValueError, match="epohcs"):
        settings_for("BIGRec", parse_command(words))
