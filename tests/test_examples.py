"""Every example runs from its first line to its last, in an empty folder."""

from __future__ import annotations

import pytest

from tests.processes import REPOSITORY, forked_python

SERVERS = {"serve_fastapi"}  # they run until they are stopped: tests/experiment/test_serve.py asks this one
EXAMPLES = sorted(file for file in (REPOSITORY / "examples").glob("*.py") if file.stem not in SERVERS)
PROGRAM = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


def case(example):
    """Those that train a model are slow."""
    trains = "import recbole_llm\n" in example.read_text(encoding="utf-8")
    return pytest.param(example, id=example.stem, marks=[pytest.mark.slow] if trains else [])


@pytest.mark.parametrize("example", [case(example) for example in EXAMPLES])
def test_an_example(example, tmp_path):
    done = forked_python(PROGRAM, example, cwd=tmp_path)
    assert done.stdout
