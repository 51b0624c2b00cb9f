"""The files that benchmarks leave, as lines of the page of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recbole_llm.report import NOT_RUN

RESULTS = Path(__file__).resolve().parent / "results"


def rendered(file: Path, lines: Callable[[dict[str, Any]], Iterator[str]]) -> Iterator[str]:
    """What a benchmark wrote, as Markdown; "not run" where there is no such file."""
    if file.exists():
        yield from lines(json.loads(file.read_text(encoding="utf-8")))
    else:
        yield f"{NOT_RUN.capitalize()}."
